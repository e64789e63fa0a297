//! What a Service becomes, as text and as differences, without a kernel.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proptest::prelude::*;
use proxy::announce::Speakers;
use proxy::desired::{desired, targets};
use proxy::layout::{self, Placed};
use proxy::model::*;
use serde_json::{Value, json};

fn node() -> NodeView {
    NodeView {
        name: "n1".into(),
        zone: None,
        addresses: vec!["192.168.49.2".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
    }
}

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap()
}

/// Endpoints as (address, node, ready, terminating); a terminating one still serves.
fn slice(service: &str, port: i32, endpoints: &[(&str, &str, bool, bool)]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(addr, node, ready, terminating)| {
            json!({"addresses": [addr], "nodeName": node, "conditions":
                {"ready": ready, "serving": ready | terminating, "terminating": terminating}})
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": format!("{service}-x"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "port": port, "protocol": "TCP"}]}))
    .unwrap()
}

fn tcp(place: &str, port: u16) -> Frontend {
    let place = if place == "node" { Place::Node(Ip::V4) } else { Place::Address(place.parse().unwrap()) };
    Frontend { place, protocol: Protocol::Tcp, port }
}

fn one(service: &Service, slices: &[EndpointSlice], frontend: Frontend) -> Option<Action> {
    let all: HashMap<Frontend, Target> = targets(service, slices, &node()).into_iter().collect();
    all.get(&frontend).map(|t| t.action.clone())
}

/// Endpoints of a forwarding action, as text.
fn sent_to(action: Option<Action>) -> Vec<String> {
    match action {
        Some(Action::Forward(forward)) => forward.endpoints.iter().map(ToString::to_string).collect(),
        other => vec![format!("{other:?}")],
    }
}

/// The parts of a listing that stand for Services: sets with elements, and chains made for them.
fn service_part(model: &Model) -> String {
    let placed: HashMap<Frontend, Placed> = model.iter().map(|(f, t)| (*f, Placed::new(t, None))).collect();
    let skeleton = layout::skeleton(Ip::V4, &node());
    let mut table = layout::table(Ip::V4, &node(), &placed);
    table.sets.retain(|set| !set.elements.is_empty());
    table.chains.retain(|chain| !skeleton.chains.contains(chain));
    table.to_string().replace('\t', "  ")
}

#[test]
fn a_cluster_ip_with_two_endpoints_and_a_node_port() {
    let web = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "type": "NodePort",
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]}),
    );
    let slices =
        [slice("web", 8080, &[("10.244.0.5", "n1", true, false), ("10.244.1.6", "n2", true, false)])];
    let model = desired(&[web], &slices, &node(), &[]);
    let expected = "\
table ip skiff-proxy {
  map svc4 {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.0.7 . tcp . 80 : goto o2 }
  }

  map ep4 {
    typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport
    elements = { 10.96.0.7 . tcp . 80 . 0 : 10.244.0.5 . 8080,
           10.96.0.7 . tcp . 80 . 1 : 10.244.1.6 . 8080 }
  }

  map npsvc4 {
    type inet_proto . inet_service : verdict
    elements = { tcp . 30080 : goto npm2 }
  }

  map npep4 {
    typeof meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport
    elements = { tcp . 30080 . 0 : 10.244.0.5 . 8080,
           tcp . 30080 . 1 : 10.244.1.6 . 8080 }
  }

  set hairpin4 {
    type ipv4_addr . ipv4_addr
    elements = { 10.244.0.5 . 10.244.0.5 }
  }

  set vips4 {
    type ipv4_addr
    elements = { 10.96.0.7 }
  }

  chain o2 {
    ip saddr != 10.244.0.0/16 fib saddr type != local meta mark set meta mark | 0x00004000
    dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @ep4
  }

  chain npm2 {
    meta mark set meta mark | 0x00004000
    dnat ip to meta l4proto . th dport . numgen random mod 2 map @npep4
  }
}
";
    assert_eq!(service_part(&model), expected);
}

#[test]
fn affinity_remembers_a_number_that_stays_with_the_endpoint() {
    let web = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [{"port": 80}]}),
    );
    let slices = [slice("web", 80, &[("10.244.1.5", "n2", true, false)])];
    let text = service_part(&desired(&[web], &slices, &node(), &[]));
    let chain = text.split("chain ").nth(1).unwrap();
    assert_eq!(
        chain.trim_end_matches("\n}\n"),
        "o1-a60 {\n    \
         meta mark set ip daddr . meta l4proto . th dport . numgen random mod 1 map @pick4\n    \
         meta mark set ip saddr . ip daddr . meta l4proto . th dport map @aff4\n    \
         update @aff4 { ip saddr . ip daddr . meta l4proto . th dport timeout 1m : meta mark }\n    \
         ip saddr != 10.244.0.0/16 fib saddr type != local meta mark set meta mark | 0x00004000\n    \
         dnat ip to ip daddr . meta l4proto . th dport . meta mark map @epa4\n    \
         meta mark set ip daddr . meta l4proto . th dport . numgen random mod 1 map @pick4\n    \
         delete @aff4 { ip saddr . ip daddr . meta l4proto . th dport : meta mark }\n    \
         update @aff4 { ip saddr . ip daddr . meta l4proto . th dport timeout 1m : meta mark }\n    \
         ip saddr != 10.244.0.0/16 fib saddr type != local meta mark set meta mark | 0x00004000\n    \
         dnat ip to ip daddr . meta l4proto . th dport . meta mark map @epa4\n  }"
    );
    assert!(text.contains("10.96.0.7 . tcp . 80 . 0x00000000 : 10.244.1.5 . 80"));
    assert!(text.contains("10.96.0.7 . tcp . 80 . 0x00004000 : 10.244.1.5 . 80"));
}

#[test]
fn nobody_serves_is_refused_and_only_others_serve_is_dropped() {
    let plain = service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    let local = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    );
    let other = [slice("web", 80, &[("10.244.1.5", "n2", true, false)])];
    let unready = [slice("web", 80, &[("10.244.1.5", "n2", false, false)])];
    assert_eq!(one(&plain, &[], tcp("10.96.0.7", 80)), Some(Action::Refuse));
    assert_eq!(one(&plain, &unready, tcp("10.96.0.7", 80)), Some(Action::Refuse));
    assert_eq!(one(&local, &[], tcp("10.96.0.7", 80)), Some(Action::Refuse));
    assert_eq!(one(&local, &other, tcp("10.96.0.7", 80)), Some(Action::Drop));
    let text = service_part(&desired(&[plain], &[] as &[EndpointSlice], &node(), &[]));
    assert!(text.contains(
        "map noep4 {\n    type ipv4_addr . inet_proto . inet_service : verdict\n    \
        elements = { 10.96.0.7 . tcp . 80 : goto refuse }"
    ));
}

#[test]
fn terminating_endpoints_serve_while_nobody_is_ready() {
    let plain = service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    let front = tcp("10.96.0.7", 80);
    let mixed = [slice("web", 80, &[("10.244.1.5", "n2", true, false), ("10.244.0.6", "n1", false, true)])];
    assert_eq!(sent_to(one(&plain, &mixed, front)), ["10.244.1.5:80"]);
    let ending = [slice("web", 80, &[("10.244.1.5", "n2", false, false), ("10.244.0.6", "n1", false, true)])];
    assert_eq!(sent_to(one(&plain, &ending, front)), ["10.244.0.6:80"]);
    // Local: this node's terminating endpoint serves although another node has a ready one.
    let local = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    );
    assert_eq!(sent_to(one(&local, &mixed, front)), ["10.244.0.6:80"]);
}

#[test]
fn external_local_keeps_outsiders_on_the_node_and_sends_insiders_everywhere() {
    let web = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "type": "NodePort", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let slices = [slice("web", 80, &[("10.244.0.5", "n1", true, false), ("10.244.1.6", "n2", true, false)])];
    let Some(Action::Forward(forward)) = one(&web, &slices, tcp("node", 30080)) else {
        panic!("not forwarded")
    };
    assert_eq!(forward.masquerade, Masquerade::Never, "the client's address is kept");
    assert_eq!(forward.endpoints, ["10.244.0.5:80".parse::<SocketAddr>().unwrap()]);
    assert_eq!(forward.insiders.unwrap().len(), 2);
    let text = service_part(&desired(&[web], &slices[..], &node(), &[]));
    assert!(text.contains(
        "chain npl1 {\n    ip saddr 10.244.0.0/16 meta l4proto . th dport vmap @innpsvc4\n    \
         fib saddr type local meta l4proto . th dport vmap @innpsvc4\n    \
         dnat ip to meta l4proto . th dport . numgen random mod 1 map @npep4\n  }"
    ));
}

#[test]
fn external_addresses_are_ordinary_frontends() {
    let mut web = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "type": "LoadBalancer", "externalIPs": ["1.2.3.4"], "ports": [{"port": 80}]}),
    );
    web.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
        {"ip": "192.168.49.200"}, {"ip": "192.168.49.201", "ipMode": "Proxy"}]}}))
    .unwrap();
    let slices = [slice("web", 80, &[("10.244.1.6", "n2", true, false)])];
    for addr in ["1.2.3.4", "192.168.49.200"] {
        let Some(Action::Forward(forward)) = one(&web, &slices, tcp(addr, 80)) else { panic!("{addr}") };
        assert_eq!(forward.masquerade, Masquerade::Always);
    }
    assert_eq!(one(&web, &slices, tcp("192.168.49.201", 80)), None, "mode Proxy leaves the node");
}

#[test]
fn source_ranges_guard_the_load_balancers_address_alone() {
    let mut web = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "type": "LoadBalancer", "externalIPs": ["1.2.3.4"],
            "ports": [{"port": 80, "nodePort": 30080}],
            "loadBalancerSourceRanges": [" 192.168.49.0/24", "10.244.0.9/16", "fd00::/8"]}),
    );
    web.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.168.49.200"}]}})).unwrap();
    let text = service_part(&desired::<_, EndpointSlice>(&[web], &[], &node(), &[]));
    let name = text.split_once("jump ").unwrap().1.split_once(' ').unwrap().0;
    let expected = format!(
        "map from4 {{\n    type ipv4_addr . inet_proto . inet_service : verdict\n    \
         elements = {{ 192.168.49.200 . tcp . 80 : jump {name} }}\n  }}"
    );
    assert!(text.contains(&expected), "{text}");
    let chain = format!(
        "chain {name} {{\n    ip saddr 10.244.0.0/16 return\n    ip saddr 192.168.49.0/24 return\n    drop\n  }}"
    );
    assert!(text.contains(&chain), "{text}");
}

fn cluster_node(name: &str, ready: bool) -> Node {
    let status = if ready { "True" } else { "Unknown" };
    serde_json::from_value(json!({"metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": status}]}}))
    .unwrap()
}

/// A Service with the address 192.168.49.200.
fn balanced(name: &str, more: Value) -> Service {
    let mut spec = json!({"clusterIP": "10.96.0.7", "type": "LoadBalancer", "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut service = service(name, spec);
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.168.49.200", "ipMode": "VIP"}]}});
    service.status = serde_json::from_value(status).unwrap();
    service
}

#[test]
fn one_node_answers_for_a_load_balancer_and_all_agree_which() {
    let names = ["n1", "n2", "n3"];
    let all = Speakers::new(&names.map(|name| cluster_node(name, true)));
    let without_n2 =
        Speakers::new(&[cluster_node("n1", true), cluster_node("n2", false), cluster_node("n3", true)]);
    let none: [EndpointSlice; 0] = [];
    let mut share = HashMap::<&str, usize>::new();
    for i in 0..60 {
        let service = balanced(&format!("s{i}"), json!({}));
        let answer = |speakers: &Speakers, name| speakers.addresses(&service, &none, name).unwrap().len();
        let own: Vec<&str> = names.into_iter().filter(|name| answer(&all, *name) == 1).collect();
        assert_eq!(own.len(), 1, "exactly one answers");
        let then: Vec<&str> = names.into_iter().filter(|name| answer(&without_n2, *name) == 1).collect();
        assert!(then.len() == 1 && then != ["n2"] && (own == ["n2"] || own == then), "{own:?} {then:?}");
        *share.entry(own[0]).or_default() += 1;
    }
    assert!(share.len() == 3 && share.values().all(|n| *n > 5), "{share:?}");
}

#[test]
fn with_local_policy_a_node_with_an_endpoint_answers() {
    let speakers =
        Speakers::new(&[cluster_node("n1", true), cluster_node("n2", true), cluster_node("n3", false)]);
    let local = balanced("web", json!({"externalTrafficPolicy": "Local"}));
    for there in ["n1", "n2"] {
        let slices =
            [slice("web", 80, &[("10.244.1.6", there, true, false), ("10.244.1.7", "n3", true, false)])];
        assert_eq!(speakers.of(&local, &slices), Some(there));
    }
    let only_unready = [slice("web", 80, &[("10.244.1.7", "n3", true, false)])];
    assert_eq!(speakers.of(&local, &only_unready), Some("n3"), "its endpoint may live on");
    let none: [EndpointSlice; 0] = [];
    assert!(matches!(speakers.of(&local, &none), Some("n1" | "n2")), "somebody has to refuse");
    let alone = Speakers::new(&[cluster_node("n1", false)]);
    assert_eq!(alone.of(&local, &none), Some("n1"));
    for foreign in [json!({"loadBalancerClass": "example.com/x"}), json!({"type": "NodePort"})] {
        assert_eq!(alone.addresses(&balanced("web", foreign), &none, "n1"), None);
    }
}

#[test]
fn services_of_others_are_left_alone() {
    let slices = [slice("web", 80, &[("10.244.1.6", "n2", true, false)])];
    let mut web = service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        web.metadata.labels = Some([(label.to_owned(), "x".to_owned())].into());
        assert!(targets(&web, &slices, &node()).is_empty(), "{label}");
    }
    let headless = service("web", json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    assert!(targets(&headless, &slices, &node()).is_empty());
    let external = service("web", json!({"type": "ExternalName", "externalName": "example.org"}));
    assert!(targets(&external, &slices, &node()).is_empty());
}

#[test]
fn ports_are_joined_by_name_and_protocol() {
    let dns = service(
        "dns",
        json!({"clusterIP": "10.96.0.10", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}),
    );
    let slices: Vec<EndpointSlice> = vec![
        serde_json::from_value(json!({
            "metadata": {"name": "dns-1", "namespace": "kube-system"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.2"]}],
            "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354}]}))
        .unwrap(),
        serde_json::from_value(json!({
            "metadata": {"name": "dns-6", "namespace": "kube-system"}, "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::2"]}],
            "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}]}))
        .unwrap(),
    ];
    let udp = Frontend { protocol: Protocol::Udp, ..tcp("10.96.0.10", 53) };
    assert_eq!(sent_to(one(&dns, &slices, udp)), ["10.244.0.2:5353"]);
    assert_eq!(sent_to(one(&dns, &slices, tcp("10.96.0.10", 53))), ["10.244.0.2:5354"]);
}

/// Slices that contradict each other: kube-proxy takes an endpoint once, by address and port, whoever names it, and the
/// port of the slice that it stands in. Which of two slices it believes is left to chance there; here the one that serves.
#[test]
fn slices_that_contradict_each_other_give_each_endpoint_once() {
    let plain = service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    let local = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    );
    let front = tcp("10.96.0.7", 80);
    let (a, b) = ("10.244.0.5", "10.244.1.6");
    let ready = |addr, node| slice("web", 8080, &[(addr, node, true, false)]);
    let unready = |addr, node| slice("web", 8080, &[(addr, node, false, false)]);
    let ending = |addr, node| slice("web", 8080, &[(addr, node, false, true)]);
    let both_ways = |slices: [EndpointSlice; 2], of: &Service| {
        let forwards = sent_to(one(of, &slices, front));
        let [first, second] = slices;
        assert_eq!(
            sent_to(one(of, &[second, first], front)),
            forwards,
            "the order of slices counts for nothing"
        );
        forwards
    };
    // Ready in one and not in the other.
    assert_eq!(both_ways([ready(a, "n1"), unready(a, "n1")], &plain), ["10.244.0.5:8080"]);
    assert_eq!(both_ways([ready(a, "n1"), ending(a, "n1")], &local), ["10.244.0.5:8080"]);
    // The same address twice, in one slice and in two, has one share.
    let twice = slice("web", 8080, &[(a, "n1", true, false), (a, "n1", true, false), (b, "n2", true, false)]);
    assert_eq!(both_ways([twice, ready(a, "n1")], &plain), ["10.244.0.5:8080", "10.244.1.6:8080"]);
    // On this node by one slice, elsewhere by the other.
    assert_eq!(both_ways([ready(a, "n1"), ready(a, "n2")], &local), ["10.244.0.5:8080"]);
    // Another number for the port of the same name: each endpoint at the number of its slice.
    let other = slice("web", 9090, &[(a, "n1", true, false), (b, "n2", true, false)]);
    assert_eq!(
        both_ways([ready(a, "n1"), other], &plain),
        ["10.244.0.5:8080", "10.244.0.5:9090", "10.244.1.6:9090"]
    );
    // The same protocol and name twice in one slice (which the API refuses): the first.
    let mut odd = slice("web", 8080, &[(a, "n1", true, false)]);
    odd.ports.as_mut().unwrap().push(slice("web", 9090, &[]).ports.unwrap().remove(0));
    assert_eq!(sent_to(one(&plain, &[odd], front)), ["10.244.0.5:8080"]);
}

/// Endpoints that the API refuses, should one be stored all the same: the node's loopback is opened to nobody.
#[test]
fn endpoints_on_loopback_and_link_local_addresses_are_none() {
    let plain = service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
    let front = tcp("10.96.0.7", 80);
    let special = ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1"].map(|addr| (addr, "n1", true, false));
    assert_eq!(one(&plain, &[slice("web", 80, &special)], front), Some(Action::Refuse));
    let mixed = [slice("web", 80, &special), slice("web", 80, &[("10.244.0.5", "n1", true, false)])];
    assert_eq!(sent_to(one(&plain, &mixed, front)), ["10.244.0.5:80"]);
    let six = service("web", json!({"clusterIP": "fd00:96::7", "ports": [{"port": 80}]}));
    let mut slice = slice("web", 80, &[("::1", "n1", true, false), ("fe80::1", "n1", true, false)]);
    slice.address_type = "IPv6".into();
    assert_eq!(one(&six, &[slice], tcp("fd00:96::7", 80)), Some(Action::Refuse));
}

/// A family that the Service has no address of is not there, whatever slices say.
#[test]
fn slices_of_a_family_without_a_cluster_address_make_nothing() {
    let plain = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "type": "NodePort", "ipFamilies": ["IPv4"],
        "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let mut six = slice("web", 80, &[("fd00::5", "n1", true, false)]);
    six.address_type = "IPv6".into();
    let found: HashMap<Frontend, Target> = targets(&plain, &[six], &node()).into_iter().collect();
    assert!(found.keys().all(|frontend| frontend.place.ip() == Ip::V4), "{found:?}");
    assert_eq!(found[&tcp("10.96.0.7", 80)].action, Action::Refuse);
    assert_eq!(found[&tcp("node", 30080)].action, Action::Refuse);
}

/// A Service with a thousand endpoints is one chain, one element in the map of Services and one element for each endpoint.
#[test]
fn a_thousand_endpoints_are_a_thousand_elements_and_one_chain() {
    let web = service("web", json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "targetPort": 8080}]}));
    let addresses: Vec<String> = (0..1000).map(|i| format!("10.244.{}.{}", 8 + i / 250, i % 250)).collect();
    let all: Vec<(&str, &str, bool, bool)> =
        addresses.iter().map(|a| (a.as_str(), "n2", true, false)).collect();
    let text = service_part(&desired(&[web], &[slice("web", 8080, &all)], &node(), &[]));
    assert!(text.contains("elements = { 10.96.0.7 . tcp . 80 : goto o1000 }"));
    assert!(text.contains("dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1000 map @ep4"));
    assert_eq!(text.matches("chain ").count(), 1);
    for (slot, address) in addresses.iter().enumerate() {
        assert!(text.contains(&format!("10.96.0.7 . tcp . 80 . {slot} : {address} . 8080")), "{address}");
    }
}

#[test]
fn host_ports_serve_the_node_and_yield_to_services() {
    let port = |host_ip: Option<&str>, host_port, target: &str| HostPort {
        host_ip: host_ip.map(|a| a.parse().unwrap()),
        host_port,
        protocol: Protocol::Tcp,
        target: target.parse().unwrap(),
    };
    let web = service(
        "web",
        json!({"clusterIP": "10.96.0.7", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    let slices = [slice("web", 80, &[("10.244.1.6", "n2", true, false)])];
    let ports = [
        port(None, 8080, "10.244.0.9:80"),
        port(Some("0.0.0.0"), 8081, "10.244.0.9:81"),
        port(Some("192.168.49.2"), 8082, "10.244.0.9:82"),
        port(Some("1.1.1.1"), 53, "10.244.0.9:53"),
        port(None, 30080, "10.244.0.9:80"),
    ];
    let model = desired(&[web], &slices[..], &node(), &ports);
    let to = |frontend| sent_to(model.get(&frontend).map(|t| t.action.clone()));
    assert_eq!(to(tcp("node", 8080)), ["10.244.0.9:80"]);
    assert_eq!(to(tcp("node", 8081)), ["10.244.0.9:81"]);
    assert_eq!(to(tcp("192.168.49.2", 8082)), ["10.244.0.9:82"]);
    assert_eq!(to(tcp("node", 30080)), ["10.244.1.6:80"]);
    assert!(model.get(&tcp("1.1.1.1", 53)).is_none(), "an address that is not the node's");
}

#[test]
fn a_claim_passes_on_when_its_first_owner_lets_go() {
    let mut model = Model::default();
    let front = tcp("1.2.3.4", 80);
    let target = || Target { action: Action::Refuse, cluster_ip: false, hairpins: vec![], sources: vec![] };
    let other = || Target { action: Action::Drop, ..target() };
    let (a, b) = (Owner::Service("x".into(), "a".into()), Owner::Service("x".into(), "b".into()));
    assert_eq!(model.set(&b, vec![(front, other())]), HashSet::from([front]));
    assert_eq!(model.set(&a, vec![(front, target())]), HashSet::from([front]));
    assert_eq!(model.get(&front).map(|t| &**t), Some(&target()));
    assert_eq!(model.set(&a, vec![(front, target())]), HashSet::new(), "nothing changed");
    assert_eq!(model.set(&a, vec![]), HashSet::from([front]));
    assert_eq!(model.get(&front).map(|t| &**t), Some(&other()));
    assert_eq!(model.set(&b, vec![]), HashSet::from([front]));
    assert_eq!(model.get(&front), None);
}

proptest! {
    /// Slots hold exactly the wanted endpoints, without a hole, and who stays moves only into a hole.
    #[test]
    fn slots_are_exact_and_move_little(rounds in prop::collection::vec(prop::collection::btree_set(1u8..30, 0..20), 1..8)) {
        let mut slots = layout::Slots::default();
        let mut before: Vec<SocketAddr> = Vec::new();
        for round in rounds {
            let wanted: Vec<SocketAddr> = round.iter().map(|i| SocketAddr::from(([10, 244, 0, *i], 80))).collect();
            slots = slots.with(&wanted);
            let now = slots.addresses();
            prop_assert_eq!(now.iter().copied().collect::<BTreeSet<_>>(), wanted.iter().copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(now.len(), wanted.len());
            let moved = before.iter().enumerate()
                .filter(|(i, a)| now.contains(a) && now.get(*i) != Some(a)).count();
            let shrunk = before.len().saturating_sub(now.len());
            prop_assert!(moved <= shrunk, "{} moved, {} slots fewer", moved, shrunk);
            before = now;
        }
    }
}
