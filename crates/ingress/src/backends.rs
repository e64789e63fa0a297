//! Services and EndpointSlices -> where requests of a Service port go.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use client::ObjectKey;
use client::endpoints::{Candidates, service_of};
use k8s_openapi::api::core::v1::{Secret, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::annotations::upstream::{BackendTls, Protocol, Upstream};
use crate::state::State;
use crate::upstream::Backend;
use crate::upstream::endpoint::{Address, Transport};

/// A port as an Ingress names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Port {
    Name(String),
    Number(i32),
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl Port {
    fn is(&self, port: &ServicePort) -> bool {
        match self {
            Self::Name(name) => port.name.as_ref() == Some(name),
            Self::Number(number) => port.port == *number,
        }
    }
}

/// How a backend is spoken to; what tells two backends of one Service port apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Manner {
    pub protocol: Protocol,
    pub tls: Option<(BackendTls, Option<Version>)>,
    /// Through the Service's own address.
    pub service: bool,
}

/// A Secret as it is at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Version(pub Arc<Secret>);

impl Version {
    fn key(&self) -> (Option<&str>, Option<&str>, Option<&str>) {
        let meta = &self.0.metadata;
        (meta.namespace.as_deref(), meta.name.as_deref(), meta.resource_version.as_deref())
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Version {}

impl std::hash::Hash for Version {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl Manner {
    pub fn of(upstream: &Upstream, secret: Option<&Arc<Secret>>) -> Self {
        let tls = upstream.tls.then(|| (upstream.backend_tls.clone(), secret.map(|s| Version(s.clone()))));
        Self { protocol: upstream.protocol, tls, service: upstream.service }
    }
}

/// One backend per Service port and manner, shared by all that name it, so that their turns are shared as well.
pub(crate) struct Backends<'a> {
    services: &'a HashMap<ObjectKey, Arc<Service>>,
    slices: HashMap<ObjectKey, Vec<&'a EndpointSlice>>,
    made: HashMap<(ObjectKey, Port, Manner), Arc<Backend>>,
}

impl<'a> Backends<'a> {
    pub fn new(services: &'a HashMap<ObjectKey, Arc<Service>>, all: &'a [Arc<EndpointSlice>]) -> Self {
        let mut slices: HashMap<ObjectKey, Vec<&EndpointSlice>> = HashMap::new();
        for slice in all {
            if let Some(service) = service_of(slice) {
                slices.entry(service).or_default().push(slice);
            }
        }
        Self { services, slices, made: HashMap::new() }
    }

    /// The backend of a Service port.
    ///
    /// # Errors
    /// What is wrong with the Secret of its TLS.
    pub fn get(
        &mut self,
        service: &ObjectKey,
        port: &Port,
        manner: &Manner,
        state: &mut State,
    ) -> Result<Arc<Backend>, String> {
        let key = (service.clone(), port.clone(), manner.clone());
        if let Some(backend) = self.made.get(&key) {
            return Ok(backend.clone());
        }
        let greeting = match &manner.tls {
            Some((settings, secret)) => Some(state.greeting(settings, manner.protocol, secret.as_ref())?),
            None => None,
        };
        let transport = Transport { protocol: manner.protocol, greeting };
        let endpoints = state.endpoints(self.addresses(service, port, manner.service), manner, &transport);
        let backend = Backend::new(&service.name, &port.to_string(), endpoints);
        let backend = Arc::new(state.turns(&key, backend));
        state.remember(key.clone(), &backend);
        self.made.insert(key, backend.clone());
        Ok(backend)
    }

    fn addresses(&self, service: &ObjectKey, port: &Port, through_service: bool) -> BTreeSet<Address> {
        let Some(spec) = self.services.get(service).and_then(|s| s.spec.as_ref()) else {
            return BTreeSet::new();
        };
        let found = spec.ports.iter().flatten().find(|p| port.is(p));
        if spec.type_.as_deref() == Some("ExternalName") {
            let number = match (found, port) {
                (Some(found), _) => match &found.target_port {
                    Some(IntOrString::Int(number)) => *number,
                    _ => found.port,
                },
                (None, Port::Number(number)) => *number,
                (None, Port::Name(_)) => return BTreeSet::new(),
            };
            let name = spec.external_name.clone().filter(|name| !name.is_empty());
            return name
                .zip(u16::try_from(number).ok())
                .map(|(n, p)| Address::Name(n, p))
                .into_iter()
                .collect();
        }
        let Some(found) = found else { return BTreeSet::new() };
        let slices = self.slices.get(service).map(Vec::as_slice).unwrap_or_default();
        let all = endpoints(found, slices);
        let own = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
        match own.zip(u16::try_from(found.port).ok()).filter(|_| through_service && !all.is_empty()) {
            Some((ip, number)) => BTreeSet::from([Address::Socket((ip, number).into())]),
            None => all,
        }
    }
}

/// Whatever serves the cluster: the controller stands for clients everywhere, so hints are not for it.
fn endpoints(port: &ServicePort, slices: &[&EndpointSlice]) -> BTreeSet<Address> {
    Candidates::of(port, slices).cluster(None).iter().copied().map(Address::Socket).collect()
}
