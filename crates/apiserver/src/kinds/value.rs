//! Reading and defaulting JSON objects with Kubernetes' notion of "unset": absent, null and, for text that is not
//! a pointer upstream, empty.
//!
//! Readers never fail: a value of another type reads as unset, since types were checked when the body was decoded.

use serde_json::{Map, Value};

/// Text of a field, or empty.
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// Elements of a list field, or none.
pub fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Entries of a map field, or none.
pub fn entries<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object[key].as_object().into_iter().flatten()
}

/// Number of a field.
pub fn int(object: &Value, key: &str) -> Option<i64> {
    object[key].as_i64()
}

/// Flag of a field, false when unset.
pub fn flag(object: &Value, key: &str) -> bool {
    object[key].as_bool().unwrap_or_default()
}

/// Whether a field is absent, null, or an empty text, list or map.
pub fn unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// Sets a field that is absent, null or empty text.
pub fn default(object: &mut Value, key: &str, value: impl Into<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    let missing = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    };
    if missing {
        map.insert(key.into(), value.into());
    }
}

/// Sets a number that is absent, null or zero (fields that are no pointer upstream).
pub fn default_number(object: &mut Value, key: &str, value: i64) {
    if object[key].as_i64().unwrap_or_default() == 0 && object.is_object() {
        set(object, key, value);
    }
}

/// Sets a field whatever it was.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.into(), value.into());
    }
}

/// Removes a field.
pub fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut().and_then(|map| map.shift_remove(key))
}

/// A child object to change; `None` when it is not there.
pub fn child<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object.get_mut(key).filter(|v| v.is_object())
}

/// A child object to change, made when missing. `None` only when the parent is no object.
pub fn child_or_new<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = object.as_object_mut()?;
    let slot = map.entry(key.to_owned()).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    Some(slot)
}

/// Elements of a list to change.
pub fn elements<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Appends to a list field, made when missing.
pub fn append(object: &mut Value, key: &str, element: Value) {
    let Some(map) = object.as_object_mut() else { return };
    let slot = map.entry(key.to_owned()).or_insert(Value::Null);
    match slot {
        Value::Array(list) => list.push(element),
        other => *other = Value::Array(vec![element]),
    }
}

/// Copies a field from `old`, removing it when `old` has none.
pub fn keep(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => set(new, key, value.clone()),
        None => drop(remove(new, key)),
    }
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(&object["metadata"], "name")
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text(&object["metadata"], "namespace")
}

/// Equal, where unset and empty are the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&Value::Null)))
                && y.iter().all(|(k, v)| x.contains_key(k) || unset(v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(v, w)| same(v, w)),
        _ => a == b || (unset(a) && unset(b)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn unset_is_like_absent() {
        let mut object = json!({"a": "", "b": null, "c": "x", "n": 0});
        for key in ["a", "b", "c", "d"] {
            default(&mut object, key, "set");
        }
        default_number(&mut object, "n", 3);
        assert_eq!(object, json!({"a": "set", "b": "set", "c": "x", "n": 3, "d": "set"}));
        assert!(same(&json!({"a": 1, "l": {}}), &json!({"a": 1, "t": ""})));
        assert!(!same(&json!({"a": [1]}), &json!({"a": [1, 2]})));
        default(&mut json!("text"), "a", 1);
    }
}
