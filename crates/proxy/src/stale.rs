//! UDP connections that translation has left behind.
//!
//! UDP has no end of a connection: a client that keeps its source port keeps its entry, and with it an endpoint that
//! is gone, or the untranslated path of a time without endpoints. After each commit such entries of the changed
//! frontends are deleted, so that the next packet is translated anew.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use nft::conntrack::{self, Entry, IpFamily};

use crate::model::{Frontend, Ip, Place, Protocol};
use crate::sync::Kernel;

/// What entries of the watched frontends may point to.
#[derive(Debug, Default)]
struct Watched {
    addresses: HashMap<SocketAddr, HashSet<SocketAddr>>,
    node_ports: HashMap<(Ip, u16), HashSet<SocketAddr>>,
    node: HashSet<IpAddr>,
}

impl Watched {
    /// Of these frontends, as the kernel has them now.
    fn new<'a>(frontends: impl Iterator<Item = &'a Frontend>, kernel: &Kernel, node: &[IpAddr]) -> Self {
        let mut watched = Self { node: node.iter().copied().collect(), ..Self::default() };
        for frontend in frontends.filter(|f| f.protocol == Protocol::Udp) {
            let endpoints = kernel.placed(frontend).map(|p| p.endpoints().collect()).unwrap_or_default();
            match frontend.place {
                Place::Address(addr) => {
                    watched.addresses.insert(SocketAddr::new(addr, frontend.port), endpoints);
                }
                Place::Node(ip) => {
                    watched.node_ports.insert((ip, frontend.port), endpoints);
                }
            }
        }
        watched
    }

    fn has(&self, ip: Ip) -> bool {
        self.addresses.keys().any(|addr| Ip::of(addr.ip()) == ip)
            || self.node_ports.keys().any(|(family, _)| *family == ip)
    }

    fn is_stale(&self, entry: &Entry) -> bool {
        let dst = entry.original.dst;
        let own = self.node.contains(&dst.ip()) || dst.ip().is_loopback();
        let endpoints = self
            .addresses
            .get(&dst)
            .or_else(|| self.node_ports.get(&(Ip::of(dst.ip()), dst.port())).filter(|_| own));
        endpoints.is_some_and(|endpoints| !endpoints.contains(&entry.reply.src))
    }

    /// Deletes the stale entries of all families; gives their number.
    fn clean(&self, socket: &mut nft::Socket) -> Result<usize, nft::Error> {
        let mut count = 0;
        for (ip, family) in [(Ip::V4, IpFamily::V4), (Ip::V6, IpFamily::V6)] {
            if self.has(ip) {
                count +=
                    conntrack::delete(socket, family, Protocol::Udp.number(), |entry| self.is_stale(entry))?;
            }
        }
        Ok(count)
    }
}

/// Deletes the UDP connections of these frontends that point to no endpoint of theirs; gives their number.
///
/// # Errors
/// When the kernel's connection tracking refuses.
pub fn stale_connections<'a>(
    frontends: impl IntoIterator<Item = &'a Frontend>,
    kernel: &Kernel,
    node: &[IpAddr],
    socket: &mut nft::Socket,
) -> Result<usize, nft::Error> {
    Watched::new(frontends.into_iter(), kernel, node).clean(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nft::conntrack::Tuple;

    use super::*;

    fn entry(dst: &str, answered_by: &str) -> Entry {
        let client: SocketAddr = "10.244.0.9:4000".parse().unwrap();
        let (dst, by) = (dst.parse().unwrap(), answered_by.parse().unwrap());
        Entry {
            original: Tuple { src: client, dst, protocol: 17 },
            reply: Tuple { src: by, dst: client, protocol: 17 },
        }
    }

    #[test]
    fn entries_of_watched_frontends_are_stale_unless_an_endpoint_answers() {
        let mut watched = Watched { node: ["192.168.49.2".parse().unwrap()].into(), ..Watched::default() };
        let endpoints: HashSet<SocketAddr> = ["10.244.0.2:53".parse().unwrap()].into();
        watched.addresses.insert("10.96.0.10:53".parse().unwrap(), endpoints.clone());
        watched.node_ports.insert((Ip::V4, 30053), endpoints);
        assert!(!watched.is_stale(&entry("10.96.0.10:53", "10.244.0.2:53")));
        assert!(watched.is_stale(&entry("10.96.0.10:53", "10.244.0.3:53")), "an endpoint that left");
        assert!(watched.is_stale(&entry("10.96.0.10:53", "10.96.0.10:53")), "never translated");
        assert!(!watched.is_stale(&entry("10.96.0.10:54", "10.96.0.10:54")), "another port");
        assert!(watched.is_stale(&entry("192.168.49.2:30053", "10.244.0.3:53")));
        assert!(!watched.is_stale(&entry("1.1.1.1:30053", "1.1.1.1:30053")), "not an address of the node");
    }
}
