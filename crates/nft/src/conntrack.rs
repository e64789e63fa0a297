//! Connection tracking: find entries and delete them.
//!
//! UDP has no end of a connection, so an entry outlives the backend it points to and keeps sending there; whoever
//! changes translations deletes the stale entries. The kernel is asked for entries of one protocol (a filter since
//! 5.8; older kernels send all) and each match is deleted by its own tuple, which is safe on every kernel: an
//! incomplete delete request would flush everything on some.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use crate::error::Error;
use crate::socket::{Socket, errno};
use crate::wire::{Attrs, Buffer, Messages};

const SUBSYSTEM: u16 = 1 << 8;
const MSG_GET: u16 = SUBSYSTEM | 1;
const MSG_DELETE: u16 = SUBSYSTEM | 2;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_ON_PROTO_NUM: u32 = 1 << 3;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Where packets come from.
    pub src: SocketAddr,
    /// Where packets go to.
    pub dst: SocketAddr,
    /// Layer 4 protocol.
    pub protocol: u8,
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// As the first packet was sent, before translation.
    pub original: Tuple,
    /// As answers come; its source is the translated destination.
    pub reply: Tuple,
}

/// Family of the entries to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// All entries of a family and a protocol.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn list(socket: &mut Socket, family: IpFamily, protocol: u8) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    dump(socket, family, protocol, |entry, _| entries.push(entry))?;
    Ok(entries)
}

/// Deletes the entries of a family and a protocol that `stale` picks; gives their number.
///
/// An entry that ends by itself meanwhile is no error.
///
/// # Errors
/// When the kernel refuses the dump or a deletion.
pub fn delete(
    socket: &mut Socket,
    family: IpFamily,
    protocol: u8,
    stale: impl Fn(&Entry) -> bool,
) -> Result<usize, Error> {
    let mut requests = Buffer::default();
    let mut count = 0;
    let first = socket.seq.wrapping_add(1);
    dump(socket, family, protocol, |entry, attrs| {
        if stale(&entry) {
            count += 1;
            let start = requests.message(MSG_DELETE, REQUEST, first.wrapping_add(count), number(family), 0);
            // The entry's own tuple, zone and id name exactly this entry, not a later one of the same addresses.
            for (kind, payload) in Attrs(attrs) {
                match kind {
                    TUPLE_ORIG => requests.attr(kind | crate::wire::NESTED, payload),
                    ID | ZONE => requests.attr(kind, payload),
                    _ => {}
                }
            }
            requests.end_message(start);
        }
    })?;
    if count == 0 {
        return Ok(0);
    }
    socket.seq = first.wrapping_add(count);
    socket.send(&requests.bytes)?;
    let mut failed = None;
    socket.drain(|message| {
        if message.kind == libc::NLMSG_ERROR as u16 {
            match errno(&message) {
                0 | libc::ENOENT => {}
                code => failed = Some(code),
            }
        }
    })?;
    match failed {
        None => Ok(count as usize),
        Some(code) => Err(Error::Netlink {
            call: "delete of connections",
            source: std::io::Error::from_raw_os_error(code),
        }),
    }
}

fn number(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => libc::AF_INET as u8,
        IpFamily::V6 => libc::AF_INET6 as u8,
    }
}

fn dump(
    socket: &mut Socket,
    family: IpFamily,
    protocol: u8,
    mut each: impl FnMut(Entry, &[u8]),
) -> Result<(), Error> {
    let mut keep = |message: crate::wire::Message<'_>| {
        let attrs = message.payload.get(4..).unwrap_or(&[]);
        if let Some(entry) = entry(attrs)
            && entry.original.protocol == protocol
        {
            each(entry, attrs);
        }
    };
    match ask(socket, family, Some(protocol), &mut keep) {
        // A kernel that does not know the filter: everything, sifted here. Nothing was sent before the refusal.
        Err(Error::Netlink { call: "dump", .. }) => ask(socket, family, None, &mut keep),
        result => result,
    }
}

fn ask(
    socket: &mut Socket,
    family: IpFamily,
    protocol: Option<u8>,
    each: &mut impl FnMut(crate::wire::Message<'_>),
) -> Result<(), Error> {
    socket.seq = socket.seq.wrapping_add(1);
    let seq = socket.seq;
    let mut request = Buffer::default();
    let start = request.message(MSG_GET, REQUEST | libc::NLM_F_DUMP as u16, seq, number(family), 0);
    if let Some(protocol) = protocol {
        request.nest(TUPLE_ORIG, |b| b.nest(TUPLE_PROTO, |b| b.u8(PROTO_NUM, protocol)));
        request.nest(FILTER, |b| {
            b.attr(FILTER_ORIG_FLAGS, &FILTER_ON_PROTO_NUM.to_ne_bytes());
            b.attr(FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
        });
    }
    request.end_message(start);
    socket.drain(|_| {})?;
    socket.send(&request.bytes)?;
    socket.dump(seq, each)
}

fn entry(attrs: &[u8]) -> Option<Entry> {
    let original = tuple(Attrs::find(attrs, TUPLE_ORIG)?)?;
    let reply = tuple(Attrs::find(attrs, TUPLE_REPLY)?)?;
    Some(Entry { original, reply })
}

/// Hears of each connection as its first packet has passed. While nobody listens the kernel makes no such messages.
#[derive(Debug)]
pub struct NewConnections(Socket);

impl NewConnections {
    /// Listens in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no connection-tracking events.
    pub fn open() -> Result<Self, Error> {
        const GROUP_NEW: libc::c_int = 1;
        let socket = Socket::open()?;
        socket.may_lose()?;
        socket.join(GROUP_NEW)?;
        Ok(Self(socket))
    }

    /// Everything that waits; what came too fast is lost.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn read(&self, mut each: impl FnMut(Entry)) -> Result<(), Error> {
        self.0.datagrams(|datagram| news(datagram).for_each(&mut each))
    }
}

/// The new connections that a datagram of the kernel's tells of.
pub fn news(datagram: &[u8]) -> impl Iterator<Item = Entry> {
    let new = Messages(datagram).filter(|message| message.kind == SUBSYSTEM);
    new.filter_map(|message| message.payload.get(4..).and_then(entry))
}

impl AsRawFd for NewConnections {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, proto) = (Attrs::find(bytes, TUPLE_IP)?, Attrs::find(bytes, TUPLE_PROTO)?);
    // Addresses: 1 and 2 are IPv4 source and destination, 3 and 4 IPv6.
    let addr = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = Attrs::find(ip, v4) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?));
        }
        Some(IpAddr::from(<[u8; 16]>::try_from(Attrs::find(ip, v6)?).ok()?))
    };
    // Protocols without ports, such as ICMP, have none here.
    let port =
        |kind: u16| Attrs::find(proto, kind).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some(Tuple {
        src: SocketAddr::new(addr(1, 3)?, port(2)),
        dst: SocketAddr::new(addr(2, 4)?, port(3)),
        protocol: *Attrs::find(proto, PROTO_NUM)?.first()?,
    })
}
