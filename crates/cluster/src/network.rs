//! The networks of a cluster: its IP families and which addresses are for what.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::MAX_NODES;

/// Service addresses of every cluster; 10.96.0.1 is the API server, 10.96.0.10 the cluster's DNS.
pub const SERVICE_CIDR: &str = "10.96.0.0/12";
/// The first service address: Service default/kubernetes.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The tenth service address: Service kube-system/kube-dns.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Pod addresses of every cluster; one /24 a node.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// Service addresses of clusters with IPv6.
pub const SERVICE_CIDR6: &str = "fd00:10:96::/108";
/// The first of them.
pub const KUBERNETES_SERVICE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1);
/// The tenth of them.
pub const DNS_SERVICE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10);
/// Pod addresses of clusters with IPv6; one /64 a node.
pub const POD_CIDR6: &str = "fd00:10:244::/56";
/// What was decided at the first start and holds until the cluster is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bridge's address on the host, first of the node network.
    pub gateway: Ipv4Addr,
    /// The node's address; what `skiff ip` prints.
    pub node: Ipv4Addr,
    /// Prefix length of the node network.
    pub prefix: u8,
    /// The IP families of nodes, Pods and Services. The node network always has IPv4, too: the host comes by it.
    #[serde(default)]
    pub ip_family: IpFamily,
    /// The bridge's IPv6 address, first of a /64 beside the IPv4 network; none in a cluster without the family.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
}

/// Prefix length of the nodes' IPv6 network.
pub const NODE_PREFIX6: u8 = 64;
/// How many of its addresses are for Services of type LoadBalancer.
const LOAD_BALANCERS6: u128 = 0xeff;

/// Which IP families a cluster has, by kind's names; chosen at the first start and kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both; IPv4 is the main one.
    Dual,
}

impl IpFamily {
    /// The names, as `--ip-family` takes them.
    pub const NAMES: [&str; 3] = ["ipv4", "ipv6", "dual"];

    /// The family of a name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ipv4" => Some(Self::Ipv4),
            "ipv6" => Some(Self::Ipv6),
            "dual" => Some(Self::Dual),
            _ => None,
        }
    }

    /// Whether Pods and Services have IPv6 addresses.
    pub fn has_ipv6(self) -> bool {
        self != Self::Ipv4
    }

    /// One thing per family that the cluster has, that of the main family first.
    pub fn each<T>(self, four: T, six: T) -> Vec<T> {
        match self {
            Self::Ipv4 => vec![four],
            Self::Ipv6 => vec![six],
            Self::Dual => vec![four, six],
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Dual => "dual",
        })
    }
}

impl Network {
    /// The addresses of a node that has this IPv4 address, by the families of the cluster, the main one first: both are the
    /// same number after the bridge's.
    pub fn node_ips(&self, node: Ipv4Addr) -> Vec<IpAddr> {
        let number = node.to_bits().saturating_sub(self.gateway.to_bits());
        let six = self.gateway6.map(|gateway| Ipv6Addr::from_bits(gateway.to_bits() + u128::from(number)));
        match six {
            Some(six) => self.ip_family.each(node.into(), six.into()),
            None => vec![node.into()],
        }
    }

    /// The address that the cluster knows its first node by.
    pub fn main_node_ip(&self) -> IpAddr {
        self.node_ips(self.node).first().copied().unwrap_or(self.node.into())
    }

    /// The Service of the API server, the main family first.
    pub fn kubernetes_services(&self) -> Vec<IpAddr> {
        self.ip_family.each(KUBERNETES_SERVICE.into(), KUBERNETES_SERVICE6.into())
    }

    /// The Service of the cluster's DNS, the main family first.
    pub fn dns_services(&self) -> Vec<IpAddr> {
        self.ip_family.each(DNS_SERVICE.into(), DNS_SERVICE6.into())
    }

    /// The ranges of load balancers' addresses, the main family first.
    pub fn load_balancer_ranges(&self) -> Vec<RangeInclusive<IpAddr>> {
        let four = self.load_balancers();
        let four = IpAddr::V4(*four.start())..=IpAddr::V4(*four.end());
        let Some(gateway) = self.gateway6 else { return vec![four] };
        // From ::101 on, as 192.168.49.101 is.
        let first = (gateway.to_bits() & !1) | 0x101;
        let last = first + LOAD_BALANCERS6 - 1;
        self.ip_family.each(four, Ipv6Addr::from_bits(first).into()..=Ipv6Addr::from_bits(last).into())
    }

    /// The addresses for Services of type LoadBalancer: what the node network has above the last possible node.
    pub fn load_balancers(&self) -> RangeInclusive<Ipv4Addr> {
        let gateway = self.gateway.to_bits();
        let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        let first = gateway.saturating_add(u32::from(MAX_NODES) + 1);
        Ipv4Addr::from_bits(first)..=Ipv4Addr::from_bits((gateway | hosts).saturating_sub(1))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    pub(crate) fn network(ip_family: IpFamily) -> Network {
        Network {
            gateway: [192, 168, 49, 1].into(),
            node: [192, 168, 49, 2].into(),
            prefix: 24,
            ip_family,
            gateway6: ip_family.has_ipv6().then(|| "fd00:192:168:49::1".parse().unwrap()),
        }
    }

    #[test]
    fn each_family_has_its_addresses() {
        let show = |family| {
            let network = network(family);
            let ips = network.node_ips([192, 168, 49, 3].into());
            let pools = network.load_balancer_ranges();
            let pools: Vec<_> = pools.iter().map(|p| format!("{}-{}", p.start(), p.end())).collect();
            format!("{family}: {ips:?} {} {pools:?}", network.dns_services().first().unwrap())
        };
        assert_eq!(
            show(IpFamily::Ipv4),
            "ipv4: [192.168.49.3] 10.96.0.10 [\"192.168.49.101-192.168.49.254\"]"
        );
        assert_eq!(
            show(IpFamily::Ipv6),
            "ipv6: [fd00:192:168:49::3] fd00:10:96::a [\"fd00:192:168:49::101-fd00:192:168:49::fff\"]"
        );
        assert_eq!(
            show(IpFamily::Dual),
            "dual: [192.168.49.3, fd00:192:168:49::3] 10.96.0.10 [\"192.168.49.101-192.168.49.254\", \
             \"fd00:192:168:49::101-fd00:192:168:49::fff\"]"
        );
        assert!(IpFamily::NAMES.iter().all(|n| IpFamily::parse(n).is_some_and(|f| f.to_string() == *n)));
        assert!(SERVICE_CIDR6.starts_with(&DNS_SERVICE6.to_string().replace('a', "")));
    }

    #[test]
    fn load_balancers_and_nodes_share_no_address() {
        let network = network(IpFamily::Ipv4);
        let pool = network.load_balancers();
        assert_eq!(
            (pool.start().to_string(), pool.end().to_string()),
            ("192.168.49.101".into(), "192.168.49.254".into())
        );
        assert!(Network { prefix: 30, ..network }.load_balancers().is_empty());
    }
}
