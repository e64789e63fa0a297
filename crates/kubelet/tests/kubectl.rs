//! What the real kubectl shows of Pods on this node, through the API server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Node;
use serde_json::json;

runtime::shim_in_tests!();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_sees_and_reaches_pods() {
    let node = Node::start().await;
    let script = "echo started; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    node.create(
        "p",
        json!({"containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", script]}]}),
    )
    .await;
    node.create("crash", json!({"containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", "echo no; exit 7"]}]})).await;
    node.ready("p").await;
    let back_off = |p: &serde_json::Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    };
    node.wait("crash", "crashing", back_off).await;
    let kubectl = node.kubectl().await;
    let run = move |args: &'static [&'static str]| {
        let kubectl = kubectl.clone();
        async move {
            let got = tokio::task::spawn_blocking(move || kubectl(args)).await.unwrap();
            println!("$ kubectl {}\n{}", args.join(" "), got.1);
            got
        }
    };
    let (_, nodes) = run(&["get", "nodes", "-o", "wide"]).await;
    assert!(
        nodes.contains("Ready") && nodes.contains("v1.33.0") && nodes.contains("192.168.49.2"),
        "{nodes}"
    );
    let (_, lease) = run(&["get", "lease", "-n", "kube-node-lease"]).await;
    assert!(lease.contains("node"), "{lease}");
    let (_, pods) = run(&["get", "pods", "-o", "wide"]).await;
    assert!(
        pods.contains("CrashLoopBackOff") && pods.contains("1/1") && pods.contains("10.244.0."),
        "{pods}"
    );
    let (_, described) = run(&["describe", "pod", "p"]).await;
    for expected in [
        "Normal",
        "Pulled",
        "Created",
        "Started container c",
        "QoS Class:",
        "PodReadyToStartContainers",
        "skiff://",
    ] {
        assert!(described.contains(expected), "{expected:?} is not in {described}");
    }
    assert_eq!(run(&["logs", "p"]).await, (true, "started\n".into()));
    assert_eq!(run(&["logs", "crash", "--previous"]).await, (true, "no\n".into()));
    let (good, text) = run(&["exec", "p", "--", "sh", "-c", "echo hi; exit 5"]).await;
    assert_eq!((good, text.as_str()), (false, "hi\ncommand terminated with exit code 5\n"));
    let (good, text) = run(&["exec", "p", "--", "nonesuch"]).await;
    assert!(!good && text.contains("executable file not found in $PATH"), "{text}");
    let (good, text) = run(&["delete", "pod", "p", "crash"]).await;
    assert!(good, "{text}");
    node.finish().await;
}
