//! The machine under examination. Each check is a pure judgement in [`judge`] over facts that are read here, so that
//! machines nobody has at hand can be judged in tests.

mod judge;
mod leftovers;

use std::net::IpAddr;
use std::path::Path;

use cluster::Profile;
use cluster::kubeconfig::Kubeconfig;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;

pub use leftovers::leftovers;

/// What came out of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// A cluster runs, but something will not work or not for long.
    Warning,
    /// No cluster can run.
    Failure,
}

/// One check and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; nothing when it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What a cluster cannot run without; quick enough for every start.
pub fn needed(profile: &Profile) -> Vec<Finding> {
    let cgroups = runtime::cgroup::Cgroups::detect().unwrap_or_default();
    let mounts: Vec<(String, Access)> =
        cgroups.mounts().map(|mount| (mount.display().to_string(), writable(mount))).collect();
    let (free, dir) = free_bytes(&profile.state_dir);
    vec![
        judge::namespaces(&names_in("/proc/self/ns")),
        judge::overlay(&read("/proc/filesystems"), &modules()),
        judge::cgroups(&mounts, &cgroups.controllers()),
        judge::forwarding(writable(Path::new("/proc/sys/net/ipv4/ip_forward"))),
        judge::subnet(profile.network().map_err(|e| e.to_string()), used_networks(profile)),
        judge::disk(free, &dir),
    ]
}

/// What makes the difference between running and running well.
pub fn wanted() -> Vec<Finding> {
    let number = |path: &str| read(path).trim().parse::<u64>().ok();
    vec![
        judge::nf_tables(load_service_table()),
        judge::conntrack(
            number("/proc/sys/net/netfilter/nf_conntrack_count"),
            number("/proc/sys/net/netfilter/nf_conntrack_max"),
        ),
        judge::inotify(
            number("/proc/sys/fs/inotify/max_user_instances"),
            number("/proc/sys/fs/inotify/max_user_watches"),
        ),
        judge::host_routes(&podnet::used_networks("").unwrap_or_default()),
        judge::resolvers(&read("/etc/resolv.conf")),
        judge::kubectl(crate::program::on_path(&["kubectl"]).is_some()),
        judge::kubeconfig(Kubeconfig::of_user().check().map_err(|e| e.to_string())),
    ]
}

/// Whether a place can be written to, or why not.
type Access = Result<(), nix::errno::Errno>;

fn writable(path: &Path) -> Access {
    access(path, AccessFlags::W_OK)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn names_in(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The lists of modules that the running kernel can load or has built in.
fn modules() -> String {
    let release = read("/proc/sys/kernel/osrelease");
    let dir = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"].map(|list| read(&dir.join(list).to_string_lossy())).concat()
}

fn used_networks(profile: &Profile) -> Result<Vec<ipnet::Ipv4Net>, String> {
    podnet::used_networks(&profile.name).map_err(|e| e.to_string())
}

/// Free bytes of the disk on which `dir` is or would be, and the directory that is there already.
fn free_bytes(dir: &Path) -> (Option<u64>, String) {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = nix::sys::statvfs::statvfs(there).ok();
    (free.map(|free| free.blocks_available() * free.fragment_size()), there.display().to_string())
}

/// Loads the table of the service proxy in a network namespace that only this thread is in and that ends with it.
fn load_service_table() -> Result<(), String> {
    let load = || {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| said(&e))?;
        let mut socket = nft::Socket::open().map_err(|e| said(&e))?;
        let network = |text: &str| text.parse().map_err(|e: ipnet::AddrParseError| said(&e));
        let view = proxy::model::NodeView {
            zone: None,
            name: "doctor".into(),
            addresses: vec![IpAddr::V4(cluster::KUBERNETES_SERVICE)],
            pod_cidrs: vec![network(cluster::POD_CIDR)?],
            service_cidrs: vec![network(cluster::SERVICE_CIDR)?],
        };
        let nothing = proxy::model::Model::default();
        proxy::sync::Kernel::new(view).replace(&mut socket, &nothing).map_err(|e| said(&e))
    };
    std::thread::spawn(load).join().unwrap_or_else(|_| Err("the check itself died".into()))
}
