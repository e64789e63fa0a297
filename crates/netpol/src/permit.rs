//! What a profile or an explanation is made of: one reason to let a connection pass, and the connection it is asked about.

use std::net::IpAddr;
use std::sync::Arc;

use nft::Protocol;

use crate::model::{Peer, Port};

/// The way of a connection as a Pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the Pod.
    Ingress,
    /// From the Pod.
    Egress,
}

impl Direction {
    /// Both, in the order of what a connection passes.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The API's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// One reason to let a connection pass: both conditions hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permit {
    /// Who is at the other end; none: whoever.
    pub peer: Option<Arc<Peer>>,
    /// The destination's port; none: whichever.
    pub port: Option<Port>,
}

/// A new connection on the addresses that are left once Services are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who asks.
    pub src: IpAddr,
    /// Who is asked.
    pub dst: IpAddr,
    /// How.
    pub protocol: Protocol,
    /// Where.
    pub port: u16,
}

impl Flow {
    /// The other end, as the Pod sees it that it passes in this direction.
    pub fn peer(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.src,
            Direction::Egress => self.dst,
        }
    }

    /// The Pod's own end.
    pub fn own(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.dst,
            Direction::Egress => self.src,
        }
    }
}

/// What a permit cannot know by itself.
pub(crate) trait Lookup {
    /// Whether the other end is one of the peer's Pods or nodes.
    fn is_one_of(&self, peer: &Arc<Peer>) -> bool;
    /// Whether the destination has a port of that name at the number that is asked for.
    fn has_port(&self, protocol: Protocol, name: &str) -> bool;
}

impl Permit {
    /// Whether it lets a connection pass.
    pub(crate) fn admits(&self, flow: &Flow, direction: Direction, lookup: &impl Lookup) -> bool {
        self.is_at_peer(flow, direction, lookup) && self.is_at_port(flow, lookup)
    }

    pub(crate) fn is_at_peer(&self, flow: &Flow, direction: Direction, lookup: &impl Lookup) -> bool {
        self.peer.as_ref().is_none_or(|wanted| match &**wanted {
            Peer::Block(ranges) => ranges.iter().any(|range| range.contains(flow.peer(direction))),
            Peer::Pods(_) | Peer::Nodes(_) => lookup.is_one_of(wanted),
        })
    }

    pub(crate) fn is_at_port(&self, flow: &Flow, lookup: &impl Lookup) -> bool {
        self.port.as_ref().is_none_or(|wanted| match wanted {
            Port::Any(own) => *own == flow.protocol,
            Port::Range(own, first, last) => *own == flow.protocol && (*first..=*last).contains(&flow.port),
            Port::Named(own, name) => *own == flow.protocol && lookup.has_port(*own, name),
        })
    }
}
