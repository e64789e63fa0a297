//! One step of a rollout as a pure function: from a Deployment, its ReplicaSets and whether old Pods still run, to
//! the writes that bring it closer to the wish.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::revision::{self, age, new_set_annotations, revision, size_annotations, split};
use super::status::{COMPLETE, Conditions, Facts, PROGRESSING, complete, note_pause};
use super::wish::{DESIRED, Wish, actual, available, size};
use crate::meta::{self, Map};

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Make the new ReplicaSet.
    Create(Box<ReplicaSet>),
    /// Give the new ReplicaSet these annotations and this minReadySeconds.
    Update { set: String, annotations: Map, min_ready: i32 },
    /// Size a ReplicaSet.
    Scale { set: String, from: i32, to: i32, annotations: Map },
    /// Delete a ReplicaSet of the history.
    Delete { set: String, uid: String },
    /// Write the revision to the Deployment.
    Revision(String),
}

/// The writes of one step, the status after it, and when to look again though nothing changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub actions: Vec<Action>,
    pub status: DeploymentStatus,
    pub after: Option<Duration>,
}

/// Decides one step. `old_pods_run`: Pods of old ReplicaSets are not all gone (asked by Recreate only).
pub(super) fn plan(
    deployment: &Deployment,
    sets: Vec<ReplicaSet>,
    old_pods_run: bool,
    now: Timestamp,
) -> Plan {
    let wish = Wish::of(deployment);
    let status = deployment.status.clone().unwrap_or_default();
    let (new, olds) = split(sets, &wish.template);
    let conditions = Conditions(status.conditions.clone().unwrap_or_default());
    let status_replicas = status.replicas.unwrap_or(0);
    let mut step =
        Step { deployment, wish, new, olds, conditions, status_replicas, actions: Vec::new(), now };
    if meta::deleting(&deployment.metadata) {
        return step.finish(false);
    }
    let wish = step.wish.clone();
    note_pause(&wish, &mut step.conditions, now);
    if wish.paused || step.is_resized() {
        step.sync_new(false);
        step.resize();
        if wish.paused {
            step.trim_history();
        }
        return step.finish(false);
    }
    if wish.rolling {
        step.roll();
    } else {
        step.recreate(old_pods_run);
    }
    step.finish(true)
}

struct Step<'a> {
    deployment: &'a Deployment,
    wish: Wish,
    new: Option<ReplicaSet>,
    olds: Vec<ReplicaSet>,
    conditions: Conditions,
    status_replicas: i32,
    actions: Vec<Action>,
    now: Timestamp,
}

impl Step<'_> {
    fn finish(self, rollout: bool) -> Plan {
        let facts = Facts {
            deployment: self.deployment,
            wish: &self.wish,
            new: self.new.as_ref(),
            olds: &self.olds,
            conditions: self.conditions,
            now: self.now,
        };
        let (status, after) = if rollout { facts.rolled() } else { (facts.counted(), None) };
        Plan { actions: self.actions, status, after }
    }

    fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.new.iter().chain(&self.olds)
    }

    fn total(&self) -> i32 {
        self.all().map(size).sum()
    }

    /// Sizes a ReplicaSet in the working copy and in the actions.
    fn scale(&mut self, name: &str, to: i32) -> bool {
        let wish = &self.wish;
        let mut sets = self.new.iter_mut().chain(&mut self.olds);
        let Some(set) = sets.find(|s| meta::name(&s.metadata) == name) else { return false };
        let from = size(set);
        let mut annotations = meta::annotations(&set.metadata).clone();
        annotations.extend(size_annotations(wish));
        if from == to && annotations == *meta::annotations(&set.metadata) {
            return false;
        }
        set.metadata.annotations = Some(annotations.clone());
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(to);
        }
        self.actions.push(Action::Scale { set: name.to_owned(), from, to, annotations });
        from != to
    }

    /// Brings revision and annotations of the new ReplicaSet up to date; makes it if it is missing and may be made.
    fn sync_new(&mut self, make: bool) {
        let next = self.olds.iter().map(revision).max().unwrap_or(0) + 1;
        match &mut self.new {
            Some(set) => {
                let current = meta::annotations(&set.metadata).clone();
                let wanted = new_set_annotations(self.deployment, &self.wish, &current, next, false);
                let min_ready = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
                if wanted != current || min_ready != self.wish.min_ready {
                    set.metadata.annotations = Some(wanted.clone());
                    let name = meta::name(&set.metadata).to_owned();
                    let (annotations, min_ready) = (wanted.clone(), self.wish.min_ready);
                    self.actions.push(Action::Update { set: name, annotations, min_ready });
                }
                let name = meta::name(&set.metadata).to_owned();
                self.set_revision(wanted.get(revision::REVISION).cloned());
                if self.wish.deadline.is_some() && self.conditions.get(PROGRESSING).is_none() {
                    let message = format!("Found new replica set \"{name}\"");
                    self.conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", message, self.now);
                }
            }
            None if make => self.make_new(next),
            None => {}
        }
    }

    fn make_new(&mut self, next: i64) {
        let collisions = self.deployment.status.as_ref().and_then(|s| s.collision_count);
        let mut set = revision::make(self.deployment, &self.wish, next, collisions);
        let to = self.wish.new_size(self.total(), 0);
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(to);
        }
        if self.wish.deadline.is_some() {
            let message = format!("Created new replica set \"{}\"", meta::name(&set.metadata));
            self.conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message, self.now);
        }
        self.actions.push(Action::Create(Box::new(set.clone())));
        self.set_revision(Some(next.to_string()));
        self.new = Some(set);
    }

    fn set_revision(&mut self, revision: Option<String>) {
        let current = meta::annotations(&self.deployment.metadata).get(revision::REVISION);
        if let Some(revision) = revision.filter(|r| Some(r) != current) {
            self.actions.push(Action::Revision(revision));
        }
    }

    /// The Deployment's size has changed since its ReplicaSets were sized.
    fn is_resized(&self) -> bool {
        self.all().filter(|s| size(s) > 0).any(|set| {
            let desired = meta::annotation_number(&set.metadata, DESIRED);
            desired.is_some_and(|n| n != i64::from(self.wish.replicas))
        })
    }

    /// The new ReplicaSet has the full size and all of it is available.
    fn is_saturated(&self) -> bool {
        self.new.as_ref().is_some_and(|set| {
            let desired = meta::annotation_number(&set.metadata, DESIRED);
            size(set) == self.wish.replicas
                && desired == Some(i64::from(self.wish.replicas))
                && available(set) == self.wish.replicas
        })
    }

    /// Scales without rolling: one active ReplicaSet takes all, several share in proportion to their sizes.
    fn resize(&mut self) {
        let active: Vec<&ReplicaSet> = self.all().filter(|s| size(s) > 0).collect();
        let only = match active.as_slice() {
            [] => self.new.as_ref().or_else(|| self.olds.iter().max_by(|a, b| age(a).cmp(&age(b)))),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(name) = only.map(|s| meta::name(&s.metadata).to_owned()) {
            self.scale(&name, self.wish.replicas);
        } else if self.is_saturated() {
            self.drop_old();
        } else if self.wish.rolling {
            self.resize_in_proportion();
        }
    }

    fn resize_in_proportion(&mut self) {
        let wish = self.wish.clone();
        let allowed = if wish.replicas > 0 { wish.replicas + wish.max_surge } else { 0 };
        let mut sets: Vec<ReplicaSet> = self.all().filter(|s| size(s) > 0).cloned().collect();
        let to_add = allowed - sets.iter().map(size).sum::<i32>();
        // The largest first; of equal ones the newer grows first and the older shrinks first.
        sets.sort_by(|a, b| {
            let by_age = if to_add > 0 { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
            size(b).cmp(&size(a)).then(by_age)
        });
        let mut added = 0;
        let mut sizes = Vec::new();
        for set in &sets {
            let share = wish.proportion(set, self.status_replicas, to_add, added);
            added += share;
            sizes.push(size(set) + share);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, to) in sets.iter().zip(sizes) {
            self.scale(meta::name(&set.metadata), to);
        }
    }

    fn drop_old(&mut self) -> bool {
        let names: Vec<String> = self.old_names(|s| size(s) > 0);
        let mut any = false;
        for name in names {
            any |= self.scale(&name, 0);
        }
        any
    }

    fn old_names(&self, keep: impl Fn(&ReplicaSet) -> bool) -> Vec<String> {
        self.olds.iter().filter(|s| keep(s)).map(|s| meta::name(&s.metadata).to_owned()).collect()
    }

    fn recreate(&mut self, old_pods_run: bool) {
        self.sync_new(false);
        if self.drop_old() || old_pods_run || self.olds.iter().any(|s| actual(s) > 0) {
            return;
        }
        if self.new.is_none() {
            self.sync_new(true);
        }
        self.grow_new();
        self.trim_if_complete();
    }

    fn roll(&mut self) {
        self.sync_new(true);
        if self.actions.iter().any(|a| matches!(a, Action::Create(_))) {
            return;
        }
        if self.grow_new() || self.shrink_old() {
            return;
        }
        self.trim_if_complete();
    }

    /// Sizes the new ReplicaSet as far as the surge lets it.
    fn grow_new(&mut self) -> bool {
        let Some(set) = &self.new else { return false };
        let (have, name) = (size(set), meta::name(&set.metadata).to_owned());
        let to = match have.cmp(&self.wish.replicas) {
            std::cmp::Ordering::Equal => return false,
            std::cmp::Ordering::Greater => self.wish.replicas,
            std::cmp::Ordering::Less => self.wish.new_size(self.total(), have),
        };
        self.scale(&name, to)
    }

    /// Shrinks old ReplicaSets: first what never became healthy, then as many as availability lets go.
    fn shrink_old(&mut self) -> bool {
        if self.olds.iter().map(size).sum::<i32>() == 0 {
            return false;
        }
        let least = self.wish.replicas - self.wish.max_unavailable;
        let new_unavailable = self.new.as_ref().map_or(0, |s| size(s) - available(s));
        let most = self.total() - least - new_unavailable;
        if most <= 0 {
            return false;
        }
        let unhealthy = self.shrink_unhealthy(most);
        let healthy = self.shrink_healthy(least);
        unhealthy || healthy
    }

    fn shrink_unhealthy(&mut self, most: i32) -> bool {
        let mut gone = 0;
        for (name, have, healthy) in self.old_sizes() {
            if gone >= most {
                break;
            }
            let down = (most - gone).min(have - healthy);
            if have > 0 && down > 0 {
                self.scale(&name, have - down);
                gone += down;
            }
        }
        gone > 0
    }

    fn shrink_healthy(&mut self, least: i32) -> bool {
        let spare = self.all().map(available).sum::<i32>() - least;
        let mut gone = 0;
        for (name, have, _) in self.old_sizes() {
            if gone >= spare {
                break;
            }
            let down = have.min(spare - gone);
            if have > 0 && down > 0 {
                self.scale(&name, have - down);
                gone += down;
            }
        }
        gone > 0
    }

    /// Name, size and available Pods of the old ReplicaSets, oldest first (`split` has sorted them).
    fn old_sizes(&self) -> Vec<(String, i32, i32)> {
        let row = |s: &ReplicaSet| (meta::name(&s.metadata).to_owned(), size(s), available(s));
        self.olds.iter().map(row).collect()
    }

    fn trim_if_complete(&mut self) {
        let status = self.deployment.status.clone().unwrap_or_default();
        let settled = self.conditions.get(PROGRESSING).is_some_and(|c| c.reason.as_deref() == Some(COMPLETE));
        if complete(self.deployment, &self.wish, &status) || settled {
            self.trim_history();
        }
    }

    /// Deletes the oldest empty ReplicaSets beyond the history limit.
    fn trim_history(&mut self) {
        let Some(limit) = self.wish.history else { return };
        let mut old: Vec<&ReplicaSet> = self.olds.iter().filter(|s| !meta::deleting(&s.metadata)).collect();
        let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|s| revision(s));
        let empty = |s: &ReplicaSet| {
            let seen = s.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
            size(s) == 0 && actual(s) == 0 && s.metadata.generation.unwrap_or(0) <= seen
        };
        let delete = old.into_iter().take(excess).filter(|s| empty(s)).map(|s| Action::Delete {
            set: meta::name(&s.metadata).to_owned(),
            uid: meta::uid(&s.metadata).to_owned(),
        });
        self.actions.extend(delete.collect::<Vec<_>>());
    }
}
