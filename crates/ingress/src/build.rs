//! Ingresses, classes, Services, EndpointSlices and Secrets -> the routing table. Pure.
//!
//! Older Ingresses come first where two say the same, as in ingress-nginx; equally old ones by namespace and name.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use client::ObjectKey;
use client::endpoints::{Candidates, service_of};
use http::uri::Authority;
use k8s_openapi::api::core::v1::{Secret, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressSpec};

use crate::annotations::Settings;
use crate::certificates::{Cache, Certificates};
use crate::table::{Backend, Builder, Location, PathType, Table};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Which Ingresses are ours.
#[derive(Debug, Clone)]
pub struct Ours {
    /// `spec.controller` of our classes.
    pub controller: String,
    /// Those without a class as well.
    pub without_class: bool,
}

impl Ours {
    /// Whether an Ingress is to be served.
    pub fn serves(&self, ingress: &Ingress, classes: &[Arc<IngressClass>]) -> bool {
        let annotations = ingress.metadata.annotations.as_ref();
        let by_annotation = annotations.and_then(|a| a.get(CLASS_ANNOTATION));
        let by_field = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref());
        let Some(name) = by_annotation.or(by_field) else { return self.without_class };
        classes.iter().any(|class| {
            let controller = class.spec.as_ref().and_then(|s| s.controller.as_ref());
            class.metadata.name.as_ref() == Some(name) && controller == Some(&self.controller)
        })
    }
}

/// What the API says at one moment.
#[derive(Debug, Default)]
pub struct Objects {
    /// Ingresses that are ours.
    pub ingresses: Vec<Arc<Ingress>>,
    /// All Services.
    pub services: HashMap<ObjectKey, Arc<Service>>,
    /// All slices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Secrets.
    pub secrets: HashMap<ObjectKey, Arc<Secret>>,
}

/// What is wrong with an Ingress, for its owner.
pub type Problems = BTreeSet<(ObjectKey, String)>;

/// The table for these objects, and what is wrong with them.
pub fn table(objects: &Objects, cache: &mut Cache) -> (Table, Problems) {
    let mut sorted = objects.ingresses.clone();
    sorted.sort_by_cached_key(|i| (i.metadata.creation_timestamp.as_ref().map(|t| t.0), ObjectKey::of(&**i)));
    let mut building = Building {
        backends: Backends::new(objects),
        secrets: &objects.secrets,
        cache,
        builder: Builder::default(),
        certificates: Certificates::default(),
        problems: Problems::new(),
    };
    for ingress in &sorted {
        if let Some(spec) = &ingress.spec {
            building.ingress(ingress, spec);
        }
    }
    let Building { builder, certificates, mut problems, .. } = building;
    let table = builder.finish(certificates, |ingress, why| {
        problems.insert((ingress.clone(), why));
    });
    (table, problems)
}

struct Building<'a> {
    backends: Backends<'a>,
    secrets: &'a HashMap<ObjectKey, Arc<Secret>>,
    cache: &'a mut Cache,
    builder: Builder,
    certificates: Certificates,
    problems: Problems,
}

impl Building<'_> {
    fn ingress(&mut self, ingress: &Ingress, spec: &IngressSpec) {
        let key = ObjectKey::of(ingress);
        let problems = &mut self.problems;
        let annotations = ingress.metadata.annotations.as_ref();
        let settings = Arc::new(Settings::parse(annotations, |why| {
            problems.insert((key.clone(), why));
        }));
        let secured = self.tls(&key, spec);
        let default = spec.default_backend.as_ref();
        if let Some(backend) = default.filter(|_| spec.rules.iter().flatten().next().is_none()) {
            self.otherwise("", &key, backend, &settings, false);
        }
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            let tls = covered(&secured, &host);
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let Some(backend) = self.backend(&key, &path.backend) else { continue };
                let location = Location::new(key.clone(), backend, settings.clone(), tls);
                let text = path.path.as_deref().unwrap_or_default();
                self.builder.path(&host, text, path_type(path), location);
            }
            if let Some(backend) = default {
                self.otherwise(&host, &key, backend, &settings, tls);
            }
        }
    }

    fn otherwise(
        &mut self,
        host: &str,
        key: &ObjectKey,
        backend: &IngressBackend,
        settings: &Arc<Settings>,
        tls: bool,
    ) {
        if let Some(backend) = self.backend(key, backend) {
            self.builder.otherwise(host, Location::new(key.clone(), backend, settings.clone(), tls));
        }
    }

    fn backend(&mut self, ingress: &ObjectKey, backend: &IngressBackend) -> Option<Arc<Backend>> {
        let Some(service) = &backend.service else {
            let why = "a backend is a resource, which no rule of this controller can serve; name a Service";
            self.problems.insert((ingress.clone(), why.to_owned()));
            return None;
        };
        let port = service.port.as_ref();
        let port = match port.and_then(|p| p.name.clone()) {
            Some(name) => Port::Name(name),
            None => Port::Number(port.and_then(|p| p.number).unwrap_or_default()),
        };
        Some(self.backends.get(&ObjectKey::new(&ingress.namespace, &service.name), port))
    }

    /// Takes the certificates of an Ingress in; gives the hosts that have TLS, with or without a good one.
    fn tls(&mut self, key: &ObjectKey, spec: &IngressSpec) -> HashSet<String> {
        let mut secured = HashSet::new();
        for tls in spec.tls.iter().flatten() {
            let named: Vec<&String> = tls.hosts.iter().flatten().collect();
            let of_rules = || spec.rules.iter().flatten().filter_map(|rule| rule.host.as_ref()).collect();
            let hosts: Vec<&String> = if named.is_empty() { of_rules() } else { named };
            secured.extend(hosts.iter().map(|host| host.to_ascii_lowercase()));
            let Some(name) = &tls.secret_name else { continue };
            let found = self.secrets.get(&ObjectKey::new(&key.namespace, name));
            match found.ok_or_else(|| "does not exist".to_owned()).and_then(|s| self.cache.get(s)) {
                Ok(certificate) => hosts.iter().for_each(|host| self.certificates.add(host, &certificate)),
                Err(why) => {
                    let why = format!("Secret {name:?}: {why}; the default certificate is shown instead");
                    self.problems.insert((key.clone(), why));
                }
            }
        }
        secured
    }
}

fn covered(secured: &HashSet<String>, host: &str) -> bool {
    let wildcard = || host.split_once('.').is_some_and(|(_, rest)| secured.contains(&format!("*.{rest}")));
    secured.contains(host) || wildcard()
}

fn path_type(path: &HTTPIngressPath) -> PathType {
    match path.path_type.as_str() {
        "Exact" => PathType::Exact,
        "Prefix" => PathType::Prefix,
        _ => PathType::Text,
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Port {
    Name(String),
    Number(i32),
}

/// One backend per Service port, shared by all that name it, so that their turns are shared as well.
struct Backends<'a> {
    services: &'a HashMap<ObjectKey, Arc<Service>>,
    slices: HashMap<ObjectKey, Vec<&'a EndpointSlice>>,
    made: HashMap<(ObjectKey, Port), Arc<Backend>>,
}

impl<'a> Backends<'a> {
    fn new(objects: &'a Objects) -> Self {
        let mut slices: HashMap<ObjectKey, Vec<&EndpointSlice>> = HashMap::new();
        for slice in &objects.slices {
            if let Some(service) = service_of(slice) {
                slices.entry(service).or_default().push(slice);
            }
        }
        Self { services: &objects.services, slices, made: HashMap::new() }
    }

    fn get(&mut self, service: &ObjectKey, port: Port) -> Arc<Backend> {
        let Self { services, slices, made } = self;
        let make = |port: &Port| {
            let ports = services.get(service).and_then(|s| s.spec.as_ref()?.ports.as_ref());
            let is = |p: &&ServicePort| match port {
                Port::Name(name) => p.name.as_ref() == Some(name),
                Port::Number(number) => p.port == *number,
            };
            let found = ports.into_iter().flatten().find(is);
            let slices = slices.get(service).map(Vec::as_slice).unwrap_or_default();
            Arc::new(Backend::new(found.map(|port| endpoints(port, slices)).unwrap_or_default()))
        };
        let key = (service.clone(), port);
        match made.get(&key) {
            Some(backend) => backend.clone(),
            None => {
                let backend = make(&key.1);
                made.insert(key, backend.clone());
                backend
            }
        }
    }
}

/// Whatever serves the cluster: the controller stands for clients everywhere, so hints are not for it.
fn endpoints(port: &ServicePort, slices: &[&EndpointSlice]) -> Vec<Authority> {
    let chosen = Candidates::of(port, slices).cluster(None);
    chosen.iter().filter_map(|addr| addr.to_string().parse().ok()).collect()
}
