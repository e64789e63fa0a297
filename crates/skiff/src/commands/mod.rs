//! One file per command, or per group of commands.

pub mod addons;
pub mod api;
pub mod config;
pub mod dashboard;
pub mod delete;
pub mod dns;
pub mod doctor;
pub mod flows;
pub mod image;
pub mod ingress;
pub mod ingress_controller;
pub mod ip;
pub mod kubectl;
pub mod logs;
pub mod node;
pub mod policy;
pub mod profile;
pub mod service;
pub mod ssh;
pub mod start;
pub mod status;
pub mod stop;
pub mod tutorial;
pub mod version;

use anyhow::{Context, bail};
use cluster::Profile;

use crate::control::{Answer, Reply, Request, ask};
use crate::program::{advice, did_you_mean};

/// Refuses to go on without root, and says what to run.
pub fn need_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    bail!("namespaces, mounts and links need root; run: sudo {} {}", crate::program::name(), words.join(" "))
}

/// The profile, if it has ever been started.
pub fn existing(name: &str) -> anyhow::Result<Profile> {
    let profile = Profile::new(name)?;
    if !profile.state_dir.exists() {
        let known = Profile::list();
        let near = did_you_mean(name, known.iter().map(|p| p.name.as_str()));
        bail!("there is no cluster {name:?}{near}; make it: {}", advice("start", name));
    }
    Ok(profile)
}

/// Does something to clusters one after the other, and goes on past one that it fails for.
///
/// # Errors
/// The only one's, or which clusters it failed for.
pub fn each(profiles: &[Profile], work: impl Fn(&Profile) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if let [only] = profiles {
        return work(only);
    }
    let mut failed = Vec::new();
    for profile in profiles {
        if let Err(error) = work(profile) {
            anstream::eprintln!("error: {}: {}", profile.name, crate::output::chain(&error));
            failed.push(profile.name.as_str());
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("it failed for: {}", failed.join(", ")) }
}

/// What to say about a cluster that does not run.
pub fn need_start(profile: &Profile) -> String {
    format!("the cluster {:?} does not run; start it: {}", profile.name, advice("start", &profile.name))
}

/// Asks the daemon of a cluster that must run.
pub fn ask_running(
    profile: &Profile,
    request: &Request,
    progress: impl FnMut(&Reply),
) -> anyhow::Result<Answer> {
    let answer = ask(&profile.control_plane().control_socket(), request, progress)?;
    answer.with_context(|| need_start(profile))
}
