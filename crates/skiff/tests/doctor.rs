//! `skiff doctor` on this machine, on one whose kernel settings are closed, and after a crash.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use serde_json::Value;
use testkit::cluster::Cluster;
use testkit::command::{Ran, run};
use testkit::machine::Machine;
use testkit::user::User;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

fn finding(findings: &Value, check: &str) -> Value {
    let all = findings.as_array().unwrap();
    all.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("{check} in {findings}")).clone()
}

/// Runs skiff where a script has closed what it names, in a mount namespace of its own.
fn closed(user: &User, script: &str, line: &str) -> Ran {
    let mut command = user.command("unshare", "--mount --propagation private sh -c");
    run(command.arg(format!("{script} && exec {SKIFF} -p doc-x {line}")))
}

const CLOSE_SYSCTLS: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";
const CLOSE_CGROUPS: &str = "for dir in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/self/mounts); do \
    mount -o remount,bind,ro $dir || exit 1; done";

#[test]
fn the_doctor_finds_what_is_wrong_and_only_that() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
    let before = Machine::now();
    {
        let user = User::new(SKIFF);
        a_machine_that_runs_clusters_is_fit(&user);
        a_closed_machine_is_told_how_to_open(&user);
        let cluster = Cluster::start(SKIFF, "doc");
        a_crash_is_found_and_mended(&user, &cluster);
    }
    before.is_again(Duration::from_secs(60));
}

fn a_machine_that_runs_clusters_is_fit(user: &User) {
    let shown = user.skiff("doctor").out();
    assert!(shown.contains("✔ nf_tables: takes the rules of Services"), "{shown}");
    let findings = user.json("doctor");
    for check in ["namespaces", "overlayfs", "cgroups", "forwarding", "node network", "nf_tables"] {
        assert_eq!(finding(&findings, check)["verdict"], "good", "{findings}");
    }
}

fn a_closed_machine_is_told_how_to_open(user: &User) {
    for (script, part) in [
        (CLOSE_SYSCTLS, "forwarding: net.ipv4.ip_forward cannot be set"),
        (CLOSE_CGROUPS, "cannot be written to: Read-only file system"),
    ] {
        let examined = closed(user, script, "doctor");
        assert_eq!(examined.code, Some(1), "{examined:?}");
        assert!(examined.stdout.contains(part), "{examined:?}");
        let refused = closed(user, script, "start").err();
        assert!(refused.contains(part) && refused.contains("skiff doctor -p doc-x"), "{refused}");
    }
    assert!(user.skiff("-p doc-x status").err().contains("there is no cluster"));
}

fn a_crash_is_found_and_mended(user: &User, cluster: &Cluster) {
    let of_ours = || {
        let shown = user.skiff("-p doc doctor").stdout;
        shown.contains("the daemon of node \"doc\" is gone")
    };
    assert!(!of_ours());
    cluster.kill_daemon();
    testkit::eventually("the crash is found", Duration::from_secs(20), || of_ours().then_some(()));
    cluster.skiff("start").out();
    assert!(!of_ours());
}
