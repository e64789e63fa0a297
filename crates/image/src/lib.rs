//! Images.
mod auth;
pub mod digest;
mod document;
mod error;
mod reference;
mod registry;
pub mod unpack;
pub use auth::{Auth, host_docker_config};
pub use error::{Error, Result};
pub use reference::{normalize, parse};
pub use registry::{Registry, RegistryConfig};
