//! Which endpoint a request goes to.

use super::value::{boolean, number};
use super::{Annotation, Policy};
use crate::variables::Template;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Algorithm {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest requests under way.
    LeastConnections,
    /// Of two, the one that has answered faster of late.
    Ewma,
}

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Balancing {
    pub algorithm: Algorithm,
    pub hash_by: Option<Template>,
    /// So many endpoints share a key.
    pub subset: Option<usize>,
    subset_size: usize,
    subset_on: bool,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::RoundRobin,
            hash_by: None,
            subset: None,
            subset_size: 3,
            subset_on: false,
        }
    }
}

impl Balancing {
    fn settle(&mut self) {
        self.subset = self.subset_on.then_some(self.subset_size);
    }
}

fn algorithm(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.balancing.algorithm = match value {
        "round_robin" => Algorithm::RoundRobin,
        "least_conn" => Algorithm::LeastConnections,
        "ewma" => Algorithm::Ewma,
        _ => return Err(format!("{value:?} is none of round_robin, ewma, least_conn")),
    };
    Ok(())
}

fn subset_size(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.balancing.subset_size = number::<usize>(value)?.max(1);
    policy.balancing.settle();
    Ok(())
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("load-balance", algorithm),
    Annotation::new("upstream-hash-by", |p, v| Ok(p.balancing.hash_by = Some(Template::early(v)?))),
    Annotation::new("upstream-hash-by-subset", |p, v| {
        p.balancing.subset_on = boolean(v)?;
        p.balancing.settle();
        Ok(())
    }),
    Annotation::new("upstream-hash-by-subset-size", subset_size),
];
