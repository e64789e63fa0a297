//! Where the node agent meets the parts of this process: the Pod network, the image store on the host's side, and the
//! service proxy's host ports.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, ResourceExt};
use kubelet::edge::{EdgeError, Image, Images, Network, PullSecret};
use kubelet::real::{PluginNet, PodNet};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, watch};

use super::plugins::Plugins;

/// The Pod network of a node, opened at the first use. Its range is the Node's `spec.podCIDRs`, which a controller gives
/// once the Node exists.
pub struct NodePods {
    pub client: Client,
    pub node_name: String,
    pub netns: Arc<OwnedFd>,
    /// The process that holds Pods' namespaces open.
    pub shim: i32,
    /// Who connects Pods, if not we ourselves.
    pub plugins: Option<Plugins>,
    pub network: OnceCell<Arc<dyn Network>>,
    /// Where a Pod waits for its network policies, if they are enforced.
    pub gate: Option<netpol::Gate>,
}

impl NodePods {
    async fn network(&self) -> Result<&Arc<dyn Network>, EdgeError> {
        self.network.get_or_try_init(|| self.open()).await
    }

    async fn open(&self) -> Result<Arc<dyn Network>, EdgeError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let ranges_of =
            |node: &Node| node.spec.as_ref().and_then(|s| s.pod_cidrs.clone()).unwrap_or_default();
        let has_ranges = |node: Option<&Node>| node.is_some_and(|n| !ranges_of(n).is_empty());
        let node = kube::runtime::wait::await_condition(nodes, &self.node_name, has_ranges).await;
        let node = node.map_err(|e| EdgeError::new("waiting for the node's Pod addresses", e))?;
        let ranges = node.as_ref().map(ranges_of).unwrap_or_default();
        let ranges: Result<Vec<ipnet::IpNet>, _> = ranges.iter().map(|r| r.parse()).collect();
        let ranges = ranges.map_err(|e| EdgeError::new("reading the node's podCIDRs", e))?;
        let netns = self.netns.clone();
        Ok(match &self.plugins {
            Some(plugins) => Arc::new(PluginNet::open(netns, plugins.options(ranges), self.shim).await?),
            None => Arc::new(PodNet::open(netns, ranges).await?),
        })
    }
}

#[async_trait]
impl Network for NodePods {
    async fn attach(&self, pod: &Pod, netns: OwnedFd) -> Result<Vec<IpAddr>, EdgeError> {
        let addresses = self.network().await?.attach(pod, netns).await?;
        if let Some(gate) = &self.gate {
            let passed = gate.pass(&pod.uid().unwrap_or_default(), &addresses).await;
            passed.map_err(|e| EdgeError::new("protecting the Pod", e))?;
        }
        Ok(addresses)
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), EdgeError> {
        self.network().await?.detach(pod_uid).await
    }

    async fn adopt(&self, pod_uid: &str, addresses: &[IpAddr]) -> Result<(), EdgeError> {
        let told = self.gate.as_ref().map_or(Ok(()), |gate| gate.tell(pod_uid, addresses));
        told.map_err(|e| EdgeError::new("protecting the Pod", e))?;
        self.network().await?.adopt(pod_uid, addresses).await
    }

    async fn collect(&self, alive: &BTreeSet<String>) -> Result<(), EdgeError> {
        // Only plugins leave anything; of our own network it went with the Pods' namespaces.
        if self.plugins.is_none() {
            return Ok(());
        }
        self.network().await?.collect(alive).await
    }
}

/// Images whose pulls go out from the host: its resolver, VPN and proxies work for them as for every other program.
pub struct OnHost<I> {
    images: Arc<I>,
    host: Handle,
}

impl<I> OnHost<I> {
    /// `host` is a runtime whose threads are in the host's network namespace.
    pub fn new(images: I, host: Handle) -> Self {
        Self { images: Arc::new(images), host }
    }
}

#[async_trait]
impl<I: Images> Images for OnHost<I> {
    async fn get(&self, reference: &str) -> Option<Image> {
        self.images.get(reference).await
    }

    async fn pull(&self, reference: &str, secrets: Vec<PullSecret>) -> Result<Image, EdgeError> {
        let (images, reference) = (self.images.clone(), reference.to_owned());
        let pull = self.host.spawn(async move { images.pull(&reference, secrets).await });
        pull.await.map_err(|e| EdgeError::new("pulling", e))?
    }

    async fn list(&self) -> Vec<(Vec<String>, u64)> {
        self.images.list().await
    }
}

/// Hands the host ports that the agent wants to the proxy, in the proxy's terms.
pub async fn forward_host_ports(
    mut wanted: watch::Receiver<Vec<kubelet::HostPort>>,
    proxy: watch::Sender<Vec<proxy::HostPort>>,
) {
    loop {
        let ports = wanted.borrow_and_update().iter().filter_map(host_port).collect();
        proxy.send_replace(ports);
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

fn host_port(port: &kubelet::HostPort) -> Option<proxy::HostPort> {
    Some(proxy::HostPort {
        protocol: proxy::Protocol::parse(Some(&port.protocol))?,
        host_ip: port.host_ip,
        host_port: port.host_port,
        target: (port.pod_ip, port.container_port).into(),
    })
}
