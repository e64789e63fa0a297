//! What a crash, or a machine that lost power, has left of clusters.

use std::collections::BTreeSet;
use std::path::Path;

use cluster::{Member, Profile};

use super::{Finding, Verdict, names_in};
use crate::daemon::node;
use crate::program::advice;

/// One finding a leftover, or that there is none.
pub fn leftovers() -> Vec<Finding> {
    let mut found: Vec<Finding> =
        Profile::list().iter().flat_map(Member::all).filter_map(|m| orphan(&m)).collect();
    let known: BTreeSet<String> = Profile::list().into_iter().map(|profile| profile.name).collect();
    let run_dirs =
        names_in("/run/skiff").into_iter().filter(|name| Path::new("/run/skiff").join(name).is_dir());
    let lost = run_dirs.filter(|name| !known.contains(name) && Profile::new(name).is_ok());
    found.extend(lost.map(|name| {
        leftover(
            format!("/run/skiff/{name} has no cluster any more"),
            format!("run: {}", advice("delete", &name)),
        )
    }));
    let bridges: BTreeSet<String> = known.iter().map(|name| podnet::bridge(name)).collect();
    let links = names_in("/sys/class/net").into_iter().filter(|link| link.starts_with("skiff-"));
    found.extend(links.filter(|link| !bridges.contains(link)).map(|link| {
        leftover(format!("the link {link} belongs to no cluster"), format!("run: ip link delete {link}"))
    }));
    if found.is_empty() {
        let found = "nothing is left of clusters that are gone".to_owned();
        return vec![Finding { check: CHECK, verdict: Verdict::Good, found, remedy: None }];
    }
    found
}

const CHECK: &str = "leftovers";

fn leftover(found: String, remedy: String) -> Finding {
    Finding { check: CHECK, verdict: Verdict::Warning, found, remedy: Some(remedy) }
}

/// A node whose containers run on without their daemon.
fn orphan(member: &Member) -> Option<Finding> {
    let shim = runtime::shim::holder(&member.run_dir())?;
    if node::has_daemon(member) {
        return None;
    }
    let profile = &member.profile.name;
    let found =
        format!("the daemon of node {:?} is gone; its containers run on below process {shim}", member.name());
    let remedy =
        format!("take them up again: {}; or end them: {}", advice("start", profile), advice("stop", profile));
    Some(leftover(found, remedy))
}
