//! What the node should hold: sets of peers, profiles, and each isolated address' profile.
//!
//! A profile is what one direction of a Pod permits. Pods with the same permits share one, whatever policies they come
//! from; peers chosen by the same selectors share one set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft::Protocol;

use crate::isolation::Isolation;
use crate::model::{Peer, PodView, Port, World};
use crate::permit::{Direction, Flow, Lookup, Permit};
use crate::range::{Range, union};
use crate::track::{Changes, Tracker};

/// What one direction of a Pod permits; nothing else passes, unless it is audited only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// Which one.
    pub direction: Direction,
    /// In order, without doubles.
    pub permits: Vec<Permit>,
    /// What is not permitted passes all the same and is told.
    pub audit: bool,
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
            profile.is_none_or(|profile| {
                profile.audit || profile.permits.iter().any(|permit| permit.admits(flow, direction, &sets))
            })
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

/// Profiles made so far, by the policies that they come from.
#[derive(Default)]
pub(crate) struct Compiler<'a> {
    made: BTreeMap<(Direction, bool, Vec<&'a client::ObjectKey>), Arc<Profile>>,
    profiles: BTreeSet<Arc<Profile>>,
}

impl<'a> Compiler<'a> {
    /// One that shares profiles that are there already.
    pub(crate) fn knowing(profiles: impl Iterator<Item = Arc<Profile>>) -> Self {
        Self { profiles: profiles.collect(), ..Self::default() }
    }

    /// What a Pod's isolation comes to.
    pub(crate) fn profile(&mut self, isolation: &Isolation<'a>, pod: &PodView) -> Arc<Profile> {
        let (direction, audit) = (isolation.direction, isolation.is_audit());
        let rules = || isolation.policies().flat_map(|policy| policy.rules(direction).into_iter().flatten());
        // Of the destination's own port names the profile has the numbers, which other Pods may not share.
        let own_names = direction == Direction::Ingress
            && rules().any(|rule| rule.ports.iter().flatten().any(|port| matches!(port, Port::Named(..))));
        let id = (direction, audit, isolation.policies().map(|policy| &policy.key).collect::<Vec<_>>());
        if !own_names && let Some(made) = self.made.get(&id) {
            return made.clone();
        }
        let permits = merged(isolation.permits(pod).map(|(permit, _)| permit));
        let profile = Arc::new(Profile { direction, permits, audit });
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
