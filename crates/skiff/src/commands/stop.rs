//! `skiff stop`: ends Pods, node and daemon; what the cluster remembers stays.

use super::{each, existing, need_root};
use crate::control::{Request, ask};
use crate::daemon::node;
use crate::program::advice;
use crate::ui::Steps;
use clap::Args;
use cluster::{Member, Profile};

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct Options {
    /// All clusters of this machine.
    #[arg(long)]
    all: bool,
}

/// Stops the cluster, or all; one that does not run is fine.
pub fn run(name: &str, options: &Options) -> anyhow::Result<()> {
    need_root()?;
    let profiles = if options.all { Profile::list() } else { vec![existing(name)?] };
    each(&profiles, |profile| {
        stop(profile)?;
        let start = advice("start", &profile.name);
        anstream::eprintln!("The cluster {:?} is stopped; start it again: {start}", profile.name);
        Ok(())
    })
}

/// Stops all nodes, the control plane's last.
pub fn stop(profile: &Profile) -> anyhow::Result<()> {
    let mut steps = Steps::new();
    let outcome = Member::all(profile).iter().rev().try_for_each(|member| stop_member(member, &mut steps));
    if outcome.is_err() {
        steps.failed();
    }
    steps.done();
    outcome
}

/// Asks a node's daemon to stop; does its part when it is not there (after a crash).
pub fn stop_member(member: &Member, steps: &mut Steps) -> anyhow::Result<()> {
    match member.is_control_plane() {
        true => steps.begin("Stopping Pods and node"),
        false => steps.begin(&format!("Stopping node {}", member.name())),
    }
    match ask(&member.control_socket(), &Request::Stop, |news| steps.news(news))? {
        Some(_) => node::wait_for_daemon(member),
        None => node::tear_down(member),
    }
}
