//! A node's own network namespace: its interface, its default route, its settings, and the one rule that gives its
//! Pods' traffic the node's address when it leaves the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::guard;
use crate::message::{self, Route};
use crate::names::INSIDE;
use crate::netlink::Netlink;
use crate::netns::within;
use crate::sysctl;

/// The name of the firewall table with the rule.
const TABLE: &str = "skiff-node";

/// What a node's network is to be.
#[derive(Debug, Clone)]
pub struct NodeNetwork {
    /// The node's address with its subnet's length: `192.168.49.2/24`.
    pub address: Ipv4Net,
    /// The bridge's address: `192.168.49.1`.
    pub gateway: Ipv4Addr,
    /// Its IPv6 address with its subnet's length, in a cluster that has the family: `fd00:192:168:49::2/64`.
    pub address6: Option<Ipv6Net>,
    /// The bridge's IPv6 address, where the host forwards IPv6. Without it, who asks for the world beyond is told at once
    /// that there is no way.
    pub gateway6: Option<Ipv6Addr>,
    /// The IPv6 network of Services: nothing has its addresses, rules translate them, but without a route the node itself
    /// could not set out for them where there is no way to everywhere.
    pub services6: Option<Ipv6Net>,
    /// The whole cluster's Pod networks, whose traffic keeps its addresses inside: `10.244.0.0/16`.
    pub pod_networks: Vec<IpNet>,
}

/// Settings of a node. The routing switch comes first: it resets others to a router's defaults.
const SETTINGS: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    // Node ports on the node's own loopback lead to Pods; the service rules keep others out of it.
    ("ipv4/conf/all/route_localnet", "1"),
    // Pods' links refuse other senders than the Pod (strict reverse path); the node's own interface does not care.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "1"),
];

/// Settings of IPv6, where the kernel has it, before the first link is up. Addresses are ours to give: none is checked for
/// a second holder, and links of Pods have no further one that no rule would know.
const SETTINGS6: [(&str, &str); 6] = [
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/eth0/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
];

/// A host may have switched the family off for all that is new.
const FAMILY_ON: [(&str, &str); 3] = [
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/eth0/disable_ipv6", "0"),
];

/// Settings of parts that a kernel may lack or has not loaded: upstream's node agent and proxy set the same.
const OPTIONAL_SETTINGS: [(&str, &str); 5] = [
    ("ipv4/conf/eth0/rp_filter", "0"),
    ("netfilter/nf_conntrack_tcp_timeout_established", "86400"),
    ("netfilter/nf_conntrack_tcp_timeout_close_wait", "3600"),
    // A late packet of a known connection must not be taken for a new one and go out untranslated.
    ("netfilter/nf_conntrack_tcp_be_liberal", "1"),
    // A connection that a policy cut must not come back as one that was opened from the other side.
    ("netfilter/nf_conntrack_tcp_loose", "0"),
];

impl NodeNetwork {
    /// Sets up the node whose namespace has its `eth0` already (see [`crate::HostNetwork::attach_node`]). Blocking; doing
    /// it again repairs what is missing.
    pub fn setup(&self, node_netns: BorrowedFd<'_>) -> Result<()> {
        within(node_netns, || self.setup_here())
    }

    fn setup_here(&self) -> Result<()> {
        for (name, value) in SETTINGS {
            sysctl::set(name, value)?;
        }
        let family_on = FAMILY_ON.iter().filter(|_| self.address6.is_some());
        for (name, value) in family_on.chain(&SETTINGS6) {
            sysctl::set_if_there(name, value)?;
        }
        let mut netlink = Netlink::open()?;
        let eth0 = netlink.link(INSIDE)?;
        let missing = Error::Refused { what: format!("find {INSIDE} of the node"), errno: Errno::ENODEV };
        let index = eth0.ok_or(missing)?.index;
        let default =
            Route { to: IpNet::V4(Ipv4Net::default()), link: index, via: Some(IpAddr::V4(self.gateway)) };
        let mut requests = vec![
            message::set_up(1),
            message::set_up(index),
            message::address(index, IpNet::V4(self.address)),
            message::route(&default),
        ];
        requests.extend(self.address6.map(|address| message::address(index, IpNet::V6(address))));
        requests.extend(self.gateway6.map(|gateway| {
            message::route(&Route {
                to: IpNet::V6(Ipv6Net::default()),
                link: index,
                via: Some(gateway.into()),
            })
        }));
        requests.extend(
            self.services6
                .map(|services| message::route(&Route { to: IpNet::V6(services), link: index, via: None })),
        );
        netlink.apply(&requests)?;
        if self.address6.is_some() {
            guard::ensure()?;
        }
        nft::masquerade::ensure(TABLE, &self.pod_networks, &[])?;
        // After the rule, which brings connection tracking into this namespace.
        for (name, value) in OPTIONAL_SETTINGS {
            sysctl::set_if_there(name, value)?;
        }
        Ok(())
    }
}
