//! Policies and Pods, as far as verdicts depend on them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use client::ObjectKey;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::core::{Expression, Selector, SelectorExt};
use nft::Protocol;

use crate::cluster::{ClusterNetworkPolicy, ClusterPolicy};
use crate::permit::Direction;
use crate::range::{Range, without};

/// The annotation that takes a policy's teeth out when it is `true`: what it would drop is told and passes.
pub const AUDIT: &str = "skiff.dev/audit";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// What a label selector asks for, in an order of its own so that equal ones are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Select(Vec<Expression>);

impl Select {
    /// A selector of the API; none when it cannot be understood.
    pub fn of(selector: &LabelSelector) -> Option<Self> {
        let selector = Selector::try_from(selector.clone()).ok()?;
        let mut expressions: Vec<Expression> = selector.into_iter().collect();
        expressions.sort_unstable();
        Some(Self(expressions))
    }

    /// Whether it selects an object with these labels; an empty one selects all.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|expression| expression.matches(labels))
    }
}

/// Whose Pods a peer means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespaces {
    /// The policy's own.
    One(String),
    /// Those with matching labels.
    Matching(Select),
}

/// Pods by the labels of their namespaces and their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodSet {
    /// Their namespaces.
    pub namespaces: Namespaces,
    /// Themselves.
    pub pods: Select,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Pods.
    Pods(PodSet),
    /// Addresses.
    Block(Vec<Range>),
    /// The addresses of nodes with such labels.
    Nodes(Select),
}

/// The destination's port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// Any of a protocol.
    Any(Protocol),
    /// From one number to another, both included.
    Range(Protocol, u16, u16),
    /// The one that the destination's containers call so.
    Named(Protocol, String),
}

/// One alternative: any of the peers at any of the ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// None: everybody.
    pub peers: Option<Vec<Arc<Peer>>>,
    /// None: every port and protocol.
    pub ports: Option<Vec<Port>>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// The Pods of its namespace that it isolates.
    pub subject: Select,
    /// What may come in; none: it says nothing about that direction.
    pub ingress: Option<Vec<Rule>>,
    /// What may go out; likewise.
    pub egress: Option<Vec<Rule>>,
    /// Whether it has [`AUDIT`], and isolates nobody.
    pub audit: bool,
}

impl Policy {
    /// Reads a policy. The API server has refused what cannot be understood; what is left of that allows nothing.
    pub fn of(policy: &NetworkPolicy) -> Option<Self> {
        let key = ObjectKey::of(policy);
        let spec = policy.spec.as_ref()?;
        let subject = Select::of(&spec.pod_selector.clone().unwrap_or_default())?;
        let has = |direction: &str, default: bool| {
            spec.policy_types.as_ref().map_or(default, |types| types.iter().any(|t| t == direction))
        };
        let namespace = &key.namespace;
        let ingress = spec.ingress.iter().flatten();
        let ingress = ingress.map(|r| rule(namespace, r.from.as_deref(), r.ports.as_deref())).collect();
        let egress = spec.egress.iter().flatten();
        let egress = egress.map(|r| rule(namespace, r.to.as_deref(), r.ports.as_deref())).collect();
        Some(Self {
            ingress: has("Ingress", true).then_some(ingress),
            egress: has("Egress", spec.egress.is_some()).then_some(egress),
            audit: policy.annotations().get(AUDIT).is_some_and(|value| value == "true"),
            subject,
            uid: policy.uid().unwrap_or_default(),
            key,
        })
    }

    /// Its rules of a direction; none: it says nothing about that direction.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Whether it speaks of a Pod, in whatever direction.
    pub fn selects(&self, pod: &PodView) -> bool {
        pod.key.namespace == self.key.namespace && self.subject.matches(&pod.labels)
    }
}

fn rule(namespace: &str, peers: Option<&[NetworkPolicyPeer]>, ports: Option<&[NetworkPolicyPort]>) -> Rule {
    // An empty list means the same as a missing one: no condition.
    let peers = peers.filter(|peers| !peers.is_empty());
    let ports = ports.filter(|ports| !ports.is_empty());
    Rule {
        // Places are kept: what cannot be understood is nobody and nowhere.
        peers: peers.map(|peers| {
            let nobody = || Peer::Block(Vec::new());
            peers.iter().map(|p| Arc::new(peer(namespace, p).unwrap_or_else(nobody))).collect()
        }),
        ports: ports
            .map(|ports| ports.iter().map(|p| port(p).unwrap_or(Port::Range(Protocol::Tcp, 1, 0))).collect()),
    }
}

fn peer(namespace: &str, peer: &NetworkPolicyPeer) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        return block_of(block);
    }
    let namespaces = match &peer.namespace_selector {
        Some(selector) => Namespaces::Matching(Select::of(selector)?),
        None => Namespaces::One(namespace.to_owned()),
    };
    let pods = Select::of(&peer.pod_selector.clone().unwrap_or_default())?;
    Some(Peer::Pods(PodSet { namespaces, pods }))
}

fn block_of(block: &IPBlock) -> Option<Peer> {
    let except: Result<Vec<IpNet>, _> = block.except.iter().flatten().map(|net| net.parse()).collect();
    Some(Peer::Block(without(block.cidr.parse().ok()?, &except.ok()?)))
}

fn port(port: &NetworkPolicyPort) -> Option<Port> {
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    Some(match &port.port {
        None => Port::Any(protocol),
        Some(IntOrString::String(name)) => Port::Named(protocol, name.clone()),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.map_or(Some(first), |end| u16::try_from(end).ok())?;
            Port::Range(protocol, first, last)
        }
    })
}

/// A Pod with addresses of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is this node's to protect.
    pub local: bool,
    /// Named ports of its containers.
    pub ports: Vec<(Protocol, String, u16)>,
}

impl PodView {
    /// Reads a Pod that has these addresses; none for one on the node's network, or one that has ended.
    pub fn of(pod: &Pod, addresses: Vec<IpAddr>, node_name: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if spec.host_network == Some(true)
            || matches!(phase, Some("Succeeded" | "Failed"))
            || addresses.is_empty()
        {
            return None;
        }
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = all.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((Protocol::parse(port.protocol.as_deref())?, port.name.clone()?, number))
        });
        Some(Self {
            key: ObjectKey::of(pod),
            uid: pod.uid().unwrap_or_default(),
            labels: pod.labels().clone(),
            addresses,
            local: spec.node_name.as_deref() == Some(node_name),
            ports: ports.collect(),
        })
    }

    /// The numbers of its ports of that name.
    pub fn numbers(&self, protocol: Protocol, name: &str) -> impl Iterator<Item = u16> {
        let named = self.ports.iter().filter(move |(p, n, _)| *p == protocol && n == name);
        named.map(|(_, _, number)| *number)
    }
}

/// A node, as far as policies may mean it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its labels.
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl NodeView {
    /// Reads a node.
    pub fn of(node: &Node) -> Self {
        let told = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let addresses = told.filter_map(|address| address.address.parse().ok()).collect();
        Self { labels: node.labels().clone(), addresses }
    }
}

/// All that verdicts depend on.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Policies.
    pub policies: BTreeMap<ObjectKey, Policy>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods.
    pub pods: BTreeMap<ObjectKey, PodView>,
    /// Policies of the cluster, by name.
    pub cluster_policies: BTreeMap<String, ClusterPolicy>,
    /// Nodes, by name.
    pub nodes: BTreeMap<String, NodeView>,
}

/// The addresses that a Pod's status has.
pub fn addresses_of(pod: &Pod) -> Vec<IpAddr> {
    let told = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    told.filter_map(|ip| ip.ip.parse().ok()).collect()
}

impl World {
    /// From the API's objects; Pods of `node` are local.
    pub fn of<'a>(
        policies: impl IntoIterator<Item = &'a NetworkPolicy>,
        namespaces: impl IntoIterator<Item = &'a Namespace>,
        pods: impl IntoIterator<Item = &'a Pod>,
        node: &str,
    ) -> Self {
        let policies = policies.into_iter().filter_map(Policy::of);
        let namespaces = namespaces.into_iter().map(|own| (own.name_any(), own.labels().clone()));
        let pods = pods.into_iter().filter_map(|pod| PodView::of(pod, addresses_of(pod), node));
        Self {
            policies: policies.map(|policy| (policy.key.clone(), policy)).collect(),
            namespaces: namespaces.collect(),
            pods: pods.map(|pod| (pod.key.clone(), pod)).collect(),
            ..Self::default()
        }
    }

    /// The same with the cluster's policies, and the nodes that they may mean.
    #[must_use]
    pub fn with_cluster<'a>(
        mut self,
        policies: impl IntoIterator<Item = &'a ClusterNetworkPolicy>,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) -> Self {
        let policies = policies.into_iter().filter_map(ClusterPolicy::of);
        self.cluster_policies = policies.map(|policy| (policy.name.clone(), policy)).collect();
        self.nodes = nodes.into_iter().map(|node| (node.name_any(), NodeView::of(node))).collect();
        self
    }

    /// The Pods of a set.
    pub fn pods_of<'a>(&'a self, set: &'a PodSet) -> impl Iterator<Item = &'a PodView> {
        let namespaces: Vec<&str> = match &set.namespaces {
            Namespaces::One(name) => vec![name],
            Namespaces::Matching(select) => {
                let matching = self.namespaces.iter().filter(|(_, labels)| select.matches(labels));
                matching.map(|(name, _)| name.as_str()).collect()
            }
        };
        let pods = namespaces.into_iter().flat_map(|namespace| self.pods_in(namespace));
        pods.filter(|pod| set.pods.matches(&pod.labels))
    }

    /// The addresses of the nodes with such labels.
    pub fn nodes_of<'a>(&'a self, select: &'a Select) -> impl Iterator<Item = IpAddr> + 'a {
        let nodes = self.nodes.values().filter(|node| select.matches(&node.labels));
        nodes.flat_map(|node| node.addresses.iter().copied())
    }

    /// Whether a Pod is one of a set.
    pub fn is_in(&self, set: &PodSet, pod: &PodView) -> bool {
        let in_namespace = match &set.namespaces {
            Namespaces::One(name) => *name == pod.key.namespace,
            Namespaces::Matching(select) => {
                self.namespaces.get(&pod.key.namespace).is_some_and(|labels| select.matches(labels))
            }
        };
        in_namespace && set.pods.matches(&pod.labels)
    }

    /// The Pod that has an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&PodView> {
        self.pods.values().find(|pod| pod.addresses.contains(&address))
    }

    /// The policies of a namespace.
    pub fn policies_in<'a, 'n>(
        &'a self,
        namespace: &'n str,
    ) -> impl Iterator<Item = &'a Policy> + use<'a, 'n> {
        let range = self.policies.range(ObjectKey::new(namespace, "")..);
        range.take_while(move |(key, _)| key.namespace == namespace).map(|(_, policy)| policy)
    }

    /// The Pods of a namespace.
    pub fn pods_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a PodView> {
        let range = self.pods.range(ObjectKey::new(namespace, "")..);
        range.take_while(move |(key, _)| key.namespace == namespace).map(|(_, pod)| pod)
    }
}
