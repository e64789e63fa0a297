//! A Pod's sandbox: namespaces, network, and the managed files in /etc.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use runtime::SandboxSpec;

use super::pause::PauseProcess;
use crate::config::Agent;
use crate::hosts::{self, DnsFacts};
use crate::pod;
use crate::volume::fetch::api_error;

/// sysctls that a Pod may set without harming others (upstream's safe set).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Why the node does not take a Pod at all: reason and message of a failed Pod.
pub fn refusal(agent: &Agent, pod: &Pod) -> Option<(String, String)> {
    for sysctl in pod::spec(pod).security_context.iter().flat_map(|c| c.sysctls.iter().flatten()) {
        if !SAFE_SYSCTLS.contains(&dotted(&sysctl.name).as_str()) {
            let message = format!("forbidden sysctl: \"{}\" not allowlisted", sysctl.name);
            return Some(("SysctlForbidden".into(), message));
        }
    }
    if pod::spec(pod).share_process_namespace == Some(true) && agent.config.pause.is_none() {
        return Some(("Unsupported".into(), "shareProcessNamespace is not supported by this node".into()));
    }
    None
}

/// `net/ipv4/x` is another spelling of `net.ipv4.x`.
fn dotted(name: &str) -> String {
    if name.contains('/') { name.replace('/', ".") } else { name.to_string() }
}

/// A sandbox that was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// The Pod's addresses.
    pub ips: Vec<IpAddr>,
    /// First process of the shared pid namespace.
    pub pause: Option<PauseProcess>,
}

/// Makes the sandbox and connects it.
///
/// # Errors
/// With the reason; nothing half-made is left.
pub async fn make(agent: &Agent, pod: &Pod) -> Result<Made, String> {
    runtime_class(agent, pod).await?;
    let uid = pod::uid(pod);
    let spec = spec(agent, pod);
    agent.containers.create_sandbox(spec).await.map_err(|e| e.to_string())?;
    let made = fill(agent, pod).await;
    if made.is_err() {
        let undone = [agent.network.detach(uid).await, agent.containers.remove_sandbox(uid).await];
        undone.into_iter().filter_map(Result::err).for_each(|e| tracing::warn!(uid, %e, "undoing a sandbox"));
    }
    made
}

async fn fill(agent: &Agent, pod: &Pod) -> Result<Made, String> {
    let host = pod::host_network(pod);
    let ips = if host { agent.config.node_ips.clone() } else { connect(agent, pod).await? };
    files(agent, pod, &ips).map_err(|e| format!("cannot write the Pod's files: {e}"))?;
    let pause = match &agent.config.pause {
        Some(pause) if pod::spec(pod).share_process_namespace == Some(true) => {
            Some(super::pause::start(agent, pod, pause).await?)
        }
        _ => None,
    };
    Ok(Made { ips, pause })
}

async fn connect(agent: &Agent, pod: &Pod) -> Result<Vec<IpAddr>, String> {
    let netns = agent.containers.sandbox_netns(pod::uid(pod)).await.map_err(|e| e.to_string())?;
    agent.network.attach(pod, netns).await.map_err(|e| e.to_string())
}

async fn runtime_class(agent: &Agent, pod: &Pod) -> Result<(), String> {
    let Some(name) = pod::spec(pod).runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
        return Ok(());
    };
    let api: Api<RuntimeClass> = Api::all(agent.client.clone());
    match api.get_opt(name).await {
        Ok(Some(class))
            if class.handler == "skiff" || agent.config.runtime_handlers.contains(&class.handler) =>
        {
            Ok(())
        }
        Ok(Some(class)) => Err(format!("no runtime for \"{}\" is configured", class.handler)),
        Ok(None) => Err(format!("RuntimeClass \"{name}\" not found")),
        Err(error) => Err(api_error(&error)),
    }
}

fn spec(agent: &Agent, pod: &Pod) -> SandboxSpec {
    let host_network = pod::host_network(pod);
    let mut sysctls = BTreeMap::new();
    if !host_network {
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_string(), "0".to_string());
    }
    for sysctl in pod::spec(pod).security_context.iter().flat_map(|c| c.sysctls.iter().flatten()) {
        sysctls.insert(dotted(&sysctl.name), sysctl.value.clone());
    }
    SandboxSpec {
        id: pod::uid(pod).into(),
        hostname: hostname(agent, pod),
        host_network,
        host_ipc: pod::spec(pod).host_ipc == Some(true),
        sysctls,
        cgroup: cgroup(agent, pod),
        shm_size: None,
    }
}

/// The Pod's cgroup.
pub fn cgroup(agent: &Agent, pod: &Pod) -> String {
    format!("{}/pod{}", agent.config.cgroup, pod::uid(pod))
}

fn hostname(agent: &Agent, pod: &Pod) -> String {
    if pod::host_network(pod) {
        return agent.config.node_name.clone();
    }
    let fqdn = pod::fqdn(pod, &agent.config.cluster_domain);
    match fqdn.filter(|_| pod::spec(pod).set_hostname_as_fqdn == Some(true)) {
        Some(fqdn) => fqdn,
        None => pod::hostname(pod),
    }
}

/// Writes `hosts`, `hostname` and `resolv.conf` of the Pod.
fn files(agent: &Agent, pod: &Pod, ips: &[IpAddr]) -> std::io::Result<()> {
    let paths = agent.paths(pod::uid(pod));
    std::fs::create_dir_all(paths.etc(""))?;
    let hosts = if pod::host_network(pod) {
        let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        hosts::hosts_of_node(pod, &own)
    } else {
        hosts::hosts(pod, ips, &agent.config.cluster_domain)
    };
    std::fs::write(paths.etc("hosts"), hosts)?;
    std::fs::write(paths.etc("hostname"), hostname(agent, pod) + "\n")?;
    let node = agent.node_resolv_conf();
    let facts = DnsFacts {
        cluster_dns: &agent.config.cluster_dns,
        cluster_domain: &agent.config.cluster_domain,
        node: &node,
    };
    let (conf, warning) = hosts::resolv_conf(pod, &facts);
    if let Some(warning) = warning {
        agent.warning(pod, "DNSConfigForming", warning);
    }
    std::fs::write(paths.etc("resolv.conf"), conf.render())
}

/// Takes network and sandbox down; goes on past errors.
///
/// # Errors
/// All that went wrong, in one line.
pub async fn remove(agent: &Agent, pod: &Pod, pause: Option<&PauseProcess>) -> Result<(), String> {
    let uid = pod::uid(pod);
    let mut errors = Vec::new();
    if let Some(pause) = pause
        && let Err(error) = super::pause::remove(agent, pause).await
    {
        errors.push(error);
    }
    if !pod::host_network(pod)
        && let Err(error) = agent.network.detach(uid).await
    {
        errors.push(error.to_string());
    }
    if let Err(error) = agent.containers.remove_sandbox(uid).await {
        errors.push(error.to_string());
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}
