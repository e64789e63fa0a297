//! JSON as CEL sees it: by the schema of a custom resource, or as it is.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cel::Value;
use cel::objects::{Key, Map};
use serde_json::Value as Json;

/// Schemas and values nested deeper than this are not looked into.
const DEPTH: usize = 64;
/// Words that no field can be named in an expression.
const RESERVED: [&str; 22] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "__namespace__",
];

/// A value without a schema.
pub fn dynamic(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::Int(i),
            (None, Some(u)) => Value::UInt(u),
            _ => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => string(s),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(dynamic).collect())),
        Json::Object(map) => object(map.iter().map(|(k, v)| (k.clone(), dynamic(v)))),
    }
}

/// A map with text keys.
pub fn object(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let map: HashMap<Key, Value> = entries.into_iter().map(|(k, v)| (Key::from(k), v)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// Text.
pub fn string(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

/// A value as its schema types it. `resource`: it has type and object metadata that expressions may use.
pub fn typed(schema: &Json, value: &Json, resource: bool) -> Value {
    walk(schema, value, resource, 0)
}

fn walk(schema: &Json, value: &Json, resource: bool, depth: usize) -> Value {
    if depth > DEPTH {
        return Value::Null;
    }
    match value {
        Json::Number(n) if schema["type"] == "number" => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(s) => text(schema["format"].as_str().unwrap_or_default(), s),
        Json::Array(items) => {
            Value::List(Arc::new(items.iter().map(|i| walk(&schema["items"], i, false, depth + 1)).collect()))
        }
        Json::Object(map) => {
            let additional = &schema["additionalProperties"];
            if additional.is_object() {
                return object(map.iter().map(|(k, v)| (k.clone(), walk(additional, v, false, depth + 1))));
            }
            let embedded = resource || schema["x-kubernetes-embedded-resource"] == true;
            let known = map.iter().filter_map(|(key, child)| {
                if embedded && matches!(key.as_str(), "apiVersion" | "kind") {
                    return Some((key.clone(), dynamic(child)));
                }
                if embedded && key == "metadata" {
                    return Some((key.clone(), metadata(child)));
                }
                let property = schema["properties"].get(key)?;
                Some((escape(key), walk(property, child, false, depth + 1)))
            });
            object(known)
        }
        other => dynamic(other),
    }
}

/// Expressions may use the names alone.
fn metadata(metadata: &Json) -> Value {
    let names = ["name", "generateName"].iter();
    object(names.filter_map(|key| Some(((*key).to_owned(), dynamic(metadata.get(*key)?)))))
}

fn text(format: &str, text: &str) -> Value {
    match format {
        "byte" => STANDARD.decode(text).map_or_else(|_| string(text), |bytes| Value::Bytes(Arc::new(bytes))),
        "date-time" => {
            chrono::DateTime::parse_from_rfc3339(text).map_or_else(|_| string(text), Value::Timestamp)
        }
        "date" => chrono::DateTime::parse_from_rfc3339(&format!("{text}T00:00:00Z"))
            .map_or_else(|_| string(text), Value::Timestamp),
        "duration" => duration(text).map_or_else(|| string(text), Value::Duration),
        _ => string(text),
    }
}

/// A duration as Go writes it: `1h30m`, `1.5s`.
pub fn duration(text: &str) -> Option<chrono::Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(chrono::Duration::zero());
    }
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanos += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    #[allow(clippy::cast_possible_truncation)]
    let nanos = if negative { -nanos } else { nanos } as i64;
    (!text.is_empty()).then(|| chrono::Duration::nanoseconds(nanos))
}

/// A field's name as expressions write it.
pub fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/']) && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_type_values() {
        let schema = json!({"type": "object", "properties": {
            "ratio": {"type": "number"}, "count": {"type": "integer"}, "a-b": {"type": "string"},
            "in": {"type": "boolean"}, "time": {"type": "string", "format": "date-time"},
            "map": {"type": "object", "additionalProperties": {"type": "number"}}}});
        let value = json!({"ratio": 1, "count": 2, "a-b": "x", "in": true, "unknown": 1, "map": {"k-k": 3},
            "time": "2026-01-01T00:00:00Z", "metadata": {"name": "n", "labels": {}}});
        let Value::Map(map) = typed(&schema, &value, true) else { panic!("no map") };
        let get = |key: &str| map.map.get(&Key::from(key)).cloned();
        assert_eq!(get("ratio"), Some(Value::Float(1.0)));
        assert_eq!(get("count"), Some(Value::Int(2)));
        assert_eq!(get("a__dash__b"), Some(string("x")));
        assert_eq!(get("__in__"), Some(Value::Bool(true)));
        assert_eq!(get("unknown"), None);
        assert_eq!(get("map"), Some(object([("k-k".to_owned(), Value::Float(3.0))])));
        assert_eq!(get("metadata"), Some(object([("name".to_owned(), string("n"))])));
        assert!(matches!(get("time"), Some(Value::Timestamp(_))));
    }

    #[test]
    fn durations_as_go_writes_them() {
        let millis = |text| duration(text).map(|d| d.num_milliseconds());
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(millis("-1.5s"), Some(-1500));
        for bad in ["", "5", "1x", "h"] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }
}
