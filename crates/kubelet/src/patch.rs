//! The smallest strategic merge patch from one Pod status to another.
//!
//! Only what changed is sent, conditions by their type: what others wrote in the meantime (readiness gates) stays.
//! Both are compared in the form in which the API stores them, so that what it fills in (`lastState: {}`) is no change.
//! Lists of addresses are merged by `ip` on the server, so addresses that are gone are deleted by name.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The patch, or `None` when nothing changed. `uid` makes it fail for a successor of the same name.
pub fn pod_status(uid: &str, before: &PodStatus, after: &PodStatus) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (stored(before)?, stored(after)?) else { return None };
    let mut patch = Map::new();
    for (name, value) in &new {
        if old.get(name) == Some(value) {
            continue;
        }
        let change = match name.as_str() {
            "conditions" => by_key(old.get(name), value, "type", false),
            "podIPs" | "hostIPs" => by_key(old.get(name), value, "ip", true),
            _ => value.clone(),
        };
        patch.insert(name.clone(), change);
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    (!patch.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": patch}))
}

/// A status as the API stores it.
fn stored(status: &PodStatus) -> Option<Value> {
    let mut value = serde_json::to_value(status).ok()?;
    schema::canonical::complete(schema::Table::builtin().by_name("core/v1.PodStatus")?, &mut value);
    Some(value)
}

fn by_key(old: Option<&Value>, new: &Value, key: &str, delete: bool) -> Value {
    let items = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (items(old), items(Some(new)));
    let same_key = |a: &Value, b: &Value| a.get(key) == b.get(key);
    let mut list: Vec<Value> = Vec::new();
    for item in new.iter().filter(|item| !old.contains(item)) {
        let mut item = item.clone();
        // A merged item keeps fields that the new one lacks, unless they are named.
        if let (Some(before), Some(after)) =
            (old.iter().find(|o| same_key(o, &item)).and_then(Value::as_object), item.as_object_mut())
        {
            for name in before.keys() {
                after.entry(name.clone()).or_insert(Value::Null);
            }
        }
        list.push(item);
    }
    if delete {
        let gone = old.iter().filter(|o| !new.iter().any(|n| same_key(n, o)));
        list.extend(gone.map(|o| json!({"$patch": "delete", key: o.get(key)})));
    }
    Value::Array(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn patch(before: Value, after: Value) -> Option<Value> {
        let parse = |v| serde_json::from_value::<PodStatus>(v).unwrap();
        pod_status("u", &parse(before), &parse(after)).map(|p| p["status"].clone())
    }

    #[test]
    fn what_the_api_fills_in_is_no_difference() {
        let kept = json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "lastState": {}, "started": true}]});
        let mut bare = kept.clone();
        bare["containerStatuses"][0].as_object_mut().unwrap().remove("lastState");
        assert_eq!(patch(kept, bare), None);
    }

    #[test]
    fn only_the_difference() {
        let status = json!({"phase": "Running", "podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}],
            "conditions": [{"type": "Ready", "status": "False", "reason": "X"}, {"type": "Gate", "status": "True"}]});
        assert_eq!(patch(status.clone(), status.clone()), None);
        let mut after = status.clone();
        after["conditions"][0] = json!({"type": "Ready", "status": "True"});
        assert_eq!(
            patch(status.clone(), after),
            Some(json!({"conditions": [{"type": "Ready", "status": "True", "reason": null,
                "lastProbeTime": null, "lastTransitionTime": null}]}))
        );
        let mut after = status.clone();
        after["podIP"] = json!("2.2.2.2");
        after["podIPs"] = json!([{"ip": "2.2.2.2"}]);
        assert_eq!(
            patch(status.clone(), after),
            Some(
                json!({"podIP": "2.2.2.2", "podIPs": [{"ip": "2.2.2.2"}, {"$patch": "delete", "ip": "1.1.1.1"}]})
            )
        );
        let mut after = status.clone();
        after.as_object_mut().unwrap().remove("podIP");
        assert_eq!(patch(status, after), Some(json!({"podIP": null})));
    }
}
