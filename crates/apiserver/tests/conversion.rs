//! Several versions of a custom kind, converted by a webhook: real HTTPS on its side, the real kubectl on the other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::hook::Hook;
use common::{Fixture, Kubectl};
use futures::StreamExt as _;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/x.example/v1/namespaces/default/doors";
const BETA: &str = "/apis/x.example/v1beta1/namespaces/default/doors";

/// v1beta1 has `spec.hostPort: host:port`, v1 has `spec.host` and `spec.port`.
fn convert(object: &Value, target: &str) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = target.into();
    let spec = &object["spec"];
    out["spec"] = if target.ends_with("v1") {
        let (host, port) = spec["hostPort"].as_str().unwrap().split_once(':').unwrap();
        json!({"host": host, "port": port})
    } else {
        let text = |key: &str| spec[key].as_str().unwrap().to_owned();
        json!({"hostPort": format!("{}:{}", text("host"), text("port"))})
    };
    out["metadata"]["labels"]["seen-as"] = target.rsplit('/').next().into();
    out
}

fn answer(path: &str, review: &Value) -> Option<(u16, String)> {
    let request = &review["request"];
    let target = request["desiredAPIVersion"].as_str().unwrap();
    let sent = request["objects"].as_array().unwrap();
    let mut converted: Vec<Value> = sent.iter().map(|object| convert(object, target)).collect();
    let mut result = json!({"status": "Success"});
    match path {
        "/fails" => return Some((500, "oh no".into())),
        "/refuses" => result = json!({"status": "Failed", "message": "no such door"}),
        "/forgets" => drop(converted.pop()),
        "/renames" => converted[0]["metadata"]["name"] = "other".into(),
        _ => {}
    }
    let response = json!({"uid": request["uid"], "result": result, "convertedObjects": converted});
    Some((
        200,
        json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response})
            .to_string(),
    ))
}

fn definition(client: Value, stored: &str) -> Value {
    let version = |name: &str, spec: Value| {
        json!({"name": name, "served": true, "storage": name == stored, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": spec},
                "status": {"type": "object", "properties": {"open": {"type": "boolean"}}}}}}})
    };
    let texts = |names: &[&str]| {
        names.iter().map(|n| ((*n).to_owned(), json!({"type": "string"}))).collect::<Value>()
    };
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "doors.x.example"},
        "spec": {"group": "x.example", "scope": "Namespaced", "names": {"plural": "doors", "kind": "Door"},
            "versions": [version("v1", texts(&["host", "port"])), version("v1beta1", texts(&["hostPort"]))],
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1"]}}}})
}

/// Waits until the server has taken the definition in.
async fn until(f: &Fixture, what: impl Fn(&Value) -> bool) {
    let uri = format!("{DEFINITION}/doors.x.example");
    for _ in 0..1000 {
        let now = f.get(&uri).await.json();
        if now["status"]["conditions"].is_array() && what(&now) && f.get(V1).await.code == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the definition was not taken in");
}

async fn start() -> (Fixture, Hook) {
    let f = common::start().await;
    let hook = Hook::start(&f, answer).await;
    let made = f.post(DEFINITION, &definition(hook.client(&f, "/convert"), "v1")).await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    until(&f, |_| true).await;
    (f, hook)
}

fn door(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("x.example/{version}"), "kind": "Door", "metadata": {"name": name}, "spec": spec})
}

/// Sends the definition to another path of the webhook.
async fn send_to(f: &Fixture, client: Value) {
    let patch = json!({"spec": {"conversion": {"webhook": {"clientConfig": client}}}});
    let uri = format!("{DEFINITION}/doors.x.example");
    assert_eq!(f.patch(&uri, "application/merge-patch+json", &patch).await.code, 200);
}

#[tokio::test]
async fn every_verb_in_either_version() {
    let (f, hook) = start().await;
    let made = f.post(BETA, &door("v1beta1", "a", json!({"hostPort": "h:1", "unknown": "x"}))).await;
    assert_eq!((made.code, &made.json()["spec"]), (201, &json!({"hostPort": "h:1"})), "{:?}", made.status());
    // Once to be stored, once to be shown.
    let asked = hook.asked();
    assert_eq!(
        asked.iter().map(|r| r["desiredAPIVersion"].as_str().unwrap()).collect::<Vec<_>>(),
        ["x.example/v1", "x.example/v1beta1"]
    );
    assert_eq!(asked[0]["objects"][0]["metadata"]["resourceVersion"], Value::Null);
    let stored = f.get(&format!("{V1}/a")).await.json();
    assert_eq!(stored["spec"], json!({"host": "h", "port": "1"}));
    assert!(hook.asked().is_empty(), "nothing to convert in the stored version");
    assert_eq!(f.get(&format!("{BETA}/a")).await.json()["spec"], json!({"hostPort": "h:1"}));

    let beta = format!("{BETA}/a");
    let mut put = f.get(&beta).await.json();
    assert_eq!(put["metadata"]["labels"]["seen-as"], "v1beta1");
    put["spec"]["hostPort"] = "h:2".into();
    assert_eq!(f.put(&beta, &put).await.json()["spec"]["hostPort"], "h:2");
    let merge = "application/merge-patch+json";
    let patched = f.patch(&beta, merge, &json!({"spec": {"hostPort": "h:3"}})).await.json();
    assert_eq!(
        (&patched["spec"]["hostPort"], &patched["metadata"]["generation"]),
        (&json!("h:3"), &json!(3))
    );
    let status = f.patch(&format!("{beta}/status"), merge, &json!({"status": {"open": true}})).await;
    assert_eq!(status.json()["status"]["open"], true, "{:?}", status.status());
    let apply = "application/apply-patch+yaml";
    let applied = door("v1beta1", "a", json!({"hostPort": "h:4"}));
    let applied = f.patch(&format!("{beta}?fieldManager=me&force=true"), apply, &applied).await;
    assert_eq!(applied.json()["spec"]["hostPort"], "h:4", "{:?}", applied.status());
    let conflict = f
        .patch(&format!("{beta}?fieldManager=you"), apply, &door("v1beta1", "a", json!({"hostPort": "h:5"})))
        .await;
    assert!(conflict.status().1.contains(".spec.hostPort"), "{:?}", conflict.status());
    let new = door("v1beta1", "new", json!({"hostPort": "n:1"}));
    assert_eq!(f.patch(&format!("{BETA}/new?fieldManager=me"), apply, &new).await.code, 201);
    let got = f.get(&format!("{V1}/a")).await.json();
    assert_eq!((&got["spec"]["port"], &got["status"]["open"]), (&json!("4"), &json!(true)));

    // A list is one question, whatever its length and shape; what is seen is what selectors choose from.
    hook.asked();
    let all = f.get(BETA).await.json();
    assert_eq!((all["items"].as_array().unwrap().len(), hook.asked().len()), (2, 1));
    for (version, found) in [("v1beta1", 2), ("v1", 0)] {
        let chosen = f.get(&format!("{BETA}?labelSelector=seen-as%3D{version}")).await.json();
        assert_eq!(chosen["items"].as_array().unwrap().len(), found, "{version}");
    }
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let table = f.send(Method::GET, &format!("{BETA}?includeObject=Object"), &table, "").await.json();
    assert_eq!(table["rows"][0]["object"]["spec"]["hostPort"], "h:4");

    let dry = f.post(&format!("{BETA}?dryRun=All"), &door("v1beta1", "b", json!({"hostPort": "h:1"}))).await;
    assert_eq!((dry.code, f.get(&format!("{V1}/b")).await.code), (201, 404));
    assert_eq!(f.delete(&beta, None).await.code, 200);
    assert_eq!(f.get(&format!("{V1}/a")).await.code, 404);
}

/// The next events of a watch.
async fn events(body: apiserver::server::Body, count: usize) -> Vec<Value> {
    let (mut stream, mut text, mut out) = (body.into_data_stream(), Vec::new(), Vec::new());
    while out.len() < count {
        let chunk =
            tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("an event in time");
        text.extend_from_slice(&chunk.expect("the watch goes on").unwrap());
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            out.push(serde_json::from_slice(&line).unwrap());
        }
    }
    out
}

#[tokio::test]
async fn watches_see_their_version_and_share_the_conversions() {
    let (f, hook) = start().await;
    f.post(V1, &door("v1", "a", json!({"host": "h", "port": "1"}))).await;
    let all = format!("{BETA}?watch=true");
    let mut watches = Vec::new();
    for _ in 0..10 {
        watches.push(tokio::spawn(events(f.open(Method::GET, &all, &[], "").await.into_body(), 4)));
    }
    let plain =
        tokio::spawn(events(f.open(Method::GET, &format!("{V1}?watch=true"), &[], "").await.into_body(), 4));
    let chosen = format!("{BETA}?watch=true&labelSelector=seen-as%3Dv1beta1");
    let chosen = tokio::spawn(events(f.open(Method::GET, &chosen, &[], "").await.into_body(), 4));
    hook.asked();
    let patch = json!({"spec": {"port": "2"}});
    f.patch(&format!("{V1}/a"), "application/merge-patch+json", &patch).await;
    f.post(V1, &door("v1", "b", json!({"host": "h", "port": "1"}))).await;
    f.delete(&format!("{V1}/a"), None).await;
    let brief = |events: Vec<Value>, key: &str| -> Vec<String> {
        events
            .iter()
            .map(|e| format!("{} {}", e["type"].as_str().unwrap(), e["object"]["spec"][key]))
            .collect()
    };
    let expected = ["ADDED \"h:1\"", "MODIFIED \"h:2\"", "ADDED \"h:1\"", "DELETED \"h:2\""];
    for watch in watches {
        assert_eq!(brief(watch.await.unwrap(), "hostPort"), expected);
    }
    assert_eq!(brief(chosen.await.unwrap(), "hostPort"), expected);
    let of_plain = brief(plain.await.unwrap(), "port");
    assert_eq!(of_plain, ["ADDED \"1\"", "MODIFIED \"2\"", "ADDED \"1\"", "DELETED \"2\""]);
    // Three events: at most one question each, and one more each for the watch that needs the state before.
    let asked = hook.asked().len();
    assert!((1..=6).contains(&asked), "{asked} questions");
}

#[tokio::test]
async fn failures_say_what_failed() {
    let (f, hook) = start().await;
    f.post(V1, &door("v1", "a", json!({"host": "h", "port": "1"}))).await;
    let who = "conversion webhook for x.example/v1, Kind=Door";
    for (path, why) in [
        ("/fails", format!("{who} failed: Post \"https://127.0.0.1:")),
        ("/refuses", format!("{who} failed: no such door")),
        ("/forgets", format!("{who} returned 0 objects, expected 1")),
        (
            "/renames",
            format!(
                "{who} returned invalid converted object at index 0: must have the same name: a != other"
            ),
        ),
    ] {
        send_to(&f, hook.client(&f, path)).await;
        let mut got = f.get(&format!("{BETA}/a")).await;
        // The server follows the definition in its own time.
        for _ in 0..1000 {
            if got.code == 500 && got.status().1.starts_with(&why) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            got = f.get(&format!("{BETA}/a")).await;
        }
        let (code, message) = got.status();
        assert!(code == 500 && message.starts_with(&why), "{path}: {message}");
        assert_eq!(got.json()["reason"], Value::Null);
        assert_eq!(f.get(BETA).await.code, 500);
        let refused = f.post(BETA, &door("v1beta1", "b", json!({"hostPort": "h:1"}))).await;
        assert_eq!((refused.code, f.get(&format!("{V1}/b")).await.code), (500, 404));
        assert_eq!(f.get(&format!("{V1}/a")).await.code, 200, "the stored version needs no webhook");
    }
    let watch = f.open(Method::GET, &format!("{BETA}?watch=true&resourceVersion=1"), &[], "").await;
    let error = events(watch.into_body(), 1).await.remove(0);
    assert_eq!((&error["type"], &error["object"]["code"]), (&json!("ERROR"), &json!(500)));
}

#[tokio::test]
async fn another_version_is_stored_from_now_on() {
    let (f, hook) = start().await;
    f.post(V1, &door("v1", "a", json!({"host": "h", "port": "1"}))).await;
    let uri = format!("{DEFINITION}/doors.x.example");
    let mut moved = definition(hook.client(&f, "/convert"), "v1beta1");
    moved["metadata"] = f.get(&uri).await.json()["metadata"].clone();
    assert_eq!(f.put(&uri, &moved).await.code, 200);
    until(&f, |now| now["status"]["storedVersions"] == json!(["v1", "v1beta1"])).await;
    // A version that objects may be stored in cannot go.
    let mut without = f.get(&uri).await.json();
    without["spec"]["versions"].as_array_mut().unwrap().remove(0);
    let (code, why) = f.put(&uri, &without).await.status();
    assert!(
        code == 422
            && why.contains("status.storedVersions[0]: Invalid value: \"v1\": must appear in spec.versions"),
        "{why}"
    );
    hook.asked();
    assert_eq!(f.get(&format!("{BETA}/a")).await.json()["spec"]["hostPort"], "h:1");
    assert_eq!(hook.asked().len(), 1, "it is still stored as v1");
    // A write that changes nothing moves it.
    let same = f.get(&format!("{BETA}/a")).await.json();
    assert_eq!(f.put(&format!("{BETA}/a"), &same).await.code, 200);
    hook.asked();
    assert_eq!(f.get(&format!("{BETA}/a")).await.json()["spec"]["hostPort"], "h:1");
    assert!(hook.asked().is_empty(), "it is stored as v1beta1 now");
    assert_eq!(f.get(&format!("{V1}/a")).await.json()["spec"]["port"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads_and_writes_both() {
    let (mut f, hook) = start().await;
    f.serve(0).await;
    let k = Kubectl { version: None, config: f.kubeconfig(), cache: f.dir.path().join("cache") };
    let beta = "apiVersion: x.example/v1beta1\nkind: Door\nmetadata: {name: front, namespace: default}\nspec: {hostPort: 'h:80'}\n";
    assert_eq!(k.feed(&["apply", "-f", "-"], beta), "door.x.example/front created");
    assert_eq!(
        k.run(&["get", "doors.v1.x.example", "-o", "jsonpath={.items[0].spec}"]),
        r#"{"host":"h","port":"80"}"#
    );
    assert_eq!(
        k.run(&["get", "doors.v1beta1.x.example", "front", "-o", "jsonpath={.spec}"]),
        r#"{"hostPort":"h:80"}"#
    );
    assert_eq!(k.feed(&["apply", "-f", "-"], beta), "door.x.example/front unchanged");
    let v1 = "apiVersion: x.example/v1\nkind: Door\nmetadata: {name: back, namespace: default}\nspec: {host: h, port: '81'}\n";
    let applied = k.feed(&["apply", "--server-side", "-f", "-"], v1);
    assert_eq!(applied, "door.x.example/back serverside-applied");
    let names = k.run(&["get", "doors.v1beta1.x.example"]);
    assert!(names.contains("front") && names.contains("back"), "{names}");
    k.run(&[
        "patch",
        "doors.v1beta1.x.example",
        "back",
        "--type=merge",
        "-p",
        r#"{"spec":{"hostPort":"h:82"}}"#,
    ]);
    assert_eq!(k.run(&["get", "doors.v1.x.example", "back", "-o", "jsonpath={.spec.port}"]), "82");
    k.run(&["delete", "doors.v1beta1.x.example", "front"]);
    send_to(&f, hook.client(&f, "/refuses")).await;
    let mut refused = String::new();
    for _ in 0..500 {
        let output = k.output(&["get", "doors.v1beta1.x.example"], "");
        refused = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        refused,
        "Error from server: conversion webhook for x.example/v1, Kind=Door failed: no such door"
    );
    // The definition still goes, objects and all: they are stored in the version that is stored.
    k.run(&["delete", "crd", "doors.x.example", "--timeout=60s"]);
}

#[tokio::test]
async fn owners_of_fields_outlive_a_conversion() {
    let (f, hook) = start().await;
    let media = "application/apply-patch+yaml";
    let made = f
        .patch(
            &format!("{V1}/a?fieldManager=one"),
            media,
            &door("v1", "a", json!({"host": "h", "port": "1"})),
        )
        .await;
    assert_eq!(made.code, 201, "{:?}", made.status());
    let wanted = door("v1beta1", "a", json!({"hostPort": "h:2"}));
    let lost = f.patch(&format!("{BETA}/a?fieldManager=two"), media, &wanted).await;
    assert_eq!(
        lost.status(),
        (409, "Apply failed with 1 conflict: conflict with \"one\": .spec.port".into()),
        "named as the owner knows it"
    );
    let won = f.patch(&format!("{BETA}/a?fieldManager=two&force=true"), media, &wanted).await;
    assert_eq!((won.code, &won.json()["spec"]), (200, &json!({"hostPort": "h:2"})), "{:?}", won.status());
    let owned = |object: &Value, name: &str| {
        let all = object["metadata"]["managedFields"].as_array().unwrap().clone();
        let entry = all.into_iter().find(|e| e["manager"] == name).unwrap();
        (entry["apiVersion"].clone(), entry["fieldsV1"]["f:spec"].clone())
    };
    let seen = f.get(&format!("{V1}/a")).await.json();
    assert_eq!(owned(&seen, "one"), (json!("x.example/v1"), json!({"f:host": {}})));
    assert_eq!(owned(&seen, "two"), (json!("x.example/v1beta1"), json!({"f:hostPort": {}})));
    // The same again, by its owner of the other version, asks but changes nothing.
    let again = f.patch(&format!("{BETA}/a?fieldManager=two"), media, &wanted).await.json();
    assert_eq!(again["metadata"]["resourceVersion"], seen["metadata"]["resourceVersion"]);
    // A plain write in v1 takes the port, which is a part of what the other one owns in v1beta1.
    let patch = json!({"spec": {"port": "3"}});
    let three =
        f.patch(&format!("{V1}/a?fieldManager=three"), "application/merge-patch+json", &patch).await.json();
    assert_eq!(owned(&three, "three"), (json!("x.example/v1"), json!({"f:port": {}})));
    assert!(
        !three["metadata"]["managedFields"].as_array().unwrap().iter().any(|e| e["manager"] == "two"),
        "{three}"
    );
    // A webhook that fails fails the write: nobody can say what is owned.
    send_to(&f, hook.client(&f, "/fails")).await;
    let mut code = 200;
    for _ in 0..500 {
        code = f.patch(&format!("{BETA}/a?fieldManager=four&force=true"), media, &wanted).await.code;
        if code == 500 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code, 500);
}
