//! ClusterNetworkPolicies on real Pods: tiers in their order, refusals of what is no policy, and what kubectl shows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use testkit::cluster::Cluster;
use testkit::eventually;
use testkit::kubectl::Kubectl;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn cluster_policies_are_asked_before_and_after_network_policies() {
    let cluster = Cluster::start(env!("CARGO_BIN_EXE_skiff"), "e2ecnp");
    let kubectl = cluster.kubectl();
    kubectl.apply(PODS);
    kubectl.out("wait --for=condition=Ready pod/ports pod/busybox --timeout=60s");
    tiers_are_asked_in_their_order(&kubectl);
    nodes_and_networks_are_peers(&kubectl);
}

const PODS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: ports, labels: {app: ports}}
spec:
  containers:
  - {name: a, image: 'localhost/skiff:latest', args: [serve, --http, '8080']}
  - {name: b, image: 'localhost/skiff:latest', args: [serve, --http, '8081']}
---
apiVersion: v1
kind: Pod
metadata: {name: busybox, labels: {app: sleepy}}
spec:
  containers:
  - {name: c, image: 'localhost/skiff:latest', command: [sleep, '3600']}
";

/// Whether a connection is refused without a word.
fn times_out(kubectl: &Kubectl, from: &str, url: &str) -> bool {
    let ran = kubectl.run(&format!("exec {from} -- wget --spider --timeout=1 {url}"));
    format!("{}{}", ran.stdout, ran.stderr).contains("timed out")
}

#[track_caller]
fn reaches(kubectl: &Kubectl, url: &str) {
    eventually(&format!("busybox reaches {url}"), SOON, || {
        (!times_out(kubectl, "busybox", url)).then_some(())
    });
}

#[track_caller]
fn is_refused(kubectl: &Kubectl, url: &str) {
    eventually(&format!("busybox is refused {url}"), SOON, || {
        times_out(kubectl, "busybox", url).then_some(())
    });
}

fn policy(name: &str, tier: &str, priority: u32, rules: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, \
         spec: {{tier: {tier}, priority: {priority}, \
         subject: {{pods: {{podSelector: {{matchLabels: {{app: ports}}}}}}}}, {rules}}}}}"
    )
}

fn tiers_are_asked_in_their_order(kubectl: &Kubectl) {
    let ports = kubectl.json("get pod ports")["status"]["podIP"].as_str().unwrap().to_owned();
    let (first, second) = (format!("{ports}:8080"), format!("{ports}:8081"));
    kubectl.apply(&policy("base", "Baseline", 10, "ingress: [{action: Deny, from: [{namespaces: {}}]}]"));
    is_refused(kubectl, &first);
    // A NetworkPolicy decides before the last tier is asked.
    kubectl.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: ports}, \
         spec: {podSelector: {matchLabels: {app: ports}}, ingress: [{}]}}",
    );
    reaches(kubectl, &first);
    // And the first tier before any of them: a port is denied, the other left to the rest.
    let rules = "ingress: [{name: not-8081, action: Deny, from: [{namespaces: {}}], \
                 protocols: [{tcp: {destinationPort: {number: 8081}}}]}, {action: Pass, from: [{namespaces: {}}]}]";
    kubectl.apply(&policy("admin", "Admin", 5, rules));
    is_refused(kubectl, &second);
    reaches(kubectl, &first);
    let earlier = "ingress: [{action: Accept, from: [{pods: {podSelector: {matchLabels: {app: sleepy}}}}]}]";
    kubectl.apply(&policy("earlier", "Admin", 4, earlier));
    reaches(kubectl, &second);
    let listed = kubectl.out("get clusternetworkpolicies");
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "TIER", "PRIORITY", "AGE"], "{listed}");
    assert_eq!((rows[1][..3].to_vec(), rows.len()), (vec!["admin", "Admin", "5"], 4), "{listed}");
    assert!(
        kubectl.out("get cnp base -o name").contains("clusternetworkpolicy.policy.networking.k8s.io/base")
    );
    for (rules, said) in [
        ("ingress: [{action: Allow, from: [{namespaces: {}}]}]", "Unsupported value: \"Allow\""),
        ("ingress: [{action: Deny, from: []}]", "spec.ingress[0].from"),
        ("ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]", "networks"),
        ("egress: [{action: Deny, to: [{networks: [10.0.0.0/99]}]}]", "Invalid CIDR format provided"),
        ("egress: [{action: Deny, to: [{namespaces: {}, nodes: {}}]}]", "must have at most 1"),
        (
            "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}]",
            "networks/nodes peer cannot be set",
        ),
        (
            "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 9}}}}]}]",
            "Start port must be less than End port",
        ),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), policy("bad", "Admin", 1, rules)).unwrap();
        let made = kubectl.args(&["create", "-f", &file.path().display().to_string()]);
        assert!(!made.ok && made.stderr.contains(said), "{rules}: {made:?}");
    }
    kubectl.out("delete networkpolicy ports");
    kubectl.out("delete cnp --all");
    reaches(kubectl, &second);
}

fn nodes_and_networks_are_peers(kubectl: &Kubectl) {
    let host = kubectl.json("get endpoints kubernetes")["subsets"][0]["addresses"][0]["ip"].clone();
    let api = format!("{}:8443", host.as_str().unwrap());
    let until = |what: &str, wanted: bool| {
        eventually(what, SOON, || (times_out(kubectl, "ports -c a", &api) != wanted).then_some(()));
    };
    until("the Pod reaches its node", true);
    kubectl.apply(&policy("nodes", "Admin", 1, "egress: [{action: Deny, to: [{nodes: {}}]}]"));
    until("the Pod is refused its node", false);
    let networks =
        "egress: [{action: Accept, to: [{networks: [192.168.0.0/16, 172.16.0.0/12, 10.0.0.0/8]}]}]";
    kubectl.apply(&policy("networks", "Admin", 0, networks));
    until("the Pod reaches its node as a network", true);
    kubectl.out("delete cnp --all");
}
