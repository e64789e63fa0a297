//! Containers: the single-threaded shim that makes them and the asynchronous handle that the node agent holds.

pub mod api;
mod client;

pub use api::*;
pub use client::{Attach, Exec, Runtime, ShimOptions};
