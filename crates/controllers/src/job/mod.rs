//! Jobs: Pods that run to their end, and what is left of them.
//!
//! [`plan`] decides one step; the loop writes it. Per-index back-off limits, Pod failure policies and success policies
//! are not there.

mod indexes;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::{DeleteParams, Patch, PropagationPolicy};
use kube::core::Selector;
use serde_json::json;

use self::indexes::INDEX;
use self::plan::{Plan, TRACKING, finished_at, plan, tracked};
use crate::expectations::Expectations;
use crate::kit::{Context, Doing, Error, delete_uid, is_conflict, patch, post, unless_gone};
use crate::podcontrol::{PodControl, claim};
use crate::{meta, pods};

const COMPONENT: &str = "job-controller";
const OUR_NAME: &str = "kubernetes.io/job-controller";

#[derive(Default)]
struct Expected {
    pods: Expectations,
    jobs: Expectations,
}

/// Runs the Job controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    if futures::try_join!(ctx.ready(&informers.jobs), ctx.ready(&informers.pods)).is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let expected = Expected::default();
    tokio::join!(
        ctx.feed(&informers.jobs, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.pods, &queue, owner_of),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, &expected, key)),
    );
}

fn owner_of(change: &Change<Pod>) -> Option<ObjectKey> {
    let pod = change.object();
    let owner = meta::controller_of(&pod.metadata).filter(|r| r.kind == "Job")?;
    Some(ObjectKey::new(meta::namespace(&pod.metadata), &*owner.name))
}

async fn reconcile(ctx: &Context, expected: &Expected, key: ObjectKey) -> Result<Outcome, Error> {
    let job = ctx.informers.jobs.get_key(&key);
    let all = ctx.informers.pods.list_in(&key.namespace);
    release_orphans(ctx, &key, job.as_deref(), &all).await?;
    let Some(job) = job else {
        expected.pods.forget(&key);
        expected.jobs.forget(&key);
        return Ok(Outcome::Done);
    };
    let manager = job.spec.as_ref().and_then(|s| s.managed_by.as_deref());
    if manager.is_some_and(|m| m != OUR_NAME) {
        return Ok(Outcome::Done);
    }
    let pending = expected.pods.pending(&key, &ctx.informers.pods);
    if let Some(wait) = pending.or_else(|| expected.jobs.pending(&key, &ctx.informers.jobs)) {
        return Ok(Outcome::After(wait));
    }
    let owned = owned(ctx, &job, all).await?;
    if let Some(at) = finished_at(&job) {
        for pod in owned.iter().filter(|p| tracked(p) && !pods::active(p)) {
            release(ctx, pod).await?;
        }
        return expire(ctx, &job, &key, at).await;
    }
    let plan = plan(&job, &owned, Timestamp::now());
    write(ctx, expected, &key, &job, plan).await
}

async fn owned(ctx: &Context, job: &Job, all: Vec<Arc<Pod>>) -> Result<Vec<Arc<Pod>>, Error> {
    let selector = job.spec.as_ref().and_then(|s| s.selector.as_ref()).and_then(meta::selector);
    match selector.filter(|s: &Selector| !s.selects_all()) {
        Some(selector) => claim(ctx, job, &selector, all).await,
        None => {
            let uid = meta::uid(&job.metadata);
            Ok(all.into_iter().filter(|p| meta::controlled_by(&p.metadata, uid)).collect())
        }
    }
}

/// Pods of a Job that is gone would keep their finalizer for ever.
async fn release_orphans(
    ctx: &Context,
    key: &ObjectKey,
    job: Option<&Job>,
    all: &[Arc<Pod>],
) -> Result<(), Error> {
    let uid = job.map_or("", |j| meta::uid(&j.metadata));
    for pod in all.iter().filter(|p| tracked(p)) {
        let Some(owner) = meta::controller_of(&pod.metadata) else { continue };
        if owner.kind != "Job" || owner.name != key.name || owner.uid == uid {
            continue;
        }
        let live = ctx.api::<Job>(&key.namespace).get_metadata_opt(&key.name).await;
        let live = live.doing("read job", key)?;
        if live.is_none_or(|j| meta::uid(&j.metadata) != owner.uid) {
            release(ctx, pod).await?;
        }
    }
    Ok(())
}

/// Removes the tracking finalizer.
async fn release(ctx: &Context, pod: &Pod) -> Result<(), Error> {
    let key = ObjectKey::of(pod);
    let rest: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|f| *f != TRACKING).collect();
    let lock = (&pod.metadata.uid, &pod.metadata.resource_version);
    let change = json!({"metadata": {"uid": lock.0, "resourceVersion": lock.1, "finalizers": rest}});
    let api = ctx.api::<Pod>(&key.namespace);
    unless_gone(api.patch(&key.name, &patch(), &Patch::Merge(change)).await).doing("release pod", &key)?;
    Ok(())
}

/// Deletes a finished Job after its time to live.
async fn expire(ctx: &Context, job: &Job, key: &ObjectKey, finished: Timestamp) -> Result<Outcome, Error> {
    let Some(ttl) = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished) else {
        return Ok(Outcome::Done);
    };
    if meta::deleting(&job.metadata) {
        return Ok(Outcome::Done);
    }
    let left = finished.as_second() + i64::from(ttl) - Timestamp::now().as_second();
    if left > 0 {
        return Ok(Outcome::After(Duration::from_secs(left.unsigned_abs())));
    }
    let options = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..delete_uid(meta::uid(&job.metadata))
    };
    match ctx.api::<Job>(&key.namespace).delete(&key.name, &options).await {
        Err(error) if is_conflict(&error) => {}
        other => drop(unless_gone(other).doing("delete the expired job", key)?),
    }
    Ok(Outcome::Done)
}

async fn write(
    ctx: &Context,
    expected: &Expected,
    key: &ObjectKey,
    job: &Job,
    plan: Plan,
) -> Result<Outcome, Error> {
    if job.status.as_ref() != Some(&plan.status) {
        // A full update of this very version: a count from an old version must not win.
        let changed = Job { status: Some(plan.status), ..job.clone() };
        let api = ctx.api::<Job>(&key.namespace);
        let written = api.replace_status(&key.name, &post(), &changed).await;
        let Some(written) = unless_gone(written).doing("write status of job", key)? else {
            return Ok(Outcome::Done);
        };
        expected.jobs.wrote(key, written.metadata.resource_version);
    }
    for (reason, message) in plan.events {
        let regarding = Regarding::of(job);
        if matches!(reason, "BackoffLimitExceeded" | "DeadlineExceeded") {
            ctx.recorder.warning(COMPONENT, regarding, reason, message);
        } else {
            ctx.recorder.normal(COMPONENT, regarding, reason, message);
        }
    }
    for pod in &plan.release {
        release(ctx, pod).await?;
    }
    let control = PodControl {
        ctx,
        component: COMPONENT,
        expectations: &expected.pods,
        key,
        regarding: Regarding::of(job),
    };
    control.delete(&plan.delete).await?;
    let create: Vec<Pod> = plan.create.iter().map(|index| make(job, *index)).collect();
    control.create(&create).await?;
    Ok(plan.after.map_or(Outcome::Done, Outcome::After))
}

/// A Pod of the Job, with its finalizer and for Indexed Jobs its index in every form in which it is promised.
fn make(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let owner = meta::controller_ref(job);
    let (name, uid) = (owner.name.clone(), owner.uid.clone());
    let mut pod = pods::from_template(meta::namespace(&job.metadata), owner, &template);
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let labels = pod.metadata.labels.get_or_insert_default();
    for prefix in ["", "batch.kubernetes.io/"] {
        labels.entry(format!("{prefix}job-name")).or_insert_with(|| name.clone());
        labels.entry(format!("{prefix}controller-uid")).or_insert_with(|| uid.clone());
    }
    let Some(index) = index else { return pod };
    labels.insert(INDEX.into(), index.to_string());
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.into(), index.to_string());
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    let field = ObjectFieldSelector {
        field_path: format!("metadata.annotations['{INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    let variable = EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: None, value_from: Some(source) };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|v| v.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
