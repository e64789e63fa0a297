//! What every controller is built from: the shared context, feeding of queues, and the one error type.
//!
//! A controller is a queue of keys, some feeds (change of an object -> keys) and one reconcile function that reads
//! the caches, lets a pure function decide, and writes. Reconciling is level-triggered: a lost race (conflict, not
//! found) is tried again with back-off and never worth more than a debug line.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use client::{Change, Informer, ObjectKey, Outcome, Recorder, WorkQueue};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::informers::Informers;

/// What all controllers share; cloning is cheap.
#[derive(Clone)]
pub(crate) struct Context {
    pub client: Client,
    pub informers: Arc<Informers>,
    pub recorder: Recorder,
    pub config: Arc<Config>,
    pub stop: CancellationToken,
}

/// A write or read that failed: what was being done, to which object, and the server's answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {object}: {source}")]
pub(crate) struct Error {
    pub doing: &'static str,
    pub object: String,
    #[source]
    pub source: Box<kube::Error>,
}

/// Names the operation and the object of a failed call.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str, object: &dyn ToString) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, doing: &'static str, object: &dyn ToString) -> Result<T, Error> {
        self.map_err(|source| Error { doing, object: object.to_string(), source: Box::new(source) })
    }
}

impl Error {
    /// Somebody else was faster; reading again settles it.
    fn is_race(&self) -> bool {
        is_conflict(&self.source) || is_not_found(&self.source)
    }
}

/// 409 because of a stale resourceVersion or uid.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason != "AlreadyExists")
}

/// 404.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// 409 because the name is taken.
pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// The namespace is going away, so nothing new can be made in it: not an error worth an event.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
    causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// The text of an API error as Go clients print it: the Status' message alone.
pub(crate) fn message_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// `Ok` if the object is there no more, which is what the caller wanted.
pub(crate) fn unless_gone<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Context {
    /// The API of a namespaced kind.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Works `queue` until the stop; failed keys come again with back-off. The stop breaks off what is under way, as a crash
    /// would: emptying a namespace may take a minute.
    pub async fn work<F, Fut>(
        &self,
        controller: &'static str,
        workers: usize,
        queue: &WorkQueue<ObjectKey>,
        reconcile: F,
    ) where
        F: Fn(ObjectKey) -> Fut,
        Fut: Future<Output = Result<Outcome, Error>>,
    {
        let run = |key: ObjectKey| {
            let work = reconcile(key.clone());
            async move {
                let done = self.stop.run_until_cancelled(work).await;
                done.map_or(Outcome::Done, |result| settle(controller, &key, result))
            }
        };
        queue.run(workers, self.stop.clone(), run).await;
    }

    /// Calls `keys` with each change of `informer` until the stop and queues what it names.
    pub async fn feed<K, I>(
        &self,
        informer: &Informer<K>,
        queue: &WorkQueue<ObjectKey>,
        mut keys: impl FnMut(&Change<K>) -> I,
    ) where
        K: Resource + Clone + serde::de::DeserializeOwned + Debug + Send + Sync + 'static,
        I: IntoIterator<Item = ObjectKey>,
    {
        self.each(informer.subscribe(), |change| keys(change).into_iter().for_each(|key| queue.add(key)))
            .await;
    }

    /// Calls `act` with each change until the stop.
    pub async fn each<K>(
        &self,
        mut changes: mpsc::UnboundedReceiver<Change<K>>,
        mut act: impl FnMut(&Change<K>),
    ) {
        loop {
            let change = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                change = changes.recv() => change,
            };
            let Some(change) = change else { return };
            act(&change);
        }
    }

    /// Waits for a cache; `Err` when it can never fill, or at the stop.
    pub async fn ready<K>(&self, informer: &Informer<K>) -> Result<(), NotReady>
    where
        K: Resource + Clone + serde::de::DeserializeOwned + Debug + Send + Sync + 'static,
    {
        tokio::select! {
            synced = informer.synced() => synced.map_err(|_| NotReady),
            () = self.stop.cancelled() => Err(NotReady),
        }
    }
}

/// A cache will not fill any more: the controller ends.
#[derive(Debug)]
pub(crate) struct NotReady;

fn settle(controller: &'static str, key: &ObjectKey, result: Result<Outcome, Error>) -> Outcome {
    match result {
        Ok(outcome) => outcome,
        Err(error) if error.is_race() || is_namespace_terminating(&error.source) => {
            tracing::debug!(controller, %key, %error, "will try again");
            Outcome::Retry
        }
        Err(error) => {
            tracing::warn!(controller, %key, %error, "will try again");
            Outcome::Retry
        }
    }
}

/// The write options of all controllers.
pub(crate) fn post() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.into()) }
}

/// The patch options of all controllers.
pub(crate) fn patch() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// Background deletion of exactly this object, not of a namesake made since.
pub(crate) fn delete_uid(uid: &str) -> DeleteParams {
    let exactly = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    DeleteParams {
        preconditions: Some(exactly),
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    }
}

const FIELD_MANAGER: &str = "kube-controller-manager";

/// A merge patch that replaces the status of exactly this object: fields of the old status that the new one lacks
/// (counts at zero are left out) are removed.
pub(crate) fn status_patch<S: serde::Serialize>(uid: Option<&String>, old: Option<&S>, new: &S) -> Value {
    let mut new = json!(new);
    null_missing(&json!(old), &mut new);
    json!({"metadata": {"uid": uid}, "status": new})
}

fn null_missing(old: &Value, new: &mut Value) {
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) {
        for (key, value) in old {
            match new.get_mut(key) {
                Some(new) => null_missing(value, new),
                None => drop(new.insert(key.clone(), Value::Null)),
            }
        }
    }
}
