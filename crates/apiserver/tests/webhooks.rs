//! Admission webhooks: a stand-in over TLS that patches, refuses, warns, hangs up and hangs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The stand-in: what it was asked, and its port.
struct Hook {
    asked: Arc<Mutex<Vec<Value>>>,
    port: u16,
}

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

async fn serve(asked: Arc<Mutex<Vec<Value>>>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    if path == "/hang" {
        std::future::pending::<()>().await;
    }
    if path == "/broken" {
        return Response::builder().status(500).body(Full::from("oh no")).unwrap();
    }
    let review: Value = serde_json::from_slice(&body).unwrap();
    asked.lock().unwrap().push(review["request"].clone());
    let answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "response": answer(&path, &review["request"])});
    Response::new(Full::from(answer.to_string()))
}

impl Hook {
    async fn start(f: &common::Fixture) -> Self {
        let (_, _, certificate, key) = f.pki.issue("hook", &[], &["127.0.0.1"]);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let (acceptor, listener) =
            (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let hook = Hook { asked: Arc::default(), port: listener.local_addr().unwrap().port() };
        let asked = hook.asked.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, asked) = (acceptor.clone(), asked.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| {
                        let asked = asked.clone();
                        async move { Ok::<_, Infallible>(serve(asked, request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        hook
    }

    /// A webhook for `resources` of core/v1 that goes to `path`.
    fn spec(&self, f: &common::Fixture, path: &str, resources: &[&str]) -> Value {
        json!({"name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1,
            "clientConfig": {"url": format!("https://127.0.0.1:{}{path}", self.port),
                "caBundle": STANDARD.encode(&f.pki.ca_pem)},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}]})
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
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
    let hook = Hook::start(&f).await;
    configure(&f, MUTATING, hook.spec(&f, "/label", &["configmaps"])).await;
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
    let hook = Hook::start(&f).await;
    assert_eq!(f.post(MAPS, &map("old")).await.code, 201);
    configure(&f, VALIDATING, hook.spec(&f, "/refuse", &["configmaps"])).await;
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
    let hook = Hook::start(&f).await;
    let expected = [
        ("/broken", "an error on the server (\"oh no\", status 500"),
        ("/hang", "context deadline exceeded"),
        ("/other", "expected response.uid"),
    ];
    for (path, words) in expected {
        let mut spec = hook.spec(&f, path, &["configmaps"]);
        configure(&f, VALIDATING, spec.clone()).await;
        let (code, text) = f.post(MAPS, &map("a")).await.status();
        assert_eq!(code, 500, "{text}");
        let head = "Internal error occurred: failed calling webhook \"hook.example.com\": ";
        assert!(text.starts_with(head) && text.contains(words), "{text}");
        spec["failurePolicy"] = json!("Ignore");
        configure(&f, VALIDATING, spec).await;
        assert_eq!(f.post(MAPS, &json!({"metadata": {"generateName": "b"}})).await.code, 201);
    }
    // An authority that did not sign the webhook's certificate.
    let mut spec = hook.spec(&f, "/ok", &["configmaps"]);
    spec["clientConfig"]["caBundle"] = STANDARD.encode(common::Pki::new().ca_pem).into();
    configure(&f, VALIDATING, spec).await;
    let (code, text) = f.post(MAPS, &map("a")).await.status();
    assert!(code == 500 && text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn selectors_dry_runs_versions_and_connections() {
    let f = common::start().await;
    let hook = Hook::start(&f).await;
    let mut spec = hook.spec(&f, "/ok", &["configmaps"]);
    spec["namespaceSelector"] = json!({"matchLabels": {"watched": "yes"}});
    spec["objectSelector"] = json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]});
    configure(&f, VALIDATING, spec.clone()).await;
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
    let mut spec = hook.spec(&f, "/ok", &["horizontalpodautoscalers"]);
    spec["rules"][0]["apiVersions"] = json!(["v2"]);
    configure(&f, VALIDATING, spec.clone()).await;
    assert_eq!(f.post(hpas, &hpa).await.code, 201);
    let asked = hook.asked().remove(0);
    assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v2"), &json!("v1")));
    assert_eq!(asked["object"]["spec"]["metrics"][0]["resource"]["name"], "cpu");
    spec["matchPolicy"] = json!("Exact");
    configure(&f, VALIDATING, spec).await;
    f.delete(&format!("{hpas}/h"), None).await;
    assert!(hook.asked().is_empty());

    configure(&f, VALIDATING, hook.spec(&f, "/refuse", &["pods/exec"])).await;
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
