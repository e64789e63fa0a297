//! The ordered, versioned key-value store beneath the API server: the [`Store`] trait and the embedded engine.
//!
//! The model is etcd's (v3 API: `mod_revision`, compare-and-swap on it, watch from a revision, compaction), so that an
//! etcd engine can stand behind the same trait. One counter, the *revision*, grows by one with each write of any key.
//! A store keeps a window of history: enough to resume watches and to page through a list at one revision; what is
//! older answers [`Error::Compacted`], which the API server turns into `410 Gone`.
//!
//! The embedded engine ([`Embedded`]) keeps all live state in memory and acknowledges a write only once it is synced to
//! a `redb` file. Readers and watchers see a write at that same moment, so nobody ever sees what a crash takes back.

mod embedded;
mod error;
mod store;

pub use embedded::{Embedded, Options};
pub use error::Error;
pub use store::{Deleted, Event, KeyValue, ListOptions, ListResult, Revision, Store, Watch, WatchSource};

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
