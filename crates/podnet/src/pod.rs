//! The network of one node's Pods: routed, not bridged.
//!
//! ```text
//!  Pod's namespace                              node's namespace
//!  lo 127.0.0.1                                 eth0 (NodeNetwork)
//!  eth0 10.244.0.5/32 ───── veth pair ───────── veth1a2b3c4d5e6
//!  default via 169.254.1.1                      10.244.0.5/32 dev veth1a2b3c4d5e6
//!  169.254.1.1 lladdr 0a:58:a9:fe:01:01 for good      10.244.0.5 lladdr 0a:58:0a:f4:00:05 for good
//! ```
//! The same with `fd00:10:244::5/128` and `fe80::1` where the cluster has IPv6.
//!
//! Every packet between Pods crosses the node's forward hook, where policy lives; nothing is translated; nobody ever asks
//! by ARP. The kernel's tables are the record: after a restart the links, their aliases (the Pod's uid) and their routes
//! say who has what. Deleting a link makes the kernel wait for all its processors, so a Pod that goes only loses its
//! routes at once; its link dies with its namespace, or soon after by a thread of ours.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::errno::Errno;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::ipam::Addresses;
use crate::message::{self, End, Request, Route};
use crate::names::{GATEWAY4, GATEWAY6, INSIDE, NODE_MAC, VETH_PREFIX, alias, mac, pod_of, veth};
use crate::netlink::{Link, Netlink};
use crate::netns::within;
use crate::sysctl;

/// How long a Pod's namespace has to go by itself, and its link with it.
const GRACE: Duration = Duration::from_secs(2);
/// When the node has no interface to learn it from.
const DEFAULT_MTU: u32 = 1500;
/// The first interface of every namespace.
const LOOPBACK: u32 = 1;

/// Settings of a Pod's namespace, before its link is there: it has the addresses that it is given and no other, which
/// no policy would know, and believes nobody who says that he is a router.
const SETTINGS: [(&str, &str); 2] =
    [("ipv6/conf/default/addr_gen_mode", "1"), ("ipv6/conf/default/accept_ra", "0")];

/// The Pods' network on one node.
pub struct PodNetwork {
    shared: Arc<Shared>,
    mtu: u32,
    gone: Sender<String>,
}

struct Shared {
    addresses: Mutex<Addresses>,
    node: Mutex<Node>,
}

/// The node's side.
struct Node {
    netlink: Netlink,
    /// Links of Pods that are connected now: not to be swept.
    connected: HashSet<String>,
}

impl PodNetwork {
    /// Takes charge of a node's Pods: `ranges` is the node's podCIDR (one per family). Finds again what an earlier life
    /// connected.
    pub fn open(node_netns: BorrowedFd<'_>, ranges: &[IpNet]) -> Result<Self> {
        let mut netlink = within(node_netns, Netlink::open)?;
        let mtu = netlink.link(INSIDE)?.map_or(DEFAULT_MTU, |link| link.mtu);
        let mut addresses = Addresses::new(ranges);
        let mut connected = HashSet::new();
        for (pod, link, held) in existing(&mut netlink)? {
            let adopted =
                if held.len() == ranges.len() { addresses.adopt(&pod, &held).is_ok() } else { false };
            if adopted {
                connected.insert(link);
                continue;
            }
            // Cut short by a crash, or of a podCIDR that the node no longer has: nothing relies on it.
            tracing::info!(
                "removing link {link} of pod {pod}: its addresses {held:?} are not what the node gives"
            );
            let mut requests: Vec<Request> = held.into_iter().map(message::delete_route).collect();
            requests.push(message::delete_link(&link));
            netlink.apply(&requests)?;
        }
        let node = Mutex::new(Node { netlink, connected });
        let shared = Arc::new(Shared { addresses: Mutex::new(addresses), node });
        let (gone, queue) = channel();
        let swept = shared.clone();
        std::thread::Builder::new()
            .name("podnet-sweep".into())
            .spawn(move || sweep(&swept, &queue))
            .map_err(|e| Error::system("start thread", e))?;
        Ok(Self { shared, mtu, gone })
    }

    /// Addresses for a Pod, one per family; the same ones when asked again.
    pub fn allocate(&self, pod_uid: &str) -> Result<Vec<IpAddr>> {
        self.shared.addresses.lock().allocate(pod_uid)
    }

    /// Notes addresses that a Pod has from before.
    pub fn adopt(&self, pod_uid: &str, addresses: &[IpAddr]) -> Result<()> {
        self.shared.addresses.lock().adopt(pod_uid, addresses)
    }

    /// A connected Pod's addresses.
    pub fn addresses(&self, pod_uid: &str) -> Option<Vec<IpAddr>> {
        self.shared.addresses.lock().of(pod_uid).map(<[IpAddr]>::to_vec)
    }

    /// Connects a Pod's namespace (in about a millisecond, blocking) and gives its addresses. Doing it again does no harm
    /// and repairs what is missing.
    pub fn attach(&self, netns: BorrowedFd<'_>, pod_uid: &str) -> Result<Vec<IpAddr>> {
        let addresses = self.allocate(pod_uid)?;
        let Some(&first) = addresses.first() else { return Err(Error::Exhausted("no range".into())) };
        let name = veth(pod_uid);
        let pod_mac = mac(first);
        let mut inside = within(netns, || {
            for (name, value) in SETTINGS {
                sysctl::set_if_there(name, value)?;
            }
            Netlink::open()
        })?;
        {
            let mut node = self.shared.node.lock();
            let index = self.connect(&mut node.netlink, &mut inside, netns, &name, pod_mac)?;
            node.connected.insert(name);
            let mut requests = vec![message::set_alias(index, alias(pod_uid))];
            for &address in &addresses {
                requests.push(message::neighbour(index, address, pod_mac));
                requests.push(message::route(&Route { to: IpNet::from(address), link: index, via: None }));
            }
            node.netlink.apply(&requests)?;
        }
        let link = inside.link(INSIDE)?.ok_or(Error::Refused {
            what: format!("find {INSIDE} of pod {pod_uid}"),
            errno: Errno::ENODEV,
        })?;
        inside.apply(&inside_requests(link.index, &addresses))?;
        Ok(addresses)
    }

    /// Makes the veth pair, or finds it made; gives the index of the node's end.
    fn connect(
        &self,
        node: &mut Netlink,
        inside: &mut Netlink,
        netns: BorrowedFd<'_>,
        name: &str,
        pod_mac: [u8; 6],
    ) -> Result<u32> {
        let here = End { name, mac: NODE_MAC, netns: None, bridge: None };
        let there = End { name: INSIDE, mac: pod_mac, netns: Some(netns), bridge: None };
        let create = message::veth(&here, &there, self.mtu);
        match node.apply(std::slice::from_ref(&create)) {
            Err(Error::Refused { errno: Errno::EEXIST, .. }) => {
                let ours = node.link(name)?;
                let theirs = inside.link(INSIDE)?;
                if let (Some(ours), Some(theirs)) = (&ours, &theirs)
                    && ours.peer == Some(theirs.index)
                    && theirs.peer == Some(ours.index)
                {
                    return Ok(ours.index);
                }
                // Left by a former sandbox of the same Pod: its other end is somewhere else.
                node.apply(&[message::delete_link(name)])?;
                node.apply(&[create])?;
            }
            result => result?,
        }
        let missing = Error::Refused { what: format!("find link {name}"), errno: Errno::ENODEV };
        Ok(node.link(name)?.ok_or(missing)?.index)
    }

    /// Disconnects a Pod: its routes go now, its addresses are free, its link goes in the background. Unknown Pods are
    /// fine.
    pub fn detach(&self, pod_uid: &str) -> Result<()> {
        let name = veth(pod_uid);
        let addresses = self.addresses(pod_uid).unwrap_or_default();
        let removed = {
            let mut node = self.shared.node.lock();
            node.connected.remove(&name);
            let requests: Vec<Request> = addresses.iter().copied().map(message::delete_route).collect();
            node.netlink.apply(&requests)
        };
        // Freed after the routes are gone, or a new owner's route might be taken away.
        self.shared.addresses.lock().release(pod_uid);
        // The thread is gone only when the process is ending.
        let _ = self.gone.send(name);
        removed
    }

    /// The Pods that are connected, by uid.
    pub fn pods(&self) -> Result<HashMap<String, Vec<IpAddr>>> {
        let found = existing(&mut self.shared.node.lock().netlink)?;
        Ok(found.into_iter().map(|(pod, _, addresses)| (pod, addresses)).collect())
    }
}

/// What is to be done inside the Pod's namespace.
fn inside_requests(link: u32, addresses: &[IpAddr]) -> Vec<Request> {
    let mut requests = vec![message::set_up(LOOPBACK), message::set_up(link)];
    for &address in addresses {
        let (gateway, everything): (IpAddr, IpNet) = match address {
            IpAddr::V4(_) => (GATEWAY4.into(), IpNet::V4(Default::default())),
            IpAddr::V6(_) => (GATEWAY6.into(), IpNet::V6(Default::default())),
        };
        requests.push(message::address(link, IpNet::from(address)));
        requests.push(message::neighbour(link, gateway, NODE_MAC));
        if address.is_ipv4() {
            requests.push(message::route(&Route { to: IpNet::from(gateway), link, via: None }));
        }
        requests.push(message::route(&Route { to: everything, link, via: Some(gateway) }));
    }
    requests
}

/// The Pods' links of a node, with the addresses routed to them: `(pod uid, link, addresses)`.
fn existing(netlink: &mut Netlink) -> Result<Vec<(String, String, Vec<IpAddr>)>> {
    let links = netlink.dump("list links", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut found: HashMap<u32, (String, String, Vec<IpAddr>)> = HashMap::new();
    for answer in links {
        let RouteNetlinkMessage::NewLink(message) = answer else { continue };
        let link = Link::read(&message);
        if let Some(pod) = pod_of(&link.alias).filter(|_| link.name.starts_with(VETH_PREFIX)) {
            found.insert(link.index, (pod.to_owned(), link.name, Vec::new()));
        }
    }
    for answer in netlink.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
        if let Some((link, address)) = host_route(&route)
            && let Some((_, _, addresses)) = found.get_mut(&link)
        {
            addresses.push(address);
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.iter_mut().for_each(|(_, _, addresses)| addresses.sort());
    Ok(found)
}

/// The link and the address of a route to a single address in the main table.
fn host_route(route: &RouteMessage) -> Option<(u32, IpAddr)> {
    let (mut link, mut to) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => to = Some(IpAddr::from(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => to = Some(IpAddr::from(*v6)),
            _ => {}
        }
    }
    let to = to?;
    let whole = if to.is_ipv4() { 32 } else { 128 };
    let main = route.header.table == netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN;
    (main && route.header.destination_prefix_length == whole).then_some((link?, to))
}

/// Deletes the links of Pods that went, unless they went with their namespaces in the meantime or the Pod is back.
fn sweep(shared: &Shared, queue: &Receiver<String>) {
    while let Ok(name) = queue.recv() {
        let mut names = vec![name];
        let until = Instant::now() + GRACE;
        // One pass per burst: what comes while we wait waits no longer than its own grace, and is done with the rest.
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match queue.recv_timeout(left) {
                Ok(name) => names.push(name),
                Err(_) if Instant::now() >= until => break,
                Err(_) => return, // the owner is gone, and the node with it or left as it is
            }
        }
        for name in names {
            let mut node = shared.node.lock();
            if node.connected.contains(&name) {
                continue;
            }
            if let Err(error) = node.netlink.apply(&[message::delete_link(&name)]) {
                tracing::warn!("sweep link: {error}");
            }
        }
    }
}
