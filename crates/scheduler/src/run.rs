//! The loop: waiting Pods by priority, one decision at a time, bound through the API.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Informer, InformerGone, ObjectKey, Recorder, Regarding, SharedInformers};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::NAME;
use crate::affinity::NamespaceLabels;
use crate::filter::{Unfit, filter, message};
use crate::score::best;
use crate::snapshot::{NodeInfo, Snapshot, ended};

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cache can no longer be filled.
    #[error(transparent)]
    Informer(#[from] InformerGone),
}

/// A node chosen but not yet seen in the watch: counted as if it were.
struct Assumed {
    uid: String,
    node: String,
}

struct Scheduler {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    recorder: Recorder,
    /// Pods to be decided, so that a change costs no look at all others.
    waiting: HashSet<ObjectKey>,
    assumed: HashMap<ObjectKey, Assumed>,
    /// The message that each waiting Pod was last told, so that it is told once.
    told: HashMap<ObjectKey, String>,
}

/// Schedules until `stop`.
///
/// # Errors
/// When a cache dies.
pub async fn run(client: Client, shared: SharedInformers, stop: CancellationToken) -> Result<(), Error> {
    let (recorder, writer) = Recorder::new(client.clone(), stop.clone());
    let writer = tokio::spawn(writer);
    let scheduler = Scheduler {
        pods: shared.pods,
        nodes: shared.nodes,
        namespaces: shared.namespaces,
        client,
        recorder,
        waiting: HashSet::new(),
        assumed: HashMap::new(),
        told: HashMap::new(),
    };
    let result = scheduler.run(stop).await;
    writer.abort();
    result
}

impl Scheduler {
    async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        self.pods.synced().await?;
        self.nodes.synced().await?;
        self.namespaces.synced().await?;
        let mut pods = self.pods.subscribe();
        let mut nodes = self.nodes.subscribe();
        let mut again: Option<tokio::time::Instant> = None;
        loop {
            let retry = async {
                match again {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                change = pods.recv() => {
                    let Some(change) = change else { return Ok(()) };
                    let mut matters = self.note(&change);
                    // All that has come meanwhile is one round.
                    while let Ok(change) = pods.try_recv() {
                        matters |= self.note(&change);
                    }
                    if !matters { continue }
                }
                change = nodes.recv() => {
                    if change.is_none() { return Ok(()) }
                    while nodes.try_recv().is_ok() {}
                }
                () = retry => {}
            }
            let failed = self.round().await;
            again = failed.then(|| tokio::time::Instant::now() + Duration::from_secs(1));
        }
    }

    /// Takes a change of a Pod in; says whether a waiting Pod may now be decided.
    fn note(&mut self, change: &Change<Pod>) -> bool {
        let pod = change.object();
        let key = ObjectKey::of(&**pod);
        match change {
            Change::Deleted(_) => {
                self.waiting.remove(&key);
                self.assumed.remove(&key);
                self.told.remove(&key);
                true
            }
            Change::Applied { new, old } => {
                if is_bound(new) {
                    self.assumed.remove(&key);
                    self.told.remove(&key);
                }
                let frees = ended(new) && !old.as_ref().is_some_and(|o| ended(o));
                let waits = is_waiting(new);
                if waits {
                    self.waiting.insert(key);
                } else {
                    self.waiting.remove(&key);
                }
                waits || frees
            }
        }
    }

    /// Decides all waiting Pods; says whether a call failed and the round must be repeated.
    async fn round(&mut self) -> bool {
        let mut waiting = self.waiting();
        if waiting.is_empty() {
            return false;
        }
        let priority = |p: &Pod| p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        waiting.sort_by_key(|p| (-priority(p), p.creation_timestamp().map(|t| t.0), p.name_any()));
        let mut snapshot = self.snapshot();
        let namespaces = self.namespace_labels();
        let mut decisions = Vec::new();
        for pod in waiting {
            match decide(&pod, &snapshot, &namespaces) {
                Ok(node) => {
                    let uid = pod.uid().unwrap_or_default();
                    self.assumed.insert(ObjectKey::of(&*pod), Assumed { uid, node: node.clone() });
                    if let Some(info) = snapshot.nodes.get_mut(&node) {
                        info.add(pod.clone());
                    }
                    decisions.push((pod, Ok(node)));
                }
                Err(unfit) => decisions.push((pod, Err(unfit))),
            }
        }
        // Writes go side by side: the decisions are made, and each write is about another Pod.
        let calls = decisions.iter().map(|(pod, decision)| async {
            match decision {
                Ok(node) => self.bind(pod, node).await,
                Err(text) => self.refuse(pod, text).await,
            }
        });
        let results = futures::future::join_all(calls).await;
        let mut failed = false;
        for ((pod, decision), done) in decisions.into_iter().zip(results) {
            let key = ObjectKey::of(&*pod);
            failed |= !done;
            match decision {
                Ok(_) if !done => drop(self.assumed.remove(&key)),
                Err(text) if done => drop(self.told.insert(key, text)),
                _ => {}
            }
        }
        failed
    }

    /// What is still to be decided. The cache may be ahead of the changes that were noted.
    fn waiting(&self) -> Vec<Arc<Pod>> {
        let undecided = |key: &ObjectKey| {
            let pod = self.pods.get_key(key).filter(|pod| is_waiting(pod))?;
            let assumed = self.assumed.get(key).map(|assumed| assumed.uid.as_str());
            (assumed.is_none() || assumed != pod.metadata.uid.as_deref()).then_some(pod)
        };
        self.waiting.iter().filter_map(undecided).collect()
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.nodes.list(), self.pods.list());
        for (key, assumed) in &self.assumed {
            let pod = self.pods.get_key(key).filter(|p| !is_bound(p));
            if let (Some(pod), Some(info)) = (pod, snapshot.nodes.get_mut(&assumed.node)) {
                info.add(pod);
            }
        }
        snapshot
    }

    fn namespace_labels(&self) -> NamespaceLabels {
        let labelled = |n: Arc<Namespace>| (n.name_any(), n.metadata.labels.clone().unwrap_or_default());
        self.namespaces.list().into_iter().map(labelled).collect::<BTreeMap<_, _>>()
    }

    async fn bind(&self, pod: &Pod, node: &str) -> bool {
        let namespace = pod.namespace().unwrap_or_default();
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod.metadata.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let bound: Result<Value, _> =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        match bound {
            Ok(_) => {
                let text = format!("Successfully assigned {namespace}/{name} to {node}");
                self.recorder.normal(NAME, Regarding::of(pod), "Scheduled", text);
                true
            }
            Err(error) => {
                tracing::debug!(pod = %ObjectKey::of(pod), node, %error, "binding failed");
                is_settled(&error)
            }
        }
    }

    /// Says why the Pod waits, once per reason: its condition and an Event.
    async fn refuse(&self, pod: &Pod, text: &str) -> bool {
        if self.told.get(&ObjectKey::of(pod)).is_some_and(|last| last == text) {
            return true;
        }
        self.recorder.warning(NAME, Regarding::of(pod), "FailedScheduling", text.to_owned());
        let condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": text,
            "lastProbeTime": null,
            "lastTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(pod = %ObjectKey::of(pod), %error, "writing PodScheduled failed");
                is_settled(&error)
            }
        }
    }
}

/// The Pod is gone or was bound by another: nothing to repeat.
fn is_settled(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty())
}

fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let gated = spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty());
    !is_bound(pod)
        && !ended(pod)
        && !gated
        && pod.metadata.deletion_timestamp.is_none()
        && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
}

/// The node's name, or what to tell the user.
fn decide(pod: &Pod, snapshot: &Snapshot, namespaces: &NamespaceLabels) -> Result<String, String> {
    let mut fitting: Vec<&NodeInfo> = Vec::new();
    let mut unfit: Vec<Unfit> = Vec::new();
    for node in snapshot.nodes.values() {
        match filter(pod, node, snapshot, namespaces) {
            Ok(()) => fitting.push(node),
            Err(reasons) => unfit.push(reasons),
        }
    }
    best(pod, &fitting, snapshot, namespaces).map(|n| n.name().to_owned()).ok_or_else(|| message(&unfit))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use futures::{StreamExt, channel::mpsc, stream};
    use kube::client::Body;
    use kube::runtime::watcher::Event;
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;

    /// A scheduler of which nobody answers the calls, and the watch of its Pods.
    fn idle() -> (Scheduler, mpsc::UnboundedSender<kube::runtime::watcher::Result<Event<Pod>>>) {
        let nobody = tower::service_fn(|_: http::Request<Body>| async {
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let client = Client::new(nobody, "default");
        let (events, watch) = mpsc::unbounded();
        let scheduler = Scheduler {
            pods: Informer::from_events(watch),
            nodes: Informer::from_events(stream::pending().boxed()),
            namespaces: Informer::from_events(stream::pending().boxed()),
            recorder: Recorder::new(client.clone(), CancellationToken::new()).0,
            client,
            waiting: HashSet::new(),
            assumed: HashMap::new(),
            told: HashMap::new(),
        };
        (scheduler, events)
    }

    fn pod(name: &str, uid: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let metadata = json!({"name": name, "namespace": "ns", "uid": uid, "resourceVersion": "1"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    async fn noted(
        scheduler: &mut Scheduler,
        changes: &mut UnboundedReceiver<Change<Pod>>,
    ) -> (bool, Vec<String>) {
        let matters = scheduler.note(&changes.recv().await.unwrap());
        let mut waiting: Vec<String> = scheduler.waiting().iter().map(|pod| pod.name_any()).collect();
        waiting.sort();
        (matters, waiting)
    }

    #[tokio::test]
    async fn only_what_waits_for_us_is_looked_at() {
        let (mut scheduler, events) = idle();
        let mut changes = scheduler.pods.subscribe();
        let gate = json!({"schedulingGates": [{"name": "example.com/gate"}]});
        let wanted: [(Event<Pod>, bool, &[&str]); 7] = [
            (Event::Apply(pod("theirs", "1", json!({"schedulerName": "nobody"}))), false, &[]),
            (Event::Apply(pod("gated", "2", gate)), false, &[]),
            (Event::Apply(pod("ours", "3", json!({}))), true, &["ours"]),
            (Event::Apply(pod("gated", "2", json!({}))), true, &["gated", "ours"]),
            (Event::Apply(pod("ours", "3", json!({"nodeName": "n"}))), false, &["gated"]),
            (Event::Delete(pod("gated", "2", json!({}))), true, &[]),
            (Event::Apply(pod("gated", "4", json!({}))), true, &["gated"]),
        ];
        for (event, matters, waiting) in wanted {
            let said = format!("{event:?}");
            events.unbounded_send(Ok(event)).unwrap();
            let (did, waits) = noted(&mut scheduler, &mut changes).await;
            assert_eq!(
                (did, waits.iter().map(String::as_str).collect::<Vec<_>>().as_slice()),
                (matters, waiting),
                "{said}"
            );
        }
        // What is bound but not yet seen to be is decided; a successor of its name is not.
        let assume = |uid: &str| Assumed { uid: uid.into(), node: "n".into() };
        scheduler.assumed.insert(ObjectKey::new("ns", "gated"), assume("4"));
        assert!(scheduler.waiting().is_empty());
        scheduler.assumed.insert(ObjectKey::new("ns", "gated"), assume("2"));
        assert_eq!(scheduler.waiting().len(), 1);
    }
}
