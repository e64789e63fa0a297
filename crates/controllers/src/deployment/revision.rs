//! Which ReplicaSet is the new one, revisions, and the annotations that carry both.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::wish::{DESIRED, MAX, Wish};
use crate::hash::template_hash;
use crate::meta::{self, Map};

/// The revision, on Deployments and ReplicaSets.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The label that keeps ReplicaSets of one Deployment apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.take().filter(|l| !l.is_empty());
        meta.creation_timestamp = None;
    }
    template
}

/// Whether a ReplicaSet runs this template.
pub(super) fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let theirs = set.spec.as_ref().and_then(|s| s.template.as_ref());
    theirs.is_some_and(|t| without_hash(t) == without_hash(template))
}

/// Splits the ReplicaSets into the new one (the oldest with the wished template) and the others.
pub(super) fn split(
    mut sets: Vec<ReplicaSet>,
    template: &PodTemplateSpec,
) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    sets.sort_by(|a, b| age(a).cmp(&age(b)));
    let new = sets.iter().position(|s| same_template(s, template)).map(|at| sets.remove(at));
    (new, sets)
}

/// Sorts by age, oldest first.
pub(super) fn age(set: &ReplicaSet) -> (jiff::Timestamp, &str) {
    (meta::created(&set.metadata), meta::name(&set.metadata))
}

/// The revision of a ReplicaSet, 0 if it has none.
pub(super) fn revision(set: &ReplicaSet) -> i64 {
    meta::annotation_number(&set.metadata, REVISION).unwrap_or(0)
}

/// The annotations that the new ReplicaSet should have; a ReplicaSet that becomes the new one again (a rollback)
/// takes the newest number and remembers its old ones.
pub(super) fn new_set_annotations(
    deployment: &Deployment,
    wish: &Wish,
    current: &Map,
    next: i64,
    is_new: bool,
) -> Map {
    let mut wanted = current.clone();
    let own = meta::annotations(&deployment.metadata).iter();
    wanted
        .extend(own.filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())));
    let old = current.get(REVISION).cloned();
    let old_number: i64 = old.as_ref().and_then(|r| r.parse().ok()).unwrap_or(0);
    if old_number < next {
        wanted.insert(REVISION.into(), next.to_string());
        if let Some(old) = old.filter(|r| !r.is_empty()) {
            let history = wanted.entry(HISTORY.into()).or_default();
            // Long histories lose their oldest entries.
            while history.len() + old.len() > 2000 && !history.is_empty() {
                *history = history.split_once(',').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            }
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old);
        }
    }
    if is_new {
        wanted.extend(size_annotations(wish));
    }
    wanted
}

/// What each sized ReplicaSet says about the Deployment's size.
pub(super) fn size_annotations(wish: &Wish) -> [(String, String); 2] {
    [(DESIRED.into(), wish.replicas.to_string()), (MAX.into(), (wish.replicas + wish.max_surge).to_string())]
}

/// A ReplicaSet for the wished template, of size 0; `collisions` as counted in the Deployment's status.
pub(super) fn make(deployment: &Deployment, wish: &Wish, next: i64, collisions: Option<i32>) -> ReplicaSet {
    let hash = template_hash(&without_hash(&wish.template), collisions);
    let mut template = wish.template.clone();
    let template_meta = template.metadata.get_or_insert_default();
    template_meta.labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut selector = deployment.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", meta::name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            labels: template_meta.labels.clone(),
            annotations: Some(new_set_annotations(deployment, wish, &Map::new(), next, true)),
            owner_references: Some(vec![meta::controller_ref(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: (wish.min_ready != 0).then_some(wish.min_ready),
            selector,
            template: Some(template),
        }),
        status: None,
    }
}
