//! The Node object: what this machine has, that it is alive, and the Lease that says so cheaply.
//!
//! The Lease is renewed every 10 seconds; the Node's status is written when it changed, and every five minutes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference, Time};
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::config::{Agent, Config, KUBELET_VERSION};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const REPORT: Duration = Duration::from_secs(300);
/// Images named in the Node's status, as upstream limits them.
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;
/// Below this the node says that it is short of memory or disk.
const PRESSURE_BYTES: u64 = 100 << 20;

/// What the node has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes of local storage.
    pub ephemeral_bytes: i64,
}

impl Capacity {
    /// Of this machine; local storage is the file system of `root`.
    pub fn read(root: &Path) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let total = meminfo("MemTotal").unwrap_or(0);
        let disk = nix::sys::statvfs::statvfs(root).map_or(0, |s| s.blocks() * s.fragment_size());
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            cpu_millis: signed(cores as u64) * 1000,
            memory_bytes: signed(total),
            ephemeral_bytes: signed(disk),
        }
    }
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

fn system_info() -> NodeSystemInfo {
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = os
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_string();
    let machine_id = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("skiff://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.into(),
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        operating_system: "linux".into(),
        os_image: pretty,
        swap: None,
    }
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The Node as it is registered.
fn node(config: &Config) -> Node {
    let arch = architecture();
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .collect();
    labels.extend(config.node_labels.clone());
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some(config.node_annotations.clone()).filter(|a| !a.is_empty()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: config.pod_cidr.clone(),
            pod_cidrs: config.pod_cidr.clone().map(|c| vec![c]),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// How full the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pressure {
    memory: bool,
    disk: bool,
}

impl Pressure {
    fn read(root: &Path) -> Self {
        let free =
            nix::sys::statvfs::statvfs(root).map_or(u64::MAX, |s| s.blocks_available() * s.fragment_size());
        let available = meminfo("MemAvailable").unwrap_or(u64::MAX);
        Self { memory: available < PRESSURE_BYTES, disk: free < PRESSURE_BYTES }
    }
}

fn conditions(pressure: Pressure, known: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let row = |kind: &str, met: bool, reason: &str, message: &str| {
        let status = if met { "True" } else { "False" };
        let before = known.iter().find(|c| c.type_ == kind && c.status == status);
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(
                before.and_then(|b| b.last_transition_time.clone()).unwrap_or(Time(now)),
            ),
        }
    };
    let memory = match pressure.memory {
        true => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        false => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    };
    let disk = match pressure.disk {
        true => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        false => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    };
    vec![
        row("MemoryPressure", pressure.memory, memory.0, memory.1),
        row("DiskPressure", pressure.disk, disk.0, disk.1),
        row("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        row("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ]
}

fn status(
    agent: &Agent,
    port: u16,
    images: Vec<ContainerImage>,
    known: &[NodeCondition],
    now: Timestamp,
) -> NodeStatus {
    let config = &agent.config;
    let quantity = |text: String| Quantity(text);
    let resources: BTreeMap<String, Quantity> = [
        ("cpu".to_string(), quantity((agent.capacity.cpu_millis / 1000).to_string())),
        ("memory".to_string(), quantity(format!("{}Ki", agent.capacity.memory_bytes / 1024))),
        ("ephemeral-storage".to_string(), quantity(format!("{}Ki", agent.capacity.ephemeral_bytes / 1024))),
        ("pods".to_string(), quantity(config.max_pods.to_string())),
    ]
    .into();
    let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    let mut addresses: Vec<NodeAddress> =
        config.node_ips.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.node_name.clone()));
    NodeStatus {
        addresses: Some(addresses),
        allocatable: Some(resources.clone()),
        capacity: Some(resources),
        conditions: Some(conditions(Pressure::read(&config.root_dir), known, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(port) }),
        }),
        images: Some(images),
        node_info: Some(system_info()),
        ..NodeStatus::default()
    }
}

async fn images(agent: &Agent) -> Vec<ContainerImage> {
    let mut all = agent.images.list().await;
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    all.truncate(MAX_IMAGES);
    let image = |(mut names, size): (Vec<String>, u64)| {
        names.truncate(MAX_IMAGE_NAMES);
        ContainerImage { names: Some(names), size_bytes: i64::try_from(size).ok() }
    };
    all.into_iter().map(image).collect()
}

/// Registers the Node (again and again until the API server takes it) and keeps it alive until `stop`.
pub async fn run(agent: Arc<Agent>, port: u16, stop: CancellationToken) {
    let mut delay = Duration::from_millis(100);
    let registered = loop {
        match register(&agent).await {
            Ok(node) => break node,
            Err(error) => tracing::warn!(node = agent.config.node_name, %error, "registering the node"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
        }
    };
    let uid = registered.metadata.uid.clone().unwrap_or_default();
    let mut conditions = registered.status.and_then(|s| s.conditions).unwrap_or_default();
    let mut reported: Option<(tokio::time::Instant, NodeStatus)> = None;
    loop {
        let now = (agent.clock)();
        let fresh = status(&agent, port, images(&agent).await, &conditions, now);
        let due = reported.as_ref().is_none_or(|(at, known)| at.elapsed() >= REPORT || !same(known, &fresh));
        if due {
            match report(&agent, &fresh).await {
                Ok(()) => {
                    conditions = fresh.conditions.clone().unwrap_or_default();
                    reported = Some((tokio::time::Instant::now(), fresh));
                }
                Err(error) => {
                    tracing::warn!(node = agent.config.node_name, %error, "writing the node's status")
                }
            }
        }
        if let Err(error) = renew(&agent, &uid, now).await {
            tracing::warn!(node = agent.config.node_name, %error, "renewing the node's lease");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEW) => {}
        }
    }
}

/// Equal but for heartbeat times.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |s: &NodeStatus| {
        let mut s = s.clone();
        s.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        s
    };
    still(a) == still(b)
}

async fn register(agent: &Agent) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(agent.client.clone());
    let node = node(&agent.config);
    let name = agent.config.node_name.as_str();
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            api.patch(name, &PatchParams::default(), &Patch::Merge(additions(&node.metadata))).await
        }
        created => {
            if created.is_ok() {
                let regarding = client::Regarding::node(name);
                agent.recorder.normal("kubelet", regarding, "Starting", "Starting kubelet.".into());
            }
            created
        }
    }
}

/// The labels and annotations of a node that exists already are its users' too: ours are added, a `null` would wipe all.
fn additions(metadata: &ObjectMeta) -> serde_json::Value {
    let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
    let none = BTreeMap::new();
    json!({"metadata": {"labels": labels.unwrap_or(&none), "annotations": annotations.unwrap_or(&none)}})
}

/// Addresses are merged by their type, which two of them share when the node has both IP families: they are replaced.
fn status_patch(status: &NodeStatus) -> serde_json::Value {
    let mut patch = json!({"status": status});
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    patch
}

async fn report(agent: &Agent, status: &NodeStatus) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(agent.client.clone());
    // Lists here are merged by key on the server; a merge patch would wipe conditions of others.
    let patch = status_patch(status);
    api.patch_status(&agent.config.node_name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

async fn renew(agent: &Agent, uid: &str, now: Timestamp) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(agent.client.clone(), LEASE_NAMESPACE);
    let name = agent.config.node_name.as_str();
    let patch = json!({"spec": {"renewTime": MicroTime(now), "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let owner = OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.into(),
                uid: uid.into(),
                ..OwnerReference::default()
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.into()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(name.into()),
                    lease_duration_seconds: Some(LEASE_SECONDS),
                    renew_time: Some(MicroTime(now)),
                    ..LeaseSpec::default()
                }),
            };
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn this_machine_has_something() {
        let capacity = Capacity::read(Path::new("/"));
        assert!(
            capacity.cpu_millis >= 1000 && capacity.memory_bytes > 1 << 20 && capacity.ephemeral_bytes > 0
        );
        let info = system_info();
        assert!(!info.kernel_version.is_empty() && !info.boot_id.is_empty());
    }

    #[test]
    fn two_addresses_of_one_type_stay_two() {
        let address = |ip: &str| NodeAddress { type_: "InternalIP".into(), address: ip.into() };
        let status = NodeStatus {
            addresses: Some(vec![address("10.0.0.1"), address("fd00::1")]),
            ..NodeStatus::default()
        };
        let expected = json!([{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd00::1"},
            {"$patch": "replace"}]);
        assert_eq!(status_patch(&status)["status"]["addresses"], expected);
    }

    #[test]
    fn registering_again_takes_nothing_away() {
        let bare = additions(&ObjectMeta::default());
        assert_eq!(bare, json!({"metadata": {"labels": {}, "annotations": {}}}));
        let labels = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        let labelled = additions(&ObjectMeta { labels, ..ObjectMeta::default() });
        assert_eq!(labelled, json!({"metadata": {"labels": {"a": "b"}, "annotations": {}}}));
    }

    #[test]
    fn conditions_keep_their_transition_times() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let fine = Pressure { memory: false, disk: false };
        let first = conditions(fine, &[], at(1));
        let second = conditions(Pressure { memory: false, disk: true }, &first, at(2));
        let time = |list: &[NodeCondition], kind: &str| {
            list.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.clone().unwrap().0
        };
        assert_eq!((time(&second, "Ready"), time(&second, "DiskPressure")), (at(1), at(2)));
        let status =
            |c: &[NodeCondition]| NodeStatus { conditions: Some(c.to_vec()), ..NodeStatus::default() };
        assert!(same(&status(&first), &status(&conditions(fine, &first, at(9)))));
        assert!(!same(&status(&first), &status(&second)));
    }
}
