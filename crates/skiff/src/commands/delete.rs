//! `skiff delete`: the machine as it was before.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use cluster::Profile;
use cluster::kubeconfig::Kubeconfig;

use super::stop::stop;
use super::{each, need_root};
use crate::ui::Steps;

/// Options of `delete`.
#[derive(Debug, Args)]
pub struct Options {
    /// All clusters of this machine.
    #[arg(long)]
    all: bool,
}

/// Deletes one cluster, or all.
pub fn run(name: &str, options: &Options) -> anyhow::Result<()> {
    need_root()?;
    let profiles = if options.all { Profile::list() } else { vec![Profile::new(name)?] };
    if options.all && profiles.is_empty() {
        anstream::eprintln!("There is no cluster on this machine.");
    }
    each(&profiles, delete)
}

fn delete(profile: &Profile) -> anyhow::Result<()> {
    let known = profile.state_dir.exists() || profile.run_dir.exists();
    if known {
        stop(profile)?;
        let mut steps = Steps::new();
        steps.begin("Removing its files");
        remove_dirs(&[profile.state_dir.clone(), profile.run_dir.clone()])?;
        remove_cgroups();
    }
    let pointed = Kubeconfig::of_user().remove(&profile.name)?;
    if known || pointed {
        anstream::eprintln!("The cluster {:?} is gone, nothing is left of it.", profile.name);
    } else {
        anstream::eprintln!("There is no cluster {:?}.", profile.name);
    }
    Ok(())
}

/// Removes directories, and the parent of each when that was the last one in it.
pub fn remove_dirs(dirs: &[PathBuf]) -> anyhow::Result<()> {
    dirs.iter().try_for_each(|dir| remove(dir))
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", dir.display()));
        }
        _ => {}
    }
    if let Some(parent) = dir.parent() {
        // Other clusters' directories keep it, which is no failure.
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}

/// The cgroup above all clusters goes with the last of them, in every hierarchy; one that is not empty stays.
fn remove_cgroups() {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let _ = std::fs::remove_dir(hierarchy.join("skiff"));
    }
}
