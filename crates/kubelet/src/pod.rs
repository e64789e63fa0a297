//! Questions about a Pod object that several parts ask: its names, its containers, its quality of service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use client::quantity;

/// What kind of container a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An init container that must end before the next begins.
    Init,
    /// A restartable init container (`restartPolicy: Always`): it keeps running beside the main ones.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// One of `spec.ephemeralContainers`.
    Ephemeral,
}

/// The Pod's spec; a Pod without one is treated as having nothing to run.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// `metadata.uid`.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.name`.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// `metadata.namespace`.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as upstream's messages write a Pod.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// True for an init container that is a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// `spec.restartPolicy`, `Always` when absent.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// True when the Pod uses the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// All containers of the Pod with their roles, in the order init, main, ephemeral.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (Role, &Container)> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|c| (if is_sidecar(c) { Role::Sidecar } else { Role::Init }, c));
    init.chain(spec.containers.iter().map(|c| (Role::Main, c)))
}

/// A port of the node that a container asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedPort<'a> {
    /// Address of the node, or `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'a str,
    /// The container's port.
    pub container_port: u16,
}

/// The ports of the node that a Pod asks for.
pub fn wanted_ports(pod: &Pod) -> impl Iterator<Item = WantedPort<'_>> {
    let ports = containers(pod).flat_map(|(_, c)| c.ports.iter().flatten());
    ports.filter_map(|port| {
        let number = |n: i32| u16::try_from(n).ok().filter(|n| *n > 0);
        let host_ip = port.host_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
        Some(WantedPort {
            host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
            host_port: number(port.host_port?)?,
            protocol: port.protocol.as_deref().unwrap_or("TCP"),
            container_port: number(port.container_port)?,
        })
    })
}

/// The container of that name (ephemeral ones too, in the shape of an ordinary one).
pub fn container(pod: &Pod, name: &str) -> Option<(Role, Container)> {
    let known = containers(pod).find(|(_, c)| c.name == name).map(|(role, c)| (role, c.clone()));
    known.or_else(|| {
        let all = spec(pod).ephemeral_containers.iter().flatten();
        all.filter(|e| e.name == name).map(|e| (Role::Ephemeral, from_ephemeral(e))).next()
    })
}

/// An ephemeral container in the shape of an ordinary one: they differ in `targetContainerName` only.
pub fn from_ephemeral(e: &EphemeralContainer) -> Container {
    Container {
        name: e.name.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        command: e.command.clone(),
        args: e.args.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        working_dir: e.working_dir.clone(),
        volume_mounts: e.volume_mounts.clone(),
        volume_devices: e.volume_devices.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        ..Container::default()
    }
}

/// The host name of the Pod's containers: `spec.hostname`, else the Pod's name cut to 63 bytes.
pub fn hostname(pod: &Pod) -> String {
    let spec = spec(pod);
    let name = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or_else(|| name(pod));
    name.get(..63).unwrap_or(name).trim_end_matches(['-', '.']).to_string()
}

/// `hostname.subdomain.namespace.svc.domain` when the Pod has a subdomain.
pub fn fqdn(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = spec(pod).subdomain.as_deref().filter(|s| !s.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{cluster_domain}", hostname(pod), namespace(pod)))
}

/// The `status.qosClass` of upstream: by the cpu and memory requests and limits of all containers.
pub fn qos_class(pod: &Pod) -> &'static str {
    let mut requested = false;
    let mut guaranteed = true;
    for (_, container) in containers(pod) {
        let resources = container.resources.clone().unwrap_or_default();
        for name in ["cpu", "memory"] {
            let limit = amount(resources.limits.as_ref(), name);
            let request = amount(resources.requests.as_ref(), name).or(limit);
            requested |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (requested, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    list?.get(name).and_then(quantity::millis).filter(|n| *n != 0)
}

/// A resource's request or limit of a container, in thousandths.
pub fn resource(resources: Option<&ResourceRequirements>, kind: &str, name: &str) -> Option<i128> {
    let resources = resources?;
    let list = if kind == "limits" { resources.limits.as_ref() } else { resources.requests.as_ref() };
    list?.get(name).and_then(quantity::millis)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// A Pod from its JSON, as tests like to write it.
    pub fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn with_resources(resources: serde_json::Value) -> Pod {
        pod(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": resources}]}}))
    }

    #[test]
    fn quality_of_service() {
        for (resources, class) in [
            (serde_json::json!({}), "BestEffort"),
            (serde_json::json!({"requests": {"cpu": "100m"}}), "Burstable"),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                "Guaranteed",
            ),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Mi"}}),
                "Burstable",
            ),
            (serde_json::json!({"limits": {"cpu": "1"}}), "Burstable"),
        ] {
            assert_eq!(qos_class(&with_resources(resources)), class);
        }
    }

    #[test]
    fn host_names() {
        let long = "a".repeat(62) + "-bcd";
        let p = pod(
            serde_json::json!({"metadata": {"name": long, "namespace": "ns"}, "spec": {"containers": []}}),
        );
        assert_eq!(hostname(&p), "a".repeat(62));
        let p = pod(serde_json::json!({"metadata": {"name": "p", "namespace": "ns"},
            "spec": {"hostname": "h", "subdomain": "s", "containers": []}}));
        assert_eq!(fqdn(&p, "cluster.local").unwrap(), "h.s.ns.svc.cluster.local");
    }
}
