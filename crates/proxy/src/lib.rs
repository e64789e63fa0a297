//! The service data path of a node: what a Service promises, kept by nftables.
//!
//! Three steps, each readable on its own:
//! 1. [`desired`]: Service and EndpointSlices -> [`model::Target`] per [`model::Frontend`], a pure function;
//! 2. [`layout`]: targets -> table, chains and map elements, a pure function that gives endpoints their slots;
//! 3. [`sync`]: two states -> one transaction. Everything is replaced at start and after a refused transaction; in
//!    between only differences go to the kernel.
//!
//! Beside them [`announce`] says for which load balancers' addresses this node answers, and [`health`] tells whoever asks
//! whether it is well and which Services have endpoints here.
//!
//! [`run`] feeds them from the API. Sockets are opened in the network namespace of the thread that polls it.
//!
//! Upstream's rules: <https://kubernetes.io/docs/reference/networking/virtual-ips/>.

pub mod announce;
pub mod desired;
pub mod health;
pub mod layout;
mod metrics;
pub mod model;
mod run;
mod stale;
pub mod sync;
mod trim;

pub use model::{HostPort, Protocol};
pub use run::{Error, ProxyConfig, run};
pub use stale::stale_connections;
