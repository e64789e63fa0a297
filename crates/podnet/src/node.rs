//! A node's own network namespace: its interface, its default route, its settings, and the one rule that gives its
//! Pods' traffic the node's address when it leaves the cluster.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;

use crate::error::{Error, Result};
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
    /// The whole cluster's Pod network, whose traffic keeps its addresses inside: `10.244.0.0/16`.
    pub pod_networks: Vec<IpNet>,
}

/// Settings of a node. The routing switch comes first: it resets others to a router's defaults.
const SETTINGS: [(&str, &str); 3] = [
    ("ipv4/ip_forward", "1"),
    // Pods' links refuse other senders than the Pod (strict reverse path); the node's own interface does not care.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "1"),
];

/// Settings of parts that a kernel may lack or has not loaded: upstream's node agent and proxy set the same.
const OPTIONAL_SETTINGS: [(&str, &str); 6] = [
    ("ipv6/conf/all/forwarding", "1"),
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
        let mut netlink = Netlink::open()?;
        let eth0 = netlink.link(INSIDE)?;
        let missing = Error::Refused { what: format!("find {INSIDE} of the node"), errno: Errno::ENODEV };
        let index = eth0.ok_or(missing)?.index;
        let default =
            Route { to: IpNet::V4(Ipv4Net::default()), link: index, via: Some(IpAddr::V4(self.gateway)) };
        netlink.apply(&[
            message::set_up(1),
            message::set_up(index),
            message::address(index, IpNet::V4(self.address)),
            message::route(&default),
        ])?;
        nft::masquerade::ensure(TABLE, &self.pod_networks, &[])?;
        // After the rule, which brings connection tracking into this namespace.
        for (name, value) in OPTIONAL_SETTINGS {
            sysctl::set_if_there(name, value)?;
        }
        Ok(())
    }
}
