//! The ingress controller: HTTP and HTTPS from outside, routed to the endpoints of Services.
//!
//! * [`annotations`]: what an Ingress says in ingress-nginx's annotations, a family each; [`configmap`]: what is said for
//!   all; [`lint`]: both, read without a cluster; `admission`: the same check when an Ingress is written;
//! * [`path`]: a request's path as it is matched; [`table`]: host and path -> location, the pure core;
//! * [`build`]: the API's objects -> a table; `backends`: Services -> endpoints; [`state`]: what outlives a table;
//! * [`certificates`], `client_tls`, `passwords`: Secrets -> what they are for;
//! * `proxy`: one request and its answer; `fields`, `onward`, `body`, `variables`: its parts; `upstream`: the way to endpoints;
//!   `throttle`: limits; `record`, `metrics`: what is written down;
//! * `front`: listeners, TLS, limits; [`proxy_protocol`], `line`, `timer`: theirs; `workers`: the threads that serve; [`run`]: the
//!   Pod's controller; `status`: what users see, `replicas`: which Pod writes it; [`addon`]: its objects.
//!
//! A change of the objects makes a new table that replaces the old one as a whole: requests under way keep what they
//! have, and no connection is touched. Paths and hosts follow networking.k8s.io/v1; where that leaves a choice, and for
//! annotations, ingress-nginx is the model. HTTP: RFC 9110, 9112, 9113.

pub mod addon;
pub mod admission;
pub mod annotations;
mod backends;
mod body;
pub mod build;
pub mod certificates;
mod client_tls;
pub mod configmap;
mod fields;
mod front;
mod health;
mod line;
pub mod lint;
mod metrics;
mod onward;
mod passwords;
pub mod path;
mod proxy;
pub mod proxy_protocol;
mod record;
mod replicas;
mod run;
pub mod state;
mod status;
pub mod table;
#[cfg(test)]
mod tests;
mod throttle;
mod timer;
mod upstream;
pub mod variables;
mod workers;

pub use run::{Config, Error, run};
pub use upstream::Backend;
