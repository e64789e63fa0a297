//! Objects as bytes: the stored form and how it becomes an answer without being parsed.
//!
//! Stored is `{"kind":…,"apiVersion":…,"metadata":{…},…}` in exactly this order and without `resourceVersion`, so
//! that an answer is three copies: the head (known per kind), the version, the rest.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::resource::Resource;

/// `{"kind":"Pod","apiVersion":"v1","metadata":{`.
pub fn head(resource: &Resource) -> String {
    format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{{",
        Value::from(resource.kind.as_str()),
        Value::from(resource.api_version())
    )
}

/// The stored form of an object of `resource`.
pub fn encode(resource: &Resource, object: &Value) -> Bytes {
    let mut out = head(resource).into_bytes();
    let empty = Map::new();
    let meta = object["metadata"].as_object().unwrap_or(&empty);
    write_entries(
        &mut out,
        meta.iter().filter(|(k, _)| !matches!(k.as_str(), "resourceVersion" | "selfLink")),
        true,
    );
    out.push(b'}');
    let top = object.as_object().unwrap_or(&empty);
    let rest = top.iter().filter(|(k, _)| !matches!(k.as_str(), "kind" | "apiVersion" | "metadata"));
    write_entries(&mut out, rest, false);
    out.push(b'}');
    out.into()
}

fn write_entries<'a>(
    out: &mut Vec<u8>,
    entries: impl Iterator<Item = (&'a String, &'a Value)>,
    mut first: bool,
) {
    for (key, value) in entries {
        if !first {
            out.push(b',');
        }
        first = false;
        // Writing into a Vec cannot fail, and keys are strings.
        let _ = serde_json::to_writer(&mut *out, key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, value);
    }
}

/// Appends the object with its version.
pub fn splice(head: &str, stored: &[u8], revision: u64, out: &mut Vec<u8>) {
    splice_after(head, head, stored, revision, out);
}

/// Appends the object as an item of a list, where kind and version are the list's.
pub fn splice_item(head: &str, stored: &[u8], revision: u64, out: &mut Vec<u8>) {
    splice_after(head, "{\"metadata\":{", stored, revision, out);
}

fn splice_after(head: &str, written: &str, stored: &[u8], revision: u64, out: &mut Vec<u8>) {
    let Some(rest) = stored.strip_prefix(head.as_bytes()) else {
        // Not written by `encode` in this version (another server, a definition that changed): the long way.
        let mut object: Value = serde_json::from_slice(stored).unwrap_or_default();
        let kind: Value = serde_json::from_str(&format!("{head}}}}}")).unwrap_or_default();
        set_top(&mut object, "kind", kind["kind"].clone());
        set_top(&mut object, "apiVersion", kind["apiVersion"].clone());
        set_version(&mut object, revision);
        let _ = serde_json::to_writer(out, &object);
        return;
    };
    out.extend_from_slice(written.as_bytes());
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
    if rest.first() != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(rest);
}

/// Parses a stored object and gives it its version.
pub fn decode(stored: &[u8], revision: u64) -> Result<Value, serde_json::Error> {
    let mut object = serde_json::from_slice(stored)?;
    set_version(&mut object, revision);
    Ok(object)
}

/// A map at the top of the object, made if it is missing.
pub fn make_child<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    make_map(make_map(object).entry(key).or_insert(Value::Null))
}

/// A field of an object, null if it was missing.
pub fn entry<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    make_map(object).entry(key).or_insert(Value::Null)
}

/// Sets `metadata.resourceVersion`.
pub fn set_version(object: &mut Value, revision: u64) {
    set_meta(object, "resourceVersion", revision.to_string().into());
}

fn make_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made a map"),
    }
}

/// `metadata`, made if it is missing.
pub fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    make_map(make_map(object).entry("metadata").or_insert(Value::Null))
}

/// Sets a field of metadata; null removes it.
pub fn set_meta(object: &mut Value, key: &str, value: Value) {
    let meta = meta_mut(object);
    if value.is_null() {
        meta.shift_remove(key);
    } else {
        meta.insert(key.into(), value);
    }
}

/// A text of metadata, or empty.
pub fn meta<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// Sets or, with null, removes a field at the top.
pub fn set_top(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            map.insert(key.into(), value);
        }
    }
}

/// Now, in the form of `metav1.Time`.
pub fn now() -> String {
    format_time(Timestamp::now())
}

/// A moment in the form of `metav1.Time`: whole seconds, UTC.
pub fn format_time(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Removes nulls: in typed objects null means absent.
pub fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_spliced_object_is_the_parsed_one() {
        let pods = Resource::new("", "v1", "Pod", "pods");
        let object = json!({
            "spec": {"a": [1, null]}, "metadata": {"resourceVersion": "7", "name": "x", "labels": {"a\"": "b"}},
            "apiVersion": "v1", "kind": "Pod",
        });
        let stored = encode(&pods, &object);
        assert!(stored.starts_with(b"{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"name\""));
        let mut out = Vec::new();
        splice(&head(&pods), &stored, 42, &mut out);
        let mut expected = object.clone();
        set_version(&mut expected, 42);
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
        assert_eq!(decode(&stored, 42).unwrap(), expected);
        let mut item = Vec::new();
        splice_item(&head(&pods), &stored, 42, &mut item);
        let item: Value = serde_json::from_slice(&item).unwrap();
        assert_eq!((&item["metadata"], &item["kind"]), (&expected["metadata"], &Value::Null));
    }

    #[test]
    fn foreign_bytes_go_the_long_way() {
        let pods = Resource::new("", "v1", "Pod", "pods");
        let mut out = Vec::new();
        splice(&head(&pods), br#"{"metadata":{"name":"x"}}"#, 3, &mut out);
        let got: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(got["metadata"]["resourceVersion"], "3");
    }
}
