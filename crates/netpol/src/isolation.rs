//! The one function that everything else is made from: the policies that isolate a Pod in a direction, and all that they
//! permit, each permit with the rule it comes from.
//!
//! The rule compiler ([`crate::desired`]) makes a profile of it, [`crate::verdict`] finds the permit that decides.
//!
//! A policy with the annotation [`crate::model::AUDIT`] permits what it permits and isolates nobody: where only such
//! policies select a Pod nothing is dropped, and what would be is told.

use std::fmt;
use std::sync::Arc;

use client::ObjectKey;

use crate::cluster::{Action, ClusterOrigin, ClusterPolicy, ClusterRule, Tier};
use crate::model::{Peer, PodView, Policy, Port, Rule, World};
use crate::permit::{Direction, Permit};

/// Where a permit comes from: a policy's rule, and which of its peers and ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The policy.
    pub policy: ObjectKey,
    /// Which of its directions.
    pub direction: Direction,
    /// The rule's place in that list.
    pub rule: usize,
    /// The peer's place in `from` or `to`; none: the rule names no peers.
    pub peer: Option<usize>,
    /// The port's place in `ports`; none: the rule names no ports.
    pub port: Option<usize>,
}

impl fmt::Display for Origin {
    /// As the fields are called in the object: `ingress[0].from[1], ports[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = if self.direction == Direction::Ingress { "from" } else { "to" };
        write!(f, "{}[{}]", self.direction.word(), self.rule)?;
        match (self.peer, self.port) {
            (Some(peer), Some(port)) => write!(f, ".{peers}[{peer}], ports[{port}]"),
            (Some(peer), None) => write!(f, ".{peers}[{peer}]"),
            (None, Some(port)) => write!(f, ".ports[{port}]"),
            (None, None) => Ok(()),
        }
    }
}

/// The cluster's policies in the order in which they are asked.
#[derive(Debug, Clone, Default)]
pub struct Tiers<'a> {
    /// Before NetworkPolicies.
    pub admin: Vec<&'a ClusterPolicy>,
    /// After them.
    pub baseline: Vec<&'a ClusterPolicy>,
}

impl<'a> Tiers<'a> {
    /// All of them.
    pub fn of(world: &'a World) -> Self {
        let mut all: Vec<&ClusterPolicy> = world.cluster_policies.values().collect();
        all.sort_by_key(|policy| (policy.priority, &policy.name));
        let (admin, baseline) = all.into_iter().partition(|policy| policy.tier == Tier::Admin);
        Self { admin, baseline }
    }

    /// Those that speak of one direction of a Pod.
    pub(crate) fn about(&self, world: &World, pod: &PodView, direction: Direction) -> Self {
        let of = |tier: &[&'a ClusterPolicy]| {
            let speak = |policy: &&&ClusterPolicy| {
                !policy.rules(direction).is_empty() && world.is_in(&policy.subject, pod)
            };
            tier.iter().filter(speak).copied().collect()
        };
        Self { admin: of(&self.admin), baseline: of(&self.baseline) }
    }

    /// Of one tier.
    pub fn tier(&self, tier: Tier) -> &[&'a ClusterPolicy] {
        match tier {
            Tier::Admin => &self.admin,
            Tier::Baseline => &self.baseline,
        }
    }
}

/// What one rule of the cluster's does with the connections that its permit means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// What it does.
    pub action: Action,
    /// With which.
    pub permit: Permit,
}

/// What becomes of connections that no NetworkPolicy permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unpermitted {
    /// They are dropped.
    Dropped,
    /// They are told, and go on.
    Told,
    /// No NetworkPolicy speaks of the Pod.
    Open,
}

/// The policies that speak of one direction of a Pod; never none of all kinds.
#[derive(Debug, Clone)]
pub struct Isolation<'a> {
    /// Which direction.
    pub direction: Direction,
    /// The cluster's.
    pub tiers: Tiers<'a>,
    /// Those that isolate the Pod.
    pub enforced: Vec<&'a Policy>,
    /// Those that would.
    pub audited: Vec<&'a Policy>,
}

impl<'a> Isolation<'a> {
    /// Of these policies, all of the Pod's namespace, those that speak of it, and of the cluster's those that do; none when
    /// the direction is open.
    pub fn among(
        policies: impl IntoIterator<Item = &'a Policy>,
        tiers: Tiers<'a>,
        pod: &PodView,
        direction: Direction,
    ) -> Option<Self> {
        let mut isolation = Self { direction, tiers, enforced: Vec::new(), audited: Vec::new() };
        for policy in policies {
            if policy.rules(direction).is_none() || !policy.subject.matches(&pod.labels) {
                continue;
            }
            let kind = if policy.audit { &mut isolation.audited } else { &mut isolation.enforced };
            kind.push(policy);
        }
        let Tiers { admin, baseline } = &isolation.tiers;
        let silent = isolation.policies().next().is_none() && admin.is_empty() && baseline.is_empty();
        (!silent).then_some(isolation)
    }

    /// Of all policies.
    pub fn of(world: &'a World, pod: &PodView, direction: Direction) -> Option<Self> {
        let tiers = Tiers::of(world).about(world, pod, direction);
        Self::among(world.policies_in(&pod.key.namespace), tiers, pod, direction)
    }

    /// Whether what is not permitted passes all the same, and is told.
    pub fn is_audit(&self) -> bool {
        self.enforced.is_empty()
    }

    /// What becomes of what is not permitted.
    pub fn unpermitted(&self) -> Unpermitted {
        match (self.enforced.is_empty(), self.audited.is_empty()) {
            (false, _) => Unpermitted::Dropped,
            (true, false) => Unpermitted::Told,
            (true, true) => Unpermitted::Open,
        }
    }

    /// The rules of a tier that speak of this Pod, in the order in which they are asked.
    pub fn steps<'s>(
        &'s self,
        tier: Tier,
        pod: &'s PodView,
    ) -> impl Iterator<Item = (Step, ClusterOrigin)> + 's {
        let direction = self.direction;
        self.tiers.tier(tier).iter().flat_map(move |policy| {
            let rules = policy.rules(direction).iter().enumerate();
            rules.flat_map(move |(number, rule)| {
                let origin = ClusterOrigin {
                    policy: policy.name.clone(),
                    tier,
                    direction,
                    rule: number,
                    name: rule.name.clone(),
                };
                steps(rule, direction, pod).into_iter().map(move |step| (step, origin.clone()))
            })
        })
    }

    /// The policies that refuse what is not permitted, or would.
    pub fn refusing(&self) -> &[&'a Policy] {
        if self.is_audit() { &self.audited } else { &self.enforced }
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &'a Policy> + '_ {
        self.enforced.iter().chain(&self.audited).copied()
    }

    /// All that is permitted to or from this Pod, in the order of policies and rules.
    pub fn permits<'s>(&'s self, pod: &'s PodView) -> impl Iterator<Item = (Permit, Origin)> + 's {
        let direction = self.direction;
        self.policies().flat_map(move |policy| {
            let rules = policy.rules(direction).into_iter().flatten().enumerate();
            rules.flat_map(move |(number, rule)| permits(policy, direction, number, rule, pod))
        })
    }
}

fn permits(
    policy: &Policy,
    direction: Direction,
    number: usize,
    rule: &Rule,
    pod: &PodView,
) -> Vec<(Permit, Origin)> {
    let ports: Vec<(Option<usize>, Option<Port>)> = match &rule.ports {
        None => vec![(None, None)],
        Some(ports) => {
            let numbered = ports.iter().enumerate();
            let numbers = numbered.flat_map(|(i, port)| {
                resolved(port, direction, pod).into_iter().map(move |port| (Some(i), Some(port)))
            });
            numbers.collect()
        }
    };
    let peers: Vec<(Option<usize>, Option<Arc<Peer>>)> = match &rule.peers {
        None => vec![(None, None)],
        Some(peers) => peers.iter().enumerate().map(|(i, peer)| (Some(i), Some(peer.clone()))).collect(),
    };
    let pairs = peers.iter().flat_map(|peer| ports.iter().map(move |port| (peer, port)));
    let both = pairs.map(|(peer, port)| {
        let origin =
            Origin { policy: policy.key.clone(), direction, rule: number, peer: peer.0, port: port.0 };
        (Permit { peer: peer.1.clone(), port: port.1.clone() }, origin)
    });
    both.collect()
}

fn steps(rule: &ClusterRule, direction: Direction, pod: &PodView) -> Vec<Step> {
    let ports: Vec<Option<Port>> = match &rule.ports {
        None => vec![None],
        Some(ports) => ports.iter().flat_map(|port| resolved(port, direction, pod)).map(Some).collect(),
    };
    let peers: Vec<Option<Arc<Peer>>> = match &rule.peers {
        None => vec![None],
        Some(peers) => peers.iter().cloned().map(Some).collect(),
    };
    let step = |peer: &Option<Arc<Peer>>, port: &Option<Port>| Step {
        action: rule.action,
        permit: Permit { peer: peer.clone(), port: port.clone() },
    };
    peers.iter().flat_map(|peer| ports.iter().map(move |port| step(peer, port))).collect()
}

/// The numbers that a destination gives a name; names of other destinations stay names.
fn resolved(port: &Port, direction: Direction, pod: &PodView) -> Vec<Port> {
    match (port, direction) {
        (Port::Named(protocol, name), Direction::Ingress) => {
            pod.numbers(*protocol, name).map(|number| Port::Range(*protocol, number, number)).collect()
        }
        _ => vec![port.clone()],
    }
}
