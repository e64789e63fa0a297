//! Deletion of namespaces: everything in them first, then the finalizer.
//!
//! The kinds come from discovery, so custom resources go as well. Pods that shut down gracefully are waited for by
//! their events; what else takes time (finalizers of others) is looked at again with growing pauses. The conditions
//! tell what is in the way, with upstream's reasons.

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Change, ObjectKey, Outcome, WorkQueue};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use kube::api::{DeleteParams, ListParams, Patch, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use serde_json::json;

use crate::catalog::{Catalog, Kind, discover};
use crate::kit::{Context, Doing, Error, is_not_found, message_of, patch, unless_gone};
use crate::meta;

const COMPONENT: &str = "namespace-controller";
const FINALIZER: &str = "kubernetes";

/// Runs the namespace controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    if futures::try_join!(ctx.ready(&informers.namespaces), ctx.ready(&informers.pods)).is_err() {
        return;
    }
    let queue = WorkQueue::new();
    tokio::join!(
        ctx.feed(&informers.namespaces, &queue, |change| {
            let namespace = change.object();
            meta::deleting(&namespace.metadata).then(|| ObjectKey::of(&**namespace))
        }),
        ctx.feed(&informers.pods, &queue, |change| {
            let Change::Deleted(pod) = change else { return None };
            let home = ctx.informers.namespaces.get("", meta::namespace(&pod.metadata))?;
            meta::deleting(&home.metadata).then(|| ObjectKey::of(&*home))
        }),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, key)),
    );
}

/// What is left in a namespace and what went wrong in deleting it.
#[derive(Debug, Default)]
struct Remains {
    discovery: Vec<String>,
    failures: Vec<String>,
    /// resource.group -> objects left
    objects: BTreeMap<String, usize>,
    /// finalizer -> objects that carry it
    finalizers: BTreeMap<String, usize>,
}

impl Remains {
    fn is_clean(&self) -> bool {
        self.discovery.is_empty() && self.failures.is_empty() && self.objects.is_empty()
    }
}

async fn reconcile(ctx: &Context, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(namespace) = ctx.informers.namespaces.get_key(&key) else { return Ok(Outcome::Done) };
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !meta::deleting(&namespace.metadata) || !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Outcome::Done);
    }
    let catalog = match discover(&ctx.client).await {
        Ok(catalog) => catalog,
        Err(error) => Catalog { kinds: Vec::new(), failures: vec![message_of(&error)] },
    };
    let remains = empty(&ctx.client, &key.name, catalog).await;
    if remains.is_clean() {
        let rest: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
        finalize(ctx, &namespace, &rest).await?;
        return Ok(Outcome::Done);
    }
    write_conditions(ctx, &namespace, &remains).await?;
    if !remains.failures.is_empty() || !remains.discovery.is_empty() {
        return Ok(Outcome::Retry);
    }
    // Pods wake us by their events; anything else is worth another look soon.
    let only_pods = remains.objects.keys().all(|r| r == "pods.");
    Ok(Outcome::After(if only_pods { Duration::from_secs(5) } else { Duration::from_millis(500) }))
}

/// Deletes all that is there, kind by kind, and counts what stays.
async fn empty(client: &Client, namespace: &str, catalog: Catalog) -> Remains {
    let mut remains = Remains { discovery: catalog.failures, ..Remains::default() };
    let kinds = catalog.kinds.iter().filter(|k| k.namespaced && k.can(&["list", "delete"]));
    let (pods, others): (Vec<&Kind>, Vec<&Kind>) = kinds.partition(|k| k.resource.plural == "pods");
    // Pods first, and nothing else while one runs: it may need its ConfigMaps, and its NetworkPolicies protect it.
    for kind in pods.into_iter().chain(others) {
        if kind.resource.plural != "pods" && remains.objects.contains_key("pods.") {
            break;
        }
        if let Err(error) = empty_kind(client, namespace, kind, &mut remains).await {
            remains.failures.push(message_of(&error));
        }
    }
    remains
}

async fn empty_kind(
    client: &Client,
    namespace: &str,
    kind: &Kind,
    remains: &mut Remains,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource);
    let there = match api.list_metadata(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(error) if is_not_found(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    if there.is_empty() {
        return Ok(());
    }
    let background =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    if kind.can(&["deletecollection"]) {
        delete_collection(client, namespace, kind).await?;
    } else {
        for object in &there {
            unless_gone(api.delete(meta::name(&object.metadata), &background).await)?;
        }
    }
    count(&api.list_metadata(&ListParams::default()).await?.items, kind, remains);
    Ok(())
}

/// One request for all; the answer (a list or a Status) does not matter.
async fn delete_collection(client: &Client, namespace: &str, kind: &Kind) -> Result<(), kube::Error> {
    let base: String = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind.resource)
        .resource_url()
        .to_owned();
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    let request = Request::delete(base)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(options.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request_text(request).await.map(|_| ())
}

fn count(left: &[PartialObjectMeta<DynamicObject>], kind: &Kind, remains: &mut Remains) {
    if left.is_empty() {
        return;
    }
    let resource = format!("{}.{}", kind.resource.plural, kind.resource.group);
    *remains.objects.entry(resource).or_default() += left.len();
    for finalizer in left.iter().flat_map(|o| o.metadata.finalizers.iter().flatten()) {
        *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
}

async fn finalize(ctx: &Context, namespace: &Namespace, rest: &[String]) -> Result<(), Error> {
    let name = meta::name(&namespace.metadata);
    let body = json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": name, "uid": namespace.metadata.uid},
        "spec": {"finalizers": rest},
    });
    let request = Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)
        .doing("finalize namespace", &name)?;
    unless_gone(ctx.client.request_text(request).await).doing("finalize namespace", &name)?;
    Ok(())
}

/// Upstream's five conditions, True when something is in the way.
fn conditions(old: &[NamespaceCondition], remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let some = |text: String, prefix: &str| (!text.is_empty()).then(|| format!("{prefix}{text}"));
    let left: Vec<String> =
        remains.objects.iter().map(|(what, n)| format!("{what} has {n} resource instances")).collect();
    let left = some(left.join(", "), "Some resources are remaining: ");
    let waiting: Vec<String> =
        remains.finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            some(remains.discovery.join(", "), "Discovery failed for some groups: "),
            ("DiscoveryFailed", "ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("GroupVersionParsingFailed", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            some(remains.failures.join(", "), "Failed to delete all resource types, "),
            (
                "ContentDeletionFailed",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            left,
            ("SomeResourcesRemain", "ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            some(waiting.join(", "), "Some content in the namespace has finalizers remaining: "),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let make = |(type_, trouble, (bad, good, fine)): (&str, Option<String>, (&str, &str, &str))| {
        let status = if trouble.is_some() { "True" } else { "False" };
        let known = old.iter().find(|c| c.type_ == type_ && c.status == status);
        let since = known.and_then(|c| c.last_transition_time.clone()).unwrap_or_else(|| meta::time(now));
        NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(if trouble.is_some() { bad } else { good }.into()),
            message: Some(trouble.unwrap_or_else(|| fine.into())),
            last_transition_time: Some(since),
        }
    };
    rows.into_iter().map(make).collect()
}

async fn write_conditions(ctx: &Context, namespace: &Namespace, remains: &Remains) -> Result<(), Error> {
    let old = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let new = conditions(&old, remains, Timestamp::now());
    if new == old {
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(ctx.client.clone());
    let name = meta::name(&namespace.metadata);
    let change = json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"conditions": new}});
    unless_gone(api.patch_status(name, &patch(), &Patch::Merge(change)).await)
        .doing("write status of namespace", &name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_in_the_way() {
        let remains = Remains {
            objects: [("pods.".to_owned(), 2), ("widgets.example.com".to_owned(), 1)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Remains::default()
        };
        let made = conditions(&[], &remains, Timestamp::UNIX_EPOCH);
        let show: Vec<String> = made
            .iter()
            .map(|c| format!("{}={} {}", c.type_, c.status, c.message.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(
            show,
            [
                "NamespaceDeletionDiscoveryFailure=False All resources successfully discovered",
                "NamespaceDeletionGroupVersionParsingFailure=False All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure=False All content successfully deleted, may be waiting on finalization",
                "NamespaceContentRemaining=True Some resources are remaining: pods. has 2 resource instances, \
                 widgets.example.com has 1 resource instances",
                "NamespaceFinalizersRemaining=True Some content in the namespace has finalizers remaining: \
                 example.com/hold in 1 resource instances",
            ]
        );
        assert_eq!(conditions(&made, &remains, Timestamp::MAX), made);
    }
}
