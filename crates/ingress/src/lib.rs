//! The ingress controller: HTTP and HTTPS from outside, routed to the endpoints of Services.
//!
//! * [`path`]: a request's path as it is matched; [`table`]: host and path -> location, the pure core;
//! * [`annotations`]: what an Ingress says in ingress-nginx's annotations; [`build`]: the API's objects -> a table;
//! * [`certificates`]: Secrets -> certificates, chosen by the name a client asks for;
//! * `fields`, `proxy`: one request and its answer; `front`: listeners, TLS, limits; [`run`]: the Pod's controller;
//! * [`addon`]: the objects of the add-on.
//!
//! A change of the objects makes a new table that replaces the old one as a whole: requests under way keep what they
//! have, and no connection is touched. Paths and hosts follow networking.k8s.io/v1; where that leaves a choice, and for
//! annotations, ingress-nginx is the model. HTTP: RFC 9110, 9112, 9113.

pub mod addon;
pub mod annotations;
pub mod build;
pub mod certificates;
mod fields;
mod front;
pub mod path;
mod proxy;
mod run;
mod status;
pub mod table;
#[cfg(test)]
mod tests;

pub use run::{Config, Error, run};
