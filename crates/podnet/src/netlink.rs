//! A blocking rtnetlink socket: several changes go in one system call and are answered one by one.
//!
//! Blocking and without a runtime, because a Pod's network is a handful of requests that the kernel answers while it is
//! asked, often from a thread that visits a namespace for that alone. The socket stays in the namespace in which it was
//! opened, whichever thread uses it later.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::error::{Error, Result};
use crate::message::{Request, get_link};

const BUFFER: usize = 256 * 1024;
/// Dumps that the kernel says changed underneath are repeated this often.
const DUMPS: usize = 5;

pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What we want to know of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub mtu: u32,
    /// Of Ethernet-like links.
    pub mac: Option<[u8; 6]>,
    /// Index of the other end of a veth pair, in its namespace.
    pub peer: Option<u32>,
    /// Index of the bridge that it is a port of.
    pub bridge: Option<u32>,
}

impl Link {
    pub fn read(message: &LinkMessage) -> Self {
        let mut link = Self { index: message.header.index, ..Self::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                LinkAttribute::Controller(bridge) => link.bridge = Some(*bridge),
                _ => {}
            }
        }
        link
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let open = || {
            let protocol = SockProtocol::NetlinkRoute;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|e: Errno| Error::system("open netlink socket", e))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Makes changes in order. All are tried; the first refusal that matters is the error.
    pub fn apply(&mut self, requests: &[Request]) -> Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        for request in requests {
            self.put(&mut bytes, request.message.clone(), request.flags | NLM_F_ACK);
        }
        self.send(&bytes)?;
        let mut answers: BTreeMap<usize, Option<Errno>> = BTreeMap::new();
        while answers.len() < requests.len() {
            for message in self.receive("change links")? {
                let at = message.header.sequence_number.wrapping_sub(first) as usize;
                if let NetlinkPayload::Error(error) = message.payload
                    && at < requests.len()
                {
                    let errno = Some(error.raw_code().abs()).filter(|code| *code != 0).map(Errno::from_raw);
                    answers.insert(at, errno);
                }
            }
        }
        for (request, errno) in requests.iter().zip(answers.into_values()) {
            if let Some(errno) = errno.filter(|errno| !request.fine.contains(errno)) {
                return Err(Error::Refused { what: request.what.clone(), errno });
            }
        }
        Ok(())
    }

    /// One link, if there is one of that name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut bytes = Vec::new();
        let sequence = self.put(&mut bytes, get_link(name), NLM_F_ACK);
        self.send(&bytes)?;
        let mut found = None;
        loop {
            for message in self.receive("get link")? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                        found = Some(Link::read(&link))
                    }
                    NetlinkPayload::Error(error) => match Errno::from_raw(error.raw_code().abs()) {
                        Errno::ENODEV => return Ok(None),
                        _ if error.raw_code() == 0 => return Ok(found),
                        errno => return Err(Error::Refused { what: format!("get link {name}"), errno }),
                    },
                    _ => {}
                }
            }
        }
    }

    /// Everything of a kind.
    pub fn dump(
        &mut self,
        what: &'static str,
        question: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS {
            let mut bytes = Vec::new();
            let sequence = self.put(&mut bytes, question.clone(), NLM_F_DUMP);
            self.send(&bytes)?;
            if let Some(answers) = self.collect(what, sequence)? {
                return Ok(answers);
            }
        }
        Err(Error::Protocol { what: what.into(), detail: "the tables never stand still".into() })
    }

    fn collect(&mut self, what: &'static str, sequence: u32) -> Result<Option<Vec<RouteNetlinkMessage>>> {
        let (mut answers, mut consistent) = (Vec::new(), true);
        loop {
            for message in self.receive(what)? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(answers)),
                    NetlinkPayload::Error(error) => {
                        let errno = Errno::from_raw(error.raw_code().abs());
                        return Err(Error::Refused { what: what.into(), errno });
                    }
                    _ => {}
                }
            }
        }
    }

    fn put(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags | NLM_F_REQUEST;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        if let Some(room) = bytes.get_mut(start..) {
            message.serialize(room);
        }
        self.sequence
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), bytes, MsgFlags::empty());
        sent.map(drop).map_err(|e| Error::system("send to netlink", e))
    }

    /// The messages of one datagram; what the decoder does not know is passed over.
    fn receive(&mut self, what: &'static str) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let n = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())
            .map_err(|e| Error::system(format!("{what}: receive from netlink"), e))?;
        let mut rest = self.buffer.get(..n).unwrap_or_default();
        let mut messages = Vec::new();
        while let Ok(header) = NetlinkBuffer::new_checked(rest) {
            let length = header.length() as usize;
            match NetlinkMessage::deserialize(rest) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!("{what}: a message was not understood: {error}"),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}
