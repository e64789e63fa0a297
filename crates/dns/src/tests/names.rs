//! Every row of the record table and of the table of answer codes, asked of the pure function.

use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use serde_json::Value;

use super::*;
use crate::answer::{Verdict, answer, authority};
use crate::name::Qname;
use crate::wire::kind::{A, AAAA, ANY, AXFR, CNAME, IXFR, MX, NS, PTR, SOA, SRV, TXT};
use crate::wire::{Head, IN, Owner, Question, Section};

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"spec": spec})).unwrap()
}

fn slice(endpoints: Value, family: &str) -> EndpointSlice {
    let ports = json!([{"name": "http", "port": 8080}]);
    serde_json::from_value(
        json!({"metadata": {"name": "s"}, "addressType": family, "endpoints": endpoints, "ports": ports}),
    )
    .unwrap()
}

const NONE: [EndpointSlice; 0] = [];

/// A Service and its slices.
fn set(zone: &mut Zone, name: &str, service: Option<&Service>, slices: &[EndpointSlice]) {
    zone.set_service("default", name, service);
    for (i, slice) in slices.iter().enumerate() {
        zone.set_slice("default", &format!("{name}-{i}"), Some((name, slice)));
    }
}

pub(super) fn zone() -> Zone {
    let mut zone = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
    zone.set_namespace("default", true);
    zone.set_namespace("empty", true);
    let mut put = |name: &str, spec: Value, slices: &[EndpointSlice]| {
        set(&mut zone, name, Some(&service(spec)), slices);
    };
    let ports = json!([{"name": "http", "port": 80}, {"name": "", "port": 81},
        {"name": "dns", "port": 53, "protocol": "UDP"}]);
    put(
        "web",
        json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": ports}),
        &NONE,
    );
    put("v4only", json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]}), &NONE);
    let headless =
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]});
    let named = json!([
        {"addresses": ["10.244.0.11"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.12"], "conditions": {"ready": true}},
        {"addresses": ["10.244.0.13"], "hostname": "db-2", "conditions": {"ready": false}}]);
    let slices = [slice(named, "IPv4"), slice(json!([{"addresses": ["fd00:244::1"]}]), "IPv6")];
    put("db", headless.clone(), &slices);
    let mut eager = headless.clone();
    eager["publishNotReadyAddresses"] = json!(true);
    put("eager", eager, &slices);
    let unready = json!([{"addresses": ["10.244.0.14"], "conditions": {"ready": false}}]);
    put("down", headless, &[slice(unready, "IPv4")]);
    let alias = |to: &str| json!({"type": "ExternalName", "externalName": to});
    put("out", alias("example.org"), &NONE);
    put("inward", alias("web.default.svc.cluster.local"), &NONE);
    put("circle", alias("circle.default.svc.cluster.local"), &NONE);
    let dns = service(json!({"clusterIP": "10.96.0.10"}));
    zone.set_service("kube-system", "kube-dns", Some(&dns));
    zone.set_synced(7);
    zone
}

/// The verdict, and the answer as another library reads it.
fn ask_of(zone: &Zone, name: &str, kind: u16) -> (Verdict, Message) {
    let question = Question::new(&Qname::parse(name).unwrap(), kind, IN);
    let mut out = Response::default();
    out.begin(&question);
    let verdict = answer(zone, &question.name, IN, kind, &mut out);
    let head = Head { code: 0, authoritative: true, authentic: false };
    (verdict, Message::from_vec(out.finish(&question, head, 65_535)).unwrap())
}

fn ask(name: &str, kind: u16) -> (Verdict, Message) {
    ask_of(&zone(), name, kind)
}

/// The data of the answer, sorted; a verdict otherwise.
fn got_of(zone: &Zone, name: &str, kind: u16) -> Vec<String> {
    match ask_of(zone, name, kind) {
        (Verdict::Found | Verdict::Alias(_), message) => {
            let mut data: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
            data.sort();
            data
        }
        (other, _) => vec![format!("{other:?}")],
    }
}

fn got(name: &str, kind: u16) -> Vec<String> {
    got_of(&zone(), name, kind)
}

fn further(name: &str, kind: u16) -> Vec<String> {
    let (_, message) = ask(name, kind);
    let mut data: Vec<String> =
        message.additionals.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    data.sort();
    data
}

fn answers(name: &str, kind: u16) -> Vec<Record> {
    ask(name, kind).1.answers
}

#[test]
fn record_dns_version_txt() {
    assert_eq!(got("dns-version.cluster.local.", TXT), ["1.1.0"]);
}

#[test]
fn record_cluster_ip_a_and_aaaa() {
    assert_eq!(got("web.default.svc.cluster.local.", A), ["10.96.0.7"]);
    assert_eq!(got("web.default.svc.cluster.local.", AAAA), ["fd00::7"]);
    assert_eq!(answers("web.default.svc.cluster.local.", A)[0].ttl, 30);
}

#[test]
fn record_cluster_ip_srv_per_named_port() {
    let target = "web.default.svc.cluster.local.";
    assert_eq!(got("_http._tcp.web.default.svc.cluster.local.", SRV), [format!("0 100 80 {target}")]);
    assert_eq!(got("_dns._udp.web.default.svc.cluster.local.", SRV), [format!("0 100 53 {target}")]);
    assert_eq!(
        further("_http._tcp.web.default.svc.cluster.local.", SRV),
        [format!("{target} 10.96.0.7"), format!("{target} fd00::7")]
    );
    for wrong in ["_http._udp", "_other._tcp", "http.tcp", "__tcp._tcp", "_._tcp"] {
        assert_eq!(got(&format!("{wrong}.{target}"), SRV), ["NoName"], "{wrong}");
    }
}

#[test]
fn record_cluster_ip_ptr() {
    assert_eq!(got("7.0.96.10.in-addr.arpa.", PTR), ["web.default.svc.cluster.local."]);
    let six = format!("7.{}0.0.d.f.ip6.arpa.", "0.".repeat(27));
    assert_eq!(got(&six, PTR), ["web.default.svc.cluster.local."]);
}

#[test]
fn record_headless_a_and_aaaa_of_ready_endpoints() {
    assert_eq!(got("db.default.svc.cluster.local.", A), ["10.244.0.11", "10.244.0.12"]);
    assert_eq!(got("db.default.svc.cluster.local.", AAAA), ["fd00:244::1"]);
}

#[test]
fn record_headless_host() {
    assert_eq!(got("db-0.db.default.svc.cluster.local.", A), ["10.244.0.11"]);
    assert_eq!(got("10-244-0-12.db.default.svc.cluster.local.", A), ["10.244.0.12"]);
    assert_eq!(got("fd00-244--1.db.default.svc.cluster.local.", AAAA), ["fd00:244::1"]);
    assert_eq!(got("db-2.db.default.svc.cluster.local.", A), ["NoName"], "unready");
    assert_eq!(got("db-0.db.default.svc.cluster.local.", AAAA), ["NoData"]);
}

#[test]
fn record_headless_srv() {
    assert_eq!(
        got("_http._tcp.db.default.svc.cluster.local.", SRV),
        [
            "0 33 8080 10-244-0-12.db.default.svc.cluster.local.",
            "0 33 8080 db-0.db.default.svc.cluster.local.",
            "0 33 8080 fd00-244--1.db.default.svc.cluster.local."
        ]
    );
    let additional = further("_http._tcp.db.default.svc.cluster.local.", SRV);
    assert!(additional.contains(&"db-0.db.default.svc.cluster.local. 10.244.0.11".to_owned()));
}

#[test]
fn record_endpoint_ptr_one_per_service() {
    assert_eq!(
        got("11.0.244.10.in-addr.arpa.", PTR),
        ["db-0.db.default.svc.cluster.local.", "db-0.eager.default.svc.cluster.local."]
    );
}

#[test]
fn record_external_name_cname_and_target() {
    assert_eq!(got("out.default.svc.cluster.local.", CNAME), ["example.org."]);
    let target = |name: &str| match ask(&format!("{name}.default.svc.cluster.local."), A) {
        (Verdict::Alias(target), message) => {
            assert_eq!(message.answers.len(), 1, "the alias itself");
            target.to_string()
        }
        (other, _) => format!("{other:?}"),
    };
    assert_eq!(target("out"), "example.org.");
    assert_eq!(target("inward"), "web.default.svc.cluster.local.");
    // What stands behind aliases inside the cluster is told by the server itself; circles end.
    let responder = responder(Some(zone()), "/dev/null");
    let whole = |name: &str| {
        let bytes = begin(&responder, &question(&format!("{name}.default.svc.cluster.local."))).unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        message.answers.iter().map(|r| format!("{} {}", r.name, r.data)).collect::<Vec<_>>()
    };
    let web = "web.default.svc.cluster.local.";
    assert_eq!(
        whole("inward"),
        [format!("inward.default.svc.cluster.local. {web}"), format!("{web} 10.96.0.7")]
    );
    let circle = "circle.default.svc.cluster.local.";
    assert_eq!(whole("circle"), [format!("{circle} {circle}")]);
}

#[test]
fn record_pod_a() {
    assert_eq!(got("10-244-0-99.default.pod.cluster.local.", A), ["10.244.0.99"]);
    assert_eq!(got("fd00--99.default.pod.cluster.local.", AAAA), ["fd00::99"]);
    assert_eq!(got("10-244-0-99.default.pod.cluster.local.", AAAA), ["NoData"]);
    assert_eq!(got("10-244-0-99.nowhere.pod.cluster.local.", A), ["NoName"]);
    assert_eq!(got("10-244-0-999.default.pod.cluster.local.", A), ["NoName"]);
}

#[test]
fn record_publish_not_ready_addresses() {
    assert_eq!(got("eager.default.svc.cluster.local.", A), ["10.244.0.11", "10.244.0.12", "10.244.0.13"]);
}

#[test]
fn record_apex_soa_and_ns() {
    assert_eq!(
        got("cluster.local.", SOA),
        ["ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 30"]
    );
    assert_eq!(got("cluster.local.", NS), ["ns.dns.cluster.local."]);
    assert_eq!(further("cluster.local.", NS), ["ns.dns.cluster.local. 10.96.0.10"]);
    assert_eq!(got("ns.dns.cluster.local.", A), ["10.96.0.10"]);
}

#[test]
fn names_match_in_any_case_and_keep_the_asked_one() {
    let name = "WeB.dEfault.SVC.Cluster.LOCAL.";
    let bytes = begin(&responder(Some(zone()), "/dev/null"), &question(name)).unwrap();
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.queries[0].name.to_ascii(), name);
    assert_eq!(message.answers[0].name.to_ascii(), name);
}

#[test]
fn code_unknown_service_namespace_endpoint_is_no_name() {
    for name in
        ["nope.default.svc", "web.nowhere.svc", "nope.db.default.svc", "nowhere.svc", "nowhere.pod", "x.y"]
    {
        assert_eq!(got(&format!("{name}.cluster.local."), A), ["NoName"], "{name}");
    }
    let question = Question::new(&Qname::parse("nope.default.svc.cluster.local").unwrap(), A, IN);
    let mut out = Response::default();
    out.begin(&question);
    let zone = zone();
    authority(&zone, Section::Authority, Owner::Named(zone.origin().wire()), &mut out);
    let head = Head { code: 3, authoritative: true, authentic: false };
    let message = Message::from_vec(out.finish(&question, head, 512)).unwrap();
    let RData::SOA(soa) = &message.authorities[0].data else { panic!("{message:?}") };
    assert_eq!((soa.minimum, message.authorities[0].name.to_ascii()), (30, "cluster.local.".into()));
}

#[test]
fn code_other_type_is_no_data() {
    for kind in [MX, TXT, ANY] {
        assert_eq!(got("web.default.svc.cluster.local.", kind), ["NoData"], "{kind}");
    }
    assert_eq!(got("v4only.default.svc.cluster.local.", AAAA), ["NoData"]);
    assert_eq!(got("7.0.96.10.in-addr.arpa.", A), ["NoData"]);
    assert_eq!(got("out.default.svc.cluster.local.", MX), ["NoData"]);
}

#[test]
fn code_existing_namespace_and_branches_are_no_data() {
    for name in ["default.svc", "empty.svc", "default.pod", "svc", "pod"] {
        assert_eq!(got(&format!("{name}.cluster.local."), A), ["NoData"], "{name}");
    }
}

#[test]
fn code_headless_without_ready_endpoints_is_no_name() {
    assert_eq!(got("down.default.svc.cluster.local.", A), ["NoName"]);
}

#[test]
fn code_cluster_ip_without_endpoints_answers() {
    assert_eq!(got("v4only.default.svc.cluster.local.", A), ["10.96.0.8"]);
}

#[test]
fn code_external_name_with_port_labels_is_no_name() {
    assert_eq!(got("_http._tcp.out.default.svc.cluster.local.", SRV), ["NoName"]);
    assert_eq!(got("host.out.default.svc.cluster.local.", A), ["NoName"]);
}

#[test]
fn code_transfer_is_refused() {
    assert_eq!(got("cluster.local.", AXFR), ["Refused"]);
    assert_eq!(got("cluster.local.", IXFR), ["Refused"]);
    let mut out = Response::default();
    let chaos = answer(&zone(), &Qname::parse("cluster.local.").unwrap(), 3, TXT, &mut out);
    assert_eq!(chaos, Verdict::Refused);
}

#[test]
fn code_not_yet_synced() {
    let zone = Zone::new(Domain::parse("cluster.local").unwrap(), 30);
    assert_eq!(got_of(&zone, "web.default.svc.cluster.local.", A), ["NotSynced"]);
    assert_eq!(got_of(&zone, "7.0.96.10.in-addr.arpa.", PTR), ["NotSynced"]);
    assert_eq!(got_of(&zone, "example.org.", A), ["NotOurs"]);
}

#[test]
fn names_of_others_are_left_to_them() {
    for name in ["example.org.", "cluster.local.example.org.", "xcluster.local.", "local.", "."] {
        assert_eq!(got(name, A), ["NotOurs"], "{name}");
    }
    assert_eq!(got("1.1.1.1.in-addr.arpa.", PTR), ["NotOurs"]);
    assert_eq!(got("96.10.in-addr.arpa.", PTR), ["NotOurs"]);
}

#[test]
fn a_service_that_goes_takes_its_names_along() {
    let mut zone = zone();
    zone.set_service("default", "db", None);
    assert_eq!(got_of(&zone, "db.default.svc.cluster.local.", A), ["NoName"]);
    let left = got_of(&zone, "11.0.244.10.in-addr.arpa.", PTR);
    assert_eq!(left, ["db-0.eager.default.svc.cluster.local."], "the other Service of that Pod stays");
    for slice in ["db-0", "db-1"] {
        zone.set_slice("default", slice, None);
    }
    zone.retain_services(&["kube-system/kube-dns".to_owned()].into());
    zone.retain_slices(&std::collections::HashSet::new());
    assert_eq!(zone.len(), 1, "nothing is left of what is gone");
    assert_eq!(got_of(&zone, "11.0.244.10.in-addr.arpa.", PTR), ["NotOurs"]);
}
