//! The Kubernetes API over a versioned key-value store.
//!
//! One server for all kinds: a kind is a row of a table ([`resource::Resource`]) plus rules
//! ([`strategy::Strategy`]); every verb, watch, patch, table and discovery document is written once. Objects
//! are stored and sent as JSON bytes and are parsed only where a rule needs their fields.

pub mod admission;
pub mod alloc;
pub mod audit;
pub mod auth;
pub mod backend;
pub mod body;
pub mod builtin;
pub mod cel;
pub mod config;
pub mod connect;
pub mod convert;
pub mod core;
pub mod crd;
pub mod discovery;
pub mod expire;
pub mod field;
pub mod flow;
pub mod identity;
pub mod inprocess;
pub mod jsonpath;
pub mod kinds;
pub mod meta;
pub mod metrics;
pub mod names;
pub mod negotiate;
pub mod object;
pub mod objects;
pub mod openapi;
pub mod parsed;
pub mod paths;
pub mod post;
pub mod quota;
pub mod registry;
pub mod request;
pub mod resource;
pub mod rest;
pub mod selector;
pub mod serve;
pub mod server;
pub mod status;
pub mod strategy;
pub mod table;
pub mod usage;

pub use config::{Config, Enforcement};
pub use inprocess::InProcess;
pub use server::{ApiServer, StartError};
