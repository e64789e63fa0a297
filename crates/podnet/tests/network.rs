//! Real namespaces, links and traffic: a "host", a node on it and Pods on that, all made here and gone with the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use podnet::{
    AnsweredAddresses, Error, HostNetwork, NodeNetwork, PeerRoutes, PodNetwork, bridge, used_networks, within,
};

/// A fresh network namespace, alive as long as its descriptor.
fn netns() -> OwnedFd {
    testkit::netns::Netns::new().into()
}

fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    within(netns.as_fd(), || Ok(work())).unwrap()
}

/// A node on a host, ready for Pods.
struct Machine {
    host: OwnedFd,
    node: OwnedFd,
    network: HostNetwork,
    run: tempfile::TempDir,
}

const POD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];

fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Machine {
    fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let network = HostNetwork {
            profile: "test".into(),
            subnet: "192.168.49.0/24".parse().unwrap(),
            subnet6: "fd00:192:168:49::/64".parse().ok(),
            run_dir: run.path().to_owned(),
        };
        let machine = Self { host: netns(), node: netns(), network, run };
        machine.ensure();
        machine
    }

    fn ensure(&self) {
        inside(&self.host, || self.network.ensure().unwrap());
        self.join(&self.node, 1);
    }

    /// Connects a node to the host and sets it up.
    fn join(&self, node: &OwnedFd, number: u8) {
        join(&self.host, &self.network, node, number);
    }

    fn pods(&self, ranges: &[&str]) -> PodNetwork {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| cidr(range)).collect();
        PodNetwork::open(self.node.as_fd(), &ranges).unwrap()
    }
}

fn join(host: &OwnedFd, network: &HostNetwork, node: &OwnedFd, number: u8) {
    let address = network.node_address(number).unwrap();
    let name = format!("node-{number}");
    let gateway6 = inside(host, || {
        network.attach_node(&name, node.as_fd(), address).unwrap();
        network.way_out6().unwrap()
    });
    let (gateway, address6) = (network.gateway(), network.node_address6(number));
    let pod_networks = POD_NETWORKS.map(cidr).to_vec();
    let services6 = Some("fd00:10:96::/108".parse().unwrap());
    NodeNetwork { address, gateway, address6, gateway6, services6, pod_networks }
        .setup(node.as_fd())
        .unwrap();
}

/// Connects from one namespace to a server in another; gives the client's address as the server sees it.
fn seen_source(server: &OwnedFd, address: IpAddr, client: &OwnedFd) -> IpAddr {
    let listener = inside(server, || TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let client = inside(client, || TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap());
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    drop(accepted);
    let mut text = String::new();
    (&client).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    peer.ip()
}

fn reaches(address: SocketAddr, client: &OwnedFd) -> bool {
    inside(client, || TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok())
}

/// The names of a namespace's interfaces, and its routing switch.
fn state(netns: &OwnedFd) -> (Vec<String>, String) {
    inside(netns, || {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let mut names: Vec<String> = table
            .lines()
            .skip(2)
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .collect();
        names.sort();
        (names, std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned())
    })
}

fn links(netns: &OwnedFd) -> Vec<String> {
    state(netns).0
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn pods_talk_without_translation_and_leave_with_the_nodes_address() {
    let machine = Machine::new();
    let network = machine.pods(&["10.244.0.0/24"]);
    let (a, b) = (netns(), netns());
    let a_address = network.attach(a.as_fd(), "pod-a").unwrap()[0];
    let b_address = network.attach(b.as_fd(), "pod-b").unwrap()[0];
    assert_eq!((a_address.to_string(), b_address.to_string()), ("10.244.0.2".into(), "10.244.0.3".into()));
    // Pod to Pod, both ways, and to itself over its own address and localhost.
    assert_eq!(seen_source(&a, a_address, &b), b_address);
    assert_eq!(seen_source(&b, b_address, &a), a_address);
    assert_eq!(seen_source(&a, a_address, &a), a_address);
    assert_eq!(seen_source(&a, Ipv4Addr::LOCALHOST.into(), &a), IpAddr::from(Ipv4Addr::LOCALHOST));
    // The node reaches Pods with its own address, and Pods reach the node with theirs.
    let node_address: IpAddr = "192.168.49.2".parse().unwrap();
    assert_eq!(seen_source(&a, a_address, &machine.node), node_address);
    assert_eq!(seen_source(&machine.node, node_address, &a), a_address);
    // Beyond the node, the Pod's address means nothing: the node's stands for it.
    let gateway = machine.network.gateway().into();
    assert_eq!(seen_source(&machine.host, gateway, &a), node_address);
}

#[test]
fn the_host_translates_only_what_leaves_it_and_is_restored() {
    let machine = Machine::new();
    let before = state(&netns());
    let address = machine.network.node_address(2).unwrap();
    let second = netns();
    machine.join(&second, 2);
    // Nodes of one cluster see each other as they are.
    assert_eq!(seen_source(&second, address.addr().into(), &machine.node).to_string(), "192.168.49.2");
    // Another cluster plays the rest of the world.
    let other = HostNetwork {
        profile: "other".into(),
        subnet: "192.168.58.0/24".parse().unwrap(),
        subnet6: None,
        ..machine.network.clone()
    };
    let (world, world_address) = (netns(), other.node_address(1).unwrap());
    inside(&machine.host, || other.ensure().unwrap());
    join(&machine.host, &other, &world, 1);
    assert_eq!(seen_source(&world, world_address.addr().into(), &machine.node).to_string(), "192.168.58.1");

    // Subnets in use are seen and refused; one's own is not in the way.
    let clash =
        HostNetwork { profile: "clash".into(), subnet: "192.168.48.0/23".parse().unwrap(), ..other.clone() };
    inside(&machine.host, || {
        assert!(matches!(clash.ensure(), Err(Error::SubnetInUse { .. })));
        let used = used_networks("clash").unwrap();
        assert_eq!(podnet::subnet::choose(&used).unwrap().to_string(), "192.168.67.0/24");
        assert!(!used_networks("test").unwrap().contains(&machine.network.subnet));
        machine.network.ensure().unwrap();
    });

    // Removal: routing stays on while another cluster needs it, then the host is as it was.
    inside(&machine.host, || HostNetwork::remove("test", machine.run.path()).unwrap());
    assert_eq!(state(&machine.host).1, "1");
    assert!(links(&machine.host).contains(&bridge("other")));
    inside(&machine.host, || HostNetwork::remove("other", machine.run.path()).unwrap());
    inside(&machine.host, || HostNetwork::remove("other", machine.run.path()).unwrap());
    // The nodes' namespaces are still held; their links went all the same.
    assert!(!links(&machine.host).iter().any(|name| name.starts_with("skiff")));
    assert_eq!(state(&machine.host), before);
    drop((world, second, machine.node));
    assert_eq!(std::fs::read_dir(machine.run.path()).unwrap().count(), 0);
}

#[test]
fn everything_may_be_repeated_and_is_found_again() {
    let machine = Machine::new();
    machine.ensure();
    let network = machine.pods(&["10.244.0.0/24"]);
    let (a, b) = (netns(), netns());
    let first = network.attach(a.as_fd(), "pod-a").unwrap();
    assert_eq!(network.attach(a.as_fd(), "pod-a").unwrap(), first);
    drop(network);

    // A new life of the agent: the Pod keeps its address, a new one gets another.
    let network = machine.pods(&["10.244.0.0/24"]);
    assert_eq!(network.addresses("pod-a").unwrap(), first);
    assert_eq!(network.pods().unwrap()["pod-a"], first);
    network.adopt("pod-a", &first).unwrap();
    let second = network.attach(b.as_fd(), "pod-b").unwrap();
    assert_ne!(first, second);
    assert_eq!(seen_source(&a, first[0], &b), second[0]);

    // A new sandbox of the same Pod while the old namespace is still there.
    let a_again = netns();
    assert_eq!(network.attach(a_again.as_fd(), "pod-a").unwrap(), first);
    assert_eq!(seen_source(&a_again, first[0], &b), second[0]);
    assert!(!links(&a).contains(&"eth0".to_owned()));

    // A podCIDR that is no longer the node's: what is left of it goes.
    drop(network);
    let moved = machine.pods(&["10.244.9.0/24"]);
    assert!(moved.pods().unwrap().is_empty());
    assert!(!links(&machine.node).iter().any(|name| name.starts_with("veth")));
}

#[test]
fn a_detached_pod_is_unreachable_at_once_and_its_link_goes() {
    let machine = Machine::new();
    let network = machine.pods(&["10.244.0.0/24"]);
    let (a, b) = (netns(), netns());
    let address = network.attach(a.as_fd(), "pod-a").unwrap()[0];
    network.attach(b.as_fd(), "pod-b").unwrap();
    let listener = inside(&a, || TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    // A busy kernel starts a new link's queue a moment after it is up, and what is sent before that is lost.
    wait_until("the Pod is reached", || reaches(target, &b));
    network.detach("pod-a").unwrap();
    network.detach("pod-a").unwrap();
    network.detach("never-seen").unwrap();
    assert!(!reaches(target, &b));
    assert!(network.addresses("pod-a").is_none());
    // The namespace lives on, so the link must be taken away.
    wait_until("link of a detached pod is gone", || !links(&a).contains(&"eth0".to_owned()));
    // Detached and attached again before the sweep: stays.
    network.detach("pod-b").unwrap();
    network.attach(b.as_fd(), "pod-b").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(links(&b).contains(&"eth0".to_owned()));
}

#[test]
fn both_families_at_once() {
    let machine = Machine::new();
    let network = machine.pods(&["10.244.0.0/24", "fd00:10:244::/64"]);
    let (a, b) = (netns(), netns());
    let a_addresses = network.attach(a.as_fd(), "pod-a").unwrap();
    let b_addresses = network.attach(b.as_fd(), "pod-b").unwrap();
    assert_eq!(a_addresses[1].to_string(), "fd00:10:244::2");
    for (server, client) in a_addresses.iter().zip(&b_addresses) {
        assert_eq!(seen_source(&a, *server, &b), *client);
    }
    // Pod and node, both ways; a Pod to itself; node and host. Beyond the cluster the node's address stands for the Pod's.
    let node: IpAddr = "fd00:192:168:49::2".parse().unwrap();
    let gateway = machine.network.gateway6().unwrap().into();
    assert_eq!(seen_source(&a, a_addresses[1], &machine.node), node);
    assert_eq!(seen_source(&machine.node, node, &a), a_addresses[1]);
    assert_eq!(seen_source(&a, a_addresses[1], &a), a_addresses[1]);
    assert_eq!(seen_source(&machine.node, node, &machine.host), gateway);
    assert_eq!(seen_source(&machine.host, gateway, &a), node);
    // The world is out of reach, and that is said at once instead of by a time-out.
    let began = Instant::now();
    let world = SocketAddr::new("2001:db8::1".parse().unwrap(), 80);
    let refused = inside(&a, || TcpStream::connect_timeout(&world, Duration::from_secs(10)).unwrap_err());
    assert!(began.elapsed() < Duration::from_secs(5), "{refused}");
    // The node sets out for addresses of Services as itself.
    let own = inside(&machine.node, || {
        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        socket.connect("[fd00:10:96::a]:53").unwrap();
        socket.local_addr().unwrap().ip()
    });
    assert_eq!(own, node);
    // A Pod has the addresses that it was given, and its links no other: no policy would know them.
    let inet6 = |netns: &OwnedFd| {
        let table = inside(netns, || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
        let row = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        table.lines().map(row).map(|row| format!("{} {}", row[5], row[0])).collect::<Vec<_>>()
    };
    let in_pod = inet6(&a);
    assert!(in_pod.contains(&"eth0 fd000010024400000000000000000002".to_owned()), "{in_pod:?}");
    assert_eq!(in_pod.iter().filter(|row| row.starts_with("eth0")).count(), 1, "{in_pod:?}");
    let on_node = inet6(&machine.node);
    assert!(!on_node.iter().any(|row| row.starts_with("veth")), "{on_node:?}");
    drop(network);
    let again = machine.pods(&["10.244.0.0/24", "fd00:10:244::/64"]);
    assert_eq!(again.addresses("pod-a").unwrap(), a_addresses);
}

#[test]
fn pods_of_two_nodes_see_each_other_as_they_are() {
    let machine = Machine::new();
    let second = netns();
    machine.join(&second, 2);
    let ranges =
        |number: u8| [cidr(&format!("10.244.{number}.0/24")), cidr(&format!("fd00:10:244:{number}::/64"))];
    let here = PodNetwork::open(machine.node.as_fd(), &ranges(0)).unwrap();
    let there = PodNetwork::open(second.as_fd(), &ranges(1)).unwrap();
    let route = |node: &OwnedFd, number: u8, via: [&str; 2]| {
        let vias = via.map(|via| via.parse::<IpAddr>().unwrap());
        let mut routes = PeerRoutes::open(node.as_fd()).unwrap();
        routes.sync(&ranges(number).into_iter().zip(vias).collect()).unwrap();
    };
    route(&machine.node, 1, ["192.168.49.3", "fd00:192:168:49::3"]);
    route(&second, 0, ["192.168.49.2", "fd00:192:168:49::2"]);
    let (a, b) = (netns(), netns());
    let a_addresses = here.attach(a.as_fd(), "pod-a").unwrap();
    let b_addresses = there.attach(b.as_fd(), "pod-b").unwrap();
    for (at_a, at_b) in a_addresses.into_iter().zip(b_addresses) {
        assert_eq!(seen_source(&a, at_a, &b), at_b);
        assert_eq!(seen_source(&b, at_b, &a), at_a);
    }
}

#[test]
fn a_pod_cannot_speak_as_another() {
    let machine = Machine::new();
    let network = machine.pods(&["10.244.0.0/24", "fd00:10:244::/64"]);
    let (honest, liar, target) = (netns(), netns(), netns());
    let stolen = network.attach(honest.as_fd(), "honest").unwrap();
    network.attach(liar.as_fd(), "liar").unwrap();
    let at = network.attach(target.as_fd(), "target").unwrap();
    let say = |pod: &OwnedFd, from: IpAddr, to: IpAddr| {
        let receiver = inside(&target, || std::net::UdpSocket::bind(SocketAddr::new(to, 0)).unwrap());
        receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let to = receiver.local_addr().unwrap();
        inside(pod, || {
            let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let sender = socket::socket(family, SockType::Datagram, SockFlag::empty(), None).unwrap();
            // Lets root send from any address.
            if from.is_ipv4() {
                socket::setsockopt(&sender, sockopt::IpTransparent, &true).unwrap();
            }
            std::fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").unwrap();
            socket::bind(sender.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0))).unwrap();
            std::net::UdpSocket::from(sender).send_to(b"x", to).unwrap();
        });
        receiver.recv_from(&mut [0; 8]).map(|(_, from)| from.ip()).ok()
    };
    for (stolen, at) in stolen.into_iter().zip(at) {
        assert_eq!(say(&honest, stolen, at), Some(stolen));
        assert_eq!(say(&liar, stolen, at), None);
    }
    // Nor with an address that nobody has and no policy knows.
    assert_eq!(say(&liar, "fd00:9::9".parse().unwrap(), "fd00:10:244::4".parse().unwrap()), None);
}

#[test]
fn attaching_takes_milliseconds() {
    let machine = Machine::new();
    let network = machine.pods(&["10.244.0.0/24"]);
    let pods: Vec<OwnedFd> = (0..100).map(|_| netns()).collect();
    let attach = |n: usize, pod: BorrowedFd<'_>| {
        let start = Instant::now();
        network.attach(pod, &format!("pod-{n}")).unwrap();
        start.elapsed()
    };
    let mut times: Vec<Duration> = pods.iter().enumerate().map(|(n, pod)| attach(n, pod.as_fd())).collect();
    times.sort();
    let start = Instant::now();
    for n in 0..pods.len() {
        network.detach(&format!("pod-{n}")).unwrap();
    }
    let detach = start.elapsed() / 100;
    println!("attach p50 {:?} p99 {:?}; detach mean {detach:?}", times[50], times[98]);
    assert!(times[50] < Duration::from_millis(25), "{:?}", times[50]);
}

/// An address that moves from one node to another is where it went to at once: neighbours need not ask again.
#[test]
fn a_moved_address_is_told_to_the_neighbours() {
    let machine = Machine::new();
    let address = "192.168.49.200";
    let mut answered =
        AnsweredAddresses::open(machine.node.as_fd(), &["192.168.49.2".parse().unwrap()]).unwrap();
    let run = |netns: &OwnedFd, line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let out = inside(netns, || std::process::Command::new("ip").args(&words).output().unwrap());
        assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let link = bridge("test");
    let remembered = || run(&machine.host, &format!("neigh show {address} dev {link}"));
    // The host remembers that another node has it.
    run(&machine.host, &format!("neigh replace {address} lladdr 02:00:00:00:00:77 dev {link} nud reachable"));
    let own = run(&machine.node, "-o link show eth0");
    let own = own.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned();
    answered.sync(&BTreeSet::from([address.parse().unwrap()])).unwrap();
    assert!(answered.has_fresh());
    // One that learnt of the other node within the last second does not listen yet.
    std::thread::sleep(Duration::from_millis(1200));
    answered.repeat().unwrap();
    wait_until("the host knows", || remembered().contains(&own));
    assert!(!answered.has_fresh());
}

#[test]
fn a_node_answers_for_further_addresses_as_long_as_it_is_told_to() {
    let machine = Machine::new();
    let nodes: [IpAddr; 2] = ["192.168.49.2".parse().unwrap(), "fd00:192:168:49::2".parse().unwrap()];
    let open = || AnsweredAddresses::open(machine.node.as_fd(), &nodes).unwrap();
    let addresses = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
    // Nobody listens: who is answered for refuses, and who is not is silent.
    let refuses = |address: &str| {
        let to = SocketAddr::new(address.parse().unwrap(), 9);
        let tried = inside(&machine.host, || TcpStream::connect_timeout(&to, Duration::from_millis(400)));
        tried.unwrap_err().kind() == std::io::ErrorKind::ConnectionRefused
    };
    const FOUR: [&str; 2] = ["192.168.49.200", "192.168.49.201"];
    const SIX: [&str; 2] = ["fd00:192:168:49::101", "fd00:192:168:49::102"];
    let mut answered = open();
    assert!(!refuses(FOUR[0]) && !refuses(SIX[0]));
    answered.sync(&addresses(&[FOUR[0], FOUR[1], SIX[0], SIX[1]])).unwrap();
    wait_until("all answer", || FOUR.iter().chain(&SIX).all(|address| refuses(address)));
    // What the node itself sends there bears the node's own address, and so does what it sends to the host.
    let own = |to: &str| {
        inside(&machine.node, || {
            let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            socket.local_addr().unwrap().ip()
        })
    };
    assert_eq!(own("192.168.49.200:9"), nodes[0]);
    assert_eq!(own("[fd00:192:168:49::1]:9"), nodes[1]);
    assert_eq!(own("[fd00:192:168:49::100]:9"), nodes[1]);
    // The next life finds what this one left.
    drop(answered);
    let mut answered = open();
    answered.sync(&addresses(&[FOUR[1], SIX[1]])).unwrap();
    wait_until("one of each is gone", || !refuses(FOUR[0]) && !refuses(SIX[0]));
    assert!(refuses(FOUR[1]) && refuses(SIX[1]));
    answered.sync(&addresses(&[])).unwrap();
    wait_until("all are gone", || !refuses(FOUR[1]) && !refuses(SIX[1]));
}
