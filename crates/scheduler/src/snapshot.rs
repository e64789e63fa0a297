//! The nodes as the scheduler sees them: each with what runs on it, summed up.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::resources::{self, Amounts};

/// A port of the node's that a Pod takes: protocol, host address (empty for all), number.
pub type HostPort = (String, String, i32);

/// A node and what is on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node.
    pub node: Arc<Node>,
    /// What Pods may use.
    pub allocatable: Amounts,
    /// What its Pods have asked for.
    pub requested: Amounts,
    /// Its Pods that have not ended, assumed ones included.
    pub pods: Vec<Arc<Pod>>,
    /// Host ports in use.
    pub ports: Vec<HostPort>,
}

impl NodeInfo {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// A label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Counts a Pod in.
    pub fn add(&mut self, pod: Arc<Pod>) {
        resources::add(&mut self.requested, &resources::of_pod(&pod));
        self.ports.extend(host_ports(&pod));
        self.pods.push(pod);
    }
}

/// All nodes by name.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The nodes.
    pub nodes: BTreeMap<String, NodeInfo>,
}

impl Snapshot {
    /// Sums up nodes and the Pods bound to them; Pods that have ended take nothing.
    pub fn new(nodes: impl IntoIterator<Item = Arc<Node>>, pods: impl IntoIterator<Item = Arc<Pod>>) -> Self {
        let mut snapshot = Self::default();
        for node in nodes {
            let status = node.status.as_ref();
            let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
            let info = NodeInfo {
                allocatable: resources::amounts(allocatable),
                requested: Amounts::new(),
                pods: Vec::new(),
                ports: Vec::new(),
                node,
            };
            snapshot.nodes.insert(info.name().to_owned(), info);
        }
        for pod in pods {
            let on = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
            if let Some(info) = on.and_then(|name| snapshot.nodes.get_mut(name)).filter(|_| !ended(&pod)) {
                info.add(pod);
            }
        }
        snapshot
    }

    /// All Pods on all nodes, each with its node.
    pub fn pods(&self) -> impl Iterator<Item = (&NodeInfo, &Arc<Pod>)> {
        self.nodes.values().flat_map(|info| info.pods.iter().map(move |pod| (info, pod)))
    }
}

/// Whether a Pod has ended and holds nothing any more.
pub fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The host ports a Pod takes; with `hostNetwork` every container port is one.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let host_network = spec.host_network == Some(true);
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let taken = ports.filter_map(|p| {
        let number = p.host_port.or(host_network.then_some(p.container_port)).filter(|n| *n > 0)?;
        let address = p.host_ip.clone().filter(|a| a != "0.0.0.0" && a != "::").unwrap_or_default();
        Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), address, number))
    });
    taken.collect()
}
