//! Whether a node satisfies a Pod's node selector, required node affinity and taints: what the DaemonSet controller
//! must foresee of the scheduler's judgement.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::meta;

/// nodeSelector and required node affinity.
pub(crate) fn selects(spec: &PodSpec, node: &Node) -> bool {
    let labels = meta::labels(&node.metadata);
    let plain = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    plain && required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let labels = meta::labels(&node.metadata);
    // An empty term matches nothing.
    (expressions.clone().next().is_some() || fields.clone().next().is_some())
        && expressions.into_iter().all(|e| requirement(e, labels.get(&e.key).map(String::as_str)))
        && fields
            .into_iter()
            .all(|f| f.key == "metadata.name" && requirement(f, node.metadata.name.as_deref()))
}

fn requirement(requirement: &NodeSelectorRequirement, actual: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = actual.is_some_and(|a| values.iter().any(|v| v == a));
    let numbers = || -> Option<(i64, i64)> { Some((actual?.parse().ok()?, values.first()?.parse().ok()?)) };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => numbers().is_some_and(|(a, b)| a > b),
        "Lt" => numbers().is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    let any_value = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && (key == taint.key || (key.is_empty() && any_value))
        && (any_value || toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_and_affinity() {
        let labels = json!({"disk": "ssd", "cpus": "8"});
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": labels}})).unwrap();
        let check = |spec: serde_json::Value| selects(&serde_json::from_value(spec).unwrap(), &node);
        let term = |term: serde_json::Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
        };
        let expression = |key: &str, operator: &str, values: &[&str]| {
            check(term(json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})))
        };
        assert!(check(json!({"containers": [], "nodeSelector": {"disk": "ssd"}})));
        assert!(!check(json!({"containers": [], "nodeSelector": {"disk": "hdd"}})));
        assert!(expression("disk", "In", &["ssd", "x"]) && !expression("disk", "NotIn", &["ssd"]));
        assert!(expression("gpu", "NotIn", &["x"]) && expression("gpu", "DoesNotExist", &[]));
        assert!(expression("cpus", "Gt", &["4"]) && !expression("cpus", "Lt", &["4"]));
        assert!(!check(term(json!({}))));
        let name = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        assert!(check(term(name("n1"))) && !check(term(name("n2"))));
    }
}
