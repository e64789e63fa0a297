//! IP families: a cluster of two nodes with IPv4 and IPv6, one with IPv6 alone and one with IPv4 alone. Names in quotes are
//! the cases of upstream's `dual_stack.go`; its matrix is run on IPv6, since all other tests run on IPv4.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "families/ask.rs"]
mod ask;
#[path = "families/services.rs"]
mod services;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use testkit::cluster::Cluster;
use testkit::eventually;
use testkit::kubectl::Kubectl;
use testkit::machine::Machine;

use crate::ask::{bracketed, families, fetch, fetch_all, host_gets, internal, ips, pod_ips, shows, texts};
use crate::services::{service, services_of_every_family, traffic_on_ipv6};

const SOON: Duration = Duration::from_secs(30);
const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

/// A server on each node, a client beside the first of them, and one on the node's own network.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: web, at: near}}
spec:
  nodeName: NODE
  containers:
  - name: c
    image: localhost/skiff:latest
    command: [serve, --http, "8080", --udp, "8081"]
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
    env: [{name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}, {name: HOSTS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: web, at: far}}
spec:
  nodeName: LAST
  containers:
  - name: c
    image: localhost/skiff:latest
    command: [serve, --http, "8080", --udp, "8081"]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: NODE
  containers: [{name: c, image: localhost/skiff:latest, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-node, labels: {app: on-node}}
spec:
  nodeName: LAST
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers:
  - name: c
    image: localhost/skiff:latest
    command: [serve, --http, "8090"]
    readinessProbe: {httpGet: {port: 8090}, periodSeconds: 1}
"#;

fn make_pods(kubectl: &Kubectl, node: &str, last: &str) {
    kubectl.apply(&PODS.replace("NODE", node).replace("LAST", last));
    kubectl.out("wait --for=condition=Ready pod/near pod/far pod/client pod/on-node --timeout=60s");
}

/// Each compares the machine before and after: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn both_families_on_two_nodes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Machine::now();
    {
        let cluster = Cluster::start_with(SKIFF, "dual", "--nodes 2");
        let kubectl = cluster.kubectl();
        make_pods(&kubectl, "dual", "dual-m02");
        nodes_and_pods_have_both(&cluster, &kubectl);
        pods_are_reached_on_both(&kubectl);
        services_of_every_family(&kubectl);
        traffic_on_ipv6(&kubectl);
        names_have_both(&kubectl);
        policies_hold_on_ipv6(&kubectl);
        the_ways_of_the_api_server(&kubectl);
        ingress_on_ipv6(&cluster, &kubectl);
        a_second_start_keeps_all(&cluster, &kubectl);
    }
    before.is_again(Duration::from_secs(60));
}

#[test]
fn one_family_alone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Machine::now();
    {
        let cluster = Cluster::start_with(SKIFF, "six", "--ip-family ipv6");
        let kubectl = cluster.kubectl();
        make_pods(&kubectl, "six", "six");
        ipv6_alone(&cluster, &kubectl);
    }
    {
        let cluster = Cluster::start_with(SKIFF, "four", "--ip-family=ipv4");
        let kubectl = cluster.kubectl();
        make_pods(&kubectl, "four", "four");
        ipv4_alone(&cluster, &kubectl);
    }
    before.is_again(Duration::from_secs(60));
}

/// "should have ipv4 and ipv6 internal node ip", "should create pod, add ipv6 and ipv4 ip to pod ips".
fn nodes_and_pods_have_both(cluster: &Cluster, kubectl: &Kubectl) {
    for (name, ranges) in [
        ("dual", ["10.244.0.0/24", "fd00:10:244::/64"]),
        ("dual-m02", ["10.244.1.0/24", "fd00:10:244:1::/64"]),
    ] {
        let node = kubectl.json(&format!("get node {name}"));
        assert_eq!(families(&internal(&node)), "46", "{node}");
        assert_eq!(texts(&node["spec"]["podCIDRs"]), ranges);
        assert_eq!(node["spec"]["podCIDR"], ranges[0]);
    }
    let node = internal(&kubectl.json("get node dual"));
    assert_eq!(cluster.skiff("ip").out().trim(), node[0]);
    let pod = kubectl.json("get pod near");
    let own = ips(&pod["status"]["podIPs"]);
    assert_eq!(families(&own), "46", "{pod}");
    assert_eq!(pod["status"]["podIP"], own[0].as_str());
    assert_eq!(ips(&pod["status"]["hostIPs"]), node);
    assert_eq!(pod["status"]["hostIP"], node[0].as_str());
    let env = kubectl.out("exec near -- env");
    assert!(env.contains(&format!("IPS={}\n", own.join(","))), "{env}");
    assert!(env.contains(&format!("HOSTS={}\n", node.join(","))), "{env}");
    let hosts = kubectl.out("exec near -- cat /etc/hosts");
    assert!(own.iter().all(|ip| hosts.contains(&format!("{ip}\tnear\n"))), "{hosts}");
    let on_node = internal(&kubectl.json("get node dual-m02"));
    assert_eq!(pod_ips(kubectl, "on-node"), on_node);
}

/// "should be able to reach pod on ipv4 and ipv6 ip": on the same node and on another, with the sender's own address.
fn pods_are_reached_on_both(kubectl: &Kubectl) {
    let clients = pod_ips(kubectl, "client");
    for server in ["near", "far"] {
        for (server_ip, client_ip) in pod_ips(kubectl, server).iter().zip(&clients) {
            let url = format!("{}:8080", bracketed(server_ip));
            shows(kubectl, "client", &url, &format!("Hostname: {server}\n"));
            shows(kubectl, "client", &url, &format!("Client: {}:", bracketed(client_ip)));
        }
    }
    // A Pod on the node's network, and the node's own address, from a Pod of another node.
    for ip in pod_ips(kubectl, "on-node") {
        shows(kubectl, "client", &format!("{}:8090", bracketed(&ip)), "Hostname: dual-m02\n");
    }
}

/// AAAA and PTR records of Services and Pods, asked over either family.
fn names_have_both(kubectl: &Kubectl) {
    // The host has both as well, and is reached by its name.
    let told = kubectl.out("exec client -- nslookup host.skiff.internal");
    let host: Vec<&str> = told.lines().skip(2).filter_map(|line| line.strip_prefix("Address: ")).collect();
    assert_eq!(families(&host), "46", "{told}");
    let server = std::net::TcpListener::bind((host[1], 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe host";
            // Whoever goes away needs no answer.
            let _ = std::io::Write::write_all(&mut stream.unwrap(), answer.as_bytes());
        }
    });
    shows(kubectl, "client", &format!("http://[{}]:{port}/", host[1]), "the host");
    let spec = kubectl.json("get service prefer")["spec"].clone();
    let both = texts(&spec["clusterIPs"]);
    let servers = kubectl.json("get service kube-dns -n kube-system")["spec"].clone();
    assert_eq!(texts(&servers["clusterIPs"]), ["10.96.0.10", "fd00:10:96::a"]);
    for server in texts(&servers["clusterIPs"]) {
        let told = eventually("both addresses of a name", SOON, || {
            let told = kubectl
                .run(&format!("exec client -- nslookup prefer.default.svc.cluster.local {server}"))
                .stdout;
            both.iter().all(|ip| told.contains(&format!("Address: {ip}\n"))).then_some(told)
        });
        assert!(told.contains(server), "{told}");
    }
    for ip in &both {
        let told = kubectl.out(&format!("exec client -- nslookup {ip}"));
        assert!(told.contains("prefer.default.svc.cluster.local"), "{told}");
    }
    kubectl.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, \
         ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 8080}]}}",
    );
    let pods: Vec<String> = ["near", "far"].iter().flat_map(|pod| pod_ips(kubectl, pod)).collect();
    eventually("a headless Service's Pods", SOON, || {
        let told = kubectl.run("exec client -- nslookup headless").stdout;
        pods.iter().all(|ip| told.contains(ip.as_str())).then_some(())
    });
    eventually("a Pod's name", SOON, || {
        let told = kubectl.run(&format!("exec client -- nslookup {}", pods[1])).stdout;
        told.contains("headless.default.svc.cluster.local").then_some(())
    });
    shows(kubectl, "client", "six-four", "Hostname: ");
}

/// A policy is no way around on the second family: what it forbids on one it forbids on both.
fn policies_hold_on_ipv6(kubectl: &Kubectl) {
    let urls = |pod: &str| -> Vec<String> {
        pod_ips(kubectl, pod).iter().map(|ip| format!("{}:8080", bracketed(ip))).collect()
    };
    let servers = [urls("near"), urls("far")];
    let services: Vec<String> = texts(&kubectl.json("get service prefer")["spec"]["clusterIPs"])
        .iter()
        .map(|ip| bracketed(ip))
        .collect();
    let policy = |rest: &str| {
        kubectl.apply(&format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, spec: {{{rest}}}}}"
        ));
    };
    // What the client can reach, in the order of `all`: each way of near, of far, and the Service.
    let all: Vec<String> = servers.iter().flatten().chain(&services).cloned().collect();
    let reached = |urls: &[String]| -> String {
        let sign = |said: &String| if said.contains("Hostname") { '+' } else { '-' };
        fetch_all(kubectl, "client", urls).iter().map(sign).collect()
    };
    let truth = |wanted: &str, why: &str| {
        let mut last = String::new();
        let began = std::time::Instant::now();
        while began.elapsed() < SOON {
            last = reached(&all);
            if last == wanted {
                return;
            }
        }
        panic!("{why}: {wanted} was wanted of {all:?}, not {last}");
    };
    truth("++++++", "no policy");
    policy("podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]");
    truth("------", "no ingress");
    policy(
        "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 8080}]}]",
    );
    truth("++++++", "ingress from a label");
    // By address: a block of one family says nothing of the other.
    let own = pod_ips(kubectl, "client");
    policy(&format!(
        "podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: '{}/128'}}}}]}}]",
        own[1]
    ));
    truth("-+-+-+", "ingress from an IPv6 block");
    policy("podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]");
    truth("+-+-+-", "ingress from all of IPv4");
    policy(&format!(
        "podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: '::/0', except: ['{}/128']}}}}]}}]",
        own[1]
    ));
    truth("------", "ingress from all of IPv6 but one");
    policy("podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]");
    truth("------", "no egress");
    let gateway = internal(&kubectl.json("get node dual"));
    let node: Vec<String> = gateway.iter().map(|ip| format!("{}:8443", bracketed(ip))).collect();
    let at_node = fetch_all(kubectl, "client", &node);
    assert!(at_node.iter().all(|said| said.contains("timed out")), "{at_node:?}");
    policy(&format!(
        "podSelector: {{matchLabels: {{app: client}}}}, egress: [{{to: [{{ipBlock: {{cidr: '{}/128'}}}}]}}]",
        pod_ips(kubectl, "far")[1]
    ));
    eventually("egress to one IPv6 address", SOON, || (reached(&all[..4]) == "---+").then_some(()));
    kubectl.out("delete networkpolicy p");
    truth("++++++", "no policy any more");
}

/// Logs, exec and port-forward go by the kubelet of each node; Pods reach the API server by its Service.
fn the_ways_of_the_api_server(kubectl: &Kubectl) {
    for pod in ["near", "far"] {
        assert!(kubectl.out(&format!("logs {pod}")).contains("serves http 8080"), "{pod}");
    }
    let proxied = kubectl.out("get --raw /api/v1/namespaces/default/services/http:six-four:http/proxy/");
    assert!(proxied.contains("Hostname: "), "{proxied}");
    let kubernetes = kubectl.json("get service kubernetes")["spec"].clone();
    assert_eq!(texts(&kubernetes["clusterIPs"]), ["10.96.0.1"]);
    let cidrs = kubectl.json("get servicecidr kubernetes")["spec"].clone();
    assert_eq!(texts(&cidrs["cidrs"]), ["10.96.0.0/12", "fd00:10:96::/108"]);
    let records = kubectl.out("get ipaddresses --no-headers");
    assert!(records.lines().any(|line| line.starts_with("fd00:10:96::a ")), "{records}");
}

fn ingress_on_ipv6(cluster: &Cluster, kubectl: &Kubectl) {
    cluster.skiff("addons enable ingress").out();
    kubectl.out("create ingress web --rule=/*=six-four:80");
    let pods = eventually("the controller has a node", SOON, || {
        let pods = kubectl.json("get pods -n ingress-nginx");
        pods["items"][0]["spec"]["nodeName"].is_string().then_some(pods)
    });
    let node = pods["items"][0]["spec"]["nodeName"].as_str().unwrap();
    for address in internal(&kubectl.json(&format!("get node {node}"))) {
        host_gets(&bracketed(&address), "Hostname: ");
    }
}

fn a_second_start_keeps_all(cluster: &Cluster, kubectl: &Kubectl) {
    let refused = cluster.skiff("start --ip-family ipv4").err();
    assert!(refused.contains("was made with dual") && refused.contains("delete"), "{refused}");
    let before = (pod_ips(kubectl, "near"), pod_ips(kubectl, "far"));
    cluster.kill_daemon();
    cluster.skiff("start").out();
    kubectl.out("wait --for=condition=Ready pod/near pod/far --timeout=60s");
    assert_eq!((pod_ips(kubectl, "near"), pod_ips(kubectl, "far")), before);
    shows(kubectl, "client", &format!("{}:8080", bracketed(&before.1[1])), "Hostname: far\n");
}

fn ipv6_alone(cluster: &Cluster, kubectl: &Kubectl) {
    let node = kubectl.json("get node six");
    assert_eq!(families(&internal(&node)), "6");
    assert_eq!(texts(&node["spec"]["podCIDRs"]), ["fd00:10:244::/64"]);
    assert_eq!(families(&pod_ips(kubectl, "near")), "6");
    // The host still comes by IPv4.
    assert_eq!(families(&[cluster.skiff("ip").out().trim()]), "4");
    let balanced = service(kubectl, "balanced", ", type: LoadBalancer");
    assert_eq!(families(&texts(&balanced["spec"]["clusterIPs"])), "6");
    assert_eq!(families(&texts(&kubectl.json("get service kubernetes")["spec"]["clusterIPs"])), "6");
    shows(kubectl, "client", "balanced", "Hostname: ");
    shows(kubectl, "on-node", "balanced.default.svc.cluster.local", "Hostname: ");
    let urls = eventually("two addresses for the host", SOON, || {
        let urls = cluster.skiff("service balanced --url").stdout;
        (urls.lines().count() == 4).then_some(urls)
    });
    for url in urls.lines().filter_map(|line| line.strip_prefix("http://")) {
        assert!(url.starts_with('['), "{urls}");
        host_gets(url, "Hostname: ");
    }
    let refused = kubectl.args(&["create", "service", "clusterip", "x", "--tcp=80", "--clusterip=10.96.0.9"]);
    assert!(refused.stderr.contains("IPv4 is not configured on this cluster"), "{}", refused.stderr);
    kubectl.apply(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}, policyTypes: [Ingress]}}",
    );
    let near = format!("{}:8080", bracketed(&pod_ips(kubectl, "near")[0]));
    eventually("the policy holds", SOON, || {
        fetch(kubectl, "client", &near).contains("timed out").then_some(())
    });
    assert!(kubectl.out("logs near").contains("serves http"));
}

fn ipv4_alone(cluster: &Cluster, kubectl: &Kubectl) {
    let node = kubectl.json("get node four");
    assert_eq!(internal(&node), [cluster.skiff("ip").out().trim()]);
    assert_eq!(texts(&node["spec"]["podCIDRs"]), ["10.244.0.0/24"]);
    assert_eq!(families(&pod_ips(kubectl, "near")), "4");
    assert_eq!(families(&texts(&service(kubectl, "plain", "")["spec"]["clusterIPs"])), "4");
    shows(kubectl, "client", "plain", "Hostname: ");
    let dual = "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}], selector: {a: b}}}";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), dual).unwrap();
    let refused = kubectl.args(&["apply", "-f", file.path().to_str().unwrap()]);
    assert!(
        refused.stderr.contains("this cluster is not configured for dual-stack services"),
        "{}",
        refused.stderr
    );
    let prefer = service(kubectl, "prefer", ", ipFamilyPolicy: PreferDualStack");
    assert_eq!(families(&texts(&prefer["spec"]["clusterIPs"])), "4");
}
