//! The way to the endpoints of Services: connections, their reuse, health, and which endpoint is asked.

pub(crate) mod balance;
mod chunked;
pub(crate) mod endpoint;
pub(crate) mod h1;
mod resolve;
pub(crate) mod stream;
pub(crate) mod tls;

pub use balance::Backend;
