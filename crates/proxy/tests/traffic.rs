//! Real packets through the rules: a client, a node and Pods, each in a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proxy::layout;
use proxy::model::*;
use world::*;

#[test]
fn a_cluster_ip_answers_pods_the_node_the_host_and_the_pod_itself() {
    let mut world = World::new();
    world.set("web", vec![(at("10.96.0.7", 80), target(forward(&[1], Masquerade::Outsiders)))]);
    assert_eq!(world.pods[1].tcp("10.96.0.7:80").unwrap(), "1 10.244.0.12", "the Pod's address is kept");
    assert_eq!(world.node.tcp("10.96.0.7:80").unwrap(), "1 192.168.49.2");
    assert_eq!(world.client.tcp("10.96.0.7:80").unwrap(), "1 192.168.49.2", "an outsider is masqueraded");
    assert_eq!(world.pods[0].tcp("10.96.0.7:80").unwrap(), "1 192.168.49.2", "hairpin");
    assert_eq!(world.pods[2].tcp("10.244.0.11:8080").unwrap(), "1 10.244.0.13", "no NAT between Pods");
}

#[test]
fn a_node_port_answers_everywhere_and_local_policy_keeps_the_client() {
    let mut world = World::new();
    let local = Forward { insiders: Some(pods(&[2])), ..forward(&[1], Masquerade::Never) };
    world.set(
        "web",
        vec![
            (at("node", 30080), target(forward(&[1], Masquerade::Always))),
            (at("node", 30081), target(local)),
            (at("1.2.3.4", 80), target(forward(&[3], Masquerade::Always))),
        ],
    );
    assert_eq!(world.client.tcp("192.168.49.2:30080").unwrap(), "1 192.168.49.2");
    assert_eq!(world.pods[1].tcp("192.168.49.2:30080").unwrap(), "1 192.168.49.2");
    assert_eq!(world.node.tcp("192.168.49.2:30080").unwrap(), "1 192.168.49.2");
    assert_eq!(world.client.tcp("192.168.49.2:30081").unwrap(), "1 192.168.49.1", "source kept");
    for (port, by) in [(30080, "1"), (30081, "2")] {
        let own = world.node.tcp(&format!("127.0.0.1:{port}")).unwrap();
        assert_eq!(own[..1], *by, "on the node's loopback: {own}");
    }
    assert_eq!(world.pods[2].tcp("192.168.49.2:30081").unwrap(), "2 10.244.0.13", "insiders go anywhere");
    assert_eq!(world.node.tcp("192.168.49.2:30081").unwrap(), "2 192.168.49.2");
    assert_eq!(world.client.tcp("1.2.3.4:80").unwrap(), "3 192.168.49.2", "an external address");
    assert_eq!(world.pods[0].tcp("1.2.3.4:80").unwrap(), "3 192.168.49.2");
}

/// The node's loopback is routed, so that its node ports lead to Pods, and still nobody else's.
#[test]
fn strangers_do_not_reach_the_nodes_loopback() {
    let mut world = World::new();
    world.client.sh("ip link set lo down; ip route flush table local
        ip route add local 192.168.49.1 dev eth0 table local
        ip route add 127.0.0.9 via 192.168.49.2; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet");
    let listener = world.node.within(|| TcpListener::bind("127.0.0.9:9").unwrap());
    let to = listener.local_addr().unwrap();
    let tried = |world: &World| {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_millis(1500));
        world.client.within(connect).map(drop).map_err(|e| e.kind())
    };
    assert_eq!(tried(&world), Err(ErrorKind::TimedOut));
    world.node.sh("nft delete table ip skiff-proxy");
    assert_eq!(tried(&world), Ok(()), "it is the rules that keep them out");
    world.kernel.replace(&mut world.socket, &world.model).unwrap();
    assert_eq!(tried(&world), Err(ErrorKind::TimedOut));
}

#[test]
fn without_endpoints_connections_are_refused_at_once() {
    let mut world = World::new();
    let refuse = Target { action: Action::Refuse, cluster_ip: true, hairpins: vec![], sources: vec![] };
    let all = [at("10.96.0.7", 80), udp(at("10.96.0.7", 80)), at("node", 30080), udp(at("node", 30080))];
    world.set("web", all.iter().map(|f| (*f, refuse.clone())).collect());
    let start = Instant::now();
    for ns in [&world.client, &world.node, &world.pods[0]] {
        for to in ["10.96.0.7:80", "192.168.49.2:30080"] {
            assert_eq!(ns.tcp(to).unwrap_err(), ErrorKind::ConnectionRefused, "{to}");
            // A sender on the node itself learns of the refused packet before the answer to it comes.
            let refused = ask(&ns.udp_socket("0.0.0.0:0"), to).unwrap_err();
            let early = std::ptr::eq(ns, &world.node) && refused == ErrorKind::PermissionDenied;
            assert!(early || refused == ErrorKind::ConnectionRefused, "{to}: {refused}");
        }
        assert_eq!(ns.tcp("10.96.0.7:81").unwrap_err(), ErrorKind::ConnectionRefused, "another port");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let silent = world.pods[0].tcp("10.97.1.1:80").unwrap_err();
    assert_eq!(silent, ErrorKind::TimedOut, "an unallocated cluster address is dropped");
    assert_eq!(world.node.tcp("10.97.1.1:80").unwrap_err(), ErrorKind::TimedOut);
    // Endpoints come: at once it answers.
    world.set("web", vec![(at("10.96.0.7", 80), target(forward(&[2], Masquerade::Outsiders)))]);
    assert_eq!(world.pods[0].tcp("10.96.0.7:80").unwrap(), "2 10.244.0.11");
}

#[test]
fn only_the_named_networks_reach_a_guarded_address() {
    let mut world = World::new();
    let open = target(forward(&[1], Masquerade::Always));
    let only =
        |nets: &[&str]| Target { sources: nets.iter().map(|n| n.parse().unwrap()).collect(), ..open.clone() };
    let guarded = at("1.2.3.4", 80);
    world.set(
        "web",
        vec![(guarded, only(&["10.244.0.12/32", "192.168.49.2/32"])), (at("node", 30080), open.clone())],
    );
    assert_eq!(world.pods[1].tcp("1.2.3.4:80").unwrap(), "1 192.168.49.2");
    assert_eq!(world.node.tcp("1.2.3.4:80").unwrap(), "1 192.168.49.2");
    for ns in [&world.client, &world.pods[2]] {
        assert_eq!(ns.tcp("1.2.3.4:80").unwrap_err(), ErrorKind::TimedOut);
    }
    assert_eq!(
        world.client.tcp("192.168.49.2:30080").unwrap(),
        "1 192.168.49.2",
        "a node port is not guarded"
    );
    world.set("web", vec![(guarded, only(&["192.168.49.0/24"]))]);
    assert_eq!(world.client.tcp("1.2.3.4:80").unwrap(), "1 192.168.49.2");
    assert_eq!(world.pods[1].tcp("1.2.3.4:80").unwrap_err(), ErrorKind::TimedOut);
    // Without a list it is open to all.
    world.set("web", vec![(guarded, open.clone())]);
    assert_eq!(world.pods[2].tcp("1.2.3.4:80").unwrap(), "1 192.168.49.2");
}

#[test]
fn a_dropped_frontend_is_silent() {
    let mut world = World::new();
    let drop = Target { action: Action::Drop, cluster_ip: true, hairpins: vec![], sources: vec![] };
    world.set("web", vec![(at("10.96.0.7", 80), drop)]);
    assert_eq!(world.pods[0].tcp("10.96.0.7:80").unwrap_err(), ErrorKind::TimedOut);
}

/// 10,000 UDP flows each: every one of 2 to 100 endpoints has its share within two hundredths of all.
#[test]
fn every_endpoint_gets_its_share() {
    let mut world = World::new();
    let servers: Vec<UdpSocket> = (0..100u16)
        .map(|i| world.pods[0].udp_socket(&format!("10.244.0.11:{}", 20_000 + i)))
        .inspect(|socket| socket.set_nonblocking(true).unwrap())
        .collect();
    for (n, count) in [2usize, 3, 7, 10, 33, 100].into_iter().enumerate() {
        let address = format!("10.96.1.{n}");
        let endpoints = servers[..count].iter().map(|s| s.local_addr().unwrap()).collect();
        let forward = Forward { endpoints, ..forward(&[], Masquerade::Outsiders) };
        world.set(&address, vec![(udp(at(&address, 53)), target(forward))]);
        let mut shares = vec![0u32; count];
        let collect = |shares: &mut Vec<u32>, all: u32| {
            let end = Instant::now() + Duration::from_secs(10);
            let mut buffer = [0; 8];
            while shares.iter().sum::<u32>() < all {
                assert!(
                    Instant::now() < end,
                    "{count} endpoints: {} of {all} came",
                    shares.iter().sum::<u32>()
                );
                for (share, server) in shares.iter_mut().zip(&servers) {
                    while server.recv(&mut buffer).is_ok() {
                        *share += 1;
                    }
                }
            }
        };
        world.pods[1].within(|| {
            for sent in 1..=10_000u32 {
                // A port of its own is a flow of its own.
                let client = UdpSocket::bind(("10.244.0.12", 20_000 + sent as u16)).unwrap();
                client.send_to(b"?", format!("{address}:53")).unwrap();
                if sent % 100 == 0 {
                    collect(&mut shares, sent);
                }
            }
        });
        for share in &shares {
            let off = (f64::from(*share) / 10_000.0 - 1.0 / count as f64).abs();
            assert!(off <= 0.02, "{count} endpoints: {shares:?}");
        }
        assert!(shares.iter().all(|share| *share > 0), "{count} endpoints: {shares:?}");
    }
}

/// The same for 10,000 TCP connections to three endpoints.
#[test]
fn tcp_connections_are_shared_alike() {
    let mut world = World::new();
    world.set(
        "web",
        vec![(at("10.96.0.7", 80), {
            let endpoints = (0..3u16).map(|i| SocketAddr::from(([10, 244, 0, 11], 20_000 + i))).collect();
            target(Forward { endpoints, ..forward(&[], Masquerade::Outsiders) })
        })],
    );
    let counts: [AtomicU32; 3] = Default::default();
    let listen = |i: u16| world.pods[0].within(|| TcpListener::bind(("10.244.0.11", 20_000 + i)).unwrap());
    let listeners = [listen(0), listen(1), listen(2)];
    std::thread::scope(|scope| {
        for (listener, count) in listeners.iter().zip(&counts) {
            listener.set_nonblocking(false).unwrap();
            scope.spawn(move || {
                // Ends at the one connection that says so.
                for stream in listener.incoming() {
                    let mut byte = [0];
                    match std::io::Read::read(&mut stream.unwrap(), &mut byte) {
                        Ok(1) => return,
                        _ => count.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
        world.pods[1].within(|| {
            for _ in 0..10_000 {
                drop(TcpStream::connect("10.96.0.7:80").unwrap());
            }
            for i in 0..3u16 {
                let mut last = TcpStream::connect(("10.244.0.11", 20_000 + i)).unwrap();
                std::io::Write::write_all(&mut last, b"!").unwrap();
            }
        });
    });
    let counts = counts.map(AtomicU32::into_inner);
    assert_eq!(counts.iter().sum::<u32>(), 10_000);
    assert!(counts.iter().all(|n| (f64::from(*n) / 10_000.0 - 1.0 / 3.0).abs() <= 0.02), "{counts:?}");
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_leaves() {
    let mut world = World::new();
    let front = at("10.96.0.7", 80);
    let sticky = |which: &[u8], seconds| {
        let forward = Forward { affinity: Some(seconds), ..forward(which, Masquerade::Outsiders) };
        vec![(front, target(forward))]
    };
    let stays = |world: &World, ns: usize| -> u8 {
        let first = world.pods[ns].tcp("10.96.0.7:80").unwrap();
        for _ in 0..12 {
            assert_eq!(world.pods[ns].tcp("10.96.0.7:80").unwrap(), first);
        }
        first[..1].parse().unwrap()
    };
    world.set("web", sticky(&[1, 2, 3], 100));
    let mine = stays(&world, 0);
    assert_eq!(world.client.tcp("10.96.0.7:80").map(|a| a[2..].to_owned()).unwrap(), "192.168.49.2");
    let from_client = world.client.tcp("10.96.0.7:80").unwrap();
    for _ in 0..6 {
        assert_eq!(world.client.tcp("10.96.0.7:80").unwrap(), from_client);
    }
    // Another endpoint leaves: nothing changes for this client, although slots move.
    let other = (1..=3).find(|i| *i != mine).unwrap();
    let rest: Vec<u8> = (1..=3).filter(|i| *i != other).collect();
    world.set("web", sticky(&rest, 100));
    assert_eq!(stays(&world, 0), mine);
    // Its own leaves: another one serves, and it stays with that.
    let rest: Vec<u8> = rest.into_iter().filter(|i| *i != mine).collect();
    world.set("web", sticky(&rest, 100));
    assert_eq!(stays(&world, 0), rest[0]);
    world.set("web", sticky(&[1, 2, 3], 100));
    assert_eq!(stays(&world, 0), rest[0], "the old one is back, the client stays");
}

#[test]
fn ipv6_services_work_alike() {
    let mut world = World::new();
    let endpoint = |i: u8| format!("[fd00:244::1{i}]:8080").parse::<SocketAddr>().unwrap();
    let forward = Forward {
        endpoints: vec![endpoint(2)],
        masquerade: Masquerade::Outsiders,
        affinity: Some(60),
        insiders: None,
    };
    let refuse = Target { action: Action::Refuse, cluster_ip: true, hairpins: vec![], sources: vec![] };
    let mut plain = forward.clone();
    plain.affinity = None;
    world.set(
        "web",
        vec![
            (at("fd00:96::7", 80), target(plain)),
            (at("fd00:96::7", 81), target(forward)),
            (at("fd00:96::7", 82), refuse),
        ],
    );
    for port in [80, 81] {
        assert_eq!(world.pods[0].tcp(&format!("[fd00:96::7]:{port}")).unwrap(), "2 fd00:244::11");
    }
    assert_eq!(world.pods[0].tcp("[fd00:96::7]:82").unwrap_err(), ErrorKind::ConnectionRefused);
    assert_eq!(world.pods[0].tcp("[fd00:96::7]:83").unwrap_err(), ErrorKind::ConnectionRefused);
}

#[test]
fn differences_lead_to_the_same_sets_as_a_full_replacement() {
    let mut world = World::new();
    let listed = |ns: &Ns| -> Vec<String> {
        let text = ns.sh("nft list ruleset");
        let mut lines: Vec<String> = text
            .lines()
            .map(|l| {
                l.trim().trim_start_matches("elements = { ").trim_end_matches([',', '}', ' ']).to_owned()
            })
            .filter(|l| l.contains(" . ") && l.contains("10.") || l.contains("goto"))
            .collect();
        lines.sort();
        lines
    };
    let mut seed = 7u32;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 16) % below
    };
    for round in 0..60 {
        let owner = format!("s{}", random(3));
        let fronts = [at("10.96.0.1", 80), at("10.96.0.2", 80), at("node", 30001), at("10.96.0.9", 9)];
        let mut targets = Vec::new();
        for front in fronts.iter().take(random(5) as usize) {
            let which: Vec<u8> = (1..=9).filter(|_| random(2) == 0).collect();
            let masquerade =
                [Masquerade::Never, Masquerade::Always, Masquerade::Outsiders][random(3) as usize];
            let mut forward = forward(&which, masquerade);
            forward.affinity = (random(3) == 0).then_some(60);
            forward.insiders = (random(3) == 0).then(|| pods(&[1, 2]));
            let mut target = target(forward);
            if random(4) == 0 && matches!(front.place, Place::Address(_)) {
                target.sources =
                    vec![["10.244.0.0/16", "192.168.49.0/24"][random(2) as usize].parse().unwrap()];
            }
            match random(6) {
                0 => target.action = Action::Refuse,
                1 => target.action = Action::Drop,
                _ if which.is_empty() => target.action = Action::Refuse,
                _ => {}
            }
            targets.push((*front, target));
        }
        world.set(&owner, targets);
        let step: Vec<String> = listed(&world.node).into_iter().filter(|l| !l.starts_with("goto")).collect();
        let whole = layout::table(Ip::V4, &view(), world.kernel.all_placed());
        let elements: usize = whole.sets.iter().map(|s| s.elements.len()).sum();
        let socket = &mut world.socket;
        world.kernel.replace(socket, &world.model).unwrap();
        let full: Vec<String> = listed(&world.node).into_iter().filter(|l| !l.starts_with("goto")).collect();
        let elements_of = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|l| l.starts_with("10.") || l.starts_with("tcp")).cloned().collect()
        };
        assert_eq!(elements_of(&step), elements_of(&full), "round {round}");
        assert!(elements == 0 || !elements_of(&full).is_empty());
    }
}

#[test]
fn one_change_among_ten_thousand_services_is_one_small_transaction() {
    let mut world = World::new();
    let owner = |i: u32| Owner::Service("default".into(), format!("s{i}"));
    let front = |i: u32| Frontend {
        place: Place::Address(std::net::Ipv4Addr::from_bits(0x0a60_0100 + i).into()),
        protocol: Protocol::Tcp,
        port: 80,
    };
    for i in 0..10_000 {
        world.model.set(&owner(i), vec![(front(i), target(forward(&[1, 2], Masquerade::Outsiders)))]);
    }
    let start = Instant::now();
    world.kernel.replace(&mut world.socket, &world.model).unwrap();
    println!("10,000 Services with 2 endpoints, full replacement: {:?}", start.elapsed());
    for (what, which) in [("one endpoint replaced", &[1u8, 3][..]), ("one endpoint more", &[1, 2, 3])] {
        let changed =
            world.model.set(&owner(77), vec![(front(77), target(forward(which, Masquerade::Outsiders)))]);
        let start = Instant::now();
        let batch = world.kernel.step(&world.model, &changed);
        batch.apply(&mut world.socket).unwrap();
        println!("{what}: {:?}, {} bytes", start.elapsed(), batch.size());
        assert!(batch.size() < 2000, "{}", batch.size());
    }
    let addr = "10.96.1.77:80";
    assert_eq!(world.node.tcp(addr).map(|a| a[2..].to_owned()).unwrap(), "192.168.49.2");
}

/// Bad input: what the kernel refuses is left out and named, and the rest goes in, by a difference or as a whole.
#[test]
fn what_the_kernel_refuses_is_left_out_alone() {
    let mut world = World::new();
    let good = |i: u8| vec![(at("10.96.0.7", 80), target(forward(&[i], Masquerade::Outsiders)))];
    // An endpoint of the other family does not fit into the map.
    let mut odd = forward(&[2], Masquerade::Outsiders);
    odd.endpoints = vec!["[fd00:244::12]:8080".parse().unwrap()];
    let bad = at("10.96.0.8", 80);
    world.set("good", good(1));
    let owner = |name: &str| Owner::Service("default".into(), name.into());
    let mut changed = world.model.set(&owner("bad"), vec![(bad, target(odd))]);
    changed.extend(
        world
            .model
            .set(&owner("late"), vec![(at("10.96.0.9", 80), target(forward(&[3], Masquerade::Outsiders)))]),
    );
    let synced = world.kernel.sync(&mut world.socket, &world.model, &changed).unwrap();
    assert!(synced.mended.is_some() && synced.whole);
    let named: Vec<Frontend> = synced.refused.iter().map(|(frontend, _)| *frontend).collect();
    assert_eq!(named, [bad]);
    let why = synced.refused[0].1.to_string();
    assert!(why.starts_with("set ip skiff-proxy ep4, element 10.96.0.8 . tcp . 80 . 0: "), "{why}");
    assert_eq!(world.model.owner(&bad), Some(&owner("bad")));
    let from = |to: &str| world.pods[1].tcp(to).map(|a| a[..1].to_owned());
    assert_eq!((from("10.96.0.7:80").unwrap(), from("10.96.0.9:80").unwrap()), ("1".into(), "3".into()));
    // From then on differences are enough again, and the bad one is tried when it changes.
    let changed = world.model.set(&owner("good"), good(2));
    let synced = world.kernel.sync(&mut world.socket, &world.model, &changed).unwrap();
    assert!(!synced.whole && synced.refused.is_empty());
    let changed = world.model.set(&owner("bad"), vec![(bad, target(forward(&[3], Masquerade::Outsiders)))]);
    assert!(!world.kernel.sync(&mut world.socket, &world.model, &changed).unwrap().whole);
    assert_eq!(world.pods[1].tcp("10.96.0.8:80").unwrap(), "3 10.244.0.12");
}

#[test]
fn model_and_listing_agree_in_full() {
    let mut world = World::new();
    let sticky = Forward { affinity: Some(60), ..forward(&[1, 2], Masquerade::Always) };
    let local = Forward { insiders: Some(pods(&[2, 3])), ..forward(&[], Masquerade::Never) };
    world.set("a", vec![(at("10.96.0.7", 80), target(sticky)), (at("node", 30001), target(local))]);
    let socket = &mut world.socket;
    world.kernel.replace(socket, &world.model).unwrap();
    let canonical = |text: &str| -> HashMap<String, u32> {
        let mut lines = HashMap::new();
        for line in text.lines() {
            let line = line.trim().trim_start_matches("elements = { ").trim_end_matches([',', '}', ' ']);
            *lines.entry(line.to_owned()).or_default() += 1;
        }
        lines
    };
    let model: String =
        world.kernel.families().iter().map(|ip| world.kernel.table(*ip).to_string()).collect();
    assert_eq!(canonical(&model), canonical(&world.node.sh("nft list ruleset")));
}
