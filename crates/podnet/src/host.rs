//! What a cluster needs of the host's network: a bridge with an address, a link to each node, routing switched on, one
//! masquerade rule. Nothing else of the host is touched, and all of it goes with [`HostNetwork::remove`].
//!
//! Everything here acts on the calling thread's network namespace.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use crate::error::{Error, Errors, Result, Teardown};
use crate::message::{self, End};
use crate::names::{BRIDGE_PREFIX, INSIDE, bridge, mac, node_link};
use crate::netlink::{Link, Netlink};
use crate::netns::within;
use crate::peers::address_of;
use crate::subnet::collision;
use crate::sysctl;

const FORWARD: &str = "ipv4/ip_forward";
const FORWARD6: &str = "ipv6/conf/all/forwarding";
/// Ethernet's, and the most that we use.
const MTU: u32 = 1500;
/// The least that IPv6 works with (RFC 8200).
const LEAST_MTU6: u32 = 1280;

/// Settings of the bridge: it has the family whatever is the rule for new links, uses its address at once, and believes
/// nobody on it who says that he is a router.
const BRIDGE_SETTINGS6: [(&str, &str); 3] = [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")];

/// The host's part of one cluster's network.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    /// The cluster's name; names the bridge and the rule.
    pub profile: String,
    /// The nodes' subnet; its first address is the bridge's.
    pub subnet: Ipv4Net,
    /// The nodes' IPv6 subnet, in a cluster that has the family; its first address is the bridge's.
    pub subnet6: Option<Ipv6Net>,
    /// A volatile directory that all clusters of the machine share (`/run/skiff`): remembers how routing was set before
    /// the first of them.
    pub run_dir: PathBuf,
}

/// The IPv4 networks that the host has addresses in or routes to, except those of `profile`'s own bridge.
pub fn used_networks(profile: &str) -> Result<Vec<Ipv4Net>> {
    let v4 = |net| if let IpNet::V4(net) = net { Some(net) } else { None };
    Ok(used(profile)?.into_iter().filter_map(v4).collect())
}

/// The IPv6 networks, likewise.
pub fn used_networks6(profile: &str) -> Result<Vec<Ipv6Net>> {
    let v6 = |net| if let IpNet::V6(net) = net { Some(net) } else { None };
    Ok(used(profile)?.into_iter().filter_map(v6).collect())
}

fn used(profile: &str) -> Result<Vec<IpNet>> {
    let mut netlink = Netlink::open()?;
    let own = netlink.link(&bridge(profile))?.map(|link| link.index);
    let mut used = Vec::new();
    for answer in netlink.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        if let RouteNetlinkMessage::NewRoute(route) = answer {
            used.extend(routed(&route, own));
        }
    }
    for answer in
        netlink.dump("list addresses", &RouteNetlinkMessage::GetAddress(AddressMessage::default()))?
    {
        let RouteNetlinkMessage::NewAddress(address) = answer else { continue };
        if Some(address.header.index) == own {
            continue;
        }
        // An IPv4 address on a point-to-point link is `Local`; `Address` is the other end's. IPv6 has the latter only.
        used.extend(address.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Local(ip @ IpAddr::V4(_)) | AddressAttribute::Address(ip @ IpAddr::V6(_)) => {
                IpNet::new(*ip, address.header.prefix_len).ok()
            }
            _ => None,
        }));
    }
    used.iter_mut().for_each(|net| *net = net.trunc());
    used.sort();
    used.dedup();
    Ok(used)
}

/// The network of a route that is neither the default route nor one of the kernel's own entries for addresses.
fn routed(route: &RouteMessage, own: Option<u32>) -> Option<IpNet> {
    let mut to = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) if Some(*index) == own => return None,
            RouteAttribute::Destination(address) => to = address_of(address),
            _ => {}
        }
    }
    let table = route.header.table;
    let wanted = table != message::LOCAL_TABLE && table != RouteHeader::RT_TABLE_UNSPEC;
    IpNet::new(to.filter(|_| wanted)?, route.header.destination_prefix_length).ok()
}

/// The size of packets that the host's way out takes: a VPN's is smaller than Ethernet's, and what is sent larger from
/// inside would depend on ICMP coming back.
fn uplink_mtu(netlink: &mut Netlink) -> Result<u32> {
    let routes = netlink.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let links = netlink.dump("list links", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(smallest_way_out(&routes, &links))
}

fn smallest_way_out(routes: &[RouteNetlinkMessage], links: &[RouteNetlinkMessage]) -> u32 {
    let ways: Vec<u32> = routes.iter().filter_map(default_route).collect();
    let mtus = links.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => {
            Some(Link::read(message)).filter(|link| ways.contains(&link.index))
        }
        _ => None,
    });
    mtus.map(|link| link.mtu).chain([MTU]).min().unwrap_or(MTU)
}

/// The link of an IPv4 default route of the main table.
fn default_route(answer: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
    let header = &route.header;
    let default = header.address_family == AddressFamily::Inet
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.destination_prefix_length == 0;
    route.attributes.iter().filter(|_| default).find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

impl HostNetwork {
    /// The bridge's address, the nodes' gateway: the first of the subnet.
    pub fn gateway(&self) -> Ipv4Addr {
        let first = u32::from(self.subnet.network()).saturating_add(1);
        Ipv4Addr::from(first)
    }

    /// The address of a node, counted from 1: the second of the subnet and on.
    pub fn node_address(&self, node: u8) -> Option<Ipv4Net> {
        let address = Ipv4Addr::from(u32::from(self.gateway()).checked_add(u32::from(node))?);
        let ok = node > 0 && self.subnet.contains(&address) && address != self.subnet.broadcast();
        Ipv4Net::new(address, self.subnet.prefix_len()).ok().filter(|_| ok)
    }

    /// The bridge's IPv6 address.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet| Ipv6Addr::from_bits(subnet.network().to_bits() | 1))
    }

    /// The IPv6 address of a node: the same number after the bridge's as its IPv4 address has.
    pub fn node_address6(&self, node: u8) -> Option<Ipv6Net> {
        let address = Ipv6Addr::from_bits(self.gateway6()?.to_bits() + u128::from(node));
        Ipv6Net::new(address, self.subnet6?.prefix_len()).ok().filter(|_| node > 0)
    }

    /// The bridge's IPv6 address as a way out of the node network: the host routes IPv6 already. We never make it do so,
    /// since a host that does stops learning its own way out from its router.
    ///
    /// # Errors
    /// When the host's setting cannot be read.
    pub fn way_out6(&self) -> Result<Option<Ipv6Addr>> {
        let Some(gateway) = self.gateway6() else { return Ok(None) };
        Ok((sysctl::get(FORWARD6)? == "1").then_some(gateway))
    }

    fn table(&self) -> String {
        table(&self.profile)
    }

    /// Makes what is missing. Blocking.
    ///
    /// # Errors
    /// [`Error::SubnetInUse`] when the host has another use for the subnet; nothing is changed then.
    pub fn ensure(&self) -> Result<()> {
        if let Some(by) = collision(self.subnet, &used_networks(&self.profile)?) {
            return Err(Error::SubnetInUse { subnet: self.subnet.into(), by: by.into() });
        }
        if let Some(subnet) = self.subnet6
            && let Some(by) = collision(subnet, &used_networks6(&self.profile)?)
        {
            return Err(Error::SubnetInUse { subnet: subnet.into(), by: by.into() });
        }
        let name = bridge(&self.profile);
        let mut netlink = Netlink::open()?;
        netlink.apply(&[message::bridge(&name, mac(self.gateway().into()))])?;
        let missing = Error::Refused { what: format!("find bridge {name}"), errno: Errno::ENODEV };
        let index = netlink.link(&name)?.ok_or(missing)?.index;
        let address = Ipv4Net::new(self.gateway(), self.subnet.prefix_len()).unwrap_or(self.subnet);
        netlink.apply(&[message::set_up(index), message::address(index, IpNet::V4(address))])?;
        let mut translated = vec![IpNet::V4(self.subnet)];
        if let (Some(subnet), Some(gateway)) = (self.subnet6, self.gateway6()) {
            for (setting, value) in BRIDGE_SETTINGS6 {
                sysctl::set(&format!("ipv6/conf/{name}/{setting}"), value)?;
            }
            let address = Ipv6Net::new(gateway, subnet.prefix_len()).unwrap_or(subnet);
            netlink.apply(&[message::address(index, IpNet::V6(address))])?;
            translated.extend(self.way_out6()?.map(|_| IpNet::V6(subnet)));
        }
        switch_forwarding_on(&self.run_dir)?;
        nft::masquerade::ensure_beyond(&self.table(), &translated, &bridge(&self.profile))?;
        Ok(())
    }

    /// Gives a node's namespace its `eth0` on the bridge. The link goes with the namespace or with the network. Blocking; doing it again does
    /// no harm.
    pub fn attach_node(&self, node: &str, node_netns: BorrowedFd<'_>, address: Ipv4Net) -> Result<()> {
        let bridge_name = bridge(&self.profile);
        let mut netlink = Netlink::open()?;
        let missing = Error::Refused { what: format!("find bridge {bridge_name}"), errno: Errno::ENODEV };
        let port_of = netlink.link(&bridge_name)?.ok_or(missing)?.index;
        let name = node_link(&self.profile, node);
        let address = address.addr().into();
        let [first, rest @ ..] = mac(address);
        // The host's end differs from the node's in the second byte.
        let [_, a, b, c, d] = rest;
        let here = End { name: &name, mac: [first, 0x59, a, b, c, d], netns: None, bridge: Some(port_of) };
        let there = End { name: INSIDE, mac: mac(address), netns: Some(node_netns), bridge: None };
        let least = if self.subnet6.is_some() { LEAST_MTU6 } else { 0 };
        let create = message::veth(&here, &there, uplink_mtu(&mut netlink)?.max(least));
        let Err(error) = netlink.apply(std::slice::from_ref(&create)) else { return Ok(()) };
        let Error::Refused { errno: Errno::EEXIST, .. } = error else { return Err(error) };
        let ours = netlink.link(&name)?;
        let theirs = within(node_netns, || Netlink::open()?.link(INSIDE))?;
        match (&ours, &theirs) {
            (Some(ours), Some(theirs))
                if ours.peer == Some(theirs.index) && theirs.peer == Some(ours.index) =>
            {
                Ok(())
            }
            // Left by a former life of the node: its namespace is dying or somebody holds it.
            _ => {
                netlink.apply(&[message::delete_link(&name)])?;
                netlink.apply(&[create])
            }
        }
    }

    /// Takes a cluster's part of the host's network away, whatever is left of it, and puts routing back as it was when
    /// no other cluster is there. Goes on past failures and gives them all. Blocking.
    pub fn remove(profile: &str, run_dir: &Path) -> Result<(), Errors> {
        let mut teardown = Teardown::default();
        teardown.step(nft::masquerade::remove(&table(profile)).map_err(Error::from));
        match Netlink::open() {
            Ok(mut netlink) => {
                teardown.step(remove_links(&mut netlink, &bridge(profile)));
                let others = other_clusters(&mut netlink, profile);
                teardown.step(
                    others.and_then(|others| if others { Ok(()) } else { restore_forwarding(run_dir) }),
                );
            }
            Err(error) => teardown.step(Err(error)),
        }
        teardown.finish()
    }
}

fn table(profile: &str) -> String {
    format!("skiff-host-{profile}")
}

/// A bridge and its ports. A node's link would go with the node's namespace too, but when is for the kernel and for whoever
/// still holds that namespace to say.
fn remove_links(netlink: &mut Netlink, bridge: &str) -> Result<()> {
    let Some(found) = netlink.link(bridge)? else { return Ok(()) };
    let ports = links(netlink)?.into_iter().filter(|link| link.bridge == Some(found.index));
    let mut requests: Vec<_> = ports.map(|port| message::delete_link(&port.name)).collect();
    requests.push(message::delete_link(bridge));
    netlink.apply(&requests)
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>> {
    let answers = netlink.dump("list links", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |answer: &RouteNetlinkMessage| match answer {
        RouteNetlinkMessage::NewLink(message) => Some(Link::read(message)),
        _ => None,
    };
    Ok(answers.iter().filter_map(link).collect())
}

fn other_clusters(netlink: &mut Netlink, profile: &str) -> Result<bool> {
    let own = bridge(profile);
    Ok(links(netlink)?.iter().any(|link| link.name.starts_with(BRIDGE_PREFIX) && link.name != own))
}

fn remembered(run_dir: &Path) -> PathBuf {
    run_dir.join("ip_forward.before")
}

/// Switches routing on. How it was is written down first, once: by the first cluster, and only if it was off.
fn switch_forwarding_on(run_dir: &Path) -> Result<()> {
    let before = sysctl::get(FORWARD)?;
    if before == "1" {
        return Ok(());
    }
    let path = remembered(run_dir);
    let what = || format!("write {}", path.display());
    fs::create_dir_all(run_dir).map_err(|e| Error::system(what(), e))?;
    match fs::File::create_new(&path) {
        Ok(mut file) => file.write_all(before.as_bytes()).map_err(|e| Error::system(what(), e))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::system(what(), error)),
    }
    sysctl::set(FORWARD, "1")
}

fn restore_forwarding(run_dir: &Path) -> Result<()> {
    let path = remembered(run_dir);
    let before = match fs::read_to_string(&path) {
        Ok(before) => before,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::system(format!("read {}", path.display()), error)),
    };
    // A file cut short by a crash: it is only ever written when routing was off.
    sysctl::set(FORWARD, if before.is_empty() { "0" } else { &before })?;
    fs::remove_file(&path).map_err(|e| Error::system(format!("remove {}", path.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::LinkAttribute;

    fn link(index: u32, mtu: u32) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::Mtu(mtu));
        RouteNetlinkMessage::NewLink(link)
    }

    fn default(index: u32) -> RouteNetlinkMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.attributes.push(RouteAttribute::Oif(index));
        RouteNetlinkMessage::NewRoute(route)
    }

    #[test]
    fn packets_fit_the_way_out() {
        let links = [link(1, 65536), link(2, 1400), link(3, 1280), link(4, 9000)];
        assert_eq!(smallest_way_out(&[default(2)], &links), 1400);
        assert_eq!(smallest_way_out(&[default(2), default(3)], &links), 1280);
        assert_eq!(smallest_way_out(&[default(4)], &links), 1500);
        assert_eq!(smallest_way_out(&[], &links), 1500);
    }

    #[test]
    fn node_addresses_stay_in_the_subnet() {
        let network = |subnet: &str| HostNetwork {
            profile: "p".into(),
            subnet: subnet.parse().unwrap_or_default(),
            subnet6: "fd00:192:168:49::/64".parse().ok(),
            run_dir: PathBuf::new(),
        };
        let wide = network("192.168.49.0/24");
        assert_eq!(wide.gateway().to_string(), "192.168.49.1");
        assert_eq!(wide.node_address(1).map(|net| net.to_string()).as_deref(), Some("192.168.49.2/24"));
        assert_eq!(wide.node_address(0), None);
        assert_eq!(wide.gateway6().map(|ip| ip.to_string()).as_deref(), Some("fd00:192:168:49::1"));
        assert_eq!(
            wide.node_address6(1).map(|net| net.to_string()).as_deref(),
            Some("fd00:192:168:49::2/64")
        );
        assert_eq!(wide.node_address(254), None);
        assert!(network("192.168.49.0/30").node_address(2).is_none());
    }
}
