//! A client, a node and Pods, each in a network namespace of its own, for tests with real packets.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, reason = "not every test file needs all of it")]

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proxy::model::*;
use proxy::sync::Kernel;
use testkit::netns::Netns;

/// A network namespace with clients inside.
pub struct Ns(pub Netns);

impl std::ops::Deref for Ns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.0
    }
}

impl Ns {
    pub fn new() -> Self {
        Self(Netns::new())
    }

    pub fn tcp(&self, to: &str) -> Result<String, ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.within(|| {
            let mut stream =
                TcpStream::connect_timeout(&to, Duration::from_millis(1500)).map_err(|e| e.kind())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
            Ok(answer)
        })
    }

    pub fn udp_socket(&self, at: &str) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        socket
    }
}

pub fn ask(socket: &UdpSocket, to: &str) -> Result<String, ErrorKind> {
    socket.connect(to).unwrap();
    socket.send(b"?").map_err(|e| e.kind())?;
    let mut buffer = [0; 200];
    let len = socket.recv(&mut buffer).map_err(|e| e.kind())?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// Client 192.168.49.1, node 192.168.49.2, Pods 10.244.0.11 to .13, routed as podnet does it; the same in fd00.
pub struct World {
    pub client: Ns,
    pub node: Ns,
    pub pods: Vec<Ns>,
    pub kernel: Kernel,
    pub socket: nft::Socket,
    pub model: Model,
    stop: Arc<AtomicBool>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub fn view() -> NodeView {
    NodeView {
        name: "n1".into(),
        zone: None,
        addresses: vec!["192.168.49.2".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/64".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
    }
}

impl World {
    pub fn new() -> Self {
        let (client, node) = (Ns::new(), Ns::new());
        node.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}
             ip addr add 192.168.49.2/24 dev eth0; ip link set eth0 up
             echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
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
    pub fn set(&mut self, owner: &str, targets: Vec<(Frontend, Target)>) {
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

pub fn at(place: &str, port: u16) -> Frontend {
    let place = if place == "node" { Place::Node(Ip::V4) } else { Place::Address(place.parse().unwrap()) };
    Frontend { place, protocol: Protocol::Tcp, port }
}

pub fn udp(frontend: Frontend) -> Frontend {
    Frontend { protocol: Protocol::Udp, ..frontend }
}

pub fn pods(which: &[u8]) -> Vec<SocketAddr> {
    which.iter().map(|i| SocketAddr::from(([10, 244, 0, 10 + i], 8080))).collect()
}

pub fn forward(which: &[u8], masquerade: Masquerade) -> Forward {
    Forward { endpoints: pods(which), masquerade, affinity: None, insiders: None }
}

pub fn target(forward: Forward) -> Target {
    let hairpins = forward.endpoints.iter().map(SocketAddr::ip).collect();
    Target { action: Action::Forward(forward), cluster_ip: true, hairpins, sources: vec![] }
}
