//! Which of the nodes that fit is best: the sum of a few opinions of 0 to 100, weighed as upstream's default profile.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::affinity::{self, NamespaceLabels};
use crate::filter::{domain_counts, soft_taints};
use crate::resources;
use crate::snapshot::{NodeInfo, Snapshot};

const FULL: i64 = 100;

/// The best node's name; among equals the one with the fewest Pods, then the first by name, so that decisions repeat.
pub fn best<'a>(
    pod: &Pod,
    fitting: &[&'a NodeInfo],
    all: &Snapshot,
    namespaces: &NamespaceLabels,
) -> Option<&'a NodeInfo> {
    let scores = score(pod, fitting, all, namespaces);
    let ranked = fitting.iter().zip(scores);
    let (node, _) = ranked.min_by_key(|(node, score)| (-score, node.pods.len(), node.name().to_owned()))?;
    Some(node)
}

/// A score per node, in the order given; more is better.
pub fn score(pod: &Pod, nodes: &[&NodeInfo], all: &Snapshot, namespaces: &NamespaceLabels) -> Vec<i64> {
    let wanted = resources::of_pod(pod);
    let opinions: [(i64, Vec<i64>); 6] = [
        (1, nodes.iter().map(|n| least_used(&wanted, n)).collect()),
        (1, nodes.iter().map(|n| balanced(&wanted, n)).collect()),
        (3, inverted(nodes.iter().map(|n| soft_taints(pod, n)).collect())),
        (2, normalised(nodes.iter().map(|n| affinity::node_preference(pod, n)).collect())),
        (2, normalised(nodes.iter().map(|n| neighbours(pod, n, all, namespaces)).collect())),
        (2, inverted(nodes.iter().map(|n| crowding(pod, n, all)).collect())),
    ];
    (0..nodes.len()).map(|i| opinions.iter().map(|(weight, scores)| weight * scores[i]).sum()).collect()
}

/// Stretches to 0..=100, largest first.
fn normalised(raw: Vec<i64>) -> Vec<i64> {
    let (Some(low), Some(high)) = (raw.iter().min().copied(), raw.iter().max().copied()) else { return raw };
    if low == high {
        return vec![0; raw.len()];
    }
    raw.into_iter().map(|v| (v - low) * FULL / (high - low)).collect()
}

fn inverted(raw: Vec<i64>) -> Vec<i64> {
    normalised(raw.into_iter().map(|v| -v).collect())
}

/// Used share of a resource with the Pod on the node, in thousandths.
fn share(wanted: &resources::Amounts, node: &NodeInfo, name: &str) -> Option<i128> {
    let capacity = node.allocatable.get(name).copied().filter(|c| *c > 0)?;
    let used = node.requested.get(name).copied().unwrap_or(0) + wanted.get(name).copied().unwrap_or(0);
    Some((used * 1000 / capacity).clamp(0, 1000))
}

fn least_used(wanted: &resources::Amounts, node: &NodeInfo) -> i64 {
    let shares: Vec<i128> = ["cpu", "memory"].iter().filter_map(|name| share(wanted, node, name)).collect();
    let free: i128 = shares.iter().map(|s| 1000 - s).sum();
    i64::try_from(free / (10 * shares.len().max(1) as i128)).unwrap_or(0)
}

fn balanced(wanted: &resources::Amounts, node: &NodeInfo) -> i64 {
    match (share(wanted, node, "cpu"), share(wanted, node, "memory")) {
        (Some(cpu), Some(memory)) => FULL - i64::try_from((cpu - memory).abs() / 20).unwrap_or(FULL),
        _ => FULL,
    }
}

/// Preferred (anti-)affinity both ways: what the Pod wants near, and what Pods there want near.
fn neighbours(pod: &Pod, node: &NodeInfo, all: &Snapshot, namespaces: &NamespaceLabels) -> i64 {
    let together =
        |key: &str, other: &NodeInfo| node.label(key).is_some() && node.label(key) == other.label(key);
    let mut sum = 0;
    for (other, there) in all.pods() {
        for (weight, term) in affinity::preferred(pod) {
            if together(&term.topology_key, other) && affinity::concerns(term, pod, there, namespaces) {
                sum += weight;
            }
        }
        for (weight, term) in affinity::preferred(there) {
            if together(&term.topology_key, other) && affinity::concerns(term, there, pod, namespaces) {
                sum += weight;
            }
        }
    }
    sum
}

/// Pods of the same kind in the node's domains: its soft spread constraints, else Pods of the same owner on the node.
fn crowding(pod: &Pod, node: &NodeInfo, all: &Snapshot) -> i64 {
    let constraints =
        pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    let soft: Vec<_> = constraints.iter().filter(|c| c.when_unsatisfiable == "ScheduleAnyway").collect();
    if soft.is_empty() {
        let owner = |p: &Pod| p.metadata.owner_references.iter().flatten().next().map(|o| o.uid.clone());
        let own = owner(pod);
        return node.pods.iter().filter(|p| own.is_some() && owner(p) == own).count() as i64;
    }
    let in_domain = |c: &&k8s_openapi::api::core::v1::TopologySpreadConstraint| {
        let counts: BTreeMap<&str, i64> = domain_counts(c, pod, all);
        node.label(&c.topology_key).and_then(|d| counts.get(d).copied()).unwrap_or(0)
    };
    soft.iter().map(in_domain).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn all(pods: Value) -> Snapshot {
        let node = |name: &str| {
            let status = json!({"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}});
            let labels = json!({"kubernetes.io/hostname": name});
            Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name, "labels": labels}, "status": status}),
                )
                .unwrap(),
            )
        };
        let pods: Vec<Pod> = serde_json::from_value(pods).unwrap();
        Snapshot::new([node("a"), node("b")], pods.into_iter().map(Arc::new))
    }

    fn chosen(pods: Value, new: Value) -> String {
        let all = all(pods);
        let pod: Pod = serde_json::from_value(new).unwrap();
        let nodes: Vec<&NodeInfo> = all.nodes.values().collect();
        best(&pod, &nodes, &all, &NamespaceLabels::new()).unwrap().name().to_owned()
    }

    #[test]
    fn replicas_spread_and_preferences_pull() {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1"}]);
        let there = json!([{"metadata": {"name": "x", "namespace": "n", "labels": {"app": "x"}, "ownerReferences": owner},
            "spec": {"nodeName": "a", "containers": [{"name": "c"}]}}]);
        let new = json!({"metadata": {"namespace": "n", "ownerReferences": owner}, "spec": {"containers": [{"name": "c"}]}});
        assert_eq!(chosen(there.clone(), new), "b");
        let near = json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
            "podAffinityTerm": {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}}]}});
        let new = json!({"metadata": {"namespace": "n"}, "spec": {"containers": [{"name": "c"}], "affinity": near}});
        assert_eq!(chosen(there, new), "a");
        let big = json!([{"metadata": {"name": "x", "namespace": "n"}, "spec": {"nodeName": "a", "containers": [{"name": "c",
            "resources": {"requests": {"cpu": "3", "memory": "3Gi"}}}]}}]);
        assert_eq!(chosen(big, json!({"spec": {"containers": [{"name": "c"}]}})), "b");
    }

    proptest::proptest! {
        #[test]
        fn normalising_keeps_order_and_bounds(raw in proptest::collection::vec(-1000i64..1000, 1..20)) {
            let scores = normalised(raw.clone());
            for (i, a) in raw.iter().enumerate() {
                proptest::prop_assert!((0..=FULL).contains(&scores[i]));
                for (j, b) in raw.iter().enumerate() {
                    proptest::prop_assert!(a < b || scores[i] >= scores[j]);
                }
            }
        }
    }
}
