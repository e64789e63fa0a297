//! A profile: the name of a cluster, where its files are and what was chosen for it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::network::{IpFamily, Network};
use crate::{Error, Member, Result, files};

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

    /// What the audit log is to say; there is none without this file.
    pub fn audit_policy(&self) -> PathBuf {
        self.state_dir.join("audit-policy.yaml")
    }

    /// The audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.state_dir.join("audit.log")
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

    /// The IP families that the cluster is to have from its first start on; none when nobody said.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn wanted_ip_family(&self) -> Result<Option<IpFamily>> {
        self.read("ip-family.json")
    }

    /// Records the IP families that the cluster is to have.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn want_ip_family(&self, family: IpFamily) -> Result<()> {
        self.write("ip-family.json", &family)
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
    fn the_network_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Profile::below("t", dir.path(), dir.path()).unwrap();
        assert_eq!(profile.network().unwrap(), None);
        let network = crate::network::tests::network(IpFamily::Dual);
        // A cluster from before there was a choice.
        std::fs::create_dir_all(&profile.state_dir).unwrap();
        let old = r#"{"gateway": "192.168.49.1", "node": "192.168.49.2", "prefix": 24}"#;
        std::fs::write(profile.state_dir.join("network.json"), old).unwrap();
        assert_eq!(profile.network().unwrap().unwrap().ip_family, IpFamily::Ipv4);
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
