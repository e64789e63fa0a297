//! Objects that skiff itself puts into the cluster: created, or brought to what this version wants; the DNS always,
//! the rest when a user says so.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::control::AddonLine;

/// How long an add-on may take to run, or to be gone.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// Who made an object.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Something that users add to their cluster.
struct Addon {
    name: &'static str,
    maintainer: &'static str,
    /// The Deployment that does its work; all other objects in its namespace are its own as well.
    namespace: &'static str,
    deployment: &'static str,
    manifests: fn(&str, &[IpAddr]) -> anyhow::Result<Vec<Value>>,
}

const ADDONS: [Addon; 1] = [Addon {
    name: "ingress",
    maintainer: "skiff",
    namespace: ingress::addon::NAMESPACE,
    deployment: ingress::addon::NAME,
    manifests: |image, addresses| {
        ingress::addon::manifests(image, addresses).context("make a certificate for the check at admission")
    },
}];

impl Addon {
    fn find(name: &str) -> anyhow::Result<&'static Self> {
        let known = || ADDONS.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
        let found = ADDONS.iter().find(|a| a.name == name);
        found.with_context(|| format!("there is no add-on {name:?}; there are: {}", known()))
    }

    fn deployments(&self, client: &Client) -> Api<Deployment> {
        Api::namespaced(client.clone(), self.namespace)
    }

    /// Its Deployment, whoever made it.
    async fn deployment(&self, client: &Client) -> anyhow::Result<Option<Deployment>> {
        let found = self.deployments(client).get_opt(self.deployment).await;
        found.map_err(said).with_context(|| format!("read Deployment {}", self.deployment))
    }

    /// All its objects; they name the addresses of the control plane's node.
    async fn objects(&self, client: &Client) -> anyhow::Result<Vec<Value>> {
        let nodes = Api::<Node>::all(client.clone());
        let main = ListParams::default().labels(ingress::addon::NODE_LABEL);
        let nodes = nodes.list(&main).await.map_err(said).context("list the control plane's node")?;
        let rows = nodes.items.iter().flat_map(|node| &node.status).flat_map(|s| &s.addresses).flatten();
        let internal = rows.filter(|row| row.type_ == "InternalIP");
        let addresses: Vec<IpAddr> = internal.filter_map(|row| row.address.parse().ok()).collect();
        (self.manifests)(cluster::BUILTIN_IMAGE, &addresses)
    }

    async fn enabled(&self, client: &Client) -> anyhow::Result<bool> {
        Ok(self.deployment(client).await?.is_some_and(|d| ours(&d)))
    }
}

/// Whether skiff made an object.
fn ours(object: &impl ResourceExt) -> bool {
    object.labels().get(MANAGED_BY).is_some_and(|by| by == "skiff")
}

/// All add-ons, and which are there.
///
/// # Errors
/// When the API does not say.
pub async fn list(client: &Client) -> anyhow::Result<Vec<AddonLine>> {
    let mut lines = Vec::new();
    for addon in &ADDONS {
        lines.push(AddonLine {
            name: addon.name.to_owned(),
            enabled: addon.enabled(client).await?,
            maintainer: addon.maintainer.to_owned(),
            namespace: addon.namespace.to_owned(),
        });
    }
    Ok(lines)
}

/// Adds an add-on and waits until it runs.
///
/// # Errors
/// An unknown name, somebody else's objects under its names, or that it does not come to run.
pub async fn enable(client: &Client, name: &str) -> anyhow::Result<()> {
    let addon = Addon::find(name)?;
    let Addon { namespace, deployment, .. } = addon;
    let manifests = addon.objects(client).await?;
    for manifest in &manifests {
        let (api, kind, object) = of(client, manifest)?;
        let name = object.name_any();
        let found = api.get_opt(&name).await.map_err(said).with_context(|| format!("read {kind} {name}"))?;
        if found.is_some_and(|found| !ours(&found)) {
            bail!("{kind} {name} is there and not skiff's; remove it first, or keep what it belongs to");
        }
    }
    apply(client, manifests).await?;
    let available = async {
        loop {
            let status = addon.deployment(client).await?.and_then(|d| d.status);
            if status.and_then(|s| s.available_replicas).unwrap_or(0) > 0 {
                return anyhow::Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, available).await;
    waited.with_context(|| {
        format!(
            "Deployment {deployment} is not available after {PATIENCE:?}; see: kubectl describe pods -n {namespace}"
        )
    })?
}

/// Brings the add-ons that are there to what this version of skiff wants: the daemon may be a newer one than the one
/// that added them.
///
/// # Errors
/// When the API does not say which are there, or refuses an object.
pub async fn refresh(client: &Client) -> anyhow::Result<()> {
    for addon in &ADDONS {
        if addon.enabled(client).await? {
            apply(client, addon.objects(client).await?).await?;
        }
    }
    Ok(())
}

/// Removes an add-on: its Deployment first, whose Pods still need their rights to say goodbye.
///
/// # Errors
/// An unknown name, somebody else's objects under its names, or that an object does not go.
pub async fn disable(client: &Client, name: &str) -> anyhow::Result<()> {
    let addon = Addon::find(name)?;
    for manifest in addon.objects(client).await?.into_iter().rev() {
        let (api, kind, object) = of(client, &manifest)?;
        let name = object.name_any();
        let gone = tokio::time::timeout(PATIENCE, remove(&api, &name)).await;
        gone.with_context(|| format!("{kind} {name} is not gone after {PATIENCE:?}"))?
            .with_context(|| format!("delete {kind} {name}"))?;
    }
    Ok(())
}

/// Deletes an object of ours with what depends on it, and waits until it is gone.
async fn remove(api: &Api<DynamicObject>, name: &str) -> anyhow::Result<()> {
    while let Some(found) = api.get_opt(name).await.map_err(said)? {
        if !ours(&found) {
            bail!("it is not skiff's");
        }
        if found.metadata.deletion_timestamp.is_none() {
            match api.delete(name, &DeleteParams::foreground()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                other => other.map(drop).map_err(said)?,
            }
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// A manifest of ours as an object, and where it belongs.
fn of(client: &Client, manifest: &Value) -> anyhow::Result<(Api<DynamicObject>, String, DynamicObject)> {
    let object: DynamicObject = serde_json::from_value(manifest.clone()).context("a manifest of ours")?;
    let types = object.types.clone();
    let kind = types.unwrap_or(TypeMeta { api_version: "v1".into(), kind: String::new() });
    let gvk = GroupVersionKind::try_from(&kind).context("a manifest of ours")?;
    let resource = ApiResource::from_gvk(&gvk);
    let api = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    Ok((api, kind.kind, object))
}

/// Creates each object; one that is there already is merged with what is wanted, except a ConfigMap: that is the
/// user's once it exists (the Corefile is made to be edited).
///
/// # Errors
/// Names the object that was refused.
pub async fn apply(client: &Client, manifests: Vec<Value>) -> anyhow::Result<()> {
    for manifest in manifests {
        let (api, kind, object) = of(client, &manifest)?;
        let name = object.name_any();
        let known = api.get_opt(&name).await;
        let outcome = match known {
            Ok(None) => api.create(&PostParams::default(), &object).await.map(drop),
            Ok(Some(_)) if kind == "ConfigMap" => Ok(()),
            Ok(Some(_)) => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&manifest)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        outcome.map_err(said).with_context(|| format!("create {kind} {name}"))?;
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
