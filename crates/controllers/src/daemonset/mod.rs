//! DaemonSets: one Pod on every node that fits.
//!
//! [`plan`] says where Pods are missing, superfluous or old; the scheduler binds each to its node by the affinity that
//! this controller writes into it.

mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Patch;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::plan::{Plan, Wish, belongs, by_node, place, pod_for, roll, status};
use crate::expectations::Expectations;
use crate::history::{self, Synced};
use crate::kit::{Context, Doing, Error, patch, status_patch, unless_gone};
use crate::podcontrol::{PodControl, claim};
use crate::{meta, pods};

const COMPONENT: &str = "daemonset-controller";
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// When the failed Pod of a node was last replaced, and the pause until the next time.
type Pauses = Mutex<HashMap<(String, String), (Instant, Duration)>>;

/// Runs the DaemonSet controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.daemon_sets),
        ctx.ready(&informers.nodes),
        ctx.ready(&informers.pods),
        ctx.ready(&informers.revisions)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let (expectations, pauses) = (Expectations::default(), Pauses::default());
    let sets = &informers.daemon_sets;
    tokio::join!(
        ctx.feed(sets, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.pods, &queue, owner_of),
        ctx.feed(&informers.revisions, &queue, |change| {
            let Change::Deleted(gone) = change else { return None };
            let owner = meta::controller_of(&gone.metadata).filter(|r| r.kind == "DaemonSet")?;
            Some(ObjectKey::new(meta::namespace(&gone.metadata), &*owner.name))
        }),
        ctx.feed(&informers.nodes, &queue, |change| concerned(change, &sets.list())),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, &expectations, &pauses, key)),
    );
}

fn owner_of(change: &Change<Pod>) -> Option<ObjectKey> {
    let pod = change.object();
    let owner = meta::controller_of(&pod.metadata).filter(|r| r.kind == "DaemonSet")?;
    Some(ObjectKey::new(meta::namespace(&pod.metadata), &*owner.name))
}

/// The sets for which a node's change makes a difference; its heartbeats make none.
fn concerned(change: &Change<Node>, sets: &[Arc<DaemonSet>]) -> Vec<ObjectKey> {
    let judged = |set: &DaemonSet| {
        let wish = Wish::of(set);
        match change {
            Change::Applied { new, old: Some(old) } => belongs(&wish, new) != belongs(&wish, old),
            Change::Applied { new, old: None } | Change::Deleted(new) => {
                belongs(&wish, new) != (false, false)
            }
        }
    };
    if let Change::Applied { new, old: Some(old) } = change
        && new.metadata.labels == old.metadata.labels
        && new.spec.as_ref().and_then(|s| s.taints.as_ref())
            == old.spec.as_ref().and_then(|s| s.taints.as_ref())
    {
        return Vec::new();
    }
    sets.iter().filter(|s| judged(s)).map(|s| ObjectKey::of(&**s)).collect()
}

async fn reconcile(
    ctx: &Context,
    expectations: &Expectations,
    pauses: &Pauses,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let Some(set) = ctx.informers.daemon_sets.get_key(&key) else {
        expectations.forget(&key);
        pauses.lock().retain(|(ds, _), _| *ds != key.to_string());
        return Ok(Outcome::Done);
    };
    if let Some(wait) = expectations.pending(&key, &ctx.informers.pods) {
        return Ok(Outcome::After(wait));
    }
    let Some(selector) = set.spec.as_ref().and_then(|s| meta::selector(&s.selector)) else {
        return Ok(Outcome::Done);
    };
    if meta::deleting(&set.metadata) || selector.selects_all() {
        return Ok(Outcome::Done);
    }
    let wish = Wish::of(&set);
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let old = set.status.clone().unwrap_or_default();
    let history = match history::sync(ctx, &*set, &template, old.collision_count).await? {
        Synced::History(history) => history,
        Synced::Collision => {
            let count = old.collision_count.unwrap_or(0) + 1;
            write_status(ctx, &set, DaemonSetStatus { collision_count: Some(count), ..old }).await?;
            return Ok(Outcome::Retry);
        }
    };
    let hash = history::hash_of(&history.current).to_owned();
    let owned = claim(ctx, &*set, &selector, ctx.informers.pods.list_in(&key.namespace)).await?;
    let pods_by_node = by_node(&owned);
    let mut nodes = ctx.informers.nodes.list();
    nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let now = Timestamp::now();
    let mut plan = place(&wish, &nodes, &pods_by_node, &hash, now);
    if plan.create.is_empty() && plan.delete.is_empty() && plan.replace.is_empty() {
        plan = roll(&wish, &nodes, &pods_by_node, &hash, now);
    }
    let control =
        PodControl { ctx, component: COMPONENT, expectations, key: &key, regarding: Regarding::of(&*set) };
    let acted = act(&control, pauses, &set, &wish, &hash, plan).await;
    let new = status(&set, &wish, &nodes, &pods_by_node, &hash, now);
    let settling = new.number_ready != new.number_available.unwrap_or(0);
    write_status(ctx, &set, new).await?;
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let live = |hash: &str| {
        owned.iter().any(|p| meta::labels(&p.metadata).get(history::HASH_LABEL).is_some_and(|h| h == hash))
    };
    history::trim(ctx, &history, limit, |r| live(history::hash_of(r))).await?;
    let outcome = acted?;
    Ok(match outcome {
        Outcome::Done if settling => Outcome::After(Duration::from_secs(1)),
        other => other,
    })
}

async fn act(
    control: &PodControl<'_>,
    pauses: &Pauses,
    set: &DaemonSet,
    wish: &Wish,
    hash: &str,
    plan: Plan,
) -> Result<Outcome, Error> {
    let mut delete = plan.delete;
    let mut again: Option<Duration> = None;
    for (node, pod) in plan.replace {
        if let Some(wait) = pause(pauses, control.key, &node) {
            again = Some(again.map_or(wait, |a| a.min(wait)));
            continue;
        }
        let name = ObjectKey::of(&*pod);
        let (regarding, recorder) = (control.regarding.clone(), &control.ctx.recorder);
        if pods::phase(&pod) == "Failed" {
            let message = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
            recorder.warning(COMPONENT, regarding, "FailedDaemonPod", message);
        } else {
            let message = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
            recorder.normal(COMPONENT, regarding, "SucceededDaemonPod", message);
        }
        delete.push(pod);
    }
    let create: Vec<Pod> = plan.create.iter().map(|node| pod_for(set, wish, hash, node)).collect();
    let created = control.create(&create).await;
    control.delete(&delete).await?;
    created?;
    Ok(again.map_or(Outcome::Done, Outcome::After))
}

/// `None` if the node's failed Pod may be replaced now (which is noted), else how long to wait.
fn pause(pauses: &Pauses, set: &ObjectKey, node: &str) -> Option<Duration> {
    let mut pauses = pauses.lock();
    let now = Instant::now();
    let entry = pauses.entry((set.to_string(), node.to_owned()));
    let (last, pause) = entry.or_insert((now, Duration::ZERO));
    let since = now - *last;
    if since < *pause {
        return Some(*pause - since);
    }
    // Quiet for twice the longest pause: it has recovered.
    *pause = if since > LAST_PAUSE * 2 { FIRST_PAUSE } else { (*pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE) };
    *last = now;
    None
}

async fn write_status(ctx: &Context, set: &DaemonSet, status: DaemonSetStatus) -> Result<(), Error> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let key = ObjectKey::of(set);
    let change = status_patch(set.metadata.uid.as_ref(), set.status.as_ref(), &status);
    let api = ctx.api::<DaemonSet>(&key.namespace);
    unless_gone(api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await)
        .doing("write status of daemon set", &key)?;
    Ok(())
}
