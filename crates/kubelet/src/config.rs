//! What the node agent is told at start, and what it shares among its parts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::{Informer, Recorder, Regarding};
use k8s_openapi::api::core::v1::{Pod, Service};
use tokio::sync::watch;

use crate::edge::{Containers, Images, Network};
use crate::hosts::ResolvConf;
use crate::node::Capacity;
use crate::spec::Defaults;
use crate::spec::fields::Facts;

/// The version that the Node reports.
pub const KUBELET_VERSION: &str = "v1.33.0";

/// Facts of this node; no handles.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's addresses, the primary one first; the HTTPS server listens on it.
    pub node_ips: Vec<IpAddr>,
    /// Port of the HTTPS server, usually 10250; 0 lets the kernel choose (tests).
    pub port: u16,
    /// Pods' files that survive a reboot, for example `/var/lib/skiff/<profile>/pods`.
    pub root_dir: PathBuf,
    /// Pods' files that must not reach a disk (secrets, tokens): a directory on a tmpfs, for example
    /// `/run/skiff/<profile>/pods`.
    pub volatile_dir: PathBuf,
    /// Container logs, for example `/var/lib/skiff/<profile>/logs`.
    pub log_dir: PathBuf,
    /// Parent of all Pods' cgroups, for example `/skiff/<profile>`.
    pub cgroup: String,
    /// Addresses of the cluster's DNS Service.
    pub cluster_dns: Vec<IpAddr>,
    /// For example `cluster.local`.
    pub cluster_domain: String,
    /// The host's resolver configuration, read anew for each Pod.
    pub host_resolv_conf: PathBuf,
    /// A resolver of the node that Pods with the host's configuration are given instead of the host's name servers
    /// (which may be on a loopback address that Pods cannot reach).
    pub node_dns: Option<IpAddr>,
    /// Labels and taints beyond the well-known labels.
    pub node_labels: BTreeMap<String, String>,
    /// Annotations of the Node.
    pub node_annotations: BTreeMap<String, String>,
    /// The range from which this node's Pods get addresses, if the node knows it itself.
    pub pod_cidr: Option<String>,
    /// How many Pods the node takes; upstream's default is 110.
    pub max_pods: u32,
    /// RuntimeClass handlers that this node has besides the default.
    pub runtime_handlers: Vec<String>,
    /// Image and arguments of a process that reaps children and waits for SIGTERM: the first process of Pods with
    /// `shareProcessNamespace`. `None` refuses such Pods.
    pub pause: Option<Pause>,
}

/// The first process of a shared pid namespace.
#[derive(Debug, Clone)]
pub struct Pause {
    /// Image reference, for example `localhost/skiff:latest`.
    pub image: String,
    /// Arguments, for example `["pause"]`.
    pub args: Vec<String>,
}

/// A port of the node that a container asks for (`hostPort`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Address of the node, or `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The Pod's address.
    pub pod_ip: IpAddr,
    /// The container's port.
    pub container_port: u16,
}

/// What all parts of the agent share.
pub struct Agent {
    /// Facts.
    pub config: Config,
    /// The API.
    pub client: kube::Client,
    /// Containers.
    pub containers: Arc<dyn Containers>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// The Pod network.
    pub network: Arc<dyn Network>,
    /// The runtime's defaults.
    pub defaults: Defaults,
    /// Events.
    pub recorder: Recorder,
    /// Services, for environment variables.
    pub services: Informer<Service>,
    /// What the node has.
    pub capacity: Capacity,
    /// The time; tests give one that follows tokio's paused clock.
    pub clock: fn() -> jiff::Timestamp,
    /// The host ports that all Pods here ask for.
    pub host_ports: watch::Sender<Vec<HostPort>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("node", &self.config.node_name).finish_non_exhaustive()
    }
}

impl Agent {
    /// Records a Normal Event of a Pod.
    pub fn normal(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.recorder.normal("kubelet", Regarding::of(pod), reason, message.into());
    }

    /// Records a Warning Event of a Pod.
    pub fn warning(&self, pod: &Pod, reason: &str, message: impl Into<String>) {
        self.recorder.warning("kubelet", Regarding::of(pod), reason, message.into());
    }

    /// Downward API facts for a Pod with these addresses.
    pub fn facts<'a>(&'a self, ips: &'a [IpAddr]) -> Facts<'a> {
        Facts {
            ips,
            host_ips: &self.config.node_ips,
            cpu_millis: self.capacity.cpu_millis,
            memory_bytes: self.capacity.memory_bytes,
            ephemeral_bytes: self.capacity.ephemeral_bytes,
        }
    }

    /// The resolver configuration that `dnsPolicy: Default` means.
    pub fn node_resolv_conf(&self) -> ResolvConf {
        let text = std::fs::read_to_string(&self.config.host_resolv_conf).unwrap_or_default();
        let mut conf = ResolvConf::parse(&text);
        if let Some(ip) = self.config.node_dns {
            conf.nameservers = vec![ip.to_string()];
        }
        conf
    }

    /// Where a Pod's files are.
    pub fn paths(&self, uid: &str) -> PodPaths {
        PodPaths { root: self.config.root_dir.join(uid), volatile: self.config.volatile_dir.join(uid) }
    }

    /// Where a Pod's logs are: `<namespace>_<name>_<uid>`.
    pub fn log_dir(&self, pod: &Pod) -> PathBuf {
        let (namespace, name, uid) =
            (crate::pod::namespace(pod), crate::pod::name(pod), crate::pod::uid(pod));
        self.config.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }

    /// The log file of a container's attempt.
    pub fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.log_dir(pod).join(container).join(format!("{attempt}.log"))
    }
}

/// The directories of one Pod.
#[derive(Debug, Clone)]
pub struct PodPaths {
    /// On disk.
    pub root: PathBuf,
    /// On a tmpfs.
    pub volatile: PathBuf,
}

impl PodPaths {
    /// Managed files: `hosts`, `hostname`, `resolv.conf`.
    pub fn etc(&self, name: &str) -> PathBuf {
        self.root.join("etc").join(name)
    }

    /// A volume's directory by plugin name, as upstream names them.
    pub fn volume(&self, plugin: &str, name: &str) -> PathBuf {
        let base: &Path = match plugin {
            "empty-dir" | "configmap" => &self.root,
            _ => &self.volatile,
        };
        base.join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    /// Scratch space and termination log of one attempt of a container.
    pub fn attempt(&self, container: &str, attempt: u32) -> PathBuf {
        self.root.join("containers").join(container).join(attempt.to_string())
    }

    /// The file that remembers the Pod's containers across restarts of the agent.
    pub fn record(&self) -> PathBuf {
        self.root.join("record.json")
    }
}
