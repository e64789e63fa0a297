//! The directory under construction: one entry after the other, through descriptors, never through the process's own
//! view of paths.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::stat::{fchmodat, fstatat, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::UnpackError;
use super::names::{Meaning, clean, meaning, parent, resolve, show};

/// What overlayfs reads on a directory that hides lower ones.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
/// As deep as the kernel follows links.
const MAX_LINKS: u8 = 40;

pub(super) struct Tree {
    root: OwnedFd,
    /// The directory of the entry before: archives list a directory's files together.
    last: Option<(PathBuf, OwnedFd)>,
    implied: BTreeSet<PathBuf>,
    /// Times of directories are set last: making a file in one changes them.
    times: BTreeMap<PathBuf, TimeSpec>,
    buffer: Vec<u8>,
}

fn failed(operation: &'static str, name: &Path) -> impl FnOnce(Errno) -> UnpackError {
    let name = show(name.as_os_str().as_bytes());
    move |errno| UnpackError::Write { operation, name, source: errno.into() }
}

fn refused(name: &Path, reason: &'static str) -> UnpackError {
    UnpackError::Entry { name: show(name.as_os_str().as_bytes()), reason }
}

/// Opens `path` inside `root`, whatever symbolic links say.
pub(super) fn open_in(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_CLOEXEC | flags)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

pub(super) fn open_root(path: &Path) -> Result<OwnedFd, UnpackError> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("open", path))
}

/// A path by which calls that know no descriptors reach an entry of `dir` without following it.
pub(super) fn via(dir: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}

const DIR: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

impl Tree {
    pub fn open(dest: &Path) -> Result<Self, UnpackError> {
        let root = open_root(dest)?;
        let implied = BTreeSet::from([PathBuf::new()]);
        Ok(Self { root, last: None, implied, times: BTreeMap::new(), buffer: vec![0; 128 * 1024] })
    }

    /// Sets the directories' times, deepest first, and gives the directories that no entry described.
    pub fn finish(self) -> Result<BTreeSet<PathBuf>, UnpackError> {
        for (path, mtime) in self.times.iter().rev() {
            // A path that a later entry turned into something else has no directory time to keep.
            let Ok(dir) = open_in(&self.root, path, DIR) else { continue };
            utimensat(&dir, ".", mtime, mtime, UtimensatFlags::FollowSymlink)
                .map_err(failed("set times of", path))?;
        }
        Ok(self.implied)
    }

    /// Applies one entry of the archive.
    pub fn apply<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let mut kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let name = entry.path_bytes().into_owned();
        if kind.is_file() && name.ends_with(b"/") {
            kind = EntryType::Directory; // version 7 archives have no other way to say so
        }
        let path = clean(&name)?;
        let meta = Metadata::read(entry, &path)?;
        let Some(name) = path.file_name() else { return self.root_entry(kind, &meta) };
        let mut above = parent(&path).iter();
        if above.any(|part| meaning(part) != Meaning::Plain) {
            return Ok(());
        }
        let dir = self.dir(parent(&path), 0)?;
        match meaning(name) {
            Meaning::Ignored => {}
            Meaning::Opaque => set_opaque(&dir, OsStr::new("."), &path)?,
            Meaning::Whiteout(hidden) => whiteout(&dir, hidden, &path)?,
            Meaning::Plain => self.make(entry, kind, &dir, name, &path, &meta)?,
        }
        self.last = Some((parent(&path).to_owned(), dir));
        Ok(())
    }

    fn root_entry(&mut self, kind: EntryType, meta: &Metadata) -> Result<(), UnpackError> {
        let path = Path::new("");
        if !kind.is_dir() {
            return Err(refused(Path::new("/"), "the root of a layer must be a directory"));
        }
        let root = self.dir(path, 0)?;
        meta.set(&root, OsStr::new("."), path, kind)?;
        self.last = Some((PathBuf::new(), root));
        self.implied.remove(path);
        self.times.insert(PathBuf::new(), meta.mtime);
        Ok(())
    }

    fn make<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        kind: EntryType,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        meta: &Metadata,
    ) -> Result<(), UnpackError> {
        match kind {
            EntryType::Directory => {
                self.make_dir(dir, name, path)?;
                self.times.insert(path.to_owned(), meta.mtime);
                self.implied.remove(path);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.make_file(entry, dir, name, path)?;
            }
            EntryType::Symlink => {
                let target = link_name(entry, path)?;
                self.create("make link", dir, name, path, || symlinkat(target.as_os_str(), dir, name))?;
            }
            EntryType::Link => return self.make_hard_link(entry, dir, name, path),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let device = if kind.is_fifo() { 0 } else { meta.device };
                self.create("make device", dir, name, path, || {
                    mknodat(dir, name, flag, Mode::empty(), device)
                })?;
            }
            _ => return Err(refused(path, "has an unknown type")),
        }
        meta.set(dir, name, path, kind)
    }

    fn make_dir(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
        match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
            Err(Errno::EEXIST) => {}
            result => return result.map_err(failed("make directory", path)),
        }
        let there = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("stat", path))?;
        if there.st_mode & libc_type(SFlag::S_IFMT) == libc_type(SFlag::S_IFDIR) {
            return Ok(());
        }
        let was_whiteout = is_whiteout(&there);
        self.create("make directory", dir, name, path, || {
            mkdirat(dir, name, Mode::from_bits_truncate(0o755))
        })?;
        if was_whiteout { set_opaque(dir, name, path) } else { Ok(()) }
    }

    fn make_file<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = self.create("make file", dir, name, path, || openat(dir, name, flags, Mode::S_IRUSR))?;
        let mut file = std::fs::File::from(file);
        loop {
            let n = entry.read(&mut self.buffer).map_err(UnpackError::Archive)?;
            let Some(bytes) = self.buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            file.write_all(bytes).map_err(|source| UnpackError::Write {
                operation: "write",
                name: show(path.as_os_str().as_bytes()),
                source,
            })?;
        }
    }

    fn make_hard_link<R: Read>(
        &mut self,
        entry: &tar::Entry<'_, R>,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let target = clean(link_name(entry, path)?.as_os_str().as_bytes())?;
        let Some(target_name) = target.file_name().filter(|_| target != path) else {
            return Err(refused(path, "is a hard link to itself or to the root"));
        };
        let missing = |errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => {
                refused(path, "is a hard link to a file that the layer does not have")
            }
            errno => failed("link", path)(errno),
        };
        let target_dir = open_in(&self.root, parent(&target), DIR).map_err(missing)?;
        fstatat(&target_dir, target_name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(missing)?;
        self.create("link", dir, name, path, || linkat(&target_dir, target_name, dir, name, AtFlags::empty()))
    }

    /// Runs `make`; what stands in the way is removed first: the last entry of a name wins.
    fn create<T>(
        &mut self,
        operation: &'static str,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EEXIST) => {
                self.clear(dir, name, path)?;
                make().map_err(failed(operation, path))
            }
            result => result.map_err(failed(operation, path)),
        }
    }

    fn clear(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => {
                std::fs::remove_dir_all(via(dir, name)).map_err(|source| UnpackError::Write {
                    operation: "replace",
                    name: show(path.as_os_str().as_bytes()),
                    source,
                })?;
                self.implied.retain(|implied| !implied.starts_with(path));
                self.times.retain(|known, _| !known.starts_with(path));
                Ok(())
            }
            result => result.map_err(failed("replace", path)),
        }
    }

    /// The directory at `path`, made if the archive has not described it (yet).
    fn dir(&mut self, path: &Path, links: u8) -> Result<OwnedFd, UnpackError> {
        if let Some((_, fd)) = self.last.take_if(|(known, _)| known == path) {
            return Ok(fd);
        }
        match open_in(&self.root, path, DIR) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT | Errno::ENOTDIR) if links < MAX_LINKS => {}
            Err(errno) => return Err(failed("open", path)(errno)),
        }
        let Some(name) = path.file_name() else { return Err(refused(path, "has no directory")) };
        let above = self.dir(parent(path), links + 1)?;
        match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                self.implied.insert(path.to_owned());
            }
            Err(Errno::EEXIST) => return self.dir_instead_of(&above, name, path, links),
            Err(errno) => return Err(failed("make directory", path)(errno)),
        }
        open_in(&self.root, path, DIR).map_err(failed("open", path))
    }

    /// A directory is needed where a whiteout or a link into the void stands.
    fn dir_instead_of(
        &mut self,
        above: &OwnedFd,
        name: &OsStr,
        path: &Path,
        links: u8,
    ) -> Result<OwnedFd, UnpackError> {
        let there = fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("stat", path))?;
        if is_whiteout(&there) {
            self.make_dir(above, name, path)?;
            self.implied.insert(path.to_owned());
            return open_in(&self.root, path, DIR).map_err(failed("open", path));
        }
        let target =
            readlinkat(above, name).map_err(|_| refused(path, "is used as a directory but is none"))?;
        self.dir(&resolve(path, Path::new(&target)), links + 1)
    }
}

fn libc_type(flag: SFlag) -> u32 {
    flag.bits()
}

/// overlayfs's mark for "gone": a character device 0:0.
pub(super) fn is_whiteout(stat: &nix::sys::stat::FileStat) -> bool {
    stat.st_mode & libc_type(SFlag::S_IFMT) == libc_type(SFlag::S_IFCHR) && stat.st_rdev == 0
}

fn set_opaque(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
    set_xattr(&via(dir, name), OsStr::new(OPAQUE), b"y", path)
}

/// Hides `hidden` of lower layers. What this layer itself has of that name stays (whiteouts speak of lower layers
/// only), and if that is a directory it must not merge with the lower one.
fn whiteout(dir: &OwnedFd, hidden: &OsStr, path: &Path) -> Result<(), UnpackError> {
    match mknodat(dir, hidden, SFlag::S_IFCHR, Mode::empty(), 0) {
        Err(Errno::EEXIST) => {
            let there = fstatat(dir, hidden, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("stat", path))?;
            let is_dir = there.st_mode & libc_type(SFlag::S_IFMT) == libc_type(SFlag::S_IFDIR);
            if is_dir { set_opaque(dir, hidden, path) } else { Ok(()) }
        }
        result => result.map_err(failed("make whiteout", path)),
    }
}

fn link_name<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<PathBuf, UnpackError> {
    let name = entry.link_name_bytes().filter(|name| !name.is_empty());
    name.map(|name| PathBuf::from(OsStr::from_bytes(&name)))
        .ok_or_else(|| refused(path, "is a link to nothing"))
}

fn set_xattr(at: &Path, key: &OsStr, value: &[u8], path: &Path) -> Result<(), UnpackError> {
    match xattr::set(at, key, value) {
        // A file system without such attributes, or a kind of file that cannot have them: the image still runs.
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) && key != OPAQUE => Ok(()),
        result => result.map_err(|source| UnpackError::Write {
            operation: "set extended attribute of",
            name: show(path.as_os_str().as_bytes()),
            source,
        }),
    }
}

/// What the header and its extensions say about an entry.
struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: TimeSpec,
    device: u64,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Metadata {
    fn read<R: Read>(entry: &mut tar::Entry<'_, R>, path: &Path) -> Result<Self, UnpackError> {
        let header = entry.header();
        // A blank field means zero; some writers leave it so.
        let blank = |field: &[u8]| field.iter().all(|b| matches!(b, 0 | b' '));
        let old = header.as_old();
        let id = |id: io::Result<u64>, field: &[u8]| {
            let id = if blank(field) { 0 } else { id.map_err(UnpackError::Archive)? };
            // The highest value means "leave as it is" to chown.
            u32::try_from(id)
                .ok()
                .filter(|&id| id != u32::MAX)
                .ok_or_else(|| refused(path, "has an owner out of range"))
        };
        let mode = if blank(&old.mode) { 0 } else { header.mode().map_err(UnpackError::Archive)? };
        let mut meta = Self {
            uid: Uid::from_raw(id(header.uid(), &old.uid)?),
            gid: Gid::from_raw(id(header.gid(), &old.gid)?),
            mode: Mode::from_bits_truncate(mode & 0o7777),
            mtime: TimeSpec::new(header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0),
            device: makedev(
                header.device_major().ok().flatten().unwrap_or(0).into(),
                header.device_minor().ok().flatten().unwrap_or(0).into(),
            ),
            xattrs: Vec::new(),
        };
        let Some(extensions) = entry.pax_extensions().map_err(UnpackError::Archive)? else { return Ok(meta) };
        for extension in extensions {
            let extension = extension.map_err(UnpackError::Archive)?;
            let key = extension.key_bytes();
            if key == b"mtime" {
                meta.mtime = pax_time(extension.value_bytes()).unwrap_or(meta.mtime);
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                && is_ours_to_set(name)
            {
                meta.xattrs.push((OsStr::from_bytes(name).to_owned(), extension.value_bytes().to_vec()));
            }
        }
        Ok(meta)
    }

    /// Owner first: changing it clears set-id bits and capabilities.
    fn set(&self, dir: &OwnedFd, name: &OsStr, path: &Path, kind: EntryType) -> Result<(), UnpackError> {
        let owner = fchownat(dir, name, Some(self.uid), Some(self.gid), AtFlags::AT_SYMLINK_NOFOLLOW);
        owner.map_err(failed("set owner of", path))?;
        if !kind.is_symlink() {
            fchmodat(dir, name, self.mode, FchmodatFlags::FollowSymlink)
                .map_err(failed("set mode of", path))?;
        }
        for (key, value) in &self.xattrs {
            set_xattr(&via(dir, name), key, value, path)?;
        }
        if kind.is_dir() {
            return Ok(());
        }
        let times = utimensat(dir, name, &self.mtime, &self.mtime, UtimensatFlags::NoFollowSymlink);
        times.map_err(failed("set times of", path))
    }
}

/// An archive must not speak overlayfs's own language: forged redirects would reach into other layers.
fn is_ours_to_set(name: &[u8]) -> bool {
    !name.is_empty()
        && !name.contains(&0)
        && !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
}

/// `-?seconds[.fraction]`; the fraction counts forward in time.
fn pax_time(text: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some(TimeSpec::new(seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some(TimeSpec::new(seconds, nanos)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pax_times_may_be_fractions_and_negative() {
        for (text, seconds, nanos) in [
            ("12", 12, 0),
            ("12.5", 12, 500_000_000),
            ("-1.25", -2, 750_000_000),
            ("3.1234567891", 3, 123_456_789),
        ] {
            assert_eq!(pax_time(text.as_bytes()).unwrap(), TimeSpec::new(seconds, nanos), "{text}");
        }
        for bad in ["", "x", "1.x", "99999999999999999999"] {
            assert!(pax_time(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
