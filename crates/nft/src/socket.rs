//! A netfilter netlink socket: sends a batch, collects what the kernel says about it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{NetlinkAddr, bind, getsockname};

use crate::error::Error;
use crate::wire::{Message, Messages};

const NETLINK_EXT_ACK: libc::c_int = 11;
const NETLINK_CAP_ACK: libc::c_int = 10;

/// A netlink socket in the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// Send buffer already asked for; a batch must fit into it as a whole.
    send_buffer: usize,
    pub(crate) seq: u32,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink or refuses a socket.
    pub fn open() -> Result<Self, Error> {
        // SAFETY: a plain socket call; the result is checked before it is owned.
        let raw = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
        };
        if raw < 0 {
            return Err(Error::last("socket"));
        }
        // SAFETY: `raw` is a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // A port of the kernel's choice.
        bind(raw, &NetlinkAddr::new(0, 0)).map_err(|e| Error::Netlink { call: "bind", source: e.into() })?;
        let mut socket = Self { fd, send_buffer: 0, seq: 1 };
        // Kernels without these still work: errors only carry less detail.
        let _ = socket.option(libc::SOL_NETLINK, NETLINK_EXT_ACK, 1);
        let _ = socket.option(libc::SOL_NETLINK, NETLINK_CAP_ACK, 1);
        socket.grow_receive(4 << 20);
        socket.grow_send(1 << 20);
        Ok(socket)
    }

    /// The port that the kernel knows it by, and names it by in what it tells others.
    pub(crate) fn port(&self) -> Result<u32, Error> {
        let address = getsockname::<NetlinkAddr>(self.fd.as_raw_fd());
        address.map(|a| a.pid()).map_err(|e| Error::Netlink { call: "getsockname", source: e.into() })
    }

    pub(crate) fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the pointer and its length describe `value`, which outlives the call.
        let done = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), size)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Joins a multicast group of the kernel's.
    pub(crate) fn join(&self, group: libc::c_int) -> Result<(), Error> {
        const ADD_MEMBERSHIP: libc::c_int = 1;
        let joined = self.option(libc::SOL_NETLINK, ADD_MEMBERSHIP, group);
        joined.map_err(|source| Error::Netlink { call: "join a group", source })
    }

    /// For sockets that hear the kernel: what does not fit is lost without an error.
    pub(crate) fn may_lose(&self) -> Result<(), Error> {
        const NO_ENOBUFS: libc::c_int = 5;
        let set = self.option(libc::SOL_NETLINK, NO_ENOBUFS, 1);
        set.map_err(|source| Error::Netlink { call: "setsockopt", source })
    }

    fn grow_receive(&mut self, bytes: usize) {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        if self.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
            let _ = self.option(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
        }
    }

    /// Makes room for one datagram of `bytes`; without the right to force it, as much as the system allows.
    fn grow_send(&mut self, bytes: usize) {
        if bytes <= self.send_buffer {
            return;
        }
        let wanted = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        if self.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
            let _ = self.option(libc::SOL_SOCKET, libc::SO_SNDBUF, wanted);
        }
        self.send_buffer = bytes;
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        // The kernel accounts some bytes of its own beside the payload.
        self.grow_send(bytes.len() + bytes.len() / 8 + 4096);
        loop {
            // SAFETY: the pointer and length describe `bytes`; an unconnected netlink socket sends to the kernel.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent >= 0 {
                return if sent as usize == bytes.len() { Ok(()) } else { Err(Error::Answer("short send")) };
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return Err(Error::last("send"));
            }
        }
    }

    /// One datagram, or `None` when nothing (more) waits and `wait` is false.
    fn receive(&self, buffer: &mut [u8], wait: bool) -> Result<Option<usize>, Error> {
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            // SAFETY: the pointer and length describe `buffer`.
            let got =
                unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
            if got >= 0 {
                return Ok(Some(got as usize));
            }
            match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(Error::last("receive")),
            }
        }
    }

    /// Every datagram that already waits.
    pub(crate) fn datagrams(&self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut buffer = vec![0; 32 << 10];
        while let Some(len) = self.receive(&mut buffer, false)? {
            each(&buffer[..len]);
        }
        Ok(())
    }

    /// Every message that already waits. Requests are carried out inside `send`, so their answers are there.
    pub(crate) fn drain(&self, mut each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        self.datagrams(|datagram| Messages(datagram).for_each(&mut each))
    }

    /// The messages of a dump, up to its end or its error.
    pub(crate) fn dump(&self, seq: u32, mut each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Some(len) = self.receive(&mut buffer, true)? else { continue };
            for message in Messages(&buffer[..len]).filter(|m| m.seq == seq) {
                if message.kind == libc::NLMSG_DONE as u16 || message.kind == libc::NLMSG_ERROR as u16 {
                    return match errno(&message) {
                        0 => Ok(()),
                        code => {
                            Err(Error::Netlink { call: "dump", source: io::Error::from_raw_os_error(code) })
                        }
                    };
                }
                each(message);
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The error number (positive, 0 for success) at the head of an NLMSG_ERROR or NLMSG_DONE message.
pub(crate) fn errno(message: &Message<'_>) -> i32 {
    let code = message.payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    code.checked_neg().unwrap_or(libc::EIO)
}
