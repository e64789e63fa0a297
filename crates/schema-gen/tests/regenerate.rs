//! The checked-in table is what the generator makes of its sources today.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Read as _;
use std::path::Path;

#[test]
fn table_and_descriptions_are_up_to_date() {
    let fresh = schema_gen::emit::generate().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schema/data");
    let table = std::fs::read_to_string(data.join("table.txt")).unwrap();
    for (line, (old, new)) in table.lines().zip(fresh.table.lines()).enumerate() {
        assert_eq!(old, new, "table.txt, line {}: run `cargo run -p schema-gen -- table`", line + 1);
    }
    assert_eq!(table.len(), fresh.table.len(), "run `cargo run -p schema-gen -- table`");
    let mut descriptions = String::new();
    let packed = std::fs::File::open(data.join("descriptions.bin")).unwrap();
    flate2::read::ZlibDecoder::new(packed).read_to_string(&mut descriptions).unwrap();
    assert!(descriptions == fresh.descriptions, "descriptions.bin: run `cargo run -p schema-gen -- table`");
}
