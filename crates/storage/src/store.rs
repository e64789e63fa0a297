//! The store's interface: shapes and the trait that every engine implements.

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

use crate::{Error, Result};

/// The store-wide counter of writes; grows by one with each. 0 means "none".
pub type Revision = u64;

/// One key as it is at some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The full key.
    pub key: Arc<str>,
    /// The value; never interpreted here.
    pub value: Bytes,
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
}

/// One write, as watchers see it.
#[derive(Debug)]
pub struct Event {
    /// The revision that the write made.
    pub revision: Revision,
    /// The new state; `None` for a delete.
    pub current: Option<KeyValue>,
    /// The state before; `None` for a create.
    pub previous: Option<KeyValue>,
    /// Room for what a reader derives from the event once for all watchers (a serialised form).
    pub memo: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Event {
    /// The same write with nothing derived from it yet. Who keeps events keeps such a copy: what readers derive is
    /// many times as large as the bytes, and is to go with the last of them.
    #[must_use]
    pub fn bare(&self) -> Self {
        Self {
            revision: self.revision,
            current: self.current.clone(),
            previous: self.previous.clone(),
            memo: OnceLock::new(),
        }
    }

    /// The key that was written.
    pub fn key(&self) -> &Arc<str> {
        match (&self.current, &self.previous) {
            (Some(kv), _) | (None, Some(kv)) => &kv.key,
            (None, None) => {
                static NONE: OnceLock<Arc<str>> = OnceLock::new();
                NONE.get_or_init(|| Arc::from(""))
            }
        }
    }
}

/// A deleted key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Its last state.
    pub last: KeyValue,
    /// The revision of the delete.
    pub revision: Revision,
}

/// Which part of a prefix to list, and when.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// At most so many keys; 0 for all.
    pub limit: usize,
    /// Only keys after this one (the last key of the page before).
    pub after: Option<String>,
    /// The state at this revision; `None` for the newest.
    pub revision: Option<Revision>,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct ListResult {
    /// The keys, in order.
    pub items: Vec<KeyValue>,
    /// How many more keys follow behind the limit.
    pub remaining: u64,
    /// The revision at which the page is true.
    pub revision: Revision,
}

/// A running watch: a stream of events in order, none missing. It ends with [`Error::Compacted`] when its reader has
/// fallen behind the window.
pub trait WatchSource: Stream<Item = Result<Arc<Event>>> + Send {
    /// The revision up to which the reader has seen everything, if it has read all there is (a bookmark).
    fn progress(&self) -> Option<Revision>;
}

/// A boxed watch.
pub type Watch = Pin<Box<dyn WatchSource>>;

/// An ordered, versioned key-value store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The key's newest state.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>>;

    /// The keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// [`Error::Compacted`] or [`Error::Future`] for a revision that cannot be shown.
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<ListResult>;

    /// Creates a key.
    ///
    /// # Errors
    /// [`Error::Exists`].
    async fn create(&self, key: &str, value: Bytes) -> Result<KeyValue>;

    /// Replaces a value if its `mod_revision` is still `expected`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`].
    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<KeyValue>;

    /// Deletes a key, if `expected` is given only at that `mod_revision`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`].
    async fn delete(&self, key: &str, expected: Option<Revision>) -> Result<Deleted>;

    /// All writes after revision `after` (0 for "from now on") below `prefix`, or, if that does not end at a slash, of
    /// the one key that it is.
    ///
    /// # Errors
    /// [`Error::Compacted`] when history does not reach back so far.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch>;

    /// The newest revision that readers can see.
    async fn revision(&self) -> Result<Revision>;

    /// Forgets history up to and including `revision`.
    async fn compact(&self, revision: Revision) -> Result<()>;
}

impl Error {
    /// True when the caller should read again and retry.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
