//! The controllers on the real API server, judged by the real kubectl. A toy scheduler and kubelet stand in for the
//! other components: Pods are bound, become ready, and end when they are deleted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;

use crate::world::{World, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_sees_rollouts_as_usual() {
    let world = World::start().await;
    world.kubectl(&["create", "deployment", "web", "--image=nginx:1", "--replicas=3"]).await;
    let done = world.kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"]).await;
    assert!(done.contains("successfully rolled out"), "{done}");
    world.kubectl(&["set", "image", "deployment/web", "nginx=nginx:2"]).await;
    world.kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"]).await;
    let history = world.kubectl(&["rollout", "history", "deployment/web"]).await;
    let revisions: Vec<&str> = history.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert_eq!(revisions, ["deployment.apps/web", "REVISION", "1", "2"], "{history}");
    world.kubectl(&["rollout", "undo", "deployment/web"]).await;
    world.kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"]).await;
    let image = world.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].image}"]).await;
    assert!(image.split_whitespace().all(|i| i == "nginx:1"), "{image}");
    world.kubectl(&["rollout", "restart", "deployment/web"]).await;
    world.kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"]).await;
    world.kubectl(&["scale", "deployment/web", "--replicas=5"]).await;
    world.kubectl(&["wait", "--for=condition=Available", "deployment/web", "--timeout=20s"]).await;
    world.kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"]).await;
    let described = world.kubectl(&["describe", "deployment", "web"]).await;
    for part in
        ["ScalingReplicaSet", "from 0 to 3", "NewReplicaSetAvailable", "5 desired | 5 updated | 5 total"]
    {
        assert!(described.contains(part), "{part} is missing in\n{described}");
    }
    world.kubectl(&["delete", "deployment", "web"]).await;
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    eventually("the pods are gone", || async {
        pods.list(&ListParams::default()).await.unwrap().items.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_namespaces_and_nodes() {
    let world = World::start().await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    eventually("the node has addresses", || async {
        nodes.get("n1").await.unwrap().spec.is_some_and(|s| s.pod_cidr.as_deref() == Some("10.244.0.0/24"))
    })
    .await;
    world.kubectl(&["create", "namespace", "shop"]).await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "shop");
    eventually("the root CA is there", || async {
        maps.get_opt("kube-root-ca.crt").await.unwrap().is_some()
    })
    .await;
    world.kubectl(&["-n", "shop", "create", "deployment", "web", "--image=nginx", "--replicas=3"]).await;
    world.kubectl(&["-n", "shop", "expose", "deployment", "web", "--port=80"]).await;
    let slices: Api<EndpointSlice> = Api::namespaced(world.client.clone(), "shop");
    let endpoints: Api<Endpoints> = Api::namespaced(world.client.clone(), "shop");
    eventually("slices and endpoints agree", || async {
        let slices = slices.list(&ListParams::default()).await.unwrap().items;
        let behind: usize = slices.iter().map(|s| s.endpoints.len()).sum();
        let classic = endpoints.get_opt("web").await.unwrap().and_then(|e| e.subsets).unwrap_or_default();
        let addresses = classic.iter().flat_map(|s| s.addresses.iter().flatten()).count();
        (slices.len(), behind, addresses) == (1, 3, 3)
    })
    .await;
    world.kubectl(&["delete", "namespace", "shop", "--timeout=20s"]).await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    assert!(namespaces.get_opt("shop").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_workloads_by_kubectl() {
    let world = World::start().await;
    world
        .apply(
            r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: c, image: "agent:1"}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: "db:1"}]}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 2
  selector: {app: old}
  template: {metadata: {labels: {app: old}}, spec: {containers: [{name: c, image: "old:1"}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: 3
  parallelism: 2
  template: {spec: {restartPolicy: Never, containers: [{name: finishing, image: "work:1"}]}}
"#,
        )
        .await;
    for what in ["daemonset/agent", "statefulset/db"] {
        world.kubectl(&["rollout", "status", what, "--timeout=20s"]).await;
        world.kubectl(&["set", "image", what, "c=new:2"]).await;
        world.kubectl(&["rollout", "status", what, "--timeout=20s"]).await;
        let history = world.kubectl(&["rollout", "history", what]).await;
        assert_eq!(history.lines().filter(|l| l.starts_with(['1', '2'])).count(), 2, "{history}");
        world.kubectl(&["rollout", "undo", what]).await;
        world.kubectl(&["rollout", "status", what, "--timeout=20s"]).await;
    }
    world.kubectl(&["wait", "--for=condition=complete", "job/work", "--timeout=20s"]).await;
    let counts = world.kubectl(&["get", "job", "work", "-o", "jsonpath={.status.succeeded}"]).await;
    assert_eq!(counts, "3");
    let ready = world.kubectl(&["get", "rc", "old", "-o", "jsonpath={.status.readyReplicas}"]).await;
    assert_eq!(ready, "2");
    world
        .kubectl(&[
            "delete",
            "job/work",
            "daemonset/agent",
            "statefulset/db",
            "rc/old",
            "--cascade=foreground",
        ])
        .await;
    let pods: Api<Pod> = Api::default_namespaced(world.client.clone());
    eventually("the pods are gone", || async {
        pods.list(&ListParams::default()).await.unwrap().items.is_empty()
    })
    .await;
    let deployments: Api<Deployment> = Api::all(world.client.clone());
    assert!(deployments.list(&ListParams::default()).await.unwrap().items.is_empty());
}
