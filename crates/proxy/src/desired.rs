//! Services, slices and node -> frontends and targets. Pure; the rules are upstream's.
//!
//! * Endpoints are those that [`client::endpoints`] chooses.
//! * `internalTrafficPolicy: Local` and `externalTrafficPolicy: Local` keep to endpoints of this node. With the
//!   latter, Pods and the node itself are still served from everywhere, as they would be through the cluster IP.
//! * Nobody serves anywhere: refused. Only other nodes serve and the policy is Local: dropped.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use client::ObjectKey;
use client::endpoints::{Candidates, Near, State, service_of, state};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::health::Check;
use crate::model::{
    Action, Forward, Frontend, HostPort, Ip, Masquerade, Model, NodeView, Owner, Place, Protocol, Target,
};

/// Services with this label belong to another proxy.
pub(crate) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Services with this label have no proxy at all.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
/// Upstream's default of three hours.
const AFFINITY_SECONDS: u32 = 10800;

/// The whole model from all objects; what [`crate::run`] keeps up to date Service by Service.
pub fn desired<S, E>(services: &[S], slices: &[E], node: &NodeView, host_ports: &[HostPort]) -> Model
where
    S: Borrow<Service>,
    E: Borrow<EndpointSlice>,
{
    let mut model = Model::default();
    for service in services.iter().map(Borrow::borrow) {
        let key = ObjectKey::of(service);
        let own: Vec<&EndpointSlice> =
            slices.iter().map(Borrow::borrow).filter(|s| service_of(s).as_ref() == Some(&key)).collect();
        model.set(&Owner::service(&key), targets(service, &own, node));
    }
    model.set(&Owner::HostPort, host_port_targets(host_ports, node));
    model
}

/// What one Service asks of the node; `slices` are those of the Service.
pub fn targets<E: Borrow<EndpointSlice>>(
    service: &Service,
    slices: &[E],
    node: &NodeView,
) -> Vec<(Frontend, Target)> {
    let served = |s: &&ServiceSpec| !is_foreign(service) && s.type_.as_deref() != Some("ExternalName");
    let Some(spec) = service.spec.as_ref().filter(served) else { return Vec::new() };
    let cluster_ips = cluster_ips(service);
    if cluster_ips.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else { continue };
        for ip in [Ip::V4, Ip::V6] {
            if !cluster_ips.iter().any(|a| Ip::of(*a) == ip) {
                continue;
            }
            let found = Found::new(port, ip, slices, node);
            let family = ServiceFamily { service, cluster_ips: &cluster_ips, ip };
            family.frontends(port, protocol, &found, &mut out);
        }
    }
    out
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let many = spec.cluster_ips.iter().flatten();
    let all: BTreeSet<IpAddr> = many.chain(&spec.cluster_ip).filter_map(|a| a.parse().ok()).collect();
    all.into_iter().collect()
}

/// The addresses that a load balancer gave a Service and that lead here. A balancer in mode Proxy ends connections
/// itself: its address must leave the node.
pub fn balanced_addresses(service: &Service) -> Vec<IpAddr> {
    let balanced = service.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"));
    let status = service.status.as_ref().filter(|_| balanced).and_then(|s| s.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|l| l.ingress.iter().flatten());
    let here = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    here.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect()
}

/// What load balancers that probe this node are to be told of a Service, if it wants them to; `slices` are those of the
/// Service.
pub fn health_check<E: Borrow<EndpointSlice>>(service: &Service, slices: &[E], node: &str) -> Option<Check> {
    let spec = service.spec.as_ref().filter(|_| !is_foreign(service))?;
    let asks = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| asks).and_then(|n| u16::try_from(n).ok())?;
    let endpoints = slices.iter().flat_map(|slice| &slice.borrow().endpoints);
    let here = endpoints.filter(|e| e.node_name.as_deref() == Some(node) && state(e) == State::Ready);
    // One Pod counts once, however many ports and slices it is in.
    let addresses: BTreeSet<&String> = here.filter_map(|e| e.addresses.first()).collect();
    (port > 0).then_some(Check { port, local: addresses.len() })
}

/// Whether another proxy, or none, serves it.
pub fn is_foreign(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    labels.is_some_and(|l| l.contains_key(PROXY_NAME) || l.contains_key(HEADLESS))
}

/// The endpoints of one port in one family.
struct Found {
    all: BTreeSet<SocketAddr>,
    local: BTreeSet<SocketAddr>,
}

impl Found {
    fn new<E: Borrow<EndpointSlice>>(port: &ServicePort, ip: Ip, slices: &[E], node: &NodeView) -> Self {
        let candidates = Candidates::of(port, slices).in_family(ip == Ip::V4);
        let here = Near { node: &node.name, zone: node.zone.as_deref() };
        // All and local fall back on their own: a node may have only terminating endpoints left.
        let (mut all, mut local) = (candidates.cluster(Some(here)), candidates.local(&node.name));
        all.retain(|addr| !is_special(addr.ip()));
        local.retain(|addr| !is_special(addr.ip()));
        Self { all, local }
    }
}

/// Addresses that mean something else on every machine. The API takes none of them as endpoints; forwarding to one that is
/// there all the same would open the node's own loopback to Pods.
fn is_special(addr: IpAddr) -> bool {
    let link_local = match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    };
    link_local || addr.is_loopback() || addr.is_unspecified() || addr.is_multicast()
}

/// One Service in one family.
struct ServiceFamily<'a> {
    service: &'a Service,
    cluster_ips: &'a [IpAddr],
    ip: Ip,
}

impl ServiceFamily<'_> {
    fn frontends(
        &self,
        port: &ServicePort,
        protocol: Protocol,
        found: &Found,
        out: &mut Vec<(Frontend, Target)>,
    ) {
        let Some(spec) = &self.service.spec else { return };
        let Some(number) = u16::try_from(port.port).ok().filter(|n| *n > 0) else { return };
        let internal = self.action(found, spec.internal_traffic_policy.as_deref() == Some("Local"), false);
        let external = self.action(found, spec.external_traffic_policy.as_deref() == Some("Local"), true);
        let hairpins: BTreeSet<IpAddr> = found.local.iter().map(SocketAddr::ip).collect();
        let target = |action: &Action, cluster_ip| Target {
            action: action.clone(),
            cluster_ip,
            hairpins: hairpins.iter().copied().collect(),
            sources: Vec::new(),
        };
        let mut push = |place, port, target| out.push((Frontend { place, protocol, port }, target));
        for addr in self.cluster_ips.iter().filter(|a| Ip::of(**a) == self.ip) {
            push(Place::Address(*addr), number, target(&internal, true));
        }
        let balanced = balanced_addresses(self.service);
        let sources = self.sources();
        for addr in self.external_addresses(&balanced) {
            let sources = if balanced.contains(&addr) { sources.clone() } else { Vec::new() };
            push(Place::Address(addr), number, Target { sources, ..target(&external, false) });
        }
        let node_port = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        if let Some(node_port) = node_port
            && matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        {
            push(Place::Node(self.ip), node_port, target(&external, false));
        }
    }

    fn external_addresses(&self, balanced: &[IpAddr]) -> BTreeSet<IpAddr> {
        let own = self.service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
        own.filter_map(|a| a.parse().ok())
            .chain(balanced.iter().copied())
            .filter(|a| Ip::of(*a) == self.ip && !self.cluster_ips.contains(a))
            .collect()
    }

    /// The networks of this family that may connect to the load balancer; with none named, all may.
    fn sources(&self) -> Vec<IpNet> {
        let ranges = self.service.spec.iter().flat_map(|s| s.load_balancer_source_ranges.iter().flatten());
        let ranges = ranges.filter_map(|r| r.trim().parse::<IpNet>().ok()).map(|net| net.trunc());
        let ranges: BTreeSet<IpNet> = ranges.filter(|net| Ip::of(net.addr()) == self.ip).collect();
        ranges.into_iter().collect()
    }

    fn affinity(&self) -> Option<u32> {
        let spec =
            self.service.spec.as_ref().filter(|s| s.session_affinity.as_deref() == Some("ClientIP"))?;
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok());
        Some(seconds.filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS))
    }

    fn action(&self, found: &Found, local: bool, external: bool) -> Action {
        if found.all.is_empty() && found.local.is_empty() {
            return Action::Refuse;
        }
        let list = |set: &BTreeSet<SocketAddr>| set.iter().copied().collect::<Vec<_>>();
        if local && !external && found.local.is_empty() {
            return Action::Drop;
        }
        Action::Forward(Forward {
            endpoints: list(if local { &found.local } else { &found.all }),
            masquerade: match (external, local) {
                (true, true) => Masquerade::Never,
                (true, false) => Masquerade::Always,
                (false, _) => Masquerade::Outsiders,
            },
            affinity: self.affinity(),
            insiders: (local && external).then(|| list(&found.all)),
        })
    }
}

/// What the host ports of the node's containers ask for.
pub fn host_port_targets(ports: &[HostPort], node: &NodeView) -> Vec<(Frontend, Target)> {
    let sorted: BTreeSet<&HostPort> = ports.iter().filter(|p| p.host_port > 0).collect();
    let place = |port: &HostPort| match port.host_ip {
        Some(addr) if !addr.is_unspecified() => Place::Address(addr),
        _ => Place::Node(Ip::of(port.target.ip())),
    };
    let mut out = Vec::new();
    for port in sorted {
        let place = place(port);
        // An address of the other family, or of nobody here, would catch traffic that is not the node's.
        let ours = match place {
            Place::Address(addr) => addr.is_loopback() || node.addresses.contains(&addr),
            Place::Node(_) => true,
        };
        if !ours || place.ip() != Ip::of(port.target.ip()) {
            continue;
        }
        let forward = Forward {
            endpoints: vec![port.target],
            masquerade: Masquerade::Never,
            affinity: None,
            insiders: None,
        };
        let target = Target {
            action: Action::Forward(forward),
            cluster_ip: false,
            hairpins: vec![port.target.ip()],
            sources: Vec::new(),
        };
        out.push((Frontend { place, protocol: port.protocol, port: port.host_port }, target));
    }
    out
}
