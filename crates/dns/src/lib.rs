//! The cluster's DNS server, and the relay that lets Pods reach the host's resolvers.
//!
//! * [`zone`]: Services, slices, namespaces and Pods -> an index of the cluster's names, kept up object by object;
//! * [`answer`]: one question -> records or a verdict, a pure function over that index;
//! * [`name`], [`wire`]: names, questions and answers as they stand in messages;
//! * [`corefile`], [`config`]: the Corefile in ConfigMap `coredns`, read; `live` follows it as it changes;
//! * [`hosts`], [`rewrite`], [`template`], `complete`: what single directives do;
//! * [`forward`], [`cache`]: all other names, asked of upstreams and remembered;
//! * [`respond`]: from the bytes of a question to the bytes of an answer, by all of these;
//! * [`run`]: the server of the `coredns` Pod; [`relay::run`]: the same server without a zone, for the host's side;
//! * [`addon`]: the objects of the add-on.
//!
//! Names and codes follow the Kubernetes DNS specification (<https://github.com/kubernetes/dns>, `docs/specification.md`)
//! and, where that is silent, what CoreDNS answers. Wire format: RFC 1035, 3596, 2782, 6891, 7766.

pub mod addon;
pub mod answer;
mod batch;
pub mod cache;
mod complete;
pub mod config;
pub mod corefile;
pub mod forward;
pub mod hosts;
mod http;
mod live;
mod metrics;
pub mod name;
pub mod relay;
pub mod respond;
pub mod rewrite;
mod run;
mod server;
pub mod template;
#[cfg(test)]
mod tests;
mod watch;
pub mod wire;
pub mod zone;

pub use run::{DnsConfig, Error, run};
