//! The whole proxy against an API of lists and watches, in a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use proxy::{HostPort, Protocol, ProxyConfig};
use serde_json::{Value, json};
use testkit::fake_api::FakeApi;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";
const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}})
}

fn listing() -> String {
    String::from_utf8(Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout).unwrap()
}

/// Waits until the rules hold, or no longer hold, a text.
async fn until(text: &str, there: bool) {
    let start = Instant::now();
    while listing().contains(text) != there {
        assert!(start.elapsed() < Duration::from_secs(5), "{text:?} there: {there}\n{}", listing());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A proxy that follows an API, in the network namespace of the calling thread.
struct Running {
    api: FakeApi,
    host_ports: Option<watch::Sender<Vec<HostPort>>>,
    answered: watch::Receiver<BTreeSet<IpAddr>>,
    stop: CancellationToken,
    proxy: tokio::task::JoinHandle<Result<(), proxy::Error>>,
}

impl Running {
    async fn start(services: Vec<Value>, slices: Vec<Value>) -> Self {
        let node = json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.49.2"}]}});
        let api =
            FakeApi::new([(SERVICES, services), (SLICES, slices), (NODES, vec![node]), (CIDRS, vec![])]);
        let (sender, host_ports) = watch::channel(Vec::new());
        let (answered, is_answered) = watch::channel(BTreeSet::new());
        let (synced, mut is_synced) = watch::channel(false);
        let stop = CancellationToken::new();
        let config = ProxyConfig {
            node_name: "n1".into(),
            node_ips: vec![],
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            host_ports,
            answered,
            synced,
        };
        let proxy = tokio::spawn(proxy::run(api.client(), config, stop.clone()));
        is_synced.wait_for(|synced| *synced).await.unwrap();
        Self { api, host_ports: Some(sender), answered: is_answered, stop, proxy }
    }

    async fn end(self) {
        self.stop.cancel();
        self.proxy.await.unwrap().unwrap();
    }
}

async fn follows() {
    let mut running = Running::start(vec![service()], vec![slice(&["10.244.0.5"])]).await;
    assert!(listing().contains("10.96.0.7 . tcp . 80 . 0 : 10.244.0.5 . 8080"));
    let api = running.api.clone();
    api.tell(SLICES, "MODIFIED", &slice(&["10.244.0.5", "10.244.0.6"])).await;
    until("10.96.0.7 . tcp . 80 : goto o2", true).await;
    assert!(listing().contains("10.96.0.7 . tcp . 80 . 1 : 10.244.0.6 . 8080"));
    api.tell(SLICES, "DELETED", &slice(&["10.244.0.5", "10.244.0.6"])).await;
    until("10.96.0.7 . tcp . 80 : goto refuse", true).await;
    let port = HostPort {
        host_ip: Some("192.168.49.2".parse().unwrap()),
        host_port: 8081,
        protocol: Protocol::Tcp,
        target: "10.244.0.9:80".parse().unwrap(),
    };
    running.host_ports.as_ref().unwrap().send(vec![port]).unwrap();
    until("192.168.49.2 . tcp . 8081 . 0 : 10.244.0.9 . 80", true).await;
    // Nobody tells of host ports any more; that ends nothing.
    running.host_ports = None;
    api.tell(SLICES, "ADDED", &slice(&["10.244.0.7"])).await;
    until("10.96.0.7 . tcp . 80 . 0 : 10.244.0.7 . 8080", true).await;
    // A further network of cluster addresses: unallocated ones of it are dropped as well.
    let more = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24"]}});
    api.tell(CIDRS, "ADDED", &more).await;
    until("ip daddr 10.200.0.0/24 jump unanswered", true).await;
    api.tell(CIDRS, "DELETED", &more).await;
    until("10.200.0.0/24", false).await;
    // An address of a load balancer is answered for while the Service has it.
    let mut balanced = service();
    balanced["spec"]["type"] = "LoadBalancer".into();
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.168.49.200", "ipMode": "VIP"}]}});
    assert!(running.answered.borrow().is_empty());
    api.tell(SERVICES, "MODIFIED", &balanced).await;
    let address: BTreeSet<IpAddr> = BTreeSet::from(["192.168.49.200".parse().unwrap()]);
    running.answered.wait_for(|now| *now == address).await.unwrap();
    assert!(listing().contains("192.168.49.200 . tcp . 80 : goto m1"), "its rules are there first");
    api.tell(SERVICES, "DELETED", &balanced).await;
    running.answered.wait_for(BTreeSet::is_empty).await.unwrap();
    until("10.96.0.7", false).await;
    running.end().await;
    assert!(listing().contains("table ip skiff-proxy"), "the rules stay in force");
}

/// networking.go: rules are rebuilt after an external flush, with no change of an object to wake the proxy.
async fn is_mended() {
    let running = Running::start(vec![service()], vec![slice(&["10.244.0.5"])]).await;
    let nft = |line: &str| assert!(Command::new("nft").args(line.split(' ')).status().unwrap().success());
    let rule = "10.96.0.7 . tcp . 80 . 0 : 10.244.0.5 . 8080";
    for foreign in [
        "flush ruleset",
        "delete table ip skiff-proxy",
        "flush map ip skiff-proxy ep4",
        "delete element ip skiff-proxy svc4 { 10.96.0.7 . tcp . 80 }",
    ] {
        nft(foreign);
        until(rule, true).await;
        until("10.96.0.7 . tcp . 80 : goto o1", true).await;
    }
    // What is not ours is nobody's business.
    nft("add table ip foreign");
    let full = |page: &str| {
        page.lines().find(|l| l.contains("full_proxy_rules_duration_seconds_count")).map(str::to_owned)
    };
    let before = full(&get(10249, "/metrics").await);
    nft("delete table ip foreign");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(full(&get(10249, "/metrics").await), before);
    assert_eq!(before.unwrap(), "kubeproxy_sync_full_proxy_rules_duration_seconds_count 5");
    running.end().await;
}

/// One request to a port of the node's loopback; the answer with its headers.
async fn get(port: u16, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// service.go: healthCheckNodePort says 200 with a local ready endpoint and 503 when it only terminates.
/// networking.go: /healthz has lastUpdated on 10256, /proxyMode is on 10249.
async fn tells_its_health() {
    let mut balanced = service();
    balanced["spec"]["type"] = "LoadBalancer".into();
    balanced["spec"]["externalTrafficPolicy"] = "Local".into();
    balanced["spec"]["healthCheckNodePort"] = 32100.into();
    let with = |node: &str, ready: bool| {
        let mut slice = slice(&["10.244.0.5", "10.244.0.6"]);
        for endpoint in slice["endpoints"].as_array_mut().unwrap() {
            endpoint["nodeName"] = node.into();
            endpoint["conditions"] = json!({"ready": ready, "serving": true, "terminating": !ready});
        }
        slice["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"});
        slice
    };
    let running = Running::start(vec![balanced.clone()], vec![slice(&[])]).await;
    let code = async |path: &str, port| get(port, path).await[9..12].to_owned();
    assert_eq!(code("/", 32100).await, "503", "no endpoint at all");
    let until = async |wanted: &str| {
        let start = Instant::now();
        while code("/healthz", 32100).await != wanted {
            assert!(start.elapsed() < Duration::from_secs(10), "not {wanted}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    running.api.tell(SLICES, "MODIFIED", &with("n1", true)).await;
    until("200").await;
    let answer = get(32100, "/").await;
    assert!(answer.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let told: Value = serde_json::from_str(body).unwrap();
    let service = json!({"namespace": "default", "name": "web"});
    assert_eq!(told, json!({"service": service, "localEndpoints": 2, "serviceProxyHealthy": true}));
    running.api.tell(SLICES, "MODIFIED", &with("n1", false)).await;
    until("503").await;
    running.api.tell(SLICES, "MODIFIED", &with("n2", true)).await;
    running.api.tell(SLICES, "MODIFIED", &with("n1", true)).await;
    until("200").await;

    let health = get(10256, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.contains("lastUpdated"), "{health}");
    assert_eq!(code("/livez", 10256).await, "200");
    assert_eq!(code("/", 10256).await, "404");
    assert!(get(10249, "/proxyMode").await.ends_with("\r\n\r\nnftables"));
    let metrics = get(10249, "/metrics").await;
    let count = |name: &str| -> f64 {
        let line = metrics.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{name} in\n{metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(count("kubeproxy_sync_full_proxy_rules_duration_seconds_count"), 1.0);
    assert!(count("kubeproxy_sync_partial_proxy_rules_duration_seconds_count") >= 1.0);
    assert!(count("kubeproxy_sync_proxy_rules_endpoint_changes_total") >= 4.0);
    assert_eq!(count("kubeproxy_network_programming_duration_seconds_count"), 1.0, "one trigger time");
    assert_eq!(count("kubeproxy_sync_proxy_rules_nftables_sync_failures_total"), 0.0);
    assert_eq!(count("kubeproxy_proxy_healthz_total{code=\"200\"}"), 1.0);

    // With another policy the port is closed.
    balanced["spec"]["externalTrafficPolicy"] = "Cluster".into();
    running.api.tell(SERVICES, "MODIFIED", &balanced).await;
    let start = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", 32100)).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10), "still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.end().await;
}

/// 5,000 Services changed at once are in force soon, and never half written.
async fn takes_a_flood() {
    let made = |i: u32, port: u16| {
        let address = std::net::Ipv4Addr::from_bits(0x0a60_0100 + i);
        let mut service = service();
        service["metadata"]["name"] = format!("s{i}").into();
        service["spec"] = json!({"clusterIP": address.to_string(), "ports": [{"port": port}]});
        service
    };
    let running = Running::start((0..5000).map(|i| made(i, 80)).collect(), vec![]).await;
    let refused = |port: u16| listing().matches(&format!(" . tcp . {port} : goto refuse")).count();
    assert_eq!(refused(80), 5000);
    let start = Instant::now();
    for i in 0..5000 {
        running.api.tell(SERVICES, "MODIFIED", &made(i, 81)).await;
    }
    println!("5,000 changes told within {:?}", start.elapsed());
    while refused(81) < 5000 {
        assert!(start.elapsed() < Duration::from_secs(30), "{} of 5,000", refused(81));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("5,000 changes in force within {:?}", start.elapsed());
    assert_eq!(refused(80), 0);
    running.end().await;
}

fn in_a_node(test: impl Future<Output = ()> + Send) {
    testkit::netns::Netns::new().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
}

#[test]
fn rules_follow_the_api() {
    in_a_node(follows());
}

#[test]
fn a_foreign_flush_is_noticed_and_mended() {
    in_a_node(is_mended());
}

#[test]
fn health_and_metrics_are_told() {
    in_a_node(tells_its_health());
}

#[test]
fn thousands_of_changes_at_once_are_taken() {
    in_a_node(takes_a_flood());
}
