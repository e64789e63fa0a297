//! A node with nine Pods in network namespaces, and connections of three protocols between them.
//!
//! SCTP is spoken by raw sockets, as few kernels have its own: a connection counts as made when its INIT arrives.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, recv, sendto, socket,
};
use testkit::netns::Netns;

use super::{Cell, PORTS, address, cells};

/// Routed as podnet does it, each Pod serving both ports.
pub struct Cluster {
    pub node: Netns,
    pods: Vec<Netns>,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// One a Pod, so that what it was once allowed is a connection that the kernel still knows.
    clients: Vec<UdpSocket>,
    sctp: Vec<OwnedFd>,
}

impl Cluster {
    pub fn new() -> Self {
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
        let sctp = pods.iter().map(|pod| pod.within(raw_sctp)).collect();
        Self { node, pods, tcp, udp, clients, sctp }
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

    /// The namespace of a Pod.
    pub fn netns(&self, pod: usize) -> &Netns {
        &self.pods[pod]
    }

    /// The TCP server of a Pod at port 80.
    pub fn server(&self, pod: usize) -> &TcpListener {
        &self.tcp[pod * PORTS.len()]
    }

    /// Begins a connection of each kind from each Pod to each other one; datagrams say which case they belong to.
    fn dial(&self, case: u32) -> Vec<(Cell, TcpStream)> {
        let mut dialled = Vec::new();
        for cell in cells() {
            let (from, to, protocol, port) = cell;
            let destination = SocketAddrV4::new(address(to), port);
            match protocol {
                "UDP" => drop(self.clients[from].send_to(&case.to_be_bytes(), destination).unwrap()),
                "SCTP" => init(&self.sctp[from], destination, case),
                _ => {}
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
    pub fn made(&self, case: u32, expected: &BTreeSet<Cell>) -> BTreeSet<Cell> {
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
            for (to, socket) in self.sctp.iter().enumerate() {
                made.extend(arrived(socket, case).into_iter().map(|(from, port)| (from, to, "SCTP", port)));
            }
            if complete.is_none() && made.is_superset(expected) {
                complete = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        made
    }
}

/// Begins a TCP connection without waiting for it.
pub fn begin(to: Ipv4Addr, port: u16) -> TcpStream {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let own: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let begun = connect(own.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, port)));
    assert!(matches!(begun, Ok(()) | Err(Errno::EINPROGRESS)), "{begun:?}");
    TcpStream::from(own)
}

fn receive(socket: &UdpSocket) -> Option<([u8; 4], SocketAddr)> {
    let mut buffer = [0; 4];
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

fn pod_of(address: Ipv4Addr) -> usize {
    usize::from(address.octets()[3]) - 11
}

/// Who answered what was asked in this case.
fn answers(client: &UdpSocket, case: u32) -> Vec<(usize, u16)> {
    let mut answered = Vec::new();
    while let Some((text, peer)) = receive(client) {
        if text == case.to_be_bytes()
            && let SocketAddr::V4(peer) = peer
        {
            answered.push((pod_of(*peer.ip()), peer.port()));
        }
    }
    answered
}

fn raw_sctp() -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // Of the protocols' numbers nix has few; a raw socket of SCTP is made by the C library's call.
    // SAFETY: a plain socket call; the result is checked before it is owned.
    let raw = unsafe {
        nix::libc::socket(nix::libc::AF_INET, nix::libc::SOCK_RAW | flags.bits(), nix::libc::IPPROTO_SCTP)
    };
    assert!(raw >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a fresh descriptor that nobody else owns.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) }
}

/// An INIT chunk (RFC 9260, 3.3.2) whose tag names the case.
fn init(socket: &OwnedFd, to: SocketAddrV4, case: u32) {
    let mut packet = Vec::new();
    packet.extend(4000u16.to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend((case + 1).to_be_bytes());
    packet.extend(65536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    sendto(socket.as_raw_fd(), &packet, &SockaddrIn::from(to), MsgFlags::empty()).unwrap();
}

/// Who sent which INIT of this case.
fn arrived(socket: &OwnedFd, case: u32) -> Vec<(usize, u16)> {
    let mut all = Vec::new();
    let mut buffer = [0; 128];
    loop {
        let len = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => return all,
            Err(error) => panic!("{error}"),
        };
        let packet = &buffer[..len];
        let header = usize::from(packet[0] & 15) * 4;
        if packet[header + 16..header + 20] == (case + 1).to_be_bytes() {
            let from = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap());
            all.push((pod_of(from), u16::from_be_bytes([packet[header + 2], packet[header + 3]])));
        }
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        crc
    })
}
