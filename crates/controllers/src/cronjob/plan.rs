//! One step of a CronJob as a pure function.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::ObjectMeta;

use super::schedule::Schedule;
use crate::meta;

/// When a Job was meant to run.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed times beyond which something is wrong with the clock or the deadline.
const TOO_MANY: usize = 100;

/// Type of an Event, its reason and message.
type Say = (bool, &'static str, String);

/// The writes of one step.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub status: CronJobStatus,
    /// Jobs to delete: of the history, or replaced.
    pub delete: Vec<Arc<Job>>,
    pub create: Option<Box<Job>>,
    /// `true` for a warning.
    pub events: Vec<Say>,
    pub after: Option<Duration>,
}

/// How a Job has ended, if it has.
pub(super) fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let done = |c: &&k8s_openapi::api::batch::v1::JobCondition| {
        c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed")
    };
    conditions.iter().find(done).map(|c| c.type_.as_str())
}

/// How `status.active` names a Job.
pub(super) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

/// Decides one step. `owned`: the Jobs that it controls.
pub(super) fn plan(cron: &CronJob, owned: &[Arc<Job>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    settle_active(&mut plan, owned);
    trim_history(&mut plan, cron, owned);
    let Some(spec) = &cron.spec else { return plan };
    if meta::deleting(&cron.metadata) || spec.suspend == Some(true) {
        return plan;
    }
    let zone = match spec.time_zone.as_deref().map(TimeZone::get) {
        // Upstream takes the zone of its own process, which in its image is this.
        None => TimeZone::UTC,
        Some(Ok(zone)) => zone,
        Some(Err(_)) => {
            let name = spec.time_zone.as_deref().unwrap_or_default();
            plan.events.push((true, "UnknownTimeZone", format!("invalid timeZone: \"{name}\"")));
            return plan;
        }
    };
    match spec.schedule.parse::<Schedule>() {
        Ok(schedule) => start(&mut plan, cron, owned, &schedule, &zone, now),
        Err(error) => {
            let message = format!("unparseable schedule: \"{}\" : {error}", spec.schedule);
            plan.events.push((true, "UnparseableSchedule", message));
        }
    }
    plan
}

/// Drops ended and lost Jobs from `status.active` and finds those that are missing in it.
fn settle_active(plan: &mut Plan, owned: &[Arc<Job>]) {
    let before = plan.status.active.take().unwrap_or_default();
    let mut active = Vec::new();
    for job in owned {
        let known = before.iter().any(|r| r.uid == job.metadata.uid);
        let name = meta::name(&job.metadata);
        match ended(job) {
            Some(how) => {
                if known {
                    let message = format!("Saw completed job: {name}, condition: {how}");
                    plan.events.push((false, "SawCompletedJob", message));
                }
                let at = job.status.as_ref().and_then(|s| s.completion_time.clone());
                if how == "Complete" && at > plan.status.last_successful_time {
                    plan.status.last_successful_time = at;
                }
            }
            None => active.push((meta::created(&job.metadata), reference(job))),
        }
    }
    let there = |r: &ObjectReference| owned.iter().any(|job| job.metadata.uid == r.uid);
    for lost in before.iter().filter(|r| !there(r)) {
        let name = lost.name.as_deref().unwrap_or_default();
        plan.events.push((false, "MissingJob", format!("Active job went missing: {name}")));
    }
    active.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    // A known reference stays as it is: the version in it is that of the creation.
    let kept = active.into_iter().map(|(_, new)| {
        let known = before.iter().find(|r| r.uid == new.uid);
        known.cloned().unwrap_or(new)
    });
    let kept: Vec<ObjectReference> = kept.collect();
    plan.status.active = (!kept.is_empty()).then_some(kept);
}

fn trim_history(plan: &mut Plan, cron: &CronJob, owned: &[Arc<Job>]) {
    let spec = cron.spec.as_ref();
    let limits = [
        ("Complete", spec.and_then(|s| s.successful_jobs_history_limit).unwrap_or(3)),
        ("Failed", spec.and_then(|s| s.failed_jobs_history_limit).unwrap_or(1)),
    ];
    for (how, limit) in limits {
        let mut done: Vec<&Arc<Job>> = owned.iter().filter(|j| ended(j) == Some(how)).collect();
        done.sort_by_key(|j| (j.status.as_ref().and_then(|s| s.start_time.clone()), j.metadata.name.clone()));
        let excess = done.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        plan.delete.extend(done.into_iter().take(excess).filter(|j| !meta::deleting(&j.metadata)).cloned());
    }
}

/// The latest time that is due, and whether suspiciously many were missed.
fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> (Option<Timestamp>, bool) {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| t.0);
    let mut from = last.unwrap_or_else(|| meta::created(&cron.metadata));
    if let Some(seconds) = cron.spec.as_ref().and_then(|s| s.starting_deadline_seconds) {
        from = from.max(now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(from));
    }
    let (mut latest, mut missed) = (None, 0);
    let mut cursor = from;
    while let Some(time) = schedule.next(cursor, zone).filter(|t| *t <= now) {
        latest = Some(time);
        missed += 1;
        cursor = time;
        if missed > TOO_MANY {
            // Leap: the next time after half of what is left. The last one due is still found.
            let half = SignedDuration::from_secs((now.as_second() - time.as_second()) / 2);
            let leap = time.checked_add(half).unwrap_or(time);
            if schedule.next(leap, zone).is_some_and(|t| t <= now) {
                cursor = leap;
            }
        }
    }
    (latest, missed > TOO_MANY)
}

fn start(
    plan: &mut Plan,
    cron: &CronJob,
    owned: &[Arc<Job>],
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
) {
    let (time, too_many) = due(cron, schedule, zone, now);
    let next = schedule.next(now, zone);
    plan.after = next
        .map(|t| Duration::try_from(t.duration_since(now)).unwrap_or_default() + Duration::from_millis(50));
    if too_many {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((true, "TooManyMissedTimes", message.into()));
    }
    let (Some(time), Some(spec)) = (time, &cron.spec) else { return };
    let name = format!("{}-{}", meta::name(&cron.metadata), time.as_second() / 60);
    if owned.iter().any(|j| meta::name(&j.metadata) == name) {
        plan.status.last_schedule_time = Some(meta::time(time));
        return;
    }
    let active = plan.status.active.clone().unwrap_or_default();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((false, "JobAlreadyActive", message.into()));
            return;
        }
        Some("Replace") => {
            let old = owned.iter().filter(|j| active.iter().any(|r| r.uid == j.metadata.uid));
            plan.delete.extend(old.cloned());
            plan.status.active = None;
        }
        _ => {}
    }
    plan.create = Some(Box::new(make(cron, &name, time, zone)));
    plan.status.last_schedule_time = Some(meta::time(time));
}

fn make(cron: &CronJob, name: &str, time: Timestamp, zone: &TimeZone) -> Job {
    let template = cron.spec.as_ref().map(|s| s.job_template.clone()).unwrap_or_default();
    let template_meta = template.metadata.unwrap_or_default();
    let mut annotations = template_meta.annotations.unwrap_or_default();
    let local = time.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations.insert(SCHEDULED.into(), local.replace("+00:00", "Z"));
    Job {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: cron.meta().namespace.clone(),
            labels: template_meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![meta::controller_ref(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn cron(spec: serde_json::Value, last: &str) -> CronJob {
        let mut spec = spec;
        spec["schedule"] = "*/5 * * * *".into();
        spec["timeZone"] = "UTC".into();
        spec["jobTemplate"] = json!({"spec": {"template": {"spec": {"containers": []}}}});
        let meta = json!({"name": "tick", "namespace": "ns", "uid": "c", "creationTimestamp": "2024-01-01T00:00:00Z"});
        let status = json!({"lastScheduleTime": last});
        serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
    }

    fn job(name: &str, how: Option<&str>, started: &str) -> Arc<Job> {
        let conditions = how.map(|h| json!([{"type": h, "status": "True"}])).unwrap_or_else(|| json!([]));
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name},
                "status": {"conditions": conditions, "startTime": started, "completionTime": how.map(|_| started)}}))
            .unwrap(),
        )
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn show(plan: &Plan) -> String {
        let deleted: Vec<&str> = plan.delete.iter().map(|j| meta::name(&j.metadata)).collect();
        let said: Vec<&str> = plan.events.iter().map(|e| e.1).collect();
        let made = plan.create.as_ref().map(|j| meta::name(&j.metadata)).unwrap_or("-");
        format!("{made} [{}] [{}]", deleted.join(" "), said.join(" "))
    }

    #[test]
    fn a_job_is_made_when_due_and_only_once() {
        let last = "2024-01-01T10:00:00Z";
        let early = plan(&cron(json!({}), last), &[], at("2024-01-01T10:04:00Z"));
        assert_eq!(show(&early), "- [] []");
        assert_eq!(early.after.unwrap().as_secs(), 60);
        let due = plan(&cron(json!({}), last), &[], at("2024-01-01T10:05:01Z"));
        assert_eq!(show(&due), "tick-28401725 [] []");
        let made = due.create.unwrap();
        assert_eq!(meta::annotations(&made.metadata)[SCHEDULED], "2024-01-01T10:05:00Z");
        let again =
            plan(&cron(json!({}), last), &[job("tick-28401725", None, last)], at("2024-01-01T10:05:02Z"));
        assert_eq!(show(&again), "- [] []");
        // A long sleep starts one Job, the latest.
        let late = plan(&cron(json!({}), last), &[], at("2024-01-03T10:06:00Z"));
        assert_eq!(show(&late), "tick-28404605 [] [TooManyMissedTimes]");
        let missed = cron(json!({"startingDeadlineSeconds": 30}), last);
        assert_eq!(show(&plan(&missed, &[], at("2024-01-01T10:06:00Z"))), "- [] []");
        assert_eq!(
            show(&plan(&cron(json!({"suspend": true}), last), &[], at("2024-01-01T11:00:00Z"))),
            "- [] []"
        );
    }

    #[test]
    fn concurrency_and_history() {
        let last = "2024-01-01T10:00:00Z";
        let running = [job("run", None, last)];
        let now = at("2024-01-01T10:05:01Z");
        let with = |policy: &str| cron(json!({"concurrencyPolicy": policy}), last);
        assert_eq!(show(&plan(&with("Allow"), &running, now)), "tick-28401725 [] []");
        assert_eq!(show(&plan(&with("Forbid"), &running, now)), "- [] [JobAlreadyActive]");
        assert_eq!(show(&plan(&with("Replace"), &running, now)), "tick-28401725 [run] []");
        let hour = |h: u32| format!("2024-01-01T0{h}:00:00Z");
        let mut jobs: Vec<_> = (1..6).map(|h| job(&format!("ok{h}"), Some("Complete"), &hour(h))).collect();
        jobs.extend((1..3).map(|h| job(&format!("bad{h}"), Some("Failed"), &hour(h))));
        let plan = plan(&with("Allow"), &jobs, at("2024-01-01T10:01:00Z"));
        assert_eq!(show(&plan), "- [ok1 ok2 bad1] []");
        assert_eq!(plan.status.last_successful_time, Some(meta::time(at(&hour(5)))));
    }

    #[test]
    fn nonsense_is_told() {
        let mut broken = cron(json!({}), "2024-01-01T10:00:00Z");
        broken.spec.as_mut().unwrap().schedule = "every day".into();
        assert_eq!(show(&plan(&broken, &[], Timestamp::UNIX_EPOCH)), "- [] [UnparseableSchedule]");
        broken.spec.as_mut().unwrap().time_zone = Some("Middle/Earth".into());
        assert_eq!(show(&plan(&broken, &[], Timestamp::UNIX_EPOCH)), "- [] [UnknownTimeZone]");
    }
}
