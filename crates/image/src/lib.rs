//! Images: pulled from registries, loaded from archives or built into the binary; stored once by digest, unpacked for
//! overlayfs, saved again.
//!
//! Start reading at [`Store`]. The specifications are the OCI image spec 1.1 and the OCI distribution spec 1.1, with
//! Docker's manifest v2 schema 2 and archive format beside them. What always holds: bytes are taken for an image only
//! after they hashed to the digest that was asked for; nothing in `blobs/` or `layers/` is half done; a running
//! container's image cannot be removed. Never here: containers, mounts, the Kubernetes API.
//!
//! Everything that reads or writes files blocks; the `async` functions do that on tokio's blocking threads.

mod archive;
mod auth;
mod builtin;
pub mod digest;
mod document;
mod error;
mod files;
mod index;
mod layers;
mod load;
mod pull;
mod reference;
mod registry;
mod save;
mod store;
pub mod unpack;

pub use auth::{Auth, host_docker_config};
pub use builtin::{BUILTIN_BINARY, Builtin};
pub use error::{Error, Result};
pub use load::Source;
pub use pull::{Phase, Progress};
pub use reference::{normalize, parse};
pub use registry::{Registry, RegistryConfig};
pub use store::{Image, Lease, Store};
