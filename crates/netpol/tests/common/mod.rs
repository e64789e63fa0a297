//! Three namespaces of three Pods each, as the API has them and as the machine has them, and an independent reading of
//! the API's rules. Shared by the tests that hold one against the other.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

pub mod dice;
pub mod net;
pub mod reference;
pub mod tiers;
pub mod walk;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netpol::cluster::ClusterPolicy;
use netpol::model::{NodeView, PodView, Policy, World};
use netpol::verdict::{End, Verdict, verdict};
use netpol::{Desired, Flow};
use nft::Protocol;
use serde_json::{Value, json};

pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub const PODS: [&str; 3] = ["a", "b", "c"];
/// Number and name; the second one has its name on odd Pods only.
pub const PORTS: [(u16, &str); 2] = [(80, "serve-80"), (81, "serve-81")];
pub const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Source, destination, protocol, port.
pub type Cell = (usize, usize, &'static str, u16);

pub fn address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, 11 + u8::try_from(pod).unwrap())
}

pub fn namespace_of(pod: usize) -> &'static str {
    NAMESPACES[pod / 3]
}

/// The labels of a Pod, and those of a namespace.
pub fn labels(pod: usize) -> Value {
    json!({"pod": PODS[pod % 3], "parity": if pod.is_multiple_of(2) { "even" } else { "odd" }})
}

pub fn namespace_labels(name: &str) -> Value {
    match name {
        "z" => json!({"ns": name, "kubernetes.io/metadata.name": name}),
        _ => json!({"ns": name, "kubernetes.io/metadata.name": name, "team": "blue"}),
    }
}

pub fn named_ports(pod: usize) -> Value {
    let named = PORTS.iter().filter(|(number, _)| *number == 80 || !pod.is_multiple_of(2));
    let all = named.flat_map(|(number, name)| {
        PROTOCOLS.map(|p| json!({"name": format!("{name}-{}", p.to_lowercase()), "containerPort": number, "protocol": p}))
    });
    Value::Array(all.collect())
}

/// All connections between different Pods.
pub fn cells() -> impl Iterator<Item = Cell> {
    let pairs = (0..9).flat_map(|from| (0..9).map(move |to| (from, to))).filter(|(from, to)| from != to);
    pairs.flat_map(|(from, to)| {
        PORTS.into_iter().flat_map(move |(port, _)| PROTOCOLS.map(|p| (from, to, p, port)))
    })
}

/// A policy as the API has it.
pub fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// Pods and namespaces, and what tests change about them.
#[derive(Clone)]
pub struct Objects {
    pub policies: Vec<Value>,
    pub cluster_policies: Vec<Value>,
    pub pod_labels: Vec<Value>,
    pub namespace_labels: BTreeMap<&'static str, Value>,
    /// Whose address on the machine each Pod of the API has.
    pub places: [usize; 9],
}

impl Objects {
    pub fn new(policies: Vec<Value>) -> Self {
        let namespace_labels = NAMESPACES.into_iter().map(|name| (name, namespace_labels(name))).collect();
        Self {
            policies,
            cluster_policies: Vec::new(),
            pod_labels: (0..9).map(labels).collect(),
            namespace_labels,
            places: std::array::from_fn(|pod| pod),
        }
    }

    pub fn world(&self) -> World {
        let policies = self
            .policies
            .iter()
            .map(|object| Policy::of(&serde_json::from_value(object.clone()).unwrap()).unwrap());
        let cluster_policies = self
            .cluster_policies
            .iter()
            .map(|object| ClusterPolicy::of(&serde_json::from_value(object.clone()).unwrap()).unwrap());
        let node = |(name, role, at): (&str, &str, usize)| {
            let labels = [("role".to_owned(), role.to_owned())].into();
            (name.to_owned(), NodeView { labels, addresses: vec![address(at).into()] })
        };
        let labels = |(name, labels): (&&str, &Value)| {
            ((*name).to_owned(), serde_json::from_value(labels.clone()).unwrap())
        };
        World {
            policies: policies.map(|policy| (policy.key.clone(), policy)).collect(),
            namespaces: self.namespace_labels.iter().map(labels).collect(),
            pods: (0..9).map(|i| self.pod(i)).map(|pod| (pod.key.clone(), pod)).collect(),
            cluster_policies: cluster_policies.map(|policy| (policy.name.clone(), policy)).collect(),
            nodes: tiers::NODES.into_iter().map(node).collect(),
        }
    }

    fn pod(&self, i: usize) -> PodView {
        let object = json!({
            "metadata": {"namespace": namespace_of(i), "name": PODS[i % 3], "labels": self.pod_labels[i]},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": named_ports(i)}]}});
        PodView::of(&serde_json::from_value(object).unwrap(), vec![address(self.places[i]).into()], "n1")
            .unwrap()
    }
}

/// What the rules and the explanation say of a cell; both must say the same.
pub fn said(world: &World, desired: &Desired, (from, to, protocol, port): Cell) -> Verdict {
    let protocol = Protocol::parse(Some(protocol)).unwrap();
    let (src, dst): (IpAddr, IpAddr) = (address(from).into(), address(to).into());
    let verdict = verdict(world, End::at(world, src), End::at(world, dst), protocol, port);
    let allows = desired.allows(&Flow { src, dst, protocol, port });
    assert_eq!(verdict.allows(), allows, "{from} -> {to} {protocol:?}/{port}: {verdict:?}");
    verdict
}
