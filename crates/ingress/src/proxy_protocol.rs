//! The PROXY protocol, versions 1 and 2, as HAProxy describes it: who a load balancer speaks for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 1, with its end.
const LINE: usize = 107;

/// Reads the header; whom it names, or nobody where the load balancer speaks for itself.
///
/// # Errors
/// A connection that does not begin with it: whoever may reach the port must speak it.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut start = [0; 12];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return version2(stream).await;
    }
    if !start.starts_with(b"PROXY ") {
        return Err(bad("it does not begin with the PROXY protocol"));
    }
    // Byte by byte, as what follows the line is not ours to read.
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LINE {
            return Err(bad("its line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    version1(&line).ok_or_else(|| bad("its line is no good"))
}

fn version1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let text = std::str::from_utf8(line).ok()?.trim_end();
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Some(None),
        ["PROXY", "TCP4" | "TCP6", source, _, port, _] => {
            Some(Some(SocketAddr::new(source.parse().ok()?, port.parse().ok()?)))
        }
        _ => None,
    }
}

async fn version2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if length > 4096 {
        return Err(bad("its header is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    if head[0] >> 4 != 2 {
        return Err(bad("its version is none"));
    }
    let port = |at: usize| rest.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let found = match (head[0] & 15, head[1]) {
        // LOCAL: the load balancer's own check.
        (0, _) => return Ok(None),
        (1, 0x11) => {
            let ip = rest.get(..4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(Ipv4Addr::from);
            ip.zip(port(8)).map(|(ip, port)| SocketAddr::new(IpAddr::V4(ip), port))
        }
        (1, 0x21) => {
            let ip = rest.get(..16).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(Ipv6Addr::from);
            ip.zip(port(32)).map(|(ip, port)| SocketAddr::new(IpAddr::V6(ip), port))
        }
        (1, _) => return Ok(None),
        _ => return Err(bad("its command is none")),
    };
    found.map(Some).ok_or_else(|| bad("its addresses are missing"))
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    async fn of(bytes: &[u8]) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let mut rest = bytes;
        let found = read(&mut rest).await?;
        Ok((found, rest.to_vec()))
    }

    #[tokio::test]
    async fn both_versions() {
        let (found, rest) = of(b"PROXY TCP4 1.2.3.4 5.6.7.8 99 80\r\nGET").await.unwrap();
        assert_eq!((found, &rest[..]), (Some("1.2.3.4:99".parse().unwrap()), &b"GET"[..]));
        assert_eq!(of(b"PROXY UNKNOWN\r\n").await.unwrap().0, None);
        let mut two = SIGNATURE.to_vec();
        two.extend([0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 0, 99, 0, 80]);
        two.extend(b"GET");
        let (found, rest) = of(&two).await.unwrap();
        assert_eq!((found, &rest[..]), (Some("1.2.3.4:99".parse().unwrap()), &b"GET"[..]));
        let mut six = SIGNATURE.to_vec();
        six.extend([0x21, 0x21, 0, 36]);
        six.extend([0; 15]);
        six.push(1);
        six.extend([0; 16]);
        six.extend([0, 99, 0, 80]);
        assert_eq!(of(&six).await.unwrap().0, Some("[::1]:99".parse().unwrap()));
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(of(&local).await.unwrap().0, None);
        for bad in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 x y 1 2\r\n", b"PROXY TCP4 1.2.3.4"] {
            assert!(of(bad).await.is_err());
        }
        assert!(of(format!("PROXY UNKNOWN {}\r\n", "x".repeat(200)).as_bytes()).await.is_err());
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(mut bytes: Vec<u8>, signed: bool) {
            if signed {
                bytes.splice(0..0, SIGNATURE);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(of(&bytes));
        }
    }
}
