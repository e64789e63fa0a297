//! `make install` puts everything in its place, and `make uninstall` takes all of it away and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::command::run;

const SKIFF: &str = env!("CARGO_BIN_EXE_skiff");

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { [path].into() }).collect()
}

#[test]
fn what_is_installed_works_and_goes_again() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hack/install.sh");
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path();
    std::fs::create_dir(prefix.join("bin")).unwrap();
    std::fs::write(prefix.join("bin/other"), "").unwrap();
    for _ in 0..2 {
        run(Command::new(&script).args(["install", SKIFF]).arg(prefix)).out();
    }
    let page = std::fs::read_to_string(prefix.join("share/man/man1/skiff-start.1")).unwrap();
    assert!(page.starts_with(".ie") && page.contains("kubernetes\\-version"), "{page}");
    assert!(!prefix.join("share/man/man1/skiff-daemon.1").exists(), "hidden commands have no page");
    for (file, part) in [
        ("share/man/man1/skiff.1", "skiff\\-doctor(1)"),
        ("share/bash-completion/completions/skiff", "complete -F _skiff"),
        ("share/zsh/site-functions/_skiff", "#compdef skiff"),
        ("share/fish/vendor_completions.d/skiff.fish", "complete -c skiff"),
    ] {
        let text = std::fs::read_to_string(prefix.join(file)).unwrap();
        assert!(text.contains(part), "{file}: {text}");
    }
    assert!(run(Command::new(prefix.join("bin/skiff")).arg("version")).out().starts_with("skiff "));
    run(Command::new(&script).arg("uninstall").arg(prefix)).out();
    assert_eq!(files(prefix), BTreeSet::from([prefix.join("bin/other")]));
}
