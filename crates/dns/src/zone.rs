//! The index of the cluster's names: what a question needs of Services, slices, namespaces and Pods, and nothing else of
//! them, so that ten thousand Services fit into a few megabytes.
//!
//! A Service owns the subtree `SVC.NS.svc.ZONE`, so a change of one Service rebuilds that subtree and nothing else. A
//! question costs a few hash lookups.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashTable;
use k8s_openapi::api::core::v1::Service as ApiService;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use slab::Slab;

use crate::name::Domain;

mod service;

use service::PortLists;
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

/// A Service's place in the index.
type Id = u32;

#[derive(Debug)]
struct Entry {
    /// `NAMESPACE/NAME`.
    key: Box<str>,
    service: Option<Service>,
    slices: Vec<Slice>,
    /// The endpoints that count; none of its own means all those of the only slice, as it mostly is.
    merged: Option<Box<[Endpoint]>>,
}

impl Entry {
    fn new(namespace: &str, name: &str) -> Self {
        let key = format!("{namespace}/{name}").into();
        Self { key, service: None, slices: Vec::new(), merged: None }
    }

    fn is(&self, namespace: &str, name: &str) -> bool {
        self.key.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('/')) == Some(name)
    }

    fn parts(&self) -> (&str, &str) {
        self.key.split_once('/').unwrap_or_default()
    }

    fn endpoints(&self) -> &[Endpoint] {
        match (&self.merged, &self.slices[..]) {
            (Some(merged), _) => merged,
            (None, [only]) => &only.endpoints,
            (None, _) => &[],
        }
    }

    fn merge(&mut self, no_endpoints: bool) {
        self.merged = match &self.service {
            Some(service) if !no_endpoints && !matches!(service.kind, Kind::Alias(_)) => {
                service::merged(&self.slices, service.unready_too)
            }
            _ => Some(Box::default()),
        };
    }

    /// The addresses that lead here, each once.
    fn addresses(&self) -> Vec<IpAddr> {
        let own = match self.service.as_ref().map(|service| &service.kind) {
            Some(Kind::Addresses(own)) => &own[..],
            _ => &[],
        };
        let mut all: Vec<IpAddr> =
            own.iter().copied().chain(self.endpoints().iter().map(|e| e.addr)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
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
    namespaces: HashSet<Arc<str>>,
    services: Slab<Entry>,
    /// Services by namespace and name.
    names: HashTable<Id>,
    hasher: RandomState,
    /// Lists of ports, of which ten thousand Services have a handful.
    ports: PortLists,
    /// Which Service each slice is of, by `NAMESPACE/NAME` of the slice.
    slices: HashMap<Box<str>, Id>,
    /// Which Service an address leads to.
    reverse: HashMap<IpAddr, Id>,
    /// Further ones.
    also: HashMap<IpAddr, Vec<Id>>,
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
            services: Slab::new(),
            names: HashTable::new(),
            hasher: RandomState::new(),
            ports: PortLists::default(),
            slices: HashMap::new(),
            reverse: HashMap::new(),
            also: HashMap::new(),
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
            let all: Vec<Id> = self.services.iter().map(|(id, _)| id as Id).collect();
            all.into_iter().for_each(|id| self.change(id, |_| {}));
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
        self.found(namespace, self.entry(self.id(namespace, name)?)?)
    }

    fn id(&self, namespace: &str, name: &str) -> Option<Id> {
        let is = |id: &Id| self.entry(*id).is_some_and(|entry| entry.is(namespace, name));
        self.names.find(self.hasher.hash_one((namespace, name)), is).copied()
    }

    fn entry(&self, id: Id) -> Option<&Entry> {
        self.services.get(id as usize)
    }

    fn found<'a>(&'a self, namespace: &str, entry: &'a Entry) -> Option<Found<'a>> {
        let service = entry.service.as_ref().filter(|_| self.is_exposed(namespace))?;
        let empty = self.options.ignore_empty
            && entry.endpoints().is_empty()
            && matches!(service.kind, Kind::Addresses(_));
        (!empty).then_some(Found { service, endpoints: entry.endpoints() })
    }

    /// The Services that an address belongs to: namespace, name and what they are.
    pub fn owners(&self, addr: &IpAddr) -> impl Iterator<Item = (&str, &str, Found<'_>)> {
        let also = self.also.get(addr).into_iter().flatten();
        self.reverse.get(addr).into_iter().chain(also).filter_map(|id| {
            let entry = self.entry(*id)?;
            let (namespace, name) = entry.parts();
            Some((namespace, name, self.found(namespace, entry)?))
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
        let service = service.and_then(|service| Service::read(service, &mut self.ports));
        let id = self.id_or_new(namespace, name);
        self.change(id, |entry| entry.service = service);
    }

    /// A slice as it is now, with the Service that it is of, or that it is gone.
    pub fn set_slice(&mut self, namespace: &str, slice: &str, now: Option<(&str, &EndpointSlice)>) {
        let own = format!("{namespace}/{slice}");
        let now = now.map(|(service, now)| {
            let read = Slice::read(slice, now, self.options.endpoint_pod_names, &mut self.ports);
            (self.id_or_new(namespace, service), read)
        });
        let before = match &now {
            Some((id, _)) => self.slices.insert(own.into(), *id),
            None => self.slices.remove(&*own),
        };
        let leave = |entry: &mut Entry| entry.slices.retain(|known| &*known.name != slice);
        if let Some(before) = before.filter(|before| now.as_ref().is_none_or(|(id, _)| id != before)) {
            self.change(before, leave);
        }
        let Some((id, now)) = now else { return };
        self.change(id, |entry| {
            leave(entry);
            let at = entry.slices.partition_point(|known| known.name < now.name);
            entry.slices.reserve_exact(1);
            entry.slices.insert(at, now);
        });
    }

    /// Forgets all Services but these, `NAMESPACE/NAME`.
    pub fn retain_services(&mut self, keep: &HashSet<String>) {
        let is_gone = |entry: &Entry| entry.service.is_some() && !keep.contains(&*entry.key);
        let gone: Vec<Id> =
            self.services.iter().filter(|(_, entry)| is_gone(entry)).map(|(id, _)| id as Id).collect();
        gone.into_iter().for_each(|id| self.change(id, |entry| entry.service = None));
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
        let shared = self.namespaces.get(namespace).cloned().unwrap_or_else(|| namespace.into());
        self.pods.extend(addresses.iter().map(|addr| (*addr, shared.clone())));
        self.pod_addresses.insert(key.into(), addresses.into());
    }

    fn id_or_new(&mut self, namespace: &str, name: &str) -> Id {
        if let Some(known) = self.id(namespace, name) {
            return known;
        }
        let id = self.services.insert(Entry::new(namespace, name)) as Id;
        let hash = self.hasher.hash_one((namespace, name));
        let (services, hasher) = (&self.services, &self.hasher);
        let rehash = |id: &Id| services.get(*id as usize).map_or(0, |entry| hasher.hash_one(entry.parts()));
        self.names.insert_unique(hash, id, rehash);
        id
    }

    /// Changes a Service, or what is known of one, and all that follows from it.
    fn change(&mut self, id: Id, change: impl FnOnce(&mut Entry)) {
        self.serial = self.serial.wrapping_add(1);
        let Some(entry) = self.services.get_mut(id as usize) else { return };
        let before = entry.addresses();
        change(entry);
        entry.merge(self.options.no_endpoints);
        let (now, is_nothing) = (entry.addresses(), entry.service.is_none() && entry.slices.is_empty());
        if before != now {
            before.into_iter().for_each(|addr| self.set_owner(addr, id, false));
            now.into_iter().for_each(|addr| self.set_owner(addr, id, true));
        }
        if is_nothing {
            let hash = self.hasher.hash_one(self.services.remove(id as usize).parts());
            if let Ok(known) = self.names.find_entry(hash, |known| *known == id) {
                known.remove();
            }
        }
    }

    /// An address leads to a Service, or does no longer; those that it leads to are in the order of their names.
    fn set_owner(&mut self, addr: IpAddr, id: Id, is: bool) {
        let also = self.also.remove(&addr).unwrap_or_default();
        let others = self.reverse.remove(&addr).into_iter().chain(also).filter(|other| *other != id);
        let mut all: Vec<Id> = others.chain(is.then_some(id)).collect();
        all.sort_unstable_by_key(|id| self.services.get(*id as usize).map(|entry| &entry.key));
        let mut all = all.into_iter();
        if let Some(first) = all.next() {
            self.reverse.insert(addr, first);
        }
        if all.len() > 0 {
            self.also.insert(addr, all.collect());
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// What is done to a Service, or to a slice of one: namespace, name, addresses; nothing, when it is deleted.
    #[derive(Debug, Clone)]
    enum Step {
        Service(u8, u8, Option<u8>),
        Slice(u8, u8, Option<(u8, Vec<u8>)>),
    }

    fn addr(n: u8) -> String {
        format!("10.0.0.{n}")
    }

    fn do_step(zone: &mut Zone, step: &Step) {
        let name = |n: &u8| format!("n{n}");
        match step {
            Step::Service(namespace, own, ip) => {
                let service = ip.map(|ip| {
                    serde_json::from_value(
                        serde_json::json!({"metadata": {}, "spec": {"clusterIP": addr(ip)}}),
                    )
                    .unwrap()
                });
                zone.set_service(&name(namespace), &name(own), service.as_ref());
            }
            Step::Slice(namespace, own, now) => {
                let now = now.as_ref().map(|(service, ips)| {
                    let endpoints: Vec<_> = ips
                        .iter()
                        .map(|ip| serde_json::json!({"addresses": [addr(*ip)], "conditions": {"ready": ip % 5 > 0}}))
                        .collect();
                    let slice = serde_json::json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints});
                    (name(service), serde_json::from_value::<EndpointSlice>(slice).unwrap())
                });
                let now = now.as_ref().map(|(service, slice)| (service.as_str(), slice));
                zone.set_slice(&name(namespace), &name(own), now);
            }
        }
    }

    /// All that can be asked of a zone.
    fn told(zone: &Zone) -> Vec<String> {
        let mut all = vec![format!("{} services", zone.len())];
        for (namespace, name) in (0..3).flat_map(|a| (0..3).map(move |b| (format!("n{a}"), format!("n{b}"))))
        {
            let found = zone.service(&namespace, &name);
            let ips = found.iter().flat_map(|found| found.endpoints).map(|e| e.addr).collect::<BTreeSet<_>>();
            all.push(format!("{namespace}/{name} {:?} {ips:?}", found.map(|found| &found.service.kind)));
        }
        for ip in 0..20 {
            let at = addr(ip).parse().unwrap();
            let owners = zone.owners(&at).map(|(namespace, name, _)| [namespace, name].join("/"));
            all.push(format!("{ip} {:?}", owners.collect::<Vec<_>>()));
        }
        all
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let service = (0..3u8, 0..3u8, proptest::option::weighted(0.7, 0..20u8));
        let slice = (
            0..3u8,
            0..4u8,
            proptest::option::weighted(0.8, (0..3u8, proptest::collection::vec(0..20u8, 0..4))),
        );
        let step = prop_oneof![
            service.prop_map(|(namespace, name, ip)| Step::Service(namespace, name, ip)),
            slice.prop_map(|(namespace, name, now)| Step::Slice(namespace, name, now)),
        ];
        proptest::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn what_changed_step_by_step_is_what_is_there(steps in steps()) {
            let mut grown = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
            let mut last: BTreeMap<(bool, u8, u8), Step> = BTreeMap::new();
            for step in &steps {
                do_step(&mut grown, step);
                match step {
                    Step::Service(a, b, _) => last.insert((false, *a, *b), step.clone()),
                    Step::Slice(a, b, _) => last.insert((true, *a, *b), step.clone()),
                };
            }
            let mut made = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
            last.values().for_each(|step| do_step(&mut made, step));
            prop_assert_eq!(told(&grown), told(&made));
            // And nothing is left of what is gone.
            for step in last.values() {
                do_step(&mut grown, &match step {
                    Step::Service(a, b, _) => Step::Service(*a, *b, None),
                    Step::Slice(a, b, _) => Step::Slice(*a, *b, None),
                });
            }
            let left = (grown.len(), grown.names.len(), grown.slices.len(), grown.reverse.len(), grown.also.len());
            prop_assert_eq!(left, (0, 0, 0, 0, 0));
        }
    }
}
