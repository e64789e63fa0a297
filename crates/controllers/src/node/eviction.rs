//! Eviction by NoExecute taints: Pods that do not tolerate them go at once, those that do for a time go after it.

use std::time::Duration;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::Patch;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashSet;

use crate::kit::{Context, Doing, Error, delete_uid, is_conflict, patch, unless_gone};
use crate::nodematch::tolerates;
use crate::{meta, pods};

const COMPONENT: &str = "taint-eviction-controller";

/// Runs the eviction controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    if futures::try_join!(ctx.ready(&informers.nodes), ctx.ready(&informers.pods)).is_err() {
        return;
    }
    let queue = WorkQueue::new();
    // Toleration starts now at the earliest: after a restart a node gets the time to say that it is back.
    let started = Timestamp::now();
    let marked: Mutex<HashSet<ObjectKey>> = Mutex::default();
    let on_node = |change: &Change<Node>| -> Vec<ObjectKey> {
        let Change::Applied { new, old } = change else { return Vec::new() };
        if old.as_ref().map(|o| evicting(o)).unwrap_or_default() == evicting(new) {
            return Vec::new();
        }
        let name = meta::name(&new.metadata);
        let there = informers.pods.filter(|p| pods::node(p) == name);
        there.iter().map(|p| ObjectKey::of(&**p)).collect()
    };
    let on_pod = |change: &Change<Pod>| {
        let Change::Applied { new, .. } = change else {
            marked.lock().remove(&ObjectKey::of(&**change.object()));
            return None;
        };
        let node = informers.nodes.get("", pods::node(new))?;
        (!evicting(&node).is_empty()).then(|| ObjectKey::of(&**new))
    };
    tokio::join!(
        ctx.feed(&informers.nodes, &queue, on_node),
        ctx.feed(&informers.pods, &queue, on_pod),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, started, &marked, key)),
    );
}

fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// When a Pod has to go.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    GoAt(Timestamp),
}

/// The earliest end of toleration over all taints; a taint that is not tolerated ends it at once.
fn judge(taints: &[Taint], tolerations: &[Toleration], started: Timestamp) -> Verdict {
    let mut end: Option<Timestamp> = None;
    for taint in taints {
        let since = taint.time_added.as_ref().map_or(started, |t| t.0.max(started));
        let mut matching = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if matching.peek().is_none() {
            return Verdict::GoAt(Timestamp::MIN);
        }
        if let Some(seconds) = matching.filter_map(|t| t.toleration_seconds).min() {
            let limit =
                since.checked_add(jiff::SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX);
            end = Some(end.map_or(limit, |e| e.min(limit)));
        }
    }
    end.map_or(Verdict::Stay, Verdict::GoAt)
}

async fn reconcile(
    ctx: &Context,
    started: Timestamp,
    marked: &Mutex<HashSet<ObjectKey>>,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let Some(pod) = ctx.informers.pods.get_key(&key) else { return Ok(Outcome::Done) };
    if meta::deleting(&pod.metadata) {
        return Ok(Outcome::Done);
    }
    let node = ctx.informers.nodes.get("", pods::node(&pod));
    let taints = node.map(|n| evicting(&n)).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
    let Verdict::GoAt(end) = judge(&taints, &tolerations, started) else {
        if marked.lock().remove(&key) {
            let message = format!("Cancelling deletion of Pod {key}");
            ctx.recorder.normal(COMPONENT, Regarding::of(&*pod), "TaintManagerEviction", message);
        }
        return Ok(Outcome::Done);
    };
    let left = end.duration_since(Timestamp::now());
    marked.lock().insert(key.clone());
    if left.is_positive() {
        return Ok(Outcome::After(Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1)));
    }
    evict(ctx, &pod, &key).await?;
    Ok(Outcome::Done)
}

async fn evict(ctx: &Context, pod: &Pod, key: &ObjectKey) -> Result<(), Error> {
    let message = format!("Marking for deletion Pod {key}");
    ctx.recorder.normal(COMPONENT, Regarding::of(pod), "TaintManagerEviction", message);
    let api = ctx.api::<Pod>(&key.namespace);
    let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    conditions.retain(|c| c.type_ != "DisruptionTarget");
    let mut conditions = json!(conditions);
    if let Some(list) = conditions.as_array_mut() {
        list.push(json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": meta::time(Timestamp::now()),
        }));
    }
    let lock = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
    let change = json!({"metadata": lock, "status": {"conditions": conditions}});
    let marked = api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await;
    unless_gone(marked).doing("mark the disruption of pod", key)?;
    match api.delete(&key.name, &delete_uid(meta::uid(&pod.metadata))).await {
        Err(error) if is_conflict(&error) => Ok(()),
        other => unless_gone(other).doing("evict pod", key).map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn toleration_ends_by_the_shortest_time() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let taint = |key: &str, added: i64| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(meta::time(at(added))),
            value: None,
        };
        let tolerate = |key: &str, seconds: Option<i64>| Toleration {
            key: (!key.is_empty()).then(|| key.to_owned()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        let both = [taint("a", 1000), taint("b", 2000)];
        let start = at(0);
        assert_eq!(judge(&[], &[], start), Verdict::Stay);
        assert_eq!(judge(&both, &[tolerate("a", None)], start), Verdict::GoAt(Timestamp::MIN));
        assert_eq!(judge(&both, &[tolerate("", None)], start), Verdict::Stay);
        let timed = [tolerate("a", Some(300)), tolerate("b", Some(10))];
        assert_eq!(judge(&both, &timed, start), Verdict::GoAt(at(1300)));
        assert_eq!(judge(&both, &timed, at(5000)), Verdict::GoAt(at(5010)));
        let other = Toleration { key: Some("a".into()), value: Some("x".into()), ..Toleration::default() };
        assert_eq!(judge(&both[..1], &[other], start), Verdict::GoAt(Timestamp::MIN));
    }
}
