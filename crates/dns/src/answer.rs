//! One question -> records or a verdict. Pure; the table of codes is CoreDNS's.

use std::net::IpAddr;

use crate::name::Qname;
use crate::wire::{IN, Owner, Response, Section, kind};
use crate::zone::{Endpoint, Found, Kind, Pods, Port, Zone, dashed, undashed};

/// Version of the specification that the zone follows.
pub const SCHEMA_VERSION: &str = "1.1.0";

/// What is to be told about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The records that have been written.
    Found,
    /// The name is an alias of this one, whose records the client wants too. The alias itself has been written.
    Alias(Box<Qname>),
    /// The name exists, but not with this type.
    NoData,
    /// There is no such name.
    NoName,
    /// The question is not answered to anybody.
    Refused,
    /// The API has not been heard yet, so nothing is known about the name.
    NotSynced,
    /// Nobody may be asked about the name, which is not known here.
    Unknown,
    /// The name is somebody else's.
    NotOurs,
    /// This code, with the records that have been written.
    Told(u16),
}

/// Answers a question from the cluster's names: writes the records and says what they are.
pub fn answer(zone: &Zone, name: &Qname, class: u16, kind: u16, out: &mut Response) -> Verdict {
    let Some(inner) = zone.origin().above(name) else {
        return match name.reversed().filter(|_| class == IN) {
            Some(addr) => reverse(zone, kind, addr, out),
            None => Verdict::NotOurs,
        };
    };
    if class != IN || matches!(kind, kind::AXFR | kind::IXFR) {
        return Verdict::Refused;
    }
    if !zone.synced() {
        return Verdict::NotSynced;
    }
    let before = out.len();
    let mut asked = Asked { zone, kind, out, before };
    let label = |from_right: usize| inner.checked_sub(from_right).map(|i| name.text(i)).unwrap_or_default();
    match (inner, label(1)) {
        (0, _) => asked.apex(),
        (1, "dns-version") => {
            let text = |out: &mut Vec<u8>| {
                out.push(SCHEMA_VERSION.len() as u8);
                out.extend_from_slice(SCHEMA_VERSION.as_bytes());
            };
            asked.one(kind::TXT, text)
        }
        (1, "dns" | "svc" | "pod") => Verdict::NoData,
        (2, "dns") if label(2) == "ns" => asked.server_addresses(),
        (2, "svc") if zone.has_namespace(label(2)) => Verdict::NoData,
        (2, "pod") if zone.options().pods != Pods::Disabled && zone.has_namespace(label(2)) => {
            Verdict::NoData
        }
        (3, "pod") => asked.pod(label(3), label(2)),
        (3..=5, "svc") => asked.service(name, inner - 3, label(3), label(2)),
        _ => Verdict::NoName,
    }
}

/// The start of authority, which carries the life of negative answers.
pub fn authority(zone: &Zone, section: Section, owner: Owner<'_>, out: &mut Response) {
    let (ttl, serial) = (zone.ttl(), zone.serial());
    out.add(section, owner, kind::SOA, ttl, |data| {
        named(zone, &["ns", "dns"], data);
        named(zone, &["hostmaster"], data);
        for number in [serial, 7200, 1800, 86400, ttl] {
            data.extend_from_slice(&number.to_be_bytes());
        }
    });
}

/// A name below the zone's.
fn named(zone: &Zone, labels: &[&str], data: &mut Vec<u8>) {
    for label in labels {
        data.push(label.len() as u8);
        data.extend_from_slice(label.as_bytes());
    }
    data.extend_from_slice(zone.origin().wire());
}

fn endpoint_name(zone: &Zone, endpoint: &Endpoint, service: &str, namespace: &str, data: &mut Vec<u8>) {
    match &endpoint.host {
        Some(host) => named(zone, &[host, service, namespace, "svc"], data),
        None => named(zone, &[&dashed(endpoint.addr), service, namespace, "svc"], data),
    }
}

fn is_host(endpoint: &Endpoint, label: &str, addr: Option<IpAddr>) -> bool {
    match &endpoint.host {
        Some(host) => **host == *label,
        None => Some(endpoint.addr) == addr,
    }
}

fn is_kind(addr: IpAddr, kind: u16) -> bool {
    kind == if addr.is_ipv4() { kind::A } else { kind::AAAA }
}

fn reverse(zone: &Zone, kind: u16, addr: IpAddr, out: &mut Response) -> Verdict {
    let mut any = false;
    for (namespace, name, found) in zone.owners(&addr) {
        any = true;
        if kind != kind::PTR {
            continue;
        }
        let ttl = zone.ttl();
        let own = matches!(&found.service.kind, Kind::Addresses(own) if own.contains(&addr));
        if own {
            let data = |data: &mut Vec<u8>| named(zone, &[name, namespace, "svc"], data);
            out.add(Section::Answer, Owner::Asked, kind, ttl, data);
        }
        for endpoint in found.endpoints.iter().filter(|endpoint| endpoint.addr == addr) {
            let data = |data: &mut Vec<u8>| endpoint_name(zone, endpoint, name, namespace, data);
            out.add(Section::Answer, Owner::Asked, kind, ttl, data);
        }
    }
    match (any, kind) {
        // An address that may be the cluster's is nobody else's before everything is known.
        (false, _) if !zone.synced() => Verdict::NotSynced,
        (false, _) => Verdict::NotOurs,
        (true, kind::PTR) => Verdict::Found,
        (true, _) => Verdict::NoData,
    }
}

/// The weights of a record set add up to about 100, as CoreDNS has it.
fn weight(records: usize) -> u16 {
    (100 / records.clamp(1, 100)) as u16
}

struct Asked<'a> {
    zone: &'a Zone,
    kind: u16,
    out: &'a mut Response,
    /// Records that were there.
    before: usize,
}

impl Asked<'_> {
    fn verdict(&self) -> Verdict {
        if self.out.len() > self.before { Verdict::Found } else { Verdict::NoData }
    }

    fn one(&mut self, kind: u16, data: impl FnOnce(&mut Vec<u8>)) -> Verdict {
        if self.kind == kind {
            self.out.add(Section::Answer, Owner::Asked, kind, self.zone.ttl(), data);
        }
        self.verdict()
    }

    fn addresses(&mut self, all: impl IntoIterator<Item = IpAddr>) {
        let ttl = self.zone.ttl();
        for addr in all.into_iter().filter(|addr| is_kind(*addr, self.kind)) {
            self.out.address(Section::Answer, Owner::Asked, ttl, addr);
        }
    }

    fn apex(&mut self) -> Verdict {
        match self.kind {
            kind::SOA => authority(self.zone, Section::Answer, Owner::Asked, self.out),
            kind::NS => {
                let zone = self.zone;
                self.one(kind::NS, |data| named(zone, &["ns", "dns"], data));
                let mut owner = Vec::new();
                named(zone, &["ns", "dns"], &mut owner);
                for addr in own_addresses(zone) {
                    self.out.address(Section::Additional, Owner::Named(&owner), zone.ttl(), *addr);
                }
            }
            _ => {}
        }
        self.verdict()
    }

    fn server_addresses(&mut self) -> Verdict {
        self.addresses(own_addresses(self.zone).iter().copied());
        self.verdict()
    }

    /// `a-b-c-d.NS.pod`: the address is in the name.
    fn pod(&mut self, label: &str, namespace: &str) -> Verdict {
        let Some(addr) = undashed(label) else { return Verdict::NoName };
        let there = match self.zone.options().pods {
            Pods::Disabled => false,
            Pods::Insecure => self.zone.has_namespace(namespace),
            Pods::Verified => {
                self.zone.has_namespace(namespace) && self.zone.namespace_of(&addr) == Some(namespace)
            }
        };
        if !there {
            return Verdict::NoName;
        }
        self.addresses([addr]);
        self.verdict()
    }

    /// `rest` labels stand before the Service's.
    fn service(&mut self, name: &Qname, rest: usize, service: &str, namespace: &str) -> Verdict {
        let Some(found) = self.zone.service(namespace, service) else { return Verdict::NoName };
        match (&found.service.kind, rest) {
            (Kind::Alias(target), 0) => self.alias(target),
            (Kind::Alias(_), _) => Verdict::NoName,
            (Kind::Addresses(own), 0) => {
                self.addresses(own.iter().copied());
                if self.kind == kind::SRV {
                    let all = weight(found.service.ports.len());
                    self.own_ports(own, service, namespace, found.service.ports.iter(), all);
                }
                self.verdict()
            }
            (Kind::Headless, 0) if found.endpoints.is_empty() => Verdict::NoName,
            (Kind::Headless, 0) => {
                self.endpoint_addresses(found.endpoints.iter());
                if self.kind == kind::SRV {
                    self.endpoint_ports(found, service, namespace, |_, _| true);
                }
                self.verdict()
            }
            (_, 1) => self.host(name.text(0), found, service, namespace),
            (kind, _) => {
                let stripped = name.text(0).strip_prefix('_').zip(name.text(1).strip_prefix('_'));
                let Some((port, protocol)) = stripped.filter(|(port, _)| !port.is_empty()) else {
                    return Verdict::NoName;
                };
                let wanted = |p: &Port| *p.name == *port && p.protocol.label() == protocol;
                match kind {
                    Kind::Addresses(own) => self.named_port(own, found, service, namespace, wanted),
                    _ => self.named_endpoint_port(found, service, namespace, wanted),
                }
            }
        }
    }

    fn named_port(
        &mut self,
        own: &[IpAddr],
        found: Found<'_>,
        service: &str,
        namespace: &str,
        wanted: impl Fn(&Port) -> bool,
    ) -> Verdict {
        let mut ports = found.service.ports.iter().filter(|port| wanted(port)).peekable();
        if ports.peek().is_none() {
            return Verdict::NoName;
        }
        self.addresses(own.iter().copied());
        if self.kind == kind::SRV {
            self.own_ports(own, service, namespace, ports, weight(1));
        }
        self.verdict()
    }

    fn named_endpoint_port(
        &mut self,
        found: Found<'_>,
        service: &str,
        namespace: &str,
        wanted: impl Fn(&Port) -> bool,
    ) -> Verdict {
        let serves = |endpoint: &&Endpoint| endpoint.ports.iter().any(&wanted);
        if !found.endpoints.iter().any(|endpoint| serves(&endpoint)) {
            return Verdict::NoName;
        }
        self.endpoint_addresses(found.endpoints.iter().filter(serves));
        if self.kind == kind::SRV {
            self.endpoint_ports(found, service, namespace, |_, port| wanted(port));
        }
        self.verdict()
    }

    fn host(&mut self, label: &str, found: Found<'_>, service: &str, namespace: &str) -> Verdict {
        let addr = undashed(label);
        let mut hosts = found.endpoints.iter().filter(|e| is_host(e, label, addr)).peekable();
        if hosts.peek().is_none() {
            return Verdict::NoName;
        }
        self.addresses(hosts.map(|endpoint| endpoint.addr));
        if self.kind == kind::SRV {
            self.endpoint_ports(found, service, namespace, |endpoint, _| is_host(endpoint, label, addr));
        }
        self.verdict()
    }

    /// The addresses of endpoints, each once: one Pod may be there under several host names.
    fn endpoint_addresses<'a>(&mut self, endpoints: impl Iterator<Item = &'a Endpoint>) {
        let all: Vec<IpAddr> = endpoints.map(|e| e.addr).filter(|addr| is_kind(*addr, self.kind)).collect();
        let mut seen = std::collections::HashSet::with_capacity(all.len());
        self.addresses(all.into_iter().filter(|addr| seen.insert(*addr)));
    }

    fn own_ports<'p>(
        &mut self,
        own: &[IpAddr],
        service: &str,
        namespace: &str,
        ports: impl Iterator<Item = &'p Port>,
        weight: u16,
    ) {
        let (zone, ttl) = (self.zone, self.zone.ttl());
        let mut target = Vec::with_capacity(64);
        named(zone, &[service, namespace, "svc"], &mut target);
        for port in ports {
            self.srv(weight, port.number, &target);
        }
        for addr in own {
            self.out.address(Section::Additional, Owner::Named(&target), ttl, *addr);
        }
    }

    fn endpoint_ports(
        &mut self,
        found: Found<'_>,
        service: &str,
        namespace: &str,
        wanted: impl Fn(&Endpoint, &Port) -> bool,
    ) {
        let (zone, ttl) = (self.zone, self.zone.ttl());
        let ports = |endpoint: &Endpoint| endpoint.ports.iter().filter(|port| wanted(endpoint, port)).count();
        let weight = weight(found.endpoints.iter().map(&ports).sum());
        let mut target = Vec::with_capacity(64);
        for endpoint in found.endpoints {
            target.clear();
            endpoint_name(zone, endpoint, service, namespace, &mut target);
            for port in endpoint.ports.iter().filter(|port| wanted(endpoint, port)) {
                self.srv(weight, port.number, &target);
            }
        }
        for endpoint in found.endpoints.iter().filter(|endpoint| ports(endpoint) > 0) {
            target.clear();
            endpoint_name(zone, endpoint, service, namespace, &mut target);
            self.out.address(Section::Additional, Owner::Named(&target), ttl, endpoint.addr);
        }
    }

    fn srv(&mut self, weight: u16, port: u16, target: &[u8]) {
        self.out.add(Section::Answer, Owner::Asked, kind::SRV, self.zone.ttl(), |data| {
            data.extend_from_slice(&[0, 0]);
            data.extend_from_slice(&weight.to_be_bytes());
            data.extend_from_slice(&port.to_be_bytes());
            data.extend_from_slice(target);
        });
    }

    fn alias(&mut self, target: &[u8]) -> Verdict {
        if !matches!(self.kind, kind::A | kind::AAAA | kind::CNAME) {
            return Verdict::NoData;
        }
        let ttl = self.zone.ttl();
        self.out.add(Section::Answer, Owner::Asked, kind::CNAME, ttl, |data| data.extend_from_slice(target));
        match Qname::read(target, 0).filter(|_| self.kind != kind::CNAME) {
            Some((name, _)) => Verdict::Alias(Box::new(name)),
            None => Verdict::Found,
        }
    }
}

/// The addresses of the DNS Service itself.
fn own_addresses(zone: &Zone) -> &[IpAddr] {
    match zone.service("kube-system", "kube-dns").map(|found| &found.service.kind) {
        Some(Kind::Addresses(own)) => own,
        _ => &[],
    }
}
