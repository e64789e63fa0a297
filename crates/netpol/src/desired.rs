//! What the node should hold: sets of peers, profiles, and each isolated address' profile.
//!
//! A profile is what one direction of a Pod permits. Pods with the same permits share one, whatever policies they come
//! from; peers chosen by the same selectors share one set.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft::Protocol;

use crate::model::{Peer, PodView, Policy, Port, Rule, World};

/// The way of a connection as a Pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the Pod.
    Ingress,
    /// From the Pod.
    Egress,
}

/// One reason to let a connection pass: both conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permit {
    /// Who is at the other end; none: whoever.
    pub peer: Option<Arc<Peer>>,
    /// The destination's port; none: whichever.
    pub port: Option<Port>,
}

/// What one direction of a Pod permits; nothing else passes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// Which one.
    pub direction: Direction,
    /// In order, without doubles.
    pub permits: Vec<Permit>,
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
            let policies: Vec<&Policy> =
                world.policies.values().filter(|p| p.key.namespace == *namespace).collect();
            for pod in world.pods_in(namespace).filter(|pod| pod.local) {
                let selecting: Vec<&Policy> =
                    policies.iter().copied().filter(|policy| policy.subject.matches(&pod.labels)).collect();
                for direction in [Direction::Ingress, Direction::Egress] {
                    let Some(profile) = compiler.profile(direction, &selecting, pod) else { continue };
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

    /// Whether a new connection may be made, on the addresses that are left once Services are translated.
    pub fn allows(&self, src: IpAddr, dst: IpAddr, protocol: Protocol, port: u16) -> bool {
        let permitted = |direction, own, peer| {
            let profile = self.profiles.get(&(direction, own));
            profile.is_none_or(|profile| {
                profile.permits.iter().any(|permit| self.permits(permit, peer, dst, protocol, port))
            })
        };
        permitted(Direction::Egress, src, dst) && permitted(Direction::Ingress, dst, src)
    }

    fn permits(&self, permit: &Permit, peer: IpAddr, dst: IpAddr, protocol: Protocol, port: u16) -> bool {
        let at_peer = permit.peer.as_ref().is_none_or(|wanted| match &**wanted {
            Peer::Block(ranges) => ranges.iter().any(|range| range.contains(peer)),
            Peer::Pods(_) => match self.sets.get(&SetKey::Peer(wanted.clone())) {
                Some(Members::Addresses(addresses)) => addresses.contains(&peer),
                _ => false,
            },
        });
        let at_port = permit.port.as_ref().is_none_or(|wanted| match wanted {
            Port::Any(own) => *own == protocol,
            Port::Range(own, first, last) => *own == protocol && (*first..=*last).contains(&port),
            Port::Named(own, name) => match self.sets.get(&SetKey::Port(*own, name.clone())) {
                Some(Members::Ports(ports)) => *own == protocol && ports.contains(&(dst, port)),
                _ => false,
            },
        });
        at_peer && at_port
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
    made: BTreeMap<(Direction, Vec<&'a client::ObjectKey>), Arc<Profile>>,
    profiles: BTreeSet<Arc<Profile>>,
}

impl<'a> Compiler<'a> {
    /// The profile of a Pod under these policies; none when none of them isolates it in that direction.
    fn profile(
        &mut self,
        direction: Direction,
        policies: &[&'a Policy],
        pod: &PodView,
    ) -> Option<Arc<Profile>> {
        let isolating: Vec<(&'a client::ObjectKey, &'a Vec<Rule>)> =
            policies.iter().filter_map(|policy| Some((&policy.key, rules(policy, direction)?))).collect();
        if isolating.is_empty() {
            return None;
        }
        let rules = || isolating.iter().flat_map(|(_, rules)| rules.iter());
        // Of the destination's own port names the profile has the numbers, which other Pods may not share.
        let own_names = direction == Direction::Ingress
            && rules().any(|rule| rule.ports.iter().flatten().any(|port| matches!(port, Port::Named(..))));
        let id = (direction, isolating.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        if !own_names && let Some(made) = self.made.get(&id) {
            return Some(made.clone());
        }
        let permits: BTreeSet<Permit> = rules().flat_map(|rule| permits(rule, direction, pod)).collect();
        let profile = Arc::new(Profile { direction, permits: permits.into_iter().collect() });
        let profile = self.profiles.get(&profile).cloned().unwrap_or(profile);
        self.profiles.insert(profile.clone());
        if !own_names {
            self.made.insert(id, profile.clone());
        }
        Some(profile)
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&Vec<Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

fn permits(rule: &Rule, direction: Direction, pod: &PodView) -> Vec<Permit> {
    let ports: Vec<Option<Port>> = match &rule.ports {
        None => vec![None],
        Some(ports) => ports.iter().flat_map(|port| resolved(port, direction, pod)).map(Some).collect(),
    };
    let peers: Vec<Option<Arc<Peer>>> = match &rule.peers {
        None => vec![None],
        Some(peers) => peers.iter().cloned().map(Some).collect(),
    };
    let pair = |peer: &Option<Arc<Peer>>| {
        let peer = peer.clone();
        ports.iter().map(move |port| Permit { peer: peer.clone(), port: port.clone() }).collect::<Vec<_>>()
    };
    peers.iter().flat_map(pair).collect()
}

/// The numbers that a destination gives a name; names of other destinations stay names.
fn resolved(port: &Port, direction: Direction, pod: &PodView) -> Vec<Port> {
    match (port, direction) {
        (Port::Named(protocol, name), Direction::Ingress) => {
            let own = pod.ports.iter().filter(|(p, n, _)| p == protocol && n == name);
            own.map(|(protocol, _, number)| Port::Range(*protocol, *number, *number)).collect()
        }
        _ => vec![port.clone()],
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
