//! Whether a connection may be made, and which object says so.
//!
//! The same permits that the kernel's rules are made from are asked one by one, so that the answer has their origin.

use std::net::IpAddr;
use std::sync::Arc;

use client::ObjectKey;
use nft::Protocol;

use crate::cluster::{Action, ClusterOrigin, Tier};
use crate::isolation::{Isolation, Origin, Unpermitted};
use crate::model::{Peer, PodView, World};
use crate::permit::{Direction, Flow, Lookup, Permit};

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The Pod that has it, if it is one of the Pod network.
    pub pod: Option<&'a PodView>,
    /// It is the node on which the other end runs.
    pub is_node: bool,
}

impl<'a> End<'a> {
    /// A Pod's end: its address of the family that `other` has, if it has one.
    pub fn of(pod: &'a PodView, other: IpAddr) -> Option<Self> {
        let address = pod.addresses.iter().find(|own| own.is_ipv4() == other.is_ipv4())?;
        Some(Self { address: *address, pod: Some(pod), is_node: false })
    }

    /// The end that has an address, whoever that is.
    pub fn at(world: &'a World, address: IpAddr) -> Self {
        Self { address, pod: world.pod_at(address), is_node: false }
    }
}

/// What one direction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This end is no Pod of the Pod network, so no policy speaks of it.
    NoPod,
    /// The Pod's own node asks, which is never judged.
    Node,
    /// No policy selects the Pod in this direction.
    Open,
    /// A rule of the cluster's accepts it.
    Accepted(ClusterOrigin),
    /// A rule of the cluster's denies it.
    Denied(ClusterOrigin),
    /// A rule permits it.
    Permitted(Origin),
    /// These policies isolate the Pod, and no rule permits it.
    Refused(Vec<ObjectKey>),
    /// These would refuse it, were they not audited only.
    Audited(Vec<ObjectKey>),
}

impl Decision {
    /// Whether the connection passes.
    pub fn allows(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Denied(_))
    }
}

/// What both ends say; it passes when both let it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The source's.
    pub egress: Decision,
    /// The destination's.
    pub ingress: Decision,
}

impl Verdict {
    /// Whether the connection passes.
    pub fn allows(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }

    /// One of them.
    pub fn of(&self, direction: Direction) -> &Decision {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// What both ends say of a connection between them.
pub fn verdict(world: &World, from: End<'_>, to: End<'_>, protocol: Protocol, port: u16) -> Verdict {
    let decide = |direction, own: End<'_>| match own.pod {
        None => Decision::NoPod,
        Some(pod) => {
            let isolation = Isolation::of(world, pod, direction);
            decision(world, isolation.as_ref(), pod, from, to, (protocol, port))
        }
    };
    Verdict { egress: decide(Direction::Egress, from), ingress: decide(Direction::Ingress, to) }
}

/// What one direction of a Pod says, its isolation being known.
pub fn decision(
    world: &World,
    isolation: Option<&Isolation<'_>>,
    pod: &PodView,
    from: End<'_>,
    to: End<'_>,
    (protocol, port): (Protocol, u16),
) -> Decision {
    let Some(isolation) = isolation else { return Decision::Open };
    if from.is_node {
        return Decision::Node;
    }
    let flow = Flow { src: from.address, dst: to.address, protocol, port };
    let peer = if isolation.direction == Direction::Ingress { from.pod } else { to.pod };
    let ends = Ends { world, peer, address: flow.peer(isolation.direction), destination: to.pod, port };
    let means = |permit: &Permit| permit.admits(&flow, isolation.direction, &ends);
    let by_tier = |tier| {
        let (step, origin) = isolation.steps(tier, pod).find(|(step, _)| means(&step.permit))?;
        match step.action {
            Action::Accept => Some(Decision::Accepted(origin)),
            Action::Deny => Some(Decision::Denied(origin)),
            Action::Pass => None,
        }
    };
    if let Some(decided) = by_tier(Tier::Admin) {
        return decided;
    }
    if let Some((_, origin)) = isolation.permits(pod).find(|(permit, _)| means(permit)) {
        return Decision::Permitted(origin);
    }
    let refusing = || isolation.refusing().iter().map(|policy| policy.key.clone()).collect();
    let open = match isolation.unpermitted() {
        Unpermitted::Dropped => return Decision::Refused(refusing()),
        Unpermitted::Told => Decision::Audited(refusing()),
        Unpermitted::Open => Decision::Open,
    };
    by_tier(Tier::Baseline).unwrap_or(open)
}

/// Both conditions of each rule that does not let a connection pass, in the order of the policies that refuse it.
pub fn misses(
    world: &World,
    isolation: &Isolation<'_>,
    pod: &PodView,
    from: End<'_>,
    to: End<'_>,
    (protocol, port): (Protocol, u16),
) -> Vec<Miss> {
    let flow = Flow { src: from.address, dst: to.address, protocol, port };
    let peer = if isolation.direction == Direction::Ingress { from.pod } else { to.pod };
    let ends = Ends { world, peer, address: flow.peer(isolation.direction), destination: to.pod, port };
    let mut all: Vec<Miss> = Vec::new();
    for policy in isolation.policies() {
        let count = policy.rules(isolation.direction).map_or(0, <[_]>::len);
        let miss = |rule| Miss { policy: policy.key.clone(), rule, peer: false, port: false };
        all.extend((0..count).map(miss));
    }
    for (permit, origin) in isolation.permits(pod) {
        let miss = all.iter_mut().find(|miss| miss.policy == origin.policy && miss.rule == origin.rule);
        if let Some(miss) = miss {
            miss.peer |= permit.is_at_peer(&flow, isolation.direction, &ends);
            miss.port |= permit.is_at_port(&flow, &ends);
        }
    }
    all
}

/// A rule that does not let a connection pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// The policy.
    pub policy: ObjectKey,
    /// The rule's place.
    pub rule: usize,
    /// Whether the other end is one of its peers.
    pub peer: bool,
    /// Whether the port is one of its ports.
    pub port: bool,
}

/// Permits are asked about the Pods themselves, without sets.
struct Ends<'a> {
    world: &'a World,
    peer: Option<&'a PodView>,
    address: IpAddr,
    destination: Option<&'a PodView>,
    port: u16,
}

impl Lookup for Ends<'_> {
    fn is_one_of(&self, peer: &Arc<Peer>) -> bool {
        match &**peer {
            Peer::Pods(set) => self.peer.is_some_and(|pod| self.world.is_in(set, pod)),
            Peer::Nodes(select) => self.world.nodes_of(select).any(|address| address == self.address),
            Peer::Block(_) => false,
        }
    }

    fn has_port(&self, protocol: Protocol, name: &str) -> bool {
        self.destination.is_some_and(|pod| pod.numbers(protocol, name).any(|number| number == self.port))
    }
}
