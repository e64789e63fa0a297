//! What `make run` shows a new user works, and what it says about removing it all is true.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testkit::command::run;
use testkit::machine::Machine;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

#[test]
fn the_tour_shows_an_application_and_leaves_nothing() {
    assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
    let before = Machine::now();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../hack/tour.sh");
    let shown = run(Command::new(script).arg(SKIFF).env("KUBECONFIG", &config));
    let deleted = run(Command::new(SKIFF).args(["-p", "tour", "delete"]).env("KUBECONFIG", &config));
    let text = shown.out();
    for part in ["$ kubectl get nodes", "Name:\tweb.default.svc.cluster.local", "Hostname: web-", "delete"] {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
    deleted.out();
    before.is_again(Duration::from_secs(30));
}

#[test]
fn without_root_it_says_what_to_run() {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let refused = run(Command::new("setpriv").args(nobody).arg(SKIFF).args(["-p", "x", "start"]));
    let said = refused.err();
    assert!(said.contains("need root; run: sudo skiff -p x start"), "{said}");
}

#[test]
fn a_profile_name_that_cannot_be_is_refused() {
    let said = run(Command::new(SKIFF).args(["-p", "Not A Name", "start"])).err();
    assert!(said.contains("1 to 11 lower-case letters"), "{said}");
}
