//! What rules tell of packets: the messages of a netfilter log group ([`crate::Log`] with a group).
//!
//! Without a listener the kernel forgets such a message at once, so a rule that logs costs next to nothing when nobody
//! looks. One listener a group and network namespace. Wire format: `include/uapi/linux/netfilter/nfnetlink_log.h`.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use crate::conntrack::Tuple;
use crate::error::Error;
use crate::socket::{Socket, errno};
use crate::wire::{Attrs, Buffer, Message, Messages};

const SUBSYSTEM: u16 = 4 << 8;
const MSG_PACKET: u16 = SUBSYSTEM;
const MSG_CONFIG: u16 = SUBSYSTEM | 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TIMEOUT: u16 = 4;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
/// Headers are enough.
const COPIED: u32 = 128;
/// Messages are gathered for so many hundredths of a second.
const GATHERED: u32 = 5;

/// A packet that a rule told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// What the rule says with it.
    pub prefix: String,
    /// Source, destination (ports are 0 where the protocol has none) and protocol as the rule saw them.
    pub tuple: Tuple,
}

/// The listener of a group.
#[derive(Debug)]
pub struct Listener(Socket);

impl Listener {
    /// Listens to a group in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no nfnetlink_log, or somebody listens already.
    pub fn open(group: u16) -> Result<Self, Error> {
        let socket = Socket::open()?;
        socket.may_lose()?;
        let mut listener = Self(socket);
        listener.configure(group, |b| {
            b.attr(CONFIG_COMMAND, &[BIND]);
            let mut mode = COPIED.to_be_bytes().to_vec();
            mode.extend([COPY_PACKET, 0]);
            b.attr(CONFIG_MODE, &mode);
            b.u32(CONFIG_TIMEOUT, GATHERED);
        })?;
        Ok(listener)
    }

    fn configure(&mut self, group: u16, fill: impl FnOnce(&mut Buffer)) -> Result<(), Error> {
        let socket = &mut self.0;
        socket.seq = socket.seq.wrapping_add(1);
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut request = Buffer::default();
        let start = request.message(MSG_CONFIG, flags, socket.seq, libc::AF_UNSPEC as u8, group);
        fill(&mut request);
        request.end_message(start);
        socket.send(&request.bytes)?;
        let (seq, mut code) = (socket.seq, None);
        socket.drain(|message| {
            if message.kind == libc::NLMSG_ERROR as u16 && message.seq == seq {
                code = Some(errno(&message));
            }
        })?;
        match code {
            Some(0) => Ok(()),
            Some(code) => Err(Error::Netlink {
                call: "listen to a log group",
                source: std::io::Error::from_raw_os_error(code),
            }),
            None => Err(Error::Answer("no acknowledgement of a log group")),
        }
    }

    /// Everything that waits; what came too fast is lost.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn read(&self, mut each: impl FnMut(Packet)) -> Result<(), Error> {
        self.0.datagrams(|datagram| packets(datagram).for_each(&mut each))
    }
}

/// The packets that a datagram of the kernel's tells of.
pub fn packets(datagram: &[u8]) -> impl Iterator<Item = Packet> {
    Messages(datagram).filter_map(|message| packet(&message))
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn packet(message: &Message<'_>) -> Option<Packet> {
    if message.kind != MSG_PACKET {
        return None;
    }
    let attrs = message.payload.get(4..)?;
    let prefix = Attrs::find(attrs, PREFIX).unwrap_or_default();
    Some(Packet {
        prefix: String::from_utf8_lossy(prefix).trim_end_matches('\0').to_owned(),
        tuple: headers(Attrs::find(attrs, PAYLOAD)?)?,
    })
}

/// Addresses, protocol and ports at the head of a packet.
fn headers(bytes: &[u8]) -> Option<Tuple> {
    let (src, dst, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
            let header = usize::from(bytes.first()? & 15) * 4;
            (address(12)?, address(16)?, *bytes.get(9)?, bytes.get(header..)?)
        }
        6 => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
            // Extension headers before a layer 4 header are rare; such a packet is told without its ports.
            (address(8)?, address(24)?, *bytes.get(6)?, bytes.get(40..)?)
        }
        _ => return None,
    };
    let has_ports = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP].contains(&i32::from(protocol));
    let port = |at: usize| {
        let bytes = rest.get(at..at + 2).filter(|_| has_ports);
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    Some(Tuple { src: SocketAddr::new(src, port(0)), dst: SocketAddr::new(dst, port(2)), protocol })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn headers_of_both_families_and_of_nonsense() {
        let mut four = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        four.extend([0x0f, 0xa0, 0, 80]);
        let tuple = headers(&four).unwrap();
        assert_eq!(
            (tuple.src.to_string(), tuple.dst.to_string()),
            ("10.0.0.1:4000".into(), "10.0.0.2:80".into())
        );
        let mut six = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        six.extend([0; 15]);
        six.push(1);
        six.extend([0; 15]);
        six.extend([2, 0, 53, 0, 54]);
        let tuple = headers(&six).unwrap();
        assert_eq!((tuple.src.to_string(), tuple.dst.to_string()), ("[::1]:53".into(), "[::2]:54".into()));
        for short in 0..four.len() {
            if let Some(tuple) = headers(&four[..short]) {
                assert!(short >= 20 && (tuple.dst.port() == 0 || short == four.len()), "{short}");
            }
        }
        assert_eq!(headers(&[0x15; 60]), None);
    }
}
