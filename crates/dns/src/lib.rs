//! The cluster's DNS server, and the relay that lets Pods reach the host's resolvers.
//!
//! * [`zone`]: Services, slices and namespaces -> an index of the cluster's names, kept up Service by Service;
//! * [`answer`]: one question -> records or a code, a pure function over that index;
//! * [`corefile`], [`config`]: the Corefile in ConfigMap `coredns`, read; `live` follows it as it changes;
//! * [`hosts`], [`rewrite`]: what two of its directives do;
//! * [`forward`]: all other names, asked of upstreams, with a small cache;
//! * [`run`]: the server of the `coredns` Pod; [`relay::run`]: the same server without a zone, for the host's side;
//! * [`addon`]: the objects of the add-on.
//!
//! Names and codes follow the Kubernetes DNS specification (<https://github.com/kubernetes/dns>, `docs/specification.md`)
//! and, where that is silent, what CoreDNS answers. Wire format: RFC 1035, 3596, 2782, 6891, 7766.

pub mod addon;
pub mod answer;
pub mod cache;
pub mod config;
pub mod corefile;
pub mod forward;
pub mod hosts;
mod http;
mod live;
mod metrics;
pub mod relay;
mod respond;
pub mod rewrite;
mod run;
mod server;
#[cfg(test)]
mod tests;
mod watch;
pub mod zone;

pub use run::{DnsConfig, Error, run};
