//! Addresses that a node answers for although no link has them: those of Services of type LoadBalancer, on the network
//! that the host and all nodes share.
//!
//! A local route is all it takes: the kernel then answers ARP for the address, and what no rule forwards is refused as on
//! any address of the node. The routes live in the node's namespace and go with it. The kernel's table is the record:
//! local routes that the kernel did not make itself are ours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};

use crate::error::{Errors, Result, Teardown};
use crate::message;
use crate::netlink::Netlink;
use crate::netns::within;
use crate::peers::{address_of, own_link, routes};

/// The addresses that a node answers for.
pub struct AnsweredAddresses {
    netlink: Netlink,
    /// Index of the node's interface.
    link: u32,
    /// The node's own address.
    node: IpAddr,
    known: BTreeSet<IpAddr>,
}

impl AnsweredAddresses {
    /// Takes charge of what a node that is set up (see [`crate::NodeNetwork`]) answers for, whatever an earlier life left
    /// of it. Blocking.
    ///
    /// # Errors
    /// When the node has no interface or its routes cannot be read.
    pub fn open(node_netns: BorrowedFd<'_>, node: IpAddr) -> Result<Self> {
        let mut netlink = within(node_netns, Netlink::open)?;
        let link = own_link(&mut netlink)?;
        let known = routes(&mut netlink)?.iter().filter_map(ours).collect();
        Ok(Self { netlink, link, node, known })
    }

    /// Answers for these addresses of the node's family and for no others. An address that the kernel refuses is tried
    /// again at the next call. Blocking.
    ///
    /// # Errors
    /// All addresses that could not be changed; the others are.
    pub fn sync(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), Errors> {
        let mut failures = Teardown::default();
        let wanted: BTreeSet<IpAddr> =
            wanted.iter().filter(|address| address.is_ipv4() == self.node.is_ipv4()).copied().collect();
        let gone: Vec<IpAddr> = self.known.difference(&wanted).copied().collect();
        let new: Vec<IpAddr> = wanted.difference(&self.known).copied().collect();
        for address in gone {
            let removed = self.netlink.apply(&[message::no_answer_for(address)]);
            if removed.is_ok() {
                self.known.remove(&address);
            }
            failures.step(removed);
        }
        for address in new {
            let made = self.netlink.apply(&[message::answer_for(self.link, address, self.node)]);
            if made.is_ok() {
                self.known.insert(address);
            }
            failures.step(made);
        }
        failures.finish()
    }
}

/// The address of a local route of ours.
fn ours(route: &RouteMessage) -> Option<IpAddr> {
    let made = route.header.table == message::LOCAL_TABLE && route.header.protocol == RouteProtocol::Static;
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    });
    to.filter(|_| made)
}
