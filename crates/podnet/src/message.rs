//! What is asked of the kernel (rtnetlink, RFC 3549): pure functions from intentions to messages.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

/// The table of the node's own addresses (`RT_TABLE_LOCAL` of linux/rtnetlink.h).
pub(crate) const LOCAL_TABLE: u8 = 255;

/// One change, what to call it when it fails, and which refusals mean that it was so already.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub what: String,
    pub message: RouteNetlinkMessage,
    pub flags: u16,
    pub fine: &'static [Errno],
}

impl Request {
    fn new(what: String, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { what, message, flags, fine: &[] }
    }

    /// Refusals that do not matter.
    pub fn fine(mut self, fine: &'static [Errno]) -> Self {
        self.fine = fine;
        self
    }
}

/// One end of a veth pair.
pub(crate) struct End<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    pub netns: Option<BorrowedFd<'a>>,
    /// Index of the bridge that it is a port of.
    pub bridge: Option<u32>,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn up(link: &mut LinkMessage) {
    link.header.flags |= LinkFlags::Up;
    link.header.change_mask |= LinkFlags::Up;
}

fn end(end: &End<'_>, mtu: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
    link.attributes.push(LinkAttribute::Address(end.mac.to_vec()));
    link.attributes.push(LinkAttribute::Mtu(mtu));
    link.attributes.extend(end.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
    link.attributes.extend(end.bridge.map(LinkAttribute::Controller));
    link
}

/// A veth pair, each end in its place: one request. The far end is to be set up where it is: the kernel makes it before
/// it has a peer, and refuses to start it so.
pub(crate) fn veth(here: &End<'_>, there: &End<'_>, mtu: u32) -> Request {
    let mut link = end(here, mtu);
    up(&mut link);
    let peer = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(there, mtu))));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), peer]));
    let what = format!("create link {}", here.name);
    Request::new(what, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
}

/// A bridge with a hardware address of its own, or it would change with its ports.
pub(crate) fn bridge(name: &str, mac: [u8; 6]) -> Request {
    let mut link = LinkMessage::default();
    up(&mut link);
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.push(LinkAttribute::Address(mac.to_vec()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    let what = format!("create bridge {name}");
    Request::new(what, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL).fine(&[Errno::EEXIST])
}

/// Sets a link up.
pub(crate) fn set_up(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    up(&mut link);
    Request::new(format!("set link {index} up"), RouteNetlinkMessage::SetLink(link), 0)
}

/// Writes on a link whose it is.
pub(crate) fn set_alias(index: u32, alias: String) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::IfAlias(alias));
    Request::new(format!("set alias of link {index}"), RouteNetlinkMessage::SetLink(link), 0)
}

/// Deletes a link; that it is gone already is fine.
pub(crate) fn delete_link(name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request::new(format!("delete link {name}"), RouteNetlinkMessage::DelLink(link), 0).fine(&[Errno::ENODEV])
}

/// A question about one link.
pub(crate) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    RouteNetlinkMessage::GetLink(link)
}

/// An address of a link. IPv6's check for duplicates is left out: we are the ones who hand them out.
pub(crate) fn address(index: u32, net: IpNet) -> Request {
    let what = format!("add address {net} to link {index}");
    let message = RouteNetlinkMessage::NewAddress(address_of_link(index, net));
    Request::new(what, message, NLM_F_CREATE | NLM_F_REPLACE)
}

fn address_of_link(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message.attributes.push(AddressAttribute::Address(net.addr()));
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    message
}

/// Where traffic to a network goes.
pub(crate) struct Route {
    pub to: IpNet,
    /// Index of the link.
    pub link: u32,
    /// None: the network is on the link itself.
    pub via: Option<IpAddr>,
}

/// A route of the main table, put in place of what is there for the same network.
pub(crate) fn route(route: &Route) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.to.addr());
    message.header.destination_prefix_length = route.to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    let on_link = route.via.is_none() && route.to.addr().is_ipv4();
    message.header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
    if route.to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(to_route(route.to.network())));
    }
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(to_route(via))));
    message.attributes.push(RouteAttribute::Oif(route.link));
    let what = format!("add route to {}", route.to);
    Request::new(what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes the route to one address away; that it is gone already is fine.
pub(crate) fn delete_route(address: IpAddr) -> Request {
    delete_range(IpNet::from(address))
}

/// Takes the route to a network away; that it is gone already is fine.
pub(crate) fn delete_range(to: IpNet) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.scope = RouteScope::NoWhere;
    message.attributes.push(RouteAttribute::Destination(to_route(to.network())));
    Request::new(format!("delete route to {to}"), RouteNetlinkMessage::DelRoute(message), 0)
        .fine(&[Errno::ESRCH, Errno::ENODEV])
}

/// An address that the node answers for and never speaks with: the neighbours' questions are answered, and what the node
/// itself sends there comes from its own. IPv4 takes a local route for that, with the node's address as `source`; IPv6
/// answers for addresses of the link only, so it is one that is out of use for what the node begins.
pub(crate) fn answer_for(link: u32, address: IpAddr, source: IpAddr) -> Request {
    let what = format!("answer for address {address}");
    if address.is_ipv6() {
        let mut message = address_of_link(link, IpNet::from(address));
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        return Request::new(what, RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE);
    }
    let mut message = answered(address);
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.attributes.push(RouteAttribute::PrefSource(to_route(source)));
    message.attributes.push(RouteAttribute::Oif(link));
    Request::new(what, RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// No longer answers for an address; that it does not already is fine.
pub(crate) fn no_answer_for(link: u32, address: IpAddr) -> Request {
    let what = format!("no longer answer for address {address}");
    if address.is_ipv6() {
        let message = RouteNetlinkMessage::DelAddress(address_of_link(link, IpNet::from(address)));
        return Request::new(what, message, 0).fine(&[Errno::EADDRNOTAVAIL, Errno::ENODEV]);
    }
    let mut message = answered(address);
    message.header.scope = RouteScope::NoWhere;
    Request::new(what, RouteNetlinkMessage::DelRoute(message), 0).fine(&[Errno::ESRCH, Errno::ENODEV])
}

fn answered(address: IpAddr) -> RouteMessage {
    let to = IpNet::from(address);
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = LOCAL_TABLE;
    message.header.kind = RouteType::Local;
    message.attributes.push(RouteAttribute::Destination(to_route(address)));
    message
}

fn to_route(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

/// Who has an address on a link, for good: nobody asks, nothing expires.
pub(crate) fn neighbour(link: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    let what = format!("add neighbour {address} on link {link}");
    Request::new(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}
