//! Admission webhooks: a stand-in over TLS that patches, refuses, warns, hangs up and hangs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::hook::Hook;
use http::Method;
use serde_json::{Value, json};

/// What the path asks it to do.
fn answer(path: &str, request: &Value) -> Value {
    let uid = &request["uid"];
    let patch = |operations: Value| STANDARD.encode(operations.to_string());
    match path {
        "/label" => json!({"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": patch(json!([
            {"op": "add", "path": "/metadata/labels", "value": {"hooked": "yes"}}]))}),
        "/refuse" => json!({"uid": uid, "allowed": false, "warnings": ["told you"],
            "status": {"code": 403, "reason": "Forbidden", "message": "not on my watch"}}),
        "/other" => json!({"uid": "another", "allowed": true}),
        _ => json!({"uid": uid, "allowed": true}),
    }
}

fn reply(path: &str, review: &Value) -> Option<(u16, String)> {
    match path {
        "/hang" => None,
        "/broken" => Some((500, "oh no".into())),
        _ => {
            let response = answer(path, &review["request"]);
            let answer =
                json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
            Some((200, answer.to_string()))
        }
    }
}

/// A webhook for `resources` of core/v1 that goes to `path`.
fn spec(hook: &Hook, f: &common::Fixture, path: &str, resources: &[&str]) -> Value {
    json!({"name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1, "clientConfig": hook.client(f, path),
        "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}]})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn configure(f: &common::Fixture, kind: &str, hook: Value) {
    let plural = format!("{}s", kind.to_lowercase());
    let uri = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
    f.delete(&format!("{uri}/test"), None).await;
    let got = f.post(&uri, &json!({"metadata": {"name": "test"}, "webhooks": [hook]})).await;
    assert_eq!(got.code, 201, "{:?}", got.status());
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "b"}})
}

#[tokio::test]
async fn a_mutating_webhook_changes_what_is_stored() {
    let f = common::start().await;
    let hook = Hook::start(&f, reply).await;
    configure(&f, MUTATING, spec(&hook, &f, "/label", &["configmaps"])).await;
    let made = f.post(MAPS, &map("a")).await;
    assert_eq!((made.code, &made.json()["metadata"]["labels"]["hooked"]), (201, &json!("yes")));
    let asked = hook.asked().remove(0);
    assert_eq!((&asked["operation"], &asked["kind"]["kind"]), (&json!("CREATE"), &json!("ConfigMap")));
    assert_eq!(asked["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(asked["userInfo"]["username"], "admin");
    assert_eq!((&asked["object"]["data"]["a"], &asked["oldObject"]), (&json!("b"), &json!(null)));
    // Another kind is none of its business, and neither are configurations of webhooks.
    assert_eq!(f.post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await.code, 201);
    assert!(hook.asked().is_empty());
}

#[tokio::test]
async fn a_validating_webhook_refuses_each_way_of_writing() {
    let f = common::start().await;
    let hook = Hook::start(&f, reply).await;
    assert_eq!(f.post(MAPS, &map("old")).await.code, 201);
    configure(&f, VALIDATING, spec(&hook, &f, "/refuse", &["configmaps"])).await;
    let why = "admission webhook \"hook.example.com\" denied the request: not on my watch";
    let old = format!("{MAPS}/old");
    let patch = json!({"data": {"c": "d"}});
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}});
    for got in [
        f.post(MAPS, &map("a")).await,
        f.put(&old, &map("old")).await,
        f.patch(&old, "application/merge-patch+json", &patch).await,
        f.patch(&format!("{MAPS}/new?fieldManager=me"), "application/apply-patch+yaml", &applied).await,
        f.delete(&old, None).await,
        f.delete(MAPS, None).await,
    ] {
        assert_eq!(got.status(), (403, why.to_owned()));
        assert_eq!(got.json()["reason"], "Forbidden");
        assert_eq!(got.headers["warning"], "299 - \"told you\"");
    }
    let operations: Vec<Value> = hook.asked().iter().map(|r| r["operation"].clone()).collect();
    assert_eq!(operations, ["CREATE", "UPDATE", "UPDATE", "CREATE", "DELETE", "DELETE"]);
    let kept = f.get(&old).await.json();
    assert_eq!(kept["data"], json!({"a": "b"}));
}

#[tokio::test]
async fn failures_count_as_the_policy_says() {
    let f = common::start().await;
    let hook = Hook::start(&f, reply).await;
    let expected = [
        ("/broken", "an error on the server (\"oh no\", status 500"),
        ("/hang", "context deadline exceeded"),
        ("/other", "expected response.uid"),
    ];
    for (path, words) in expected {
        let mut wanted = spec(&hook, &f, path, &["configmaps"]);
        configure(&f, VALIDATING, wanted.clone()).await;
        let (code, text) = f.post(MAPS, &map("a")).await.status();
        assert_eq!(code, 500, "{text}");
        let head = "Internal error occurred: failed calling webhook \"hook.example.com\": ";
        assert!(text.starts_with(head) && text.contains(words), "{text}");
        wanted["failurePolicy"] = json!("Ignore");
        configure(&f, VALIDATING, wanted).await;
        assert_eq!(f.post(MAPS, &json!({"metadata": {"generateName": "b"}})).await.code, 201);
    }
    // An authority that did not sign the webhook's certificate.
    let mut wanted = spec(&hook, &f, "/ok", &["configmaps"]);
    wanted["clientConfig"]["caBundle"] = STANDARD.encode(common::Pki::new().ca_pem).into();
    configure(&f, VALIDATING, wanted).await;
    let (code, text) = f.post(MAPS, &map("a")).await.status();
    assert!(code == 500 && text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn selectors_dry_runs_versions_and_connections() {
    let f = common::start().await;
    let hook = Hook::start(&f, reply).await;
    let mut wanted = spec(&hook, &f, "/ok", &["configmaps"]);
    wanted["namespaceSelector"] = json!({"matchLabels": {"watched": "yes"}});
    wanted["objectSelector"] = json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]});
    configure(&f, VALIDATING, wanted.clone()).await;
    f.post(MAPS, &map("a")).await;
    assert!(hook.asked().is_empty(), "the namespace is not chosen");
    let label = json!({"metadata": {"labels": {"watched": "yes"}}});
    f.patch("/api/v1/namespaces/default", "application/merge-patch+json", &label).await;
    f.post(MAPS, &json!({"metadata": {"name": "b", "labels": {"skip": "me"}}})).await;
    assert!(hook.asked().is_empty(), "the object is not chosen");
    f.post(&format!("{MAPS}?dryRun=All"), &map("c")).await;
    let asked = hook.asked().remove(0);
    assert_eq!((&asked["dryRun"], &asked["options"]["dryRun"]), (&json!(true), &json!(["All"])));

    // A rule for another version of the same objects counts, unless only exact matches do.
    let hpas = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 2, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let mut wanted = spec(&hook, &f, "/ok", &["horizontalpodautoscalers"]);
    wanted["rules"][0]["apiVersions"] = json!(["v2"]);
    configure(&f, VALIDATING, wanted.clone()).await;
    assert_eq!(f.post(hpas, &hpa).await.code, 201);
    let asked = hook.asked().remove(0);
    assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v2"), &json!("v1")));
    assert_eq!(asked["object"]["spec"]["metrics"][0]["resource"]["name"], "cpu");
    wanted["matchPolicy"] = json!("Exact");
    configure(&f, VALIDATING, wanted).await;
    f.delete(&format!("{hpas}/h"), None).await;
    assert!(hook.asked().is_empty());

    configure(&f, VALIDATING, spec(&hook, &f, "/refuse", &["pods/exec"])).await;
    f.post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(f.post("/api/v1/namespaces/default/pods", &pod).await.code, 201);
    let uri = "/api/v1/namespaces/default/pods/p/exec?command=a&command=b&stdout=true";
    assert_eq!(f.send(Method::POST, uri, &[], "").await.code, 403);
    let asked = hook.asked().remove(0);
    assert_eq!((&asked["operation"], &asked["subResource"]), (&json!("CONNECT"), &json!("exec")));
    assert_eq!(
        asked["object"],
        json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdout": true,
        "command": ["a", "b"]})
    );
}
