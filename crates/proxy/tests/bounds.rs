//! Services at the edges of what can be asked for, with real packets: very many endpoints, an endpoint that is another
//! Service's address, affinity in IPv6 and its end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nft::conntrack::{self, IpFamily};
use proxy::model::*;
use world::*;

/// A thousand endpoints, all of them addresses of one Pod: the kernel takes them in one transaction, connections go to very
/// many of them and to none too often.
#[test]
fn a_thousand_endpoints_are_loaded_and_all_are_used() {
    let mut world = World::new();
    world.pods[0].sh("ip route add local 10.244.8.0/22 dev lo");
    world.node.sh("ip route add 10.244.8.0/22 dev p1");
    let mac = world.pods[0].sh("ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'");
    let first = u32::from(Ipv4Addr::new(10, 244, 8, 0));
    let addresses: Vec<Ipv4Addr> = (0..1000).map(|i| Ipv4Addr::from_bits(first + i)).collect();
    let neighbours: String = addresses
        .iter()
        .map(|a| format!("neigh add {a} lladdr {} dev p1 nud permanent\n", mac.trim()))
        .collect();
    world.node.sh(&format!("ip -batch - <<'END'\n{neighbours}END"));
    let endpoints: Vec<SocketAddr> = addresses.iter().map(|a| SocketAddr::new((*a).into(), 8080)).collect();
    let front = at("10.96.0.7", 80);
    let to = |endpoints: &[SocketAddr]| {
        target(Forward { endpoints: endpoints.to_vec(), ..forward(&[], Masquerade::Outsiders) })
    };
    let began = Instant::now();
    world.set("web", vec![(front, to(&endpoints))]);
    println!("1,000 endpoints in the kernel after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10));
    for _ in 0..2000 {
        assert_eq!(world.pods[1].tcp("10.96.0.7:80").unwrap(), "1 10.244.0.12");
    }
    let mut hits: HashMap<IpAddr, u32> = HashMap::new();
    let mut socket = world.node.within(|| nft::Socket::open().unwrap());
    for entry in conntrack::list(&mut socket, IpFamily::V4, 6).unwrap() {
        if entry.original.dst.port() == 80 {
            *hits.entry(entry.reply.src.ip()).or_default() += 1;
        }
    }
    // 2,000 draws of 1,000 leave out 135 on average, and nobody is drawn 20 times but once in 10^11.
    assert!(hits.len() > 700, "{} endpoints were used", hits.len());
    assert!(hits.values().all(|n| *n < 20), "{hits:?}");
    // One less is a small change, and nobody is sent to it any more.
    let rest: Vec<SocketAddr> = endpoints.into_iter().filter(|e| e.ip() != addresses[500]).collect();
    let owner = Owner::Service("default".into(), "web".into());
    let changed = world.model.set(&owner, vec![(front, to(&rest))]);
    let batch = world.kernel.step(&world.model, &changed);
    assert!(batch.size() < 2000, "{}", batch.size());
    batch.apply(&mut world.socket).unwrap();
    assert_eq!(world.pods[1].tcp("10.96.0.7:80").unwrap(), "1 10.244.0.12");
    let listed = world.node.sh("nft list map ip skiff-proxy ep4");
    assert!(!listed.contains(&format!(": {} . 8080", addresses[500])), "{}", addresses[500]);
}

/// An address is translated once: an endpoint that is another Service's address leads nowhere, and says so at once, as with
/// kube-proxy's check of cluster addresses. The other Service is as it was.
#[test]
fn an_endpoint_that_is_another_services_address_is_refused() {
    let mut world = World::new();
    let mut chained = forward(&[], Masquerade::Outsiders);
    chained.endpoints = vec!["10.96.0.8:80".parse().unwrap()];
    world.set("other", vec![(at("10.96.0.8", 80), target(forward(&[2], Masquerade::Outsiders)))]);
    world.set("web", vec![(at("10.96.0.7", 80), target(chained))]);
    assert_eq!(world.pods[0].tcp("10.96.0.7:80").unwrap_err(), ErrorKind::ConnectionRefused);
    assert_eq!(world.client.tcp("10.96.0.7:80").unwrap_err(), ErrorKind::ConnectionRefused);
    assert_eq!(world.pods[0].tcp("10.96.0.8:80").unwrap(), "2 10.244.0.11");
}

/// `sessionAffinity: ClientIP` in IPv6: a client stays, another one draws for itself, and a rest longer than the time-out
/// ends it.
#[test]
fn affinity_holds_in_ipv6_and_ends_with_its_timeout() {
    let mut world = World::new();
    let front = at("fd00:96::7", 80);
    let sticky = |seconds| {
        let endpoints = (1..=3).map(|i| format!("[fd00:244::1{i}]:8080").parse().unwrap()).collect();
        let forward = Forward { endpoints, affinity: Some(seconds), ..forward(&[], Masquerade::Outsiders) };
        vec![(front, target(forward))]
    };
    world.set("web", sticky(100));
    let drawn = |world: &World, pod: usize| world.pods[pod].tcp("[fd00:96::7]:80").unwrap();
    for pod in 0..3 {
        let first = drawn(&world, pod);
        // A Pod that draws itself sees the node.
        let client = if first.starts_with(&(pod + 1).to_string()) {
            "fe80::1".to_owned()
        } else {
            format!("fd00:244::1{}", pod + 1)
        };
        assert_eq!(first[2..], client);
        for _ in 0..12 {
            assert_eq!(drawn(&world, pod), first);
        }
    }
    world.set("web", sticky(1));
    // After each rest it draws again; to be the same each time for a minute it would have to win one in three very often.
    let first = drawn(&world, 0);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        std::thread::sleep(Duration::from_millis(1300));
        if drawn(&world, 0) != first {
            break;
        }
        assert!(Instant::now() < until, "the client never draws again");
    }
}
