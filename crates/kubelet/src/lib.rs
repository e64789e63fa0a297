//! The node agent: everything between a Pod bound to this node and its running containers.
//!
//! One task per Pod drives a pure step function over what the Pod asks and what is there ([`worker`]); thin edges
//! reach the runtime, the image store and the network ([`edge`], [`real`]). The API server sees status patches, Events
//! and the node's heartbeat; clients reach logs and streams through the HTTPS server on port 10250 ([`server`]).
//!
//! [`run`] is the way in. It must run on threads of the node's network namespace: the server's socket and the probes'
//! connections are made there. What always holds: no object is changed but Pods' statuses, the Node, its Lease and
//! Events; a stopped agent leaves its containers running and takes them over when it starts again.

pub mod backoff;
pub mod config;
pub mod directory;
pub mod edge;
pub mod fd;
pub mod hosts;
pub mod logs;
pub mod manager;
pub mod node;
pub mod patch;
pub mod pod;
pub mod probe;
pub mod process;
pub mod real;
pub mod server;
pub mod spec;
pub mod stream;
pub mod volume;
pub mod worker;

pub use config::{Config, HostPort, Pause};
pub use manager::{Error, Kubelet, run};
