//! The whole proxy against an API of lists and watches, in a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use proxy::{HostPort, Protocol, ProxyConfig};
use serde_json::{Value, json};
use testkit::fake_api::FakeApi;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";

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

async fn follows() {
    let node = json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.49.2"}]}});
    let api = FakeApi::new([
        (SERVICES, vec![service()]),
        (SLICES, vec![slice(&["10.244.0.5"])]),
        (NODES, vec![node]),
    ]);
    let (ports, host_ports) = watch::channel(Vec::new());
    let (answered, mut is_answered) = watch::channel(BTreeSet::new());
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
    let running = tokio::spawn(proxy::run(api.client(), config, stop.clone()));
    is_synced.wait_for(|synced| *synced).await.unwrap();
    assert!(listing().contains("10.96.0.7 . tcp . 80 . 0 : 10.244.0.5 . 8080"));
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
    ports.send(vec![port]).unwrap();
    until("192.168.49.2 . tcp . 8081 . 0 : 10.244.0.9 . 80", true).await;
    // Nobody tells of host ports any more; that ends nothing.
    drop(ports);
    // A foreign change makes the next transaction fail; then everything is replaced.
    assert!(Command::new("nft").args(["delete", "table", "ip", "skiff-proxy"]).status().unwrap().success());
    api.tell(SLICES, "ADDED", &slice(&["10.244.0.7"])).await;
    until("10.96.0.7 . tcp . 80 . 0 : 10.244.0.7 . 8080", true).await;
    assert!(listing().contains("10.244.0.9 . 80"));
    // An address of a load balancer is answered for while the Service has it.
    let mut balanced = service();
    balanced["spec"]["type"] = "LoadBalancer".into();
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.168.49.200", "ipMode": "VIP"}]}});
    assert!(is_answered.borrow().is_empty());
    api.tell(SERVICES, "MODIFIED", &balanced).await;
    is_answered.wait_for(|now| *now == BTreeSet::from(["192.168.49.200".parse().unwrap()])).await.unwrap();
    assert!(listing().contains("192.168.49.200 . tcp . 80 : goto m1"), "its rules are there first");
    api.tell(SERVICES, "DELETED", &balanced).await;
    is_answered.wait_for(BTreeSet::is_empty).await.unwrap();
    until("10.96.0.7", false).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(listing().contains("table ip skiff-proxy"), "the rules stay in force");
}

#[test]
fn rules_follow_the_api() {
    testkit::netns::Netns::new().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(follows());
    });
}
