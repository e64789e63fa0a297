//! The agent's side of the shim socket.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::api::*;

/// Where the shim lives and what it may touch.
#[derive(Debug, Clone)]
pub struct ShimOptions {
    /// SEQPACKET socket the shim listens on (mode 0600), for example `/run/skiff/minikube/shim.sock`.
    pub socket: PathBuf,
    /// State directory of the shim and of `libcontainer`, under /run.
    pub run_dir: PathBuf,
    /// The parent of every cgroup of this cluster, for example `/skiff/minikube`.
    pub cgroup: String,
}

/// A handle to the shim; cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime;

/// A running exec: descriptors are non-blocking; `exit` resolves when the process ended.
#[derive(Debug)]
pub struct Exec {
    /// Write end.
    pub stdin: Option<OwnedFd>,
    /// Read end; the terminal's master when `tty`.
    pub stdout: Option<OwnedFd>,
    /// Read end.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, for window size (TIOCSWINSZ), when `tty`.
    pub pty: Option<OwnedFd>,
    /// How it ended.
    pub exit: tokio::sync::oneshot::Receiver<Exit>,
}

/// Streams of a container's first process (`kubectl attach`).
#[derive(Debug)]
pub struct Attach {
    /// Write end, when the container has stdin.
    pub stdin: Option<OwnedFd>,
    /// Read end: output from now on.
    pub stdout: Option<OwnedFd>,
    /// Read end, absent with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master when the container has one.
    pub pty: Option<OwnedFd>,
}
