//! What one object counts for in a ResourceQuota
//! (<https://kubernetes.io/docs/concepts/policy/resource-quotas/>).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::kinds::pod::resources::Amounts;
use crate::kinds::quantity::Quantity;
use crate::kinds::value::{list, text, unset};
use crate::object::meta;
use crate::resource::GroupResource;

/// Amounts by the names that `spec.hard` uses.
pub type Usage = BTreeMap<String, Quantity>;

/// Core kinds that are also counted by their bare plural.
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Suffix of a storage class's own quota.
const CLASS: &str = ".storageclass.storage.k8s.io/";

/// What every container must name when a quota is about it.
const DEMANDED: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// `count/deployments.apps`.
pub fn count_name(resource: &GroupResource) -> String {
    format!("count/{resource}")
}

/// Whether objects of a resource count for more than their number, so that they must be looked at.
pub fn needs_objects(resource: &GroupResource) -> bool {
    resource.group.is_empty()
        && matches!(resource.resource.as_str(), "pods" | "services" | "persistentvolumeclaims")
}

/// The resource whose objects make up a name of `spec.hard`.
pub fn counted_resource(name: &str) -> GroupResource {
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return GroupResource::new(group, plural);
    }
    match name {
        "services.nodeports" | "services.loadbalancers" => GroupResource::new("", "services"),
        "requests.storage" => GroupResource::new("", "persistentvolumeclaims"),
        own if COUNTED.contains(&own) => GroupResource::new("", own),
        class if class.contains(CLASS) => GroupResource::new("", "persistentvolumeclaims"),
        _ => GroupResource::new("", "pods"),
    }
}

/// What an object counts for.
pub fn of(resource: &GroupResource, object: &Value) -> Usage {
    let mut usage = Usage::from([(count_name(resource), Quantity::ONE)]);
    if !resource.group.is_empty() {
        return usage;
    }
    match resource.resource.as_str() {
        "pods" if is_counted(object) => pod(object, &mut usage),
        "pods" => {}
        plural if COUNTED.contains(&plural) => {
            usage.insert(plural.into(), Quantity::ONE);
            match plural {
                "services" => service(&object["spec"], &mut usage),
                "persistentvolumeclaims" => claim(object, &mut usage),
                _ => {}
            }
        }
        _ => {}
    }
    usage
}

/// Pods that have ended, or whose node never ended them, take nothing but a place among the objects.
fn is_counted(pod: &Value) -> bool {
    if matches!(text(&pod["status"], "phase"), "Succeeded" | "Failed") {
        return false;
    }
    let deleted: Option<Timestamp> = meta(pod, "deletionTimestamp").parse().ok();
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_i64();
    match (deleted, grace) {
        (Some(deleted), Some(grace)) => {
            Timestamp::now() <= deleted + SignedDuration::from_secs(grace.clamp(0, 1 << 31))
        }
        _ => true,
    }
}

fn pod(object: &Value, usage: &mut Usage) {
    usage.insert("pods".into(), Quantity::ONE);
    let spec = &object["spec"];
    computed(&Amounts::of_pod(spec).with_overhead(spec), usage);
}

/// Requests and limits under the names of quotas.
fn computed(amounts: &Amounts, usage: &mut Usage) {
    for (resource, amount) in &amounts.requests {
        let plain = matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || resource.starts_with("hugepages-");
        if plain {
            usage.insert(resource.clone(), *amount);
        }
        if plain || resource.contains('/') {
            usage.insert(format!("requests.{resource}"), *amount);
        }
    }
    for (resource, amount) in &amounts.limits {
        if matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{resource}"), *amount);
        }
    }
}

fn service(spec: &Value, usage: &mut Usage) {
    let ports = list(spec, "ports");
    let nodes = match text(spec, "type") {
        "NodePort" => ports.len(),
        "LoadBalancer" => {
            usage.insert("services.loadbalancers".into(), Quantity::ONE);
            let all = spec["allocateLoadBalancerNodePorts"] != false;
            ports.iter().filter(|p| all || p["nodePort"].as_i64().is_some_and(|n| n != 0)).count()
        }
        _ => return,
    };
    usage.insert("services.nodeports".into(), Quantity::ONE.times(nodes));
}

fn claim(object: &Value, usage: &mut Usage) {
    const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    let asked = Quantity::of(&object["spec"]["resources"]["requests"]["storage"]);
    let class = match meta_annotation(object, OLD_CLASS) {
        "" => text(&object["spec"], "storageClassName"),
        old => old,
    };
    if !class.is_empty() {
        usage.insert(format!("{class}{CLASS}persistentvolumeclaims"), Quantity::ONE);
    }
    if let Some(asked) = asked {
        usage.insert("requests.storage".into(), asked);
        if !class.is_empty() {
            usage.insert(format!("{class}{CLASS}requests.storage"), asked);
        }
    }
}

fn meta_annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    text(&object["metadata"]["annotations"], key)
}

/// What containers leave out although `hard` is about it: `limits.cpu for: a,b; ...`.
pub fn missing(hard: &BTreeSet<&str>, pod: &Value) -> Option<String> {
    let spec = &pod["spec"];
    if !unset(&spec["resources"]) {
        return None;
    }
    let mut lacking: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in list(spec, "containers").iter().chain(list(spec, "initContainers")) {
        let mut named = Usage::new();
        computed(&Amounts::of(&container["resources"]), &mut named);
        for name in DEMANDED.iter().filter(|n| hard.contains(*n) && !named.contains_key(**n)) {
            lacking.entry(name).or_default().insert(text(container, "name"));
        }
    }
    let sentences = lacking.into_iter().map(|(resource, containers)| {
        format!("{resource} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
    });
    let sentences: Vec<String> = sentences.collect();
    (!sentences.is_empty()).then(|| sentences.join("; "))
}

/// Whether a Pod counts in one scope.
pub fn in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let spec = &pod["spec"];
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    let best_effort = || crate::kinds::pod::qos::class(spec) == "BestEffort";
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        "PriorityClass" => {
            let class = text(spec, "priorityClassName");
            let listed = values.iter().any(|v| v == class);
            match operator {
                "In" => !class.is_empty() && listed,
                "NotIn" => !listed,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let rules = &affinity[*kind];
        let hard = list(rules, "requiredDuringSchedulingIgnoredDuringExecution").iter();
        let soft = list(rules, "preferredDuringSchedulingIgnoredDuringExecution").iter();
        hard.chain(soft.map(|t| &t["podAffinityTerm"]))
            .any(|term| !unset(&term["namespaces"]) || term["namespaceSelector"].is_object())
    })
}

/// Whether a change of an object through a subresource can need more than before.
pub fn may_grow(resource: &GroupResource, subresource: &str) -> bool {
    let resized = matches!(
        (resource.resource.as_str(), subresource),
        ("pods", "resize") | ("services" | "persistentvolumeclaims", "")
    );
    resized && resource.group.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(plural: &str, object: Value) -> Vec<String> {
        let usage = of(&GroupResource::new("", plural), &object);
        usage
            .iter()
            .map(|(k, v)| format!("{k}={}", v.text(k.contains("memory") || k.contains("storage"))))
            .collect()
    }

    #[test]
    fn what_objects_count_for() {
        let pod = json!({"spec": {"containers": [{"resources": {
            "requests": {"cpu": "500m", "memory": "1Gi", "example.com/gpu": "2"}, "limits": {"cpu": "1"}}}]}});
        assert_eq!(
            shown("pods", pod.clone()),
            [
                "count/pods=1",
                "cpu=500m",
                "limits.cpu=1",
                "memory=1Gi",
                "pods=1",
                "requests.cpu=500m",
                "requests.example.com/gpu=2",
                "requests.memory=1Gi"
            ]
        );
        let mut ended = pod;
        ended["status"] = json!({"phase": "Succeeded"});
        assert_eq!(shown("pods", ended), ["count/pods=1"]);
        let balanced = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {"nodePort": 30000}],
            "allocateLoadBalancerNodePorts": false}});
        assert_eq!(
            shown("services", balanced),
            ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=1"]
        );
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        assert_eq!(
            shown("persistentvolumeclaims", claim),
            [
                "count/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims=1",
                "fast.storageclass.storage.k8s.io/requests.storage=2Gi",
                "persistentvolumeclaims=1",
                "requests.storage=2Gi"
            ]
        );
        for (name, resource) in [
            ("count/deployments.apps", "deployments.apps"),
            ("services.nodeports", "services"),
            ("fast.storageclass.storage.k8s.io/requests.storage", "persistentvolumeclaims"),
            ("secrets", "secrets"),
            ("limits.cpu", "pods"),
        ] {
            assert_eq!(counted_resource(name).to_string(), resource);
        }
    }

    #[test]
    fn containers_must_say_what_a_quota_is_about() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1"}}},
            {"name": "b"},
        ]}});
        let hard = BTreeSet::from(["requests.cpu", "limits.memory", "pods"]);
        let text = missing(&hard, &pod).unwrap_or_default();
        assert_eq!(text, "limits.memory for: a,b; requests.cpu for: b");
        assert_eq!(missing(&BTreeSet::from(["pods"]), &pod), None);
    }

    #[test]
    fn scopes() {
        let pod = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [{}],
            "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["x"]}]}}}});
        let values = [json!("high")];
        for (scope, operator, expected) in [
            ("Terminating", "Exists", true),
            ("NotTerminating", "Exists", false),
            ("BestEffort", "Exists", true),
            ("NotBestEffort", "Exists", false),
            ("PriorityClass", "In", true),
            ("PriorityClass", "NotIn", false),
            ("PriorityClass", "DoesNotExist", false),
            ("PriorityClass", "Exists", true),
            ("CrossNamespacePodAffinity", "Exists", true),
        ] {
            assert_eq!(in_scope(&pod, scope, operator, &values), expected, "{scope} {operator}");
        }
    }
}
