//! What the kernel tells over netlink: bytes of any kind are read without a panic, and a message that says something is read
//! as that.
#![no_main]

use std::net::SocketAddr;

use nft::{conntrack, log};

const NEW: u16 = 1 << 8;
const PACKET: u16 = 4 << 8;

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(payload.len() + 4).unwrap().to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(attributes.len() + 20).unwrap().to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend([0; 10]);
    out.extend([2, 0, 0, 0]);
    out.extend(attributes);
    out
}

fn octets(address: SocketAddr) -> Vec<u8> {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    }
}

fn tuple(kind: u16, tuple: conntrack::Tuple) -> Vec<u8> {
    let first = if tuple.src.is_ipv4() { 1 } else { 3 };
    let ip = [attribute(first, &octets(tuple.src)), attribute(first + 1, &octets(tuple.dst))].concat();
    let ports = [
        attribute(1, &[tuple.protocol]),
        attribute(2, &tuple.src.port().to_be_bytes()),
        attribute(3, &tuple.dst.port().to_be_bytes()),
    ];
    attribute(kind, &[attribute(1, &ip), attribute(2, &ports.concat())].concat())
}

/// A packet's headers.
fn headers(tuple: conntrack::Tuple) -> Vec<u8> {
    let ports = [tuple.src.port().to_be_bytes(), tuple.dst.port().to_be_bytes()].concat();
    let addresses = [octets(tuple.src), octets(tuple.dst)].concat();
    let head = if tuple.src.is_ipv4() {
        vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, tuple.protocol, 0, 0]
    } else {
        vec![0x60, 0, 0, 0, 0, 4, tuple.protocol, 64]
    };
    [head, addresses, ports].concat()
}

libfuzzer_sys::fuzz_target!(|input: (&[u8], SocketAddr, SocketAddr, bool, &str)| {
    let (bytes, src, dst, udp, prefix) = input;
    let _ = (log::packets(bytes).count(), conntrack::news(bytes).count());
    // Inside a well-formed message the bytes come further.
    let _ = log::packets(&message(PACKET, bytes)).count();
    let _ = conntrack::news(&message(NEW, bytes)).count();
    let _ = log::packets(&message(PACKET, &attribute(9, &bytes[..bytes.len().min(60_000)]))).count();
    if src.is_ipv4() != dst.is_ipv4() {
        return;
    }
    let bare = |a: SocketAddr| SocketAddr::new(a.ip(), a.port());
    let one = conntrack::Tuple { src: bare(src), dst: bare(dst), protocol: if udp { 17 } else { 6 } };
    let back = conntrack::Tuple { src: one.dst, dst: one.src, ..one };
    let told = message(NEW, &[tuple(1, one), tuple(2, back)].concat());
    assert_eq!(conntrack::news(&told).collect::<Vec<_>>(), [conntrack::Entry { original: one, reply: back }]);
    let prefix = prefix.trim_end_matches('\0');
    if prefix.len() < 128 {
        let told = message(PACKET, &[attribute(10, prefix.as_bytes()), attribute(9, &headers(one))].concat());
        let packet = log::Packet { prefix: prefix.to_owned(), tuple: one };
        assert_eq!(log::packets(&told).collect::<Vec<_>>(), [packet]);
    }
});
