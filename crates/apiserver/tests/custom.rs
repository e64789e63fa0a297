//! CustomResourceDefinitions: defined, served, changed, gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
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

async fn defined() -> common::Fixture {
    let f = common::start().await;
    let made = f.post(DEFINITIONS, &definition()).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    common::until(&f, THINGS, 200).await;
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
    common::until(&f, "/apis/x.example/v1beta1", 404).await;
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
    common::until(&f, &uri, 404).await;
    common::until(&f, THINGS, 404).await;
    // Defined anew, nothing of before is left.
    assert_eq!(f.post(DEFINITIONS, &definition()).await.code, 201);
    common::until(&f, THINGS, 200).await;
    assert_eq!(f.get(THINGS).await.json()["items"], json!([]));
}

/// One event of a watch from the beginning.
async fn first_event(f: &common::Fixture, uri: &str) -> Value {
    let mut body = f.open(Method::GET, uri, &[], "").await.into_body();
    let frame = tokio::time::timeout(Duration::from_secs(30), body.frame()).await.unwrap().unwrap();
    let bytes = frame.unwrap().into_data().unwrap();
    serde_json::from_slice(bytes.split(|b| *b == b'\n').next().unwrap()).unwrap()
}

#[tokio::test]
async fn stored_objects_are_read_as_the_definition_is_now() {
    let f = defined().await;
    let made = f.post(THINGS, &thing("old", json!({"size": 3, "color": "blue"}))).await.json();
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap();
    // Both versions lose a field and gain one with a default; a default of one version is no default of the other.
    let fields = |shape: &str| {
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"},
            "shape": {"type": "string", "default": shape}}}, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    let mut new = f.get(&format!("{DEFINITIONS}/things.x.example")).await.json();
    for version in new["spec"]["versions"].as_array_mut().unwrap() {
        let shape = if version["storage"] == true { "round" } else { "square" };
        version["schema"]["openAPIV3Schema"] = fields(shape);
    }
    let put = f.put(&format!("{DEFINITIONS}/things.x.example"), &new).await;
    assert_eq!(put.code, 200, "{:?}", put.status());
    let expected = json!({"size": 3, "shape": "round"});
    let uri = format!("{THINGS}/old");
    let mut read = Value::Null;
    for _ in 0..500 {
        read = f.get(&uri).await.json();
        if read["spec"] == expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        (&read["spec"], &read["metadata"]["resourceVersion"]),
        (&expected, &json!(revision)),
        "nobody wrote it"
    );
    assert_eq!(f.get(THINGS).await.json()["items"][0]["spec"], expected);
    let other = f.get("/apis/x.example/v1beta1/namespaces/default/things/old").await.json();
    assert_eq!(
        (&other["spec"], &other["apiVersion"]),
        (&expected, &json!("x.example/v1beta1")),
        "defaults of the stored version"
    );
    for version in ["v1", "v1beta1"] {
        let all = format!("/apis/x.example/{version}/namespaces/default/things?watch=true");
        let initial = first_event(&f, &format!("{all}&resourceVersion=0")).await;
        assert_eq!((&initial["type"], &initial["object"]["spec"]), (&json!("ADDED"), &expected), "{version}");
        let before = revision.parse::<u64>().unwrap() - 1;
        let replayed = first_event(&f, &format!("{all}&resourceVersion={before}")).await;
        assert_eq!(replayed["object"]["spec"], expected, "{version}");
        assert_eq!(replayed["object"]["apiVersion"], format!("x.example/{version}"));
    }
    // A write that changes nothing brings the store to what is read.
    let same = f.patch(&uri, "application/merge-patch+json", &json!({"spec": {"size": 3}})).await.json();
    assert_eq!(same["spec"], expected);
    assert_ne!(same["metadata"]["resourceVersion"], revision);
    assert_eq!(same["metadata"]["generation"], 1);
    let again = f.patch(&uri, "application/merge-patch+json", &json!({"spec": {"size": 3}})).await.json();
    assert_eq!(again["metadata"]["resourceVersion"], same["metadata"]["resourceVersion"], "once");
}

#[tokio::test]
async fn owners_keep_their_fields_across_versions() {
    let f = defined().await;
    let (one, two) = (THINGS, "/apis/x.example/v1beta1/namespaces/default/things");
    let media = "application/apply-patch+yaml";
    let in_beta = |spec: Value| {
        let mut thing = thing("a", spec);
        thing["apiVersion"] = "x.example/v1beta1".into();
        thing
    };
    let made = f
        .patch(&format!("{one}/a?fieldManager=me"), media, &thing("a", json!({"size": 3, "color": "blue"})))
        .await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    let lost = f.patch(&format!("{two}/a?fieldManager=you"), media, &in_beta(json!({"size": 4}))).await;
    assert_eq!(lost.status(), (409, "Apply failed with 1 conflict: conflict with \"me\": .spec.size".into()));
    // The same manager goes on in the other version: one entry, and what it no longer states goes back to its default.
    let moved = f.patch(&format!("{two}/a?fieldManager=me"), media, &in_beta(json!({"size": 4}))).await;
    assert_eq!(
        (moved.code, &moved.json()["spec"]),
        (200, &json!({"size": 4, "color": "red"})),
        "{:?}",
        moved.status()
    );
    let entries = moved.json()["metadata"]["managedFields"].clone();
    assert_eq!(entries.as_array().unwrap().len(), 1, "{entries}");
    assert_eq!(
        (&entries[0]["apiVersion"], &entries[0]["fieldsV1"]["f:spec"]),
        (&json!("x.example/v1beta1"), &json!({"f:size": {}}))
    );
}
