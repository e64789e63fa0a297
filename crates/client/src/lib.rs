//! How components reach the API: a `kube::Client`, caches that follow the server ([`Informer`], and those that all
//! share: [`SharedInformers`]) and queues of keys to reconcile ([`WorkQueue`]), the Events that `kubectl describe` shows
//! ([`Recorder`]), the one answer to which endpoints serve ([`endpoints`]), the pages that they show of themselves
//! ([`pages`]), and how they stay small ([`memory`]).
//!
//! The Kubernetes API is the only interface between skiff's components. In one process the client's transport is the
//! API server's own service (no TCP, no TLS: `kube::Client::new(apiserver.in_process(user), "default")`); on another
//! node or in a Pod the same code talks HTTPS. An [`Informer`] has one writer (the task that watches) and cheap
//! readers; a relist replaces the cache atomically; waiting for a cache whose writer died is an error, never a hang.

pub mod endpoints;
pub mod events;
mod informer;
pub mod memory;
mod packed;
pub mod pages;
pub mod quantity;
mod queue;
mod retry;
mod shared;

pub use events::{Recorder, Regarding};
pub use informer::{Cached, Change, Informer, InformerGone, ObjectKey};
pub use packed::Packed;
pub use queue::{Outcome, WorkQueue};
pub use retry::Retry;
pub use shared::SharedInformers;
