//! Node selectors, and which Pods another Pod wants near or far: the terms of `spec.affinity`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::snapshot::NodeInfo;

/// Whether a requirement on node labels (or, for `matchFields`, on the name) holds.
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = |v: &str| values.iter().any(|known| known == v);
    let compare = |wanted: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        let actual = value.and_then(|v| v.parse().ok());
        matches!((actual, bound), (Some(a), Some(b)) if wanted(a, b))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(is_listed),
        "NotIn" => !value.is_some_and(is_listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

/// Whether a node matches a term: all its expressions and fields; an empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_name = |r: &NodeSelectorRequirement| r.key == "metadata.name" && holds(r, Some(node.name()));
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| holds(r, node.label(&r.key)))
        && fields.iter().all(by_name)
}

/// Whether the Pod's `nodeSelector` and required node affinity admit the node.
pub fn node_admitted(pod: &Pod, node: &NodeInfo) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let mut selector = spec.node_selector.iter().flatten();
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selector.all(|(key, value)| node.label(key) == Some(value))
        && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

/// The sum of the weights of preferred node terms that the node matches.
pub fn node_preference(pod: &Pod, node: &NodeInfo) -> i64 {
    let affinity = affinity(pod).and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let matching = preferred.into_iter().flatten().filter(|p| term_matches(&p.preference, node));
    matching.map(|p| i64::from(p.weight)).sum()
}

fn affinity(pod: &Pod) -> Option<&Affinity> {
    pod.spec.as_ref()?.affinity.as_ref()
}

/// Required terms of a Pod's affinity.
pub fn required_near(pod: &Pod) -> &[PodAffinityTerm] {
    let own = affinity(pod).and_then(|a| a.pod_affinity.as_ref());
    own.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// Required terms of a Pod's anti-affinity.
pub fn required_far(pod: &Pod) -> &[PodAffinityTerm] {
    let own = affinity(pod).and_then(|a| a.pod_anti_affinity.as_ref());
    own.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// Preferred terms: affinity with positive, anti-affinity with negative weight.
pub fn preferred(pod: &Pod) -> impl Iterator<Item = (i64, &PodAffinityTerm)> {
    let own = affinity(pod);
    let near = own.and_then(|a| a.pod_affinity.as_ref());
    let far = own.and_then(|a| a.pod_anti_affinity.as_ref());
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let far = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let near = near.unwrap_or_default().iter().map(|t| (i64::from(t.weight), &t.pod_affinity_term));
    near.chain(far.unwrap_or_default().iter().map(|t| (-i64::from(t.weight), &t.pod_affinity_term)))
}

/// Labels of namespaces by name, for `namespaceSelector`.
pub type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

/// Whether `other` is among the Pods that `term` of `owner` speaks of.
pub fn concerns(term: &PodAffinityTerm, owner: &Pod, other: &Pod, namespaces: &NamespaceLabels) -> bool {
    in_namespaces(term, owner, other, namespaces) && labels_match(term, owner, other)
}

fn in_namespaces(term: &PodAffinityTerm, owner: &Pod, other: &Pod, namespaces: &NamespaceLabels) -> bool {
    let namespace = other.metadata.namespace.as_deref().unwrap_or_default();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    if listed.is_empty() && term.namespace_selector.is_none() {
        return owner.metadata.namespace.as_deref().unwrap_or_default() == namespace;
    }
    let none = BTreeMap::new();
    let labels = namespaces.get(namespace).unwrap_or(&none);
    listed.iter().any(|n| n == namespace)
        || term.namespace_selector.as_ref().is_some_and(|s| selects(s, labels))
}

fn labels_match(term: &PodAffinityTerm, owner: &Pod, other: &Pod) -> bool {
    let none = BTreeMap::new();
    let own = owner.metadata.labels.as_ref().unwrap_or(&none);
    let labels = other.metadata.labels.as_ref().unwrap_or(&none);
    // KEP-3633: values of these keys are taken from the owner itself.
    let mut same = term.match_label_keys.iter().flatten().filter(|k| own.contains_key(*k));
    let mut differ = term.mismatch_label_keys.iter().flatten().filter(|k| own.contains_key(*k));
    term.label_selector.as_ref().is_some_and(|s| selects(s, labels))
        && same.all(|k| own.get(k) == labels.get(k))
        && differ.all(|k| own.get(k) != labels.get(k))
}

/// Whether a label selector matches; one that cannot be read matches nothing.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|s| s.matches(labels))
}
