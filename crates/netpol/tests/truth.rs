//! Truth tables: random policies over three namespaces of three Pods each, what a reading of the API's objects says of
//! each connection, and whether the connection could be made, on real packets between network namespaces. Each case is
//! reached from the one before by its differences alone, over connections that are still known.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netpol::Desired;
use netpol::model::{PodView, Policy, World};
use netpol::sync::Kernel;
use nft::Protocol;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use serde_json::{Value, json};
use testkit::netns::Netns;

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
/// Number and name; the second one has its name on odd Pods only.
const PORTS: [(u16, &str); 2] = [(80, "serve-80"), (81, "serve-81")];
const CASES: usize = 100;

/// Source, destination, protocol, port.
type Cell = (usize, usize, &'static str, u16);

fn address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 0, 11 + u8::try_from(pod).unwrap())
}

fn namespace_of(pod: usize) -> &'static str {
    NAMESPACES[pod / 3]
}

/// The labels of a Pod, and those of a namespace.
fn labels(pod: usize) -> Value {
    json!({"pod": PODS[pod % 3], "parity": if pod.is_multiple_of(2) { "even" } else { "odd" }})
}

fn namespace_labels(name: &str) -> Value {
    match name {
        "z" => json!({"ns": name, "kubernetes.io/metadata.name": name}),
        _ => json!({"ns": name, "kubernetes.io/metadata.name": name, "team": "blue"}),
    }
}

fn named_ports(pod: usize) -> Value {
    let named = PORTS.iter().filter(|(number, _)| *number == 80 || !pod.is_multiple_of(2));
    let both = named.flat_map(|(number, name)| {
        ["TCP", "UDP"].map(|p| json!({"name": format!("{name}-{}", p.to_lowercase()), "containerPort": number, "protocol": p}))
    });
    Value::Array(both.collect())
}

/// A generator with a seed: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()].clone()
    }

    fn pod_selector(&mut self) -> Value {
        match self.below(6) {
            0 => json!({}),
            1 => json!({"matchLabels": {"parity": self.pick(&["even", "odd"])}}),
            2 => {
                json!({"matchExpressions": [{"key": "pod", "operator": self.pick(&["In", "NotIn"]), "values": [self.pick(&PODS), "a"]}]})
            }
            3 => {
                json!({"matchExpressions": [{"key": "none", "operator": self.pick(&["Exists", "DoesNotExist"])}]})
            }
            _ => json!({"matchLabels": {"pod": self.pick(&PODS)}}),
        }
    }

    fn namespace_selector(&mut self) -> Value {
        match self.below(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {"team": "blue"}}),
            2 => {
                json!({"matchExpressions": [{"key": "team", "operator": self.pick(&["Exists", "DoesNotExist"])}]})
            }
            _ => json!({"matchLabels": {"kubernetes.io/metadata.name": self.pick(&NAMESPACES)}}),
        }
    }

    fn peer(&mut self) -> Value {
        let someone = address(usize::try_from(self.below(9)).unwrap());
        match self.below(7) {
            0 | 1 => json!({"podSelector": self.pod_selector()}),
            2 => json!({"namespaceSelector": self.namespace_selector()}),
            3 | 4 => {
                json!({"namespaceSelector": self.namespace_selector(), "podSelector": self.pod_selector()})
            }
            5 => json!({"ipBlock": {"cidr": format!("{someone}/{}", self.pick(&[30, 32]))}}),
            _ => {
                json!({"ipBlock": {"cidr": "10.244.0.0/24", "except": [format!("{someone}/{}", self.pick(&[31, 32]))]}})
            }
        }
    }

    fn port(&mut self) -> Value {
        let protocol = self.pick(&["TCP", "TCP", "UDP"]);
        match self.below(5) {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": 79, "endPort": self.pick(&[80, 81])}),
            2 => {
                let name = format!("{}-{}", self.pick(&PORTS).1, protocol.to_lowercase());
                json!({"protocol": protocol, "port": name})
            }
            3 => json!({"port": self.pick(&[80, 81])}),
            _ => json!({"protocol": protocol, "port": self.pick(&[80, 81])}),
        }
    }

    fn list(&mut self, most: u64, mut item: impl FnMut(&mut Self) -> Value) -> Value {
        let count = self.below(most + 1);
        Value::Array((0..count).map(|_| item(self)).collect())
    }

    fn policy(&mut self) -> Value {
        let mut spec = json!({"podSelector": self.pod_selector()});
        for (rules, peers, kind) in [("ingress", "from", "Ingress"), ("egress", "to", "Egress")] {
            if self.below(2) == 0 {
                continue;
            }
            spec[rules] = self.list(2, |dice| {
                let mut rule = json!({});
                if dice.below(4) > 0 {
                    rule[peers] = dice.list(2, Self::peer);
                }
                if dice.below(2) > 0 {
                    rule["ports"] = dice.list(2, Self::port);
                }
                rule
            });
            if self.below(2) == 0 {
                spec["policyTypes"] = json!([kind]);
            }
        }
        spec
    }
}

/// The reference: reads the objects as the API has them, and shares nothing with what it judges.
mod reference {
    use super::*;

    fn selects(selector: &Value, labels: &Value) -> bool {
        let equal = selector["matchLabels"].as_object().into_iter().flatten();
        let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
        equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
            && expressions.all(|e| {
                let value = labels.get(e["key"].as_str().unwrap());
                let listed = || e["values"].as_array().unwrap().contains(value.unwrap());
                match e["operator"].as_str().unwrap() {
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    "In" => value.is_some() && listed(),
                    _ => value.is_none() || !listed(),
                }
            })
    }

    fn covers(cidr: &Value, pod: usize) -> bool {
        let (net, bits) = cidr.as_str().unwrap().split_once('/').unwrap();
        let shift = 32 - bits.parse::<u32>().unwrap();
        let cut = |addr: Ipv4Addr| u64::from(addr.to_bits()) >> shift;
        cut(net.parse().unwrap()) == cut(address(pod))
    }

    fn is_peer(peer: &Value, namespace: &str, pod: usize) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let mut except = block["except"].as_array().into_iter().flatten();
            return covers(&block["cidr"], pod) && !except.any(|hole| covers(hole, pod));
        }
        let there = match peer.get("namespaceSelector") {
            Some(selector) => selects(selector, &namespace_labels(namespace_of(pod))),
            None => namespace_of(pod) == namespace,
        };
        there && peer.get("podSelector").is_none_or(|selector| selects(selector, &labels(pod)))
    }

    fn is_port(port: &Value, cell: Cell) -> bool {
        let (_, to, protocol, number) = cell;
        if port.get("protocol").map_or("TCP", |p| p.as_str().unwrap()) != protocol {
            return false;
        }
        match &port["port"] {
            Value::Null => true,
            Value::String(name) => named_ports(to).as_array().unwrap().iter().any(|own| {
                own["name"] == **name && own["containerPort"] == number && own["protocol"] == protocol
            }),
            first => {
                let first = first.as_u64().unwrap();
                (first..=port.get("endPort").map_or(first, |end| end.as_u64().unwrap()))
                    .contains(&number.into())
            }
        }
    }

    fn any(list: &Value, is: impl Fn(&Value) -> bool) -> bool {
        list.as_array().is_none_or(|items| items.is_empty() || items.iter().any(is))
    }

    fn direction(policies: &[(String, Value)], cell: Cell, ingress: bool) -> bool {
        let (own, other) = if ingress { (cell.1, cell.0) } else { (cell.0, cell.1) };
        let (rules, peers, kind) =
            if ingress { ("ingress", "from", "Ingress") } else { ("egress", "to", "Egress") };
        let isolating = policies.iter().filter(|(namespace, spec)| {
            let default = ingress || spec.get("egress").is_some();
            let types = spec["policyTypes"].as_array();
            namespace == namespace_of(own)
                && selects(&spec["podSelector"], &labels(own))
                && types.map_or(default, |types| types.contains(&json!(kind)))
        });
        let isolating: Vec<_> = isolating.collect();
        isolating.is_empty()
            || isolating.iter().any(|(namespace, spec)| {
                spec[rules].as_array().into_iter().flatten().any(|rule| {
                    any(&rule[peers], |peer| is_peer(peer, namespace, other))
                        && any(&rule["ports"], |port| is_port(port, cell))
                })
            })
    }

    pub fn allows(policies: &[(String, Value)], cell: Cell) -> bool {
        direction(policies, cell, false) && direction(policies, cell, true)
    }
}

fn cells() -> impl Iterator<Item = Cell> {
    let pairs = (0..9).flat_map(|from| (0..9).map(move |to| (from, to))).filter(|(from, to)| from != to);
    pairs.flat_map(|(from, to)| {
        PORTS.into_iter().flat_map(move |(port, _)| ["TCP", "UDP"].map(|p| (from, to, p, port)))
    })
}

/// A node with nine Pods, routed as podnet does it, each serving both ports.
struct Cluster {
    node: Netns,
    pods: Vec<Netns>,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// One a Pod, so that what it was once allowed is a connection that the kernel still knows.
    clients: Vec<UdpSocket>,
}

impl Cluster {
    fn new() -> Self {
        let node = Netns::new();
        node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let pods: Vec<Netns> = (0..9).map(|i| Self::pod(&node, i)).collect();
        let serving = || pods.iter().flat_map(|pod| PORTS.map(|(port, _)| (pod, port)));
        let tcp: Vec<TcpListener> = serving()
            .map(|(pod, port)| pod.within(|| TcpListener::bind(("0.0.0.0", port)).unwrap()))
            .collect();
        let bind = |pod: &Netns, port| pod.within(|| UdpSocket::bind(("0.0.0.0", port)).unwrap());
        let udp: Vec<UdpSocket> = serving().map(|(pod, port)| bind(pod, port)).collect();
        let clients: Vec<UdpSocket> = pods.iter().map(|pod| bind(pod, 4000)).collect();
        tcp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        udp.iter().chain(&clients).for_each(|socket| socket.set_nonblocking(true).unwrap());
        Self { node, pods, tcp, udp, clients }
    }

    fn pod(node: &Netns, i: usize) -> Netns {
        let pod = Netns::new();
        let (own, mac) = (address(i), |side: u8| format!("0a:58:00:00:{side:02x}:{i:02x}"));
        node.sh(&format!(
            "ip link add p{i} address {} type veth peer name eth0 address {} netns {}
             ip link set p{i} up; ip route add {own} dev p{i}; ip neigh add {own} lladdr {} dev p{i} nud permanent",
            mac(1),
            mac(2),
            pod.path(),
            mac(2)
        ));
        pod.sh(&format!(
            "ip addr add {own}/32 dev eth0; ip link set eth0 up; ip route add 169.254.1.1 dev eth0
             ip neigh add 169.254.1.1 lladdr {} dev eth0 nud permanent; ip route add default via 169.254.1.1 dev eth0",
            mac(1)
        ));
        pod
    }

    /// Begins a connection of each kind from each Pod to each other one; the UDP ones say which case they belong to.
    fn dial(&self, case: usize) -> Vec<(Cell, TcpStream)> {
        let mut dialled = Vec::new();
        for cell in cells() {
            let (from, to, protocol, port) = cell;
            let destination = SocketAddrV4::new(address(to), port);
            if protocol == "UDP" {
                self.clients[from].send_to(&case.to_be_bytes(), destination).unwrap();
            }
        }
        for (from, pod) in self.pods.iter().enumerate() {
            let own: Vec<Cell> = cells().filter(|cell| cell.0 == from && cell.2 == "TCP").collect();
            let streams =
                pod.within(|| own.iter().map(|cell| begin(address(cell.1), cell.3)).collect::<Vec<_>>());
            dialled.extend(own.into_iter().zip(streams));
        }
        dialled
    }

    /// The connections of a case that were made; waits for those that are expected, and gives others time to show.
    fn made(&self, case: usize, expected: &BTreeSet<Cell>) -> BTreeSet<Cell> {
        let dialled = self.dial(case);
        let start = Instant::now();
        let mut made = BTreeSet::new();
        let mut complete = None;
        while start.elapsed() < Duration::from_secs(10)
            && complete.is_none_or(|at: Instant| at.elapsed() < Duration::from_millis(15))
        {
            made.extend(
                dialled.iter().filter(|(_, stream)| stream.peer_addr().is_ok()).map(|(cell, _)| *cell),
            );
            self.tcp.iter().for_each(|listener| while listener.accept().is_ok() {});
            self.udp.iter().for_each(echo);
            for (from, client) in self.clients.iter().enumerate() {
                made.extend(answers(client, case).into_iter().map(|(to, port)| (from, to, "UDP", port)));
            }
            if complete.is_none() && made.is_superset(expected) {
                complete = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        made
    }
}

fn begin(to: Ipv4Addr, port: u16) -> TcpStream {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let own: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let begun = connect(own.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, port)));
    assert!(matches!(begun, Ok(()) | Err(nix::errno::Errno::EINPROGRESS)), "{begun:?}");
    TcpStream::from(own)
}

fn receive(socket: &UdpSocket) -> Option<([u8; 8], SocketAddr)> {
    let mut buffer = [0; 8];
    match socket.recv_from(&mut buffer) {
        Ok((_, peer)) => Some((buffer, peer)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn echo(server: &UdpSocket) {
    while let Some((text, peer)) = receive(server) {
        server.send_to(&text, peer).unwrap();
    }
}

/// Who answered what was asked in this case.
fn answers(client: &UdpSocket, case: usize) -> Vec<(usize, u16)> {
    let mut answered = Vec::new();
    while let Some((text, peer)) = receive(client) {
        if text == case.to_be_bytes()
            && let SocketAddr::V4(peer) = peer
        {
            answered.push((usize::from(peer.ip().octets()[3]) - 11, peer.port()));
        }
    }
    answered
}

fn world(policies: &[(String, Value)]) -> World {
    let policies = policies.iter().enumerate().map(|(i, (namespace, spec))| {
        let object = json!({"metadata": {"namespace": namespace, "name": format!("p{i}")}, "spec": spec});
        Policy::of(&serde_json::from_value(object).unwrap()).unwrap()
    });
    let pods = (0..9).map(|i| {
        let object = json!({
            "metadata": {"namespace": namespace_of(i), "name": PODS[i % 3], "labels": labels(i)},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": named_ports(i)}]}});
        PodView::of(&serde_json::from_value(object).unwrap(), vec![address(i).into()], "n1").unwrap()
    });
    let label =
        |name: &str| -> BTreeMap<String, String> { serde_json::from_value(namespace_labels(name)).unwrap() };
    World {
        policies: policies.map(|policy| (policy.key.clone(), policy)).collect(),
        namespaces: NAMESPACES.into_iter().map(|name| (name.to_owned(), label(name))).collect(),
        pods: pods.map(|pod| (pod.key.clone(), pod)).collect(),
    }
}

#[test]
fn every_connection_of_random_policies_is_as_the_api_says() {
    let cluster = Cluster::new();
    let mut socket = cluster.node.within(|| nft::Socket::open().unwrap());
    let mut kernel = Kernel::new();
    let mut dice = Dice(0x5eed_0007);
    let (mut open, mut refused) = (0, 0);
    for case in 0..CASES {
        let count = dice.below(6);
        let policies: Vec<(String, Value)> =
            (0..count).map(|_| (dice.pick(&NAMESPACES).to_owned(), dice.policy())).collect();
        let expected: BTreeSet<Cell> = cells().filter(|cell| reference::allows(&policies, *cell)).collect();
        let desired = Desired::of(&world(&policies));
        for cell in cells() {
            let (from, to, protocol, port) = cell;
            let protocol = Protocol::parse(Some(protocol)).unwrap();
            let said = desired.allows(address(from).into(), address(to).into(), protocol, port);
            assert_eq!(said, expected.contains(&cell), "case {case} {cell:?} {policies:#?}");
        }
        kernel.sync(&mut socket, desired).unwrap();
        if case == 0 {
            cluster.node.sh("echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose");
        }
        netpol::cut::forbidden(&mut socket, kernel.held(), &[]).unwrap();
        let made = cluster.made(case, &expected);
        let wrong: Vec<&Cell> = made.symmetric_difference(&expected).collect();
        assert!(
            wrong.is_empty(),
            "case {case}: {wrong:?} of {policies:#?}\n{}",
            kernel.table(nft::Family::Ip)
        );
        (open, refused) = (open + expected.len(), refused + cells().count() - expected.len());
    }
    // Tables that decide nothing would prove nothing.
    assert!(open > 3000 && refused > 3000, "{open} open, {refused} refused");
}
