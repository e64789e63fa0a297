//! ARCHITECTURE.md names every crate and no other, in the order in which they may depend on each other.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The crates in the order of the page.
fn named() -> Vec<String> {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let headings = map.lines().filter_map(|l| l.strip_prefix("### `")?.strip_suffix('`'));
    headings.map(str::to_owned).collect()
}

#[test]
fn the_map_shows_every_crate_and_no_other() {
    let named: BTreeSet<String> = named().into_iter().collect();
    let dirs = std::fs::read_dir(root().join("crates")).unwrap();
    let there: BTreeSet<String> = dirs
        .flatten()
        .filter(|e| e.path().join("Cargo.toml").exists())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    assert_eq!(named, there, "left: in ARCHITECTURE.md, right: in crates/");
}

#[test]
fn crates_depend_only_downwards() {
    let named = named();
    for (place, name) in named.iter().enumerate() {
        let manifest = std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        let (_, after) = manifest.split_once("\n[dependencies]\n").unwrap_or_default();
        let section = after.split("\n[").next().unwrap();
        let dependencies =
            section.lines().filter_map(|line| line.split_once([' ', '.'])).map(|(name, _)| name);
        for dependency in dependencies {
            let later = named.iter().skip(place + 1).any(|other| other == dependency);
            assert!(!later, "{name} depends on {dependency}, which ARCHITECTURE.md names only later");
        }
    }
}
