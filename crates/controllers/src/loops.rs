//! The loops against an API server in memory: what users see of several controllers working together.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fake::Fake;
use crate::{Config, meta};

/// A server with all controllers at work, stopped when dropped.
struct World {
    fake: Fake,
    client: Client,
    _stop: DropGuard,
}

fn config() -> Config {
    Config { ca_pem: "the root".into(), cluster_cidr: "10.244.0.0/16".parse().unwrap(), node_cidr_mask: 24 }
}

impl World {
    fn start() -> Self {
        let fake = Fake::new();
        let client = fake.client();
        let stop = CancellationToken::new();
        tokio::spawn(crate::run(client.clone(), config(), stop.clone()));
        Self { fake, client, _stop: stop.drop_guard() }
    }

    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), "ns")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned + serde::Serialize,
    {
        let object = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    async fn patch<K>(&self, name: &str, change: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items
    }

    /// Makes every Pod run and be ready.
    async fn kubelet(&self) {
        for pod in self.list::<Pod>().await {
            if crate::pods::ready(&pod) {
                continue;
            }
            let now = meta::time(jiff::Timestamp::now());
            let status = json!({"status": {"phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}});
            let name = meta::name(&pod.metadata);
            // The Pod may be gone by now.
            let _ =
                self.api::<Pod>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await;
        }
    }
}

/// Tries until `holds` does; two thousand tries of five milliseconds.
async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..2000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn web(image: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_makes_rolls_and_scales() {
    let world = World::start();
    world.create::<Deployment>(web("nginx:1", 3)).await;
    let settled = |revision: &'static str, replicas: i32| {
        let world = &world;
        eventually("the rollout is complete", move || async move {
            world.kubelet().await;
            let d = world.api::<Deployment>().get("web").await.unwrap();
            let status = d.status.clone().unwrap_or_default();
            status.observed_generation == d.metadata.generation
                && meta::annotations(&d.metadata).get("deployment.kubernetes.io/revision").map(String::as_str)
                    == Some(revision)
                && [status.replicas, status.updated_replicas, status.available_replicas]
                    == [Some(replicas); 3]
                && status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"))
        })
    };
    settled("1", 3).await;
    let first = meta::name(&world.list::<ReplicaSet>().await[0].metadata).to_owned();
    assert!(
        world
            .fake
            .events_of("web")
            .contains(&format!("ScalingReplicaSet: Scaled up replica set {first} from 0 to 3"))
    );
    eventually("three pods are told", || async { world.fake.events_of(&first).len() == 3 }).await;
    let new = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}}}});
    world.patch::<Deployment>("web", new).await;
    settled("2", 3).await;
    world.patch::<Deployment>("web", json!({"spec": {"replicas": 20}})).await;
    settled("2", 20).await;
    assert_eq!(world.list::<Pod>().await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_replaces_adopts_and_releases() {
    let world = World::start();
    let label = json!({"app": "web"});
    let orphan = json!({"metadata": {"name": "orphan", "labels": label}, "spec": {"containers": []}});
    world.create::<Pod>(orphan).await;
    world.create::<ReplicaSet>(web("nginx:1", 3)).await;
    let count = |n: usize| {
        let world = &world;
        eventually("the number of pods", move || async move {
            let pods = world.list::<Pod>().await;
            let owned = |p: &&Pod| meta::controller_of(&p.metadata).is_some_and(|r| r.name == "web");
            pods.iter().filter(owned).count() == n
                && world
                    .api::<ReplicaSet>()
                    .get("web")
                    .await
                    .unwrap()
                    .status
                    .is_some_and(|s| s.replicas == n as i32)
        })
    };
    count(3).await;
    assert_eq!(world.list::<Pod>().await.len(), 3, "the orphan was adopted, not added to");
    world.api::<Pod>().delete("orphan", &DeleteParams::default()).await.unwrap();
    count(3).await;
    let pod = world.list::<Pod>().await.remove(0);
    world.patch::<Pod>(meta::name(&pod.metadata), json!({"metadata": {"labels": {"app": "other"}}})).await;
    count(3).await;
    assert_eq!(world.list::<Pod>().await.len(), 4, "the released pod lives on");
    // Bursts of changes never over-create.
    world.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 50}})).await;
    world.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 10}})).await;
    world.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 30}})).await;
    count(30).await;
    assert_eq!(world.list::<Pod>().await.len(), 31);
}
