//! The words between the command line and a running daemon: one JSON request a connection, then JSON lines back.
//!
//! The socket is the owner's alone (0600, root), so whoever can open it may do everything.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What the command line asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// How the cluster is.
    Status,
    /// Stop Pods and node, keep the state, end the daemon.
    Stop,
    /// The control plane's part of what happens to another node.
    Node {
        /// The Node object's name.
        name: String,
        /// What happens to it.
        change: NodeChange,
    },
    /// Load images from a tar (OCI layout or docker-archive).
    ImageLoad {
        /// The file; the daemon opens it.
        path: PathBuf,
    },
    /// Pull an image.
    ImagePull {
        /// Its reference.
        reference: String,
    },
    /// Make the built-in stand-ins for the images of the tutorial that are not there.
    ImageStandIns,
    /// All images.
    ImageList,
    /// Give an image one more name.
    ImageTag {
        /// The image.
        reference: String,
        /// Its new name.
        name: String,
    },
    /// Remove a reference and what only it needs.
    ImageRemove {
        /// The reference.
        reference: String,
    },
    /// The connections that this node sees: refused ones that are remembered and all that are tracked; or, if it is
    /// to follow, each new one until the asker leaves.
    Flows(FlowsWanted),
    /// All add-ons.
    AddonList,
    /// Add an add-on, and wait until it runs.
    AddonEnable {
        /// Its name.
        addon: String,
    },
    /// Remove an add-on.
    AddonDisable {
        /// Its name.
        addon: String,
    },
}

/// Which connections are asked for; see [`Request::Flows`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowsWanted {
    /// Only new ones, as they come.
    pub follow: bool,
    /// Only those that were refused, or would be.
    pub denied: bool,
    /// Only those of this Pod, `NAMESPACE/NAME`.
    pub pod: Option<String>,
}

/// What happens to a node; see [`Request::Node`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeChange {
    /// It will stop: nothing new is put there, and what runs elsewhere too is moved.
    Drain,
    /// It has stopped.
    Stopped,
    /// It runs again.
    Started,
    /// It is gone for good.
    Deleted,
}

/// What the daemon answers, line by line; the last one is `Done` or `Failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// A new step has begun.
    Step(String),
    /// News of the running step.
    Detail(String),
    /// A connection; see [`Request::Flows`].
    Flow(Box<netpol::flows::Seen>),
    /// It is done.
    Done(Answer),
    /// It failed; what to tell the user.
    Failed(String),
}

/// The result of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Nothing more to say.
    Empty,
    /// [`Request::Status`].
    Status(Status),
    /// [`Request::ImageLoad`], [`Request::ImagePull`]: references that now exist. [`Request::ImageList`]: all images.
    Images(Vec<ImageLine>),
    /// [`Request::AddonList`].
    Addons(Vec<AddonLine>),
}

/// How the cluster is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `Running` or `Starting`.
    pub daemon: String,
    /// `Ready` or `NotReady`.
    pub node: String,
    /// Pods that run, and Pods in all.
    pub pods_running: usize,
    /// See `pods_running`.
    pub pods: usize,
    /// The daemon's process id.
    pub pid: u32,
}

/// One line of `skiff image ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLine {
    /// `docker.io/library/nginx:latest`.
    pub reference: String,
    /// Digest of its configuration.
    pub id: String,
    /// Bytes of its layers.
    pub size: u64,
    /// Whether it was loaded by hand or is built in, and so stands in for its registry.
    pub side_loaded: bool,
}

/// One line of `skiff addons list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddonLine {
    /// `ingress`.
    pub name: String,
    /// Whether its objects are there.
    pub enabled: bool,
    /// Who looks after it.
    pub maintainer: String,
    /// Where its objects are.
    pub namespace: String,
}

/// Asks the daemon that listens on `socket`; `None` when nobody listens. Steps go to `progress`.
///
/// # Errors
/// What the daemon says, or that it broke off.
pub fn ask(
    socket: &Path,
    request: &Request,
    mut progress: impl FnMut(&Reply),
) -> anyhow::Result<Option<Answer>> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), NotFound | ConnectionRefused) => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            anyhow::bail!("the cluster is root's; run it as: sudo skiff ...");
        }
        Err(e) => return Err(e).with_context(|| format!("connect to the daemon at {}", socket.display())),
    };
    let line = serde_json::to_string(request)? + "\n";
    stream.write_all(line.as_bytes()).context("ask the daemon")?;
    for line in BufReader::new(stream).lines() {
        let line = line.context("the daemon broke off its answer")?;
        match serde_json::from_str(&line).context("the daemon's answer is not understood")? {
            Reply::Done(answer) => return Ok(Some(answer)),
            Reply::Failed(reason) => anyhow::bail!(reason),
            other => progress(&other),
        }
    }
    anyhow::bail!("the daemon broke off its answer; see: skiff logs")
}
