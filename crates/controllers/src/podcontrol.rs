//! Creating, deleting, adopting and releasing Pods on behalf of a controller, with upstream's Events.

use std::sync::Arc;

use client::{ObjectKey, Regarding};
use futures::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::Patch;
use kube::core::Selector;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::expectations::Expectations;
use crate::kit::{
    Context, Doing, Error, delete_uid, is_conflict, is_namespace_terminating, is_not_found, message_of,
    patch, post, unless_gone,
};
use crate::meta;

/// What one run of a controller does to Pods, noted in its expectations.
pub(crate) struct PodControl<'a> {
    pub ctx: &'a Context,
    pub component: &'static str,
    pub expectations: &'a Expectations,
    pub key: &'a ObjectKey,
    pub regarding: Regarding,
}

impl PodControl<'_> {
    /// Creates `pods` in batches of 1, 2, 4, ... and stops after a batch with a failure: a quota or a broken template
    /// costs one refusal, not five hundred.
    pub async fn create(&self, pods: &[Pod]) -> Result<(), Error> {
        let mut rest = pods;
        let mut batch = 1;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let results = join_all(now.iter().map(|pod| self.create_one(pod))).await;
            results.into_iter().collect::<Result<Vec<()>, Error>>()?;
            rest = later;
            batch *= 2;
        }
        Ok(())
    }

    /// Creates one Pod; a namespace that is going away is no failure.
    pub async fn create_one(&self, pod: &Pod) -> Result<(), Error> {
        let api: Api<Pod> = self.ctx.api(&self.key.namespace);
        match api.create(&post(), pod).await {
            Ok(made) => {
                self.expectations.wrote(self.key, made.metadata.resource_version.clone());
                let message = format!("Created pod: {}", meta::name(&made.metadata));
                self.ctx.recorder.normal(self.component, self.regarding.clone(), "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let message = format!("Error creating: {}", message_of(&error));
                self.ctx.recorder.warning(self.component, self.regarding.clone(), "FailedCreate", message);
                Err(error).doing("create a pod of", self.key)
            }
        }
    }

    /// Deletes all `pods` side by side; the first failure is returned after all were tried.
    pub async fn delete(&self, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let results = join_all(pods.iter().map(|pod| self.delete_one(pod))).await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, pod: &Pod) -> Result<(), Error> {
        let (name, uid) = (meta::name(&pod.metadata), meta::uid(&pod.metadata));
        let api: Api<Pod> = self.ctx.api(&self.key.namespace);
        match unless_gone(api.delete(name, &delete_uid(uid)).await) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.expectations.deleted(self.key, ObjectKey::of(pod), uid);
                let message = format!("Deleted pod: {name}");
                self.ctx.recorder.normal(self.component, self.regarding.clone(), "SuccessfulDelete", message);
                Ok(())
            }
            // A namesake with another uid: ours is gone.
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => {
                let message = format!("Error deleting: {}", message_of(&error));
                self.ctx.recorder.warning(self.component, self.regarding.clone(), "FailedDelete", message);
                Err(error).doing("delete pod", &ObjectKey::of(pod))
            }
        }
    }
}

/// Takes and lets go of objects so that what is returned is exactly what `owner` owns; the owner is read live before
/// anything is adopted, because a cached owner may already be gone.
pub(crate) async fn claim<O, K>(
    ctx: &Context,
    owner: &O,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let claims = meta::claim(owner.meta(), selector, candidates);
    let mut owned = claims.owned;
    let api: Api<K> = ctx.api(meta::namespace(owner.meta()));
    for object in claims.release {
        let change = meta::release_patch(object.meta(), meta::uid(owner.meta()));
        let key = ObjectKey::of(&*object);
        unless_gone(api.patch(&key.name, &patch(), &Patch::Merge(change)).await).doing("release", &key)?;
    }
    if !claims.adopt.is_empty() && is_live(ctx, owner).await? {
        let reference: OwnerReference = meta::controller_ref(owner);
        for object in claims.adopt {
            let change = meta::adopt_patch(object.meta(), reference.clone());
            let key = ObjectKey::of(&*object);
            let adopted = api.patch(&key.name, &patch(), &Patch::Merge(change)).await;
            owned.extend(unless_gone(adopted).doing("adopt", &key)?.map(Arc::new));
        }
    }
    Ok(owned)
}

async fn is_live<O>(ctx: &Context, owner: &O) -> Result<bool, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let key = ObjectKey::of(owner);
    match ctx.api::<O>(&key.namespace).get(&key.name).await {
        Ok(live) => Ok(live.meta().uid == owner.meta().uid && !meta::deleting(live.meta())),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(error).doing("read the owner", &key),
    }
}
