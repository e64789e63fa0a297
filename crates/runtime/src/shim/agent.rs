//! The agent's connection, one at a time: a new one replaces an old one, and nobody waits for an agent that is gone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::api::Result;
use crate::proto::{self, Call, Notice, Reply};

/// Packets that wait for a slow agent; beyond it the agent is taken for dead.
const OUTBOX_MAX: usize = 100_000;

/// Who asked: a reply goes to the connection that the call came from or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub connection: u64,
    pub call: u64,
}

/// A connected agent.
#[derive(Debug)]
pub struct Agent {
    socket: OwnedFd,
    pub token: u64,
    outbox: VecDeque<(Notice, Vec<OwnedFd>)>,
}

/// What a read found.
pub enum Incoming {
    Call(Call),
    Nothing,
    Gone,
}

impl Agent {
    pub fn new(socket: OwnedFd, token: u64) -> Self {
        Self { socket, token, outbox: VecDeque::new() }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn read(&self) -> Incoming {
        match proto::receive::<Call>(self.socket.as_fd()) {
            Ok(Some((call, _))) => Incoming::Call(call),
            Ok(None) => Incoming::Gone,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Incoming::Nothing
            }
            Err(error) => {
                super::report(&format!("read from agent: {error}"));
                Incoming::Gone
            }
        }
    }

    /// Queues a packet and sends what the socket takes; false when the agent is gone.
    pub fn send(&mut self, notice: Notice, fds: Vec<OwnedFd>) -> bool {
        self.outbox.push_back((notice, fds));
        self.flush() && self.outbox.len() < OUTBOX_MAX
    }

    pub fn reply(&mut self, call: u64, result: Result<Reply>, fds: Vec<OwnedFd>) -> bool {
        self.send(Notice::Reply { id: call, result }, fds)
    }

    /// Sends what waits; false when the agent is gone.
    pub fn flush(&mut self) -> bool {
        while let Some((notice, fds)) = self.outbox.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match proto::send(self.socket.as_fd(), notice, &fds) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether packets wait for room in the socket.
    pub fn is_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }
}
