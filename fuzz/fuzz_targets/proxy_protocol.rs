//! PROXY protocol headers: no bytes make a panic or are read beyond the header; a header that says who is there is read as
//! that, and what follows it is left.
#![no_main]

use std::net::SocketAddr;

use futures::FutureExt;
use ingress::proxy_protocol::read;

fn read_now(bytes: &mut &[u8]) -> Option<std::io::Result<Option<SocketAddr>>> {
    read(bytes).now_or_never()
}

fn version2(source: SocketAddr, target: SocketAddr, tail: &[u8]) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let (kind, addresses) = match (source, target) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => (0x11, [&a.ip().octets()[..], &b.ip().octets()].concat()),
        (a, b) => {
            let octets = |address: SocketAddr| match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(ip) => ip.octets(),
            };
            (0x21, [octets(a), octets(b)].concat())
        }
    };
    out.push(kind);
    out.extend(u16::try_from(addresses.len() + 4 + tail.len()).unwrap().to_be_bytes());
    out.extend(addresses);
    out.extend(source.port().to_be_bytes());
    out.extend(target.port().to_be_bytes());
    out.extend(tail);
    out
}

libfuzzer_sys::fuzz_target!(|input: (Vec<u8>, SocketAddr, SocketAddr, Vec<u8>)| {
    let (bytes, source, target, rest) = input;
    let mut left = &bytes[..];
    let outcome = read_now(&mut left).expect("bytes in memory need no waiting");
    if outcome.is_ok() {
        assert!(bytes.len() - left.len() <= 16 + 4096);
    }
    let bare = |a: SocketAddr| SocketAddr::new(a.ip(), a.port());
    let tail = &rest[..rest.len().min(64)];
    let mut whole = version2(source, target, tail);
    whole.extend_from_slice(&rest);
    let mut left = &whole[..];
    let found = read_now(&mut left).unwrap().unwrap().unwrap();
    assert_eq!((found.port(), found.ip().to_canonical()), (source.port(), bare(source).ip().to_canonical()));
    assert_eq!(left, rest);
    if source.is_ipv4() == target.is_ipv4() {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.ip(), target.ip());
        let line = format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), target.port());
        let whole = [line.as_bytes(), &rest].concat();
        let mut left = &whole[..];
        assert_eq!(read_now(&mut left).unwrap().unwrap(), Some(bare(source)), "{line:?}");
        assert_eq!(left, rest);
    }
});
