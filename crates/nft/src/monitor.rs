//! Notices that somebody else has changed one of our tables: a foreign `nft flush ruleset`, another firewall's restart.
//!
//! The kernel tells the listeners of its multicast group of every committed change. A socket filter drops what our own
//! socket did before it is queued, so that a big transaction of ours neither wakes nor overflows the listener.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::model::TableName;
use crate::socket::Socket;
use crate::uapi;
use crate::wire::{Attrs, Message};

/// Where a netlink header says who asked for the change.
const PORT_OFFSET: u32 = 12;

/// A listener for foreign changes of tables.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
    tables: Vec<TableName>,
}

impl Monitor {
    /// Listens in the network namespace of the calling thread for changes of `tables` that do not come from `own`. Must be
    /// called inside a runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket or its filter.
    pub fn open(own: &Socket, tables: Vec<TableName>) -> Result<Self, Error> {
        let socket = Socket::open()?;
        ignore(&socket, own.port()?)?;
        let group = libc::NFNLGRP_NFTABLES as libc::c_int;
        socket.join(group)?;
        // SAFETY: the socket owns its descriptor, which stays the same until it is dropped together with its registration.
        let registered = unsafe { AsyncFd::register(socket) };
        let socket = registered.map_err(|e| Error::Netlink { call: "poll", source: e.into() })?;
        Ok(Self { socket, tables })
    }

    /// Resolves once somebody else has changed one of the tables, or so much that the kernel could not tell it all.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn foreign_change(&mut self) -> Result<(), Error> {
        loop {
            let ready = self.socket.readable().await;
            let mut ready = ready.map_err(|source| Error::Netlink { call: "poll", source })?;
            // All that waits, so that one foreign transaction is one change.
            let mut changed = false;
            let drained = self.socket.get_ref().drain(|m| changed |= concerns(&m, &self.tables));
            ready.clear_ready();
            match drained {
                Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
                Ok(()) if changed => return Ok(()),
                Ok(()) => {}
            }
        }
    }
}

fn concerns(message: &Message<'_>, tables: &[TableName]) -> bool {
    let (subsystem, kind) = (message.kind >> 8, message.kind & 0xff);
    // The end of a transaction: it names a generation where others name a table.
    if subsystem != libc::NFNL_SUBSYS_NFTABLES as u16 || kind == libc::NFT_MSG_NEWGEN as u16 {
        return false;
    }
    let Some(attrs) = message.payload.get(4..) else { return false };
    let name = Attrs::find(attrs, uapi::TABLE_NAME).unwrap_or_default();
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    tables.iter().any(|t| t.family.number() == message.payload[0] && t.name.as_bytes() == name)
}

/// Drops messages about changes of that port in the kernel.
fn ignore(socket: &Socket, port: u32) -> Result<(), Error> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // The filter reads in network order what netlink writes in the host's.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, PORT_OFFSET),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, port),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the pointer and its length describe `filter`, whose program outlives the call, which copies it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(Error::Netlink { call: "filter of changes", source: io::Error::last_os_error() });
    }
    Ok(())
}
