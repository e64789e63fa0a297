//! One question -> records or a code. Pure; the table of codes is CoreDNS's.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{NS, PTR, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::{Records, Subtree, Zone, address, labels};

/// Version of the specification that the zone follows.
pub const SCHEMA_VERSION: &str = "1.1.0";

/// What the cluster's zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Records, and further ones the client will want next.
    Records(Vec<Record>, Vec<Record>),
    /// The name is an alias of a name outside of the cluster's zone; the client wants its records too.
    Alias(Box<(Record, Name)>),
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
}

/// Answers a question from the cluster's names. Owner names of the answer are spelled as in the question.
pub fn answer(zone: &Zone, name: &Name, class: DNSClass, kind: RecordType) -> Answer {
    let Some(labels) = labels(name) else { return Answer::NotOurs };
    let origin = zone.origin_labels();
    let inside = labels.len() >= origin.len() && labels[labels.len() - origin.len()..] == *origin;
    if !inside {
        return match name.parse_arpa_name().ok().filter(|_| class == DNSClass::IN) {
            Some(net) => reverse(zone, name, kind, net.addr(), net.prefix_len() == net.max_prefix_len()),
            None => Answer::NotOurs,
        };
    }
    if class != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return Answer::Refused;
    }
    if !zone.synced() {
        return Answer::NotSynced;
    }
    let inner: Vec<&str> = labels[..labels.len() - origin.len()].iter().map(String::as_str).collect();
    let question = Question { zone, name, kind };
    match inner[..] {
        [] => question.apex(),
        ["dns-version"] => question.pick(&Records {
            data: vec![RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]))],
            additional: Vec::new(),
        }),
        ["ns", "dns"] => question.pick(&Records { data: server_addresses(zone), additional: Vec::new() }),
        ["dns"] | ["svc"] | ["pod"] => Answer::NoData,
        [namespace, "svc" | "pod"] => {
            if zone.has_namespace(namespace) {
                Answer::NoData
            } else {
                Answer::NoName
            }
        }
        [ref host @ .., namespace, "pod"] => question.pod(host, namespace),
        [ref rest @ .., service, namespace, "svc"] => question.service(rest, service, namespace),
        _ => Answer::NoName,
    }
}

/// The start of authority, which carries the life of negative answers.
pub fn authority(zone: &Zone) -> Record {
    let origin = zone.origin();
    let named = |label: &str| origin.prepend_label(label.as_bytes()).unwrap_or_else(|_| origin.clone());
    let soa = SOA::new(server_name(zone), named("hostmaster"), zone.serial(), 7200, 1800, 86400, zone.ttl());
    Record::from_rdata(origin.clone(), zone.ttl(), RData::SOA(soa))
}

fn server_name(zone: &Zone) -> Name {
    let named = zone.origin().prepend_label("dns").and_then(|n| n.prepend_label("ns"));
    named.unwrap_or_else(|_| zone.origin().clone())
}

/// The addresses of the DNS Service itself.
fn server_addresses(zone: &Zone) -> Vec<RData> {
    match zone.service("kube-system", "kube-dns") {
        Some(Subtree::Names { own: Some(own), .. }) => {
            own.data.iter().filter(|r| matches!(r, RData::A(_) | RData::AAAA(_))).cloned().collect()
        }
        _ => Vec::new(),
    }
}

fn reverse(zone: &Zone, name: &Name, kind: RecordType, addr: IpAddr, whole: bool) -> Answer {
    let targets: Vec<&Name> = zone.names_of(&addr).filter(|_| whole).collect();
    match (targets.is_empty(), kind) {
        // An address that may be the cluster's is nobody else's before everything is known.
        (true, _) if whole && !zone.synced() => Answer::NotSynced,
        (true, _) => Answer::NotOurs,
        (false, RecordType::PTR) => Answer::Records(
            targets
                .into_iter()
                .map(|t| Record::from_rdata(name.clone(), zone.ttl(), RData::PTR(PTR(t.clone()))))
                .collect(),
            Vec::new(),
        ),
        (false, _) => Answer::NoData,
    }
}

struct Question<'a> {
    zone: &'a Zone,
    name: &'a Name,
    kind: RecordType,
}

impl Question<'_> {
    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.name.clone(), self.zone.ttl(), data)
    }

    /// Those of a name's records that were asked for.
    fn pick(&self, records: &Records) -> Answer {
        let answers: Vec<Record> = (records.data.iter())
            .filter(|data| data.record_type() == self.kind)
            .map(|data| self.record(data.clone()))
            .collect();
        if answers.is_empty() {
            return Answer::NoData;
        }
        let further = match self.kind {
            RecordType::SRV => records.additional.iter(),
            _ => [].iter(),
        };
        let further =
            further.map(|(name, data)| Record::from_rdata(name.clone(), self.zone.ttl(), data.clone()));
        Answer::Records(answers, further.collect())
    }

    fn apex(&self) -> Answer {
        match self.kind {
            RecordType::SOA => Answer::Records(vec![authority(self.zone)], Vec::new()),
            RecordType::NS => {
                let server = server_name(self.zone);
                let further = server_addresses(self.zone)
                    .into_iter()
                    .map(|data| Record::from_rdata(server.clone(), self.zone.ttl(), data));
                Answer::Records(vec![self.record(RData::NS(NS(server.clone())))], further.collect())
            }
            _ => Answer::NoData,
        }
    }

    /// `a-b-c-d.NS.pod`: the address is in the name, whatever runs there (CoreDNS's mode "insecure").
    fn pod(&self, host: &[&str], namespace: &str) -> Answer {
        let [host] = host else { return Answer::NoName };
        let text = match host.matches('-').count() {
            3 if !host.contains("--") => host.replace('-', "."),
            _ => host.replace('-', ":"),
        };
        match text.parse::<IpAddr>() {
            Ok(addr) if self.zone.has_namespace(namespace) => {
                self.pick(&Records { data: vec![address(addr)], additional: Vec::new() })
            }
            _ => Answer::NoName,
        }
    }

    fn service(&self, rest: &[&str], service: &str, namespace: &str) -> Answer {
        match (self.zone.service(namespace, service), rest) {
            (Some(Subtree::Alias(target)), []) => self.alias(target),
            (Some(Subtree::Names { own: Some(own), .. }), []) => self.pick(own),
            (Some(Subtree::Names { hosts, .. }), [host]) => self.found(hosts.get(*host)),
            (Some(Subtree::Names { ports, .. }), [port, protocol]) => {
                let stripped = port.strip_prefix('_').zip(protocol.strip_prefix('_'));
                self.found(stripped.and_then(|(p, t)| ports.get(&(p.to_owned(), t.to_owned()))))
            }
            _ => Answer::NoName,
        }
    }

    fn found(&self, records: Option<&Records>) -> Answer {
        records.map_or(Answer::NoName, |records| self.pick(records))
    }

    fn alias(&self, target: &Name) -> Answer {
        let alias = self.record(RData::CNAME(hickory_proto::rr::rdata::CNAME(target.clone())));
        match self.kind {
            RecordType::A | RecordType::AAAA => {}
            RecordType::CNAME => return Answer::Records(vec![alias], Vec::new()),
            _ => return Answer::NoData,
        }
        // A target inside the cluster is answered here; an alias of an alias is left to the client.
        match direct(self.zone, target, self.kind) {
            Answer::NotOurs => Answer::Alias(Box::new((alias, target.clone()))),
            Answer::Records(mut records, _) => {
                records.insert(0, alias);
                Answer::Records(records, Vec::new())
            }
            _ => Answer::Records(vec![alias], Vec::new()),
        }
    }
}

/// Answers a name without following aliases, so that aliases in a circle end.
fn direct(zone: &Zone, name: &Name, kind: RecordType) -> Answer {
    let inner = labels(name).and_then(|all| {
        let inner = all.strip_suffix(zone.origin_labels())?;
        Some(inner.to_vec())
    });
    match inner.as_deref() {
        Some([service, namespace, svc]) if svc == "svc" => match zone.service(namespace, service) {
            Some(Subtree::Alias(_)) => Answer::NoData,
            _ => answer(zone, name, DNSClass::IN, kind),
        },
        _ => answer(zone, name, DNSClass::IN, kind),
    }
}
