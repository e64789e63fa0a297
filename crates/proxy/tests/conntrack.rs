//! conntrack.go: connections that outlive what they were translated to, packets of no connection; and SCTP, whose packets
//! are made by hand because translation needs no more of the kernel than connection tracking.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::time::Duration;

use proxy::model::*;
use socket2::{Domain, Protocol as Number, SockAddr, Socket, Type};
use world::*;

/// UDP clients that keep their port follow their Service: by its cluster address, from a Pod and from the node itself (a
/// Pod on the host's network), by the node's port, and with internalTrafficPolicy Local past a third Pod elsewhere.
#[test]
fn a_udp_client_with_a_fixed_port_follows_its_service() {
    let mut world = World::new();
    let (front, node_port) = (udp(at("10.96.0.10", 53)), udp(at("node", 30053)));
    let inside = udp(at("10.96.0.11", 53));
    let all = |which: &[u8]| {
        vec![
            (front, target(forward(which, Masquerade::Outsiders))),
            (node_port, target(forward(which, Masquerade::Always))),
            (inside, target(forward(which, Masquerade::Outsiders))),
        ]
    };
    let client = world.pods[2].udp_socket("10.244.0.13:4000");
    let outside = world.client.udp_socket("192.168.49.1:4000");
    let local = world.pods[2].udp_socket("10.244.0.13:4001");
    let host = world.node.udp_socket("192.168.49.2:4000");
    let other = world.client.udp_socket("192.168.49.1:4001");
    // Without the Service the packet reaches the node's own closed port and leaves an entry behind.
    assert_eq!(ask(&outside, "192.168.49.2:30053").unwrap_err(), ErrorKind::ConnectionRefused);
    for (endpoint, stale) in [(1, 1), (2, 4), (1, 4)] {
        world.set("dns", all(&[endpoint]));
        let changed = [&front, &node_port, &inside];
        let removed = proxy::stale_connections(changed, &world.kernel, &view().addresses, &mut world.socket);
        assert_eq!(removed.unwrap(), stale);
        let expected = endpoint.to_string();
        assert_eq!(ask(&client, "10.96.0.10:53").unwrap()[..1], expected);
        assert_eq!(ask(&outside, "192.168.49.2:30053").unwrap()[..1], expected);
        assert_eq!(ask(&local, "10.96.0.11:53").unwrap()[..1], expected);
        assert_eq!(ask(&host, "10.96.0.10:53").unwrap()[..1], expected);
        assert_eq!(ask(&other, "192.168.49.2:9").unwrap_err(), ErrorKind::ConnectionRefused);
    }
}

/// A socket for packets of a protocol as they are, without the IP header when sending.
fn raw(ns: &Ns, protocol: i32) -> Socket {
    let socket = ns.within(|| Socket::new(Domain::IPV4, Type::RAW, Some(Number::from(protocol))).unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    socket
}

fn send(socket: &Socket, to: [u8; 4], packet: &[u8]) {
    let to = SockAddr::from(std::net::SocketAddrV4::new(Ipv4Addr::from(to), 0));
    assert_eq!(socket.send_to(packet, &to).unwrap(), packet.len());
}

/// The next packet: who it is from, and what is in it after the IP header.
fn next(socket: &Socket) -> Option<([u8; 4], Vec<u8>)> {
    let mut buffer = [0; 256];
    let length = (&mut &*socket).read(&mut buffer).ok()?;
    let header = usize::from(buffer[0] & 15) * 4;
    Some((buffer[12..16].try_into().unwrap(), buffer[header..length].to_vec()))
}

/// A TCP header of these ports and flags, with its checksum.
fn segment(from: [u8; 4], to: [u8; 4], ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut bytes = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &[0, 0, 0, 7, 0, 0, 0, 9]].concat();
    bytes.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&from[..], &to, &[0, 6, 0, 20], &bytes].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A packet of no connection is dropped on its way, and not answered with a reset by whom it reaches.
#[test]
fn packets_of_no_connection_are_dropped() {
    let mut world = World::new();
    let (from, to) = ([10, 244, 0, 11], [10, 244, 0, 12]);
    let (sender, receiver) = (raw(&world.pods[0], 6), raw(&world.pods[1], 6));
    // An answer to nothing: SYN and ACK.
    let stray = segment(from, to, (8080, 45_000), 0x12);
    send(&sender, to, &stray);
    assert_eq!(next(&receiver), None);
    // It is the rules that drop it.
    world.node.sh("nft delete table ip skiff-proxy");
    send(&sender, to, &stray);
    assert_eq!(next(&receiver), Some((from, stray)));
    world.kernel.replace(&mut world.socket, &world.model).unwrap();
    assert_eq!(world.pods[1].tcp("10.244.0.11:8080").unwrap(), "1 10.244.0.12", "all else goes on");
}

/// CRC32c, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// INIT (kind 1) or INIT ACK (kind 2) of SCTP.
fn init(kind: u8, ports: (u16, u16), tag: u32) -> Vec<u8> {
    let mut bytes =
        [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &tag.to_be_bytes(), &[0; 4]].concat();
    bytes.extend([kind, 0, 0, 20, 0, 0, 0, 42, 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn sctp_is_translated_there_and_back() {
    let mut world = World::new();
    let front = Frontend { protocol: Protocol::Sctp, ..at("10.96.0.7", 5060) };
    world.set("phone", vec![(front, target(forward(&[1], Masquerade::Outsiders)))]);
    let (client, server) = (raw(&world.pods[1], 132), raw(&world.pods[0], 132));
    send(&client, [10, 96, 0, 7], &init(1, (4000, 5060), 0));
    assert_eq!(next(&server), Some(([10, 244, 0, 12], init(1, (4000, 8080), 0))));
    send(&server, [10, 244, 0, 12], &init(2, (8080, 4000), 42));
    assert_eq!(next(&client), Some(([10, 96, 0, 7], init(2, (5060, 4000), 42))));
    // Without endpoints it is dropped before translation, not left to wander off.
    let refuse = Target { action: Action::Refuse, cluster_ip: true, hairpins: vec![], sources: vec![] };
    world.set("phone", vec![(front, refuse)]);
    send(&client, [10, 96, 0, 7], &init(1, (4001, 5060), 0));
    assert_eq!(next(&server), None);
}
