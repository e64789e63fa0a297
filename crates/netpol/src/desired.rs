//! What the node should hold: sets of peers, profiles, and each isolated address' profile.
//!
//! A profile is what one direction of a Pod permits. Pods with the same permits share one, whatever policies they come
//! from; peers chosen by the same selectors share one set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft::Protocol;

use crate::cluster::{Action, Tier};
use crate::isolation::{Isolation, Step, Unpermitted};
use crate::model::{Peer, PodView, Port, World};
use crate::permit::{Direction, Flow, Lookup, Permit};
use crate::range::{Range, union};
use crate::track::{Changes, Tracker};

/// What becomes of the connections of one direction of a Pod: the first of these that means one decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// Which one.
    pub direction: Direction,
    /// The cluster's rules of tier Admin, in order.
    pub admin: Vec<Step>,
    /// What NetworkPolicies permit, without doubles.
    pub permits: Vec<Permit>,
    /// What they do with the rest.
    pub unpermitted: Unpermitted,
    /// The cluster's rules of tier Baseline, in order.
    pub baseline: Vec<Step>,
}

impl Profile {
    /// Whether some rule leaves connections to what comes after tier Admin.
    pub fn passes(&self) -> bool {
        self.admin.iter().any(|step| step.action == Action::Pass)
    }

    /// Whether somebody may be refused for being somebody: then more of them mean that less is allowed.
    pub fn denies(&self) -> bool {
        self.admin.iter().chain(&self.baseline).any(|step| step.action != Action::Accept)
    }

    /// All that connections are held against.
    pub fn all_permits(&self) -> impl Iterator<Item = &Permit> {
        let steps = self.admin.iter().chain(&self.baseline).map(|step| &step.permit);
        steps.chain(&self.permits)
    }

    /// Whether a connection passes.
    fn admits(&self, is_meant: impl Fn(&Permit) -> bool) -> bool {
        let first = |steps: &[Step]| steps.iter().find(|step| is_meant(&step.permit)).map(|step| step.action);
        match first(&self.admin) {
            Some(Action::Accept) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) | None => {}
        }
        if self.permits.iter().any(&is_meant) {
            return true;
        }
        self.unpermitted != Unpermitted::Dropped && first(&self.baseline) != Some(Action::Deny)
    }
}

/// What identifies a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKey {
    /// The addresses of a peer.
    Peer(Arc<Peer>),
    /// Where every Pod that has a port of that name has it.
    Port(Protocol, String),
}

/// What is in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// Pods' addresses.
    Addresses(BTreeSet<IpAddr>),
    /// The identity says it.
    Block,
    /// Addresses and ports of destinations.
    Ports(BTreeSet<(IpAddr, u16)>),
}

/// All that the node should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Sets that profiles refer to.
    pub sets: BTreeMap<SetKey, Members>,
    /// The profiles of isolated local addresses.
    pub profiles: BTreeMap<(Direction, IpAddr), Arc<Profile>>,
}

impl Desired {
    /// From all that verdicts depend on.
    pub fn of(world: &World) -> Self {
        let mut tracker = Tracker::default();
        tracker.follow(world, &Changes::all(world));
        tracker.into_desired()
    }

    /// Whether a new connection may be made.
    pub fn allows(&self, flow: &Flow) -> bool {
        Direction::BOTH.into_iter().all(|direction| {
            let profile = self.profiles.get(&(direction, flow.own(direction)));
            let sets = Sets { desired: self, flow, direction };
            profile.is_none_or(|profile| profile.admits(|permit| permit.admits(flow, direction, &sets)))
        })
    }
}

/// Permits are asked about addresses, by the sets that the kernel has.
struct Sets<'a> {
    desired: &'a Desired,
    flow: &'a Flow,
    direction: Direction,
}

impl Lookup for Sets<'_> {
    fn is_one_of(&self, peer: &Arc<Peer>) -> bool {
        match self.desired.sets.get(&SetKey::Peer(peer.clone())) {
            Some(Members::Addresses(addresses)) => addresses.contains(&self.flow.peer(self.direction)),
            _ => false,
        }
    }

    fn has_port(&self, protocol: Protocol, name: &str) -> bool {
        match self.desired.sets.get(&SetKey::Port(protocol, name.to_owned())) {
            Some(Members::Ports(ports)) => ports.contains(&(self.flow.dst, self.flow.port)),
            _ => false,
        }
    }
}

impl Permit {
    /// The sets that it looks into.
    pub fn sets(&self) -> impl Iterator<Item = SetKey> {
        let peer = self.peer.clone().map(SetKey::Peer);
        let port = match &self.port {
            Some(Port::Named(protocol, name)) => Some(SetKey::Port(*protocol, name.clone())),
            _ => None,
        };
        peer.into_iter().chain(port)
    }
}

/// All that a profile follows from.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sources<'a> {
    direction: Direction,
    unpermitted: Unpermitted,
    policies: Vec<&'a client::ObjectKey>,
    cluster_policies: Vec<&'a str>,
}

/// Profiles made so far, by the policies that they come from.
#[derive(Default)]
pub(crate) struct Compiler<'a> {
    made: BTreeMap<Sources<'a>, Arc<Profile>>,
    profiles: BTreeSet<Arc<Profile>>,
}

impl<'a> Compiler<'a> {
    /// One that shares profiles that are there already.
    pub(crate) fn knowing(profiles: impl Iterator<Item = Arc<Profile>>) -> Self {
        Self { profiles: profiles.collect(), ..Self::default() }
    }

    /// What a Pod's isolation comes to.
    pub(crate) fn profile(&mut self, isolation: &Isolation<'a>, pod: &PodView) -> Arc<Profile> {
        let (direction, unpermitted) = (isolation.direction, isolation.unpermitted());
        let rules = isolation.policies().flat_map(|policy| policy.rules(direction).into_iter().flatten());
        let of_cluster = || [Tier::Admin, Tier::Baseline].into_iter().flat_map(|t| isolation.tiers.tier(t));
        let cluster_rules = of_cluster().flat_map(|policy| policy.rules(direction));
        let mut ports = rules.flat_map(|rule| &rule.ports).chain(cluster_rules.flat_map(|rule| &rule.ports));
        // Of the destination's own port names the profile has the numbers, which other Pods may not share.
        let own_names = direction == Direction::Ingress
            && ports.any(|ports| ports.iter().any(|port| matches!(port, Port::Named(..))));
        let id = Sources {
            direction,
            unpermitted,
            policies: isolation.policies().map(|policy| &policy.key).collect(),
            cluster_policies: of_cluster().map(|policy| policy.name.as_str()).collect(),
        };
        if !own_names && let Some(made) = self.made.get(&id) {
            return made.clone();
        }
        let steps = |tier| isolation.steps(tier, pod).map(|(step, _)| step).collect();
        let profile = Arc::new(Profile {
            direction,
            admin: steps(Tier::Admin),
            permits: merged(isolation.permits(pod).map(|(permit, _)| permit)),
            unpermitted,
            baseline: steps(Tier::Baseline),
        });
        let profile = self.profiles.get(&profile).cloned().unwrap_or(profile);
        self.profiles.insert(profile.clone());
        if !own_names {
            self.made.insert(id, profile.clone());
        }
        profile
    }
}

/// The same permits without doubles, all blocks of a port as one: a packet looks into one set, however many there are.
fn merged(permits: impl Iterator<Item = Permit>) -> Vec<Permit> {
    let mut all = BTreeSet::new();
    let mut blocks: BTreeMap<Option<Port>, Vec<Range>> = BTreeMap::new();
    for permit in permits {
        match permit.peer.as_deref() {
            Some(Peer::Block(ranges)) => blocks.entry(permit.port).or_default().extend(ranges),
            _ => drop(all.insert(permit)),
        }
    }
    let unions = blocks.into_iter().map(|(port, ranges)| (port, union(ranges)));
    let unions = unions.filter(|(_, ranges)| !ranges.is_empty());
    all.extend(unions.map(|(port, ranges)| Permit { peer: Some(Arc::new(Peer::Block(ranges))), port }));
    all.into_iter().collect()
}

/// What is in a set.
pub(crate) fn members(key: &SetKey, world: &World) -> Members {
    match key {
        SetKey::Peer(peer) => match &**peer {
            Peer::Block(_) => Members::Block,
            Peer::Nodes(select) => Members::Addresses(world.nodes_of(select).collect()),
            Peer::Pods(set) => {
                Members::Addresses(world.pods_of(set).flat_map(|pod| pod.addresses.iter().copied()).collect())
            }
        },
        SetKey::Port(protocol, name) => {
            let sockets = world.pods.values().flat_map(|pod| {
                pod.numbers(*protocol, name)
                    .flat_map(|number| pod.addresses.iter().map(move |addr| (*addr, number)))
            });
            Members::Ports(sockets.collect())
        }
    }
}
