//! The node agent: everything between a Pod bound to this node and its running containers.
//!
//! One task per Pod drives a pure step function over what the Pod asks and what is there (`worker`); thin edges reach
//! the runtime, the image store and the network (`edge`). The API server sees status patches, Events and the node's
//! heartbeat; clients reach logs and streams through the HTTPS server on port 10250 (`server`).

pub mod backoff;
pub mod config;
pub mod directory;
pub mod edge;
pub mod hosts;
pub mod logs;
pub mod node;
pub mod patch;
pub mod pod;
pub mod probe;
pub mod process;
pub mod spec;
pub mod volume;
pub mod worker;
