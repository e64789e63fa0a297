//! CronJobs: Jobs by the clock.

mod plan;
mod schedule;

use std::sync::Arc;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};

use self::plan::{plan, reference};
use crate::expectations::Expectations;
use crate::kit::{
    Context, Doing, Error, delete_uid, is_already_exists, is_conflict, is_namespace_terminating, message_of,
    post, unless_gone,
};
use crate::meta;

const COMPONENT: &str = "cronjob-controller";

#[derive(Default)]
struct Expected {
    jobs: Expectations,
    crons: Expectations,
}

/// Runs the CronJob controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    if futures::try_join!(ctx.ready(&informers.cron_jobs), ctx.ready(&informers.jobs)).is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let expected = Expected::default();
    tokio::join!(
        ctx.feed(&informers.cron_jobs, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.jobs, &queue, owner_of),
        ctx.work(COMPONENT, 2, &queue, |key| reconcile(&ctx, &expected, key)),
    );
}

fn owner_of(change: &Change<Job>) -> Option<ObjectKey> {
    let job = change.object();
    let owner = meta::controller_of(&job.metadata).filter(|r| r.kind == "CronJob")?;
    Some(ObjectKey::new(meta::namespace(&job.metadata), &*owner.name))
}

async fn reconcile(ctx: &Context, expected: &Expected, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(cron) = ctx.informers.cron_jobs.get_key(&key) else {
        expected.jobs.forget(&key);
        expected.crons.forget(&key);
        return Ok(Outcome::Done);
    };
    let pending = expected.jobs.pending(&key, &ctx.informers.jobs);
    if let Some(wait) = pending.or_else(|| expected.crons.pending(&key, &ctx.informers.cron_jobs)) {
        return Ok(Outcome::After(wait));
    }
    let mut owned = ctx.informers.jobs.list_in(&key.namespace);
    owned.retain(|job| meta::controlled_by(&job.metadata, meta::uid(&cron.metadata)));
    let mut plan = plan(&cron, &owned, Timestamp::now());
    let say = |warning: bool, reason: &str, message: String| {
        let regarding = Regarding::of(&*cron);
        if warning {
            ctx.recorder.warning(COMPONENT, regarding, reason, message);
        } else {
            ctx.recorder.normal(COMPONENT, regarding, reason, message);
        }
    };
    plan.events.into_iter().for_each(|(warning, reason, message)| say(warning, reason, message));
    for job in &plan.delete {
        delete(ctx, expected, &key, job).await?;
        say(false, "SuccessfulDelete", format!("Deleted job {}", meta::name(&job.metadata)));
    }
    if let Some(job) = plan.create {
        let name = meta::name(&job.metadata).to_owned();
        match ctx.api::<Job>(&key.namespace).create(&post(), &job).await {
            Ok(made) => {
                expected.jobs.wrote(&key, made.metadata.resource_version.clone());
                say(false, "SuccessfulCreate", format!("Created job {name}"));
                plan.status.active.get_or_insert_default().push(reference(&made));
            }
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => {}
            Err(error) => {
                say(true, "FailedCreate", format!("Error creating job: {}", message_of(&error)));
                return Err(error).doing("create job", &name);
            }
        }
    }
    if cron.status.as_ref() != Some(&plan.status) {
        let changed = CronJob { status: Some(plan.status), ..(*cron).clone() };
        let api = ctx.api::<CronJob>(&key.namespace);
        let written = api.replace_status(&key.name, &post(), &changed).await;
        if let Some(written) = unless_gone(written).doing("write status of cron job", &key)? {
            expected.crons.wrote(&key, written.metadata.resource_version);
        }
    }
    Ok(plan.after.map_or(Outcome::Done, Outcome::After))
}

async fn delete(ctx: &Context, expected: &Expected, key: &ObjectKey, job: &Arc<Job>) -> Result<(), Error> {
    let (name, uid) = (meta::name(&job.metadata), meta::uid(&job.metadata));
    match ctx.api::<Job>(&key.namespace).delete(name, &delete_uid(uid)).await {
        Err(error) if is_conflict(&error) => Ok(()),
        other => {
            unless_gone(other).doing("delete job", &name)?;
            expected.jobs.deleted(key, ObjectKey::of(&**job), uid);
            Ok(())
        }
    }
}
