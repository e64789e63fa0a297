//! The scheduler: a node for each Pod that has none.
//!
//! Deciding is a pure function of cached objects: [`snapshot`] sums up the nodes, [`filter`] says which nodes fit and
//! why others do not, [`score`] which of those is best. [`run`] is the thin loop around it: Pods in order of priority,
//! one at a time; a decision is assumed in the cache until the watch shows it, so the next one already counts it.
//! Reasons and messages are upstream's (kube-scheduler's plugins). There is no preemption: a Pod that does not fit
//! waits, whatever its priority, and its event says so.

mod affinity;
mod filter;
mod resources;
mod run;
mod score;
mod snapshot;

pub use filter::{Unfit, filter};
pub use run::{Error, run};
pub use score::{best, score};
pub use snapshot::{NodeInfo, Snapshot};

/// `spec.schedulerName` of the Pods that are ours.
pub const NAME: &str = "default-scheduler";
