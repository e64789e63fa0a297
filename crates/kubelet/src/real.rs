//! The real parts behind the edge traits: the shim, the image store.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use runtime::{
    Attach, ContainerSpec, ContainerStatus, Error, Exec, ExecSpec, Runtime, SandboxSpec, Snapshot, Stats,
};

use crate::edge::{Containers, EdgeError, Image, Images, Network, PullSecret};
use crate::pod;
use crate::spec::{Bind, Defaults, ImageConfig, Propagation};

fn edge(error: Error) -> EdgeError {
    EdgeError(error.to_string())
}

/// Absence is what a removal wants.
fn unless_gone(result: Result<(), Error>) -> Result<(), EdgeError> {
    match result {
        Err(Error::NotFound { .. }) => Ok(()),
        other => other.map_err(edge),
    }
}

#[async_trait]
impl Containers for Runtime {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<(), EdgeError> {
        let id = spec.id.clone();
        match Runtime::create_sandbox(self, spec.clone()).await {
            // Left by an attempt whose answer was lost.
            Err(Error::AlreadyExists { .. }) => {
                Runtime::remove_sandbox(self, &id).await.map_err(edge)?;
                Runtime::create_sandbox(self, spec).await.map_err(edge)
            }
            other => other.map_err(edge),
        }
    }

    async fn sandbox_netns(&self, id: &str) -> Result<OwnedFd, EdgeError> {
        Runtime::sandbox_netns(self, id).await.map_err(edge)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), EdgeError> {
        unless_gone(Runtime::remove_sandbox(self, id).await)
    }

    async fn create(&self, spec: ContainerSpec) -> Result<(), EdgeError> {
        Runtime::create(self, spec).await.map_err(edge)
    }

    async fn start(&self, id: &str) -> Result<ContainerStatus, EdgeError> {
        Runtime::start(self, id).await.map_err(edge)
    }

    async fn kill(&self, id: &str, signal: i32) -> Result<(), EdgeError> {
        Runtime::kill(self, id, signal).await.map_err(edge)
    }

    async fn remove(&self, id: &str) -> Result<(), EdgeError> {
        unless_gone(Runtime::remove(self, id).await)
    }

    async fn list(&self) -> Result<Snapshot, EdgeError> {
        Runtime::list(self).await.map_err(edge)
    }

    async fn exec(&self, id: &str, spec: ExecSpec) -> Result<Exec, EdgeError> {
        Runtime::exec(self, id, spec).await.map_err(edge)
    }

    async fn kill_exec(&self, exec: u64, signal: i32) -> Result<(), EdgeError> {
        Runtime::kill_exec(self, exec, signal).await.map_err(edge)
    }

    async fn attach(&self, id: &str) -> Result<Attach, EdgeError> {
        Runtime::attach(self, id).await.map_err(edge)
    }

    async fn stats(&self, id: &str) -> Result<Stats, EdgeError> {
        Runtime::stats(self, id).await.map_err(edge)
    }

    async fn mount_tmpfs(&self, path: &Path, size: Option<u64>, mode: u32) -> Result<(), EdgeError> {
        Runtime::mount_tmpfs(self, path, size, mode).await.map_err(edge)
    }

    async fn unmount(&self, path: &Path) -> Result<(), EdgeError> {
        unless_gone(Runtime::unmount(self, path).await)
    }

    fn node_root(&self) -> PathBuf {
        Runtime::node_root(self)
    }
}

/// The runtime's defaults in the shape that the spec builder wants.
///
/// # Errors
/// When the OCI library refuses them.
pub fn defaults() -> Result<Defaults, EdgeError> {
    Ok(Defaults {
        spec: runtime::defaults::spec()
            .map_err(|e| EdgeError::new("building the default specification", e))?,
        capabilities: runtime::defaults::capabilities(),
        seccomp: runtime::defaults::seccomp,
    })
}

/// The image store, and the program of the built-in image.
pub struct ImageStore {
    store: Arc<image::Store>,
    /// What is bound over [`image::BUILTIN_BINARY`] in containers of the built-in image.
    binary: PathBuf,
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore").field("binary", &self.binary).finish_non_exhaustive()
    }
}

impl ImageStore {
    /// Wraps a store; `binary` is usually `Runtime::binary()`.
    pub fn new(store: Arc<image::Store>, binary: PathBuf) -> Self {
        Self { store, binary }
    }

    fn convert(&self, name: &str, image: image::Image) -> Image {
        let own = image.config.config().clone();
        let config = own.map(|c| ImageConfig {
            user: c.user().clone().unwrap_or_default(),
            env: c.env().clone().unwrap_or_default(),
            entrypoint: c.entrypoint().clone().unwrap_or_default(),
            cmd: c.cmd().clone().unwrap_or_default(),
            working_dir: c.working_dir().clone().unwrap_or_default(),
            stop_signal: c.stop_signal().clone().unwrap_or_default(),
        });
        let program = Bind {
            source: self.binary.clone(),
            destination: PathBuf::from(image::BUILTIN_BINARY),
            read_only: true,
            recursive_read_only: false,
            propagation: Propagation::None,
        };
        let full = image::normalize(name);
        let known = image.references.contains(&full);
        // Without a lease the image could be removed while it is in use, but it can be used.
        let lease =
            self.store.lease(&image).inspect_err(|error| tracing::warn!(%error, "leasing an image")).ok();
        let lease = lease.map(|lease| Arc::new(lease) as Arc<dyn Send + Sync>);
        Image {
            image_id: image.image_id().to_string(),
            reference: if known { full } else { image.references.first().unwrap_or(&image.id).clone() },
            config: config.unwrap_or_default(),
            size: image.size,
            side_loaded: image.side_loaded,
            binds: if image.builtin { vec![program] } else { Vec::new() },
            layers: image.layers,
            lease,
        }
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn get(&self, reference: &str) -> Option<Image> {
        self.store.get(reference).map(|image| self.convert(reference, image))
    }

    async fn pull(&self, reference: &str, secrets: Vec<PullSecret>) -> Result<Image, EdgeError> {
        let mut auths = Vec::new();
        for secret in secrets {
            let parsed = match secret.kind.as_str() {
                "kubernetes.io/dockercfg" => image::Auth::from_dockercfg(&secret.data),
                _ => image::Auth::from_dockerconfigjson(&secret.data),
            };
            // A broken secret must not keep a public image away.
            match parsed {
                Ok(parsed) => auths.extend(parsed),
                Err(error) => tracing::warn!(%error, "an image pull secret cannot be read"),
            }
        }
        let pulled = self.store.pull(reference, &auths, &|_| {}).await;
        pulled.map(|image| self.convert(reference, image)).map_err(|error| EdgeError(error.rpc()))
    }

    async fn list(&self) -> Vec<(Vec<String>, u64)> {
        let names = |image: &image::Image| [image.repo_digests.clone(), image.references.clone()].concat();
        let all = self.store.list().inspect_err(|error| tracing::warn!(%error, "listing images"));
        all.unwrap_or_default().iter().map(|image| (names(image), image.size)).collect()
    }
}

/// The Pod network; its work is blocking and short.
#[derive(Clone)]
pub struct PodNet(Arc<podnet::PodNetwork>);

impl std::fmt::Debug for PodNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PodNet")
    }
}

impl PodNet {
    /// The network of the node whose namespace this is; Pods get addresses of `ranges`.
    ///
    /// # Errors
    /// When the namespace's links cannot be read.
    pub async fn open(netns: Arc<OwnedFd>, ranges: Vec<ipnet::IpNet>) -> Result<Self, EdgeError> {
        let work = move || podnet::PodNetwork::open(netns.as_fd(), &ranges);
        Ok(Self(Arc::new(blocking("reading the node's links", work).await?)))
    }

    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&podnet::PodNetwork) -> podnet::Result<T> + Send + 'static,
    ) -> Result<T, EdgeError> {
        let network = self.0.clone();
        blocking(what, move || work(&network)).await
    }
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> podnet::Result<T> + Send + 'static,
) -> Result<T, EdgeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| EdgeError::new(what, e))?.map_err(|e| EdgeError::new(what, e))
}

#[async_trait]
impl Network for PodNet {
    async fn attach(&self, pod: &Pod, netns: OwnedFd) -> Result<Vec<IpAddr>, EdgeError> {
        let uid = pod::uid(pod).to_string();
        self.run("connecting the Pod", move |network| network.attach(netns.as_fd(), &uid)).await
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), EdgeError> {
        let uid = pod_uid.to_string();
        self.run("disconnecting the Pod", move |network| network.detach(&uid)).await
    }

    async fn adopt(&self, pod_uid: &str, addresses: &[IpAddr]) -> Result<(), EdgeError> {
        let (uid, addresses) = (pod_uid.to_string(), addresses.to_vec());
        self.run("taking over the Pod's addresses", move |network| network.adopt(&uid, &addresses)).await
    }

    /// Links of Pods that are gone went with their namespaces.
    async fn collect(&self, _alive: &BTreeSet<String>) -> Result<(), EdgeError> {
        Ok(())
    }
}

/// The Pod network of CNI plugins.
#[derive(Debug)]
pub struct PluginNet {
    cni: podnet::cni::Cni,
    /// The process that holds Pods' namespaces open: the shim.
    holder: i32,
}

impl PluginNet {
    /// The network that those plugins make in the node whose namespace this is; `holder` is the process that holds Pods'
    /// namespaces open as long as they live.
    ///
    /// # Errors
    /// When the plugins cannot be used.
    pub async fn open(
        netns: Arc<OwnedFd>,
        options: podnet::cni::Options,
        holder: i32,
    ) -> Result<Self, EdgeError> {
        let cni = podnet::cni::Cni::open(netns, options).await;
        Ok(Self { cni: cni.map_err(|e| EdgeError::new("preparing the Pod network", e))?, holder })
    }
}

#[async_trait]
impl Network for PluginNet {
    async fn attach(&self, pod: &Pod, netns: OwnedFd) -> Result<Vec<IpAddr>, EdgeError> {
        let path = podnet::cni::path_held_by(self.holder, netns.as_fd());
        let path = path.map_err(|e| EdgeError::new("finding the Pod's network namespace", e))?;
        let added = self.cni.add(&plugins_view(pod), netns.as_fd(), &path).await;
        added.map_err(|e| EdgeError::new("connecting the Pod", e))
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), EdgeError> {
        self.cni.del(pod_uid).await.map_err(|e| EdgeError::new("disconnecting the Pod", e))
    }

    /// Its addresses are on the plugins' record; whether they still hold is asked.
    async fn adopt(&self, pod_uid: &str, _addresses: &[IpAddr]) -> Result<(), EdgeError> {
        self.cni.check(pod_uid).await.map_err(|e| EdgeError::new("checking the Pod's network", e))
    }

    async fn collect(&self, alive: &BTreeSet<String>) -> Result<(), EdgeError> {
        let failures = self.cni.collect(alive).await;
        let text: Vec<String> = failures.iter().map(ToString::to_string).collect();
        if text.is_empty() { Ok(()) } else { Err(EdgeError(text.join("; "))) }
    }
}

/// A Pod as plugins are told of it.
fn plugins_view(pod: &Pod) -> podnet::cni::Pod {
    let mapping = |port: pod::WantedPort<'_>| podnet::cni::PortMapping {
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol.to_lowercase(),
    };
    podnet::cni::Pod {
        uid: pod::uid(pod).to_owned(),
        namespace: pod::namespace(pod).to_owned(),
        name: pod::name(pod).to_owned(),
        ports: pod::wanted_ports(pod).map(mapping).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn plugins_are_told_of_the_ports_that_a_pod_wants_of_its_node() {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
            "spec": {"containers": [{"name": "a", "ports": [
                {"containerPort": 80, "hostPort": 8080, "protocol": "UDP", "hostIP": "192.0.2.1"},
                {"containerPort": 81}, {"containerPort": 82, "hostPort": 0}]}],
                "initContainers": [{"name": "b", "restartPolicy": "Always", "ports": [{"containerPort": 83, "hostPort": 8083}]}]},
        }));
        let view = plugins_view(&pod.unwrap());
        assert_eq!((view.uid.as_str(), view.namespace.as_str(), view.name.as_str()), ("u-1", "shop", "web"));
        let mut ports: Vec<(u16, u16, &str, bool)> = view
            .ports
            .iter()
            .map(|p| (p.host_port, p.container_port, p.protocol.as_str(), p.host_ip.is_some()))
            .collect();
        ports.sort();
        assert_eq!(ports, [(8080, 80, "udp", true), (8083, 83, "tcp", false)]);
    }
}
