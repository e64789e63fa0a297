//! The index of the cluster's names.
//!
//! A Service owns the subtree `SVC.NS.svc.ZONE`, so a change of one Service rebuilds that subtree and nothing else.
//! Answers are ready-made records; a question costs a few hash lookups.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Records of one name, with the addresses that belong into the additional section.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    /// Data of all types.
    pub data: Vec<RData>,
    /// Names and addresses of the targets of SRV records.
    pub additional: Vec<(Name, RData)>,
}

/// What a Service's subtree holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Subtree {
    /// An alias of a name elsewhere.
    Alias(Name),
    /// Names with records.
    Names {
        /// `SVC.NS.svc.ZONE`; none for a headless Service without ready endpoints, whose name does not exist.
        own: Option<Records>,
        /// `HOST.SVC.NS.svc.ZONE`, by host.
        hosts: HashMap<String, Records>,
        /// `_PORT._PROTO.SVC.NS.svc.ZONE`, by port and protocol without underscores.
        ports: HashMap<(String, String), Records>,
    },
}

/// All names of the cluster.
#[derive(Debug)]
pub struct Zone {
    origin: Name,
    labels: Vec<String>,
    ttl: u32,
    serial: u32,
    synced: bool,
    namespaces: HashSet<String>,
    services: HashMap<String, HashMap<String, Subtree>>,
    reverse: HashMap<IpAddr, BTreeSet<Name>>,
    /// What each Service has put into `reverse`.
    reversed: HashMap<(String, String), Vec<(IpAddr, Name)>>,
}

impl Zone {
    /// An empty zone that is not answered from before [`Self::set_synced`].
    pub fn new(origin: Name, ttl: u32) -> Self {
        let mut origin = origin.to_lowercase();
        origin.set_fqdn(true);
        Self {
            labels: labels(&origin).unwrap_or_default(),
            origin,
            ttl,
            serial: 1,
            synced: false,
            namespaces: HashSet::new(),
            services: HashMap::new(),
            reverse: HashMap::new(),
            reversed: HashMap::new(),
        }
    }

    /// The zone's name.
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    /// The zone's name, label by label, in lower case.
    pub fn origin_labels(&self) -> &[String] {
        &self.labels
    }

    /// Seconds for which clients may keep answers, negative ones too.
    pub fn ttl(&self) -> u32 {
        self.ttl
    }

    /// From now on clients may keep answers this long.
    pub fn set_ttl(&mut self, ttl: u32) {
        self.ttl = ttl;
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
            self.namespaces.insert(name.to_owned());
        } else {
            self.namespaces.remove(name);
        }
    }

    /// Whether a namespace exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// The subtree of a Service.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Subtree> {
        self.services.get(namespace)?.get(name)
    }

    /// The names of an address.
    pub fn names_of(&self, addr: &IpAddr) -> impl Iterator<Item = &Name> {
        self.reverse.get(addr).into_iter().flatten()
    }

    /// Sets the subtree of a Service, or forgets it without one; `slices` are those of the Service.
    pub fn set_service<E: Borrow<EndpointSlice>>(
        &mut self,
        namespace: &str,
        name: &str,
        service: Option<&Service>,
        slices: &[E],
    ) {
        self.serial = self.serial.wrapping_add(1);
        let key = (namespace.to_owned(), name.to_owned());
        for (addr, target) in self.reversed.remove(&key).unwrap_or_default() {
            if let Some(names) = self.reverse.get_mut(&addr) {
                names.remove(&target);
                if names.is_empty() {
                    self.reverse.remove(&addr);
                }
            }
        }
        let built = service.and_then(|service| build(&self.origin, namespace, name, service, slices));
        let Some((subtree, reverse)) = built else {
            if let Some(services) = self.services.get_mut(namespace) {
                services.remove(name);
                if services.is_empty() {
                    self.services.remove(namespace);
                }
            }
            return;
        };
        for (addr, target) in &reverse {
            self.reverse.entry(*addr).or_default().insert(target.clone());
        }
        self.reversed.insert(key, reverse);
        self.services.entry(namespace.to_owned()).or_default().insert(name.to_owned(), subtree);
    }
}

/// The labels of a name in lower case; `None` when they are no text, so that no name of ours can be meant.
pub fn labels(name: &Name) -> Option<Vec<String>> {
    name.iter()
        .map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase))
        .collect::<Option<Vec<_>>>()
}

/// An address record.
pub fn address(addr: IpAddr) -> RData {
    match addr {
        IpAddr::V4(addr) => RData::A(A(addr)),
        IpAddr::V6(addr) => RData::AAAA(AAAA(addr)),
    }
}

/// The name of an endpoint that has no host name: its address with dashes.
pub fn dashed(addr: IpAddr) -> String {
    addr.to_string().replace(['.', ':'], "-")
}

type Built = (Subtree, Vec<(IpAddr, Name)>);

fn build<E: Borrow<EndpointSlice>>(
    origin: &Name,
    namespace: &str,
    name: &str,
    service: &Service,
    slices: &[E],
) -> Option<Built> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let mut target = Name::from_ascii(spec.external_name.as_deref()?).ok()?;
        target.set_fqdn(true);
        return Some((Subtree::Alias(target), Vec::new()));
    }
    let own = Name::from_labels([name, namespace, "svc"].map(str::as_bytes)).ok()?;
    let own = own.append_domain(origin).ok()?;
    let addresses: BTreeSet<IpAddr> = (spec.cluster_ips.iter().flatten())
        .chain(&spec.cluster_ip)
        .filter_map(|addr| addr.parse().ok())
        .collect();
    let endpoints = Endpoints::new(&own, slices, spec.publish_not_ready_addresses == Some(true));
    let mut reverse = endpoints.reverse();
    let hosts = endpoints.hosts();
    if addresses.is_empty() {
        let (own, ports) = endpoints.headless();
        return Some((Subtree::Names { own, hosts, ports }, reverse));
    }
    reverse.extend(addresses.iter().map(|addr| (*addr, own.clone())));
    let data: Vec<RData> = addresses.iter().map(|addr| address(*addr)).collect();
    let additional: Vec<(Name, RData)> = data.iter().map(|rdata| (own.clone(), rdata.clone())).collect();
    let mut all = Records { data: data.clone(), additional: additional.clone() };
    let mut ports = HashMap::new();
    let count = spec.ports.iter().flatten().count();
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else { continue };
        let srv = |share| RData::SRV(SRV::new(0, weight(share), number, own.clone()));
        all.data.push(srv(count));
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            let data = data.iter().cloned().chain([srv(1)]).collect();
            ports.insert(
                (port_name.to_ascii_lowercase(), protocol),
                Records { data, additional: additional.clone() },
            );
        }
    }
    Some((Subtree::Names { own: Some(all), hosts, ports }, reverse))
}

/// The weights of a record set add up to about 100, as CoreDNS has it.
fn weight(records: usize) -> u16 {
    (100 / records.clamp(1, 100)) as u16
}

/// One ready endpoint of a Service.
struct Endpoint {
    addr: IpAddr,
    host: String,
    name: Name,
    /// Name, protocol in lower case, number.
    ports: Vec<(String, String, u16)>,
}

/// The ready endpoints of a Service, each address and host once.
struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    fn new<E: Borrow<EndpointSlice>>(own: &Name, slices: &[E], unready_too: bool) -> Self {
        let mut seen = HashMap::<(IpAddr, String), usize>::new();
        let mut all: Vec<Endpoint> = Vec::new();
        for slice in slices.iter().map(Borrow::borrow).filter(|s| s.address_type != "FQDN") {
            let ports: Vec<(String, String, u16)> = (slice.ports.iter().flatten())
                .filter_map(|port| {
                    let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                    let name = port.name.clone().unwrap_or_default().to_ascii_lowercase();
                    Some((name, protocol, u16::try_from(port.port?).ok()?))
                })
                .collect();
            for endpoint in &slice.endpoints {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
                if !ready && !unready_too {
                    continue;
                }
                for addr in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                    let given = endpoint.hostname.as_deref().filter(|h| !h.is_empty());
                    let host = given.map_or_else(|| dashed(addr), str::to_ascii_lowercase);
                    match seen.get(&(addr, host.clone())) {
                        Some(known) => {
                            let known = &mut all[*known].ports;
                            known.extend(
                                ports.iter().filter(|p| !known.contains(p)).cloned().collect::<Vec<_>>(),
                            );
                        }
                        None => {
                            let Ok(name) = own.prepend_label(host.as_bytes()) else { continue };
                            seen.insert((addr, host.clone()), all.len());
                            all.push(Endpoint { addr, host, name, ports: ports.clone() });
                        }
                    }
                }
            }
        }
        Self(all)
    }

    fn reverse(&self) -> Vec<(IpAddr, Name)> {
        self.0.iter().map(|e| (e.addr, e.name.clone())).collect()
    }

    fn hosts(&self) -> HashMap<String, Records> {
        let mut hosts: HashMap<String, Records> = HashMap::new();
        for endpoint in &self.0 {
            let records = hosts.entry(endpoint.host.clone()).or_default();
            let rdata = address(endpoint.addr);
            records.data.push(rdata.clone());
            records.additional.push((endpoint.name.clone(), rdata));
            let ports = endpoint.ports.iter();
            records.data.extend(ports.map(|(_, _, n)| {
                RData::SRV(SRV::new(0, weight(endpoint.ports.len()), *n, endpoint.name.clone()))
            }));
        }
        hosts
    }

    /// The Service's own name and its named ports.
    fn headless(&self) -> (Option<Records>, HashMap<(String, String), Records>) {
        if self.0.is_empty() {
            return (None, HashMap::new());
        }
        let mut own = Records::default();
        let mut known = HashSet::new();
        let mut ports: HashMap<(String, String), Vec<(&Endpoint, u16)>> = HashMap::new();
        let all = self.0.iter().map(|e| e.ports.len()).sum();
        for endpoint in &self.0 {
            if known.insert(endpoint.addr) {
                own.data.push(address(endpoint.addr));
            }
            own.additional.push((endpoint.name.clone(), address(endpoint.addr)));
            for (name, protocol, number) in &endpoint.ports {
                own.data.push(RData::SRV(SRV::new(0, weight(all), *number, endpoint.name.clone())));
                if !name.is_empty() {
                    ports.entry((name.clone(), protocol.clone())).or_default().push((endpoint, *number));
                }
            }
        }
        let records = |serving: Vec<(&Endpoint, u16)>| {
            let mut records = Records::default();
            let mut known = HashSet::new();
            for (endpoint, number) in &serving {
                let rdata = address(endpoint.addr);
                records.additional.push((endpoint.name.clone(), rdata.clone()));
                if known.insert(endpoint.addr) {
                    records.data.push(rdata);
                }
                let srv = SRV::new(0, weight(serving.len()), *number, endpoint.name.clone());
                records.data.push(RData::SRV(srv));
            }
            records
        };
        (Some(own), ports.into_iter().map(|(key, serving)| (key, records(serving))).collect())
    }
}
