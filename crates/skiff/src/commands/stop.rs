//! `skiff stop`: ends Pods, node and daemon; what the cluster remembers stays.

use super::{existing, flag, need_root};
use crate::control::{Reply, Request, ask};
use crate::daemon::node;
use crate::ui::Steps;
use cluster::Profile;

/// Stops the cluster; one that does not run is fine.
pub fn run(name: &str) -> anyhow::Result<()> {
    need_root()?;
    let profile = existing(name)?;
    stop(&profile)?;
    anstream::eprintln!("The cluster {name:?} is stopped; start it again: sudo skiff start{}", flag(name));
    Ok(())
}

/// Asks the daemon to stop; does its part when it is not there (after a crash).
pub fn stop(profile: &Profile) -> anyhow::Result<()> {
    let member = profile.control_plane();
    let mut steps = Steps::new();
    steps.begin("Stopping Pods and node");
    let answer = ask(&member.control_socket(), &Request::Stop, |reply| {
        if let Reply::Detail(text) = reply {
            steps.detail(text);
        }
    });
    let outcome = match answer {
        Ok(Some(_)) => node::wait_for_daemon(&member),
        Ok(None) => node::tear_down(&member),
        Err(error) => Err(error),
    };
    if outcome.is_err() {
        steps.failed();
    }
    steps.done();
    outcome
}
