//! Routes to the Pods of the other nodes: each node's range goes by that node's address on the network that all nodes
//! share, so that a packet between Pods keeps both of its addresses all the way.
//!
//! The kernel's table is the record: a route by way of a gateway to anything but everywhere is ours, since nothing else
//! routes in a node's namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use nix::errno::Errno;

use crate::error::{Error, Errors, Result, Teardown};
use crate::message::{self, Route};
use crate::names::INSIDE;
use crate::netlink::Netlink;
use crate::netns::within;

/// Pods' ranges and the addresses of their nodes.
pub type Peers = BTreeMap<IpNet, IpAddr>;

/// A node's routes to its peers' Pods.
pub struct PeerRoutes {
    netlink: Netlink,
    /// Index of the node's interface.
    link: u32,
    known: Peers,
}

impl PeerRoutes {
    /// Takes charge of the routes of a node that is set up (see [`crate::NodeNetwork`]), whatever an earlier life left
    /// of them. Blocking.
    ///
    /// # Errors
    /// When the node has no interface or its routes cannot be read.
    pub fn open(node_netns: BorrowedFd<'_>) -> Result<Self> {
        let mut netlink = within(node_netns, Netlink::open)?;
        let link = own_link(&mut netlink)?;
        let known = routes(&mut netlink)?.iter().filter_map(|route| by_gateway(route, link)).collect();
        Ok(Self { netlink, link, known })
    }

    /// Brings the routes to what is wanted. A peer whose route the kernel refuses is tried again at the next call.
    /// Blocking.
    ///
    /// # Errors
    /// All routes that could not be changed; the others are.
    pub fn sync(&mut self, wanted: &Peers) -> Result<(), Errors> {
        let mut failures = Teardown::default();
        let (gone, new) = difference(&self.known, wanted);
        for range in gone {
            let removed = self.netlink.apply(&[message::delete_range(range)]);
            if removed.is_ok() {
                self.known.remove(&range);
            }
            failures.step(removed);
        }
        for (range, via) in new {
            let route = message::route(&Route { to: range, link: self.link, via: Some(via) });
            let made = self.netlink.apply(&[route]);
            if made.is_ok() {
                self.known.insert(range, via);
            }
            failures.step(made);
        }
        failures.finish()
    }
}

/// Index of the node's interface.
pub(crate) fn own_link(netlink: &mut Netlink) -> Result<u32> {
    let missing = Error::Refused { what: format!("find {INSIDE} of the node"), errno: Errno::ENODEV };
    Ok(netlink.link(INSIDE)?.ok_or(missing)?.index)
}

/// All routes of the namespace.
pub(crate) fn routes(netlink: &mut Netlink) -> Result<Vec<RouteMessage>> {
    let answers = netlink.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let routes = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    Ok(routes.collect())
}

/// What has to go and what has to come, or to come anew by another way.
fn difference(known: &Peers, wanted: &Peers) -> (Vec<IpNet>, Vec<(IpNet, IpAddr)>) {
    let gone = known.keys().filter(|range| !wanted.contains_key(range)).copied().collect();
    let new = wanted.iter().filter(|(range, via)| known.get(range) != Some(via));
    (gone, new.map(|(range, via)| (*range, *via)).collect())
}

/// The network and the gateway of a route of ours.
fn by_gateway(route: &RouteMessage, link: u32) -> Option<(IpNet, IpAddr)> {
    let (mut to, mut via, mut out) = (None, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = address_of(address),
            RouteAttribute::Gateway(address) => via = address_of(address),
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    let ours = route.header.table == RouteHeader::RT_TABLE_MAIN && out == Some(link);
    let range = IpNet::new(to?, route.header.destination_prefix_length).ok()?;
    Some((range, via?)).filter(|_| ours && range.prefix_len() > 0)
}

pub(crate) fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(rows: &[(&str, &str)]) -> Peers {
        rows.iter().filter_map(|(range, via)| Some((range.parse().ok()?, via.parse().ok()?))).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let known = peers(&[("10.244.1.0/24", "192.168.49.3"), ("10.244.2.0/24", "192.168.49.4")]);
        let wanted = peers(&[("10.244.1.0/24", "192.168.49.3"), ("10.244.3.0/24", "192.168.49.4")]);
        let (gone, new) = difference(&known, &wanted);
        assert_eq!(gone, peers(&[("10.244.2.0/24", "192.168.49.4")]).into_keys().collect::<Vec<_>>());
        assert_eq!(new, peers(&[("10.244.3.0/24", "192.168.49.4")]).into_iter().collect::<Vec<_>>());
        assert_eq!(difference(&known, &known), (vec![], vec![]));
        let moved = peers(&[("10.244.1.0/24", "192.168.49.9"), ("10.244.2.0/24", "192.168.49.4")]);
        let (gone, new) = difference(&known, &moved);
        assert!(
            gone.is_empty()
                && new == peers(&[("10.244.1.0/24", "192.168.49.9")]).into_iter().collect::<Vec<_>>()
        );
    }
}
