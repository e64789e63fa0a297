//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): the API's object, and what of it verdicts depend on.
//!
//! A connection is asked about tier by tier: Admin, then NetworkPolicies, then Baseline. Within a tier the first rule that
//! speaks of it decides, policies in the order of their priority, equal ones in that of their names (upstream leaves
//! that open).
//!
//! What cannot be understood fails closed, as upstream asks: such a rule accepts nothing, or denies everything.
//!
//! Specification: <https://network-policy-api.sigs.k8s.io/api-overview/>.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use nft::Protocol;
use serde::Deserialize;

use crate::model::{Namespaces, Peer, PodSet, Port, Select};
use crate::permit::Direction;
use crate::range::without;

/// The object.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct ClusterNetworkPolicy {
    /// Its name, and the rest that every object has.
    #[serde(default)]
    pub metadata: ObjectMeta,
    spec: Spec,
}

impl k8s_openapi::Resource for ClusterNetworkPolicy {
    const API_VERSION: &'static str = "policy.networking.k8s.io/v1alpha2";
    const GROUP: &'static str = "policy.networking.k8s.io";
    const KIND: &'static str = "ClusterNetworkPolicy";
    const VERSION: &'static str = "v1alpha2";
    const URL_PATH_SEGMENT: &'static str = "clusternetworkpolicies";
    type Scope = k8s_openapi::ClusterResourceScope;
}

impl k8s_openapi::Metadata for ClusterNetworkPolicy {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Spec {
    tier: String,
    priority: i32,
    subject: PeerSpec,
    ingress: Vec<RuleSpec>,
    egress: Vec<RuleSpec>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct RuleSpec {
    name: String,
    action: String,
    from: Vec<PeerSpec>,
    to: Vec<PeerSpec>,
    protocols: Option<Vec<ProtocolSpec>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct PeerSpec {
    namespaces: Option<LabelSelector>,
    pods: Option<PodsSpec>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodsSpec {
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ProtocolSpec {
    tcp: Option<PortsSpec>,
    udp: Option<PortsSpec>,
    sctp: Option<PortsSpec>,
    destination_named_port: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortsSpec {
    destination_port: Option<PortSpec>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct PortSpec {
    number: Option<i32>,
    range: Option<RangeSpec>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct RangeSpec {
    start: i32,
    end: i32,
}

/// When a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, about Pods that none of them selects.
    Baseline,
}

/// What a rule does with the connections that it speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Lets them pass; nothing further is asked in that direction.
    Accept,
    /// Drops them.
    Deny,
    /// Leaves them to the next tier.
    Pass,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRule {
    /// What its author calls it; may be empty.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Any of these; none: everybody.
    pub peers: Option<Vec<Arc<Peer>>>,
    /// Any of these; none: every port and protocol.
    pub ports: Option<Vec<Port>>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its name.
    pub name: String,
    /// When it is asked.
    pub tier: Tier,
    /// The lower, the earlier within its tier.
    pub priority: i32,
    /// The Pods that it speaks of.
    pub subject: PodSet,
    /// Of what comes to them, in order.
    pub ingress: Vec<ClusterRule>,
    /// Of what goes from them, in order.
    pub egress: Vec<ClusterRule>,
}

/// Which rule decided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterOrigin {
    /// The policy's name.
    pub policy: String,
    /// Its tier.
    pub tier: Tier,
    /// Which of its directions.
    pub direction: Direction,
    /// The rule's place in that list.
    pub rule: usize,
    /// The rule's own name; may be empty.
    pub name: String,
}

impl fmt::Display for ClusterOrigin {
    /// As the field is called in the object: `ingress[0] "deny-all"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.direction.word(), self.rule)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {:?}", self.name) }
    }
}

impl Tier {
    /// The API's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

impl ClusterPolicy {
    /// Reads a policy; none for one whose tier or subject is unknown.
    pub fn of(policy: &ClusterNetworkPolicy) -> Option<Self> {
        let spec = &policy.spec;
        let tier = [Tier::Admin, Tier::Baseline].into_iter().find(|tier| tier.word() == spec.tier)?;
        let Peer::Pods(subject) = peers(&spec.subject)?.pop()? else { return None };
        Some(Self {
            name: policy.metadata.name.clone()?,
            tier,
            priority: spec.priority,
            subject,
            ingress: spec.ingress.iter().map(|rule| read(rule, &rule.from)).collect(),
            egress: spec.egress.iter().map(|rule| read(rule, &rule.to)).collect(),
        })
    }

    /// Its rules of a direction.
    pub fn rules(&self, direction: Direction) -> &[ClusterRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

fn read(rule: &RuleSpec, of: &[PeerSpec]) -> ClusterRule {
    let name = rule.name.clone();
    let action = match rule.action.as_str() {
        "Accept" => Action::Accept,
        "Pass" => Action::Pass,
        // Whatever else it may mean in another version.
        _ => Action::Deny,
    };
    let understood = of.iter().map(peers).collect::<Option<Vec<_>>>().zip(match &rule.protocols {
        None => Some(None),
        Some(protocols) => protocols.iter().map(ports).collect::<Option<Vec<_>>>().map(Some),
    });
    match (understood, action) {
        (Some((peers, ports)), _) => ClusterRule {
            name,
            action,
            peers: Some(peers.into_iter().flatten().map(Arc::new).collect()),
            ports: ports.map(|ports| ports.into_iter().flatten().collect()),
        },
        (None, Action::Accept) => ClusterRule { name, action, peers: Some(Vec::new()), ports: None },
        (None, _) => ClusterRule { name, action: Action::Deny, peers: None, ports: None },
    }
}

/// Whom one entry means; none when it cannot be understood.
fn peers(peer: &PeerSpec) -> Option<Vec<Peer>> {
    let pods = |namespaces: &LabelSelector, pods: &LabelSelector| {
        let namespaces = Namespaces::Matching(Select::of(namespaces)?);
        Some(vec![Peer::Pods(PodSet { namespaces, pods: Select::of(pods)? })])
    };
    match peer {
        PeerSpec { namespaces: Some(namespaces), .. } => pods(namespaces, &LabelSelector::default()),
        PeerSpec { pods: Some(of), .. } => pods(&of.namespace_selector, &of.pod_selector),
        PeerSpec { nodes: Some(nodes), .. } => Some(vec![Peer::Nodes(Select::of(nodes)?)]),
        PeerSpec { networks: Some(networks), .. } => {
            let block = |net: &String| Some(Peer::Block(without(net.parse::<IpNet>().ok()?.trunc(), &[])));
            networks.iter().map(block).collect()
        }
        _ => None,
    }
}

/// Which ports one entry means; none when it cannot be understood.
fn ports(protocol: &ProtocolSpec) -> Option<Vec<Port>> {
    let all =
        [(Protocol::Tcp, &protocol.tcp), (Protocol::Udp, &protocol.udp), (Protocol::Sctp, &protocol.sctp)];
    if let Some(name) = &protocol.destination_named_port {
        return Some(all.map(|(protocol, _)| Port::Named(protocol, name.clone())).into());
    }
    let (protocol, spec) = all.into_iter().find_map(|(protocol, spec)| Some((protocol, spec.as_ref()?)))?;
    let number = |number: i32| u16::try_from(number).ok();
    Some(vec![match &spec.destination_port {
        None => Port::Any(protocol),
        Some(PortSpec { number: Some(first), .. }) => Port::Range(protocol, number(*first)?, number(*first)?),
        Some(PortSpec { range: Some(RangeSpec { start, end }), .. }) if start <= end => {
            Port::Range(protocol, number(*start)?, number(*end)?)
        }
        Some(_) => return None,
    }])
}
