//! The audit log, as requests of the real kubectl and of everybody else leave it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Fixture, Kubectl};
use http::Method;
use serde_json::{Value, json};

const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: [system:apiserver]}
- {level: None, nonResourceURLs: ['*'], verbs: [get]}
- {level: RequestResponse, omitManagedFields: true, resources: [{resources: [configmaps], resourceNames: [full]}]}
- {level: Request, resources: [{resources: [configmaps]}], verbs: [create, patch]}
- {level: Metadata, resources: [{resources: ['*']}], omitStages: [Panic]}
- {level: Metadata}
";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Waits for an event that is looked for, and gives all of that request's.
async fn events(f: &Fixture, what: impl Fn(&Value) -> bool) -> Vec<Value> {
    for _ in 0..2000 {
        let text = std::fs::read_to_string(f.dir.path().join("audit.log")).unwrap();
        let all: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if let Some(found) = all.iter().find(|event| what(event)) {
            return all.iter().filter(|event| event["auditID"] == found["auditID"]).cloned().collect();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no such event:\n{}", std::fs::read_to_string(f.dir.path().join("audit.log")).unwrap());
}

fn is_of(event: &Value, verb: &str, name: &str) -> bool {
    event["verb"] == verb && event["objectRef"]["name"] == name && event["stage"] == "ResponseComplete"
}

async fn start() -> Fixture {
    common::start_audited(storage::Options::default(), Some(POLICY)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kubectl_did() {
    let mut f = start().await;
    f.serve(0).await;
    let k = Kubectl { version: None, config: f.kubeconfig(), cache: f.dir.path().join("cache") };
    k.run(&["create", "configmap", "some", "--from-literal=a=b"]);
    let created = events(&f, |e| is_of(e, "create", "some")).await.remove(0);
    assert_eq!(created["level"], "Request");
    assert_eq!((&created["kind"], &created["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!(created["user"]["username"], "kubernetes-admin");
    assert_eq!(created["user"]["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(created["sourceIPs"], json!(["127.0.0.1"]));
    assert!(created["userAgent"].as_str().unwrap().starts_with("kubectl"), "{created}");
    assert!(
        created["requestURI"].as_str().unwrap().starts_with(&format!("{MAPS}?fieldManager=kubectl-create"))
    );
    assert_eq!(
        created["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "name": "some", "apiVersion": "v1"})
    );
    assert_eq!(created["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(
        (&created["requestObject"]["data"]["a"], &created["responseObject"]),
        (&json!("b"), &Value::Null)
    );
    assert_eq!(created["annotations"]["authorization.k8s.io/decision"], "allow");

    // Patches are shown as they were sent, YAML as JSON.
    k.run(&["label", "configmap", "some", "x=y"]);
    let patched = events(&f, |e| is_of(e, "patch", "some")).await.remove(0);
    assert_eq!(patched["requestObject"], json!({"metadata": {"labels": {"x": "y"}}}));
    let full = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: full, namespace: default}\ndata: {c: d}\n";
    k.feed(&["apply", "--server-side", "-f", "-"], full);
    let applied = events(&f, |e| is_of(e, "patch", "full")).await.remove(0);
    assert_eq!(
        (&applied["level"], &applied["responseObject"]["data"]["c"]),
        (&json!("RequestResponse"), &json!("d"))
    );
    assert_eq!(applied["responseObject"]["metadata"]["managedFields"], Value::Null);

    // Forbidden to somebody else, whose place the admin took.
    let refused = k.fail(&["get", "secret", "none", "--as=jane", "--as-group=dev"], "");
    assert!(refused.contains("Forbidden"), "{refused}");
    let refused = events(&f, |e| is_of(e, "get", "none")).await.remove(0);
    assert_eq!(
        (&refused["level"], &refused["user"]["username"]),
        (&json!("Metadata"), &json!("kubernetes-admin"))
    );
    assert_eq!(
        refused["impersonatedUser"],
        json!({"username": "jane", "groups": ["dev", "system:authenticated"]})
    );
    assert_eq!(
        (&refused["responseStatus"]["code"], &refused["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");

    // A watch begins and ends.
    let mut watch =
        k.command(&["get", "configmaps", "-w"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let is_watch = |e: &Value, stage: &str| {
        e["verb"] == "watch" && e["stage"] == stage && e["objectRef"]["resource"] == "configmaps"
    };
    assert_eq!(events(&f, |e| is_watch(e, "ResponseStarted")).await.len(), 1);
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(events(&f, |e| is_watch(e, "ResponseComplete")).await.len(), 2);

    // Credentials that do not hold make one event, of nobody.
    let mut command = common::kubectl(None).unwrap();
    let server = format!("https://{}", f.address.unwrap());
    command.args([
        "--server",
        &server,
        "--insecure-skip-tls-verify",
        "--token=nonsense",
        "get",
        "--raw",
        "/api/v1/nodes",
    ]);
    assert!(!command.env("KUBECONFIG", "/dev/null").output().unwrap().status.success());
    let refused = events(&f, |e| e["responseStatus"]["code"] == 401).await;
    assert_eq!(
        (refused.len(), &refused[0]["stage"], &refused[0]["user"]["username"]),
        (1, &json!("ResponseStarted"), &json!(""))
    );
    let metrics = f.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.bytes);
    assert!(metrics.contains("apiserver_audit_error_total{plugin=\"log\"} 0\n"), "{metrics}");
    assert!(metrics.contains("apiserver_audit_level_total{level=\"RequestResponse\"} "), "{metrics}");
}

#[tokio::test]
async fn ids_and_what_admission_notes() {
    let f = start().await;
    let got = f.send(Method::GET, MAPS, &[("audit-id", "mine")], "").await;
    assert_eq!(got.headers["audit-id"], "mine");
    assert_eq!(events(&f, |e| e["auditID"] == "mine").await.len(), 1);
    let id = f.get("/version").await.headers["audit-id"].to_str().unwrap().to_owned();
    assert_eq!(id.len(), 36);

    let labels = json!({"pod-security.kubernetes.io/audit": "restricted"});
    let namespace = json!({"metadata": {"name": "watched", "labels": labels}});
    assert_eq!(f.post("/api/v1/namespaces", &namespace).await.code, 201);
    f.post("/api/v1/namespaces/watched/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(f.post("/api/v1/namespaces/watched/pods", &pod).await.code, 201);
    let noted = events(&f, |e| is_of(e, "create", "p")).await.remove(0);
    let violations =
        noted["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap_or_default();
    assert!(violations.contains("host namespaces (hostNetwork=true)"), "{noted}");
    let deleted = f.delete("/api/v1/namespaces/watched/pods/p?gracePeriodSeconds=0", None).await;
    assert_eq!(deleted.code, 200);
    assert_eq!(events(&f, |e| is_of(e, "delete", "p")).await.len(), 1);
    // What the policy does not want is not there.
    let text = std::fs::read_to_string(f.dir.path().join("audit.log")).unwrap();
    assert!(!text.contains("/version") && !text.contains("system:apiserver"), "{text}");
}

#[tokio::test]
async fn without_a_policy_there_is_an_id_and_no_log() {
    let f = common::start().await;
    assert_eq!(f.get(MAPS).await.headers["audit-id"].len(), 36);
    assert!(!f.dir.path().join("audit.log").exists());
}
