//! Gratuitous ARP (RFC 5227, section 3): tells the neighbours on a link that an IPv4 address is here from now on, so that
//! those who remember another node's hardware address for it do not go on sending there.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};

const ETHERNET: [u8; 2] = [0, 1];
const IPV4: [u8; 2] = [8, 0];
const REQUEST: [u8; 2] = [0, 1];
const EVERYBODY: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];

/// A voice on one link.
pub(crate) struct Announcer {
    socket: OwnedFd,
    link: u32,
    mac: [u8; 6],
}

impl Announcer {
    /// On a link of the calling thread's network namespace.
    pub fn open(link: u32, mac: [u8; 6]) -> Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let socket = socket.map_err(|e| Error::system("open a packet socket", e))?;
        Ok(Self { socket, link, mac })
    }

    /// Says that the address is here.
    pub fn announce(&self, address: Ipv4Addr) -> Result<()> {
        let packet = packet(self.mac, address);
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ARP as u16).to_be(),
            sll_ifindex: i32::try_from(self.link).unwrap_or(0),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: EVERYBODY,
        };
        // SAFETY: the pointers and lengths describe `packet` and `to`, which outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                std::ptr::from_ref(&to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(Error::system(format!("announce {address}"), io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// A question for our own address, which is how it is announced.
fn packet(mac: [u8; 6], address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    let parts: [&[u8]; 8] =
        [&ETHERNET, &IPV4, &[6, 4], &REQUEST, &mac, &address.octets(), &[0; 6], &address.octets()];
    let bytes = parts.into_iter().flatten();
    packet.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_the_address_twice() {
        let packet = packet([2, 0, 0, 0, 0, 9], Ipv4Addr::new(192, 168, 49, 200));
        assert_eq!(
            packet,
            [
                0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 168, 49, 200, 0, 0, 0, 0, 0, 0, 192, 168, 49,
                200
            ]
        );
    }
}
