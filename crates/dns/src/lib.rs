//! The cluster's DNS server, and the relay that lets Pods reach the host's resolvers.
//!
//! * [`zone`]: Services, slices and namespaces -> an index of the cluster's names, kept up Service by Service;
//! * [`answer`]: one question -> records or a code, a pure function over that index;
//! * [`forward`]: all other names, asked of the upstreams of a `resolv.conf`, with a small cache;
//! * [`run`]: the server of the `coredns` Pod; [`relay::run`]: the same server without a zone, for the host's side;
//! * [`addon`]: the objects of the add-on.
//!
//! Names and codes follow the Kubernetes DNS specification (<https://github.com/kubernetes/dns>, `docs/specification.md`)
//! and, where that is silent, what CoreDNS answers. Wire format: RFC 1035, 3596, 2782, 6891, 7766.

pub mod addon;
pub mod answer;
pub mod cache;
pub mod forward;
mod http;
mod metrics;
pub mod relay;
mod respond;
mod run;
mod server;
#[cfg(test)]
mod tests;
mod watch;
pub mod zone;

pub use run::{DnsConfig, Error, run};
