//! The constraints of a structural schema on the values of a custom object, and its defaults
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation>).
//! Which fields there are is the business of `schema::Table`, the rules in CEL that of `validations`.

use regex::Regex;
use serde_json::Value;

use crate::field::{FieldError, FieldErrors};

/// Schemas and objects nested deeper than this are not looked into.
const DEPTH: usize = 64;

/// Fills in the schema's defaults.
pub fn default(schema: &Value, value: &mut Value) {
    fill(schema, value, 0);
}

fn fill(schema: &Value, value: &mut Value, depth: usize) {
    if depth > DEPTH {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, property) in schema["properties"].as_object().into_iter().flatten() {
                let default = &property["default"];
                let missing = map.get(key).is_none_or(|v| v.is_null() && property["nullable"] != true);
                if missing && !default.is_null() {
                    map.insert(key.clone(), default.clone());
                }
                if let Some(child) = map.get_mut(key) {
                    fill(property, child, depth + 1);
                }
            }
            if schema["additionalProperties"].is_object() {
                map.values_mut().for_each(|child| fill(&schema["additionalProperties"], child, depth + 1));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(&schema["items"], item, depth + 1)),
        _ => {}
    }
}

/// Offences of an object; its metadata is checked elsewhere. What is as it was in `old` is not held against it: the
/// schema may be newer.
pub fn validate(schema: &Value, object: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::new();
    walk(schema, object, old, "", 0, &mut errors);
    errors
}

fn walk(
    schema: &Value,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    depth: usize,
    errors: &mut FieldErrors,
) {
    if depth > DEPTH || old == Some(value) || value.is_null() && schema["nullable"] == true {
        return;
    }
    if !has_type(schema, value) {
        let (wanted, got) = (schema["type"].as_str().unwrap_or_default(), type_name(value));
        let place = if path.is_empty() { "<nil>" } else { path };
        let why = format!("{place} in body must be of type {wanted}: {got:?}");
        errors.push(FieldError::type_invalid(place, got, why));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|a| !a.contains(value)) {
        let names: Vec<String> =
            allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &names));
    }
    match value {
        Value::String(text) => strings(schema, text, path, errors),
        Value::Number(_) => numbers(schema, value, path, errors),
        Value::Array(items) => {
            bounds(schema, items.len(), path, ("minItems", "maxItems"), "items", errors);
            for (i, item) in items.iter().enumerate() {
                let before = super::validations::correlated(schema, old, item);
                walk(&schema["items"], item, before, &format!("{path}[{i}]"), depth + 1, errors);
            }
        }
        Value::Object(map) => {
            bounds(schema, map.len(), path, ("minProperties", "maxProperties"), "properties", errors);
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    errors.push(FieldError::required(join(path, name), ""));
                }
            }
            for (key, child) in map {
                let property = &schema["properties"][key];
                let property = if property.is_null() { &schema["additionalProperties"] } else { property };
                if property.is_object() {
                    let before = old.and_then(|old| old.get(key));
                    walk(property, child, before, &join(path, key), depth + 1, errors);
                }
            }
        }
        _ => {}
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_string() || value.is_i64() || value.is_u64();
    }
    match schema["type"].as_str() {
        None | Some("") => true,
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        Some(wanted) => wanted == type_name(value),
    }
}

fn strings(schema: &Value, text: &str, path: &str, errors: &mut FieldErrors) {
    let length = text.chars().count();
    if schema["maxLength"].as_u64().is_some_and(|max| length as u64 > max) {
        errors.push(FieldError::too_long(
            path,
            usize::try_from(schema["maxLength"].as_u64().unwrap_or(0)).unwrap_or(0),
        ));
    }
    if let Some(min) = schema["minLength"].as_u64().filter(|min| (length as u64) < *min) {
        let why = format!("{path} in body should be at least {min} chars long");
        errors.push(FieldError::invalid(path, text, why));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        // Patterns that only Go understands are not held against the object.
        let matches = Regex::new(pattern).map_or(true, |re| re.is_match(text));
        if !matches {
            errors.push(FieldError::invalid(path, text, format!("{path} in body should match '{pattern}'")));
        }
    }
}

fn numbers(schema: &Value, value: &Value, path: &str, errors: &mut FieldErrors) {
    let Some(number) = value.as_f64() else { return };
    for (key, exclusive, words, strict) in [
        ("minimum", "exclusiveMinimum", "should be greater than or equal to", "should be greater than"),
        ("maximum", "exclusiveMaximum", "should be less than or equal to", "should be less than"),
    ] {
        let Some(bound) = schema[key].as_f64() else { continue };
        let only = schema[exclusive] == true;
        let beyond = if key == "minimum" { number < bound } else { number > bound };
        #[allow(clippy::float_cmp)]
        let at = only && number == bound;
        if beyond || at {
            let words = if only { strict } else { words };
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                format!("{path} in body {words} {}", schema[key]),
            ));
        }
    }
}

fn bounds(schema: &Value, n: usize, path: &str, keys: (&str, &str), what: &str, errors: &mut FieldErrors) {
    if let Some(min) = schema[keys.0].as_u64().filter(|min| (n as u64) < *min) {
        let why = format!("{path} in body should have at least {min} {what}");
        errors.push(FieldError::invalid(path, n, why));
    }
    if let Some(max) = schema[keys.1].as_u64().filter(|max| n as u64 > *max) {
        errors.push(FieldError::too_many(path, n, usize::try_from(max).unwrap_or(usize::MAX)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn offences() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
            "list": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
        }}}});
        for (spec, expected) in [
            (json!({"size": 3}), ""),
            (json!({}), "spec.size: Required value"),
            (
                json!({"size": 0}),
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
            ),
            (
                json!({"size": "x"}),
                "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
            ),
            (
                json!({"size": 1, "color": "x"}),
                "spec.color: Unsupported value: \"x\": supported values: \"red\", \"blue\"",
            ),
            (
                json!({"size": 1, "name": "A"}),
                "spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'",
            ),
            (json!({"size": 1, "name": "abcd"}), "spec.name: Too long: may not be more than 3 bytes"),
            (json!({"size": 1, "list": ["a", "b"]}), "spec.list: Too many: 2: must have at most 1 items"),
            (
                json!({"size": 1, "list": [5]}),
                "spec.list[0]: Invalid value: \"integer\": spec.list[0] in body must be of type string: \"integer\"",
            ),
        ] {
            let errors = validate(&schema, &json!({"spec": spec}), None);
            let text = if errors.is_empty() { String::new() } else { errors.to_string() };
            assert_eq!(text, expected);
        }
        let mut object = json!({"spec": {"size": 1}});
        default(&schema, &mut object);
        assert_eq!(object["spec"]["color"], "red");
    }
}
