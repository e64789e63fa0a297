//! An object as the collector sees it.
//!
//! Asking for metadata only would make the API server write each event anew; what all other watchers get is written
//! once. So the collector takes whole objects, too, and passes over what it does not look at without keeping it: of the
//! metadata most of all `managedFields`, which is often half of an object.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::Deserialize;

/// An object of any kind: who it is, whose it is, and whether it is on its way out.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Read")]
pub(super) struct Item {
    pub metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct Read {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Read> for Item {
    fn from(Read { metadata: read }: Read) -> Self {
        let metadata = ObjectMeta {
            name: read.name,
            namespace: read.namespace,
            uid: read.uid,
            resource_version: read.resource_version,
            deletion_timestamp: read.deletion_timestamp,
            finalizers: read.finalizers,
            owner_references: read.owner_references,
            ..ObjectMeta::default()
        };
        Self { metadata }
    }
}

impl Resource for Item {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_object_is_read_without_what_nobody_looks_at() {
        let text = r#"{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "ns", "uid": "u",
            "resourceVersion": "7", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"],
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "o",
                "blockOwnerDeletion": true}],
            "labels": {"app": "web"}, "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"containers": []}}"#;
        let meta = serde_json::from_str::<Item>(text).unwrap().metadata;
        assert_eq!((meta.name.as_deref(), meta.uid.as_deref()), (Some("a"), Some("u")));
        assert_eq!(meta.resource_version.as_deref(), Some("7"));
        assert!(meta.deletion_timestamp.is_some() && meta.finalizers.is_some());
        let owner = &meta.owner_references.unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.block_owner_deletion), ("o", Some(true)));
        assert_eq!((meta.labels, meta.managed_fields), (None, None));
    }
}
