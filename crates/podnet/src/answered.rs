//! Addresses that a node answers for without speaking with them: those of Services of type LoadBalancer, on the network
//! that the host and all nodes share.
//!
//! In IPv4 a local route is all it takes: the kernel then answers ARP for the address. IPv6's neighbour discovery answers
//! for addresses of a link only, so there it is one, but never chosen as a source. What no rule forwards is refused as on
//! any address of the node. All of it lives in the node's namespace and goes with it. The kernel's tables are the record:
//! local routes that the kernel did not make itself are ours, and so are IPv6 addresses with no network around them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};

use crate::arp::Announcer;
use crate::error::{Errors, Result, Teardown};
use crate::message;
use crate::names::INSIDE;
use crate::netlink::Netlink;
use crate::netns::within;
use crate::peers::{address_of, own_link, routes};

/// The addresses that a node answers for.
pub struct AnsweredAddresses {
    netlink: Netlink,
    /// Index of the node's interface.
    link: u32,
    /// The node's own addresses, one per family at most.
    node: Vec<IpAddr>,
    known: BTreeSet<IpAddr>,
    /// Tells the neighbours of a new one.
    voice: Option<Announcer>,
    /// Told of once: a neighbour that has just learnt otherwise does not listen for a second.
    fresh: Vec<Ipv4Addr>,
}

impl AnsweredAddresses {
    /// Takes charge of what a node that is set up (see [`crate::NodeNetwork`]) answers for, whatever an earlier life left
    /// of it. Blocking.
    ///
    /// # Errors
    /// When the node has no interface or its routes and addresses cannot be read.
    pub fn open(node_netns: BorrowedFd<'_>, node: &[IpAddr]) -> Result<Self> {
        let mut netlink = within(node_netns, Netlink::open)?;
        let link = own_link(&mut netlink)?;
        let mut known: BTreeSet<IpAddr> = routes(&mut netlink)?.iter().filter_map(ours).collect();
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        known.extend(
            netlink.dump("list addresses", &question)?.iter().filter_map(|answer| ours6(answer, link)),
        );
        let mac = netlink.link(INSIDE)?.and_then(|link| link.mac);
        let voice = mac.map(|mac| within(node_netns, || Announcer::open(link, mac))).transpose()?;
        Ok(Self { netlink, link, node: node.to_vec(), known, voice, fresh: Vec::new() })
    }

    /// Answers for these addresses of the node's families and for no others, and tells
    /// the neighbours of new ones in IPv4. An address that the kernel refuses is tried
    /// again at the next call. Blocking.
    ///
    /// # Errors
    /// All addresses that could not be changed; the others are.
    pub fn sync(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), Errors> {
        let mut failures = Teardown::default();
        let source = |address: &IpAddr| self.node.iter().find(|own| own.is_ipv4() == address.is_ipv4());
        let gone: Vec<IpAddr> = self.known.difference(wanted).copied().collect();
        let new = wanted.difference(&self.known).filter_map(|address| Some((*address, *source(address)?)));
        let new: Vec<(IpAddr, IpAddr)> = new.collect();
        for address in gone {
            let removed = self.netlink.apply(&[message::no_answer_for(self.link, address)]);
            if removed.is_ok() {
                self.known.remove(&address);
                self.fresh.retain(|fresh| address != *fresh);
            }
            failures.step(removed);
        }
        for (address, source) in new {
            let made = self.netlink.apply(&[message::answer_for(self.link, address, source)]);
            if made.is_ok() {
                self.known.insert(address);
                self.fresh.extend(match address {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                });
            }
            failures.step(made);
        }
        self.announce(&mut failures);
        failures.finish()
    }

    /// Whether [`Self::repeat`] has anything to tell.
    pub fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Tells the neighbours once more, and for the last time, of what [`Self::sync`] brought; to be called more than a
    /// second after it.
    ///
    /// # Errors
    /// All that could not be told.
    pub fn repeat(&mut self) -> Result<(), Errors> {
        let mut failures = Teardown::default();
        self.announce(&mut failures);
        self.fresh.clear();
        failures.finish()
    }

    fn announce(&self, failures: &mut Teardown) {
        for address in &self.fresh {
            failures.step(self.voice.as_ref().map_or(Ok(()), |voice| voice.announce(*address)));
        }
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

/// The IPv6 address of the link that is ours: the node's own comes with its network.
fn ours6(answer: &RouteNetlinkMessage, link: u32) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    let alone = message.header.index == link && message.header.prefix_len == 128;
    message.attributes.iter().filter(|_| alone).find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}
