//! Real namespaces, links and traffic: a "host", a node on it and Pods on that, all made here and gone with the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};
use podnet::{AnsweredAddresses, Error, HostNetwork, NodeNetwork, PodNetwork, bridge, used_networks, within};

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

const POD_NETWORK: &str = "10.244.0.0/16";

fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl Machine {
    fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let network = HostNetwork {
            profile: "test".into(),
            subnet: "192.168.49.0/24".parse().unwrap(),
            run_dir: run.path().to_owned(),
        };
        let machine = Self { host: netns(), node: netns(), network, run };
        machine.ensure();
        machine
    }

    fn ensure(&self) {
        let address = self.network.node_address(1).unwrap();
        inside(&self.host, || {
            self.network.ensure().unwrap();
            self.network.attach_node("node", self.node.as_fd(), address).unwrap();
        });
        self.setup(&self.node, address);
    }

    fn setup(&self, node: &OwnedFd, address: Ipv4Net) {
        let gateway = address.hosts().next().unwrap();
        NodeNetwork { address, gateway, pod_networks: vec![cidr(POD_NETWORK)] }.setup(node.as_fd()).unwrap();
    }

    fn pods(&self, ranges: &[&str]) -> PodNetwork {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| cidr(range)).collect();
        PodNetwork::open(self.node.as_fd(), &ranges).unwrap()
    }
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
    inside(&machine.host, || machine.network.attach_node("second", second.as_fd(), address).unwrap());
    machine.setup(&second, address);
    // Nodes of one cluster see each other as they are.
    assert_eq!(seen_source(&second, address.addr().into(), &machine.node).to_string(), "192.168.49.2");
    // Another cluster plays the rest of the world.
    let other = HostNetwork {
        profile: "other".into(),
        subnet: "192.168.58.0/24".parse().unwrap(),
        ..machine.network.clone()
    };
    let (world, world_address) = (netns(), other.node_address(1).unwrap());
    inside(&machine.host, || {
        other.ensure().unwrap();
        other.attach_node("world", world.as_fd(), world_address).unwrap();
    });
    machine.setup(&world, world_address);
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
    drop((world, second));
    inside(&machine.host, || HostNetwork::remove("other", machine.run.path()).unwrap());
    inside(&machine.host, || HostNetwork::remove("other", machine.run.path()).unwrap());
    let node_links = |names: Vec<String>| names.into_iter().filter(|name| name.starts_with("skiff")).count();
    inside(&machine.host, || ());
    drop(machine.node);
    wait_until("links of dead nodes are gone", || node_links(links(&machine.host)) == 0);
    assert_eq!(state(&machine.host), before);
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
    drop(network);
    let again = machine.pods(&["10.244.0.0/24", "fd00:10:244::/64"]);
    assert_eq!(again.addresses("pod-a").unwrap(), a_addresses);
}

#[test]
fn a_pod_cannot_speak_as_another() {
    let machine = Machine::new();
    let network = machine.pods(&["10.244.0.0/24"]);
    let (honest, liar, target) = (netns(), netns(), netns());
    let stolen = network.attach(honest.as_fd(), "honest").unwrap()[0];
    network.attach(liar.as_fd(), "liar").unwrap();
    let at = network.attach(target.as_fd(), "target").unwrap()[0];
    let receiver = inside(&target, || std::net::UdpSocket::bind(SocketAddr::new(at, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let to = receiver.local_addr().unwrap();
    let say = |pod: &OwnedFd, from: IpAddr| {
        inside(pod, || {
            let (family, kind) = (AddressFamily::Inet, SockType::Datagram);
            let sender = socket::socket(family, kind, SockFlag::empty(), None).unwrap();
            // Lets root send from any address.
            socket::setsockopt(&sender, sockopt::IpTransparent, &true).unwrap();
            let IpAddr::V4(from) = from else { panic!("an IPv4 test") };
            let from = SockaddrIn::from(std::net::SocketAddrV4::new(from, 0));
            socket::bind(sender.as_raw_fd(), &from).unwrap();
            std::net::UdpSocket::from(sender).send_to(b"x", to).unwrap();
        });
        receiver.recv_from(&mut [0; 8]).map(|(_, from)| from.ip()).ok()
    };
    assert_eq!(say(&honest, stolen), Some(stolen));
    assert_eq!(say(&liar, stolen), None);
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

#[test]
fn a_node_answers_for_further_addresses_as_long_as_it_is_told_to() {
    let machine = Machine::new();
    let open = || AnsweredAddresses::open(machine.node.as_fd(), "192.168.49.2".parse().unwrap()).unwrap();
    let addresses = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
    // Nobody listens: who is answered for refuses, and who is not is silent.
    let refuses = |address: &str| {
        let to = SocketAddr::new(address.parse().unwrap(), 9);
        let tried = inside(&machine.host, || TcpStream::connect_timeout(&to, Duration::from_millis(400)));
        tried.unwrap_err().kind() == std::io::ErrorKind::ConnectionRefused
    };
    let mut answered = open();
    assert!(!refuses("192.168.49.200"));
    answered.sync(&addresses(&["192.168.49.200", "192.168.49.201", "fd00::1"])).unwrap();
    wait_until("both answer", || refuses("192.168.49.200") && refuses("192.168.49.201"));
    // What the node itself sends there bears the node's own address.
    let own = inside(&machine.node, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect("192.168.49.200:9").unwrap();
        socket.local_addr().unwrap().ip().to_string()
    });
    assert_eq!(own, "192.168.49.2");
    // The next life finds what this one left.
    drop(answered);
    let mut answered = open();
    answered.sync(&addresses(&["192.168.49.201"])).unwrap();
    wait_until("one is gone", || !refuses("192.168.49.200"));
    assert!(refuses("192.168.49.201"));
    answered.sync(&addresses(&[])).unwrap();
    wait_until("both are gone", || !refuses("192.168.49.201"));
}
