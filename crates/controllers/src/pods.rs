//! Pods as their controllers see them: alive, ready, available; which to delete first; how to make one.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::meta;

/// `status.phase`, empty if unset.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Succeeded or Failed: it will never run again.
pub(crate) fn finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts as a replica: not finished, not being deleted.
pub(crate) fn active(pod: &Pod) -> bool {
    !finished(pod) && !meta::deleting(&pod.metadata)
}

/// The condition of that type.
pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// The Ready condition is True.
pub(crate) fn ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the Pod is ready, if it is and says so.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = condition(pod, "Ready").filter(|c| c.status == "True")?;
    condition.last_transition_time.as_ref().map(|t| t.0)
}

/// Ready for at least `min_ready` seconds.
pub(crate) fn available(pod: &Pod, min_ready: i32, now: Timestamp) -> bool {
    ready(pod)
        && (min_ready == 0
            || ready_since(pod).is_some_and(|s| s.as_second() + i64::from(min_ready) <= now.as_second()))
}

/// The name of the node, empty while unscheduled.
pub(crate) fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// The highest restart count of its containers.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|s| s.restart_count).max().unwrap_or(0)
}

/// A Pod from a template, named by `generateName` from its owner.
pub(crate) fn from_template(namespace: &str, owner: OwnerReference, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace.into()),
            generate_name: Some(format!("{}-", owner.name)),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// How many Pods of `related` run on each node; a node with more of them loses one first.
pub(crate) fn crowding<'a>(related: impl Iterator<Item = &'a Pod>) -> BTreeMap<String, usize> {
    let mut per_node = BTreeMap::new();
    for pod in related.filter(|p| active(p) && !node(p).is_empty()) {
        *per_node.entry(node(pod).to_owned()).or_insert(0) += 1;
    }
    per_node
}

/// The order in which a ReplicaSet gives up Pods, first to go first: unscheduled, pending, unready, cheap by
/// `pod-deletion-cost`, on crowded nodes, ready for a shorter time, restarted more, younger. Times are compared by
/// magnitude of age, so that Pods of about one age tie and uids decide.
pub(crate) fn deletion_order(
    a: &Pod,
    b: &Pod,
    crowding: &BTreeMap<String, usize>,
    now: Timestamp,
) -> Ordering {
    let rank = |pod: &Pod| {
        let phase = match phase(pod) {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        };
        let cost = meta::annotation_number(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost");
        let crowd = crowding.get(node(pod)).copied().unwrap_or(0);
        (!node(pod).is_empty(), phase, ready(pod), cost.unwrap_or(0), Reverse(crowd))
    };
    let age = |t: Timestamp| (now.as_second() - t.as_second()).max(0).checked_ilog2().map_or(0, |m| m + 1);
    let ready_age = |pod: &Pod| ready_since(pod).map_or(0, age);
    let both_ready = ready(a) && ready(b);
    rank(a)
        .cmp(&rank(b))
        .then_with(|| if both_ready { ready_age(a).cmp(&ready_age(b)) } else { Ordering::Equal })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age(meta::created(&a.metadata)).cmp(&age(meta::created(&b.metadata))))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::fixtures::pod;

    #[test]
    fn the_least_useful_pod_goes_first() {
        let now = Timestamp::from_second(100_000).unwrap();
        let crowd = BTreeMap::from([("n1".to_owned(), 5), ("n2".to_owned(), 1)]);
        let old = pod("old").on("n2").ready_at(1000).created_at(900).build();
        let crowded = pod("crowded").on("n1").ready_at(1000).created_at(900).build();
        let young = pod("young").on("n2").ready_at(99_990).created_at(99_980).build();
        let unready = pod("unready").on("n2").running().build();
        let pending = pod("pending").on("n2").build();
        let unscheduled = pod("unscheduled").build();
        let cheap = pod("cheap")
            .on("n2")
            .ready_at(1000)
            .annotated("controller.kubernetes.io/pod-deletion-cost", "-1")
            .build();
        let mut pods = [&old, &crowded, &young, &unready, &pending, &unscheduled, &cheap];
        pods.sort_by(|a, b| deletion_order(a, b, &crowd, now));
        let names: Vec<_> = pods.iter().map(|p| meta::name(&p.metadata)).collect();
        assert_eq!(names, ["unscheduled", "pending", "unready", "cheap", "crowded", "young", "old"]);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let now = Timestamp::from_second(1000).unwrap();
        let pod = pod("a").ready_at(995).build();
        assert!(available(&pod, 0, now) && available(&pod, 5, now) && !available(&pod, 6, now));
    }
}
