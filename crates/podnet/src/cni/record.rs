//! What is remembered of each Pod that plugins were asked to connect: all that a DEL needs, written before the ADD, so
//! that one follows it whatever happens in between.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;

/// One Pod's connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Attachment {
    /// CNI_CONTAINERID: the Pod's uid.
    pub container: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS.
    pub netns: String,
    /// Its identity: another namespace may be found there later.
    pub inode: u64,
    /// CNI_ARGS.
    pub args: String,
    /// What plugins may ask for.
    pub known: Map<String, Value>,
    /// The version in use.
    pub version: String,
    /// The network's configuration as it was then.
    pub config: Value,
    /// What the last plugin answered; none until all have.
    pub result: Option<Value>,
}

impl Attachment {
    /// The path of its namespace, if that still is the one that was connected.
    pub fn living_netns(&self) -> String {
        match std::fs::metadata(&self.netns) {
            Ok(meta) if meta.ino() == self.inode => self.netns.clone(),
            _ => String::new(),
        }
    }
}

/// The directory of them.
#[derive(Debug, Clone)]
pub(super) struct Records(pub PathBuf);

impl Records {
    /// Makes the directory.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(|e| Error::Record { path: dir.to_owned(), source: e })?;
        Ok(Self(dir.to_owned()))
    }

    fn path(&self, container: &str) -> PathBuf {
        self.0.join(format!("{container}.json"))
    }

    /// The record of a Pod; a torn one says no more than that there was an ADD, and counts as none.
    pub fn get(&self, container: &str) -> Option<Attachment> {
        let text = std::fs::read(self.path(container)).ok()?;
        let parsed = serde_json::from_slice(&text);
        parsed.inspect_err(|error| tracing::warn!(container, %error, "reading a CNI record")).ok()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Attachment> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| self.get(name.strip_suffix(".json")?)).collect()
    }

    /// Writes one in the place of what was there.
    pub fn put(&self, attachment: &Attachment) -> Result<(), Error> {
        let path = self.path(&attachment.container);
        let fresh = path.with_extension("fresh");
        let write = || {
            std::fs::write(&fresh, serde_json::to_vec(attachment)?)?;
            std::fs::rename(&fresh, &path)
        };
        write().map_err(|source| Error::Record { path: path.clone(), source })
    }

    /// Removes one.
    pub fn remove(&self, container: &str) -> Result<(), Error> {
        let path = self.path(container);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::Record { path, source }),
            _ => Ok(()),
        }
    }
}
