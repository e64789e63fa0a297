//! CustomResourceDefinitions: defined, served, changed, gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/x.example/v1/namespaces/default/things";

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1},
            "color": {"type": "string", "default": "red"}}},
        "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": schema,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]})
    };
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "things.x.example"}, "spec": {
            "group": "x.example", "scope": "Namespaced", "versions": [version("v1", true), version("v1beta1", false)],
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList", "shortNames": ["th"]}}})
}

/// Waits until a request gives a code.
async fn until(f: &common::Fixture, uri: &str, code: u16) {
    for _ in 0..200 {
        if f.get(uri).await.code == code {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{uri} never gave {code}");
}

async fn defined() -> common::Fixture {
    let f = common::start().await;
    let made = f.post(DEFINITIONS, &definition()).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    until(&f, THINGS, 200).await;
    f
}

fn thing(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "x.example/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn custom_objects_live_as_others_do() {
    let f = defined().await;
    let made = f.post(THINGS, &thing("a", json!({"size": 3, "nonsense": 1}))).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    assert_eq!(made.json()["spec"], json!({"size": 3, "color": "red"}));
    let warnings = made.headers.get("warning").unwrap().to_str().unwrap();
    assert!(warnings.contains("unknown field"), "{warnings}");
    let refused = f.post(THINGS, &thing("b", json!({"size": 0}))).await;
    assert_eq!(
        refused.status(),
        (422, "Thing.x.example \"b\" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1".into())
    );
    let wrong = f.post(THINGS, &thing("b", json!({"size": "x"}))).await;
    assert_eq!(wrong.code, 422, "{:?}", wrong.status());
    let beta = f.get("/apis/x.example/v1beta1/namespaces/default/things/a").await.json();
    assert_eq!((&beta["apiVersion"], &beta["spec"]["size"]), (&json!("x.example/v1beta1"), &json!(3)));
    let uri = format!("{THINGS}/a");
    let merged = f
        .patch(&uri, "application/merge-patch+json", &json!({"spec": {"size": 4}, "status": {"size": 9}}))
        .await
        .json();
    assert_eq!((&merged["metadata"]["generation"], &merged["status"]), (&json!(2), &Value::Null));
    let status = f
        .patch(&format!("{uri}/status"), "application/merge-patch+json", &json!({"status": {"size": 2}}))
        .await;
    assert_eq!(status.json()["status"]["size"], 2);
    let scale = f.get(&format!("{uri}/scale")).await.json();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(4), &json!(2)));
    let up = f
        .patch(&format!("{uri}/scale"), "application/merge-patch+json", &json!({"spec": {"replicas": 6}}))
        .await;
    assert_eq!((up.code, &f.get(&uri).await.json()["spec"]["size"]), (200, &json!(6)));
    let strategic = f.patch(&uri, "application/strategic-merge-patch+json", &json!({})).await;
    assert_eq!(strategic.code, 415);
    let table = f
        .send(Method::GET, THINGS, &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")], "")
        .await
        .json();
    assert_eq!(
        (&table["columnDefinitions"][1]["name"], &table["rows"][0]["cells"]),
        (&json!("Size"), &json!(["a", 6]))
    );
    let applied = f
        .patch(
            &format!("{uri}?fieldManager=m"),
            "application/apply-patch+yaml",
            &thing("a", json!({"size": 6, "color": "blue"})),
        )
        .await;
    assert_eq!(applied.code, 409, "{:?}", applied.status());
}

#[tokio::test]
async fn discovery_and_openapi_follow_the_definition() {
    let f = defined().await;
    let group = f.get("/apis/x.example/v1").await.json();
    assert_eq!(
        (&group["resources"][0]["name"], &group["resources"][0]["shortNames"]),
        (&json!("things"), &json!(["th"]))
    );
    let document = f.get("/openapi/v3/apis/x.example/v1").await.json();
    assert!(document["components"]["schemas"].to_string().contains("\"color\""));
    let mut stored = f.get(&format!("{DEFINITIONS}/things.x.example")).await.json();
    for _ in 0..100 {
        if stored["status"]["conditions"].is_array() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        stored = f.get(&format!("{DEFINITIONS}/things.x.example")).await.json();
    }
    assert_eq!(stored["status"]["conditions"][1]["type"], "Established");
    // The definition's own table of kinds changes with it.
    stored["spec"]["versions"][1]["served"] = false.into();
    assert_eq!(f.put(&format!("{DEFINITIONS}/things.x.example"), &stored).await.code, 200);
    until(&f, "/apis/x.example/v1beta1", 404).await;
}

#[tokio::test]
async fn objects_go_before_their_definition() {
    let f = defined().await;
    f.post(THINGS, &thing("a", json!({"size": 3}))).await;
    let uri = format!("{DEFINITIONS}/things.x.example");
    for _ in 0..100 {
        if f.get(&uri).await.json()["metadata"]["finalizers"].is_array() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(f.delete(&uri, None).await.code, 200);
    until(&f, &uri, 404).await;
    until(&f, THINGS, 404).await;
    // Defined anew, nothing of before is left.
    assert_eq!(f.post(DEFINITIONS, &definition()).await.code, 201);
    until(&f, THINGS, 200).await;
    assert_eq!(f.get(THINGS).await.json()["items"], json!([]));
}
