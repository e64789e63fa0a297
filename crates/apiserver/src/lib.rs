//! The Kubernetes API over a versioned key-value store.
//!
//! One server for all kinds: a kind is a row of a table ([`resource::Resource`]) plus rules
//! ([`strategy::Strategy`]); every verb, watch, patch, table and discovery document is written once. Objects
//! are stored and sent as JSON bytes and are parsed only where a rule needs their fields.

pub mod alloc;
pub mod auth;
pub mod config;
pub mod field;
pub mod identity;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod objects;
pub mod resource;
pub mod status;
pub mod strategy;
