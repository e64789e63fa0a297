//! Which node gets a daemon Pod, and which Pods go: pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodTemplateSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::history::HASH_LABEL;
use crate::nodematch::{selects, tolerates};
use crate::{meta, pods};

/// A DaemonSet's spec with defaults resolved.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub template: PodTemplateSpec,
    pub min_ready: i32,
    /// `None` for OnDelete.
    pub rolling: Option<(IntOrString, IntOrString)>,
}

impl Wish {
    pub fn of(set: &DaemonSet) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = (strategy.type_.as_deref() != Some("OnDelete")).then(|| {
            let update = strategy.rolling_update.unwrap_or_default();
            let unavailable = update.max_unavailable.unwrap_or(IntOrString::Int(1));
            (unavailable, update.max_surge.unwrap_or(IntOrString::Int(0)))
        });
        Self {
            template: with_tolerations(spec.template),
            min_ready: spec.min_ready_seconds.unwrap_or(0),
            rolling,
        }
    }

    fn surge(&self, desired: i32) -> i32 {
        self.rolling.as_ref().map_or(0, |(_, surge)| meta::scaled(surge, desired, true))
    }

    /// At least one, unless Pods surge.
    fn unavailable(&self, desired: i32) -> i32 {
        let Some((unavailable, _)) = &self.rolling else { return 0 };
        let n = meta::scaled(unavailable, desired, true);
        if n == 0 && self.surge(desired) == 0 { 1 } else { n }
    }
}

/// Daemon Pods stay on nodes in trouble.
fn with_tolerations(mut template: PodTemplateSpec) -> PodTemplateSpec {
    let spec = template.spec.get_or_insert_default();
    let host_network = spec.host_network.unwrap_or(false);
    let tolerations = spec.tolerations.get_or_insert_default();
    let troubles = [
        ("not-ready", "NoExecute", true),
        ("unreachable", "NoExecute", true),
        ("disk-pressure", "NoSchedule", true),
        ("memory-pressure", "NoSchedule", true),
        ("pid-pressure", "NoSchedule", true),
        ("unschedulable", "NoSchedule", true),
        ("network-unavailable", "NoSchedule", host_network),
    ];
    for (trouble, effect, _) in troubles.into_iter().filter(|t| t.2) {
        let key = format!("node.kubernetes.io/{trouble}");
        tolerations.retain(|t| t.key.as_deref() != Some(&key) || t.effect.as_deref() != Some(effect));
        tolerations.push(Toleration {
            key: Some(key),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        });
    }
    template
}

/// The Pod for one node: the scheduler binds it there and nowhere else.
pub(super) fn pod_for(set: &DaemonSet, wish: &Wish, hash: &str, node: &str) -> Pod {
    let mut pod =
        pods::from_template(meta::namespace(&set.metadata), meta::controller_ref(set), &wish.template);
    pod.metadata.labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.to_owned());
    let here = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![here]), match_expressions: None };
    let affinity: &mut Affinity = pod.spec.get_or_insert_default().affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    node_affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
    pod
}

/// The node that a daemon Pod is on or meant for.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    let on = pods::node(pod);
    if !on.is_empty() {
        return Some(on);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.first()?.match_fields.as_ref()?;
    let field = fields.iter().find(|f| f.key == "metadata.name")?;
    field.values.as_ref()?.first().map(String::as_str)
}

/// Whether a node should get a Pod, and whether one that is there may stay.
pub(super) fn belongs(wish: &Wish, node: &Node) -> (bool, bool) {
    let Some(spec) = &wish.template.spec else { return (false, false) };
    let named = spec.node_name.as_deref().filter(|n| !n.is_empty());
    if named.is_some_and(|n| Some(n) != node.metadata.name.as_deref()) || !selects(spec, node) {
        return (false, false);
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = |effect: &str| {
        taints
            .iter()
            .any(|t| t.effect == effect && !tolerations.iter().any(|toleration| tolerates(toleration, t)))
    };
    let (schedule, execute) = (untolerated("NoSchedule"), untolerated("NoExecute"));
    (!schedule && !execute, !execute)
}

/// What to write.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a Pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Failed or finished Pods, which are told of and go after a pause per node.
    pub replace: Vec<(String, Arc<Pod>)>,
}

pub(super) type ByNode = BTreeMap<String, Vec<Arc<Pod>>>;

/// Groups a DaemonSet's Pods by node; what has no target is of nobody and goes to "".
pub(super) fn by_node(owned: &[Arc<Pod>]) -> ByNode {
    let mut map = ByNode::new();
    for pod in owned {
        map.entry(target(pod).unwrap_or("").to_owned()).or_default().push(pod.clone());
    }
    map
}

/// Where Pods are missing or too many. `hash`: of the wished template.
pub(super) fn place(
    wish: &Wish,
    nodes: &[Arc<Node>],
    pods_by_node: &ByNode,
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let known: HashMap<&str, &Arc<Node>> = nodes.iter().map(|n| (meta::name(&n.metadata), n)).collect();
    let desired = i32::try_from(nodes.iter().filter(|n| belongs(wish, n).0).count()).unwrap_or(i32::MAX);
    let surging = wish.surge(desired) > 0;
    for node in nodes {
        let name = meta::name(&node.metadata);
        let (should, may) = belongs(wish, node);
        let here = pods_by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        if !may {
            plan.delete.extend(here.iter().filter(|p| !meta::deleting(&p.metadata)).cloned());
            continue;
        }
        let mut alive = Vec::new();
        for pod in here.iter().filter(|p| !meta::deleting(&p.metadata)) {
            if pods::finished(pod) {
                plan.replace.push((name.to_owned(), pod.clone()));
            } else {
                alive.push(pod.clone());
            }
        }
        if should && here.is_empty() {
            plan.create.push(name.to_owned());
        }
        // The oldest stays; with surge one of each version may be there, the old one until the new one is available.
        alive.sort_by_key(|p| (pods::node(p).is_empty(), meta::created(&p.metadata)));
        let is_new = |p: &Arc<Pod>| meta::labels(&p.metadata).get(HASH_LABEL).is_some_and(|h| h == hash);
        let (new, old): (Vec<_>, Vec<_>) = alive.into_iter().partition(is_new);
        if surging && !new.is_empty() && !old.is_empty() {
            let replaced = new.iter().any(|p| pods::available(p, wish.min_ready, now));
            plan.delete.extend(new.into_iter().skip(1));
            plan.delete.extend(old.into_iter().skip(usize::from(!replaced)));
        } else {
            let mut all: Vec<_> = old.into_iter().chain(new).collect();
            all.sort_by_key(|p| (pods::node(p).is_empty(), meta::created(&p.metadata)));
            plan.delete.extend(all.into_iter().skip(1));
        }
    }
    // Never scheduled, and its node is gone: nobody else would take it away.
    let lost = pods_by_node.iter().filter(|(name, _)| !known.contains_key(name.as_str()));
    let lost = lost.flat_map(|(_, pods)| pods.iter()).filter(|p| pods::node(p).is_empty());
    plan.delete.extend(lost.filter(|p| !meta::deleting(&p.metadata)).cloned());
    plan
}

/// One step of a rolling update, after every node has its Pod.
pub(super) fn roll(
    wish: &Wish,
    nodes: &[Arc<Node>],
    pods_by_node: &ByNode,
    hash: &str,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    if wish.rolling.is_none() {
        return plan;
    }
    let wanted: Vec<&Arc<Node>> = nodes.iter().filter(|n| belongs(wish, n).0).collect();
    let desired = i32::try_from(wanted.len()).unwrap_or(i32::MAX);
    let surge = wish.surge(desired);
    let available = |p: &Arc<Pod>| pods::available(p, wish.min_ready, now);
    let (mut unavailable, mut surged) = (0, 0);
    // Old Pods that do not serve are replaced at once; those that serve wait for their turn.
    let (mut broken, mut serving) = (Vec::new(), Vec::new());
    for node in wanted {
        let name = meta::name(&node.metadata);
        let here = pods_by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        let mut alive = here.iter().filter(|p| pods::active(p));
        let is_new = |p: &&Arc<Pod>| meta::labels(&p.metadata).get(HASH_LABEL).is_some_and(|h| h == hash);
        let new = alive.clone().find(is_new);
        let old = alive.find(|p| !is_new(p));
        match (new, old) {
            (None, None) => unavailable += 1,
            (Some(new), None) => unavailable += i32::from(!available(new)),
            (Some(_), Some(_)) => surged += 1,
            (None, Some(old)) if available(old) => serving.push((name.to_owned(), old.clone())),
            (None, Some(old)) => {
                unavailable += 1;
                broken.push((name.to_owned(), old.clone()));
            }
        }
    }
    if surge > 0 {
        let room = usize::try_from(surge - surged).unwrap_or(0);
        plan.create.extend(broken.into_iter().chain(serving).map(|(name, _)| name).take(room));
    } else {
        let room = usize::try_from(wish.unavailable(desired) - unavailable).unwrap_or(0);
        plan.delete.extend(broken.into_iter().map(|(_, pod)| pod));
        plan.delete.extend(serving.into_iter().map(|(_, pod)| pod).take(room));
    }
    plan
}

/// The status.
pub(super) fn status(
    set: &DaemonSet,
    wish: &Wish,
    nodes: &[Arc<Node>],
    pods_by_node: &ByNode,
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let mut new = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for node in nodes {
        let here = pods_by_node.get(meta::name(&node.metadata)).map(Vec::as_slice).unwrap_or_default();
        if !belongs(wish, node).0 {
            new.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        new.desired_number_scheduled += 1;
        new.current_number_scheduled += i32::from(!here.is_empty());
        // The newest Pod speaks for the node.
        let Some(pod) = here.iter().max_by_key(|p| meta::created(&p.metadata)) else { continue };
        new.number_ready += i32::from(pods::ready(pod));
        available += i32::from(pods::ready(pod) && pods::available(pod, wish.min_ready, now));
        let is_new = meta::labels(&pod.metadata).get(HASH_LABEL).is_some_and(|h| h == hash);
        updated += i32::from(is_new);
    }
    new.number_available = meta::some_unless_zero(available);
    new.number_unavailable = meta::some_unless_zero(new.desired_number_scheduled - available);
    new.updated_number_scheduled = meta::some_unless_zero(updated);
    new
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::fixtures::pod;
    use serde_json::json;

    fn set(strategy: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "ds", "namespace": "ns", "uid": "ds"}, "spec": {
            "selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"os": "linux"}}},
            "updateStrategy": strategy}}))
        .unwrap()
    }

    fn node(name: &str, os: &str, taints: serde_json::Value) -> Arc<Node> {
        let meta = json!({"name": name, "labels": {"os": os}});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"taints": taints}})).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| meta::name(&p.metadata)).collect()
    }

    fn daemon(name: &str, node: &str, hash: &str) -> crate::fixtures::PodBuilder {
        pod(name).on(node).labelled(HASH_LABEL, hash).owned_by("DaemonSet", "ds")
    }

    #[test]
    fn every_fitting_node_gets_one() {
        let wish = Wish::of(&set(json!({})));
        let taint = |effect: &str| json!([{"key": "x", "effect": effect}]);
        let cordoned = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
        let nodes = [
            node("fits", "linux", json!([])),
            node("cordoned", "linux", cordoned),
            node("other", "windows", json!([])),
            node("noschedule", "linux", taint("NoSchedule")),
            node("noexecute", "linux", taint("NoExecute")),
            node("double", "linux", json!([])),
            node("failed", "linux", json!([])),
        ];
        let owned: Vec<Arc<Pod>> = [
            daemon("stays", "noschedule", "h").ready_at(1),
            daemon("leaves", "noexecute", "h").ready_at(1),
            daemon("younger", "double", "h").created_at(9),
            daemon("older", "double", "h").created_at(5),
            daemon("dead", "failed", "h").phase("Failed"),
        ]
        .into_iter()
        .map(|p| Arc::new(p.build()))
        .collect();
        let now = Timestamp::from_second(100).unwrap();
        let plan = place(&wish, &nodes, &by_node(&owned), "h", now);
        assert_eq!(plan.create, ["fits", "cordoned"]);
        assert_eq!(names(&plan.delete), ["leaves", "younger"]);
        assert_eq!(plan.replace[0].0, "failed");
        let made = pod_for(&set(json!({})), &wish, "h", "fits");
        assert_eq!(target(&made), Some("fits"));
        let status = status(&set(json!({})), &wish, &nodes, &by_node(&owned), "h", now);
        assert_eq!(
            (status.desired_number_scheduled, status.current_number_scheduled, status.number_misscheduled),
            (4, 2, 2)
        );
    }

    #[test]
    fn a_rolling_update_takes_broken_pods_and_then_one_at_a_time() {
        let nodes: Vec<_> = ["a", "b", "c"].iter().map(|n| node(n, "linux", json!([]))).collect();
        let now = Timestamp::from_second(100).unwrap();
        let mut owned = vec![daemon("pa", "a", "old").ready_at(1), daemon("pb", "b", "old").ready_at(1)];
        owned.push(daemon("pc", "c", "old").running());
        let owned: Vec<Arc<Pod>> = owned.into_iter().map(|p| Arc::new(p.build())).collect();
        let one = Wish::of(&set(json!({"type": "RollingUpdate"})));
        assert_eq!(names(&roll(&one, &nodes, &by_node(&owned), "new", now).delete), ["pc"]);
        let two = Wish::of(&set(json!({"rollingUpdate": {"maxUnavailable": 2}})));
        assert_eq!(names(&roll(&two, &nodes, &by_node(&owned), "new", now).delete), ["pc", "pa"]);
        assert!(roll(&two, &nodes, &by_node(&owned), "old", now).delete.is_empty());
        let surge = Wish::of(&set(json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}})));
        assert_eq!(roll(&surge, &nodes, &by_node(&owned), "new", now).create, ["c"]);
        let manual = Wish::of(&set(json!({"type": "OnDelete"})));
        assert!(roll(&manual, &nodes, &by_node(&owned), "new", now).delete.is_empty());
    }
}
