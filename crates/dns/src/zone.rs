//! The index of the cluster's names: what a question needs of Services, slices, namespaces and Pods, and nothing else of
//! them, so that ten thousand Services fit into a few megabytes.
//!
//! A Service owns the subtree `SVC.NS.svc.ZONE`, so a change of one Service rebuilds that subtree and nothing else. A
//! question costs a few hash lookups.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::name::Domain;

mod service;

pub use service::{Endpoint, Kind, Port, Protocol, Service, Slice};

/// What becomes of the names of Pods, `a-b-c-d.NS.pod.ZONE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pods {
    /// They do not exist.
    #[default]
    Disabled,
    /// Whatever address stands in the name, if the namespace exists.
    Insecure,
    /// Only addresses that a Pod of that namespace has.
    Verified,
}

/// Which of the API's objects have names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Names of Pods.
    pub pods: Pods,
    /// Endpoints without a host name have that of their Pod.
    pub endpoint_pod_names: bool,
    /// Endpoints have no names, and headless Services neither.
    pub no_endpoints: bool,
    /// Services with a cluster IP and no ready endpoint have no names.
    pub ignore_empty: bool,
    /// The only namespaces that there are; all when empty.
    pub namespaces: Vec<String>,
    /// Only namespaces with these labels are there.
    pub namespace_labels: Option<String>,
    /// Only Services with these labels are there.
    pub labels: Option<String>,
    /// Addresses of Pods are needed, whatever `pods` says.
    pub follow_pods: bool,
}

impl Options {
    /// Whether the addresses of Pods must be known.
    pub fn needs_pods(&self) -> bool {
        self.follow_pods || self.pods == Pods::Verified
    }
}

/// The names of an address.
#[derive(Debug)]
enum Owners {
    One(Arc<str>),
    More(Vec<Arc<str>>),
}

impl Owners {
    fn all(&self) -> &[Arc<str>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    slices: Vec<Slice>,
    /// The ready endpoints of all slices, each address and host once.
    endpoints: Box<[Endpoint]>,
    /// Which addresses lead here, as long as they do.
    reverse: Box<[IpAddr]>,
}

/// A Service that has names.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// What it is.
    pub service: &'a Service,
    /// Its ready endpoints.
    pub endpoints: &'a [Endpoint],
}

/// All names of the cluster.
#[derive(Debug)]
pub struct Zone {
    origin: Domain,
    ttl: u32,
    serial: u32,
    synced: bool,
    options: Options,
    namespaces: HashSet<Box<str>>,
    /// By `NAMESPACE/NAME`.
    services: HashMap<Arc<str>, Entry>,
    /// Which Service each slice is of.
    slices: HashMap<Box<str>, Arc<str>>,
    reverse: HashMap<IpAddr, Owners>,
    /// The namespaces of the Pods that have these addresses.
    pods: HashMap<IpAddr, Arc<str>>,
    /// What each Pod has put there, by `NAMESPACE/NAME`.
    pod_addresses: HashMap<Box<str>, Box<[IpAddr]>>,
}

impl Zone {
    /// An empty zone that is not answered from before [`Self::set_synced`].
    pub fn new(origin: Domain, ttl: u32) -> Self {
        Self {
            origin,
            ttl,
            serial: 1,
            synced: false,
            options: Options { pods: Pods::Insecure, ..Options::default() },
            namespaces: HashSet::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            reverse: HashMap::new(),
            pods: HashMap::new(),
            pod_addresses: HashMap::new(),
        }
    }

    /// The zone's name.
    pub fn origin(&self) -> &Domain {
        &self.origin
    }

    /// Seconds for which clients may keep answers, negative ones too.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// From now on clients may keep answers this long.
    pub fn set_ttl(&mut self, ttl: u32) {
        self.ttl = ttl;
    }

    /// Which objects have names.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// From now on these objects have names. Slices heard before keep the host names that they were given: whoever
    /// changes [`Options::endpoint_pod_names`] lists them again.
    pub fn set_options(&mut self, options: Options) {
        if self.options != options {
            self.options = options;
            let keys: Vec<Arc<str>> = self.services.keys().cloned().collect();
            keys.into_iter().for_each(|key| self.rebuild(&key));
        }
    }

    /// Serial number of the start of authority; grows with every change.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Whether everything has been heard from the API once.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// From now on names that are not here do not exist.
    pub fn set_synced(&mut self, serial: u32) {
        self.synced = true;
        self.serial = serial;
    }

    /// A namespace exists or is gone.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        if exists {
            self.namespaces.insert(name.into());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// Whether a namespace exists and has names.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name) && self.is_exposed(name)
    }

    fn is_exposed(&self, namespace: &str) -> bool {
        let listed =
            self.options.namespaces.is_empty() || self.options.namespaces.iter().any(|n| n == namespace);
        listed && (self.options.namespace_labels.is_none() || self.namespaces.contains(namespace))
    }

    /// A Service as far as it has names.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Found<'_>> {
        let mut buffer = [0; 2 * 64];
        let (first, second) = (namespace.as_bytes(), name.as_bytes());
        let len = first.len() + 1 + second.len();
        let key = buffer.get_mut(..len)?;
        key[..first.len()].copy_from_slice(first);
        key[first.len()] = b'/';
        key[first.len() + 1..].copy_from_slice(second);
        let entry = self.services.get(std::str::from_utf8(key).ok()?)?;
        self.found(namespace, entry)
    }

    fn found<'a>(&'a self, namespace: &str, entry: &'a Entry) -> Option<Found<'a>> {
        let service = entry.service.as_ref().filter(|_| self.is_exposed(namespace))?;
        let empty = self.options.ignore_empty
            && entry.endpoints.is_empty()
            && matches!(service.kind, Kind::Addresses(_));
        (!empty).then_some(Found { service, endpoints: &entry.endpoints })
    }

    /// The Services that an address belongs to: namespace, name and what they are.
    pub fn owners(&self, addr: &IpAddr) -> impl Iterator<Item = (&str, &str, Found<'_>)> {
        let owners = self.reverse.get(addr).map(Owners::all).unwrap_or_default();
        owners.iter().filter_map(|key| {
            let (namespace, name) = key.split_once('/')?;
            Some((namespace, name, self.found(namespace, self.services.get(key)?)?))
        })
    }

    /// The namespace of the Pod that has this address.
    pub fn namespace_of(&self, pod: &IpAddr) -> Option<&str> {
        self.pods.get(pod).map(|namespace| &**namespace)
    }

    /// How many Services there are, with and without names.
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there is no Service.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// A Service as it is now, or that it is gone.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<&ApiService>) {
        let service = service.and_then(Service::read);
        let key = self.entry(namespace, name);
        if let Some(entry) = self.services.get_mut(&key) {
            entry.service = service;
        }
        self.rebuild(&key);
    }

    /// A slice as it is now, with the Service that it is of, or that it is gone.
    pub fn set_slice(&mut self, namespace: &str, slice: &str, now: Option<(&str, &EndpointSlice)>) {
        let own = format!("{namespace}/{slice}");
        if let Some(of) = self.slices.remove(&*own) {
            let goes_on = now.is_some_and(|(service, _)| of.split_once('/') == Some((namespace, service)));
            if let Some(entry) = self.services.get_mut(&of) {
                entry.slices.retain(|known| &*known.name != slice);
            }
            if !goes_on {
                self.rebuild(&of);
            }
        }
        let Some((service, now)) = now else { return };
        let read = Slice::read(slice, now, self.options.endpoint_pod_names);
        let key = self.entry(namespace, service);
        if let Some(entry) = self.services.get_mut(&key) {
            entry.slices.push(read);
            entry.slices.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            entry.slices.shrink_to_fit();
        }
        self.slices.insert(own.into(), key.clone());
        self.rebuild(&key);
    }

    /// Forgets all Services but these, `NAMESPACE/NAME`.
    pub fn retain_services(&mut self, keep: &HashSet<String>) {
        let is_there = |(_, entry): &(&Arc<str>, &Entry)| entry.service.is_some();
        let known: Vec<String> =
            self.services.iter().filter(is_there).map(|(key, _)| key.to_string()).collect();
        for key in known.iter().filter(|key| !keep.contains(*key)) {
            if let Some((namespace, name)) = key.split_once('/') {
                self.set_service(namespace, name, None);
            }
        }
    }

    /// Forgets all slices but these, `NAMESPACE/NAME`.
    pub fn retain_slices(&mut self, keep: &HashSet<String>) {
        let gone: Vec<Box<str>> = self.slices.keys().filter(|key| !keep.contains(&***key)).cloned().collect();
        for (namespace, name) in gone.iter().filter_map(|key| key.split_once('/')) {
            self.set_slice(namespace, name, None);
        }
    }

    /// Forgets all namespaces but these, `/NAME`.
    pub fn retain_namespaces(&mut self, keep: &HashSet<String>) {
        self.namespaces.retain(|name| keep.contains(&format!("/{name}")));
    }

    /// Forgets all Pods but these, `NAMESPACE/NAME`.
    pub fn retain_pods(&mut self, keep: &HashSet<String>) {
        let known = self.pod_addresses.keys();
        let gone: Vec<Box<str>> = known.filter(|key| !keep.contains(&***key)).cloned().collect();
        for (namespace, name) in gone.iter().filter_map(|key| key.split_once('/')) {
            self.set_pod(namespace, name, &[]);
        }
    }

    /// The addresses of a Pod; none when it is gone.
    pub fn set_pod(&mut self, namespace: &str, name: &str, addresses: &[IpAddr]) {
        let key = format!("{namespace}/{name}");
        for addr in self.pod_addresses.remove(&*key).unwrap_or_default() {
            self.pods.remove(&addr);
        }
        if addresses.is_empty() {
            return;
        }
        let shared = self.pods.values().find(|known| &***known == namespace).cloned();
        let shared = shared.unwrap_or_else(|| namespace.into());
        self.pods.extend(addresses.iter().map(|addr| (*addr, shared.clone())));
        self.pod_addresses.insert(key.into(), addresses.into());
    }

    fn entry(&mut self, namespace: &str, name: &str) -> Arc<str> {
        let key = format!("{namespace}/{name}");
        match self.services.get_key_value(&*key) {
            Some((known, _)) => known.clone(),
            None => {
                let key: Arc<str> = key.into();
                self.services.insert(key.clone(), Entry::default());
                key
            }
        }
    }

    /// Makes what follows from a Service and its slices.
    fn rebuild(&mut self, key: &Arc<str>) {
        self.serial = self.serial.wrapping_add(1);
        let Some(entry) = self.services.get_mut(key) else { return };
        for addr in std::mem::take(&mut entry.reverse) {
            leave(&mut self.reverse, addr, key);
        }
        if entry.service.is_none() && entry.slices.is_empty() {
            self.services.remove(key);
            return;
        }
        entry.endpoints = match &entry.service {
            Some(service) if !self.options.no_endpoints && !matches!(service.kind, Kind::Alias(_)) => {
                service::endpoints(&entry.slices, service.unready_too)
            }
            _ => Box::default(),
        };
        let own = match entry.service.as_ref().map(|service| &service.kind) {
            Some(Kind::Addresses(own)) => &own[..],
            _ => &[],
        };
        let mut reverse: Vec<IpAddr> =
            own.iter().copied().chain(entry.endpoints.iter().map(|e| e.addr)).collect();
        reverse.sort_unstable();
        reverse.dedup();
        for addr in &reverse {
            join(&mut self.reverse, *addr, key);
        }
        entry.reverse = reverse.into();
    }
}

fn join(reverse: &mut HashMap<IpAddr, Owners>, addr: IpAddr, key: &Arc<str>) {
    match reverse.entry(addr) {
        std::collections::hash_map::Entry::Vacant(none) => {
            none.insert(Owners::One(key.clone()));
        }
        std::collections::hash_map::Entry::Occupied(mut some) => {
            let mut all = some.get().all().to_vec();
            all.push(key.clone());
            all.sort_unstable();
            some.insert(Owners::More(all));
        }
    }
}

fn leave(reverse: &mut HashMap<IpAddr, Owners>, addr: IpAddr, key: &Arc<str>) {
    let Some(owners) = reverse.get_mut(&addr) else { return };
    let mut rest: Vec<Arc<str>> = owners.all().iter().filter(|owner| *owner != key).cloned().collect();
    match (rest.pop(), rest.is_empty()) {
        (None, _) => {
            reverse.remove(&addr);
        }
        (Some(last), true) => *owners = Owners::One(last),
        (Some(last), false) => {
            rest.push(last);
            *owners = Owners::More(rest);
        }
    }
}

/// The label of an endpoint that has no host name: its address with dashes.
pub fn dashed(addr: IpAddr) -> String {
    addr.to_string().replace(['.', ':'], "-")
}

/// The address that a label with dashes stands for.
pub fn undashed(label: &str) -> Option<IpAddr> {
    match label.matches('-').count() {
        3 if !label.contains("--") => label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        _ => label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    }
}
