//! The image store: what is there, under which names, and what may go.
//!
//! Several processes may have it open. The table of contents is changed only under a file lock and replaced by rename;
//! blobs and layers are named by their contents, so that writing one twice is harmless.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use nix::fcntl::Flock;
use oci_spec::image::ImageConfiguration;
use parking_lot::Mutex;

use crate::digest::Digest;
use crate::error::{Error, IoContext as _, Result};
use crate::files::{Files, Scratch, mark_synced};
use crate::index::{Index, Record};
use crate::registry::RegistryConfig;

/// The images of one machine (or one cluster), in one directory.
pub struct Store {
    pub(crate) files: Files,
    pub(crate) registries: RegistryConfig,
    cache: Mutex<Option<(Stamp, Arc<Index>)>>,
    /// Digests that work under way counts on although no image has them yet.
    pins: Arc<Mutex<HashMap<Digest, usize>>>,
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// An image, ready to run.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:<hex>`: the digest of its configuration.
    pub id: String,
    /// Full names: `docker.io/library/nginx:latest`.
    pub references: Vec<String>,
    /// Full names with the registry's digest: `docker.io/library/nginx@sha256:...`.
    pub repo_digests: Vec<String>,
    /// Entrypoint, environment, user and so on.
    pub config: ImageConfiguration,
    /// Unpacked directories, bottom first; never empty.
    pub layers: Vec<PathBuf>,
    /// Bytes of its blobs.
    pub size: u64,
    /// Loaded from an archive, or built in: it stands in for its registry, whatever the pull policy.
    pub side_loaded: bool,
    /// The image of the running binary, which must be bound read-only over [`crate::BUILTIN_BINARY`].
    pub builtin: bool,
}

impl Image {
    /// What a Pod's status calls `imageID`: a repository digest if there is one, else the id.
    pub fn image_id(&self) -> &str {
        self.repo_digests.first().unwrap_or(&self.id)
    }
}

/// Keeps an image from being removed, by whatever process, while a container runs from it; ends when dropped.
pub struct Lease {
    image: Digest,
    /// Shared, on the image's configuration.
    _lock: Flock<File>,
}

impl Lease {
    /// The image's id.
    pub fn image(&self) -> &str {
        self.image.as_str()
    }
}

/// One count of a digest in a table, taken back when dropped.
pub(crate) struct Counted {
    table: Arc<Mutex<HashMap<Digest, usize>>>,
    key: Digest,
}

fn count(table: &Arc<Mutex<HashMap<Digest, usize>>>, key: Digest) -> Counted {
    *table.lock().entry(key.clone()).or_default() += 1;
    Counted { table: table.clone(), key }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if let Some(n) = table.get_mut(&self.key) {
            *n -= 1;
            if *n == 0 {
                table.remove(&self.key);
            }
        }
    }
}

/// Which version of `index.json` was read: a rename makes a new inode.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, i64, i64, u64);

impl Store {
    /// Opens the store under `root`, making it if need be, and clears what a crash left behind. Blocking.
    pub fn open(root: &Path, registries: RegistryConfig) -> Result<Arc<Self>> {
        // The HTTP client takes the process's provider; a second start keeps the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = Self {
            files: Files::open(root)?,
            registries,
            cache: Mutex::default(),
            pins: Arc::default(),
            locks: Mutex::default(),
        };
        store.repair()?;
        Ok(Arc::new(store))
    }

    /// The image of that name (short or full, by tag or digest) or id, if it is here.
    pub fn get(&self, reference_or_id: &str) -> Option<Image> {
        let index = self.index().inspect_err(|error| tracing::warn!("{error}")).ok()?;
        let id = index.find(reference_or_id)?;
        self.image(id, index.images.get(id)?).inspect_err(|error| tracing::warn!("{error}")).ok()
    }

    /// All images, by id.
    pub fn list(&self) -> Result<Vec<Image>> {
        self.index()?.images.iter().map(|(id, record)| self.image(id, record)).collect()
    }

    /// Takes a name away (the image goes with its last one), or the whole image when an id is given. Blocking.
    pub fn remove(&self, reference_or_id: &str) -> Result<()> {
        let garbage = {
            let _lock = self.files.lock()?;
            let mut index = self.files.read_index()?;
            index.remove(reference_or_id, |id| self.files.is_leased(id))?;
            self.replace_index(index.clone())?;
            self.collect(&index)?
        };
        drop(garbage);
        Ok(())
    }

    /// Gives an image one more name; another image that has it loses it. Blocking.
    pub fn tag(&self, reference_or_id: &str, name: &str) -> Result<()> {
        let name = crate::reference::full(&crate::parse(name)?);
        let _lock = self.files.lock()?;
        let mut index = self.files.read_index()?;
        let unknown = || Error::Unknown(reference_or_id.to_owned());
        let id = index.find(reference_or_id).ok_or_else(unknown)?.clone();
        let record = index.images.get(&id).ok_or_else(unknown)?.clone();
        index.put(id, Record { references: [name].into(), ..record });
        self.replace_index(index)
    }

    /// Keeps the image from being removed until the lease is dropped.
    pub fn lease(&self, image: &Image) -> Result<Lease> {
        let _lock = self.files.lock()?;
        let index = self.index()?;
        let id = index.find(&image.id).ok_or_else(|| Error::Unknown(image.id.clone()))?;
        Ok(Lease { image: id.clone(), _lock: self.files.lease(id)? })
    }

    /// Keeps blobs and layers of work under way from being collected.
    pub(crate) fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Vec<Counted> {
        digests.into_iter().map(|digest| count(&self.pins, digest)).collect()
    }

    /// One worker at a time per digest.
    pub(crate) fn lock_of(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Puts a finished image into the table. Blocking.
    pub(crate) fn commit(&self, id: Digest, mut record: Record) -> Result<Image> {
        record.unsynced = Some(boot_id());
        let (image, unsynced) = {
            let _lock = self.files.lock()?;
            self.check_present(&id, &record)?;
            let mut index = self.files.read_index()?;
            index.put(id.clone(), record);
            self.replace_index(index.clone())?;
            let record = index.images.get(&id).ok_or_else(|| Error::Unknown(id.to_string()))?;
            let unsynced = index.images.iter().filter(|(_, record)| record.unsynced.is_some());
            (self.image(&id, record)?, unsynced.map(|(id, _)| id.clone()).collect())
        };
        self.sync_later(unsynced);
        Ok(image)
    }

    /// Another process may have collected what this one counted on.
    fn check_present(&self, id: &Digest, record: &Record) -> Result<()> {
        let blobs = [id, &record.manifest.digest].into_iter().chain(record.layers.iter().map(|l| &l.blob));
        let paths =
            blobs.map(|d| self.files.blob(d)).chain(record.layers.iter().map(|l| self.files.layer(&l.chain)));
        for path in paths {
            path.symlink_metadata().at("find", &path)?;
        }
        Ok(())
    }

    /// The table as it is on disk now.
    pub(crate) fn index(&self) -> Result<Arc<Index>> {
        let stamp = self.stamp();
        let mut cache = self.cache.lock();
        if let (Some(now), Some((then, index))) = (stamp, cache.as_ref())
            && *then == now
        {
            return Ok(index.clone());
        }
        let index = Arc::new(self.files.read_index()?);
        // Stamped before reading: if it changed in between, the next call reads again.
        *cache = stamp.map(|stamp| (stamp, index.clone()));
        Ok(index)
    }

    fn stamp(&self) -> Option<Stamp> {
        let meta = self.files.index_path().metadata().ok()?;
        Some(Stamp(meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
    }

    fn replace_index(&self, index: Index) -> Result<()> {
        self.files.write_index(&index)?;
        *self.cache.lock() = self.stamp().map(|stamp| (stamp, Arc::new(index)));
        Ok(())
    }

    fn image(&self, id: &Digest, record: &Record) -> Result<Image> {
        let bytes = self.files.read_blob(id)?;
        let mut layers: Vec<_> = record.layers.iter().map(|layer| self.files.layer(&layer.chain)).collect();
        if layers.is_empty() {
            layers.push(self.files.empty_layer());
        }
        Ok(Image {
            id: id.to_string(),
            references: record.references.iter().cloned().collect(),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            config: parse_config(&id.to_string(), &bytes)?,
            layers,
            size: record.size,
            side_loaded: record.side_loaded,
            builtin: record.builtin,
        })
    }

    /// Takes blobs and layers that no image needs out of sight; dropping the result deletes them. The lock is held.
    fn collect(&self, index: &Index) -> Result<Vec<Scratch>> {
        let pinned: BTreeSet<Digest> = self.pins.lock().keys().cloned().collect();
        let (blobs, chains) = (index.blobs(), index.chains());
        let mut garbage = Vec::new();
        for digest in self.files.digests("blobs/sha256")? {
            if !blobs.contains(&digest) && !pinned.contains(&digest) {
                garbage.push(self.files.discard(&self.files.blob(&digest))?);
            }
        }
        for digest in self.files.digests("layers")? {
            if !chains.contains(&digest) && !pinned.contains(&digest) {
                garbage.push(self.files.discard(&self.files.layer(&digest))?);
            }
        }
        Ok(garbage)
    }

    /// At open: drops images that are incomplete (somebody deleted files, or the power failed before the disk had them)
    /// and collects what belongs to none.
    fn repair(&self) -> Result<()> {
        let garbage = {
            let _lock = self.files.lock()?;
            let mut index = self.files.read_index()?;
            let before = index.images.len();
            let boot = boot_id();
            index.images.retain(|id, record| {
                let survived = record.unsynced.as_ref().is_none_or(|written| *written == boot);
                let whole = survived && self.check_present(id, record).is_ok();
                if !whole {
                    tracing::warn!(
                        "dropping image {id} {:?}: not all of it reached the disk",
                        record.references
                    );
                }
                whole
            });
            if index.images.len() != before {
                self.replace_index(index.clone())?;
            }
            if self.files.alone { self.collect(&index)? } else { Vec::new() }
        };
        drop(garbage);
        Ok(())
    }

    /// Writes everything to the disk in the background and notes it; until then a power failure costs the image, which
    /// is better than every pull waiting for the disk.
    fn sync_later(&self, images: Vec<Digest>) {
        let root = self.files.root().to_owned();
        let work = move || {
            let synced = File::open(&root).map_err(|e| e.to_string()).and_then(|dir| {
                nix::unistd::syncfs(&dir).map_err(|e| e.to_string())?;
                mark_synced(&root, &images).map_err(|e| e.to_string())
            });
            if let Err(error) = synced {
                tracing::debug!("images of {} are not known to be on disk: {error}", root.display());
            }
        };
        if let Err(error) = std::thread::Builder::new().name("image-sync".into()).spawn(work) {
            tracing::debug!("start image-sync: {error}");
        }
    }
}

pub(crate) fn parse_config(what: &str, bytes: &[u8]) -> Result<ImageConfiguration> {
    ImageConfiguration::from_reader(bytes)
        .map_err(|e| Error::invalid(format!("configuration of image {what}"), e))
}

/// Tells one boot of the machine from the next.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
