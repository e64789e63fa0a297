//! What goes wrong at the keyboard: Ctrl-C at any moment of a start, two starts at once, a delete in the middle of one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::eventually;
use testkit::machine::Machine;
use testkit::user::User;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");
const SOON: Duration = Duration::from_secs(60);
const PROFILE: &str = "broken-off";

#[test]
fn a_start_that_is_broken_off_leaves_no_mess() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
    let before = Machine::now();
    let user = User::new(SKIFF);
    {
        let _clusters = user.clusters(&[PROFILE]);
        for step in ["Preparing the node", "Starting the API server", "Waiting for the node"] {
            an_interrupt_takes_away_what_was_made(&user, step);
        }
        an_interrupt_at_any_time_leaves_a_cluster_that_starts(&user);
        two_starts_at_once_make_one_cluster(&user);
        a_delete_ends_a_start(&user);
    }
    before.is_again(SOON);
}

fn start(user: &User) -> Child {
    let mut start = user.command(SKIFF, &format!("-p {PROFILE} start"));
    start.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}

/// Waits until the daemon's log speaks of that step once more than before.
fn wait_for_step(user: &User, step: &str, seen: usize) {
    eventually(step, SOON, || (times(user, step) > seen).then_some(()));
}

fn times(user: &User, step: &str) -> usize {
    user.skiff(&format!("-p {PROFILE} logs")).stdout.matches(step).count()
}

fn an_interrupt_takes_away_what_was_made(user: &User, step: &str) {
    let seen = times(user, step);
    let child = start(user);
    wait_for_step(user, step, seen);
    interrupt(&child);
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    // It may have been up just before the signal came; then it stops as a running one does.
    assert!(ended.status.success() || said.contains("told to stop"), "{step}: {said}");
    eventually("the node is gone", SOON, || {
        (user.skiff(&format!("-p {PROFILE} status")).code == Some(3)).then_some(())
    });
    eventually("its links are gone", SOON, || {
        let links = testkit::command::program("ip", &["-o", "link"]).out();
        (!links.contains(PROFILE)).then_some(())
    });
}

fn an_interrupt_at_any_time_leaves_a_cluster_that_starts(user: &User) {
    for pause in [0, 3, 10, 30, 100] {
        let child = start(user);
        std::thread::sleep(Duration::from_millis(pause));
        interrupt(&child);
        child.wait_with_output().unwrap();
    }
    user.skiff(&format!("-p {PROFILE} start")).out();
    assert_eq!(user.json(&format!("-p {PROFILE} status"))["node"], "Ready");
    user.skiff(&format!("-p {PROFILE} stop")).out();
}

fn two_starts_at_once_make_one_cluster(user: &User) {
    let both = [start(user), start(user)];
    let ended = both.map(|child| child.wait_with_output().unwrap());
    assert!(ended.iter().any(|one| one.status.success()), "{ended:?}");
    for one in ended.iter().filter(|one| !one.status.success()) {
        let said = String::from_utf8_lossy(&one.stderr);
        assert!(said.contains("is being started or runs already"), "{said}");
    }
    assert_eq!(user.json(&format!("-p {PROFILE} status"))["node"], "Ready");
    user.skiff(&format!("-p {PROFILE} stop")).out();
}

fn a_delete_ends_a_start(user: &User) {
    let seen = times(user, "Preparing the node");
    let child = start(user);
    wait_for_step(user, "Preparing the node", seen);
    user.skiff(&format!("-p {PROFILE} delete")).out();
    let ended = child.wait_with_output().unwrap();
    assert!(!ended.status.success(), "{ended:?}");
    assert!(user.skiff(&format!("-p {PROFILE} status")).err().contains("there is no cluster"));
}
