//! One node of a cluster: its number, its name and its directories.
//!
//! The first node is the control plane's and lives in the profile's own directories; the others stand below `nodes/`,
//! and a directory there is what makes a node known. Names and addresses follow from the number, as minikube gives
//! them: `demo`, `demo-m02`, `demo-m03`.

use std::path::{Path, PathBuf};

use crate::{Error, Profile, Result, files};

/// The most nodes of one cluster: the control plane's own limit is the node network's 253 addresses.
pub const MAX_NODES: u8 = 99;
const NODES: &str = "nodes";

/// A node of a cluster on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its cluster.
    pub profile: Profile,
    /// Counted from 1, which is the control plane's.
    pub number: u8,
}

impl Member {
    /// The node of that number.
    ///
    /// # Errors
    /// [`Error::NodeNumber`] unless it is from 1 to [`MAX_NODES`].
    pub fn new(profile: &Profile, number: u8) -> Result<Self> {
        if !(1..=MAX_NODES).contains(&number) {
            return Err(Error::NodeNumber(number));
        }
        Ok(Self { profile: profile.clone(), number })
    }

    /// Whether this is that one.
    pub fn is_control_plane(&self) -> bool {
        self.number == 1
    }

    /// All known nodes of a cluster, the control plane's first.
    pub fn all(profile: &Profile) -> Vec<Self> {
        let entries = std::fs::read_dir(profile.state_dir.join(NODES)).into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| number(entry.file_name().to_str()?));
        let mut numbers: Vec<u8> = numbers.chain([1]).collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| Self { profile: profile.clone(), number }).collect()
    }

    /// The known node of that name (`demo-m02`, or short: `m02`).
    ///
    /// # Errors
    /// [`Error::NoNode`] when there is none.
    pub fn find(profile: &Profile, name: &str) -> Result<Self> {
        let known =
            Self::all(profile).into_iter().find(|member| member.name() == name || member.short() == name);
        known.ok_or_else(|| Error::NoNode { profile: profile.name.clone(), node: name.to_owned() })
    }

    /// The lowest number from 2 that no known node has.
    ///
    /// # Errors
    /// [`Error::NodeNumber`] when all are taken.
    pub fn next(profile: &Profile) -> Result<Self> {
        let known = Self::all(profile);
        let free = (2..=MAX_NODES).find(|number| known.iter().all(|member| member.number != *number));
        Self::new(profile, free.unwrap_or(MAX_NODES + 1))
    }

    /// Makes the node known.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn remember(&self) -> Result<()> {
        files::make_public_dir(&self.state_dir())
    }

    /// The Node object's name.
    pub fn name(&self) -> String {
        match self.number {
            1 => self.profile.name.clone(),
            _ => format!("{}-{}", self.profile.name, self.short()),
        }
    }

    fn short(&self) -> String {
        format!("m{:02}", self.number)
    }

    fn below(&self, root: &Path) -> PathBuf {
        match self.number {
            1 => root.to_owned(),
            _ => root.join(NODES).join(self.short()),
        }
    }

    /// What of this node outlives a reboot: Pods' volumes, logs.
    pub fn state_dir(&self) -> PathBuf {
        self.below(&self.profile.state_dir)
    }

    /// What does not: sockets, lock, pid.
    pub fn run_dir(&self) -> PathBuf {
        self.below(&self.profile.run_dir)
    }

    /// The daemon's log.
    pub fn log(&self) -> PathBuf {
        self.state_dir().join("daemon.log")
    }

    /// The shim's socket.
    pub fn shim_socket(&self) -> PathBuf {
        self.run_dir().join("shim.sock")
    }

    /// The daemon's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir().join("control.sock")
    }

    /// Locked by the daemon while it lives; holds its pid.
    pub fn lock(&self) -> PathBuf {
        self.run_dir().join("daemon.lock")
    }

    /// Parent of the node's cgroups in every hierarchy. No profile's name has a dot, so none is another's.
    pub fn cgroup(&self) -> String {
        match self.number {
            1 => format!("/skiff/{}", self.profile.name),
            _ => format!("/skiff/{}.{}", self.profile.name, self.short()),
        }
    }
}

fn number(short: &str) -> Option<u8> {
    let number = short.strip_prefix('m')?.parse().ok()?;
    (2..=MAX_NODES).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn nodes_are_found_again_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Profile {
            name: "demo".into(),
            state_dir: dir.path().join("state"),
            run_dir: dir.path().join("run"),
        };
        let names = |profile: &Profile| Member::all(profile).iter().map(Member::name).collect::<Vec<_>>();
        assert_eq!(names(&profile), ["demo"]);
        for name in ["demo-m02", "demo-m03"] {
            let member = Member::next(&profile).unwrap();
            assert_eq!(member.name(), name);
            member.remember().unwrap();
        }
        std::fs::create_dir(profile.state_dir.join("nodes/stray")).unwrap();
        assert_eq!(names(&profile), ["demo", "demo-m02", "demo-m03"]);
        assert_eq!(Member::find(&profile, "m03").unwrap().number, 3);
        assert_eq!(Member::find(&profile, "demo").unwrap().number, 1);
        assert!(Member::find(&profile, "demo-m04").unwrap_err().to_string().contains("demo-m04"));
        std::fs::remove_dir(profile.state_dir.join("nodes/m02")).unwrap();
        assert_eq!(Member::next(&profile).unwrap().number, 2, "a free number is used again");
        assert!(Member::new(&profile, 0).is_err() && Member::new(&profile, 100).is_err());
    }

    #[test]
    fn the_first_node_lives_in_the_clusters_own_directories() {
        let profile = Profile::new("demo").unwrap();
        let first = profile.control_plane();
        assert_eq!(first.state_dir(), profile.state_dir);
        assert_eq!(first.cgroup(), "/skiff/demo");
        let second = Member::new(&profile, 2).unwrap();
        assert_eq!(second.state_dir(), profile.state_dir.join("nodes/m02"));
        assert_eq!(second.cgroup(), "/skiff/demo.m02");
    }
}
