//! ControllerRevisions: the versions of a template that DaemonSets and StatefulSets roll between.
//!
//! The stored data is the patch that `kubectl rollout undo` applies: the whole template, marked `$patch: replace`.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use kube::api::{ObjectMeta, Patch};
use serde_json::{Value, json};

use crate::hash::template_hash;
use crate::kit::{Context, Doing, Error, delete_uid, is_already_exists, patch, post, unless_gone};
use crate::meta;

/// The label that names a Pod's revision.
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";

/// The revision of the wished template, and all that there are.
pub(crate) struct History {
    pub current: Arc<ControllerRevision>,
    /// Sorted by revision, `current` included.
    pub all: Vec<Arc<ControllerRevision>>,
}

/// The template as a revision stores it.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision stores; `None` if somebody has broken it.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The value of [`HASH_LABEL`] for a revision of a DaemonSet.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    meta::labels(&revision.metadata).get(HASH_LABEL).map_or("", String::as_str)
}

/// What to write so that the wished template is the newest revision.
#[derive(Debug, PartialEq)]
enum Step {
    Keep(usize),
    /// An older revision becomes the newest: a rollback.
    Renumber(usize, i64),
    Create(Box<ControllerRevision>),
}

/// `owned` must be sorted by revision.
fn plan<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    owned: &[Arc<ControllerRevision>],
    collisions: Option<i32>,
) -> Step {
    let same = |r: &Arc<ControllerRevision>| template_of(r).as_ref() == Some(template);
    let newest = owned.last().map_or(0, |r| r.revision);
    match owned.iter().rposition(same) {
        Some(at) if owned[at].revision == newest => Step::Keep(at),
        Some(at) => Step::Renumber(at, newest + 1),
        None => Step::Create(Box::new(make(owner, template, newest + 1, collisions))),
    }
}

fn make<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    revision: i64,
    collisions: Option<i32>,
) -> ControllerRevision {
    let hash = template_hash(template, collisions);
    let mut labels = template.metadata.as_ref().map(|m| meta::labels(m).clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", meta::name(owner.meta()))),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            // kubectl shows the change cause from here.
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![meta::controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data_of(template))),
        revision,
    }
}

/// What came of [`sync`].
pub(crate) enum Synced {
    History(History),
    /// The name is taken by another template: count one collision and come again.
    Collision,
}

/// Makes sure that the wished template is the newest revision of `owner`.
pub(crate) async fn sync<O>(
    ctx: &Context,
    owner: &O,
    template: &PodTemplateSpec,
    collisions: Option<i32>,
) -> Result<Synced, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let namespace = meta::namespace(owner.meta());
    let uid = meta::uid(owner.meta());
    let mut owned = ctx.informers.revisions.list_in(namespace);
    owned.retain(|r| meta::controlled_by(&r.metadata, uid));
    owned.sort_by_key(|r| r.revision);
    let api = ctx.api::<ControllerRevision>(namespace);
    let current = match plan(owner, template, &owned, collisions) {
        Step::Keep(at) => owned[at].clone(),
        Step::Renumber(at, revision) => {
            let old = owned.remove(at);
            let name = meta::name(&old.metadata);
            let change = json!({"metadata": {"uid": old.metadata.uid}, "revision": revision});
            let new = api.patch(name, &patch(), &Patch::Merge(change)).await.doing("renumber", &name)?;
            owned.push(Arc::new(new));
            owned[owned.len() - 1].clone()
        }
        Step::Create(new) => {
            let name = meta::name(&new.metadata);
            let made = match api.create(&post(), &new).await {
                Err(error) if is_already_exists(&error) => {
                    let there = api.get(name).await.doing("read controller revision", &name)?;
                    let ours = meta::controlled_by(&there.metadata, uid);
                    if !ours || template_of(&there).as_ref() != Some(template) {
                        return Ok(Synced::Collision);
                    }
                    there
                }
                other => other.doing("create controller revision", &name)?,
            };
            owned.push(Arc::new(made));
            owned[owned.len() - 1].clone()
        }
    };
    Ok(Synced::History(History { current, all: owned }))
}

/// Deletes the oldest revisions beyond `limit` that `live` does not name.
pub(crate) async fn trim(
    ctx: &Context,
    history: &History,
    limit: i32,
    live: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Error> {
    let is_current = |r: &ControllerRevision| r.metadata.uid == history.current.metadata.uid;
    let idle: Vec<_> = history.all.iter().filter(|r| !is_current(r) && !live(r)).collect();
    let excess = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in &idle[..excess] {
        let name = meta::name(&revision.metadata);
        let api = ctx.api::<ControllerRevision>(meta::namespace(&revision.metadata));
        let deleted = api.delete(name, &delete_uid(meta::uid(&revision.metadata))).await;
        unless_gone(deleted).doing("delete controller revision", &name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use k8s_openapi::api::apps::v1::DaemonSet;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": image}]}})).unwrap()
    }

    #[test]
    fn revisions_are_made_kept_and_renumbered() {
        let mut owner = DaemonSet::default();
        owner.metadata.name = Some("ds".into());
        let Step::Create(one) = plan(&owner, &template("a"), &[], None) else { panic!("must create") };
        assert_eq!(one.revision, 1);
        assert_eq!(template_of(&one), Some(template("a")));
        assert_eq!(one.data.as_ref().unwrap().0["spec"]["template"]["$patch"], "replace");
        let one = Arc::new(*one);
        assert_eq!(plan(&owner, &template("a"), std::slice::from_ref(&one), None), Step::Keep(0));
        let Step::Create(two) = plan(&owner, &template("b"), std::slice::from_ref(&one), None) else {
            panic!("must create")
        };
        assert_eq!(plan(&owner, &template("a"), &[one, Arc::new(*two)], None), Step::Renumber(0, 3));
    }
}
