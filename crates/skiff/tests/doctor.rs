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
        a_disk_that_fills_up_costs_no_cluster(&user);
        deleting_all_goes_on_past_one_that_stays(&user);
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

/// Runs a script in a mount namespace of its own, with skiff as `skiff`.
fn scripted(user: &User, script: &str) -> Ran {
    let mut command = user.command("unshare", "--mount --propagation private sh -ec");
    run(command.arg(format!("skiff() {{ {SKIFF} -p doc-x \"$@\"; }}\n{script}")))
}

/// On a disk of its own, and without /dev/net/tun, which nothing here needs.
fn a_disk_that_fills_up_costs_no_cluster(user: &User) {
    let small = scripted(user, "mount -t tmpfs -o size=50m tmpfs /var/lib\nskiff start").err();
    assert!(small.contains("disk: /var/lib has 52.4 MB left; free some"), "{small}");
    let nginx = testkit::images::tar("nginx");
    let script = format!(
        "mount -t tmpfs -o size=200m tmpfs /var/lib
         [ ! -d /dev/net ] || mount -t tmpfs tmpfs /dev/net
         skiff start
         trap 'skiff delete' EXIT
         dd if=/dev/zero of=/var/lib/fill bs=1M 2>/dev/null || true
         skiff image load {tar} && exit 1
         skiff status -o json
         rm /var/lib/fill
         skiff kubectl create configmap after >/dev/null
         skiff image load {tar}",
        tar = nginx.display()
    );
    let ran = scripted(user, &script);
    let said = ran.stderr.clone();
    let shown = ran.out();
    assert!(said.contains("No space left on device"), "{said}");
    assert!(
        shown.contains("\"node\": \"Ready\"") && shown.ends_with("docker.io/library/nginx:latest\n"),
        "{shown}{said}"
    );
}

/// A directory that something is mounted on cannot be removed.
fn deleting_all_goes_on_past_one_that_stays(user: &User) {
    let script = "mount -t tmpfs tmpfs /var/lib
        mount -t tmpfs tmpfs /run
        mkdir -p /var/lib/skiff/bad /var/lib/skiff/good /var/lib/skiff/last
        mount -t tmpfs tmpfs /var/lib/skiff/bad
        skiff delete --all && exit 1
        ls /var/lib/skiff
        umount /var/lib/skiff/bad
        skiff stop --all
        skiff delete --all
        ls /var/lib";
    let ran = scripted(user, script);
    let said = ran.stderr.clone();
    assert_eq!(ran.out(), "bad\n", "{said}");
    assert!(
        said.contains("error: bad: remove /var/lib/skiff/bad") && said.contains("it failed for: bad"),
        "{said}"
    );
    assert!(said.contains("The cluster \"last\" is gone"), "{said}");
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
