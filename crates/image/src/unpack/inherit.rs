//! Directories that a layer uses without describing them.
//!
//! A layer with `a/f` but no `a/` does not change `a`: it keeps owner, mode, times and attributes of the layer below.
//! overlayfs takes a merged directory's attributes from the topmost layer that has it, so they are copied up here.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, fstatat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

use super::UnpackError;
use super::names::show;
use super::tree::{OPAQUE, open_in, open_root, via};

const DIR: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Gives the `implied` directories of `layer` what the layers below (bottom first) say of them; the root of a layer
/// that has none below gets 0755. Blocking.
pub(crate) fn inherit(
    layer: &Path,
    implied: &BTreeSet<PathBuf>,
    lower: &[PathBuf],
) -> Result<(), UnpackError> {
    let root = open_root(layer)?;
    let lower: Vec<OwnedFd> = lower.iter().map(|path| open_root(path)).collect::<Result<_, _>>()?;
    // Deepest first, or setting a child's attributes would spoil the parent's times.
    for path in implied.iter().rev() {
        let fail = |operation| {
            let name = show(path.as_os_str().as_bytes());
            move |errno: Errno| UnpackError::Write { operation, name, source: errno.into() }
        };
        let dir = match open_in(&root, path, DIR) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(errno) => return Err(fail("open")(errno)),
        };
        if let Some((source, stat)) = find(&lower, path) {
            copy(&source, &stat, &dir).map_err(fail("copy attributes of"))?;
        } else if path.as_os_str().is_empty() {
            let mode = Mode::from_bits_truncate(0o755);
            fchmodat(&dir, ".", mode, FchmodatFlags::FollowSymlink).map_err(fail("set mode of"))?;
        }
    }
    Ok(())
}

/// The directory as a container of the lower layers would see it.
fn find(lower: &[OwnedFd], path: &Path) -> Option<(OwnedFd, FileStat)> {
    for root in lower.iter().rev() {
        match look(root, path) {
            Look::Found(dir, stat) => return Some((dir, stat)),
            Look::Below => {}
            Look::Gone => return None,
        }
    }
    None
}

enum Look {
    Found(OwnedFd, FileStat),
    /// This layer says nothing about it.
    Below,
    /// This layer hides whatever is below.
    Gone,
}

/// Walks down one layer. Anything but a directory on the way (a whiteout, a file, a link) hides what is below.
fn look(root: &OwnedFd, path: &Path) -> Look {
    let Ok(mut dir) = open_in(root, Path::new(""), DIR) else { return Look::Gone };
    for part in path.iter() {
        let opaque = is_opaque(&dir);
        let flags = DIR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        dir = match nix::fcntl::openat(&dir, part, flags, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::ENOENT) if !opaque => return Look::Below,
            Err(_) => return Look::Gone,
        };
    }
    match fstatat(&dir, "", AtFlags::AT_EMPTY_PATH) {
        Ok(stat) => Look::Found(dir, stat),
        Err(_) => Look::Gone,
    }
}

fn is_opaque(dir: &OwnedFd) -> bool {
    xattr::get(via(dir, OsStr::new(".")), OPAQUE).is_ok_and(|value| value.as_deref() == Some(b"y"))
}

fn copy(from: &OwnedFd, stat: &FileStat, to: &OwnedFd) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(to, ".", Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    fchmodat(to, ".", Mode::from_bits_truncate(stat.st_mode & 0o7777), FchmodatFlags::FollowSymlink)?;
    let (source, target) = (via(from, OsStr::new(".")), via(to, OsStr::new(".")));
    if let Ok(names) = xattr::list(&source) {
        for name in names.filter(|name| !name.as_bytes().starts_with(b"trusted.overlay.")) {
            if let Ok(Some(value)) = xattr::get(&source, &name) {
                // Labels that the kernel itself assigns refuse to be set; they are right already.
                let _ = xattr::set(&target, &name, &value);
            }
        }
    }
    let time = |seconds, nanos| TimeSpec::new(seconds, nanos);
    let (atime, mtime) = (time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec));
    utimensat(to, ".", &atime, &mtime, UtimensatFlags::FollowSymlink)
}
