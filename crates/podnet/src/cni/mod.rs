//! Other people's networks: the runtime's side of the Container Network Interface, versions 0.3.0 to 1.1.0.
//!
//! A network is a chain of plugins ([`NetworkConfig`]). [`Cni::add`] runs it for a Pod, each plugin given the result of
//! the one before; [`Cni::del`] runs it backwards, [`Cni::check`] asks whether all is still there, [`Cni::collect`]
//! takes away what Pods of earlier lives have left. Whatever is asked of a plugin is on record before it is asked, so
//! that after a crash at any point a DEL follows with what the ADD was told.
//!
//! The plugins run in the node's network namespace and find a Pod's at a path that stays the same as long as the Pod
//! lives. Nobody may ask two things of one Pod at a time; of different ones everybody may, except that nothing is
//! added while garbage is collected.
//!
//! Specification: <https://www.cni.dev/docs/spec/>; conventions: <https://www.cni.dev/docs/conventions/>.

mod answer;
mod config;
mod exec;
mod record;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tokio::sync::RwLock;

pub use answer::{Outcome, Refusal};
pub use config::{NetworkConfig, SpecVersion};

use crate::message;
use crate::names::INSIDE;
use crate::netlink::Netlink;
use crate::netns::within;
use crate::sysctl;
use config::Plugin;
use exec::Runner;
use record::{Attachment, Records};

/// Longer than a plugin that works ever takes, even one that waits for a server.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What plugins could not do, or what is wrong with what they were to do it with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not there or not understood.
    #[error("CNI configuration {}: {reason}", path.display())]
    Config {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A plugin is not installed.
    #[error(
        "CNI plugin {plugin:?} is not in {}; install it there, or name its directory in CNI_PATH",
        listed(dirs)
    )]
    Missing {
        /// Its name.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The configuration and its plugins have no version in common.
    #[error("CNI plugin {plugin:?} speaks {}, and the network {network:?} none of these; change its cniVersion",
        spoken.join(", "))]
    Version {
        /// The plugin.
        plugin: String,
        /// The network.
        network: String,
        /// Its versions.
        spoken: Vec<String>,
    },
    /// A plugin refused, in the specification's terms.
    #[error("plugin type={plugin:?} failed ({verb}): code {}: {}{}", refusal.code, refusal.msg, details(refusal))]
    Plugin {
        /// Its name.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// Its answer.
        refusal: Refusal,
    },
    /// A plugin could not be run, died, or gave an answer that makes no sense.
    #[error("plugin type={plugin:?} failed ({verb}): {reason}")]
    Run {
        /// Its name.
        plugin: String,
        /// What it was asked.
        verb: &'static str,
        /// Why.
        reason: String,
    },
    /// A record of ours cannot be kept.
    #[error("CNI record {}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A namespace cannot be worked with.
    #[error(transparent)]
    Network(#[from] crate::Error),
}

fn listed(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn details(refusal: &Refusal) -> String {
    if refusal.details.is_empty() { String::new() } else { format!(" ({})", refusal.details) }
}

/// What a node must be told to use plugins.
#[derive(Debug, Clone)]
pub struct Options {
    /// The network; see [`NetworkConfig::load`].
    pub config: NetworkConfig,
    /// Where plugins are looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// Where records are kept; outlives a reboot.
    pub state_dir: PathBuf,
    /// The node's podCIDRs, for plugins that ask for `ipRanges`.
    pub ranges: Vec<IpNet>,
    /// After it a plugin is ended.
    pub patience: Duration,
}

/// Whether all plugins of a network are installed.
///
/// # Errors
/// The first one that is not.
pub fn installed(config: &NetworkConfig, dirs: &[PathBuf]) -> Result<(), Error> {
    config.executables().try_for_each(|plugin| exec::find(plugin, dirs).map(drop))
}

/// A port of the node that stands for one of a Pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// On which address of the node, if not on all.
    pub host_ip: Option<std::net::IpAddr>,
    /// Port of the node.
    pub host_port: u16,
    /// Port of the Pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// The Pod to be connected, as plugins are told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its uid, under which it is known later.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Ports of the node that it asks for.
    pub ports: Vec<PortMapping>,
}

/// A node's Pods, connected by plugins.
#[derive(Debug)]
pub struct Cni {
    runner: Runner,
    config: NetworkConfig,
    version: SpecVersion,
    ranges: Vec<IpNet>,
    records: Records,
    /// Held for writing while garbage is collected: a Pod that is being added is in nobody's list yet.
    adding: RwLock<()>,
}

impl Cni {
    /// Takes charge of a node's Pods. Agrees with all plugins on a version, the highest that the configuration names, and
    /// asks whether they are ready.
    ///
    /// # Errors
    /// When a plugin is missing, too old or not ready.
    pub async fn open(node: Arc<OwnedFd>, options: Options) -> Result<Self, Error> {
        let Options { mut config, plugin_dirs: dirs, state_dir, ranges, patience } = options;
        config.keep_addresses_below(&state_dir.join("networks"));
        let runner = Runner { dirs, node, patience };
        let version = agreed(&runner, &config).await?;
        let records = Records::open(&state_dir.join("attachments"))?;
        let cni = Self { runner, config, version, ranges, records, adding: RwLock::default() };
        cni.status().await?;
        Ok(cni)
    }

    /// Whether the plugins are ready for another Pod, as far as they can be asked.
    ///
    /// # Errors
    /// The first one's reason not to be.
    pub async fn status(&self) -> Result<(), Error> {
        if self.version < SpecVersion::V1_1_0 {
            return Ok(());
        }
        for plugin in &self.config.plugins {
            let told = self.config.request(plugin, self.version, &Map::new(), None);
            self.runner.run(&plugin.kind, "STATUS", &[], &bytes(told)).await?;
        }
        Ok(())
    }

    /// Connects a Pod whose namespace is found at `path`; gives its addresses. What an earlier try has left goes first.
    ///
    /// # Errors
    /// What a plugin refused; [`Self::del`] is due then.
    pub async fn add(
        &self,
        pod: &Pod,
        netns: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<Vec<std::net::IpAddr>, Error> {
        let _adding = self.adding.read().await;
        if self.records.get(&pod.uid).is_some() {
            self.disconnect(&pod.uid).await?;
        }
        loopback_up(netns)?;
        let mut attachment = self.attachment(pod, path);
        self.records.put(&attachment)?;
        let mut result: Option<Outcome> = None;
        for plugin in &self.config.plugins {
            let previous = result.as_ref().map(|outcome| &outcome.value);
            let told = self.config.request(plugin, self.version, &attachment.known, previous);
            let parameters = parameters(&attachment, attachment.netns.clone());
            let answer = self.runner.run(&plugin.kind, "ADD", &parameters, &bytes(told)).await?;
            let outcome = Outcome::parse(&answer, self.version, INSIDE);
            result = Some(outcome.map_err(|reason| confused(plugin, reason))?);
        }
        let outcome = result.filter(|outcome| !outcome.addresses.is_empty());
        let outcome = outcome.ok_or_else(|| {
            let last = self.config.plugins.last().map(|plugin| plugin.kind.clone()).unwrap_or_default();
            Error::Run { plugin: last, verb: "ADD", reason: format!("its answer gives {INSIDE} no address") }
        })?;
        attachment.result = Some(outcome.value);
        self.records.put(&attachment)?;
        Ok(outcome.addresses)
    }

    /// Disconnects a Pod; one that was never connected is fine.
    ///
    /// # Errors
    /// What a plugin refused; the record stays, and this is to be tried again.
    pub async fn del(&self, uid: &str) -> Result<(), Error> {
        let _adding = self.adding.read().await;
        self.disconnect(uid).await
    }

    async fn disconnect(&self, uid: &str) -> Result<(), Error> {
        let Some(attachment) = self.records.get(uid) else { return self.records.remove(uid) };
        let (config, version) = as_added(&attachment, &self.records)?;
        let previous = attachment.result.as_ref().filter(|_| version >= SpecVersion::V0_4_0);
        let parameters = parameters(&attachment, attachment.living_netns());
        for plugin in config.plugins.iter().rev() {
            let told = config.request(plugin, version, &attachment.known, previous);
            self.runner.run(&plugin.kind, "DEL", &parameters, &bytes(told)).await?;
        }
        self.records.remove(uid)
    }

    /// Asks whether a connected Pod's network is still as it was made, as far as plugins can be asked.
    ///
    /// # Errors
    /// The first plugin's finding.
    pub async fn check(&self, uid: &str) -> Result<(), Error> {
        let _adding = self.adding.read().await;
        let Some(attachment) = self.records.get(uid) else { return Ok(()) };
        let (config, version) = as_added(&attachment, &self.records)?;
        if version < SpecVersion::V0_4_0 || config.disable_check || attachment.result.is_none() {
            return Ok(());
        }
        let parameters = parameters(&attachment, attachment.netns.clone());
        for plugin in &config.plugins {
            let told = config.request(plugin, version, &attachment.known, attachment.result.as_ref());
            self.runner.run(&plugin.kind, "CHECK", &parameters, &bytes(told)).await?;
        }
        Ok(())
    }

    /// Disconnects the Pods on record that are not among those alive, and has the plugins forget whatever belongs to
    /// none of ours. Goes on past errors; gives them all.
    pub async fn collect(&self, alive: &BTreeSet<String>) -> Vec<Error> {
        let _nobody_adds = self.adding.write().await;
        let mut failures = Vec::new();
        for attachment in self.records.all() {
            if !alive.contains(&attachment.container) {
                failures.extend(self.disconnect(&attachment.container).await.err());
            }
        }
        if self.version < SpecVersion::V1_1_0 || self.config.disable_gc {
            return failures;
        }
        let valid: Vec<Value> = self
            .records
            .all()
            .iter()
            .map(|known| json!({"containerID": known.container, "ifname": known.ifname}))
            .collect();
        for plugin in &self.config.plugins {
            let mut told = self.config.request(plugin, self.version, &Map::new(), None);
            // The second name was the specification's own for a while.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                told.insert(key.to_owned(), valid.clone().into());
            }
            failures.extend(self.runner.run(&plugin.kind, "GC", &[], &bytes(told)).await.err());
        }
        failures
    }

    fn attachment(&self, pod: &Pod, path: &Path) -> Attachment {
        let Pod { uid, namespace, name, ports } = pod;
        let mut known = Map::new();
        if !ports.is_empty() {
            known.insert("portMappings".to_owned(), ports.iter().map(port_mapping).collect());
        }
        if !self.ranges.is_empty() {
            let sets = self.ranges.iter().map(|range| json!([{"subnet": range.to_string()}]));
            known.insert("ipRanges".to_owned(), sets.collect());
        }
        Attachment {
            container: uid.clone(),
            ifname: INSIDE.to_owned(),
            netns: path.display().to_string(),
            inode: std::fs::metadata(path).map(|meta| meta.ino()).unwrap_or_default(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                 K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}"
            ),
            known,
            version: self.version.to_string(),
            config: self.config.to_value(),
            result: None,
        }
    }
}

/// The highest version that the configuration names and all of its plugins speak.
async fn agreed(runner: &Runner, config: &NetworkConfig) -> Result<SpecVersion, Error> {
    let mut common = config.versions.clone();
    let probe = config.versions.last().copied().unwrap_or(SpecVersion::V0_3_0);
    for plugin in &config.plugins {
        let told = json!({"cniVersion": probe.as_str()}).to_string();
        let answer = runner.run(&plugin.kind, "VERSION", &[], told.as_bytes()).await?;
        let spoken = answer::versions(&answer).map_err(|reason| Error::Run {
            plugin: plugin.kind.clone(),
            verb: "VERSION",
            reason: format!("its answer: {reason}"),
        })?;
        common.retain(|version| spoken.contains(version));
        if common.is_empty() {
            return Err(Error::Version {
                plugin: plugin.kind.clone(),
                network: config.name.clone(),
                spoken: spoken.iter().map(ToString::to_string).collect(),
            });
        }
    }
    Ok(common.last().copied().unwrap_or(probe))
}

/// The configuration and version of an ADD that was made earlier.
fn as_added(attachment: &Attachment, records: &Records) -> Result<(NetworkConfig, SpecVersion), Error> {
    let wrong = |reason: String| Error::Config { path: records.0.join(&attachment.container), reason };
    let config = NetworkConfig::parse(attachment.config.to_string().as_bytes()).map_err(wrong)?;
    let version = SpecVersion::parse(&attachment.version);
    Ok((config, version.ok_or_else(|| wrong(format!("version {:?} is none of ours", attachment.version)))?))
}

fn parameters(attachment: &Attachment, netns: String) -> [(&'static str, String); 4] {
    [
        ("CNI_CONTAINERID", attachment.container.clone()),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", attachment.ifname.clone()),
        ("CNI_ARGS", attachment.args.clone()),
    ]
}

fn confused(plugin: &Plugin, reason: String) -> Error {
    Error::Run { plugin: plugin.kind.clone(), verb: "ADD", reason: format!("its answer: {reason}") }
}

fn bytes(told: Map<String, Value>) -> Vec<u8> {
    Value::Object(told).to_string().into_bytes()
}

fn port_mapping(port: &PortMapping) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol,
    });
    if let Some(address) = port.host_ip {
        mapping["hostIP"] = address.to_string().into();
    }
    mapping
}

/// Every Pod has its loopback, whatever the plugins do.
fn loopback_up(netns: BorrowedFd<'_>) -> crate::Result<()> {
    within(netns, || Netlink::open()?.apply(&[message::set_up(1)]))
}

/// A path of a namespace that a process holds open, good for everybody as long as it does.
///
/// # Errors
/// When the process holds no such namespace.
pub fn path_held_by(pid: i32, netns: BorrowedFd<'_>) -> std::io::Result<PathBuf> {
    let own = std::fs::metadata(format!("/proc/self/fd/{}", netns.as_raw_fd()))?;
    let same =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == (own.dev(), own.ino()));
    let held = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().map(|entry| entry.path());
    held.into_iter().find(same).ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::NotFound, format!("process {pid} holds no such namespace"))
    })
}

/// Has packets between Pods on one bridge seen by the node's rules, without which neither Services nor network policies
/// reach them; gives whether this kernel can (`br_netfilter`).
///
/// # Errors
/// When the namespace cannot be entered.
pub fn see_bridged_packets(node: impl AsFd) -> crate::Result<bool> {
    within(node.as_fd(), || {
        let mut can = true;
        for name in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
            can &= sysctl::set_if_there(name, "1")?;
        }
        Ok(can)
    })
}
