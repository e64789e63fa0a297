//! Work that blocks or changes the process, done in a child of the shim: making sandboxes, containers, further processes.
//!
//! The shim has one thread, so a fork copies a consistent process and the child may do anything. The event loop never
//! waits for a job: it hears of its end by SIGCHLD and then reads what the job left on its socket. A container's first
//! process is cloned with CLONE_PARENT on the way and so is the shim's own child, not the job's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

/// What a job leaves behind for the shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// It went well; descriptors may come along.
    Done { pid: i32 },
    /// It failed.
    Failed(String),
    /// The command cannot be executed (said by the new process itself, before the job's own failure).
    Exec { code: i32, message: String },
}

/// A child at work.
#[derive(Debug)]
pub struct Job {
    pub pid: i32,
    socket: OwnedFd,
}

/// Forks and runs `work` in the child with the socket to report on; only `keep` and the standard streams stay open there.
///
/// The descriptors that are closed are other containers' pipes and logs and the agent's connection: a child that holds
/// them keeps their readers from seeing the end.
pub fn spawn(
    keep: &[RawFd],
    work: impl FnOnce(BorrowedFd<'_>) -> Result<(i32, Vec<OwnedFd>), String>,
) -> io::Result<Job> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the shim has a single thread, so the child may use the allocator and every lock.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(theirs);
            let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
            nix::fcntl::fcntl(&ours, flags)?;
            Ok(Job { pid: child.as_raw(), socket: ours })
        }
        ForkResult::Child => {
            let mut kept = keep.to_vec();
            kept.push(theirs.as_raw_fd());
            close_others(kept);
            let code = match work(theirs.as_fd()) {
                Ok((pid, fds)) => {
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    i32::from(crate::proto::send(theirs.as_fd(), &Report::Done { pid }, &fds).is_err())
                }
                Err(message) => {
                    let _ = crate::proto::send(theirs.as_fd(), &Report::Failed(message), &[]);
                    1
                }
            };
            // SAFETY: ends this process at once; destructors and exit handlers are the parent's.
            unsafe { libc::_exit(code) }
        }
    }
}

impl Job {
    /// What the job said; to be called when it has ended.
    pub fn result(&self) -> Result<(i32, Vec<OwnedFd>), crate::Error> {
        let mut failure = None;
        loop {
            match crate::proto::receive::<Report>(self.socket.as_fd()) {
                Ok(Some((Report::Done { pid }, fds))) => return Ok((pid, fds)),
                Ok(Some((Report::Exec { code, message }, _))) => {
                    return Err(crate::Error::Exec { code, message });
                }
                Ok(Some((Report::Failed(message), _))) => failure = Some(message),
                Ok(None) | Err(_) => break,
            }
        }
        let message = failure.unwrap_or_else(|| "the helper process died".to_owned());
        Err(crate::Error::failed("run helper", "job", message))
    }

    /// Ends a job that nobody waits for any more.
    pub fn kill(&self) {
        let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Closes every descriptor above 2 that is not in `keep`.
fn close_others(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    keep.dedup();
    let mut from = 3u32;
    for fd in keep.into_iter().filter_map(|fd| u32::try_from(fd).ok()).filter(|&fd| fd >= 3) {
        if fd > from {
            close_range(from, fd - 1);
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: this child never touches the descriptors of the parent's objects again; it ends by `_exit` or `exec`.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}
