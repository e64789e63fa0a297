//! Each verb and each way it fails, over a real store, in process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use http::Method;
use serde_json::{Value, json};

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"n": name}}, "data": {"k": "v"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_object_lives() {
    let f = common::start().await;
    let made = f.post(MAPS, &config_map("a")).await;
    assert_eq!(made.code, 201, "{:?}", made.bytes);
    let made = made.json();
    for key in ["uid", "resourceVersion", "creationTimestamp"] {
        assert!(made["metadata"][key].is_string(), "{key}");
    }
    assert_eq!(made["metadata"]["namespace"], "default");
    let read = f.get(&format!("{MAPS}/a")).await.json();
    assert_eq!(read, made);
    let mut changed = read.clone();
    changed["data"]["k"] = "w".into();
    let put = f.put(&format!("{MAPS}/a"), &changed).await;
    assert_eq!((put.code, &put.json()["data"]["k"]), (200, &json!("w")));
    // The version in `changed` is now an old one.
    let stale = f.put(&format!("{MAPS}/a"), &changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.status().1,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let gone = f.delete(&format!("{MAPS}/a"), None).await.json();
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &read["metadata"]["uid"]));
    assert_eq!(f.get(&format!("{MAPS}/a")).await.status(), (404, "configmaps \"a\" not found".into()));
}

#[tokio::test]
async fn create_refuses() {
    let f = common::start().await;
    f.post(MAPS, &config_map("a")).await;
    let cases: Vec<(&str, Value, u16, &str)> = vec![
        (MAPS, config_map("a"), 409, "configmaps \"a\" already exists"),
        (
            MAPS,
            config_map("A_b"),
            422,
            "ConfigMap \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain",
        ),
        (
            MAPS,
            json!({"metadata": {}}),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        ("/api/v1/namespaces/nope/configmaps", config_map("a"), 404, "namespaces \"nope\" not found"),
        (
            MAPS,
            json!({"kind": "Pod", "apiVersion": "v1"}),
            400,
            "Pod in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            MAPS,
            json!({"kind": "ConfigMap", "apiVersion": "apps/v1"}),
            400,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            MAPS,
            json!({"metadata": {"name": "x", "namespace": "other"}}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (MAPS, json!([1]), 400, "the object provided is unrecognized (must be of type ConfigMap)"),
        ("/api/v1/nonsense", json!({}), 404, "the server could not find the requested resource"),
        (
            "/api/v1/configmaps",
            config_map("b"),
            405,
            "the server does not allow this method on the requested resource",
        ),
    ];
    for (uri, body, code, message) in cases {
        let got = f.post(uri, &body).await;
        let (got_code, text) = got.status();
        assert_eq!(got_code, code, "{uri} {body}: {text}");
        assert!(text.starts_with(message), "{uri} {body}: {text}");
    }
    let bad = f.send(Method::POST, MAPS, &[("content-type", "text/csv")], "a,b").await;
    assert_eq!(bad.code, 415);
    assert_eq!(f.send(Method::POST, MAPS, &[], vec![b' '; 4 << 20]).await.code, 413);
    assert_eq!(f.send(Method::POST, MAPS, &[], "{").await.code, 400);
    let deep = "[".repeat(100_000);
    assert_eq!(f.send(Method::POST, MAPS, &[], deep).await.code, 400);
    let picky = f.send(Method::POST, MAPS, &[("accept", "image/png")], config_map("z").to_string()).await;
    assert_eq!((picky.code, f.get(&format!("{MAPS}/z")).await.code), (406, 404));
}
