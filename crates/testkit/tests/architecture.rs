//! ARCHITECTURE.md names every crate and no other.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

#[test]
fn the_map_shows_every_crate_and_no_other() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let headings = map.lines().filter_map(|l| l.strip_prefix("### `")?.strip_suffix('`')).map(str::to_owned);
    let named: BTreeSet<String> = headings.collect();
    let dirs = std::fs::read_dir(root.join("crates")).unwrap();
    let there: BTreeSet<String> = dirs
        .flatten()
        .filter(|e| e.path().join("Cargo.toml").exists())
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    assert_eq!(named, there, "left: in ARCHITECTURE.md, right: in crates/");
}
