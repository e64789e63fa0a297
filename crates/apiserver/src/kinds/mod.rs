//! Rules per kind: defaults, validation, immutability, hooks. One [`Strategy`](crate::strategy::Strategy) each.

pub mod checks;
#[cfg(test)]
pub(crate) mod fake;
pub mod pod;
pub mod quantity;
mod report;
pub mod selector;
pub mod service;
pub mod value;

use std::sync::Arc;

use crate::config::Config;
use crate::resource::GroupResource;
use crate::strategy::{Generic, Strategy};

/// The rules of all kinds, with what they share (allocators, token issuer).
pub struct Kinds {}

impl Kinds {
    /// Made once at start, before anything is stored.
    pub fn new(_config: &Config) -> Self {
        Kinds {}
    }

    /// The rules of a kind; kinds without rules of their own get the generic ones.
    pub fn strategy(&self, _resource: &GroupResource) -> Arc<dyn Strategy> {
        Arc::new(Generic)
    }
}
