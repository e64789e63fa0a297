//! Ingresses, classes, Services, EndpointSlices and Secrets -> the routing table. Pure.
//!
//! Older Ingresses come first where two say the same, as in ingress-nginx; equally old ones by namespace and name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use client::ObjectKey;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressSpec};

use crate::annotations::{PREFIX, Policy};
use crate::backends::{Backends, Manner, Port};
use crate::certificates::{self, Certificates};
use crate::configmap::{Global, fields};
use crate::state::State;
use crate::table::{Alternative, Builder, Location, PathType, Served, Table};
use crate::upstream::Backend;

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
    /// ConfigMaps.
    pub configs: HashMap<ObjectKey, Arc<ConfigMap>>,
    /// The ConfigMap of the controller's settings.
    pub settings: Option<ObjectKey>,
    /// The Secret of the certificate for names that have none.
    pub default_certificate: Option<ObjectKey>,
}

/// What is wrong with an object, for its owner: an Ingress, or the ConfigMap of the settings.
pub type Problems = BTreeSet<(ObjectKey, String)>;

/// The table for these objects, and what is wrong with them.
pub fn table(objects: &Objects, state: &mut State) -> (Table, Problems) {
    let mut problems = Problems::new();
    let global = Arc::new(global(objects, &mut problems));
    let mut sorted = objects.ingresses.clone();
    sorted.sort_by_cached_key(|i| (i.metadata.creation_timestamp.as_ref().map(|t| t.0), ObjectKey::of(&**i)));
    let mut building = Building {
        objects,
        backends: Backends::new(&objects.services, &objects.slices),
        state,
        global: &global,
        builder: Builder::default(),
        certificates: Certificates::default(),
        problems,
        policies: HashMap::new(),
    };
    if let Some(key) = &objects.default_certificate {
        building.default_certificate(key);
    }
    for ingress in &sorted {
        if let Some(spec) = &ingress.spec {
            building.ingress(ingress, spec);
        }
    }
    let Building { builder, certificates, mut problems, .. } = building;
    let table = builder.finish(certificates, global.clone(), |ingress, why| {
        problems.insert((ingress.clone(), why));
    });
    state.settle();
    (table, problems)
}

/// The settings of all Ingresses.
fn global(objects: &Objects, problems: &mut Problems) -> Global {
    let Some(key) = &objects.settings else { return Global::default() };
    let data = |key: &ObjectKey| objects.configs.get(key).and_then(|config| config.data.as_ref());
    let none = BTreeMap::new();
    let mut global = Global::parse(data(key).unwrap_or(&none), |why| {
        problems.insert((key.clone(), why));
    });
    let mut other = |name: &Option<String>| {
        let (namespace, name) = name.as_ref()?.split_once('/')?;
        let found = data(&ObjectKey::new(namespace, name));
        if found.is_none() {
            problems.insert((key.clone(), format!("ConfigMap {namespace}/{name} does not exist")));
        }
        found
    };
    let (add, set) = (other(&global.add_headers_from), other(&global.set_headers_from));
    global.headers(add, set);
    global
}

/// Annotations of ours and their values.
type Said<'a> = Vec<(&'a String, &'a String)>;

struct Building<'a> {
    objects: &'a Objects,
    backends: Backends<'a>,
    state: &'a mut State,
    global: &'a Global,
    builder: Builder,
    certificates: Certificates,
    problems: Problems,
    /// What was made of annotations, and what is wrong with them.
    policies: HashMap<Said<'a>, (Arc<Policy>, Vec<String>)>,
}

impl<'a> Building<'a> {
    fn ingress(&mut self, ingress: &'a Ingress, spec: &IngressSpec) {
        let key = Arc::new(ObjectKey::of(ingress));
        let served = self.served(&key, ingress);
        let secured = self.tls(&key, spec);
        if served.policy.canary.enabled {
            return self.canary(&key, spec, &served);
        }
        let default = spec.default_backend.as_ref();
        if let Some(backend) = default.filter(|_| spec.rules.iter().flatten().next().is_none()) {
            self.otherwise("", &key, backend, &served, false);
        }
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            let tls = covered(&secured, &host);
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let Some(backend) = self.backend(&key, &path.backend, &served) else { continue };
                let location = Location::new(key.clone(), backend, served.clone(), tls);
                let text = path.path.as_deref().unwrap_or_default();
                self.builder.path(&host, text, path_type(path), location);
            }
            if let Some(backend) = default {
                self.otherwise(&host, &key, backend, &served, tls);
            }
        }
    }

    /// A canary has no rules of its own: it is a second backend of somebody else's.
    fn canary(&mut self, key: &ObjectKey, spec: &IngressSpec, served: &Arc<Served>) {
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let Some(backend) = self.backend(key, &path.backend, served) else { continue };
                let alternative = Alternative { ingress: key.clone(), backend, served: served.clone() };
                self.builder.canary(
                    &host,
                    path.path.as_deref().unwrap_or_default(),
                    path_type(path),
                    alternative,
                );
            }
        }
    }

    fn otherwise(
        &mut self,
        host: &str,
        key: &Arc<ObjectKey>,
        backend: &IngressBackend,
        served: &Arc<Served>,
        tls: bool,
    ) {
        if let Some(backend) = self.backend(key, backend, served) {
            self.builder.otherwise(host, Location::new(key.clone(), backend, served.clone(), tls));
        }
    }

    fn backend(
        &mut self,
        ingress: &ObjectKey,
        backend: &IngressBackend,
        served: &Served,
    ) -> Option<Arc<Backend>> {
        let Some(service) = &backend.service else {
            let why = "a backend is a resource, which no rule of this controller can serve; name a Service";
            self.problem(ingress, why);
            return None;
        };
        let port = service.port.as_ref();
        let port = match port.and_then(|p| p.name.clone()) {
            Some(name) => Port::Name(name),
            None => Port::Number(port.and_then(|p| p.number).unwrap_or_default()),
        };
        self.service(ingress, &service.name, port, &served.policy)
    }

    fn service(
        &mut self,
        ingress: &ObjectKey,
        name: &str,
        port: Port,
        policy: &Policy,
    ) -> Option<Arc<Backend>> {
        let upstream = &policy.upstream;
        let mut secret = None;
        if upstream.tls
            && let Some((namespace, name)) = &upstream.backend_tls.secret
        {
            let key = ObjectKey::new(namespace.as_ref().unwrap_or(&ingress.namespace), name);
            secret = self.objects.secrets.get(&key);
            if secret.is_none() {
                self.problem(ingress, format!("Secret {name:?} of proxy-ssl-secret does not exist"));
            }
        }
        let manner = Manner::of(upstream, secret);
        let made = self.backends.get(&ObjectKey::new(&ingress.namespace, name), &port, &manner, self.state);
        Some(made.unwrap_or_else(|why| {
            self.problem(ingress, why);
            Arc::new(Backend::new(name, &port.to_string(), Vec::new()))
        }))
    }

    fn problem(&mut self, key: &ObjectKey, why: impl Into<String>) {
        self.problems.insert((key.clone(), why.into()));
    }

    /// What annotations come to; most Ingresses say what others have said.
    fn policy(&mut self, key: &ObjectKey, annotations: Option<&'a BTreeMap<String, String>>) -> Arc<Policy> {
        let ours: Vec<_> = annotations.into_iter().flatten().filter(|(k, _)| k.starts_with(PREFIX)).collect();
        let (policy, problems) = self.policies.entry(ours).or_insert_with(|| {
            let mut problems = Vec::new();
            let policy = Policy::parse(&self.global.policy, annotations, |p| problems.push(p.to_string()));
            (Arc::new(policy), problems)
        });
        self.problems.extend(problems.iter().map(|why| (key.clone(), why.clone())));
        policy.clone()
    }

    /// The annotations of an Ingress, and the objects that they name.
    fn served(&mut self, key: &ObjectKey, ingress: &'a Ingress) -> Arc<Served> {
        let mut served =
            Served { policy: self.policy(key, ingress.metadata.annotations.as_ref()), ..Served::default() };
        let in_reach = |namespace: &Option<String>, name: &str| {
            ObjectKey::new(namespace.as_ref().unwrap_or(&key.namespace), name)
        };
        if let Some(basic) = &served.policy.auth.basic {
            let at = in_reach(&basic.secret.0, &basic.secret.1);
            match self
                .objects
                .secrets
                .get(&at)
                .ok_or_else(|| "does not exist".to_owned())
                .and_then(|s| self.state.users(s, basic.kind))
            {
                Ok(users) => served.users = Some(users),
                Err(why) => self.problem(key, format!("Secret {at} of auth-secret {why}; nobody is let in")),
            }
        }
        if let Some((namespace, name)) = &served.policy.client_tls.secret {
            let at = in_reach(namespace, name);
            match self
                .objects
                .secrets
                .get(&at)
                .ok_or_else(|| "does not exist".to_owned())
                .and_then(|s| self.state.authority(s))
            {
                Ok(authority) => served.authority = Some(authority),
                Err(why) => {
                    self.problem(key, format!("Secret {at} of auth-tls-secret: {why}; nobody is let in"));
                    served.closed = true;
                }
            }
        }
        if served.policy.limits.counts() {
            served.zones = Some(self.state.zones(key, &served.policy.limits));
        }
        served.headers = self.headers(key, served.policy.response.custom_headers.as_ref(), "custom-headers");
        let allowed = &self.global.allowed_headers;
        if !allowed.is_empty() {
            let kept = served.headers.iter().filter(|(name, _)| allowed.contains(name));
            served.headers = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        let set = served.policy.auth.external.as_ref().and_then(|external| external.set_headers.as_ref());
        served.auth_headers = self.headers(key, set, "auth-proxy-set-headers");
        if let Some(name) = served.policy.response.default_backend.clone() {
            let first = self.objects.services.get(&ObjectKey::new(&key.namespace, &name));
            let port = first.and_then(|s| s.spec.as_ref()?.ports.as_ref()?.first()).map_or(0, |p| p.port);
            if first.is_none() {
                self.problem(key, format!("Service {name:?} of default-backend does not exist"));
            }
            let plain = Policy::default();
            served.default_backend = self.service(key, &name, Port::Number(port), &plain);
        }
        Arc::new(served)
    }

    fn headers(
        &mut self,
        key: &ObjectKey,
        from: Option<&(Option<String>, String)>,
        what: &str,
    ) -> http::HeaderMap {
        let Some((namespace, name)) = from else { return http::HeaderMap::new() };
        let at = ObjectKey::new(namespace.as_ref().unwrap_or(&key.namespace), name);
        match self.objects.configs.get(&at) {
            Some(config) => config.data.as_ref().map(fields).unwrap_or_default(),
            None => {
                self.problem(key, format!("ConfigMap {at} of {what} does not exist"));
                http::HeaderMap::new()
            }
        }
    }

    fn default_certificate(&mut self, key: &ObjectKey) {
        let found = self.objects.secrets.get(key).ok_or_else(|| "does not exist".to_owned());
        match found.and_then(|secret| self.state.certificate(secret)) {
            Ok(certificate) => self.certificates.otherwise = Some(certificate),
            Err(why) => self.problem(key, format!("the default certificate: {why}")),
        }
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
            let found = self.objects.secrets.get(&ObjectKey::new(&key.namespace, name));
            match found.ok_or_else(|| "does not exist".to_owned()).and_then(|s| self.state.certificate(s)) {
                Ok(certificate) => {
                    for host in hosts {
                        if certificates::names(&certificate, host) {
                            self.certificates.add(host, &certificate);
                        } else {
                            let why = format!(
                                "Secret {name:?}: its certificate does not name {host:?}; the default certificate is shown instead"
                            );
                            self.problem(key, why);
                        }
                    }
                }
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
