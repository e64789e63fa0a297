//! What the node agent asks of the parts around it: containers, images, the network.
//!
//! Each trait is as narrow as its use here; the real ones are in `real`, recording fakes live in test code only.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use runtime::{Attach, ContainerSpec, ContainerStatus, Exec, ExecSpec, SandboxSpec, Snapshot, Stats};

use crate::spec::ImageConfig;

/// A failure beyond the edge, in its own words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct EdgeError(pub String);

impl EdgeError {
    /// From anything that can be shown, with what was being done in front.
    pub fn new(what: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// Containers: the shim's handle.
#[async_trait]
pub trait Containers: Send + Sync + 'static {
    /// Makes a Pod's shared namespaces.
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<(), EdgeError>;
    /// Its network namespace.
    async fn sandbox_netns(&self, id: &str) -> Result<OwnedFd, EdgeError>;
    /// Removes it; an unknown one is no error.
    async fn remove_sandbox(&self, id: &str) -> Result<(), EdgeError>;
    /// Creates a container that waits to be started.
    async fn create(&self, spec: ContainerSpec) -> Result<(), EdgeError>;
    /// Starts it.
    async fn start(&self, id: &str) -> Result<ContainerStatus, EdgeError>;
    /// Sends a signal to its first process.
    async fn kill(&self, id: &str, signal: i32) -> Result<(), EdgeError>;
    /// Removes an exited one; an unknown one is no error.
    async fn remove(&self, id: &str) -> Result<(), EdgeError>;
    /// All that there is.
    async fn list(&self) -> Result<Snapshot, EdgeError>;
    /// Runs a further process.
    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec, EdgeError>;
    /// Signals a process that `exec` started, by its number.
    async fn kill_exec(&self, exec: u64, signal: i32) -> Result<(), EdgeError>;
    /// Joins the streams of the first process.
    async fn attach(&self, id: &str) -> Result<Attach, EdgeError>;
    /// cgroup figures.
    async fn stats(&self, id: &str) -> Result<Stats, EdgeError>;
    /// Mounts a tmpfs where containers can be given it.
    async fn mount_tmpfs(&self, path: &Path, size: Option<u64>, mode: u32) -> Result<(), EdgeError>;
    /// Unmounts it.
    async fn unmount(&self, path: &Path) -> Result<(), EdgeError>;
    /// The root of the mount namespace in which containers get their mounts, as the agent can see it.
    fn node_root(&self) -> PathBuf;
}

/// An image on this node.
#[derive(Clone, Default)]
pub struct Image {
    /// `status.containerStatuses[].imageID`: a repository digest, or `sha256:<id>` when it has none.
    pub image_id: String,
    /// `status.containerStatuses[].image`: the full reference.
    pub reference: String,
    /// What containers start from.
    pub config: ImageConfig,
    /// Unpacked layers, bottom first.
    pub layers: Vec<PathBuf>,
    /// Bytes.
    pub size: u64,
    /// Loaded by hand or built in: it stands for its registry, so pull policy Always is satisfied by it.
    pub side_loaded: bool,
    /// Mounts that this image's containers need besides the Pod's (the built-in image's program).
    pub binds: Vec<crate::spec::Bind>,
    /// Keeps the image from being removed while this is held.
    pub lease: Option<Arc<dyn Send + Sync>>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Image").field(&self.reference).field(&self.image_id).finish()
    }
}

/// A pull secret: its type and its one data value.
#[derive(Debug, Clone)]
pub struct PullSecret {
    /// `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    pub kind: String,
    /// The document.
    pub data: Vec<u8>,
}

/// Images: the store.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image of that reference, if it is here.
    async fn get(&self, reference: &str) -> Option<Image>;
    /// Fetches it from its registry.
    async fn pull(&self, reference: &str, secrets: Vec<PullSecret>) -> Result<Image, EdgeError>;
    /// Names and sizes of all, for the Node's status.
    async fn list(&self) -> Vec<(Vec<String>, u64)>;
}

/// The Pod network.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Gives a Pod its addresses and links; asking again for the same Pod gives the same.
    async fn attach(&self, pod: &Pod, netns: OwnedFd) -> Result<Vec<IpAddr>, EdgeError>;
    /// Takes them away; an unknown Pod is no error.
    async fn detach(&self, pod_uid: &str) -> Result<(), EdgeError>;
    /// Marks addresses as in use by a Pod that is already connected (after a restart of the agent).
    async fn adopt(&self, pod_uid: &str, addresses: &[IpAddr]) -> Result<(), EdgeError>;
    /// Takes away what Pods of an earlier life have left that are not among these uids; asked before any Pod is begun.
    async fn collect(&self, alive: &BTreeSet<String>) -> Result<(), EdgeError>;
}
