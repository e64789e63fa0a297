//! The loops against an API server in memory: what users see of several controllers working together.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Debug;
use std::time::Duration;

use client::SharedInformers;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
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
    stop: DropGuard,
}

fn config() -> Config {
    Config {
        ca_pem: "the root".into(),
        cluster_cidrs: vec![
            ("10.244.0.0/16".parse().unwrap(), 24),
            ("fd00:10:244::/56".parse().unwrap(), 64),
        ],
        load_balancers: vec!["192.168.49.101".parse().unwrap()..="192.168.49.102".parse().unwrap()],
    }
}

impl World {
    fn start() -> Self {
        let world = Self::at_rest();
        world.run();
        world
    }

    /// No controller runs before [`World::run`]: what is created until then, they find in their first lists.
    fn at_rest() -> Self {
        let fake = Fake::new();
        Self { client: fake.client(), fake, stop: CancellationToken::new().drop_guard() }
    }

    fn run(&self) {
        let (client, stop) = (self.client.clone(), self.stop.token().clone());
        let shared = SharedInformers::start(&client);
        tokio::spawn(crate::run(client, shared, config(), stop));
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
    let world = World::at_rest();
    let label = json!({"app": "web"});
    let orphan = json!({"metadata": {"name": "orphan", "labels": label}, "spec": {"containers": []}});
    world.create::<Pod>(orphan).await;
    world.create::<ReplicaSet>(web("nginx:1", 3)).await;
    world.run();
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
    eventually("the released pod lives on", || async { world.list::<Pod>().await.len() == 4 }).await;
    count(3).await;
    // Bursts of changes never over-create.
    world.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 50}})).await;
    world.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 10}})).await;
    world.patch::<ReplicaSet>("web", json!({"spec": {"replicas": 30}})).await;
    count(30).await;
    assert_eq!(world.list::<Pod>().await.len(), 31);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_gets_endpoints_and_slices_that_agree() {
    let world = World::start();
    let spec = json!({"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}]});
    world.create::<Service>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let slices = || async { world.list::<EndpointSlice>().await };
    let ready = |n: usize| {
        let world = &world;
        eventually("slices and endpoints follow", move || async move {
            world.kubelet().await;
            let slices = world.list::<EndpointSlice>().await;
            let behind = slices.iter().map(|s| s.endpoints.len()).sum::<usize>();
            let classic = world.api::<Endpoints>().get_opt("web").await.unwrap();
            let subsets = classic.and_then(|c| c.subsets).unwrap_or_default();
            let addresses = subsets.iter().flat_map(|s| s.addresses.iter().flatten()).count();
            slices.len() == 1 && behind == n && addresses == n
        })
    };
    ready(0).await;
    let placeholder = slices().await.remove(0);
    assert!(meta::name(&placeholder.metadata).starts_with("web-"));
    world.create::<Deployment>(web("nginx:1", 3)).await;
    ready(3).await;
    assert_eq!(slices().await[0].metadata.uid, placeholder.metadata.uid);
    // A slice deleted by hand comes back.
    let name = placeholder.metadata.name.unwrap();
    world.api::<EndpointSlice>().delete(&name, &DeleteParams::default()).await.unwrap();
    ready(3).await;
    // Hand-written Endpoints of a selectorless Service are mirrored, and the mirror goes with them.
    world.create::<Service>(json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let subsets = json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}]);
    world.create::<Endpoints>(json!({"metadata": {"name": "db"}, "subsets": subsets})).await;
    eventually("the mirror", || async {
        slices().await.iter().any(|s| s.endpoints.iter().any(|e| e.addresses == ["192.0.2.1"]))
    })
    .await;
    world.api::<Endpoints>().delete("db", &DeleteParams::default()).await.unwrap();
    eventually("the mirror is gone", || async { slices().await.len() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_get_addresses_and_give_them_back() {
    let world = World::start();
    let balanced = |name: &str, more: Value| {
        let mut spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.create::<Service>(json!({"metadata": {"name": name}, "spec": spec}))
    };
    let address = |name: &'static str| {
        let api = world.api::<Service>();
        async move {
            let status = api.get(name).await.unwrap().status.unwrap_or_default();
            let ingress = status.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
            ingress.into_iter().map(|i| format!("{} {}", i.ip.unwrap(), i.ip_mode.unwrap())).next()
        }
    };
    let becomes = |name: &'static str, wanted: &'static str| async move {
        eventually(wanted, || async { address(name).await.as_deref() == Some(wanted) }).await;
    };
    balanced("a", json!({})).await;
    becomes("a", "192.168.49.101 VIP").await;
    balanced("foreign", json!({"loadBalancerClass": "example.com/own"})).await;
    balanced("b", json!({})).await;
    becomes("b", "192.168.49.102 VIP").await;
    balanced("late", json!({})).await;
    eventually("the refusal is told", || async {
        world
            .fake
            .events_of("late")
            .iter()
            .any(|e| e.starts_with("SyncLoadBalancerFailed: ") && e.contains("are in use"))
    })
    .await;
    world.api::<Service>().delete("a", &DeleteParams::default()).await.unwrap();
    becomes("late", "192.168.49.101 VIP").await;
    // A status that somebody overwrote is put right, and a type that changes gives the address back.
    let stolen =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.168.49.101", "ipMode": "VIP"}]}}});
    world.api::<Service>().patch_status("b", &PatchParams::default(), &Patch::Merge(stolen)).await.unwrap();
    becomes("b", "192.168.49.102 VIP").await;
    world.patch::<Service>("b", json!({"spec": {"type": "ClusterIP"}})).await;
    balanced("c", json!({})).await;
    becomes("c", "192.168.49.102 VIP").await;
    assert_eq!(address("foreign").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_gets_its_defaults_and_goes_with_all_it_holds() {
    let world = World::start();
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let ns = serde_json::from_value(json!({"metadata": {"name": "ns"}})).unwrap();
    namespaces.create(&PostParams::default(), &ns).await.unwrap();
    eventually("the defaults", || async {
        let account = world.api::<ServiceAccount>().get_opt("default").await.unwrap();
        let ca = world.api::<ConfigMap>().get_opt("kube-root-ca.crt").await.unwrap();
        account.is_some() && ca.is_some_and(|m| m.data.unwrap()["ca.crt"] == "the root")
    })
    .await;
    world.patch::<ConfigMap>("kube-root-ca.crt", json!({"data": {"ca.crt": "forged"}})).await;
    world.api::<ServiceAccount>().delete("default", &DeleteParams::default()).await.unwrap();
    eventually("the defaults are back", || async {
        let account = world.api::<ServiceAccount>().get_opt("default").await.unwrap();
        let ca = world.api::<ConfigMap>().get("kube-root-ca.crt").await.unwrap();
        account.is_some() && ca.data.unwrap()["ca.crt"] == "the root"
    })
    .await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    world.create::<ConfigMap>(held).await;
    namespaces.delete("ns", &DeleteParams::default()).await.unwrap();
    eventually("the finalizer is told of", || async {
        let ns = namespaces.get("ns").await.unwrap();
        let conditions = ns.status.and_then(|s| s.conditions).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")
    })
    .await;
    world.patch::<ConfigMap>("held", json!({"metadata": {"finalizers": []}})).await;
    eventually("the namespace is gone", || async { namespaces.get_opt("ns").await.unwrap().is_none() }).await;
    assert!(world.list::<ConfigMap>().await.is_empty() && world.list::<ServiceAccount>().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_goes_in_each_of_the_three_ways() {
    let world = World::start();
    let pods = |n: usize| {
        let world = &world;
        eventually("the number of pods", move || async move { world.list::<Pod>().await.len() == n })
    };
    let sets = |n: usize| {
        let world = &world;
        eventually("the number of sets", move || async move { world.list::<ReplicaSet>().await.len() == n })
    };
    world.create::<Deployment>(web("nginx:1", 3)).await;
    pods(3).await;
    world.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    pods(0).await;
    sets(0).await;
    world.create::<Deployment>(web("nginx:1", 3)).await;
    pods(3).await;
    world.api::<Deployment>().delete("web", &DeleteParams::foreground()).await.unwrap();
    eventually("the deployment goes last", || async {
        let gone = world.api::<Deployment>().get_opt("web").await.unwrap().is_none();
        assert!(!gone || world.list::<ReplicaSet>().await.is_empty());
        gone
    })
    .await;
    pods(0).await;
    world.create::<Deployment>(web("nginx:1", 3)).await;
    pods(3).await;
    world.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.unwrap();
    eventually("the deployment is gone", || async {
        world.api::<Deployment>().get_opt("web").await.unwrap().is_none()
    })
    .await;
    let set = world.list::<ReplicaSet>().await.remove(0);
    assert!(meta::controller_of(&set.metadata).is_none());
    pods(3).await;
    // An owner that never was.
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "no", "uid": "no"}]);
    world.create::<ConfigMap>(json!({"metadata": {"name": "lost", "ownerReferences": owner}})).await;
    eventually("the lost map is gone", || async {
        world.api::<ConfigMap>().get_opt("lost").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_silent_node_is_tainted_and_emptied() {
    let world = World::start();
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node =
        json!({"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    eventually("the node has addresses", || async {
        let spec = nodes.get("n1").await.unwrap().spec.unwrap_or_default();
        spec.pod_cidr.as_deref() == Some("10.244.0.0/24")
            && spec.pod_cidrs.unwrap() == ["10.244.0.0/24", "fd00:10:244::/64"]
    })
    .await;
    let tolerant =
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 3600}]);
    for (name, tolerations) in [("quick", json!([])), ("tolerant", tolerant)] {
        let spec = json!({"nodeName": "n1", "containers": [], "tolerations": tolerations});
        world.create::<Pod>(json!({"metadata": {"name": name}, "spec": spec})).await;
    }
    world.kubelet().await;
    // Forty seconds pass without a sign of life.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(41)).await;
    tokio::time::resume();
    eventually("the intolerant pod is gone, the other unready", || async {
        let pods = world.list::<Pod>().await;
        pods.len() == 1 && meta::name(&pods[0].metadata) == "tolerant" && !crate::pods::ready(&pods[0])
    })
    .await;
    assert!(
        world.fake.events_of("n1").contains(&"NodeNotReady: Node n1 status is now: NodeNotReady".to_owned())
    );
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(41)).await;
    tokio::time::resume();
    eventually("the pods of a lost node are gone", || async { world.list::<Pod>().await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_follows_the_nodes_and_rolls() {
    let world = World::start();
    let nodes: Api<Node> = Api::all(world.client.clone());
    let join = |name: &'static str| {
        let node = json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let node: Node = serde_json::from_value(node).unwrap();
        let nodes = nodes.clone();
        async move { nodes.create(&PostParams::default(), &node).await.unwrap() }
    };
    join("n1").await;
    join("n2").await;
    world.create::<DaemonSet>(web("agent:1", 0)).await;
    let settled = |n: i32| {
        let world = &world;
        eventually("the daemon set is complete", move || async move {
            world.kubelet().await;
            let set = world.api::<DaemonSet>().get("web").await.unwrap();
            let status = set.status.unwrap_or_default();
            status.observed_generation == set.metadata.generation
                && status.desired_number_scheduled == n
                && status.updated_number_scheduled == Some(n)
                && status.number_available == Some(n)
        })
    };
    settled(2).await;
    join("n3").await;
    settled(3).await;
    let new = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "agent:2"}]}}}});
    world.patch::<DaemonSet>("web", new).await;
    settled(3).await;
    let pods = world.list::<Pod>().await;
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("agent:2")));
    let revisions = world.list::<ControllerRevision>().await;
    assert_eq!(revisions.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_completes_counts_and_expires() {
    let world = World::start();
    let template = json!({"spec": {"containers": [], "restartPolicy": "Never"}});
    let spec = json!({"completions": 4, "parallelism": 2, "template": template});
    world.create::<Job>(json!({"metadata": {"name": "work"}, "spec": spec})).await;
    eventually("the job is complete", || async {
        for pod in world.list::<Pod>().await {
            let done = json!({"status": {"phase": "Succeeded"}});
            let name = meta::name(&pod.metadata);
            world
                .api::<Pod>()
                .patch_status(name, &PatchParams::default(), &Patch::Merge(done))
                .await
                .unwrap();
        }
        let status = world.api::<Job>().get("work").await.unwrap().status.unwrap_or_default();
        let complete =
            status.conditions.iter().flatten().any(|c| c.type_ == "Complete" && c.status == "True");
        assert!(!complete || (status.succeeded, status.failed) == (Some(4), None));
        complete
    })
    .await;
    assert_eq!(world.list::<Pod>().await.len(), 4);
    // Only now: a job that may expire meanwhile could be gone before it was seen.
    world.patch::<Job>("work", json!({"spec": {"ttlSecondsAfterFinished": 1}})).await;
    eventually("job and pods expire", || async {
        world.list::<Job>().await.is_empty() && world.list::<Pod>().await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_names_claims_and_rolls() {
    let world = World::start();
    let mut set = web("db:1", 3);
    set["spec"]["serviceName"] = "web".into();
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {}}]);
    world.create::<StatefulSet>(set).await;
    let settled = |image: &'static str| {
        let world = &world;
        eventually("the stateful set is complete", move || async move {
            world.kubelet().await;
            let set = world.api::<StatefulSet>().get("web").await.unwrap();
            let status = set.status.unwrap_or_default();
            let mut pods = world.list::<Pod>().await;
            pods.retain(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image));
            let names: Vec<&str> = pods.iter().map(|p| meta::name(&p.metadata)).collect();
            status.observed_generation == set.metadata.generation
                && (status.ready_replicas, status.updated_replicas) == (Some(3), Some(3))
                && status.current_revision == status.update_revision
                && names == ["web-0", "web-1", "web-2"]
        })
    };
    settled("db:1").await;
    assert_eq!(world.list::<PersistentVolumeClaim>().await.len(), 3);
    let budget = json!({"metadata": {"name": "keep"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
    world.create::<PodDisruptionBudget>(budget).await;
    let new = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "db:2"}]}}}});
    world.patch::<StatefulSet>("web", new).await;
    settled("db:2").await;
    eventually("one disruption is allowed", || async {
        let budget = world.api::<PodDisruptionBudget>().get("keep").await.unwrap();
        budget.status.is_some_and(|s| s.disruptions_allowed == 1 && s.expected_pods == 3)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_starts_by_the_clock() {
    let world = World::start();
    let template = json!({"spec": {"template": {"spec": {"containers": []}}}});
    let spec = json!({"schedule": "@every 1s", "concurrencyPolicy": "Forbid", "jobTemplate": template});
    world.create::<CronJob>(json!({"metadata": {"name": "tick"}, "spec": spec})).await;
    eventually("its job runs", || async { !world.list::<Pod>().await.is_empty() }).await;
    eventually("it names its job", || async {
        let status = world.api::<CronJob>().get("tick").await.unwrap().status.unwrap_or_default();
        status.active.is_some_and(|a| a.len() == 1) && status.last_schedule_time.is_some()
    })
    .await;
    assert_eq!(world.list::<Job>().await.len(), 1);
}
