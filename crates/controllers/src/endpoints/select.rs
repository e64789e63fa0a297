//! Which Pods stand behind a Service, and as what.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerPort, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{meta, pods};

/// An address family, by the name that `spec.ipFamilies` and slices use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    IPv4,
    IPv6,
}

impl Family {
    /// `IPv4` or `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }

    /// The family of a textual address.
    pub fn of(ip: &str) -> Option<Self> {
        match ip.parse().ok()? {
            IpAddr::V4(_) => Some(Self::IPv4),
            IpAddr::V6(_) => Some(Self::IPv6),
        }
    }
}

/// One port of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    /// Of the Service's port; empty if it has none.
    pub name: String,
    pub number: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// A Pod behind a Service.
#[derive(Debug, Clone)]
pub(super) struct Backend<'a> {
    pub pod: &'a Pod,
    pub ports: BTreeSet<Port>,
    /// The Pod's Ready condition.
    pub serving: bool,
    pub terminating: bool,
    /// Serving and not terminating, or the Service does not ask.
    pub ready: bool,
    /// Set when the Service is the Pod's subdomain.
    pub hostname: Option<&'a str>,
}

impl Backend<'_> {
    /// The Pod's address in that family.
    pub fn address(&self, family: Family) -> Option<&str> {
        let status = self.pod.status.as_ref()?;
        let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        all.chain(status.pod_ip.as_deref()).find(|ip| Family::of(ip) == Some(family))
    }
}

/// The families of a Service; IPv4 when it does not say.
pub(super) fn families(service: &Service) -> Vec<Family> {
    let named = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    let known = named.iter().filter_map(|name| match name.as_str() {
        "IPv4" => Some(Family::IPv4),
        "IPv6" => Some(Family::IPv6),
        _ => None,
    });
    let known: Vec<Family> = known.collect();
    if known.is_empty() { vec![Family::IPv4] } else { known }
}

/// All Pods of `candidates` (already selected by labels) that have an address and have not finished.
pub(super) fn select<'a>(service: &Service, candidates: impl Iterator<Item = &'a Pod>) -> Vec<Backend<'a>> {
    let spec = service.spec.clone().unwrap_or_default();
    let unready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let service_ports = spec.ports.unwrap_or_default();
    let backend = |pod: &'a Pod| {
        let serving = pods::ready(pod);
        let terminating = meta::deleting(&pod.metadata);
        Backend {
            pod,
            ports: service_ports.iter().filter_map(|port| resolve(port, pod)).collect(),
            serving,
            terminating,
            ready: unready_too || (serving && !terminating),
            hostname: hostname(service, pod),
        }
    };
    candidates.filter(|pod| !pods::finished(pod) && has_address(pod)).map(backend).collect()
}

fn has_address(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|s| {
        s.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty())
            || s.pod_ips.as_ref().is_some_and(|l| !l.is_empty())
    })
}

fn hostname<'a>(service: &Service, pod: &'a Pod) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let host = spec.hostname.as_deref().filter(|h| !h.is_empty())?;
    (service.metadata.name.as_deref() == Some(subdomain)).then_some(host)
}

/// The port of the Pod that a Service port means; `None` if the Pod has no port of that name.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
    };
    let name = port.name.clone().unwrap_or_default();
    Some(Port { name, number, protocol, app_protocol: port.app_protocol.clone() })
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let is_it = |p: &&ContainerPort| {
        p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.into_iter().find(is_it).map(|p| p.container_port)
}
