//! The agent's handle to the shim: one asynchronous method per request.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::api::*;
use crate::connection::{Answer, Connection};
use crate::proto::{self, Reply, Request};
use crate::shim;

/// Where the shim lives and what it may touch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShimOptions {
    /// SEQPACKET socket the shim listens on (mode 0600), for example `/run/skiff/minikube/shim.sock`.
    pub socket: PathBuf,
    /// State directory of the shim and of `libcontainer`, under /run.
    pub run_dir: PathBuf,
    /// The parent of every cgroup of this cluster, for example `/skiff/minikube`.
    pub cgroup: String,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    pid: std::sync::OnceLock<i32>,
    options: ShimOptions,
}

/// A handle to the shim; cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

/// A running exec: descriptors are non-blocking; `exit` resolves when the process ended.
#[derive(Debug)]
pub struct Exec {
    /// Its number, for [`Runtime::kill_exec`].
    pub id: u64,
    /// Write end.
    pub stdin: Option<OwnedFd>,
    /// Read end; the terminal's master when `tty`.
    pub stdout: Option<OwnedFd>,
    /// Read end.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, for window size (TIOCSWINSZ), when `tty`.
    pub pty: Option<OwnedFd>,
    /// How it ended.
    pub exit: oneshot::Receiver<Exit>,
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

/// News from the shim, in order; ends when the shim is gone.
pub type Events = mpsc::UnboundedReceiver<Event>;

impl Runtime {
    /// Connects to the shim, after starting one where nobody listens.
    pub async fn start_or_connect(options: ShimOptions) -> Result<(Self, Events)> {
        match Self::connect(options.clone()).await {
            Err(Error::Disconnected(_)) => {}
            other => return other,
        }
        spawn_shim(&options).await?;
        Self::connect(options).await
    }

    /// Connects to a shim that is there; an agent that was connected before loses its connection.
    pub async fn connect(options: ShimOptions) -> Result<(Self, Events)> {
        let (events, receiver) = mpsc::unbounded_channel();
        let connection = Connection::open(&options.socket, events)?;
        let runtime =
            Self { inner: Arc::new(Inner { connection, pid: std::sync::OnceLock::new(), options }) };
        match runtime.ask(Request::Hello { version: proto::VERSION }).await? {
            Reply::Hello { version, pid } if version == proto::VERSION => {
                let _ = runtime.inner.pid.set(pid);
                Ok((runtime, receiver))
            }
            Reply::Hello { version, .. } => Err(Error::failed(
                "talk to shim",
                format!("version {version}"),
                format!("this agent speaks version {}; stop the cluster and start it again", proto::VERSION),
            )),
            other => Err(unexpected(&other)),
        }
    }

    async fn call(&self, request: Request) -> Answer {
        self.inner.connection.call(request).await
    }

    async fn ask(&self, request: Request) -> Result<Reply> {
        self.call(request).await.map(|(reply, _, _)| reply)
    }

    async fn done(&self, request: Request) -> Result<()> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn descriptor(&self, request: Request) -> Result<OwnedFd> {
        let (reply, fds, _) = self.call(request).await?;
        fds.into_iter().next().ok_or_else(|| unexpected(&reply))
    }

    /// Process id of the shim: `/proc/<pid>/root` is the node's file system with every mount in it, `/proc/<pid>/ns/net`
    /// its network namespace.
    pub fn pid(&self) -> i32 {
        self.inner.pid.get().copied().unwrap_or(0)
    }

    /// The root of the node's mount namespace, as seen from the agent's.
    pub fn node_root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid()))
    }

    /// The binary that the shim runs, at a path that is good as a mount source in container specs, even after the file
    /// it was started from has been replaced.
    pub fn binary(&self) -> PathBuf {
        self.inner.options.run_dir.join("skiff")
    }

    /// Makes a Pod's namespaces and shared memory.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<()> {
        self.done(Request::CreateSandbox(spec)).await
    }

    /// The network namespace of a Pod.
    pub async fn sandbox_netns(&self, id: &str) -> Result<OwnedFd> {
        self.descriptor(Request::SandboxNetns(id.to_owned())).await
    }

    /// The network namespace of the node, the shim's own.
    pub async fn node_netns(&self) -> Result<OwnedFd> {
        self.descriptor(Request::NodeNetns).await
    }

    /// Ends and removes a Pod's containers, then its namespaces and cgroup; one that is not there is fine.
    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.done(Request::RemoveSandbox(id.to_owned())).await
    }

    /// Creates a container; its process waits for [`Runtime::start`]. A command that cannot be executed fails here.
    pub async fn create(&self, spec: ContainerSpec) -> Result<()> {
        self.done(Request::Create(Box::new(spec))).await
    }

    /// Lets a created container run.
    pub async fn start(&self, id: &str) -> Result<ContainerStatus> {
        match self.ask(Request::Start(id.to_owned())).await? {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Signals a container's first process; SIGKILL ends all of it. One that has ended is fine.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<()> {
        self.done(Request::Kill { id: id.to_owned(), signal }).await
    }

    /// Removes a container, ending it if it runs; its log stays. One that is not there is fine.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.done(Request::Remove(id.to_owned())).await
    }

    /// Everything the shim holds.
    pub async fn list(&self) -> Result<Snapshot> {
        match self.ask(Request::List).await? {
            Reply::Snapshot(snapshot) => Ok(snapshot),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a further process in a running container; returns when it has become the command.
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec> {
        let (reply, fds, exit) = self.call(Request::Exec { id: id.to_owned(), spec }).await?;
        let (Reply::Streams { exec, stdin, stdout, stderr, pty }, Some(exit)) = (&reply, exit) else {
            return Err(unexpected(&reply));
        };
        let mut fds = fds.into_iter();
        let mut next = |there: bool| if there { fds.next() } else { None };
        Ok(Exec {
            id: *exec,
            stdin: next(*stdin),
            stdout: next(*stdout),
            stderr: next(*stderr),
            pty: next(*pty),
            exit,
        })
    }

    /// Signals a process that [`Runtime::exec`] started (an exec probe that is late).
    pub async fn kill_exec(&self, exec: u64, signal: i32) -> Result<()> {
        self.done(Request::KillExec { exec, signal }).await
    }

    /// The streams of a container's first process, from now on.
    pub async fn attach(&self, id: &str) -> Result<Attach> {
        let (reply, fds, _) = self.call(Request::Attach(id.to_owned())).await?;
        let Reply::Streams { stdin, stdout, stderr, pty, .. } = reply else { return Err(unexpected(&reply)) };
        let mut fds = fds.into_iter();
        let mut next = |there: bool| if there { fds.next() } else { None };
        Ok(Attach { stdin: next(stdin), stdout: next(stdout), stderr: next(stderr), pty: next(pty) })
    }

    /// cgroup figures of a container.
    pub async fn stats(&self, id: &str) -> Result<Stats> {
        match self.ask(Request::Stats(id.to_owned())).await? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Mounts a tmpfs in the node's mount namespace (memory-backed volumes); write into it below [`Runtime::node_root`].
    pub async fn mount_tmpfs(&self, path: impl Into<PathBuf>, size: Option<u64>, mode: u32) -> Result<()> {
        self.done(Request::MountTmpfs { path: path.into(), size, mode }).await
    }

    /// Takes away what is mounted at `path` in the node's mount namespace.
    pub async fn unmount(&self, path: impl Into<PathBuf>) -> Result<()> {
        self.done(Request::Unmount(path.into())).await
    }

    /// Ends every container, removes the cluster's cgroups and ends the shim: the node is gone.
    pub async fn shutdown(self) -> Result<()> {
        let result = self.done(Request::Shutdown).await;
        wait_for_end(self.pid()).await;
        shim::remove_files(&self.inner.options);
        result
    }

    /// Ends and removes what a shim left behind that was killed, without starting a new one (`skiff delete`).
    pub async fn remove_leftovers(options: ShimOptions) -> Result<()> {
        let task = tokio::task::spawn_blocking(move || shim::remove_leftovers(&options));
        let done = task.await.unwrap_or_else(|error| Err(error.to_string()));
        done.map_err(|message| Error::failed("remove", "leftovers of the node", message))
    }
}

/// Waits (for seconds at most) until the shim's process is gone.
async fn wait_for_end(pid: i32) {
    for _ in 0..2000 {
        // A dead process that its parent has not yet waited for holds nothing any more.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X'])) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Starts this very binary as a shim and waits until it listens.
async fn spawn_shim(options: &ShimOptions) -> Result<()> {
    let failed = |cause: String| Error::failed("start", shim::NAME, cause);
    let json = serde_json::to_string(options).map_err(|error| failed(error.to_string()))?;
    let output = tokio::process::Command::new("/proc/self/exe")
        .arg0(shim::NAME)
        .arg(json)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn unexpected(reply: &Reply) -> Error {
    Error::failed("understand", "the shim's reply", format!("{reply:?}"))
}
