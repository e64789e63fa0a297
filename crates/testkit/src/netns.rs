//! Network namespaces for tests: one per value, gone with it; no name in the file system, nothing to clean up.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with its loopback up, which lives as long as this value. Needs root.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// A fresh one.
    #[allow(clippy::new_without_default, reason = "it makes something in the kernel")]
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of namespaces run as root");
            Self(File::open("/proc/thread-self/ns/net").unwrap().into())
        };
        let netns = std::thread::spawn(make).join().unwrap();
        netns.sh("ip link set lo up");
        netns
    }

    /// Runs `body` on a thread inside, which ends with it; its panic is the caller's.
    pub fn within<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What a shell script prints inside.
    ///
    /// # Panics
    /// When one of its commands fails.
    pub fn sh(&self, script: &str) -> String {
        self.within(|| {
            let out = Command::new("sh").args(["-ec", script]).output().unwrap();
            assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        })
    }

    /// The name by which `ip` finds it while this process has it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.0
    }
}
