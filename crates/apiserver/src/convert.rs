//! Kinds served in two versions: between the stored form and the other one.
//!
//! Events are stored as core/v1 and also served as events.k8s.io/v1; HorizontalPodAutoscalers are stored as
//! autoscaling/v2 and also served as v1, whose missing fields travel in annotations as upstream does it.

use serde_json::{Map, Value, json};

use crate::object::{meta_mut, set_top};
use crate::resource::Resource;

/// Turns an object of `row` into the stored form.
pub fn to_stored(row: &Resource, stored: &Resource, object: &mut Value) {
    match row.kind.as_str() {
        "Event" => rename(object, &EVENT_FIELDS.map(|(core, new)| (new, core))),
        "HorizontalPodAutoscaler" => hpa_to_v2(object),
        _ => {}
    }
    set_type(stored, object);
}

/// Turns a stored object into the form of `row`.
pub fn from_stored(row: &Resource, object: &mut Value) {
    match row.kind.as_str() {
        "Event" => rename(object, &EVENT_FIELDS),
        "HorizontalPodAutoscaler" => hpa_to_v1(object),
        _ => {}
    }
    set_type(row, object);
}

fn set_type(row: &Resource, object: &mut Value) {
    set_top(object, "kind", row.kind.as_str().into());
    set_top(object, "apiVersion", row.api_version().into());
}

/// core/v1 name, events.k8s.io/v1 name.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, fields: &[(&str, &str)]) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(value) = map.shift_remove(*from) {
            map.insert((*to).into(), value);
        }
    }
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn is_cpu(metric: &Value, source: &str) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"][source].is_object()
}

/// Takes the entries of a list at `object[part][key]` as a Vec.
fn take_list(object: &mut Value, part: &str, key: &str) -> Vec<Value> {
    match object.get_mut(part).and_then(Value::as_object_mut).and_then(|m| m.shift_remove(key)) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn annotate(object: &mut Value, key: &str, value: Value) {
    let annotations = meta_mut(object).entry("annotations").or_insert_with(|| Map::new().into());
    if let Some(map) = annotations.as_object_mut() {
        map.insert(key.into(), value.to_string().into());
    }
}

fn hpa_to_v1(object: &mut Value) {
    let mut others = Vec::new();
    for metric in take_list(object, "spec", "metrics") {
        let target = &metric["resource"]["target"]["averageUtilization"];
        if is_cpu(&metric, "target")
            && !target.is_null()
            && object["spec"]["targetCPUUtilizationPercentage"].is_null()
        {
            object["spec"]["targetCPUUtilizationPercentage"] = target.clone();
        } else {
            others.push(metric);
        }
    }
    let behavior =
        object.get_mut("spec").and_then(Value::as_object_mut).and_then(|m| m.shift_remove("behavior"));
    let mut currents = Vec::new();
    for metric in take_list(object, "status", "currentMetrics") {
        let value = &metric["resource"]["current"]["averageUtilization"];
        if is_cpu(&metric, "current") && !value.is_null() {
            object["status"]["currentCPUUtilizationPercentage"] = value.clone();
        }
        currents.push(metric);
    }
    let conditions = take_list(object, "status", "conditions");
    for (key, list) in [(METRICS, others), (CURRENT, currents), (CONDITIONS, conditions)] {
        if !list.is_empty() {
            annotate(object, key, list.into());
        }
    }
    if let Some(behavior) = behavior {
        annotate(object, BEHAVIOR, behavior);
    }
}

fn hpa_to_v2(object: &mut Value) {
    let mut saved = |key: &str| -> Option<Value> {
        let map = object.pointer_mut("/metadata/annotations")?.as_object_mut()?;
        serde_json::from_str(map.shift_remove(key)?.as_str()?).ok()
    };
    let (metrics, behavior, conditions, current) =
        (saved(METRICS), saved(BEHAVIOR), saved(CONDITIONS), saved(CURRENT));
    let mut list: Vec<Value> = Vec::new();
    let cpu = object
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .and_then(|m| m.shift_remove("targetCPUUtilizationPercentage"));
    if let Some(cpu) = cpu {
        list.push(json!({"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu},
        }}));
    }
    list.extend(metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default());
    if !list.is_empty() && object["spec"].is_object() {
        object["spec"]["metrics"] = list.into();
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("currentCPUUtilizationPercentage");
        for (key, value) in [("conditions", conditions), ("currentMetrics", current)] {
            if let Some(value) = value {
                status.insert(key.into(), value);
            }
        }
    }
    if let (Some(behavior), Some(spec)) = (behavior, object.get_mut("spec").and_then(Value::as_object_mut)) {
        spec.insert("behavior".into(), behavior);
    }
    let meta = meta_mut(object);
    if meta.get("annotations").is_some_and(|a| a.as_object().is_some_and(Map::is_empty)) {
        meta.shift_remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::registry::Registry;

    fn round_trip(group: &str, plural: &str, stored: Value) -> Value {
        let registry = Registry::new(crate::builtin::resources());
        let row = registry.get(group, "v1", plural).unwrap();
        let home = registry.storage_of(&row);
        let mut object = stored.clone();
        from_stored(&row, &mut object);
        let seen = object.clone();
        to_stored(&row, &home, &mut object);
        assert_eq!(object, stored);
        seen
    }

    #[test]
    fn events() {
        let seen = round_trip(
            "events.k8s.io",
            "events",
            json!({
                "kind": "Event", "apiVersion": "v1", "metadata": {"name": "e"},
                "involvedObject": {"name": "p"}, "message": "m", "count": 2,
            }),
        );
        assert_eq!((&seen["note"], &seen["regarding"]["name"]), (&json!("m"), &json!("p")));
    }

    #[test]
    fn autoscalers_lose_nothing_in_v1() {
        let seen = round_trip(
            "autoscaling",
            "horizontalpodautoscalers",
            json!({
                "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": {"name": "h"},
                "spec": {"maxReplicas": 3, "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 60}}},
                ], "behavior": {"scaleUp": {}}},
            }),
        );
        assert_eq!(seen["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(seen["metadata"]["annotations"][METRICS].as_str().unwrap().contains("memory"));
    }
}
