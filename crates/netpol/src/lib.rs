//! NetworkPolicy on a node: who may talk to its Pods and to whom they may talk, kept by nftables.
//!
//! 1. [`model`]: policies, Pods and namespaces, as far as they matter here;
//! 2. [`isolation`]: those -> the policies that isolate a Pod and what they permit, each permit with its origin, a pure
//!    function; [`verdict`] asks it about one connection and says which object decides;
//! 3. [`desired`]: all Pods' isolations -> sets, profiles and the profile of each address. [`Desired::allows`] reads the
//!    same value that the rules are made from. [`track`] keeps it in step by what changes;
//! 4. [`sync`]: what has changed -> one transaction. Everything is replaced at start and after a refused transaction.
//!
//! [`explain`], [`matrix`] and [`check`] put verdicts into words and tables for people.
//!
//! [`flows`] are the connections that a node has seen, heard of from the kernel and named by the same verdicts.
//!
//! [`run`] feeds them from the API; [`Gate`] holds a new Pod's containers back until its verdict is in the kernel.
//!
//! Judged is what passes the node between Pods and the world, after Services are translated; replies always pass. What
//! the node itself sends to its Pods is not judged, so probes always arrive; nor is a Pod's own loopback.
//!
//! Semantics: <https://kubernetes.io/docs/concepts/services-networking/network-policies/>.

pub mod check;
pub mod cluster;
pub mod cut;
pub mod definition;
pub mod desired;
pub mod explain;
pub mod flows;
mod gate;
pub mod isolation;
pub mod layout;
pub mod matrix;
pub mod model;
mod observe;
pub mod permit;
mod range;
mod report;
mod run;
pub mod sync;
pub mod track;
pub mod verdict;

pub use desired::Desired;
pub use flows::Flows;
pub use gate::{Arrivals, Gate, GateError, gate};
pub use permit::{Direction, Flow};
pub use range::Range;
pub use run::{Config, Error, disable, run};
