//! From a Pod's container and its image to the OCI runtime specification: one pure function, [`build`].
//!
//! What needs the outside (account files of the image, ConfigMaps, mounts, devices) is fetched before and given in.
//! The runtime's default specification ([`Defaults`]) is the base; the shim fills in root and shared namespaces.
//! Follows the OCI runtime specification 1.2 and the Kubernetes API's field descriptions.

pub mod devices;
pub mod env;
pub mod expand;
pub mod fields;
pub mod resources;
pub mod security;
pub mod user;

use std::collections::HashSet;
use std::path::PathBuf;

use indexmap::IndexMap;
use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::{
    Capability, LinuxDevice, LinuxDeviceCgroupBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxSeccomp, Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, UserBuilder,
};

use crate::pod::{self, Role};

/// Why a container cannot be described.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Something the Pod refers to is missing; it may appear (`CreateContainerConfigError`).
    #[error("{0}")]
    Config(String),
    /// The Pod asks for what cannot be (`CreateContainerConfigError`).
    #[error("{0}")]
    Invalid(String),
    /// The image and the Pod name no command (`CreateContainerError`).
    #[error("no command specified")]
    NoCommand,
    /// A specification that the library refuses.
    #[error("cannot build the runtime specification: {0}")]
    Build(String),
}

impl From<oci_spec::OciSpecError> for SpecError {
    fn from(error: oci_spec::OciSpecError) -> Self {
        Self::Build(error.to_string())
    }
}

/// The runtime's defaults, the ground that a Pod's wishes are laid on.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// Mounts, masked paths, namespaces, limits.
    pub spec: Spec,
    /// Docker's default capability set.
    pub capabilities: HashSet<Capability>,
    /// The `RuntimeDefault` filter for a container with these capabilities.
    pub seccomp: fn(&HashSet<Capability>) -> LinuxSeccomp,
}

/// How mounts travel between the container and the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// Neither way.
    #[default]
    None,
    /// Later mounts of the node appear in the container.
    HostToContainer,
}

/// One bind mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the node.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// Mount it read-only.
    pub read_only: bool,
    /// Mounts below it read-only too.
    pub recursive_read_only: bool,
    /// Propagation.
    pub propagation: Propagation,
}

/// The part of an image's configuration that a container starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user[:group]`.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// Signal that asks it to stop, by name or number.
    pub stop_signal: String,
}

/// All that [`build`] looks at.
#[derive(Debug)]
pub struct Input<'a> {
    /// The Pod.
    pub pod: &'a Pod,
    /// Its container.
    pub container: &'a Container,
    /// What it is in the Pod.
    pub role: Role,
    /// Its image.
    pub image: &'a ImageConfig,
    /// The image's account files.
    pub accounts: user::Accounts<'a>,
    /// Its variables, from [`env::environment`].
    pub env: &'a IndexMap<String, String>,
    /// Its bind mounts.
    pub binds: &'a [Bind],
    /// Devices of the node, for privileged containers.
    pub host_devices: &'a [LinuxDevice],
    /// Memory of the node, bytes.
    pub node_memory: i64,
    /// cgroup of the container, relative to each hierarchy.
    pub cgroup: String,
    /// A pid namespace to join (`shareProcessNamespace`, ephemeral containers with a target).
    pub pid_namespace: Option<PathBuf>,
    /// The runtime's defaults.
    pub defaults: &'a Defaults,
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The runtime specification of one container.
///
/// # Errors
/// When the Pod asks for what cannot be honoured; nothing is silently left out.
pub fn build(input: &Input<'_>) -> Result<Spec, SpecError> {
    security::check(input.pod, input.container)?;
    let identity = user::identity(input.pod, input.container, &input.image.user, input.accounts)?;
    let args = command(input)?;
    let env = merged_env(input, identity.home.as_deref());
    let context = security::context(input.container);
    let privileged = security::privileged(input.container);
    let mut spec = input.defaults.spec.clone();
    let capabilities = security::capabilities(input.container, &input.defaults.capabilities)?;
    let held = capabilities.bounding().clone().unwrap_or_default();

    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups)
        .build()?;
    let mut process = ProcessBuilder::default()
        .terminal(input.container.tty == Some(true))
        .user(user)
        .args(args)
        .env(env)
        .cwd(working_dir(input))
        .capabilities(capabilities)
        .no_new_privileges(context.allow_privilege_escalation == Some(false))
        .oom_score_adj(resources::oom_score_adj(input.pod, input.role, input.container, input.node_memory));
    if let Some(limits) = spec.process().as_ref().and_then(|p| p.rlimits().clone()) {
        process = process.rlimits(limits);
    }
    spec.set_process(Some(process.build()?));
    spec.set_hostname(None);
    let read_only = context.read_only_root_filesystem == Some(true);
    spec.set_root(Some(RootBuilder::default().path("rootfs").readonly(read_only).build()?));
    let mounts = spec.mounts().clone().unwrap_or_default();
    spec.set_mounts(Some(merge_mounts(mounts, input.binds, privileged)?));

    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_cgroups_path(Some(PathBuf::from(&input.cgroup)));
    // The sandbox sets sysctls once; a container's own would be refused by a shared namespace.
    linux.set_sysctl(None);
    linux.set_seccomp(security::seccomp(input.pod, input.container, || (input.defaults.seccomp)(&held))?);
    let mut limits = resources::limits(input.container)?;
    limits.set_devices(linux.resources().as_ref().and_then(|r| r.devices().clone()));
    if privileged {
        let all = LinuxDeviceCgroupBuilder::default().allow(true).access("rwm").build()?;
        limits.set_devices(Some(vec![all]));
        let mut devices = linux.devices().clone().unwrap_or_default();
        let known: HashSet<PathBuf> = devices.iter().map(|d| d.path().clone()).collect();
        devices.extend(input.host_devices.iter().filter(|d| !known.contains(d.path())).cloned());
        linux.set_devices(Some(devices));
    }
    linux.set_resources(Some(limits));
    if privileged || context.proc_mount.as_deref() == Some("Unmasked") {
        linux.set_masked_paths(None);
        linux.set_readonly_paths(None);
    }
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let host_pid = pod::spec(input.pod).host_pid == Some(true);
    if host_pid || input.pid_namespace.is_some() {
        namespaces.retain(|n| n.typ() != LinuxNamespaceType::Pid);
    }
    if let Some(path) = input.pid_namespace.as_ref().filter(|_| !host_pid) {
        namespaces.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(path).build()?);
    }
    linux.set_namespaces(Some(namespaces));
    // HostToContainer needs a root that receives: a private root would cut the binds off from the node.
    if input.binds.iter().any(|b| b.propagation == Propagation::HostToContainer) {
        linux.set_rootfs_propagation(Some("rslave".into()));
    }
    spec.set_linux(Some(linux));
    Ok(spec)
}

fn command(input: &Input<'_>) -> Result<Vec<String>, SpecError> {
    let lookup = |name: &str| input.env.get(name).cloned();
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand::expand(text, lookup)).collect()
    };
    let (command, args) = (expanded(&input.container.command), expanded(&input.container.args));
    let mut argv = if command.is_empty() { input.image.entrypoint.clone() } else { command.clone() };
    if !args.is_empty() {
        argv.extend(args);
    } else if command.is_empty() {
        argv.extend(input.image.cmd.iter().cloned());
    }
    if argv.is_empty() { Err(SpecError::NoCommand) } else { Ok(argv) }
}

fn working_dir(input: &Input<'_>) -> PathBuf {
    let own = input.container.working_dir.as_deref().filter(|d| !d.is_empty());
    let dir = own.unwrap_or(&input.image.working_dir);
    PathBuf::from(if dir.is_empty() { "/" } else { dir })
}

fn merged_env(input: &Input<'_>, home: Option<&str>) -> Vec<String> {
    let mut env: IndexMap<String, String> = IndexMap::new();
    env.insert("PATH".into(), PATH.into());
    if pod::host_network(input.pod) {
        env.insert("HOSTNAME".into(), pod::spec(input.pod).node_name.clone().unwrap_or_default());
    } else {
        env.insert("HOSTNAME".into(), pod::hostname(input.pod));
    }
    if input.container.tty == Some(true) {
        env.insert("TERM".into(), "xterm".into());
    }
    for line in &input.image.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        env.insert(name.into(), value.into());
    }
    for (name, value) in input.env {
        env.insert(name.clone(), value.clone());
    }
    env.entry("HOME".into()).or_insert_with(|| home.unwrap_or("/").into());
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Default mounts, less those that the Pod mounts over, then the binds with parents before children.
fn merge_mounts(defaults: Vec<Mount>, binds: &[Bind], privileged: bool) -> Result<Vec<Mount>, SpecError> {
    let taken: HashSet<&PathBuf> = binds.iter().map(|b| &b.destination).collect();
    let mut mounts: Vec<Mount> = defaults.into_iter().filter(|m| !taken.contains(m.destination())).collect();
    if privileged {
        for mount in mounts.iter_mut().filter(|m| matches!(m.typ().as_deref(), Some("sysfs" | "cgroup"))) {
            let options = mount.options().clone().unwrap_or_default();
            mount.set_options(Some(options.into_iter().filter(|o| o != "ro").collect()));
        }
    }
    let mut binds: Vec<&Bind> = binds.iter().collect();
    binds.sort_by_key(|b| b.destination.components().count());
    for bind in binds {
        let mut options = vec!["rbind"];
        options.push(match bind.propagation {
            Propagation::None => "rprivate",
            Propagation::HostToContainer => "rslave",
        });
        options.push(match (bind.read_only, bind.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        });
        let options: Vec<String> = options.into_iter().map(String::from).collect();
        let mount = MountBuilder::default().destination(&bind.destination).typ("bind").source(&bind.source);
        mounts.push(mount.options(options).build()?);
    }
    Ok(mounts)
}

/// The signal number of a name such as `SIGTERM`, `TERM` or `15`; SIGTERM when it is none.
pub fn stop_signal(text: &str) -> i32 {
    use std::str::FromStr;
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { number } else { libc::SIGTERM };
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN").map(|o| o.trim_start_matches('+')) {
        return 34 + offset.parse::<i32>().unwrap_or(0).clamp(0, 30);
    }
    nix::sys::signal::Signal::from_str(&name).map_or(libc::SIGTERM, |s| s as i32)
}

#[cfg(test)]
mod tests;
