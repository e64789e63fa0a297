//! What the node should do, without saying how: frontends and where their connections go.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use client::ObjectKey;
use ipnet::IpNet;
pub use nft::Protocol;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where connections come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// One address, which needs not exist anywhere.
    Address(IpAddr),
    /// Every address of this node.
    Node(Ip),
}

impl Place {
    /// Its family.
    pub fn ip(&self) -> Ip {
        match self {
            Self::Address(addr) => Ip::of(*addr),
            Self::Node(ip) => *ip,
        }
    }
}

/// Place, protocol and port: what a client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Address.
    pub place: Place,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Which connections get the node's address as their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Masquerade {
    /// None.
    Never,
    /// All, so that answers come back through this node.
    Always,
    /// Those that come neither from a Pod nor from this node itself.
    Outsiders,
}

/// Endpoints with an equal share each, in the order of their addresses.
pub type Endpoints = Vec<SocketAddr>;

/// How connections are forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where to.
    pub endpoints: Endpoints,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
    /// Seconds for which a client address stays with its endpoint.
    pub affinity: Option<u32>,
    /// With `externalTrafficPolicy: Local`: where Pods and this node itself are sent instead.
    pub insiders: Option<Endpoints>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Forwarded.
    Forward(Forward),
    /// Refused at once, so that no client waits for a time-out.
    Refuse,
    /// Dropped: another node may have an endpoint, this one has none.
    Drop,
}

/// What a frontend does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The action.
    pub action: Action,
    /// The address is a cluster IP, whose other ports are refused.
    pub cluster_ip: bool,
    /// Addresses of endpoints on this node, which may reach themselves through here.
    pub hairpins: Vec<IpAddr>,
    /// Networks that may connect to an address; none means all. Ports of the node have none.
    pub sources: Vec<IpNet>,
}

/// A port of the node that belongs to a container (`hostPort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// One address of the node, or all of them.
    pub host_ip: Option<IpAddr>,
    /// Port of the node.
    pub host_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The container's address and port.
    pub target: SocketAddr,
}

/// What must be known of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, as EndpointSlices have it.
    pub name: String,
    /// Its zone, if it has one.
    pub zone: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Networks of all Pods of the cluster.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks from which cluster IPs are allocated.
    pub service_cidrs: Vec<IpNet>,
}

/// Who asks for a frontend. Services come before host ports, and among equals the first name wins.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A Service.
    Service(String, String),
    /// A container's host port.
    HostPort,
}

impl Owner {
    /// The Service of that key.
    pub fn service(key: &ObjectKey) -> Self {
        Self::Service(key.namespace.clone(), key.name.clone())
    }
}

/// Who asks for a frontend, and for what.
type Claim = (Arc<Owner>, Arc<Target>);

/// All frontends of the node. Several owners may claim one; the first of them has it until it lets go.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Ordered by owner. Almost always one, so a list: a tree's node has room for eleven.
    claims: HashMap<Frontend, Vec<Claim>>,
    owned: HashMap<Arc<Owner>, Box<[Frontend]>>,
}

impl Model {
    /// Sets all that an owner asks for (nothing, to forget it); gives the frontends whose target changed.
    pub fn set(&mut self, owner: &Owner, targets: Vec<(Frontend, Target)>) -> HashSet<Frontend> {
        let (owner, before) =
            self.owned.remove_entry(owner).unwrap_or_else(|| (Arc::new(owner.clone()), Box::default()));
        let mut touched: HashMap<Frontend, Option<Arc<Target>>> = HashMap::new();
        for frontend in before.iter().chain(targets.iter().map(|(f, _)| f)) {
            touched.entry(*frontend).or_insert_with(|| self.get(frontend).cloned());
        }
        for frontend in &before {
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.retain(|(other, _)| *other != owner);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
        }
        if !targets.is_empty() {
            self.owned.insert(owner.clone(), targets.iter().map(|(f, _)| *f).collect());
        }
        for (frontend, target) in targets {
            let claims = self.claims.entry(frontend).or_default();
            if let Err(at) = claims.binary_search_by(|(other, _)| other.cmp(&owner)) {
                claims.reserve_exact(1);
                claims.insert(at, (owner.clone(), Arc::new(target)));
            }
        }
        touched.retain(|frontend, was| self.get(frontend) != was.as_ref());
        touched.into_keys().collect()
    }

    /// What a frontend does, if anybody asked for it.
    pub fn get(&self, frontend: &Frontend) -> Option<&Arc<Target>> {
        self.claims.get(frontend)?.first().map(|(_, target)| target)
    }

    /// Who has a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&Owner> {
        self.claims.get(frontend)?.first().map(|(owner, _)| &**owner)
    }

    /// All frontends with what they do, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Frontend, &Arc<Target>)> {
        self.claims.iter().filter_map(|(frontend, claims)| Some((frontend, &claims.first()?.1)))
    }

    /// The owners that ask for anything.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owned.keys().map(|owner| &**owner)
    }
}
