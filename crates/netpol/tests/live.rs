//! What a user relies on while rules change: connections that a new policy forbids are cut, those that stay allowed never
//! stall, many policies and many changes leave nothing behind, and a rule set that the kernel refuses changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use client::SharedInformers;
use common::net::{Cluster, begin};
use common::{Objects, address, policy};
use netpol::Desired;
use netpol::model::Policy;
use netpol::sync::Kernel;
use netpol::track::{Changes, Tracker};
use serde_json::{Value, json};
use testkit::eventually;
use testkit::fake_api::FakeApi;
use testkit::netns::Netns;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

/// A connection from one Pod to another's port 80, both ends.
fn connected(cluster: &Cluster, from: usize, to: usize) -> (TcpStream, TcpStream) {
    let client = cluster.netns(from).within(|| begin(address(to), 80));
    let server = eventually("the connection is made", LIMIT, || cluster.server(to).accept().ok()).0;
    for end in [&client, &server] {
        end.set_nonblocking(false).unwrap();
        end.set_nodelay(true).unwrap();
        end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    (client, server)
}

#[test]
fn what_a_policy_forbids_is_cut_and_what_stays_allowed_never_stalls() {
    let cluster = Cluster::new();
    let mut socket = cluster.node.within(|| nft::Socket::open().unwrap());
    let mut kernel = Kernel::new();
    let mut commit = |policies: Vec<Value>| {
        kernel.sync(&mut socket, &Desired::of(&Objects::new(policies).world())).unwrap();
        netpol::cut::forbidden(&mut socket, kernel.held(), &[]).unwrap();
    };
    commit(Vec::new());
    cluster.node.sh("echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose");
    let (mut cut, mut cut_server) = connected(&cluster, 0, 3);
    let (mut kept, mut kept_server) = connected(&cluster, 1, 3);
    cut.write_all(b"a").unwrap();
    cut_server.read_exact(&mut [0]).unwrap();
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while kept_server.read(&mut byte).is_ok_and(|read| read == 1) {
            kept_server.write_all(&byte).unwrap();
        }
    });
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let pinging = std::thread::spawn(move || {
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let began = Instant::now();
            kept.write_all(b"b").unwrap();
            kept.read_exact(&mut [0]).unwrap();
            longest = longest.max(began.elapsed());
            count += 1;
        }
        (longest, count)
    });
    // Rules around the connection change all the time; it stays allowed by all of them.
    for round in 0..100 {
        let from = json!([{"namespaceSelector": {"matchLabels": {"ns": "x"}}, "podSelector": {"matchLabels": {"pod": "b"}}}]);
        let ports = json!([{"port": 80}, {"port": 1000 + round}]);
        let spec = json!({"podSelector": {}, "ingress": [{"from": from, "ports": ports}]});
        commit(vec![policy("y", &format!("p{}", round % 3), &spec)]);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (longest, count) = pinging.join().unwrap();
    echo.join().unwrap();
    // A packet that is dropped once is sent again after 200 ms at the soonest, one cut would never be answered.
    assert!(count > 100, "{count} answers, the longest took {longest:?}");
    cut.write_all(b"a").unwrap();
    cut_server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let heard = cut_server.read(&mut [0]).unwrap_err();
    assert!(matches!(heard.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{heard}");
}

#[test]
fn two_thousand_policies_of_one_namespace_come_change_and_go() {
    let node = Netns::new();
    let mut socket = node.within(|| nft::Socket::open().unwrap());
    let (mut kernel, mut tracker) = (Kernel::new(), Tracker::default());
    let made = |name: usize, port: usize| {
        let block = format!("10.{}.{}.0/24", name / 256, name % 256);
        let rules = json!([{"from": [{"ipBlock": {"cidr": block}}], "ports": [{"port": port}]}]);
        let object = policy("x", &format!("p{name}"), &json!({"podSelector": {}, "ingress": rules}));
        Policy::of(&serde_json::from_value(object).unwrap()).unwrap()
    };
    let mut world = Objects::new(Vec::new()).world();
    world.policies = (0..2000).map(|i| made(i, 1 + i)).map(|policy| (policy.key.clone(), policy)).collect();
    let touched = tracker.follow(&world, &Changes::all(&world));
    kernel.follow(&mut socket, &tracker, &touched).unwrap();
    // Policies are edited, taken away and put back, as somebody's operator in a loop would.
    for round in 0..12 {
        let key = made(round / 3, 1).key;
        let before = match round % 3 {
            0 => world.policies.remove(&key),
            port => world.policies.insert(key.clone(), made(round / 3, 5000 + port)),
        };
        let mut changes = Changes::default();
        changes.policy(&world, "x", [before.as_ref(), world.policies.get(&key)]);
        let touched = tracker.follow(&world, &changes);
        kernel.follow(&mut socket, &tracker, &touched).unwrap();
    }
    assert!(kernel.held() == &Desired::of(&world));
    let listed = node.sh("nft list table ip skiff-policy");
    let made = kernel.table(nft::Family::Ip);
    assert_eq!(listed.matches("\tchain profile-").count(), made.chains.len() - 2);
    assert_eq!(listed.matches("\tset block-").count(), made.sets.len() - 2);
    let mut changes = Changes::default();
    for policy in std::mem::take(&mut world.policies).values() {
        changes.policy(&world, "x", [Some(policy), None]);
    }
    let touched = tracker.follow(&world, &changes);
    kernel.follow(&mut socket, &tracker, &touched).unwrap();
    let listed = node.sh("nft list table ip skiff-policy");
    assert!(!listed.contains("profile-") && !listed.contains("block-"), "{listed}");
}

/// A policy of the namespace `d` whose Pods may be reached at one port.
fn only_port(port: u16) -> Value {
    let spec = json!({"podSelector": {}, "ingress": [{"ports": [{"port": port}]}]});
    let mut object = policy("d", "web", &spec);
    object["metadata"]["uid"] = json!("u-1");
    object
}

#[test]
fn rules_that_the_kernel_refuses_change_nothing_and_an_event_names_the_policy() {
    let node = Netns::new();
    let runtime = node.within(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let pod = json!({
        "metadata": {"namespace": "d", "name": "p", "uid": "u-2", "labels": {}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.0.9"}]},
    });
    const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
    let api = FakeApi::new([
        ("/api/v1/pods", vec![pod]),
        ("/api/v1/namespaces", vec![json!({"metadata": {"name": "d"}})]),
        (POLICIES, vec![only_port(80)]),
    ]);
    let (_gate, arrivals) = netpol::gate();
    let stop = CancellationToken::new();
    let config = netpol::Config {
        node_name: "n1".into(),
        node_ips: Vec::new(),
        arrivals,
        flows: netpol::Flows::default(),
        speaks: true,
    };
    let list = || node.sh("nft list ruleset");
    node.within(|| {
        runtime.block_on(async {
            let running = tokio::spawn(netpol::run(
                api.client(),
                SharedInformers::start(&api.client()),
                config,
                stop.clone(),
            ));
            until("the first rules", || list().contains("tcp dport 80 return")).await;
            // Somebody else's rule holds the chain, so the kernel will not let it go.
            let held = list()
                .lines()
                .find_map(|line| {
                    line.trim().strip_prefix("chain profile-")?.strip_suffix(" {").map(str::to_owned)
                })
                .unwrap();
            node.sh(&format!(
                "nft add chain ip skiff-policy held; nft add rule ip skiff-policy held jump profile-{held}
                 nft add chain ip6 skiff-policy held; nft add rule ip6 skiff-policy held jump profile-{held}"
            ));
            api.tell(POLICIES, "MODIFIED", &only_port(81)).await;
            let event = refusal(&api).await;
            assert_eq!(event["involvedObject"]["kind"], "NetworkPolicy");
            assert_eq!(event["involvedObject"]["name"], "web");
            assert_eq!(event["involvedObject"]["uid"], "u-1");
            let message = event["message"].as_str().unwrap();
            assert!(
                message.contains("node n1: the kernel refuses its rules, those before stay in force"),
                "{message}"
            );
            assert!(message.contains("profile-"), "{message}");
            // It is tried again as a whole, and what stood in the way goes with the old table.
            until("the new rules", || list().contains("tcp dport 81 return")).await;
            assert!(!list().contains("tcp dport 80 return"));
            stop.cancel();
            running.await.unwrap().unwrap();
        });
    });
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn refusal(api: &FakeApi) -> Value {
    let began = Instant::now();
    loop {
        let events = api.posted().await;
        if let Some(event) = events.into_iter().find(|event| event["reason"] == "RulesRefused") {
            return event;
        }
        assert!(began.elapsed() < LIMIT, "no Event of the refusal within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
