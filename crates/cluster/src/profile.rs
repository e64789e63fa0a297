//! A profile: the name of a cluster, where its files are and which addresses it was given.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, MAX_NODES, Member, Result, files};

/// Service addresses of every cluster; 10.96.0.1 is the API server, 10.96.0.10 the cluster's DNS.
pub const SERVICE_CIDR: &str = "10.96.0.0/12";
/// The first service address: Service default/kubernetes.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The tenth service address: Service kube-system/kube-dns.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Pod addresses of every cluster; one /24 a node.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// The API server's port on the node's address.
pub const API_PORT: u16 = 8443;
/// The name under which everything in the cluster finds itself.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The image that the binary carries: DNS server, echo server and client tools.
pub const BUILTIN_IMAGE: &str = "localhost/skiff:latest";

/// A cluster's name and its directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name: kubeconfig context, node name, suffix of links and cgroups.
    pub name: String,
    /// What outlives a reboot: store, keys, images, Pods' volumes and logs.
    pub state_dir: PathBuf,
    /// What does not: sockets, lock, pid.
    pub run_dir: PathBuf,
}

/// What was decided at the first start and holds until the cluster is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bridge's address on the host, first of the node network.
    pub gateway: Ipv4Addr,
    /// The node's address; what `skiff ip` prints.
    pub node: Ipv4Addr,
    /// Prefix length of the node network.
    pub prefix: u8,
}

impl Network {
    /// The addresses for Services of type LoadBalancer: what the node network has above the last possible node.
    pub fn load_balancers(&self) -> RangeInclusive<Ipv4Addr> {
        let gateway = self.gateway.to_bits();
        let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        let first = gateway.saturating_add(u32::from(MAX_NODES) + 1);
        Ipv4Addr::from_bits(first)..=Ipv4Addr::from_bits((gateway | hosts).saturating_sub(1))
    }
}

/// How Pods are connected, and what of policies is enforced; chosen at a start and kept for the next ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// Our own network, with network policies enforced.
    #[default]
    Auto,
    /// The plain network: policies are kept and enforce nothing.
    Kubenet,
    /// Other people's plugins.
    Plugins {
        /// A network configuration, or the directory that has one.
        config: PathBuf,
        /// Where the plugins are.
        dirs: Vec<PathBuf>,
    },
}

impl Profile {
    /// The profile of that name below the machine's standard directories.
    ///
    /// # Errors
    /// [`Error::ProfileName`] unless the name is a DNS label of at most 11 characters that begins with a letter: it
    /// becomes part of a link's name (15 bytes) and the node's name.
    pub fn new(name: &str) -> Result<Self> {
        Self::below(name, Path::new("/var/lib/skiff"), Path::new("/run/skiff"))
    }

    fn below(name: &str, state: &Path, run: &Path) -> Result<Self> {
        let ends_well = name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !begins_well || !ends_well || name.len() > 11 || !name.chars().all(allowed) {
            return Err(Error::ProfileName(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), state_dir: state.join(name), run_dir: run.join(name) })
    }

    /// All profiles that have state on this machine, by name.
    pub fn list() -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir("/var/lib/skiff") else { return Vec::new() };
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut profiles: Vec<Self> = names.filter_map(|name| Self::new(&name).ok()).collect();
        profiles.sort_by(|a, b| a.name.cmp(&b.name));
        profiles
    }

    /// The node that runs the control plane.
    pub fn control_plane(&self) -> Member {
        Member { profile: self.clone(), number: 1 }
    }

    /// The API server's store.
    pub fn store(&self) -> PathBuf {
        self.state_dir.join("store.redb")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// Pulled and loaded images.
    pub fn images(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    /// The addresses chosen at the first start, if there was one.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn network(&self) -> Result<Option<Network>> {
        self.read("network.json")
    }

    /// Records the addresses.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_network(&self, network: &Network) -> Result<()> {
        self.write("network.json", network)
    }

    /// How Pods are connected.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn cni(&self) -> Result<Cni> {
        Ok(self.read("cni.json")?.unwrap_or_default())
    }

    /// Records how Pods are to be connected from the next start on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_cni(&self, cni: &Cni) -> Result<()> {
        self.write("cni.json", cni)
    }

    fn read<T: serde::de::DeserializeOwned>(&self, file: &str) -> Result<Option<T>> {
        let path = self.state_dir.join(file);
        let Some(bytes) = files::read_if_there(&path)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| Error::Malformed { path, reason: e.to_string() })
    }

    fn write(&self, file: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
        files::make_public_dir(&self.state_dir)?;
        files::write_atomically(&self.state_dir.join(file), &bytes, 0o644)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn names_fit_links_nodes_and_directories() {
        for good in ["skiff", "a", "minikube", "dev-2"] {
            assert!(Profile::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "2a", "Dev", "a/b", "..", "a.b", "twelve-chars"] {
            assert!(Profile::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn load_balancers_and_nodes_share_no_address() {
        let network =
            Network { gateway: [192, 168, 49, 1].into(), node: [192, 168, 49, 2].into(), prefix: 24 };
        let pool = network.load_balancers();
        assert_eq!(
            (pool.start().to_string(), pool.end().to_string()),
            ("192.168.49.101".into(), "192.168.49.254".into())
        );
        assert!(Network { prefix: 30, ..network }.load_balancers().is_empty());
    }

    #[test]
    fn the_network_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Profile::below("t", dir.path(), dir.path()).unwrap();
        assert_eq!(profile.network().unwrap(), None);
        let network =
            Network { gateway: [192, 168, 49, 1].into(), node: [192, 168, 49, 2].into(), prefix: 24 };
        profile.set_network(&network).unwrap();
        assert_eq!(profile.network().unwrap(), Some(network));
        assert_eq!(profile.cni().unwrap(), Cni::Auto);
        let plugins = Cni::Plugins { config: "/etc/cni/net.d".into(), dirs: vec!["/opt/cni/bin".into()] };
        for cni in [Cni::Kubenet, plugins] {
            profile.set_cni(&cni).unwrap();
            assert_eq!(profile.cni().unwrap(), cni);
        }
    }
}
