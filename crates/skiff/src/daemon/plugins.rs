//! Other people's Pod networks: what of a network configuration matters beyond the connecting of Pods.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use apiserver::Enforcement;
use cluster::{Cni, Member};
use ipnet::IpNet;
use podnet::cni::{NetworkConfig, Options, PATIENCE};

/// Plugins whose Pods' packets pass the node's own rules.
const PASS_THE_NODE: [&str; 2] = [BRIDGE, "ptp"];
/// The one that needs the kernel's help for that.
const BRIDGE: &str = "bridge";

/// The plugins that connect a node's Pods.
#[derive(Clone)]
pub struct Plugins {
    config: NetworkConfig,
    dirs: Vec<PathBuf>,
    state_dir: PathBuf,
}

impl Plugins {
    /// Those that were chosen for the cluster, if any were; readies the node for them.
    ///
    /// # Errors
    /// When their configuration cannot be read, or the kernel lacks what they need.
    pub async fn of(member: &Member, netns: Arc<OwnedFd>) -> anyhow::Result<Option<Self>> {
        let Cni::Plugins { config, dirs } = member.profile.cni()? else { return Ok(None) };
        let plugins =
            Self { config: NetworkConfig::load(&config)?, dirs, state_dir: member.state_dir().join("cni") };
        let is_bridge = plugins.config.main_plugin() == BRIDGE;
        tokio::task::spawn_blocking(move || if is_bridge { show_bridged(&netns) } else { Ok(()) }).await??;
        Ok(Some(plugins))
    }

    /// How far the node can judge what their Pods send each other.
    pub fn enforcement(&self) -> Enforcement {
        match PASS_THE_NODE.contains(&self.config.main_plugin()) {
            true => Enforcement::Full,
            false => Enforcement::Partial,
        }
    }

    /// Networks of their Pods beyond the cluster's own.
    pub fn pod_networks(&self) -> Vec<IpNet> {
        self.config.subnets()
    }

    /// Whether they lead ports of the node to Pods themselves.
    pub fn map_ports(&self) -> bool {
        self.config.asks_for("portMappings")
    }

    /// What the network is opened with, once the node has its ranges.
    pub fn options(&self, ranges: Vec<IpNet>) -> Options {
        Options {
            config: self.config.clone(),
            plugin_dirs: self.dirs.clone(),
            state_dir: self.state_dir.clone(),
            ranges,
            patience: PATIENCE,
        }
    }
}

/// Has the node's rules see what Pods on one bridge send each other, loading the kernel's module for it if need be.
fn show_bridged(netns: impl AsFd) -> anyhow::Result<()> {
    if podnet::cni::see_bridged_packets(netns.as_fd())? {
        return Ok(());
    }
    let mut load = Command::new("modprobe");
    let loaded =
        load.arg("br_netfilter").stdin(Stdio::null()).output().context("run modprobe br_netfilter")?;
    ensure!(
        loaded.status.success() && podnet::cni::see_bridged_packets(netns)?,
        "the CNI plugin bridge needs the kernel's br_netfilter, or neither Services nor network policies reach what Pods \
         of one node send each other: modprobe br_netfilter: {}",
        String::from_utf8_lossy(&loaded.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn only_what_passes_the_node_is_judged_there() {
        let plugins = |kind: &str| Plugins {
            config: NetworkConfig::parse(
                format!(r#"{{"cniVersion": "1.0.0", "name": "n", "type": "{kind}"}}"#).as_bytes(),
            )
            .unwrap(),
            dirs: Vec::new(),
            state_dir: PathBuf::new(),
        };
        assert_eq!(plugins("bridge").enforcement(), Enforcement::Full);
        assert_eq!(plugins("ptp").enforcement(), Enforcement::Full);
        assert_eq!(plugins("macvlan").enforcement(), Enforcement::Partial);
    }
}
