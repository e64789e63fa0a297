//! The words between the node agent and the shim: what to create, what is running, what ended.
//!
//! Everything here is plain data (serde), because it crosses a SOCK_SEQPACKET socket. Descriptors travel beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A Pod's shared namespaces (net, ipc, uts), made and held open by the shim; no pause process, no bind-mounted file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The Pod's uid; the name of the sandbox in every later call.
    pub id: String,
    /// The UTS host name of the Pod's containers.
    pub hostname: String,
    /// True for `hostNetwork`: the sandbox shares the node's network namespace (the shim's own).
    pub host_network: bool,
    /// True for `hostIPC`.
    pub host_ipc: bool,
    /// Namespaced sysctls (`net.*`, `kernel.shm*`, ...) to set once inside, by dotted name. Ours: `net.ipv4.ip_unprivileged_port_start=0`.
    pub sysctls: BTreeMap<String, String>,
    /// cgroup of the Pod, relative to each hierarchy's root, for example `/skiff/minikube/pod<uid>`.
    pub cgroup: String,
    /// Size of the Pod's shared `/dev/shm` in bytes; 64 MiB when absent, as container engines have it.
    #[serde(default)]
    pub shm_size: Option<u64>,
}

/// What a container's root file system is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Rootfs {
    /// An overlay mounted by the shim in its own mount namespace (it vanishes with the shim).
    Overlay {
        /// Read-only layers, bottom first.
        lower: Vec<PathBuf>,
        /// A fresh directory under which the shim keeps `upper` and `work`.
        scratch: PathBuf,
    },
}

/// One container to create: an OCI runtime specification and how its streams are wired.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique for the life of the node: 64 hexadecimal digits, as container ids are everywhere.
    pub id: String,
    /// The sandbox whose net, ipc and uts namespaces it joins (the shim fills in the namespace paths).
    pub sandbox: String,
    /// The OCI runtime spec (`oci-spec`). `root` and the net/ipc/uts namespaces are filled in by the shim.
    pub spec: oci_spec::runtime::Spec,
    /// Its root.
    pub rootfs: Rootfs,
    /// CRI-format log file (`<RFC3339Nano> stdout|stderr F|P <line>`), rotated by the shim.
    pub log_path: PathBuf,
    /// Keep stdin open for attach (`stdin: true`); otherwise it is /dev/null.
    pub stdin: bool,
    /// Close stdin when the first attached client goes (`stdinOnce`).
    pub stdin_once: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Created, its process waits before `exec`.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended; see [`ContainerStatus::exit`].
    Exited,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it, as shells and upstream have it.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The kernel's OOM killer struck inside its cgroup.
    pub oom_killed: bool,
    /// Nanoseconds since the Unix epoch.
    pub finished_at: i128,
}

/// A container as the shim knows it; survives a restart of the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The container's id.
    pub id: String,
    /// The sandbox it lives in.
    pub sandbox: String,
    /// Life-cycle state.
    pub state: State,
    /// Process id in the node's pid namespace (0 once exited).
    pub pid: i32,
    /// Nanoseconds since the Unix epoch; 0 before start.
    pub started_at: i128,
    /// Present once exited.
    pub exit: Option<Exit>,
}

/// Everything the shim holds: what an agent that comes back after a crash reads first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Ids of the sandboxes.
    pub sandboxes: Vec<String>,
    /// All containers, running or exited but not yet removed.
    pub containers: Vec<ContainerStatus>,
}

/// A further process in a running container (`kubectl exec`, exec probes, hooks).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExecSpec {
    /// argv.
    pub args: Vec<String>,
    /// Allocate a terminal: stdout carries everything, stderr stays absent.
    pub tty: bool,
    /// Whether the caller wants each stream.
    pub stdin: bool,
    /// See `stdin`.
    pub stdout: bool,
    /// See `stdin`.
    pub stderr: bool,
}

/// Unasked news from the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process ended.
    Exited {
        /// The container's id.
        id: String,
        /// How.
        exit: Exit,
    },
}

/// cgroup figures of one container, for `kubectl top`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time used since start, nanoseconds.
    pub cpu_nanos: u64,
    /// Working set, bytes (usage less inactive file pages).
    pub memory_bytes: u64,
    /// All memory charged, page cache included, bytes.
    pub memory_usage_bytes: u64,
}

/// Why the shim refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// No such sandbox or container.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// `sandbox` or `container`.
        what: String,
        /// Its id.
        id: String,
    },
    /// The id is taken.
    #[error("{what} {id:?} already exists")]
    AlreadyExists {
        /// `sandbox` or `container`.
        what: String,
        /// Its id.
        id: String,
    },
    /// The container is not in the state that the call needs.
    #[error("container {id:?} is not {wanted}")]
    WrongState {
        /// Its id.
        id: String,
        /// The state that was needed.
        wanted: String,
    },
    /// The command cannot be executed; the caller's fault, retrying is of no use. The text is what users know from
    /// everywhere: `exec: "x": executable file not found in $PATH`.
    #[error("{message}")]
    Exec {
        /// What shells answer: 127 not found, 126 found but not executable.
        code: i32,
        /// The text.
        message: String,
    },
    /// The specification asks for something that cannot be honoured, and is refused rather than ignored.
    #[error("invalid container specification: {0}")]
    Invalid(String),
    /// The kernel or the OCI runtime failed.
    #[error("{operation} {object:?}: {message}")]
    Failed {
        /// What was tried.
        operation: String,
        /// On what.
        object: String,
        /// Why it failed, with all causes.
        message: String,
    },
    /// The shim is gone or the connection to it broke.
    #[error("shim connection lost: {0}")]
    Disconnected(String),
}

impl Error {
    /// Shorthand for [`Error::Failed`].
    pub fn failed(operation: &str, object: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Failed { operation: operation.to_owned(), object: object.into(), message: cause.to_string() }
    }

    /// Shorthand for [`Error::NotFound`].
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::NotFound { what: what.to_owned(), id: id.to_owned() }
    }
}

/// Result of every call to the shim.
pub type Result<T> = std::result::Result<T, Error>;
