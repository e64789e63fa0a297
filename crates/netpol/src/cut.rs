//! Ends connections that are no longer allowed: without its entry in connection tracking, the rest of one is judged
//! like a new one or belongs to none.

use std::net::IpAddr;

use nft::Protocol;
use nft::conntrack::{self, Entry, IpFamily};

use crate::desired::Desired;
use crate::permit::Flow;

/// Whether a connection would be refused if it were made now. What the node itself sends is never judged.
fn is_forbidden(entry: &Entry, protocol: Protocol, desired: &Desired, node: &[IpAddr]) -> bool {
    // Who answers is the destination after translation.
    let (src, dst) = (entry.original.src, entry.reply.src);
    let flow = Flow { src: src.ip(), dst: dst.ip(), protocol, port: dst.port() };
    !node.contains(&src.ip()) && !desired.allows(&flow)
}

/// Deletes the connections that are forbidden now; gives their number.
///
/// # Errors
/// When the kernel's connection tracking refuses.
pub fn forbidden(socket: &mut nft::Socket, desired: &Desired, node: &[IpAddr]) -> Result<usize, nft::Error> {
    let mut count = 0;
    for family in [IpFamily::V4, IpFamily::V6] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let stale = |entry: &Entry| is_forbidden(entry, protocol, desired, node);
            count += conntrack::delete(socket, family, protocol.number(), stale)?;
        }
    }
    Ok(count)
}

/// The node's addresses, those of bridges of CNI plugins in the calling thread's network namespace included.
pub fn own_addresses(known: &[IpAddr]) -> Vec<IpAddr> {
    let found = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    known.iter().copied().chain(found).collect()
}
