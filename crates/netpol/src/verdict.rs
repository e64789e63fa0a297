//! Whether a connection may be made, and which object says so.
//!
//! The same permits that the kernel's rules are made from are asked one by one, so that the answer has their origin.

use std::net::IpAddr;
use std::sync::Arc;

use client::ObjectKey;
use nft::Protocol;

use crate::isolation::{Isolation, Origin};
use crate::model::{Peer, PodView, World};
use crate::permit::{Direction, Flow, Lookup};

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The Pod that has it, if it is one of the Pod network.
    pub pod: Option<&'a PodView>,
}

impl<'a> End<'a> {
    /// A Pod's end: its address of the family that `other` has, if it has one.
    pub fn of(pod: &'a PodView, other: IpAddr) -> Option<Self> {
        let address = pod.addresses.iter().find(|own| own.is_ipv4() == other.is_ipv4())?;
        Some(Self { address: *address, pod: Some(pod) })
    }
}

/// What one direction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This end is no Pod of the Pod network, so no policy speaks of it.
    NoPod,
    /// No policy selects the Pod in this direction.
    Open,
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
        !matches!(self, Self::Refused(_))
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
    let flow = Flow { src: from.address, dst: to.address, protocol, port };
    let peer = if isolation.direction == Direction::Ingress { from.pod } else { to.pod };
    let ends = Ends { world, peer, destination: to.pod, port };
    let deciding =
        isolation.permits(pod).find(|(permit, _)| permit.admits(&flow, isolation.direction, &ends));
    if let Some((_, origin)) = deciding {
        return Decision::Permitted(origin);
    }
    let refusing = isolation.refusing().iter().map(|policy| policy.key.clone()).collect();
    if isolation.is_audit() { Decision::Audited(refusing) } else { Decision::Refused(refusing) }
}

/// Permits are asked about the Pods themselves, without sets.
struct Ends<'a> {
    world: &'a World,
    peer: Option<&'a PodView>,
    destination: Option<&'a PodView>,
    port: u16,
}

impl Lookup for Ends<'_> {
    fn is_one_of(&self, peer: &Arc<Peer>) -> bool {
        match &**peer {
            Peer::Pods(set) => self.peer.is_some_and(|pod| self.world.is_in(set, pod)),
            Peer::Block(_) => false,
        }
    }

    fn has_port(&self, protocol: Protocol, name: &str) -> bool {
        let ports = self.destination.iter().flat_map(|pod| &pod.ports);
        ports.into_iter().any(|(p, n, number)| *p == protocol && n == name && *number == self.port)
    }
}
