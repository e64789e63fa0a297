//! What can go wrong in a store, told by what the caller may do about it.

use std::sync::Arc;

use crate::{KeyValue, Revision};

/// A failed store operation. Nothing was changed, unless the text says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The key to create exists already.
    #[error("create {0}: the key exists")]
    Exists(Arc<str>),
    /// The key to update or delete does not exist.
    #[error("{0}: no such key")]
    NotFound(Arc<str>),
    /// The key was changed since the revision that the caller expected: read it again and retry.
    #[error("{}: expected revision {expected}, found {}", current.key, current.mod_revision)]
    Conflict {
        /// The `mod_revision` that the caller named.
        expected: Revision,
        /// What is there now.
        current: KeyValue,
    },
    /// The revision is older than the history that is kept: list again and watch from there (410 Gone).
    #[error("revision {requested} has been compacted, the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest revision that can be asked for.
        oldest: Revision,
    },
    /// The revision has not been made yet.
    #[error("revision {requested} is in the future, the newest is {newest}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest revision.
        newest: Revision,
    },
    /// The disk refused; the write is not acknowledged, and it is not visible unless a later sync proves it durable.
    #[error("write to the store failed: {0}; check space and health of the disk that holds it")]
    Io(Arc<str>),
    /// The file exists but is not a store of ours, or a damaged one.
    #[error("open the store {path}: {reason}")]
    Open {
        /// The file.
        path: Arc<str>,
        /// What redb says.
        reason: Arc<str>,
    },
    /// The engine is shutting down.
    #[error("the store is closed")]
    Closed,
}
