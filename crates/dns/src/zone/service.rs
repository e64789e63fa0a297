//! What the zone keeps of a Service and of a slice.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::name::Qname;

/// A transport that ports are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Port {
    /// In lower case.
    pub name: Box<str>,
    /// Of what.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// Each list of ports once.
#[derive(Debug, Default)]
pub(super) struct PortLists {
    lists: HashSet<Arc<[Port]>>,
    /// How many there were when those without use were last thrown away.
    swept: usize,
}

impl PortLists {
    fn share(&mut self, ports: Vec<Port>) -> Arc<[Port]> {
        if let Some(known) = self.lists.get(&ports[..]) {
            return known.clone();
        }
        if self.lists.len() > 2 * self.swept + 64 {
            self.lists.retain(|list| Arc::strong_count(list) > 1);
            self.swept = self.lists.len();
        }
        let list: Arc<[Port]> = ports.into();
        self.lists.insert(list.clone());
        list
    }
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
    pub ports: Arc<[Port]>,
    /// Endpoints count whether ready or not.
    pub unready_too: bool,
}

impl Service {
    /// What a Service says about names; nothing before it has addresses.
    pub(super) fn read(service: &ApiService, lists: &mut PortLists) -> Option<Self> {
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
            ports: lists.share(ports.collect()),
            unready_too: spec.publish_not_ready_addresses == Some(true),
        })
    }
}

/// One address of a slice, and of a Service if it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub addr: IpAddr,
    ready: bool,
    /// Its label below the Service's name; its address with dashes when it has none.
    pub host: Option<Box<str>>,
    /// Where it listens.
    pub ports: Arc<[Port]>,
}

/// A slice of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// `metadata.name`.
    pub name: Box<str>,
    /// All of them, ready or not.
    pub(super) endpoints: Box<[Endpoint]>,
}

impl Slice {
    pub(super) fn read(name: &str, slice: &EndpointSlice, pod_names: bool, lists: &mut PortLists) -> Self {
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default().to_ascii_lowercase().into();
            let protocol = Protocol::read(port.protocol.as_deref())?;
            Some(Port { name, protocol, number: u16::try_from(port.port?).ok()? })
        });
        let ports = lists.share(ports.collect());
        let given = if slice.address_type == "FQDN" { &[][..] } else { &slice.endpoints[..] };
        let endpoints = given.iter().flat_map(|endpoint| {
            let own = endpoint.hostname.as_deref().filter(|host| !host.is_empty());
            let pod =
                endpoint.target_ref.as_ref().filter(|of| pod_names && of.kind.as_deref() == Some("Pod"));
            let host = own.or(pod.and_then(|of| of.name.as_deref())).map(str::to_ascii_lowercase);
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
            let addresses = endpoint.addresses.iter().filter_map(|addr| addr.parse().ok());
            let ports = &ports;
            addresses.map(move |addr| Endpoint {
                addr,
                ready,
                host: host.clone().map(Into::into),
                ports: ports.clone(),
            })
        });
        Self { name: name.into(), endpoints: endpoints.collect() }
    }
}

/// The endpoints that count, each address and host once, with the ports of all slices that it is in; none where they are
/// just all those of the only slice.
pub(super) fn merged(slices: &[Slice], unready_too: bool) -> Option<Box<[Endpoint]>> {
    let mut seen: HashMap<(IpAddr, Option<&str>), usize> = HashMap::new();
    let mut all: Vec<Endpoint> = Vec::new();
    for endpoint in slices.iter().flat_map(|slice| &slice.endpoints).filter(|e| e.ready || unready_too) {
        match seen.get(&(endpoint.addr, endpoint.host.as_deref())) {
            Some(known) => {
                let known = &mut all[*known].ports;
                let more: Vec<Port> = endpoint.ports.iter().filter(|p| !known.contains(p)).cloned().collect();
                if !more.is_empty() {
                    *known = known.iter().cloned().chain(more).collect();
                }
            }
            None => {
                seen.insert((endpoint.addr, endpoint.host.as_deref()), all.len());
                all.push(endpoint.clone());
            }
        }
    }
    match slices {
        [only] if only.endpoints.len() == all.len() => None,
        _ => Some(all.into()),
    }
}
