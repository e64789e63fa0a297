//! The embedded engine: one process, all live state in memory, one `redb` file.
//!
//! A write goes through three stages. *Submit*: under one lock it is checked against the newest state, durable or not,
//! and gets its revision. *Log*: a thread takes all that was submitted meanwhile, writes it as one transaction and
//! syncs. *Show*: the batch enters the visible state, watchers are told, the writers are answered. A failed sync fails
//! the whole queue, so that memory never runs ahead of the disk.

mod history;
mod log;
mod visible;
mod watch;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::store::{Deleted, KeyValue, ListOptions, ListResult, Revision, Store, Watch};
use crate::{Error, Result};
use visible::Visible;
use writer::{Expectation, Writer};

/// Bounds of the engine.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many events of history are kept at the most.
    pub history_events: usize,
    /// How many bytes of values the history may hold (new and previous values, each counted once).
    pub history_bytes: usize,
    /// How many events a watcher may lag before it is cut off.
    pub watch_buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { history_events: 10_000, history_bytes: 16 << 20, watch_buffer: 4096 }
    }
}

/// The embedded store; cheap to clone. The file is closed when the last clone is dropped.
#[derive(Clone)]
pub struct Embedded {
    visible: Arc<Visible>,
    writer: Arc<Writer>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("revision", &self.visible.revision()).finish()
    }
}

impl Embedded {
    /// Opens or creates the store at `path` (a file, mode 0600) and reads it into memory.
    ///
    /// # Errors
    /// [`Error::Open`] when the file cannot be opened, is held by another process or is damaged.
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        let (log, contents) = log::Log::open(path)?;
        let visible = Arc::new(Visible::new(contents, options));
        let writer = Arc::new(Writer::start(log, visible.clone())?);
        Ok(Self { visible, writer })
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        Ok(self.visible.get(key))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult> {
        self.visible.list(prefix, &options)
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<KeyValue> {
        let written = self.writer.submit(key, Some(value), Expectation::Absent).await?;
        written.current.clone().ok_or(Error::Closed)
    }

    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<KeyValue> {
        let written = self.writer.submit(key, Some(value), Expectation::At(expected)).await?;
        written.current.clone().ok_or(Error::Closed)
    }

    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Deleted> {
        let expectation = expected.map_or(Expectation::Present, Expectation::At);
        let written = self.writer.submit(key, None, expectation).await?;
        let last = written.previous.clone().ok_or(Error::Closed)?;
        Ok(Deleted { last, revision: written.revision })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        self.visible.watch(prefix, after)
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.visible.revision())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.visible.compact(revision);
        Ok(())
    }
}
