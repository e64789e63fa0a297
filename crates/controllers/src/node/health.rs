//! The health of nodes: who has stopped renewing its Lease is Unknown, and taints follow from conditions.
//!
//! A node is judged by when *we* last saw a sign of life (a renewed Lease, a changed status), never by the time that
//! the node wrote: clocks differ. One timer per node, moved by nothing: when it fires it looks how old the last sign
//! is and sets itself again, so renewals cost nothing here.

use std::collections::HashMap;
use std::time::Duration;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use kube::Api;
use kube::api::Patch;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::kit::{Context, Doing, Error, patch, unless_gone};
use crate::{meta, pods};

const COMPONENT: &str = "node-controller";
/// How long a node may be silent.
const GRACE: Duration = Duration::from_secs(40);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

type Signs = Mutex<HashMap<String, Instant>>;

/// Runs the node life cycle controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.nodes),
        ctx.ready(&informers.leases),
        ctx.ready(&informers.pods)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let signs = Signs::default();
    let live = |name: &str| {
        signs.lock().insert(name.to_owned(), Instant::now());
    };
    let node_changed = |change: &Change<Node>| {
        let name = meta::name(&change.object().metadata);
        match change {
            Change::Applied { new, old } => {
                let news = old.as_ref().is_none_or(|old| heartbeat(old) < heartbeat(new));
                if news {
                    live(name);
                }
                Some(ObjectKey::of(&**new))
            }
            Change::Deleted(_) => {
                signs.lock().remove(name);
                None
            }
        }
    };
    let lease_changed = |change: &Change<Lease>| {
        let Change::Applied { new, old } = change else { return };
        let renewed = |l: &Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
        if old.as_ref().is_none_or(|old| renewed(old) != renewed(new)) {
            live(meta::name(&new.metadata));
        }
    };
    tokio::join!(
        ctx.feed(&informers.nodes, &queue, node_changed),
        ctx.each(informers.leases.subscribe(), lease_changed),
        ctx.work(COMPONENT, 2, &queue, |key| reconcile(&ctx, &signs, key)),
    );
}

/// The newest heartbeat that the node's own agent wrote into its conditions.
fn heartbeat(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .filter(|c| c.status != "Unknown")
        .filter_map(|c| c.last_heartbeat_time.as_ref())
        .map(|t| t.0)
        .max()
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// The conditions of a silent node, or `None` if they already say so.
fn silenced(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let before = conditions.clone();
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(meta::time(now));
            }
            None => conditions.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(meta::time(now)),
            }),
        }
    }
    (conditions != before).then_some(conditions)
}

/// The taints that follow from a node's conditions, merged with those of others; `None` if it has them already.
fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let status = |type_: &str| condition(node, type_).map_or("", |c| c.status.as_str());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let health = match status("Ready") {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = health {
        wanted.extend([(key, "NoSchedule"), (key, "NoExecute")]);
    }
    let pressures = [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ];
    wanted.extend(pressures.iter().filter(|(c, _)| status(c) == "True").map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| {
        let key = t.key.as_str();
        (matches!(key, NOT_READY | UNREACHABLE) && matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"))
            || ((key == UNSCHEDULABLE || pressures.iter().any(|(_, p)| *p == key))
                && t.effect == "NoSchedule")
    };
    let current = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let is_wanted = |t: &Taint| wanted.iter().any(|(key, effect)| t.key == *key && t.effect == *effect);
    let mut new: Vec<Taint> = current.iter().filter(|t| !ours(t) || is_wanted(t)).cloned().collect();
    for (key, effect) in wanted {
        if !new.iter().any(|t| t.key == key && t.effect == effect) {
            new.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(meta::time(now)),
            });
        }
    }
    (new != current).then_some(new)
}

async fn reconcile(ctx: &Context, signs: &Signs, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(node) = ctx.informers.nodes.get_key(&key) else { return Ok(Outcome::Done) };
    let now = Timestamp::now();
    let api: Api<Node> = Api::all(ctx.client.clone());
    let silent_for = signs.lock().entry(key.name.clone()).or_insert_with(Instant::now).elapsed();
    let silent = silent_for >= GRACE;
    if silent && let Some(conditions) = silenced(&node, now) {
        tracing::warn!(node = key.name, "no sign of life for {} s", silent_for.as_secs());
        let change = json!({"metadata": lock(&node), "status": {"conditions": conditions}});
        let written = api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await;
        unless_gone(written).doing("write status of node", &key)?;
        let message = format!("Node {} status is now: NodeNotReady", key.name);
        ctx.recorder.normal(COMPONENT, Regarding::node(&key.name), "NodeNotReady", message);
        // The event of this write brings us back for the taints.
        return Ok(Outcome::Done);
    }
    if let Some(taints) = taints(&node, now) {
        // As upstream's types: an empty list is no list.
        let taints = Some(taints).filter(|taints| !taints.is_empty());
        let change = json!({"metadata": lock(&node), "spec": {"taints": taints}});
        let written = api.patch(&key.name, &patch(), &Patch::Merge(change)).await;
        unless_gone(written).doing("set taints of node", &key)?;
    }
    if condition(&node, "Ready").is_some_and(|c| c.status == "Unknown") {
        mark_pods_unready(ctx, &key).await?;
    }
    Ok(Outcome::After(if silent { GRACE } else { GRACE - silent_for }))
}

/// Only this version of the node: its agent writes too.
fn lock(node: &Node) -> serde_json::Value {
    json!({"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version})
}

/// Nobody else can say that the Pods of an unreachable node do not serve.
async fn mark_pods_unready(ctx: &Context, node: &ObjectKey) -> Result<(), Error> {
    let affected = ctx.informers.pods.filter(|p| pods::node(p) == node.name && pods::ready(p));
    for pod in affected {
        let conditions = unready(&pod, Timestamp::now());
        let key = ObjectKey::of(&*pod);
        let lock = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
        let change = json!({"metadata": lock, "status": {"conditions": conditions}});
        let api = ctx.api::<Pod>(&key.namespace);
        let written = api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await;
        unless_gone(written).doing("mark as not ready the pod", &key)?;
        ctx.recorder.warning(COMPONENT, Regarding::of(&*pod), "NodeNotReady", "Node is not ready".into());
    }
    Ok(())
}

fn unready(pod: &Pod, now: Timestamp) -> Vec<k8s_openapi::api::core::v1::PodCondition> {
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
        condition.status = "False".into();
        condition.last_transition_time = Some(meta::time(now));
    }
    conditions
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn show(taints: Option<Vec<Taint>>) -> Option<String> {
        let all = taints?;
        Some(
            all.iter()
                .map(|t| format!("{}:{}", t.key.replace("node.kubernetes.io/", ""), t.effect))
                .collect::<Vec<_>>()
                .join(" "),
        )
    }

    #[test]
    fn taints_follow_conditions_and_leave_those_of_others() {
        let now = Timestamp::UNIX_EPOCH;
        let ready = node(serde_json::json!({"metadata": {"name": "n"}, "spec": {"taints": [
            {"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        assert_eq!(show(taints(&ready, now)).unwrap(), "mine:NoSchedule");
        let mut silent = node(serde_json::json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}}));
        assert_eq!(show(taints(&silent, now)).unwrap(), "disk-pressure:NoSchedule unschedulable:NoSchedule");
        let conditions = silenced(&silent, now).unwrap();
        let reasons: Vec<_> = conditions.iter().map(|c| c.reason.clone().unwrap()).collect();
        assert_eq!(
            reasons,
            ["NodeStatusUnknown", "NodeStatusUnknown", "NodeStatusNeverUpdated", "NodeStatusNeverUpdated"]
        );
        silent.status.as_mut().unwrap().conditions = Some(conditions);
        assert!(silenced(&silent, now).is_none());
        let set = taints(&silent, now);
        assert_eq!(
            show(set.clone()).unwrap(),
            "unreachable:NoSchedule unreachable:NoExecute unschedulable:NoSchedule"
        );
        silent.spec.as_mut().unwrap().taints = set;
        assert!(taints(&silent, now).is_none());
    }
}
