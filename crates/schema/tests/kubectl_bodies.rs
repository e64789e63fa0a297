//! Bodies of the real kubectl: `NAME.pb` is what kubectl 1.33 sent (1.32 sent the same bytes), `NAME.json` what
//! kubectl 1.31, which does not speak protobuf, sent for the same command. The decoded one must be the other one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use schema::{Table, canonical, json, protobuf};
use serde_json::Value;
use std::path::Path;

fn bodies() -> Vec<(String, Vec<u8>, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bodies");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pb") {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let json = json::parse(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
            found.push((name, std::fs::read(&path).unwrap(), json.value));
        }
    }
    assert!(found.len() >= 23, "only {} bodies", found.len());
    found
}

#[test]
fn decoded_protobuf_is_the_json_of_the_same_command() {
    for (name, bytes, expected) in bodies() {
        let decoded = protobuf::decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(strip_nulls(decoded), strip_nulls(expected), "{name}");
    }
}

#[test]
fn encoding_and_decoding_gives_the_object_back() {
    for (name, _, object) in bodies() {
        let again = protobuf::decode(&protobuf::encode(&object).unwrap()).unwrap();
        assert_eq!(strip_nulls(again), strip_nulls(object), "{name}");
    }
}

/// Absent lists, pointers and times may be `null` in JSON; the wire has nothing for them.
fn strip_nulls(mut value: Value) -> Value {
    match &mut value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(|value| *value = strip_nulls(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = strip_nulls(item.take())),
        _ => {}
    }
    value
}

/// The JSON bodies were written by Go: they are the complete form of whatever is left of them.
#[test]
fn completing_an_object_gives_what_go_writes() {
    for (name, bytes, object) in bodies() {
        let text = |key: &str| object[key].as_str().unwrap();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let ty = Table::builtin().kind(group, version, text("kind")).unwrap();
        for mut bare in [strip_nulls(object.clone()), protobuf::decode(&bytes).unwrap()] {
            canonical::complete(ty, &mut bare);
            assert_eq!(bare, object, "{name}");
        }
    }
}

#[test]
fn no_cut_or_flipped_body_panics() {
    for (_, bytes, _) in bodies() {
        for len in 0..bytes.len() {
            let _ = protobuf::decode(&bytes[..len]);
        }
        for at in 4..bytes.len() {
            for flip in [0x01, 0x08, 0x80, 0xff] {
                let mut broken = bytes.clone();
                broken[at] ^= flip;
                let _ = protobuf::decode(&broken);
            }
        }
    }
}
