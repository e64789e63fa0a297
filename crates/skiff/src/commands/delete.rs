//! `skiff delete`: the machine as it was before.

use anyhow::Context;
use cluster::Profile;
use cluster::kubeconfig::Kubeconfig;

use super::need_root;
use super::stop::stop;
use crate::ui::Steps;

/// Deletes one cluster, or all.
pub fn run(name: &str, all: bool) -> anyhow::Result<()> {
    need_root()?;
    let profiles = if all { Profile::list() } else { vec![Profile::new(name)?] };
    for profile in profiles {
        delete(&profile)?;
    }
    Ok(())
}

fn delete(profile: &Profile) -> anyhow::Result<()> {
    let known = profile.state_dir.exists() || profile.run_dir.exists();
    if known {
        stop(profile)?;
        let mut steps = Steps::new();
        steps.begin("Removing its files");
        for dir in [&profile.state_dir, &profile.run_dir] {
            remove(dir)?;
        }
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

/// Removes a directory, and its parent when that was the last one in it.
fn remove(dir: &std::path::Path) -> anyhow::Result<()> {
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
    let root = std::path::Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        let _ = std::fs::remove_dir(hierarchy.join("skiff"));
    }
}
