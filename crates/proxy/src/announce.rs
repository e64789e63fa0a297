//! Which node answers for the addresses that Services of type LoadBalancer have on the nodes' network.
//!
//! Exactly one does, and all nodes know which without a word: it is drawn by a hash of Service and node (rendezvous
//! hashing, Thaler and Ravishankar 1998), so a node that comes or goes moves only its own Services. With
//! `externalTrafficPolicy: Local` nodes with an endpoint come first, as the others would drop what they are sent.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use client::ObjectKey;
use client::endpoints::{State, state};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::desired::{balanced_addresses, is_foreign};

/// Nodes with this label answer for no load balancer.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The nodes of the cluster, by how well they can answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Speakers {
    all: BTreeSet<String>,
    ready: BTreeSet<String>,
}

impl Speakers {
    /// Sorts the nodes.
    pub fn new<N: Borrow<Node>>(nodes: &[N]) -> Self {
        let mut speakers = Self::default();
        for node in nodes.iter().map(Borrow::borrow) {
            let labels = node.metadata.labels.as_ref();
            let Some(name) = node.metadata.name.clone() else { continue };
            if labels.is_some_and(|labels| labels.contains_key(EXCLUDED)) {
                continue;
            }
            let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
            if conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True") {
                speakers.ready.insert(name.clone());
            }
            speakers.all.insert(name);
        }
        speakers
    }

    /// The node that answers for a Service; `slices` are those of the Service.
    pub fn of<E: Borrow<EndpointSlice>>(&self, service: &Service, slices: &[E]) -> Option<&str> {
        let key = ObjectKey::of(service);
        let local = service.spec.as_ref().and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local");
        let serving = if local { serving_nodes(slices) } else { BTreeSet::new() };
        let with_endpoint = |nodes: &BTreeSet<String>| -> BTreeSet<String> {
            nodes.iter().filter(|name| serving.contains(name.as_str())).cloned().collect()
        };
        let best = [with_endpoint(&self.ready), with_endpoint(&self.all)];
        let choices = best.iter().chain([&self.ready, &self.all]).find(|nodes| !nodes.is_empty())?;
        let drawn = choices.iter().max_by_key(|name| lot(&key, name))?;
        self.all.get(drawn).map(String::as_str)
    }

    /// The addresses that `node` answers for because of a Service; None when the Service has no load balancer of ours.
    pub fn addresses<E: Borrow<EndpointSlice>>(
        &self,
        service: &Service,
        slices: &[E],
        node: &str,
    ) -> Option<Vec<IpAddr>> {
        // A class names somebody else, who answers himself.
        let class = service.spec.as_ref().and_then(|s| s.load_balancer_class.as_ref());
        let addresses = balanced_addresses(service);
        if addresses.is_empty() || class.is_some() || is_foreign(service) {
            return None;
        }
        Some(if self.of(service, slices) == Some(node) { addresses } else { Vec::new() })
    }
}

fn serving_nodes<E: Borrow<EndpointSlice>>(slices: &[E]) -> BTreeSet<&str> {
    let endpoints = slices.iter().flat_map(|slice| &slice.borrow().endpoints);
    let ready = endpoints.filter(|e| state(e) == State::Ready);
    ready.filter_map(|e| e.node_name.as_deref()).collect()
}

fn lot(service: &ObjectKey, node: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&service.namespace, &service.name, node).hash(&mut hasher);
    hasher.finish()
}
