//! Who may talk to whom: all Pods' isolations, read once, and asked about every pair.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use client::ObjectKey;
use nft::Protocol;
use serde::Serialize;

use crate::isolation::Isolation;
use crate::model::{PodView, World};
use crate::permit::Direction;
use crate::verdict::{Decision, End, decision};

/// Stands for all addresses that no object names (RFC 5737 and RFC 3849 keep them for documentation).
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A port that is asked about.
pub type Asked = (Protocol, u16);

/// A Pod with what isolates it, or the world outside.
#[derive(Debug)]
pub struct Party<'a> {
    /// None: outside.
    pub pod: Option<&'a PodView>,
    egress: Option<Isolation<'a>>,
    ingress: Option<Isolation<'a>>,
}

impl<'a> Party<'a> {
    /// A Pod.
    pub fn of(world: &'a World, pod: &'a PodView) -> Self {
        let isolation = |direction| Isolation::of(world, pod, direction);
        Self { pod: Some(pod), egress: isolation(Direction::Egress), ingress: isolation(Direction::Ingress) }
    }

    /// The world outside of the cluster.
    pub fn outside() -> Self {
        Self { pod: None, egress: None, ingress: None }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.pod.map_or_else(|| "outside".to_owned(), |pod| pod.key.to_string())
    }

    /// What one of its directions says of a connection between two ends.
    pub fn decision(
        &self,
        world: &World,
        direction: Direction,
        (from, to): (End<'_>, End<'_>),
        asked: Asked,
    ) -> Decision {
        let isolation = if direction == Direction::Ingress { &self.ingress } else { &self.egress };
        match self.pod {
            None => Decision::NoPod,
            Some(pod) => decision(world, isolation.as_ref(), pod, from, to, asked),
        }
    }
}

/// The ends of a connection between two parties; none when they share no family.
pub fn ends<'a>(from: &Party<'a>, to: &Party<'a>) -> Option<(End<'a>, End<'a>)> {
    let outside = |v4: bool| -> End<'a> {
        let address: IpAddr = if v4 { OUTSIDE.0.into() } else { OUTSIDE.1.into() };
        End { address, pod: None, is_node: false }
    };
    match (from.pod, to.pod) {
        (Some(from), Some(to)) => {
            let to = from.addresses.iter().find_map(|own| End::of(to, *own))?;
            Some((End::of(from, to.address)?, to))
        }
        (Some(pod), None) => {
            let own = End::of(pod, *pod.addresses.first()?)?;
            Some((own, outside(own.address.is_ipv4())))
        }
        (None, Some(pod)) => {
            let own = End::of(pod, *pod.addresses.first()?)?;
            Some((outside(own.address.is_ipv4()), own))
        }
        (None, None) => None,
    }
}

/// Whether a connection passes both sides.
pub fn passes(world: &World, from: &Party<'_>, to: &Party<'_>, asked: Asked) -> bool {
    let Some(ends) = ends(from, to) else { return true };
    from.decision(world, Direction::Egress, ends, asked).allows()
        && to.decision(world, Direction::Ingress, ends, asked).allows()
}

/// The ports worth asking about at a destination: those that its containers name, else 80.
pub fn ports_of(to: &Party<'_>) -> Vec<Asked> {
    let declared = to.pod.iter().flat_map(|pod| &pod.ports);
    let all: BTreeSet<Asked> = declared.map(|(protocol, _, number)| (*protocol, *number)).collect();
    if all.is_empty() { vec![(Protocol::Tcp, 80)] } else { all.into_iter().collect() }
}

/// `80`, `53/udp`.
pub fn port_name((protocol, number): Asked) -> String {
    match protocol {
        Protocol::Tcp => number.to_string(),
        Protocol::Udp => format!("{number}/udp"),
        Protocol::Sctp => format!("{number}/sctp"),
    }
}

/// What of a destination a source reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// The destination.
    pub to: String,
    /// Ports that it reaches.
    pub open: Vec<String>,
    /// Ports that it does not.
    pub closed: Vec<String>,
}

/// A source and all it reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The source.
    pub from: String,
    /// Every destination but itself, in the order of the rows.
    pub cells: Vec<Cell>,
}

/// The table of some namespaces' Pods, and the world outside. `port` is what is asked about instead of the ports that
/// the destination's containers name.
pub fn matrix(world: &World, of: impl Fn(&ObjectKey) -> bool, port: Option<Asked>) -> Vec<Row> {
    let pods = world.pods.values().filter(|pod| of(&pod.key));
    let mut parties: Vec<Party<'_>> = pods.map(|pod| Party::of(world, pod)).collect();
    parties.push(Party::outside());
    let cell = |from: &Party<'_>, to: &Party<'_>| {
        let asked = port.map_or_else(|| ports_of(to), |port| vec![port]);
        let (open, closed): (Vec<Asked>, Vec<Asked>) =
            asked.into_iter().partition(|asked| passes(world, from, to, *asked));
        let names = |ports: Vec<Asked>| ports.into_iter().map(port_name).collect();
        Cell { to: to.name(), open: names(open), closed: names(closed) }
    };
    let row = |(at, from): (usize, &Party<'_>)| {
        let others = parties.iter().enumerate().filter(|(other, _)| *other != at);
        Row { from: from.name(), cells: others.map(|(_, to)| cell(from, to)).collect() }
    };
    parties.iter().enumerate().map(row).collect()
}
