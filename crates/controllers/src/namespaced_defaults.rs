//! What every namespace gets: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

use client::{Change, Informer, ObjectKey, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{ObjectMeta, Patch};
use serde_json::json;

use crate::informers::ROOT_CA;
use crate::kit::{
    Context, Doing, Error, is_already_exists, is_namespace_terminating, is_not_found, patch, post,
};
use crate::meta;

const DEFAULT: &str = "default";

fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref());
    phase != Some("Terminating") && !meta::deleting(&namespace.metadata)
}

/// The namespaces to look at after one has changed.
fn changed(change: &Change<Namespace>) -> Option<ObjectKey> {
    is_active(change.object()).then(|| ObjectKey::of(&**change.object()))
}

/// The key of the namespace that holds an object.
fn home<K: kube::Resource>(object: &K) -> ObjectKey {
    ObjectKey::new("", meta::namespace(object.meta()))
}

/// Keeps a ServiceAccount `default` in every namespace until the stop.
pub(crate) async fn run_service_accounts(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(ctx.ready(&informers.namespaces), ctx.ready(&informers.service_accounts));
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    tokio::join!(
        ctx.feed(&informers.namespaces, &queue, changed),
        ctx.feed(&informers.service_accounts, &queue, |change| match change {
            Change::Deleted(gone) if meta::name(&gone.metadata) == DEFAULT => Some(home(&**gone)),
            _ => None,
        }),
        ctx.work("service-account-controller", 2, &queue, |key| ensure_account(&ctx, key)),
    );
}

async fn ensure_account(ctx: &Context, key: ObjectKey) -> Result<Outcome, Error> {
    let missing = ctx.informers.service_accounts.get(&key.name, DEFAULT).is_none();
    if !active(&ctx.informers.namespaces, &key) || !missing {
        return Ok(Outcome::Done);
    }
    let metadata = ObjectMeta { name: Some(DEFAULT.into()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata, ..ServiceAccount::default() };
    let made = ctx.api::<ServiceAccount>(&key.name).create(&post(), &account).await;
    settled(made).doing("create the default service account of", &key)?;
    Ok(Outcome::Done)
}

fn active(namespaces: &Informer<Namespace>, key: &ObjectKey) -> bool {
    namespaces.get_key(key).is_some_and(|n| is_active(&n))
}

/// That it is there already, or need not be there any more, is as good.
fn settled<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(e) if is_already_exists(&e) || is_not_found(&e) || is_namespace_terminating(&e) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Keeps the cluster's CA bundle in every namespace until the stop.
pub(crate) async fn run_root_ca(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(ctx.ready(&informers.namespaces), ctx.ready(&informers.root_cas));
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    tokio::join!(
        ctx.feed(&informers.namespaces, &queue, changed),
        ctx.feed(&informers.root_cas, &queue, |change| [home(&**change.object())]),
        ctx.work("root-ca-certificate-publisher", 2, &queue, |key| publish_ca(&ctx, key)),
    );
}

async fn publish_ca(ctx: &Context, key: ObjectKey) -> Result<Outcome, Error> {
    if !active(&ctx.informers.namespaces, &key) {
        return Ok(Outcome::Done);
    }
    let api = ctx.api::<ConfigMap>(&key.name);
    let data = [("ca.crt".to_owned(), ctx.config.ca_pem.clone())].into();
    match ctx.informers.root_cas.get(&key.name, ROOT_CA) {
        Some(map) if map.data.as_ref() == Some(&data) => {}
        Some(map) => {
            let others = map.data.iter().flatten().map(|(k, _)| (k.clone(), json!(null)));
            let mut change: serde_json::Map<String, serde_json::Value> = others.collect();
            change.insert("ca.crt".into(), ctx.config.ca_pem.clone().into());
            let done = api.patch(ROOT_CA, &patch(), &Patch::Merge(json!({"data": change}))).await;
            settled(done).doing("update kube-root-ca.crt of", &key)?;
        }
        None => {
            let what = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
                        such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                        distributions of Kubernetes clusters.";
            let metadata = ObjectMeta {
                name: Some(ROOT_CA.into()),
                annotations: Some([("kubernetes.io/description".to_owned(), what.to_owned())].into()),
                ..ObjectMeta::default()
            };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            settled(api.create(&post(), &map).await).doing("create kube-root-ca.crt of", &key)?;
        }
    }
    Ok(Outcome::Done)
}
