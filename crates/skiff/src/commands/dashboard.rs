//! `skiff dashboard`: there is none; what shows the same.

use super::existing;
use crate::program::{advice, name};

/// Says what to use.
pub fn run(profile: &str) -> anyhow::Result<()> {
    existing(profile)?;
    let program = name();
    println!(
        "There is no dashboard in skiff. What shows the same:
  kubectl get all -A                 everything that runs
  kubectl get events -A --watch      what happens
  {program} status                       the cluster itself
  {program} service list                 what this machine reaches
  {}                     the daemon's log
Graphical clients (Headlamp, Lens, k9s) work through the kubeconfig context {profile:?}.",
        advice("logs -f", profile)
    );
    Ok(())
}
