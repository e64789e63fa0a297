//! Objects that skiff itself puts into the cluster (DNS): created, or brought to what this version wants.

use anyhow::Context;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Client, ResourceExt};
use serde_json::Value;

/// Creates each object; one that is there already is merged with what is wanted, except a ConfigMap: that is the
/// user's once it exists (the Corefile is made to be edited).
///
/// # Errors
/// Names the object that was refused.
pub async fn apply(client: &Client, manifests: Vec<Value>) -> anyhow::Result<()> {
    for manifest in manifests {
        let object: DynamicObject = serde_json::from_value(manifest.clone()).context("a manifest of ours")?;
        let kind = object.types.clone().unwrap_or(TypeMeta { api_version: "v1".into(), kind: String::new() });
        let gvk = GroupVersionKind::try_from(&kind).context("a manifest of ours")?;
        let resource = ApiResource::from_gvk(&gvk);
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let name = object.name_any();
        let known = api.get_opt(&name).await;
        let outcome = match known {
            Ok(None) => api.create(&PostParams::default(), &object).await.map(drop),
            Ok(Some(_)) if kind.kind == "ConfigMap" => Ok(()),
            Ok(Some(_)) => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&manifest)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        outcome.map_err(said).with_context(|| format!("create {} {name}", kind.kind))?;
    }
    Ok(())
}

/// The server's own words, without the client's wrapping.
fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!(status.message),
        other => other.into(),
    }
}
