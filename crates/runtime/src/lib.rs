//! Containers: the single-threaded shim that makes them and the asynchronous handle that the node agent holds.
//!
//! [`Runtime`] is the agent's side; [`shim`] is the process at the other end of the socket, this same binary started
//! again ([`shim::enter_if_asked`] is the first thing that its `main` calls). [`defaults`] builds the OCI spec that a
//! container starts from.

pub mod api;
pub mod cgroup;
mod client;
mod connection;
pub mod defaults;
mod proto;
pub mod seccomp;
pub mod shim;

pub use api::*;
pub use client::{Attach, Events, Exec, Runtime, ShimOptions};

/// Makes a test binary able to be the shim: put it once at the top of an integration test's file.
///
/// The shim is the running binary started again with another name, and a test's `main` belongs to the test harness: this
/// looks at the name before `main`, when there is one thread only.
#[macro_export]
macro_rules! shim_in_tests {
    () => {
        #[used]
        #[unsafe(link_section = ".init_array")]
        static SHIM_ENTRY: extern "C" fn() = {
            extern "C" fn enter() {
                $crate::shim::enter_if_asked();
            }
            enter
        };
    };
}
