//! What the zone keeps of a Service and of a slice.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::name::Qname;

/// A transport that ports are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the protocols'")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn read(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// As a label has it, behind the underscore.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port; the name is empty where it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// In lower case.
    pub name: Box<str>,
    /// Of what.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// What a Service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Another name, as in a message.
    Alias(Box<[u8]>),
    /// Cluster IPs.
    Addresses(Box<[IpAddr]>),
    /// Its endpoints.
    Headless,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What its name stands for.
    pub kind: Kind,
    /// Its ports.
    pub ports: Box<[Port]>,
    /// Endpoints count whether ready or not.
    pub unready_too: bool,
}

impl Service {
    /// What a Service says about names; nothing before it has addresses.
    pub(super) fn read(service: &ApiService) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default().to_ascii_lowercase().into();
            let protocol = Protocol::read(port.protocol.as_deref())?;
            Some(Port { name, protocol, number: u16::try_from(port.port).ok()? })
        });
        let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => {
                // A name that is none, or only an address, has no records (RFC 1123).
                let target = Qname::parse(spec.external_name.as_deref()?).filter(|name| name.labels() > 0)?;
                Kind::Alias(target.wire().into())
            }
            (_, Some("None")) => Kind::Headless,
            (_, Some(first)) if !first.is_empty() => {
                let all = spec.cluster_ips.as_deref().filter(|all| !all.is_empty());
                let one = [first.to_owned()];
                Kind::Addresses(all.unwrap_or(&one).iter().filter_map(|ip| ip.parse().ok()).collect())
            }
            _ => return None,
        };
        Some(Self {
            kind,
            ports: ports.collect(),
            unready_too: spec.publish_not_ready_addresses == Some(true),
        })
    }
}

/// One address of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    addr: IpAddr,
    host: Option<Box<str>>,
    ready: bool,
}

/// A slice of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// `metadata.name`.
    pub name: Box<str>,
    ports: Arc<[Port]>,
    members: Box<[Member]>,
}

impl Slice {
    pub(super) fn read(name: &str, slice: &EndpointSlice, pod_names: bool) -> Self {
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default().to_ascii_lowercase().into();
            let protocol = Protocol::read(port.protocol.as_deref())?;
            Some(Port { name, protocol, number: u16::try_from(port.port?).ok()? })
        });
        let given = if slice.address_type == "FQDN" { &[][..] } else { &slice.endpoints[..] };
        let members = given.iter().flat_map(|endpoint| {
            let own = endpoint.hostname.as_deref().filter(|host| !host.is_empty());
            let pod =
                endpoint.target_ref.as_ref().filter(|of| pod_names && of.kind.as_deref() == Some("Pod"));
            let host = own.or(pod.and_then(|of| of.name.as_deref())).map(str::to_ascii_lowercase);
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
            let addresses = endpoint.addresses.iter().filter_map(|addr| addr.parse().ok());
            addresses.map(move |addr| Member { addr, host: host.clone().map(Into::into), ready })
        });
        Self { name: name.into(), ports: ports.collect(), members: members.collect() }
    }
}

/// A ready endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub addr: IpAddr,
    /// Its label below the Service's name; its address with dashes when it has none.
    pub host: Option<Box<str>>,
    /// Where it listens.
    pub ports: Arc<[Port]>,
}

/// The endpoints that count, each address and host once, with the ports of all slices that it is in.
pub(super) fn endpoints(slices: &[Slice], unready_too: bool) -> Box<[Endpoint]> {
    let mut seen: HashMap<(IpAddr, Option<&str>), usize> = HashMap::new();
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices {
        for member in slice.members.iter().filter(|m| m.ready || unready_too) {
            match seen.get(&(member.addr, member.host.as_deref())) {
                Some(known) => {
                    let known = &mut all[*known].ports;
                    let more: Vec<Port> =
                        slice.ports.iter().filter(|p| !known.contains(p)).cloned().collect();
                    if !more.is_empty() {
                        *known = known.iter().cloned().chain(more).collect();
                    }
                }
                None => {
                    seen.insert((member.addr, member.host.as_deref()), all.len());
                    let (addr, host, ports) = (member.addr, member.host.clone(), slice.ports.clone());
                    all.push(Endpoint { addr, host, ports });
                }
            }
        }
    }
    all.into()
}
