//! Small pieces of text in tables: ages, labels, lists with "more".

use jiff::Timestamp;
use serde_json::Value;

use crate::rest::scale::selector_text;

/// How long something took, in the two largest units that matter.
pub fn duration(seconds: i64) -> String {
    let two =
        |a: i64, x: &str, b: i64, y: &str| if b == 0 { format!("{a}{x}") } else { format!("{a}{x}{b}{y}") };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if years < 2 => format!("{days}d"),
        _ if years < 8 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

/// Seconds since a moment given as text.
pub fn seconds_since(moment: &str, now: Timestamp) -> Option<i64> {
    let then: Timestamp = moment.parse().ok()?;
    Some(now.duration_since(then).as_secs())
}

/// Age of a moment; `<unknown>` for none.
pub fn age(moment: &str, now: Timestamp) -> String {
    seconds_since(moment, now).map_or_else(|| "<unknown>".into(), duration)
}

/// Age of an object.
pub fn age_of(object: &Value, now: Timestamp) -> Value {
    age(crate::object::meta(object, "creationTimestamp"), now).into()
}

/// A text, or what stands for an absent one.
pub fn or<'a>(value: &'a Value, absent: &'a str) -> &'a str {
    match value.as_str() {
        None | Some("") => absent,
        Some(text) => text,
    }
}

/// A whole number, 0 if absent.
pub fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The entries of a list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Number of entries of a map or list.
pub fn count(value: &Value) -> i64 {
    let n = value.as_object().map(serde_json::Map::len).or_else(|| value.as_array().map(Vec::len));
    i64::try_from(n.unwrap_or(0)).unwrap_or(i64::MAX)
}

/// `<none>` for an empty text.
pub fn none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

/// Labels as `a=b,c=d`, sorted.
pub fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    none(pairs.join(","))
}

/// A LabelSelector as text.
pub fn selector(selector: &Value) -> String {
    if selector.is_null() || selector.as_object().is_some_and(serde_json::Map::is_empty) {
        return "<none>".into();
    }
    none(selector_text(selector))
}

/// Names and images of a Pod template's containers.
pub fn containers(spec: &Value) -> (Value, Value) {
    let join = |key: &str| {
        let texts: Vec<&str> = list(&spec["containers"]).iter().filter_map(|c| c[key].as_str()).collect();
        Value::from(texts.join(","))
    };
    (join("name"), join("image"))
}

/// The first three, and how many more there are.
pub fn few(all: &[String], empty: &str) -> String {
    match all {
        [] => empty.into(),
        all if all.len() <= 3 => all.join(","),
        all => format!("{} + {} more...", all[..3].join(","), all.len() - 3),
    }
}

/// Condition of a type, if its status is true.
pub fn is_true(object: &Value, condition: &str) -> bool {
    list(&object["status"]["conditions"]).iter().any(|c| c["type"] == condition && c["status"] == "True")
}

/// An int-or-string as text.
pub fn int_or_string(value: &Value, absent: &str) -> Value {
    match value {
        Value::Null => absent.into(),
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}
