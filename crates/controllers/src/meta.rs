//! Small readings of object metadata, owner references and selectors that every controller needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

/// Labels or annotations.
pub(crate) type Map = BTreeMap<String, String>;

static EMPTY: Map = Map::new();

/// The labels, empty if there are none.
pub(crate) fn labels(meta: &ObjectMeta) -> &Map {
    meta.labels.as_ref().unwrap_or(&EMPTY)
}

/// The annotations, empty if there are none.
pub(crate) fn annotations(meta: &ObjectMeta) -> &Map {
    meta.annotations.as_ref().unwrap_or(&EMPTY)
}

/// One annotation as a number.
pub(crate) fn annotation_number(meta: &ObjectMeta, key: &str) -> Option<i64> {
    annotations(meta).get(key)?.parse().ok()
}

/// The uid; empty before the server has seen the object.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The name; empty before the server has chosen one.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The namespace; empty for cluster-scoped objects.
pub(crate) fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// Whether deletion has begun.
pub(crate) fn deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// When the object was made; the epoch if the server has not said.
pub(crate) fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0)
}

/// The reference marked `controller`.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// Whether `meta` is controlled by the object of that uid.
pub(crate) fn controlled_by(meta: &ObjectMeta, owner_uid: &str) -> bool {
    controller_of(meta).is_some_and(|r| r.uid == owner_uid)
}

/// The reference that a controller writes into what it makes or adopts.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(owner.meta()).to_owned(),
        uid: uid(owner.meta()).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A selector, or `None` if it is malformed (and so selects nothing).
pub(crate) fn selector(selector: &LabelSelector) -> Option<Selector> {
    selector.clone().try_into().ok()
}

/// The selector of a plain map.
pub(crate) fn map_selector(map: &Map) -> Selector {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Objects that a controller owns, should adopt, and should let go.
pub(crate) struct Claims<K> {
    pub owned: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

/// Sorts candidates by the rule of controller references: what is ours and still matches is kept, what is ours and
/// no longer matches is let go, what matches and belongs to nobody is taken; never anything of another controller.
pub(crate) fn claim<K: Resource>(
    owner: &ObjectMeta,
    selector: &Selector,
    candidates: Vec<Arc<K>>,
) -> Claims<K> {
    let mut claims = Claims { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for candidate in candidates {
        let meta = candidate.meta();
        let matches = selector.matches(labels(meta));
        match controller_of(meta) {
            Some(r) if r.uid != uid(owner) => {}
            Some(_) if matches => claims.owned.push(candidate),
            Some(_) if !deleting(owner) => claims.release.push(candidate),
            None if matches && !deleting(owner) && !deleting(meta) => claims.adopt.push(candidate),
            _ => {}
        }
    }
    claims
}

/// A merge patch that sets the owner references of exactly this version of the object.
fn owners_patch(meta: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    json!({"metadata": {
        "uid": uid(meta), "resourceVersion": meta.resource_version, "ownerReferences": owners,
    }})
}

/// The patch by which `owner` takes an object.
pub(crate) fn adopt_patch(meta: &ObjectMeta, owner: OwnerReference) -> Value {
    let others = meta.owner_references.iter().flatten().filter(|r| r.uid != owner.uid).cloned();
    let mut owners: Vec<_> = others.collect();
    owners.push(owner);
    owners_patch(meta, &owners)
}

/// The patch by which the owner of that uid lets an object go.
pub(crate) fn release_patch(meta: &ObjectMeta, owner_uid: &str) -> Value {
    let others = meta.owner_references.iter().flatten().filter(|r| r.uid != owner_uid);
    owners_patch(meta, &others.cloned().collect::<Vec<_>>())
}

/// Now, as the API writes it.
pub(crate) fn time(now: Timestamp) -> Time {
    Time(now)
}

/// Zero is left out of statuses, as Go's `omitempty` does.
pub(crate) fn some_unless_zero(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// A number, or a percentage of `total` rounded up or down; malformed counts as zero.
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            let product = percent * i64::from(total);
            let part = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let p = IntOrString::String("25%".into());
        assert_eq!((scaled(&p, 10, true), scaled(&p, 10, false), scaled(&p, 0, true)), (3, 2, 0));
        assert_eq!(scaled(&IntOrString::Int(4), 10, true), 4);
        assert_eq!(scaled(&IntOrString::String("x".into()), 10, true), 0);
    }
}
