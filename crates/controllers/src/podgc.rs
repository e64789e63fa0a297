//! Pods that nobody else cleans up: on nodes that are gone, deleted before they were scheduled, finished in masses.

use std::time::Duration;

use client::{Change, ObjectKey, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Patch;
use kube::{Api, api::DeleteParams};
use serde_json::json;

use crate::kit::{Context, Doing, Error, delete_uid, is_conflict, is_not_found, patch, unless_gone};
use crate::{meta, pods};

const COMPONENT: &str = "pod-garbage-collector";
/// How long a node may be missing before its Pods are given up.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished Pods that are kept; the oldest beyond go.
const FINISHED: usize = 12_500;

/// Runs the Pod garbage collector until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    if futures::try_join!(ctx.ready(&informers.nodes), ctx.ready(&informers.pods)).is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let on_pod = |change: &Change<Pod>| {
        let Change::Applied { new, old } = change else { return None };
        let key = ObjectKey::of(&**new);
        let node = pods::node(new);
        if !node.is_empty() && informers.nodes.get("", node).is_none() {
            queue.add_after(key, QUARANTINE);
            return None;
        }
        let just_finished = pods::finished(new) && old.as_ref().is_none_or(|o| !pods::finished(o));
        let unscheduled = meta::deleting(&new.metadata) && node.is_empty();
        (unscheduled || (just_finished && too_many(&ctx))).then_some(key)
    };
    let on_node = |change: &Change<Node>| {
        let Change::Deleted(node) = change else { return };
        let name = meta::name(&node.metadata);
        let left = informers.pods.filter(|p| pods::node(p) == name);
        left.iter().for_each(|p| queue.add_after(ObjectKey::of(&**p), QUARANTINE));
    };
    tokio::join!(
        ctx.feed(&informers.pods, &queue, on_pod),
        ctx.each(informers.nodes.subscribe(), on_node),
        ctx.work(COMPONENT, 2, &queue, |key| reconcile(&ctx, key)),
    );
}

fn too_many(ctx: &Context) -> bool {
    ctx.informers.pods.len() > FINISHED && ctx.informers.pods.filter(pods::finished).len() > FINISHED
}

async fn reconcile(ctx: &Context, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(pod) = ctx.informers.pods.get_key(&key) else { return Ok(Outcome::Done) };
    let node = pods::node(&pod);
    if node.is_empty() {
        if meta::deleting(&pod.metadata) {
            force(ctx, &pod, &key).await?;
        }
    } else if ctx.informers.nodes.get("", node).is_none() {
        let live: Api<Node> = Api::all(ctx.client.clone());
        let gone = match live.get(node).await {
            Err(error) if is_not_found(&error) => true,
            other => other.doing("read node", &node).map(|_| false)?,
        };
        if gone {
            give_up(ctx, &pod, &key).await?;
            force(ctx, &pod, &key).await?;
        }
    }
    if pods::finished(&pod) {
        trim_finished(ctx).await?;
    }
    Ok(Outcome::Done)
}

/// Says why, for whoever waits for the Pod.
async fn give_up(ctx: &Context, pod: &Pod, key: &ObjectKey) -> Result<(), Error> {
    if pods::finished(pod) {
        return Ok(());
    }
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let mut conditions: Vec<serde_json::Value> =
        conditions.iter().filter(|c| c.type_ != "DisruptionTarget").map(|c| json!(c)).collect();
    conditions.push(json!({
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
        "message": "PodGC: node no longer exists", "lastTransitionTime": meta::time(Timestamp::now()),
    }));
    let change = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed", "conditions": conditions}});
    let api = ctx.api::<Pod>(&key.namespace);
    unless_gone(api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await).doing("fail pod", key)?;
    Ok(())
}

/// Deletes at once: there is no agent that could shut the Pod down.
async fn force(ctx: &Context, pod: &Pod, key: &ObjectKey) -> Result<(), Error> {
    let options = DeleteParams { grace_period_seconds: Some(0), ..delete_uid(meta::uid(&pod.metadata)) };
    match ctx.api::<Pod>(&key.namespace).delete(&key.name, &options).await {
        Err(error) if is_conflict(&error) => Ok(()),
        other => unless_gone(other).doing("delete the lost pod", key).map(|_| ()),
    }
}

async fn trim_finished(ctx: &Context) -> Result<(), Error> {
    let mut finished = ctx.informers.pods.filter(|p| pods::finished(p) && !meta::deleting(&p.metadata));
    if finished.len() <= FINISHED {
        return Ok(());
    }
    finished.sort_by_key(|p| meta::created(&p.metadata));
    let excess = finished.len() - FINISHED;
    for pod in &finished[..excess] {
        force(ctx, pod, &ObjectKey::of(&**pod)).await?;
    }
    Ok(())
}
