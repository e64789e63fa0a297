//! Real packets through the rules: a client, a node and Pods, each in a network namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proxy::layout;
use proxy::model::*;
use proxy::sync::Kernel;
use testkit::netns::Netns;

/// A network namespace with clients inside.
struct Ns(Netns);

impl std::ops::Deref for Ns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.0
    }
}

impl Ns {
    fn new() -> Self {
        Self(Netns::new())
    }

    fn tcp(&self, to: &str) -> Result<String, ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(|| {
            let mut stream =
                TcpStream::connect_timeout(&to, Duration::from_millis(1500)).map_err(|e| e.kind())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
            Ok(answer)
        })
    }

    fn udp_socket(&self, at: &str) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        socket
    }
}

fn ask(socket: &UdpSocket, to: &str) -> Result<String, ErrorKind> {
    socket.connect(to).unwrap();
    socket.send(b"?").map_err(|e| e.kind())?;
    let mut buffer = [0; 200];
    let len = socket.recv(&mut buffer).map_err(|e| e.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// Client 192.168.49.1, node 192.168.49.2, Pods 10.244.0.11 to .13, routed as podnet does it; the same in fd00.
struct World {
    client: Ns,
    node: Ns,
    pods: Vec<Ns>,
    kernel: Kernel,
    socket: nft::Socket,
    model: Model,
    stop: Arc<AtomicBool>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn view() -> NodeView {
    NodeView {
        name: "n1".into(),
        zone: None,
        addresses: vec!["192.168.49.2".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/64".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
    }
}

impl World {
    fn new() -> Self {
        let (client, node) = (Ns::new(), Ns::new());
        node.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}
             ip addr add 192.168.49.2/24 dev eth0; ip link set eth0 up
             echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
            client.path()
        ));
        client.sh("ip addr add 192.168.49.1/24 dev eth0; ip link set eth0 up
             ip route add 10.96.0.0/12 via 192.168.49.2; ip route add 1.2.3.4 via 192.168.49.2");
        // Cluster addresses that nobody serves must be routed somewhere to meet the rules that refuse them.
        node.sh("ip route add default via 192.168.49.1; ip -6 route add default dev eth0");
        let stop = Arc::new(AtomicBool::new(false));
        let pods = (1..=3).map(|i| Self::pod(&node, i, &stop)).collect();
        let socket = node.within(|| nft::Socket::open().unwrap());
        let kernel = Kernel::new(view());
        let mut world = Self { client, node, pods, kernel, socket, model: Model::default(), stop };
        world.kernel.sync(&mut world.socket, &world.model, &HashSet::new()).unwrap();
        world
    }

    fn pod(node: &Ns, i: u8, stop: &Arc<AtomicBool>) -> Ns {
        let pod = Ns::new();
        node.sh(&format!(
            "ip link add p{i} type veth peer name eth0 netns {}
             ip link set p{i} up; ip addr add fe80::1/64 dev p{i} nodad
             ip route add 10.244.0.1{i} dev p{i}; ip -6 route add fd00:244::1{i} dev p{i}",
            pod.path()
        ));
        let mac = node.sh(&format!("cat /sys/class/net/p{i}/address 2>/dev/null || ip -o link show p{i} | sed 's/.*ether \\([^ ]*\\).*/\\1/'"));
        let mac = mac.trim();
        pod.sh(&format!(
            "ip addr add 10.244.0.1{i}/32 dev eth0; ip -6 addr add fd00:244::1{i}/128 dev eth0 nodad
             ip link set eth0 up
             ip route add 169.254.1.1 dev eth0; ip neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent
             ip route add default via 169.254.1.1 dev eth0
             ip -6 neigh add fe80::1 lladdr {mac} dev eth0 nud permanent
             ip -6 route add default via fe80::1 dev eth0"
        ));
        let peer = pod.sh("ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'");
        node.sh(&format!(
            "ip neigh add 10.244.0.1{i} lladdr {m} dev p{i} nud permanent
             ip -6 neigh add fd00:244::1{i} lladdr {m} dev p{i} nud permanent",
            m = peer.trim()
        ));
        serve(&pod, i, stop);
        pod
    }

    /// Sets what the frontends of one owner do and commits it.
    fn set(&mut self, owner: &str, targets: Vec<(Frontend, Target)>) {
        let changed = self.model.set(&Owner::Service("default".into(), owner.into()), targets);
        self.kernel.sync(&mut self.socket, &self.model, &changed).unwrap();
    }
}

/// Answers on TCP and UDP 8080 with its own number and who asked.
fn serve(pod: &Ns, i: u8, stop: &Arc<AtomicBool>) {
    let (tcp, udp) =
        pod.within(|| (TcpListener::bind("[::]:8080").unwrap(), UdpSocket::bind("[::]:8080").unwrap()));
    tcp.set_nonblocking(true).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let (done, done2) = (stop.clone(), stop.clone());
    let told = move |peer: SocketAddr| format!("{i} {}", peer.ip().to_canonical());
    std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            match tcp.accept() {
                Ok((mut stream, peer)) => {
                    let _ = stream.write_all(told(peer).as_bytes());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while !done2.load(Ordering::Relaxed) {
            if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(told(peer).as_bytes(), peer);
            }
        }
    });
}

fn at(place: &str, port: u16) -> Frontend {
    let place = if place == "node" { Place::Node(Ip::V4) } else { Place::Address(place.parse().unwrap()) };
    Frontend { place, protocol: Protocol::Tcp, port }
}

fn udp(frontend: Frontend) -> Frontend {
    Frontend { protocol: Protocol::Udp, ..frontend }
}

fn pods(which: &[u8]) -> Vec<SocketAddr> {
    which.iter().map(|i| SocketAddr::from(([10, 244, 0, 10 + i], 8080))).collect()
}

fn forward(which: &[u8], masquerade: Masquerade) -> Forward {
    Forward { endpoints: pods(which), masquerade, affinity: None, insiders: None }
}

fn target(forward: Forward) -> Target {
    let hairpins = forward.endpoints.iter().map(SocketAddr::ip).collect();
    Target { action: Action::Forward(forward), cluster_ip: true, hairpins, sources: vec![] }
}

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
    assert_eq!(world.pods[2].tcp("192.168.49.2:30081").unwrap(), "2 10.244.0.13", "insiders go anywhere");
    assert_eq!(world.node.tcp("192.168.49.2:30081").unwrap(), "2 192.168.49.2");
    assert_eq!(world.client.tcp("1.2.3.4:80").unwrap(), "3 192.168.49.2", "an external address");
    assert_eq!(world.pods[0].tcp("1.2.3.4:80").unwrap(), "3 192.168.49.2");
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

#[test]
fn every_endpoint_gets_its_share() {
    let mut world = World::new();
    let front = at("10.96.0.7", 80);
    world.set("web", vec![(front, target(forward(&[1, 2, 3], Masquerade::Outsiders)))]);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let node = &world.node;
    node.within(|| {
        for _ in 0..900 {
            let mut stream = TcpStream::connect("10.96.0.7:80").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            *counts.entry(answer).or_default() += 1;
        }
    });
    // 300 each on average; five standard deviations are 71.
    assert_eq!(counts.len(), 3);
    assert!(counts.values().all(|n| (229..=371).contains(n)), "{counts:?}");
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
fn a_udp_client_with_a_fixed_port_follows_its_service() {
    let mut world = World::new();
    let (front, node_port) = (udp(at("10.96.0.10", 53)), udp(at("node", 30053)));
    let both = |which: &[u8]| {
        vec![
            (front, target(forward(which, Masquerade::Outsiders))),
            (node_port, target(forward(which, Masquerade::Always))),
        ]
    };
    let client = world.pods[2].udp_socket("10.244.0.13:4000");
    let outside = world.client.udp_socket("192.168.49.1:4000");
    let other = world.client.udp_socket("192.168.49.1:4001");
    // Without the Service the packet reaches the node's own closed port and leaves an entry behind.
    assert_eq!(ask(&outside, "192.168.49.2:30053").unwrap_err(), ErrorKind::ConnectionRefused);
    for (endpoint, stale) in [(1, 1), (2, 2), (1, 2)] {
        world.set("dns", both(&[endpoint]));
        let changed = [&front, &node_port];
        let removed = proxy::stale_connections(changed, &world.kernel, &view().addresses, &mut world.socket);
        assert_eq!(removed.unwrap(), stale);
        let expected = endpoint.to_string();
        assert_eq!(ask(&client, "10.96.0.10:53").unwrap()[..1], expected);
        assert_eq!(ask(&outside, "192.168.49.2:30053").unwrap()[..1], expected);
        assert_eq!(ask(&other, "192.168.49.2:9").unwrap_err(), ErrorKind::ConnectionRefused);
    }
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
