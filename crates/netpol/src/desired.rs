//! What the node should hold: sets of peers, profiles, and each isolated address' profile.
//!
//! A profile is what one direction of a Pod permits. Pods with the same permits share one, whatever policies they come
//! from; peers chosen by the same selectors share one set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft::Protocol;

use crate::isolation::Isolation;
use crate::model::{Peer, PodView, Policy, Port, World};
use crate::permit::{Direction, Flow, Lookup, Permit};

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
        let mut desired = Self::default();
        let mut compiler = Compiler::default();
        for namespace in world.policies.values().map(|policy| &policy.key.namespace).collect::<BTreeSet<_>>()
        {
            let policies: Vec<&Policy> = world.policies_in(namespace).collect();
            for pod in world.pods_in(namespace).filter(|pod| pod.local) {
                for direction in Direction::BOTH {
                    let isolation = Isolation::among(policies.iter().copied(), pod, direction);
                    let Some(isolation) = isolation else { continue };
                    let profile = compiler.profile(&isolation, pod);
                    for addr in &pod.addresses {
                        desired.profiles.insert((direction, *addr), profile.clone());
                    }
                }
            }
        }
        let used: BTreeSet<&Arc<Profile>> = desired.profiles.values().collect();
        let keys: BTreeSet<SetKey> =
            used.into_iter().flat_map(|profile| profile.permits.iter().flat_map(Permit::sets)).collect();
        desired.sets = keys.into_iter().map(|key| (key.clone(), members(&key, world))).collect();
        desired
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
struct Compiler<'a> {
    made: BTreeMap<(Direction, bool, Vec<&'a client::ObjectKey>), Arc<Profile>>,
    profiles: BTreeSet<Arc<Profile>>,
}

impl<'a> Compiler<'a> {
    /// What a Pod's isolation comes to.
    fn profile(&mut self, isolation: &Isolation<'a>, pod: &PodView) -> Arc<Profile> {
        let (direction, audit) = (isolation.direction, isolation.is_audit());
        let rules = || isolation.policies().flat_map(|policy| policy.rules(direction).into_iter().flatten());
        // Of the destination's own port names the profile has the numbers, which other Pods may not share.
        let own_names = direction == Direction::Ingress
            && rules().any(|rule| rule.ports.iter().flatten().any(|port| matches!(port, Port::Named(..))));
        let id = (direction, audit, isolation.policies().map(|policy| &policy.key).collect::<Vec<_>>());
        if !own_names && let Some(made) = self.made.get(&id) {
            return made.clone();
        }
        let permits: BTreeSet<Permit> = isolation.permits(pod).map(|(permit, _)| permit).collect();
        let profile = Arc::new(Profile { direction, permits: permits.into_iter().collect(), audit });
        let profile = self.profiles.get(&profile).cloned().unwrap_or(profile);
        self.profiles.insert(profile.clone());
        if !own_names {
            self.made.insert(id, profile.clone());
        }
        profile
    }
}

fn members(key: &SetKey, world: &World) -> Members {
    match key {
        SetKey::Peer(peer) => match &**peer {
            Peer::Block(_) => Members::Block,
            Peer::Pods(set) => {
                Members::Addresses(world.pods_of(set).flat_map(|pod| pod.addresses.iter().copied()).collect())
            }
        },
        SetKey::Port(protocol, name) => {
            let sockets = world.pods.values().flat_map(|pod| {
                let named = pod.ports.iter().filter(|(p, n, _)| p == protocol && n == name);
                named.flat_map(|(_, _, number)| pod.addresses.iter().map(|addr| (*addr, *number)))
            });
            Members::Ports(sockets.collect())
        }
    }
}
