//! The store's directory: blobs and layers by digest, a place for unfinished work, the lock.
//!
//! ```text
//! index.json           the table of contents, replaced by rename
//! lock                 flock()ed while the table changes
//! blobs/sha256/<hex>   manifests, configurations (flock()ed, shared, by whoever runs the image), layers as they came
//! layers/<hex>         unpacked, by chain id
//! tmp/<session>/       a running process's unfinished work; its flock() tells it from garbage
//! ```
//!
//! Nothing under `blobs/` or `layers/` is ever half done: both are filled by rename.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::digest::{Digest, Verifier};
use crate::error::{Error, IoContext as _, Result};
use crate::index::Index;

/// The table of contents.
const INDEX: &str = "index.json";
/// Stands in for the layers of an image that has none: an overlay needs something below.
const EMPTY_LAYER: &str = "layers/empty";

pub(crate) struct Files {
    root: PathBuf,
    session: PathBuf,
    /// Held as long as the process may write below `session`.
    _session_lock: Flock<File>,
    /// True when no other process had the store open.
    pub alone: bool,
}

impl Files {
    pub fn open(root: &Path) -> Result<Self> {
        for dir in ["blobs/sha256", "layers", EMPTY_LAYER, "tmp"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        let lock_file = root.join("lock");
        File::options().create(true).append(true).open(&lock_file).at("create", &lock_file)?;
        let _lock = lock(root)?;
        let alone = sweep(&root.join("tmp"))?;
        let session = root.join("tmp").join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir(&session).at("create", &session)?;
        let handle = File::open(&session).at("open", &session)?;
        let _session_lock = Flock::lock(handle, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)
            .at("lock", &session)?;
        Ok(Self { root: root.to_owned(), session, _session_lock, alone })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub fn empty_layer(&self) -> PathBuf {
        self.root.join(EMPTY_LAYER)
    }

    pub fn layer(&self, chain: &Digest) -> PathBuf {
        self.root.join("layers").join(chain.hex())
    }

    /// Held while the table of contents is read, changed and written.
    pub fn lock(&self) -> Result<Flock<File>> {
        lock(&self.root)
    }

    /// Says to all processes that the image of this configuration is in use, until dropped.
    pub fn lease(&self, image: &Digest) -> Result<Flock<File>> {
        let path = self.blob(image);
        let file = File::open(&path).at("open", &path)?;
        Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno).at("lock", &path)
    }

    /// Whether some process holds a lease. The store's lock is held, so that none comes up meanwhile.
    pub fn is_leased(&self, image: &Digest) -> bool {
        let Ok(file) = File::open(self.blob(image)) else { return false };
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    }

    /// A fresh path for unfinished work, removed when dropped.
    pub fn scratch(&self) -> Scratch {
        Scratch(Some(self.session.join(uuid::Uuid::new_v4().simple().to_string())))
    }

    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        fs::read(&path).at("read", &path)
    }

    /// Stores bytes whose digest is computed here.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.blob(&digest).exists() {
            let scratch = self.scratch();
            fs::write(scratch.path(), bytes).at("write", scratch.path())?;
            scratch.keep_as(&self.blob(&digest))?;
        }
        Ok(digest)
    }

    /// Stores a stream; refused when it does not hash to `expected`. Blocking.
    pub fn put_stream(
        &self,
        mut from: impl Read,
        expected: Option<&Digest>,
        what: &str,
    ) -> Result<(Digest, u64)> {
        let scratch = self.scratch();
        let file = File::create_new(scratch.path()).at("create", scratch.path())?;
        let mut writer = Verifier::new(file);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = from.read(&mut buffer).map_err(|e| Error::invalid(what, e))?;
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            writer.write_all(bytes).at("write", scratch.path())?;
        }
        let (_, actual, bytes) = writer.finish();
        if let Some(expected) = expected.filter(|expected| **expected != actual) {
            let (expected, actual) = (expected.to_string(), actual.to_string());
            return Err(Error::DigestMismatch { what: what.to_owned(), expected, actual });
        }
        scratch.keep_as(&self.blob(&actual))?;
        Ok((actual, bytes))
    }

    pub fn index_path(&self) -> PathBuf {
        self.root.join(INDEX)
    }

    pub fn read_index(&self) -> Result<Index> {
        read_index(&self.root)
    }

    /// Replaces the table. The lock is held.
    pub fn write_index(&self, index: &Index) -> Result<()> {
        write_index(&self.root, index)
    }

    /// Names under a directory of the store that are digests.
    pub fn digests(&self, dir: &str) -> Result<Vec<Digest>> {
        let path = self.root.join(dir);
        let names = fs::read_dir(&path)
            .at("list", &path)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|hex| Digest::parse(&format!("sha256:{hex}")).ok()).collect())
    }

    /// Takes a blob or layer out of sight at once; its bytes go when the returned value is dropped.
    pub fn discard(&self, path: &Path) -> Result<Scratch> {
        let scratch = self.scratch();
        match fs::rename(path, scratch.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", path),
            _ => Ok(scratch),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.session);
    }
}

/// Notes that everything of these images is on the disk. Works on the directory alone: the store may be closed by then.
pub(crate) fn mark_synced(root: &Path, images: &[Digest]) -> Result<()> {
    let _lock = lock(root)?;
    let mut index = read_index(root)?;
    let mut changed = false;
    for id in images {
        changed |= index.images.get_mut(id).is_some_and(|record| record.unsynced.take().is_some());
    }
    if changed { write_index(root, &index) } else { Ok(()) }
}

fn read_index(root: &Path) -> Result<Index> {
    let path = root.join(INDEX);
    match fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|e| Error::invalid(path.display().to_string(), e))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
        Err(error) => Err(error).at("read", &path),
    }
}

/// Once this returns, a power failure leaves the old or the new table, whole. The lock is held, so one name does.
fn write_index(root: &Path, index: &Index) -> Result<()> {
    let bytes = serde_json::to_vec(index).map_err(|e| Error::invalid(INDEX, e))?;
    let (path, new) = (root.join(INDEX), root.join("index.json.new"));
    let mut file = File::create(&new).at("create", &new)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).at("write", &new)?;
    fs::rename(&new, &path).at("replace", &path)?;
    File::open(root).and_then(|dir| dir.sync_all()).at("sync", root)
}

fn lock(root: &Path) -> Result<Flock<File>> {
    let path = root.join("lock");
    let file = File::options().write(true).open(&path).at("open", &path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).at("lock", &path)
}

/// Removes what dead processes left; true when no living one was met.
fn sweep(tmp: &Path) -> Result<bool> {
    let mut alone = true;
    for entry in fs::read_dir(tmp).at("list", tmp)? {
        let path = entry.at("list", tmp)?.path();
        let free = File::open(&path)
            .map(|dir| Flock::lock(dir, FlockArg::LockExclusiveNonblock).is_ok())
            .unwrap_or(false);
        if free {
            drop(Scratch(Some(path)));
        } else {
            alone = false;
        }
    }
    Ok(alone)
}

/// A path under `tmp/` that is removed when dropped, unless it was moved to its place.
pub(crate) struct Scratch(Option<PathBuf>);

impl Scratch {
    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Moves it to its place. Somebody else's copy there is as good: digests are names of contents.
    pub fn keep_as(mut self, place: &Path) -> Result<()> {
        match fs::rename(self.path(), place) {
            Ok(()) => {
                self.0 = None;
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error).at("move into place", place),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(path) = &self.0 else { return };
        let result = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!("remove {}: {error}", path.display());
        }
    }
}
