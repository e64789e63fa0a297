//! The agent's side of the shim socket: numbered calls, replies in any order, news as events.
//!
//! One task reads the socket and hands each reply to whoever waits for its number. When the shim is gone every waiting
//! call fails, every exec's `exit` closes, and the event channel ends: that is how the agent learns of it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::api::*;
use crate::proto::{self, Call, Notice, Reply, Request};

/// A reply, the descriptors with it, and how a started process will end.
pub type Answer = Result<(Reply, Vec<OwnedFd>, Option<oneshot::Receiver<Exit>>)>;

#[derive(Debug, Default)]
struct Waiting {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
    lost: Option<String>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    events: Mutex<Option<mpsc::UnboundedSender<Event>>>,
}

/// A connection; the shim sees its end when this is dropped.
#[derive(Debug)]
pub struct Connection {
    socket: Arc<AsyncFd<OwnedFd>>,
    /// Calls take turns: one that waits for room must not be overtaken for ever.
    sending: tokio::sync::Mutex<()>,
    next: AtomicU64,
    shared: Arc<Shared>,
    reader: tokio::task::AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    /// Connects to the shim at `path`; its news go to `events`.
    pub fn open(path: &Path, events: mpsc::UnboundedSender<Event>) -> Result<Self> {
        let socket = connect(path)
            .and_then(watched)
            .map_err(|error| Error::Disconnected(format!("{}: {error}", path.display())))?;
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared { waiting: Mutex::default(), events: Mutex::new(Some(events)) });
        let reader = tokio::spawn(read_notices(socket.clone(), shared.clone())).abort_handle();
        Ok(Self { socket, sending: Default::default(), next: AtomicU64::new(1), shared, reader })
    }

    /// Asks and waits for the answer.
    pub async fn call(&self, request: Request) -> Answer {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = lock(&self.shared.waiting);
            if let Some(reason) = &waiting.lost {
                return Err(Error::Disconnected(reason.clone()));
            }
            waiting.calls.insert(id, sender);
        }
        if let Err(error) = self.send(&Call { id, request }).await {
            lock(&self.shared.waiting).calls.remove(&id);
            return Err(Error::Disconnected(error.to_string()));
        }
        receiver.await.map_err(|_| Error::Disconnected("the shim has ended".to_owned()))?
    }

    async fn send(&self, call: &Call) -> io::Result<()> {
        let _turn = self.sending.lock().await;
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| proto::send(socket.get_ref().as_fd(), call, &[])) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Hands a notice to whoever waits for it.
    fn deliver(&self, notice: Notice, fds: Vec<OwnedFd>) {
        match notice {
            Notice::Event(event) => {
                if let Some(events) = &*lock(&self.events) {
                    let _ = events.send(event);
                }
            }
            Notice::ExecExited { exec, exit } => {
                if let Some(sender) = lock(&self.waiting).execs.remove(&exec) {
                    let _ = sender.send(exit);
                }
            }
            Notice::Reply { id, result } => {
                let mut waiting = lock(&self.waiting);
                let Some(caller) = waiting.calls.remove(&id) else { return };
                // Registered before anybody can ask, for the exit may be the next packet.
                let exit = match &result {
                    Ok(Reply::Streams { exec, .. }) if *exec != 0 => {
                        let (sender, receiver) = oneshot::channel();
                        waiting.execs.insert(*exec, sender);
                        Some(receiver)
                    }
                    _ => None,
                };
                let _ = caller.send(result.map(|reply| (reply, fds, exit)));
            }
        }
    }

    fn lose(&self, reason: String) {
        *lock(&self.events) = None;
        let mut waiting = lock(&self.waiting);
        for (_, caller) in waiting.calls.drain() {
            let _ = caller.send(Err(Error::Disconnected(reason.clone())));
        }
        waiting.execs.clear();
        waiting.lost = Some(reason);
    }
}

/// Reads the socket until the shim is gone.
async fn read_notices(socket: Arc<AsyncFd<OwnedFd>>, shared: Arc<Shared>) {
    let reason = loop {
        let packet = match socket.readable().await {
            Ok(mut ready) => {
                match ready.try_io(|socket| proto::receive::<Notice>(socket.get_ref().as_fd())) {
                    Ok(packet) => packet,
                    Err(_would_block) => continue,
                }
            }
            Err(error) => break error.to_string(),
        };
        match packet {
            Ok(Some((notice, fds))) => shared.deliver(notice, fds),
            Ok(None) => break "the shim has ended or another agent took over".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    shared.lose(reason);
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = proto::socket()?;
    let (address, _folder) = proto::address(path)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same until it is dropped, with the `AsyncFd` that owns it.
    unsafe { AsyncFd::register(socket) }.map_err(|error| io::Error::other(error.to_string()))
}
