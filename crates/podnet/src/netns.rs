//! Working inside another network namespace: on a thread of its own, which ends with the work, so that no thread of a
//! pool is ever left in the wrong place.

use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};

/// Runs `work` in the namespace. What it opens (sockets) stays there; files under `/proc/sys/net` are that namespace's.
pub fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = move || {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::system("enter network namespace", e))?;
            work()
        };
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside);
        let thread = thread.map_err(|e| Error::system("start thread", e))?;
        thread.join().unwrap_or(Err(Error::Thread("work in a network namespace")))
    })
}
