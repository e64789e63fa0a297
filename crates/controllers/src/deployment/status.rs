//! The status of a Deployment: counts, and the conditions Progressing, Available and ReplicaFailure by which
//! `kubectl rollout status` judges.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::wish::{Wish, actual, available};
use crate::meta::{self, some_unless_zero};

pub(super) const PROGRESSING: &str = "Progressing";
pub(super) const COMPLETE: &str = "NewReplicaSetAvailable";
pub(super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Conditions in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions(pub Vec<DeploymentCondition>);

impl Conditions {
    pub fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.0.iter().find(|c| c.type_ == type_)
    }

    pub fn remove(&mut self, type_: &str) {
        self.0.retain(|c| c.type_ != type_);
    }

    /// Sets a condition; the same status and reason again change nothing, the same status keeps its transition time.
    pub fn set(&mut self, type_: &str, status: &str, reason: &str, message: String, now: Timestamp) {
        let old = self.get(type_);
        if old.is_some_and(|c| c.status == status && c.reason.as_deref() == Some(reason)) {
            return;
        }
        let since = old.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        self.put(type_, status, reason, message, since.map_or(now, |t| t.0), now);
    }

    fn put(
        &mut self,
        type_: &str,
        status: &str,
        reason: &str,
        message: String,
        since: Timestamp,
        now: Timestamp,
    ) {
        self.remove(type_);
        self.0.push(DeploymentCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_update_time: Some(meta::time(now)),
            last_transition_time: Some(meta::time(since)),
        });
    }
}

/// All that a status is made of.
pub(super) struct Facts<'a> {
    pub deployment: &'a Deployment,
    pub wish: &'a Wish,
    pub new: Option<&'a ReplicaSet>,
    pub olds: &'a [ReplicaSet],
    /// As the run has changed them so far.
    pub conditions: Conditions,
    pub now: Timestamp,
}

impl Facts<'_> {
    fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.new.into_iter().chain(self.olds)
    }

    /// Counts and the Available condition, nothing about progress: for paused and just scaled Deployments.
    pub fn counted(&self) -> DeploymentStatus {
        let sum = |f: fn(&ReplicaSet) -> i32| self.all().map(f).sum::<i32>();
        let ready = |s: &ReplicaSet| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
        let wanted: i32 = sum(super::wish::size);
        let available = sum(available);
        let mut conditions = self.conditions.clone();
        if available >= self.wish.replicas - self.wish.max_unavailable {
            let message = "Deployment has minimum availability.".to_owned();
            conditions.set("Available", "True", "MinimumReplicasAvailable", message, self.now);
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            conditions.set("Available", "False", "MinimumReplicasUnavailable", message, self.now);
        }
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: some_unless_zero(sum(actual)),
            updated_replicas: some_unless_zero(self.new.map_or(0, actual)),
            ready_replicas: some_unless_zero(sum(ready)),
            available_replicas: some_unless_zero(available),
            unavailable_replicas: some_unless_zero((wanted - available).max(0)),
            collision_count: self.deployment.status.as_ref().and_then(|s| s.collision_count),
            terminating_replicas: None,
            conditions: Some(conditions.0),
        }
    }

    /// The status in a rollout, and when to look again because a deadline passes.
    pub fn rolled(&self) -> (DeploymentStatus, Option<Duration>) {
        let mut status = self.counted();
        let mut conditions = Conditions(status.conditions.take().unwrap_or_default());
        let current = self.conditions.get(PROGRESSING).cloned();
        let settled = n(status.replicas) == n(status.updated_replicas)
            && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(COMPLETE));
        match self.wish.deadline {
            None => conditions.remove(PROGRESSING),
            Some(_) if settled => {}
            Some(deadline) => self.progress(&status, &mut conditions, deadline, current.as_ref()),
        }
        self.failure(&mut conditions);
        let after = self.deadline_left(&status, &conditions);
        status.conditions = Some(conditions.0);
        (status, after)
    }

    fn subject(&self) -> String {
        match self.new {
            Some(set) => format!("ReplicaSet \"{}\"", meta::name(&set.metadata)),
            None => format!("Deployment \"{}\"", meta::name(&self.deployment.metadata)),
        }
    }

    fn progress(
        &self,
        status: &DeploymentStatus,
        conditions: &mut Conditions,
        deadline: i32,
        current: Option<&DeploymentCondition>,
    ) {
        let subject = self.subject();
        if complete(self.deployment, self.wish, status) {
            let message = format!("{subject} has successfully progressed.");
            conditions.set(PROGRESSING, "True", COMPLETE, message, self.now);
        } else if self.moved(status) {
            let since = current.filter(|c| c.status == "True").and_then(|c| c.last_transition_time.clone());
            let message = format!("{subject} is progressing.");
            let since = since.map_or(self.now, |t| t.0);
            conditions.put(PROGRESSING, "True", "ReplicaSetUpdated", message, since, self.now);
        } else if timed_out(current, deadline, self.now) {
            let message = format!("{subject} has timed out progressing.");
            conditions.set(PROGRESSING, "False", TIMED_OUT, message, self.now);
        }
    }

    /// More updated, ready or available Pods, or fewer old ones, than the status said before.
    fn moved(&self, new: &DeploymentStatus) -> bool {
        let old = self.deployment.status.clone().unwrap_or_default();
        n(new.updated_replicas) > n(old.updated_replicas)
            || n(new.replicas) - n(new.updated_replicas) < n(old.replicas) - n(old.updated_replicas)
            || n(new.ready_replicas) > n(old.ready_replicas)
            || n(new.available_replicas) > n(old.available_replicas)
    }

    /// A ReplicaSet that cannot make Pods shows through.
    fn failure(&self, conditions: &mut Conditions) {
        let failed = self.all().find_map(|set| {
            let conditions = set.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|c| c.type_ == REPLICA_FAILURE)
        });
        match failed {
            Some(c) => {
                let reason = c.reason.clone().unwrap_or_default();
                let message = c.message.clone().unwrap_or_default();
                conditions.set(REPLICA_FAILURE, &c.status, &reason, message, self.now);
            }
            None => conditions.remove(REPLICA_FAILURE),
        }
    }

    fn deadline_left(&self, status: &DeploymentStatus, conditions: &Conditions) -> Option<Duration> {
        let deadline = i64::from(self.wish.deadline?);
        let current = conditions.get(PROGRESSING)?;
        let over =
            current.reason.as_deref() == Some(TIMED_OUT) || complete(self.deployment, self.wish, status);
        let updated = current.last_update_time.as_ref().filter(|_| !over)?.0;
        let left = updated.as_second() + deadline - self.now.as_second() + 1;
        Some(Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1)))
    }
}

fn n(count: Option<i32>) -> i32 {
    count.unwrap_or(0)
}

/// All Pods are of the new template and available.
pub(super) fn complete(deployment: &Deployment, wish: &Wish, status: &DeploymentStatus) -> bool {
    n(status.updated_replicas) == wish.replicas
        && n(status.replicas) == wish.replicas
        && n(status.available_replicas) == wish.replicas
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

fn timed_out(current: Option<&DeploymentCondition>, deadline: i32, now: Timestamp) -> bool {
    let Some(current) = current else { return false };
    match current.reason.as_deref() {
        Some(COMPLETE) => false,
        Some(TIMED_OUT) => true,
        _ => current
            .last_update_time
            .as_ref()
            .is_some_and(|t| t.0.as_second() + i64::from(deadline) < now.as_second()),
    }
}

/// The condition that says whether the rollout is paused, when that has just changed.
pub(super) fn note_pause(wish: &Wish, conditions: &mut Conditions, now: Timestamp) {
    if wish.deadline.is_none() {
        return;
    }
    let reason = conditions.get(PROGRESSING).and_then(|c| c.reason.clone());
    let paused = reason.as_deref() == Some("DeploymentPaused");
    if reason.as_deref() == Some(TIMED_OUT) {
        return;
    }
    if wish.paused && !paused {
        conditions.set(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused".into(), now);
    } else if !wish.paused && paused {
        conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now);
    }
}
