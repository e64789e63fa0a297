//! Datagrams many at a time (recvmmsg(2), sendmmsg(2)): at a hundred thousand questions a second, system calls are what
//! an answer costs.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams at a time.
pub(crate) const MOST: usize = 32;
/// The largest question; longer ones are cut, which makes them malformed.
const SIZE: usize = 4096;

/// Room for questions that arrive together, and for who asks.
pub(crate) struct Batch {
    buffers: Box<[[u8; SIZE]; MOST]>,
    lens: [usize; MOST],
    peers: Box<[libc::sockaddr_storage; MOST]>,
    peer_lens: [libc::socklen_t; MOST],
}

impl Default for Batch {
    fn default() -> Self {
        // SAFETY: a sockaddr_storage of zeroes is one of no family.
        let none: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
        Self {
            buffers: Box::new([[0; SIZE]; MOST]),
            lens: [0; MOST],
            peers: Box::new([none; MOST]),
            peer_lens: [0; MOST],
        }
    }
}

impl Batch {
    /// Waits for questions; gives how many there are.
    pub(crate) async fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        socket.async_io(Interest::READABLE, || self.try_receive(socket)).await
    }

    fn try_receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut parts: [libc::iovec; MOST] = std::array::from_fn(|i| libc::iovec {
            iov_base: self.buffers[i].as_mut_ptr().cast(),
            iov_len: SIZE,
        });
        let mut headers: [libc::mmsghdr; MOST] = std::array::from_fn(|i| {
            header(&raw mut self.peers[i], size_of::<libc::sockaddr_storage>() as u32, &raw mut parts[i])
        });
        // SAFETY: each header points to a buffer, an address and an iovec that outlive the call and are nobody else's.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                MOST as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for (i, header) in headers[..got].iter().enumerate() {
            self.lens[i] = header.msg_len as usize;
            self.peer_lens[i] = header.msg_hdr.msg_namelen;
        }
        Ok(got)
    }

    /// A question of those that came last.
    pub(crate) fn question(&self, index: usize) -> &[u8] {
        &self.buffers[index][..self.lens[index].min(SIZE)]
    }

    /// Who asked it.
    pub(crate) fn peer(&self, index: usize) -> Option<SocketAddr> {
        let peer: *const libc::sockaddr_storage = &raw const self.peers[index];
        match i32::from(self.peers[index].ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel says that this is an IPv4 address; a sockaddr_storage is large and aligned enough.
                let v4 = unsafe { &*peer.cast::<libc::sockaddr_in>() };
                let ip = u32::from_be(v4.sin_addr.s_addr);
                Some(SocketAddrV4::new(ip.into(), u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: the kernel says that this is an IPv6 address; a sockaddr_storage is large and aligned enough.
                let v6 = unsafe { &*peer.cast::<libc::sockaddr_in6>() };
                let ip = v6.sin6_addr.s6_addr.into();
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }

    /// Sends answers to those who asked the questions of these indices.
    pub(crate) async fn send(&mut self, socket: &UdpSocket, answers: &[(usize, &[u8])]) {
        let mut sent = 0;
        while let Some(rest) = answers.get(sent..).filter(|rest| !rest.is_empty()) {
            match socket.async_io(Interest::WRITABLE, || self.try_send(socket, rest)).await {
                Ok(more) => sent += more,
                // One that cannot be sent (its host is gone, say) must not keep the others.
                Err(error) => {
                    tracing::debug!(%error, "send an answer");
                    sent += 1;
                }
            }
        }
    }

    fn try_send(&mut self, socket: &UdpSocket, answers: &[(usize, &[u8])]) -> io::Result<usize> {
        let count = answers.len().min(MOST);
        let none: (usize, &[u8]) = (0, &[]);
        let of = |i: usize| answers.get(i).copied().unwrap_or(none);
        let mut parts: [libc::iovec; MOST] = std::array::from_fn(|i| libc::iovec {
            iov_base: of(i).1.as_ptr().cast_mut().cast(),
            iov_len: of(i).1.len(),
        });
        let mut headers: [libc::mmsghdr; MOST] = std::array::from_fn(|i| {
            let to = of(i).0;
            header(&raw mut self.peers[to], self.peer_lens[to], &raw mut parts[i])
        });
        // SAFETY: the first `count` headers point to an answer, an address and an iovec that outlive the call; the kernel
        // reads them only.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn header(
    peer: *mut libc::sockaddr_storage,
    peer_len: libc::socklen_t,
    part: *mut libc::iovec,
) -> libc::mmsghdr {
    // SAFETY: a header of zeroes is one without name, parts and control data.
    let mut header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_hdr.msg_name = peer.cast();
    header.msg_hdr.msg_namelen = peer_len;
    header.msg_hdr.msg_iov = part;
    header.msg_hdr.msg_iovlen = 1;
    header
}
