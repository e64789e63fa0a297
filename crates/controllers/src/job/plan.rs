//! One step of a Job as a pure function.
//!
//! Finished Pods are counted exactly once though they may be deleted at any time: each Pod carries a finalizer; when
//! it has finished, its uid is first written to `status.uncountedTerminatedPods`, then the finalizer is removed, then
//! the uid becomes a number (KEP-2307).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::{self, index_of};
use crate::meta::some_unless_zero;
use crate::{meta, pods};

/// Keeps a finished Pod until it is counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const BURST: i32 = 500;

/// Whether the Pod still carries the finalizer.
pub(super) fn tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING)
}

/// The writes of one step, in this order: status, finalizers, deletions, creations.
#[derive(Debug)]
pub(super) struct Plan {
    pub status: JobStatus,
    /// Pods that are accounted for in the status that is stored *now* and may lose their finalizer.
    pub release: Vec<Arc<Pod>>,
    pub delete: Vec<Arc<Pod>>,
    /// For each Pod to make its index, if the Job is Indexed.
    pub create: Vec<Option<i32>>,
    /// Reason and message.
    pub events: Vec<(&'static str, String)>,
    pub after: Option<Duration>,
}

/// The condition of that type that is True.
pub(super) fn condition<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True")
}

/// When the Job has completed or failed.
pub(super) fn finished_at(job: &Job) -> Option<Timestamp> {
    let status = job.status.as_ref()?;
    let done = condition(status, "Complete").or_else(|| condition(status, "Failed"))?;
    Some(done.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

fn set_condition(
    status: &mut JobStatus,
    type_: &str,
    on: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let value = if on { "True" } else { "False" };
    let all = status.conditions.get_or_insert_default();
    if all.iter().any(|c| c.type_ == type_ && c.status == value) {
        return false;
    }
    all.retain(|c| c.type_ != type_);
    all.push(JobCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(meta::time(now)),
        last_transition_time: Some(meta::time(now)),
    });
    true
}

/// Decides one step for a Job that has not finished. `owned`: its Pods.
pub(super) fn plan(job: &Job, owned: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut step = Step::new(job, owned, now);
    step.count();
    if !meta::deleting(&job.metadata) {
        step.start();
        step.judge();
        step.manage();
    }
    step.finish()
}

struct Step<'a> {
    job: &'a Job,
    owned: &'a [Arc<Pod>],
    now: Timestamp,
    completions: Option<i32>,
    indexed: bool,
    active: Vec<Arc<Pod>>,
    terminating: i32,
    succeeded: BTreeSet<String>,
    failed: BTreeSet<String>,
    completed: BTreeSet<i32>,
    plan: Plan,
}

impl<'a> Step<'a> {
    fn new(job: &'a Job, owned: &'a [Arc<Pod>], now: Timestamp) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let spec = job.spec.as_ref();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let completions = spec.and_then(|s| s.completions);
        let completed = status.completed_indexes.as_deref().unwrap_or("");
        let terminating = owned.iter().filter(|p| meta::deleting(&p.metadata) && !pods::finished(p)).count();
        Self {
            job,
            owned,
            now,
            completions,
            indexed: spec.and_then(|s| s.completion_mode.as_deref()) == Some("Indexed"),
            active: owned.iter().filter(|p| pods::active(p)).cloned().collect(),
            terminating: i32::try_from(terminating).unwrap_or(i32::MAX),
            succeeded: uncounted.succeeded.into_iter().flatten().collect(),
            failed: uncounted.failed.into_iter().flatten().collect(),
            completed: indexes::parse(completed, completions.unwrap_or(0)),
            plan: Plan {
                status,
                release: Vec::new(),
                delete: Vec::new(),
                create: Vec::new(),
                events: Vec::new(),
                after: None,
            },
        }
    }

    /// Turns released uids into numbers, and newly finished Pods into uids.
    fn count(&mut self) {
        let held: BTreeSet<&str> =
            self.owned.iter().filter(|p| tracked(p)).map(|p| meta::uid(&p.metadata)).collect();
        let status = &mut self.plan.status;
        let flush = |uids: &mut BTreeSet<String>| {
            let before = uids.len();
            uids.retain(|uid| held.contains(uid.as_str()));
            i32::try_from(before - uids.len()).unwrap_or(0)
        };
        let (succeeded, failed) = (flush(&mut self.succeeded), flush(&mut self.failed));
        status.succeeded = some_unless_zero(status.succeeded.unwrap_or(0) + succeeded);
        status.failed = some_unless_zero(status.failed.unwrap_or(0) + failed);
        for pod in self.owned.iter().filter(|p| tracked(p)) {
            let uid = meta::uid(&pod.metadata);
            if self.succeeded.contains(uid) || self.failed.contains(uid) {
                // In the stored status already: the Pod may go.
                self.plan.release.push(pod.clone());
            } else if pods::phase(pod) == "Succeeded" {
                self.count_success(pod);
            } else if pods::phase(pod) == "Failed" || meta::deleting(&pod.metadata) {
                self.failed.insert(uid.to_owned());
            }
        }
        if self.indexed {
            // Counted by index, so that two Pods of one index count once.
            let done = i32::try_from(self.completed.len()).unwrap_or(i32::MAX);
            self.plan.status.succeeded = some_unless_zero(done);
            self.plan.status.completed_indexes = (done > 0).then(|| indexes::format(&self.completed));
        }
    }

    fn count_success(&mut self, pod: &Pod) {
        self.succeeded.insert(meta::uid(&pod.metadata).to_owned());
        if let Some(index) = index_of(pod).filter(|i| self.completions.is_some_and(|n| *i < n)) {
            self.completed.insert(index);
        }
    }

    fn total_succeeded(&self) -> i32 {
        let status = self.plan.status.succeeded.unwrap_or(0);
        if self.indexed { status } else { status + len(&self.succeeded) }
    }

    fn suspended(&self) -> bool {
        self.job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false)
    }

    fn start(&mut self) {
        let (now, suspended) = (self.now, self.suspended());
        let status = &mut self.plan.status;
        let was = status.conditions.iter().flatten().any(|c| c.type_ == "Suspended" && c.status == "True");
        if suspended {
            if set_condition(status, "Suspended", true, "JobSuspended", "Job suspended", now) {
                self.plan.events.push(("Suspended", "Job suspended".into()));
            }
            status.start_time = None;
            return;
        }
        if was {
            set_condition(status, "Suspended", false, "JobResumed", "Job resumed", now);
            self.plan.events.push(("Resumed", "Job resumed".into()));
        }
        status.start_time.get_or_insert_with(|| meta::time(now));
    }

    /// Decides whether the Job is done for, well or badly.
    fn judge(&mut self) {
        if condition(&self.plan.status, "SuccessCriteriaMet").is_some()
            || condition(&self.plan.status, "FailureTarget").is_some()
        {
            return;
        }
        let now = self.now;
        if let Some((reason, message)) = self.failure() {
            set_condition(&mut self.plan.status, "FailureTarget", true, reason, message, now);
        } else if self.is_complete() {
            let message = "Reached expected number of succeeded pods";
            set_condition(
                &mut self.plan.status,
                "SuccessCriteriaMet",
                true,
                "CompletionsReached",
                message,
                now,
            );
        }
    }

    fn is_complete(&self) -> bool {
        match self.completions {
            Some(n) => self.total_succeeded() >= n,
            None => self.total_succeeded() > 0 && self.active.is_empty(),
        }
    }

    fn failure(&mut self) -> Option<(&'static str, &'static str)> {
        let spec = self.job.spec.as_ref()?;
        let limit = spec.backoff_limit.unwrap_or(6);
        let failed = self.plan.status.failed.unwrap_or(0) + len(&self.failed);
        let in_place =
            spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("OnFailure");
        let restarts: i32 = if in_place { self.active.iter().map(|p| restarts(p)).sum() } else { 0 };
        if failed > limit || (in_place && if limit == 0 { restarts > 0 } else { restarts >= limit }) {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        let deadline = spec.active_deadline_seconds?;
        let started = self.plan.status.start_time.as_ref()?.0;
        let left = started.as_second() + deadline - self.now.as_second();
        if left <= 0 {
            return Some(("DeadlineExceeded", "Job was active longer than specified deadline"));
        }
        self.wake(Duration::from_secs(left.unsigned_abs()));
        None
    }

    fn wake(&mut self, after: Duration) {
        self.plan.after = Some(self.plan.after.map_or(after, |a| a.min(after)));
    }

    fn manage(&mut self) {
        let ending = ["SuccessCriteriaMet", "FailureTarget"];
        if ending.iter().any(|c| condition(&self.plan.status, c).is_some()) {
            self.plan.delete.append(&mut self.active.clone());
            return;
        }
        if self.suspended() {
            // Not failures: they lose their finalizer uncounted.
            self.plan.release.extend(self.active.iter().filter(|p| tracked(p)).cloned());
            self.plan.delete.append(&mut self.active.clone());
            return;
        }
        let parallelism = self.job.spec.as_ref().and_then(|s| s.parallelism).unwrap_or(1);
        let have = i32::try_from(self.active.len()).unwrap_or(i32::MAX);
        let want = match self.completions {
            Some(n) => parallelism.min((n - self.total_succeeded()).max(0)),
            None if self.total_succeeded() > 0 => have.min(parallelism),
            None => parallelism,
        };
        if self.indexed {
            self.drop_duplicate_indexes();
        }
        if have > want {
            let none = std::collections::BTreeMap::new();
            let mut order = self.active.clone();
            order.sort_by(|a, b| pods::deletion_order(a, b, &none, self.now));
            order.truncate(usize::try_from(have - want).unwrap_or(0));
            // Not failures either.
            self.plan.release.extend(order.iter().filter(|p| tracked(p)).cloned());
            self.plan.delete.extend(order);
            return;
        }
        let waits =
            self.job.spec.as_ref().and_then(|s| s.pod_replacement_policy.as_deref()) == Some("Failed");
        let gap = (want - have - if waits { self.terminating } else { 0 }).clamp(0, BURST);
        if gap == 0 {
            return;
        }
        match self.backoff_left() {
            Some(wait) => self.wake(wait),
            None => self.create(usize::try_from(gap).unwrap_or(0)),
        }
    }

    fn drop_duplicate_indexes(&mut self) {
        let mut seen = self.completed.clone();
        for pod in self.active.clone() {
            if !index_of(&pod).is_some_and(|i| self.completions.is_some_and(|n| i < n) && seen.insert(i)) {
                self.plan.release.extend(tracked(&pod).then(|| pod.clone()));
                self.plan.delete.push(pod);
            }
        }
    }

    fn create(&mut self, gap: usize) {
        if !self.indexed {
            self.plan.create = vec![None; gap];
            return;
        }
        let taken: BTreeSet<i32> =
            self.active.iter().filter_map(|p| index_of(p)).chain(self.completed.iter().copied()).collect();
        let free = (0..self.completions.unwrap_or(0)).filter(|i| !taken.contains(i));
        self.plan.create = free.take(gap).map(Some).collect();
    }

    /// 10 s after a failure, doubled for each further one in a row, at most 10 minutes.
    fn backoff_left(&self) -> Option<Duration> {
        let ended = |phase: &'static str| {
            self.owned.iter().filter(move |p| pods::phase(p) == phase).filter_map(|p| finish_time(p))
        };
        let last_success = ended("Succeeded").max();
        let failures: Vec<Timestamp> =
            ended("Failed").filter(|t| last_success.is_none_or(|success| *t > success)).collect();
        let last = failures.iter().max()?;
        let shift = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
        let delay = (10i64 << shift).min(600);
        let left = last.as_second() + delay - self.now.as_second();
        (left > 0).then(|| Duration::from_secs(left.unsigned_abs()))
    }

    fn finish(mut self) -> Plan {
        let uncounted = !self.succeeded.is_empty() || !self.failed.is_empty();
        let list = |set: &BTreeSet<String>| (!set.is_empty()).then(|| set.iter().cloned().collect());
        let status = &mut self.plan.status;
        status.uncounted_terminated_pods =
            Some(UncountedTerminatedPods { succeeded: list(&self.succeeded), failed: list(&self.failed) });
        let ready = self.active.iter().filter(|p| pods::ready(p)).count();
        status.active = some_unless_zero(i32::try_from(self.active.len()).unwrap_or(i32::MAX));
        status.ready = Some(i32::try_from(ready).unwrap_or(i32::MAX));
        status.terminating = Some(self.terminating);
        let empty = self.active.is_empty() && self.terminating == 0 && !uncounted;
        if empty && let Some(c) = condition(status, "FailureTarget").cloned() {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            set_condition(status, "Failed", true, &reason, &message, self.now);
            let reason =
                if reason == "DeadlineExceeded" { "DeadlineExceeded" } else { "BackoffLimitExceeded" };
            self.plan.events.push((reason, message));
        } else if empty && let Some(c) = condition(status, "SuccessCriteriaMet").cloned() {
            let (reason, message) = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            set_condition(status, "Complete", true, &reason, &message, self.now);
            status.completion_time = Some(meta::time(self.now));
            self.plan.events.push(("Completed", "Job completed".into()));
        }
        self.plan
    }
}

fn len(set: &BTreeSet<String>) -> i32 {
    i32::try_from(set.len()).unwrap_or(i32::MAX)
}

fn restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.map(|c| c.restart_count).sum()
}

/// When a finished Pod's last container ended.
fn finish_time(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.iter().flatten();
    let ended =
        statuses.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()).map(|t| t.0);
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    ended
        .max()
        .or(deleted)
        .or_else(|| pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|t| t.0))
}
