//! Policies, Pods and namespaces as the API has them -> the rules as nft prints them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use netpol::cluster::ClusterPolicy;
use netpol::layout::{Names, table};
use netpol::model::{PodView, Policy, World};
use netpol::track::Touched;
use netpol::{Desired, Flow};
use nft::Family;
use serde_json::{Value, json};

fn policy(name: &str, spec: Value) -> Policy {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    Policy::of(&serde_json::from_value(object).unwrap()).unwrap()
}

fn pod(namespace: &str, name: &str, address: &str, ports: Value) -> PodView {
    let object = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": ports}]},
    });
    PodView::of(&serde_json::from_value(object).unwrap(), vec![address.parse().unwrap()], "n1").unwrap()
}

fn world(policies: Vec<Policy>) -> World {
    let web = json!([{"name": "http", "containerPort": 8080}]);
    let pods = [
        pod("default", "web", "10.244.0.2", web.clone()),
        pod("default", "web2", "10.244.0.3", web),
        pod("other", "client", "10.244.0.4", json!([{"name": "http", "containerPort": 9090}])),
    ];
    let labels = |name: &str| [("kubernetes.io/metadata.name".to_owned(), name.to_owned())].into();
    World {
        policies: policies.into_iter().map(|policy| (policy.key.clone(), policy)).collect(),
        namespaces: ["default", "other"].into_iter().map(|name| (name.to_owned(), labels(name))).collect(),
        pods: pods.into_iter().map(|pod| (pod.key.clone(), pod)).collect(),
        ..World::default()
    }
}

fn text(family: Family, policies: Vec<Policy>) -> String {
    let desired = Desired::of(&world(policies));
    let mut names = Names::default();
    names.follow(&desired, &Touched::between(&Desired::default(), &desired), |_| true);
    let all = table(family, &desired, &names).to_string();
    all.split("\n\tchain forward").next().unwrap().to_owned()
}

#[test]
fn pods_with_the_same_permits_share_a_profile() {
    let shown = text(
        Family::Ip,
        vec![
            policy(
                "in",
                json!({"podSelector": {}, "ingress": [{
                    "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}],
                    "ports": [{"port": "http"}]}]}),
            ),
            policy(
                "out",
                json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [
                    {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.244.0.0/16"]}}]},
                    {"ports": [{"port": "http"}, {"port": 53, "protocol": "UDP"}, {"port": 1, "endPort": 9}]}]}),
            ),
        ],
    );
    assert_eq!(
        shown,
        "table ip skiff-policy {
\tmap isolated-in {
\t\ttype ipv4_addr : verdict
\t\telements = { 10.244.0.2 : jump profile-4, 10.244.0.3 : jump profile-4 }
\t}

\tmap isolated-out {
\t\ttype ipv4_addr : verdict
\t\telements = { 10.244.0.2 : jump profile-5 }
\t}

\tset pods-1 {
\t\ttype ipv4_addr
\t\telements = { 10.244.0.4 }
\t}

\tset block-2 {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.0.0.0-10.243.255.255, 10.245.0.0-10.255.255.255 }
\t}

\tset ports-3 {
\t\ttype ipv4_addr . inet_service
\t\telements = { 10.244.0.2 . 8080,
\t\t\t     10.244.0.3 . 8080,
\t\t\t     10.244.0.4 . 9090 }
\t}

\tchain profile-4 {
\t\tip saddr @pods-1 tcp dport 8080 return
\t\tlimit rate 10/second burst 20 packets log prefix \"ingress drop\" group 4747
\t\tcounter packets 0 bytes 0 drop
\t}

\tchain profile-5 {
\t\ttcp dport 1-9 return
\t\tudp dport 53 return
\t\tmeta l4proto tcp ip daddr . th dport @ports-3 return
\t\tip daddr @block-2 return
\t\tlimit rate 10/second burst 20 packets log prefix \"egress drop\" group 4747
\t\tcounter packets 0 bytes 0 drop
\t}
"
    );
}

#[test]
fn rules_of_the_cluster_stand_around_those_of_network_policies() {
    let cluster_policy = |name: &str, tier: &str, rules: Value| {
        let spec = json!({"tier": tier, "priority": 1, "subject": {"pods": {"podSelector": {"matchLabels": {"app": "web"}}}}, "ingress": rules});
        let object = json!({"metadata": {"name": name}, "spec": spec});
        ClusterPolicy::of(&serde_json::from_value(object).unwrap()).unwrap()
    };
    let everybody = json!([{"namespaces": {}}]);
    let admin = json!([
        {"action": "Deny", "from": everybody, "protocols": [{"tcp": {"destinationPort": {"number": 22}}}]},
        {"action": "Pass", "from": everybody, "protocols": [{"destinationNamedPort": "http"}]},
        {"action": "Accept", "from": everybody}]);
    let baseline = json!([{"action": "Deny", "from": everybody}]);
    let policies = [cluster_policy("a", "Admin", admin), cluster_policy("b", "Baseline", baseline)]
        .map(|p| (p.name.clone(), p));
    let desired = Desired::of(&World { cluster_policies: policies.into(), ..world(Vec::new()) });
    let mut names = Names::default();
    names.follow(&desired, &Touched::between(&Desired::default(), &desired), |_| true);
    let all = table(Family::Ip, &desired, &names).to_string();
    let (_, chains) = all.split_once("\tchain profile-2-rest").unwrap();
    assert_eq!(
        chains.split("\n\tchain forward").next().unwrap(),
        " {
\t\tip saddr @pods-1 limit rate 10/second burst 20 packets log prefix \"ingress drop\" group 4747
\t\tip saddr @pods-1 counter packets 0 bytes 0 drop
\t}

\tchain profile-2 {
\t\tip saddr @pods-1 tcp dport 22 limit rate 10/second burst 20 packets log prefix \"ingress drop\" group 4747
\t\tip saddr @pods-1 tcp dport 22 counter packets 0 bytes 0 drop
\t\tip saddr @pods-1 tcp dport 8080 goto profile-2-rest
\t\tip saddr @pods-1 return
\t\tgoto profile-2-rest
\t}
"
    );
}

#[test]
fn without_policies_nothing_is_isolated() {
    let desired = Desired::of(&world(Vec::new()));
    assert_eq!(desired, Desired::default());
}

#[test]
fn lists_that_are_empty_missing_or_of_the_other_direction() {
    let allows = |spec: Value| {
        let desired = Desired::of(&world(vec![policy("p", spec)]));
        let ask = |src: &str, dst: &str| {
            desired.allows(&Flow {
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                protocol: nft::Protocol::Tcp,
                port: 8080,
            })
        };
        (ask("10.244.0.4", "10.244.0.2"), ask("10.244.0.2", "10.244.0.4"))
    };
    assert_eq!(allows(json!({"podSelector": {}})), (false, true));
    assert_eq!(allows(json!({"podSelector": {}, "ingress": []})), (false, true));
    assert_eq!(allows(json!({"podSelector": {}, "ingress": [{}]})), (true, true));
    assert_eq!(allows(json!({"podSelector": {}, "ingress": [{"from": [], "ports": []}]})), (true, true));
    assert_eq!(allows(json!({"podSelector": {}, "egress": []})), (false, false));
    assert_eq!(allows(json!({"podSelector": {}, "policyTypes": ["Egress"]})), (true, false));
    assert_eq!(allows(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]})), (true, true));
}

#[test]
fn a_pod_of_the_nodes_network_or_one_that_ended_is_nobody() {
    let object = |spec: Value, phase: &str| {
        let pod =
            json!({"metadata": {"namespace": "d", "name": "p"}, "spec": spec, "status": {"phase": phase}});
        PodView::of(&serde_json::from_value(pod).unwrap(), vec!["10.0.0.1".parse().unwrap()], "n1")
    };
    assert!(object(json!({"containers": []}), "Running").is_some_and(|pod| !pod.local));
    assert!(object(json!({"containers": [], "hostNetwork": true}), "Running").is_none());
    assert!(object(json!({"containers": []}), "Succeeded").is_none());
}
