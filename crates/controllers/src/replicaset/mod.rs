//! ReplicaSet and ReplicationController: as many Pods as asked for.
//!
//! One loop serves both kinds through [`kind::Replicator`]; what to do is decided by [`plan`]. Pods are adopted and
//! released by labels and controller references, never taken from another controller.

mod kind;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Informer, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::core::SelectorExt;

use self::kind::{Failure, Replicator};
use self::plan::{Action, count, plan};
use crate::expectations::Expectations;
use crate::kit::{Context, Doing, Error, message_of, post, unless_gone};
use crate::podcontrol::{PodControl, claim};
use crate::{meta, pods};

/// Runs the ReplicaSet controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let sets = ctx.informers.replica_sets.clone();
    serve(&ctx, &sets, crowding_of_replica_set).await;
}

/// Runs the ReplicationController controller until the stop.
pub(crate) async fn run_controllers(ctx: Context) {
    let sets = ctx.informers.controllers.clone();
    serve(&ctx, &sets, |_, _, active| pods::crowding(active.iter().map(|p| &**p))).await;
}

/// Pods per node of all ReplicaSets under one owner: a rollout thins out crowded nodes first.
fn crowding_of_replica_set(ctx: &Context, set: &ReplicaSet, active: &[Arc<Pod>]) -> BTreeMap<String, usize> {
    let Some(owner) = meta::controller_of(&set.metadata) else {
        return pods::crowding(active.iter().map(|p| &**p));
    };
    let namespace = meta::namespace(&set.metadata);
    let sets = ctx.informers.replica_sets.list_in(namespace);
    let siblings: Vec<String> = sets
        .iter()
        .filter(|s| meta::controlled_by(&s.metadata, &owner.uid))
        .map(|s| meta::uid(&s.metadata).to_owned())
        .collect();
    let all = ctx.informers.pods.list_in(namespace);
    let related = all
        .iter()
        .filter(|pod| meta::controller_of(&pod.metadata).is_some_and(|r| siblings.contains(&r.uid)));
    pods::crowding(related.map(|p| &**p))
}

async fn serve<K, C>(ctx: &Context, sets: &Informer<K>, crowding: C)
where
    K: Replicator,
    C: Fn(&Context, &K, &[Arc<Pod>]) -> BTreeMap<String, usize>,
{
    if ctx.ready(sets).await.is_err() || ctx.ready(&ctx.informers.pods).await.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let expected = Expected::default();
    let feeds = async {
        tokio::join!(
            ctx.feed(sets, &queue, |change| [ObjectKey::of(&**change.object())]),
            ctx.feed(&ctx.informers.pods, &queue, |change| owners_of(sets, change)),
        )
    };
    let work = ctx.work(K::COMPONENT, 8, &queue, |key| reconcile(ctx, sets, &expected, &crowding, key));
    tokio::join!(feeds, work);
}

/// The sets that a change of a Pod concerns: its controller, or for an orphan each that would adopt it.
fn owners_of<K: Replicator>(sets: &Informer<K>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let pod = change.object();
    let namespace = meta::namespace(&pod.metadata);
    let mut add_owner = |pod: &Pod| match meta::controller_of(&pod.metadata) {
        Some(r) if r.kind == K::KIND => keys.push(ObjectKey::new(namespace, &*r.name)),
        _ => {}
    };
    add_owner(pod);
    if let Change::Applied { old: Some(old), .. } = change {
        add_owner(old);
    }
    let orphan = meta::controller_of(&pod.metadata).is_none();
    if orphan && matches!(change, Change::Applied { .. }) {
        let labels = meta::labels(&pod.metadata);
        let takers = sets.list_in(namespace).into_iter();
        keys.extend(
            takers.filter(|s| s.selector().is_some_and(|s| s.matches(labels))).map(|s| ObjectKey::of(&*s)),
        );
    }
    keys
}

/// Own writes that the caches still have to show: of Pods (never make one twice), and of the sets' status (waiting for
/// it gathers the changes of many Pods into one write).
#[derive(Default)]
struct Expected {
    pods: Expectations,
    sets: Expectations,
}

async fn reconcile<K: Replicator>(
    ctx: &Context,
    sets: &Informer<K>,
    expected: &Expected,
    crowding: &impl Fn(&Context, &K, &[Arc<Pod>]) -> BTreeMap<String, usize>,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let Some(set) = sets.get_key(&key) else {
        expected.pods.forget(&key);
        expected.sets.forget(&key);
        return Ok(Outcome::Done);
    };
    let Some(selector) = set.selector() else { return Ok(Outcome::Done) };
    let pending = expected.pods.pending(&key, &ctx.informers.pods);
    if let Some(wait) = pending.or_else(|| expected.sets.pending(&key, sets)) {
        return Ok(Outcome::After(wait));
    }
    let candidates = ctx.informers.pods.list_in(&key.namespace);
    let candidates = candidates.into_iter().filter(|pod| pods::active(pod)).collect();
    let active = claim(ctx, &*set, &selector, candidates).await?;
    let now = Timestamp::now();
    let result = if meta::deleting(set.meta()) {
        Ok(())
    } else {
        let control = PodControl {
            ctx,
            component: K::COMPONENT,
            expectations: &expected.pods,
            key: &key,
            regarding: Regarding::of(&*set),
        };
        let action = match plan(set.wanted(), &active, &BTreeMap::new(), now) {
            // Only a deletion asks how crowded the nodes are.
            Action::Delete(_) => plan(set.wanted(), &active, &crowding(ctx, &set, &active), now),
            other => other,
        };
        act(&control, &*set, action).await
    };
    let (result, failure) = match result {
        Ok(()) => (Ok(()), None),
        Err((error, failure)) => (Err(error), Some(failure)),
    };
    let counts = count(&active, &set.template(), set.min_ready(), now);
    if let Some(changed) = set.with_status(counts, failure, now) {
        let api = ctx.api::<K>(&key.namespace);
        let written = api.replace_status(&key.name, &post(), &changed).await;
        if let Some(written) = unless_gone(written).doing("write status of", &key)? {
            expected.sets.wrote(&key, written.meta().resource_version.clone());
        }
    }
    result?;
    // Nothing wakes us when a ready Pod has been ready long enough.
    let waiting = set.min_ready() > 0 && counts.available < counts.ready;
    Ok(if waiting { Outcome::After(min_ready_left(&active, set.min_ready(), now)) } else { Outcome::Done })
}

/// Until the next ready Pod becomes available.
fn min_ready_left(active: &[Arc<Pod>], min_ready: i32, now: Timestamp) -> Duration {
    let waiting = active.iter().filter(|p| pods::ready(p) && !pods::available(p, min_ready, now));
    let since =
        waiting.filter_map(|p| pods::condition(p, "Ready")?.last_transition_time.as_ref()).map(|t| t.0);
    let first = since.min().map_or(0, |since| since.as_second() + i64::from(min_ready) - now.as_second());
    Duration::from_secs(u64::try_from(first.max(1)).unwrap_or(1))
}

async fn act<K: Replicator>(
    control: &PodControl<'_>,
    set: &K,
    action: Action,
) -> Result<(), (Error, Failure)> {
    let failed = |reason| {
        move |error: Error| {
            let message = message_of(&error.source);
            (error, Failure { reason, message })
        }
    };
    match action {
        Action::Nothing => Ok(()),
        Action::Create(n) => {
            let pod = pods::from_template(&control.key.namespace, meta::controller_ref(set), &set.template());
            control.create(&vec![pod; n]).await.map_err(failed("FailedCreate"))
        }
        Action::Delete(pods) => control.delete(&pods).await.map_err(failed("FailedDelete")),
    }
}
