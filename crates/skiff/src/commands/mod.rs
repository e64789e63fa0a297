//! One file per command.

pub mod delete;
pub mod dns;
pub mod image;
pub mod logs;
pub mod node;
pub mod start;
pub mod status;
pub mod stop;

use anyhow::bail;
use cluster::Profile;

/// Refuses to go on without root, and says what to run.
pub fn need_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    bail!("namespaces, mounts and links need root; run: sudo skiff {}", words.join(" "))
}

/// The profile, if it has ever been started.
pub fn existing(name: &str) -> anyhow::Result<Profile> {
    let profile = Profile::new(name)?;
    if !profile.state_dir.exists() {
        bail!("there is no cluster {name:?}; make it: sudo skiff start{}", flag(name));
    }
    Ok(profile)
}

/// ` -p NAME` unless it is the default.
pub fn flag(name: &str) -> String {
    if name == "skiff" { String::new() } else { format!(" -p {name}") }
}
