//! StatefulSets: numbered Pods with names, claims and an order.
//!
//! [`plan`] decides, [`crate::history`] keeps the revisions. Claims are made and kept; a retention policy that deletes
//! them is not there.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Patch;
use serde_json::json;

use self::plan::{Action, Revision, missing_labels, plan, status};
use crate::expectations::Expectations;
use crate::history::{self, HASH_LABEL, History, Synced};
use crate::kit::{
    Context, Doing, Error, delete_uid, is_already_exists, is_conflict, is_namespace_terminating, message_of,
    patch, post, status_patch, unless_gone,
};
use crate::podcontrol::claim;
use crate::{meta, pods};

const COMPONENT: &str = "statefulset-controller";

/// Runs the StatefulSet controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.stateful_sets),
        ctx.ready(&informers.pods),
        ctx.ready(&informers.revisions)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let expectations = Expectations::default();
    tokio::join!(
        ctx.feed(&informers.stateful_sets, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.pods, &queue, owner_of),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, &expectations, key)),
    );
}

fn owner_of(change: &Change<Pod>) -> Option<ObjectKey> {
    let pod = change.object();
    let owner = meta::controller_of(&pod.metadata).filter(|r| r.kind == "StatefulSet")?;
    Some(ObjectKey::new(meta::namespace(&pod.metadata), &*owner.name))
}

async fn reconcile(ctx: &Context, expectations: &Expectations, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(set) = ctx.informers.stateful_sets.get_key(&key) else {
        expectations.forget(&key);
        return Ok(Outcome::Done);
    };
    if let Some(wait) = expectations.pending(&key, &ctx.informers.pods) {
        return Ok(Outcome::After(wait));
    }
    let Some(selector) = set.spec.as_ref().and_then(|s| meta::selector(&s.selector)) else {
        return Ok(Outcome::Done);
    };
    let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let old = set.status.clone().unwrap_or_default();
    let history = match history::sync(ctx, &*set, &template, old.collision_count.filter(|n| *n != 0)).await? {
        Synced::History(history) => history,
        Synced::Collision => {
            let count = old.collision_count.unwrap_or(0) + 1;
            write_status(ctx, &set, StatefulSetStatus { collision_count: Some(count), ..old }).await?;
            return Ok(Outcome::Retry);
        }
    };
    // Only Pods with one of our names can be ours.
    let mut candidates = ctx.informers.pods.list_in(&key.namespace);
    candidates.retain(|p| plan::ordinal(&key.name, meta::name(&p.metadata)).is_some());
    let owned = claim(ctx, &*set, &selector, candidates).await?;
    let (current, update) = revisions(&history, &old, template);
    let now = Timestamp::now();
    let writer = Writer { ctx, expectations, key: &key, set: &set };
    let mut acted = Ok(());
    for action in plan(&set, &owned, &current, &update, now) {
        acted = writer.act(action).await;
        if acted.is_err() {
            break;
        }
    }
    let new = status(&set, &owned, &current.name, &update.name, now);
    let settling = new.ready_replicas.unwrap_or(0) != new.available_replicas.unwrap_or(0);
    write_status(ctx, &set, new).await?;
    acted?;
    let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let live = |name: &str| {
        name == current.name
            || owned.iter().any(|p| meta::labels(&p.metadata).get(HASH_LABEL).is_some_and(|h| h == name))
    };
    history::trim(ctx, &history, limit, |r| live(meta::name(&r.metadata))).await?;
    Ok(if settling { Outcome::After(Duration::from_secs(1)) } else { Outcome::Done })
}

/// The revision that the status calls current (the wished one if that is lost), and the wished one.
fn revisions(
    history: &History,
    status: &StatefulSetStatus,
    template: k8s_openapi::api::core::v1::PodTemplateSpec,
) -> (Revision, Revision) {
    let update = Revision { name: meta::name(&history.current.metadata).to_owned(), template };
    let named = status.current_revision.as_deref();
    let stored = history.all.iter().find(|r| Some(meta::name(&r.metadata)) == named);
    let current = stored.and_then(|r| {
        let template = history::template_of(r)?;
        Some(Revision { name: meta::name(&r.metadata).to_owned(), template })
    });
    (current.unwrap_or_else(|| update.clone()), update)
}

struct Writer<'a> {
    ctx: &'a Context,
    expectations: &'a Expectations,
    key: &'a ObjectKey,
    set: &'a StatefulSet,
}

impl Writer<'_> {
    async fn act(&self, action: Action) -> Result<(), Error> {
        match action {
            Action::Create(pod, claims) => self.create(&pod, &claims).await,
            Action::Delete(pod) => self.delete(&pod).await,
            Action::Identify(pod) => self.identify(&pod).await,
        }
    }

    /// Upstream's wording: what was done to which object for which Pod, and how it went.
    fn say(&self, verb: &str, object: &str, error: Option<&kube::Error>) {
        let capital = if verb == "create" { "Create" } else { "Delete" };
        let (regarding, name) = (Regarding::of(self.set), &self.key.name);
        match error {
            None => {
                let message = format!("{verb} {object} in StatefulSet {name} successful");
                self.ctx.recorder.normal(COMPONENT, regarding, &format!("Successful{capital}"), message);
            }
            Some(error) if is_namespace_terminating(error) => {}
            Some(error) => {
                let why = message_of(error);
                let message = format!("{verb} {object} in StatefulSet {name} failed error: {why}");
                self.ctx.recorder.warning(COMPONENT, regarding, &format!("Failed{capital}"), message);
            }
        }
    }

    async fn create(&self, pod: &Pod, claims: &[PersistentVolumeClaim]) -> Result<(), Error> {
        let name = meta::name(&pod.metadata);
        for claim in claims {
            self.ensure_claim(claim, name).await?;
        }
        match self.ctx.api::<Pod>(&self.key.namespace).create(&post(), pod).await {
            Ok(made) => {
                self.expectations.wrote(self.key, made.metadata.resource_version);
                self.say("create", &format!("Pod {name}"), None);
                Ok(())
            }
            // The one of that name is still going, or not in the cache yet; its event brings us back.
            Err(error) if is_already_exists(&error) => Err(error).doing("create pod", &name),
            Err(error) => {
                self.say("create", &format!("Pod {name}"), Some(&error));
                Err(error).doing("create pod", &name)
            }
        }
    }

    async fn ensure_claim(&self, claim: &PersistentVolumeClaim, pod: &str) -> Result<(), Error> {
        let name = meta::name(&claim.metadata);
        let api = self.ctx.api::<PersistentVolumeClaim>(&self.key.namespace);
        if api.get_opt(name).await.doing("read claim", &name)?.is_some() {
            return Ok(());
        }
        let object = format!("Claim {name} Pod {pod}");
        match api.create(&post(), claim).await {
            Ok(_) => {
                self.say("create", &object, None);
                Ok(())
            }
            Err(error) if is_already_exists(&error) => Ok(()),
            Err(error) => {
                self.say("create", &object, Some(&error));
                Err(error).doing("create claim", &name)
            }
        }
    }

    async fn delete(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        let name = meta::name(&pod.metadata);
        if pods::finished(pod) {
            let failed = pods::phase(pod) == "Failed";
            let word = if failed { "Failed" } else { "Terminated" };
            let message =
                format!("StatefulSet {} is recreating {} Pod {name}", self.key, word.to_lowercase());
            let (regarding, reason) = (Regarding::of(self.set), format!("Recreating{word}Pod"));
            if failed {
                self.ctx.recorder.warning(COMPONENT, regarding, &reason, message);
            } else {
                self.ctx.recorder.normal(COMPONENT, regarding, &reason, message);
            }
        }
        let api = self.ctx.api::<Pod>(&self.key.namespace);
        let uid = meta::uid(&pod.metadata);
        match unless_gone(api.delete(name, &delete_uid(uid)).await) {
            Ok(_) => {
                self.expectations.deleted(self.key, ObjectKey::of(&**pod), uid);
                self.say("delete", &format!("Pod {name}"), None);
                Ok(())
            }
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => {
                self.say("delete", &format!("Pod {name}"), Some(&error));
                Err(error).doing("delete pod", &name)
            }
        }
    }

    async fn identify(&self, pod: &Pod) -> Result<(), Error> {
        let name = meta::name(&pod.metadata);
        let labels: meta::Map = missing_labels(&self.key.name, pod).into_iter().collect();
        let change = json!({"metadata": {"uid": pod.metadata.uid, "labels": labels}});
        let api = self.ctx.api::<Pod>(&self.key.namespace);
        unless_gone(api.patch(name, &patch(), &Patch::Merge(change)).await).doing("label pod", &name)?;
        Ok(())
    }
}

async fn write_status(ctx: &Context, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), Error> {
    if set.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let key = ObjectKey::of(set);
    let change = status_patch(set.metadata.uid.as_ref(), set.status.as_ref(), &status);
    let api = ctx.api::<StatefulSet>(&key.namespace);
    unless_gone(api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await)
        .doing("write status of stateful set", &key)?;
    Ok(())
}
