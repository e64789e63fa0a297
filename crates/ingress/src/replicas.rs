//! Which Pod of a controller that has several writes what users see.
//!
//! The oldest that is ready writes, the others do not; and the address stays as long as there is a Pod that serves, or
//! will. ingress-nginx keeps a Lease for the first and counts Pods for the second. Two Pods that both take themselves for
//! the oldest, as they may for a moment, write the same or one after the other, so Pods will do for both, and nothing is
//! written while nothing changes.

use std::sync::Arc;
use std::time::Duration;

use client::{Informer, InformerGone, ObjectKey};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc::UnboundedReceiver;

/// Labels that differ between two versions of the same controller.
const OF_ONE_VERSION: [&str; 3] =
    ["pod-template-hash", "controller-revision-hash", "pod-template-generation"];
/// How long a Pod that has been deleted may be without another in its place.
const REPLACED: Duration = Duration::from_secs(1);

/// The controller's Pods.
pub(crate) struct Replicas(Option<Known>);

struct Known {
    own: String,
    pods: Informer<Pod>,
}

impl Replicas {
    /// Follows the Pods beside this one, by its labels; without a name, or the right to look, it is taken for the only one.
    pub async fn of(client: &Client, own: Option<&ObjectKey>) -> Self {
        let Some(key) = own else { return Self(None) };
        let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        let selector = match api.get(&key.name).await {
            Ok(pod) => selector(&pod),
            Err(error) => {
                tracing::warn!(pod = %key, %error, "this Pod cannot be read: it writes addresses as if there were no other");
                return Self(None);
            }
        };
        let pods = Informer::start(api, watcher::Config::default().labels(&selector));
        Self(Some(Known { own: key.name.clone(), pods }))
    }

    /// Waits until all are known.
    ///
    /// # Errors
    /// When they never will be.
    pub async fn synced(&self) -> Result<(), InformerGone> {
        match &self.0 {
            Some(known) => known.pods.synced().await,
            None => Ok(()),
        }
    }

    /// Wakes at each change of a Pod; never where there is only this one.
    pub fn changes(&self) -> Changes {
        Changes(self.0.as_ref().map(|known| known.pods.subscribe()))
    }

    /// Whether this one writes.
    pub fn writes(&self) -> bool {
        self.0.as_ref().is_none_or(|known| writer(&known.pods.list()).is_none_or(|name| name == known.own))
    }

    /// Whether another one stays, or comes in the place of this one.
    pub async fn is_replaced(&self) -> bool {
        let Some(known) = &self.0 else { return false };
        let mut changes = self.changes();
        let stays = async {
            while !known.pods.list().iter().any(|pod| pod.name_any() != known.own && lives(pod)) {
                changes.next().await;
            }
        };
        tokio::time::timeout(REPLACED, stays).await.is_ok()
    }
}

/// Changes of Pods.
pub(crate) struct Changes(Option<UnboundedReceiver<client::Change<Pod>>>);

impl Changes {
    /// Waits for the next; a watch that has died has none.
    pub async fn next(&mut self) {
        if let Some(changes) = &mut self.0
            && changes.recv().await.is_some()
        {
            while changes.try_recv().is_ok() {}
            return;
        }
        std::future::pending().await
    }
}

/// The Pods of the same controller, whatever its version.
fn selector(pod: &Pod) -> String {
    let own = pod.labels().iter().filter(|(name, _)| !OF_ONE_VERSION.contains(&name.as_str()));
    own.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Whether a Pod is neither over nor about to be.
fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The name of the Pod that writes: the oldest of those that are ready.
fn writer(pods: &[Arc<Pod>]) -> Option<String> {
    let ready = pods.iter().filter(|pod| lives(pod) && is_ready(pod));
    ready.map(|pod| (pod.creation_timestamp().map(|t| t.0), pod.name_any())).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, second: u32, ready: bool, more: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "labels": {"app": "x", "tier": "y", "pod-template-hash": name}},
            "status": {"phase": "Running",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        for (key, value) in more.as_object().unwrap() {
            match key.as_str() {
                "phase" => pod["status"]["phase"] = value.clone(),
                _ => pod["metadata"][key] = value.clone(),
            }
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_oldest_that_is_ready_writes() {
        let ending = json!({"deletionTimestamp": "2026-01-01T00:01:00Z"});
        for (pods, who) in [
            (vec![], None),
            (vec![pod("a", 1, false, json!({}))], None),
            (vec![pod("b", 2, true, json!({})), pod("a", 1, true, json!({}))], Some("a")),
            (vec![pod("b", 1, true, json!({})), pod("a", 1, true, json!({}))], Some("a")),
            (vec![pod("a", 1, false, json!({})), pod("b", 2, true, json!({}))], Some("b")),
            (vec![pod("a", 1, true, ending.clone()), pod("b", 2, true, json!({}))], Some("b")),
            (vec![pod("a", 1, true, json!({"phase": "Failed"})), pod("b", 2, true, json!({}))], Some("b")),
        ] {
            assert_eq!(writer(&pods).as_deref(), who, "{pods:?}");
        }
    }

    #[test]
    fn versions_of_one_controller_belong_together() {
        assert_eq!(selector(&pod("a", 1, true, json!({}))), "app=x,tier=y");
    }

    #[tokio::test]
    async fn a_pod_that_goes_hears_of_the_one_that_comes() {
        const PODS: &str = "/api/v1/namespaces/ns/pods";
        let value = |pod: &Pod| serde_json::to_value(pod).unwrap();
        let ending = pod("a", 1, true, json!({"deletionTimestamp": "2026-01-01T00:01:00Z"}));
        let api = testkit::fake_api::FakeApi::new([(PODS, vec![value(&ending)])]);
        let replicas = Replicas::of(&api.client(), Some(&ObjectKey::new("ns", "a"))).await;
        replicas.synced().await.unwrap();
        assert!(!replicas.is_replaced().await, "nobody comes");
        let (replaced, ()) = tokio::join!(replicas.is_replaced(), async {
            api.tell(PODS, "ADDED", &value(&pod("b", 2, false, json!({})))).await;
        });
        assert!(replaced);
        assert!(replicas.writes(), "nobody is ready");
        let mut changes = replicas.changes();
        api.tell(PODS, "MODIFIED", &value(&pod("b", 2, true, json!({})))).await;
        let other = async {
            while replicas.writes() {
                changes.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), other).await.expect("the other one writes");
    }
}
