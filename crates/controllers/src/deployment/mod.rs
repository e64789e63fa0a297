//! Deployments: rolling a set of Pods from one template to the next.
//!
//! [`plan`] decides one step as upstream's controller would (`pkg/controller/deployment`), the loop here writes it.
//! Every write of a ReplicaSet brings its next event, which brings the next step.

mod plan;
mod revision;
mod status;
#[cfg(test)]
mod tests;
mod wish;

use std::sync::Arc;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Patch;
use kube::core::SelectorExt;
use serde_json::json;

use self::plan::{Action, plan};
use crate::expectations::Expectations;
use crate::kit::{
    Context, Doing, Error, delete_uid, is_already_exists, message_of, patch, post, status_patch, unless_gone,
};
use crate::podcontrol::claim;
use crate::{meta, pods};

const COMPONENT: &str = "deployment-controller";

/// Runs the Deployment controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.deployments),
        ctx.ready(&informers.replica_sets),
        ctx.ready(&informers.pods)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let expectations = Expected::default();
    let (of_set, of_pod) = (ctx.clone(), ctx.clone());
    tokio::join!(
        ctx.feed(&informers.deployments, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.replica_sets, &queue, move |change| owners_of_set(&of_set, change)),
        ctx.feed(&informers.pods, &queue, move |change| recreating_owner(&of_pod, change)),
        ctx.work(COMPONENT, 8, &queue, |key| reconcile(&ctx, &expectations, key)),
    );
}

fn owners_of_set(ctx: &Context, change: &Change<ReplicaSet>) -> Vec<ObjectKey> {
    let set = change.object();
    let namespace = meta::namespace(&set.metadata);
    let mut keys = Vec::new();
    let old = match change {
        Change::Applied { old, .. } => old.as_ref(),
        Change::Deleted(_) => None,
    };
    for meta in [Some(&set.metadata), old.map(|o| &o.metadata)].into_iter().flatten() {
        let owner = meta::controller_of(meta).filter(|r| r.kind == "Deployment");
        keys.extend(owner.map(|r| ObjectKey::new(namespace, &*r.name)));
    }
    if meta::controller_of(&set.metadata).is_none() && !meta::deleting(&set.metadata) {
        let deployments = ctx.informers.deployments.list_in(namespace).into_iter();
        let labels = meta::labels(&set.metadata);
        let takes = |d: &Deployment| {
            let selector = d.spec.as_ref().and_then(|s| meta::selector(&s.selector));
            selector.is_some_and(|s| !s.selects_all() && s.matches(labels))
        };
        keys.extend(deployments.filter(|d| takes(d)).map(|d| ObjectKey::of(&*d)));
    }
    keys
}

/// A Recreate rollout waits for the last old Pod to go; only such Deployments hear of Pods.
fn recreating_owner(ctx: &Context, change: &Change<Pod>) -> Option<ObjectKey> {
    let pod = change.object();
    if matches!(change, Change::Applied { .. }) && !pods::finished(pod) {
        return None;
    }
    let namespace = meta::namespace(&pod.metadata);
    let set = meta::controller_of(&pod.metadata).filter(|r| r.kind == "ReplicaSet")?;
    let set = ctx.informers.replica_sets.get(namespace, &set.name)?;
    let owner = meta::controller_of(&set.metadata)?;
    let deployment = ctx.informers.deployments.get(namespace, &owner.name)?;
    let strategy = deployment.spec.as_ref()?.strategy.as_ref()?;
    (strategy.type_.as_deref() == Some("Recreate")).then(|| ObjectKey::of(&*deployment))
}

/// Whether Pods of another template than the wished one are still there.
fn old_pods_run(ctx: &Context, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    let template = deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let old: Vec<&str> = sets
        .iter()
        .filter(|s| !revision::same_template(s, &template))
        .map(|s| meta::uid(&s.metadata))
        .collect();
    let pods = ctx.informers.pods.list_in(meta::namespace(&deployment.metadata));
    pods.iter().any(|pod| {
        let owner = meta::controller_of(&pod.metadata);
        !pods::finished(pod) && owner.is_some_and(|r| old.contains(&r.uid.as_str()))
    })
}

/// Own writes that the caches still have to show: of ReplicaSets, and of the Deployments themselves (a stale status
/// would be told as progress a second time).
#[derive(Default)]
struct Expected {
    sets: Expectations,
    deployments: Expectations,
}

async fn reconcile(ctx: &Context, expectations: &Expected, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(deployment) = ctx.informers.deployments.get_key(&key) else {
        expectations.sets.forget(&key);
        expectations.deployments.forget(&key);
        return Ok(Outcome::Done);
    };
    let pending = expectations.sets.pending(&key, &ctx.informers.replica_sets);
    if let Some(wait) = pending.or_else(|| expectations.deployments.pending(&key, &ctx.informers.deployments))
    {
        return Ok(Outcome::After(wait));
    }
    let selector = deployment.spec.as_ref().and_then(|s| meta::selector(&s.selector));
    let Some(selector) = selector else { return Ok(Outcome::Done) };
    if selector.selects_all() {
        let message = "This deployment is selecting all pods. A non-empty selector is required.".into();
        ctx.recorder.warning(COMPONENT, Regarding::of(&*deployment), "SelectingAll", message);
        return Ok(Outcome::Done);
    }
    let sets = ctx.informers.replica_sets.list_in(&key.namespace);
    let sets = claim(ctx, &*deployment, &selector, sets).await?;
    let recreate_blocked = old_pods_run(ctx, &deployment, &sets);
    let working = sets.iter().map(|s| (**s).clone()).collect();
    let plan = plan(&deployment, working, recreate_blocked, Timestamp::now());
    let writer = Writer { ctx, expectations, key: &key, deployment: &deployment, sets: &sets };
    for action in &plan.actions {
        if let Some(status) = writer.act(action, &plan.status).await? {
            // A name collision: the status carries the new count, the next run makes another name.
            writer.write_status(status).await?;
            return Ok(Outcome::Retry);
        }
    }
    writer.write_status(plan.status).await?;
    Ok(plan.after.map_or(Outcome::Done, Outcome::After))
}

struct Writer<'a> {
    ctx: &'a Context,
    expectations: &'a Expected,
    key: &'a ObjectKey,
    deployment: &'a Deployment,
    sets: &'a [Arc<ReplicaSet>],
}

impl Writer<'_> {
    /// Writes one action. `Some(status)` when the name of the new ReplicaSet is taken by another one.
    async fn act(
        &self,
        action: &Action,
        status: &DeploymentStatus,
    ) -> Result<Option<DeploymentStatus>, Error> {
        let sets = self.ctx.api::<ReplicaSet>(&self.key.namespace);
        match action {
            Action::Create(set) => return self.create(set, status).await,
            Action::Update { set, annotations, min_ready } => {
                let change = json!({"spec": {"minReadySeconds": min_ready}});
                self.patch_set(set, annotations, change).await?;
            }
            Action::Scale { set, from, to, annotations } => {
                self.patch_set(set, annotations, json!({"spec": {"replicas": to}})).await?;
                self.say_scaled(set, *from, *to);
            }
            Action::Delete { set, uid } => {
                let deleted = unless_gone(sets.delete(set, &delete_uid(uid)).await);
                deleted.doing("delete replica set", set)?;
            }
            Action::Revision(revision) => {
                let change = json!({"metadata": {"annotations": {revision::REVISION: revision}}});
                let api = self.ctx.api::<Deployment>(&self.key.namespace);
                let done = api.patch(&self.key.name, &patch(), &Patch::Merge(change)).await;
                let done = done.doing("write the revision of deployment", self.key)?;
                self.expectations.deployments.wrote(self.key, done.metadata.resource_version);
            }
        }
        Ok(None)
    }

    fn say_scaled(&self, set: &str, from: i32, to: i32) {
        let word = match to.cmp(&from) {
            std::cmp::Ordering::Greater => "up",
            std::cmp::Ordering::Less => "down",
            std::cmp::Ordering::Equal => return,
        };
        let message = format!("Scaled {word} replica set {set} from {from} to {to}");
        let regarding = Regarding::of(self.deployment);
        self.ctx.recorder.normal(COMPONENT, regarding, "ScalingReplicaSet", message);
    }

    async fn patch_set(
        &self,
        name: &str,
        annotations: &meta::Map,
        mut change: serde_json::Value,
    ) -> Result<(), Error> {
        let known = self.sets.iter().find(|s| meta::name(&s.metadata) == name);
        let known = known.map(|s| meta::annotations(&s.metadata));
        let same = |(key, value): &(&String, &String)| known.and_then(|k| k.get(*key)) == Some(*value);
        let changed: meta::Map =
            annotations.iter().filter(|kv| !same(kv)).map(|(k, v)| (k.clone(), v.clone())).collect();
        change["metadata"] = json!({"annotations": changed});
        let api = self.ctx.api::<ReplicaSet>(&self.key.namespace);
        let written = api.patch(name, &patch(), &Patch::Merge(change)).await;
        let written = written.doing("update replica set", &name)?;
        self.expectations.sets.wrote(self.key, written.metadata.resource_version);
        Ok(())
    }

    async fn create(
        &self,
        set: &ReplicaSet,
        status: &DeploymentStatus,
    ) -> Result<Option<DeploymentStatus>, Error> {
        let api = self.ctx.api::<ReplicaSet>(&self.key.namespace);
        let name = meta::name(&set.metadata);
        match api.create(&post(), set).await {
            Ok(made) => {
                self.expectations.sets.wrote(self.key, made.metadata.resource_version);
                self.say_scaled(name, 0, wish::size(set));
                Ok(None)
            }
            Err(error) if is_already_exists(&error) => {
                let there = api.get(name).await.doing("read replica set", &name)?;
                let ours = meta::controlled_by(&there.metadata, meta::uid(&self.deployment.metadata));
                let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
                if ours && revision::same_template(&there, &template) {
                    return Ok(None);
                }
                let mut status = status.clone();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                Ok(Some(status))
            }
            Err(error) => {
                self.say_not_created(name, &error, status).await;
                Err(error).doing("create replica set", &name)
            }
        }
    }

    /// The condition by which users learn why nothing happens (a quota, say); best effort, the run fails anyway.
    async fn say_not_created(&self, name: &str, error: &kube::Error, status: &DeploymentStatus) {
        if self.deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds).is_none() {
            return;
        }
        let mut conditions = status::Conditions(status.conditions.clone().unwrap_or_default());
        let message = format!("Failed to create new replica set \"{name}\": {}", message_of(error));
        conditions.set(status::PROGRESSING, "False", "ReplicaSetCreateError", message, Timestamp::now());
        let status = DeploymentStatus { conditions: Some(conditions.0), ..status.clone() };
        if let Err(error) = self.write_status(status).await {
            tracing::debug!(key = %self.key, %error, "status not written");
        }
    }

    async fn write_status(&self, status: DeploymentStatus) -> Result<(), Error> {
        if self.deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        // A patch of the status alone: the actions may have changed the object's version meanwhile.
        let old = self.deployment.status.as_ref();
        let change = status_patch(self.deployment.metadata.uid.as_ref(), old, &status);
        let api = self.ctx.api::<Deployment>(&self.key.namespace);
        let done = api.patch_status(&self.key.name, &patch(), &Patch::Merge(change)).await;
        if let Some(done) = unless_gone(done).doing("write status of deployment", self.key)? {
            self.expectations.deployments.wrote(self.key, done.metadata.resource_version);
        }
        Ok(())
    }
}
