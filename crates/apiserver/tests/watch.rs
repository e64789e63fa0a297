//! Watches: where they begin, what a selector makes of changes, bookmarks, their end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"l": label}}, "data": {"k": "v"}})
}

/// A running watch, read event by event.
struct Watch {
    body: apiserver::server::Body,
    buffer: Vec<u8>,
}

impl Watch {
    async fn open(f: &common::Fixture, query: &str, accept: &str) -> Self {
        let response =
            f.open(Method::GET, &format!("{MAPS}?watch=true&{query}"), &[("accept", accept)], "").await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; `None` when the watch has ended.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame())
                .await
                .expect("an event in time");
            self.buffer.extend_from_slice(&frame?.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    async fn brief(&mut self) -> String {
        match self.next().await {
            Some(e) => format!(
                "{} {}",
                e["type"].as_str().unwrap(),
                e["object"]["metadata"]["name"].as_str().unwrap_or("-")
            ),
            None => "end".into(),
        }
    }
}

#[tokio::test]
async fn from_nothing_from_zero_and_from_a_version() {
    let f = common::start().await;
    f.post(MAPS, &map("a", "x")).await;
    let version = f.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut unset = Watch::open(&f, "", "").await;
    let mut zero = Watch::open(&f, "resourceVersion=0", "").await;
    let mut later = Watch::open(&f, &format!("resourceVersion={version}"), "").await;
    let made = f.post(MAPS, &map("b", "x")).await.json();
    f.delete(&format!("{MAPS}/a"), None).await;
    for watch in [&mut unset, &mut zero] {
        assert_eq!(watch.brief().await, "ADDED a");
    }
    for watch in [&mut unset, &mut zero, &mut later] {
        assert_eq!(watch.next().await.unwrap(), json!({"type": "ADDED", "object": made}));
        let gone = watch.next().await.unwrap();
        assert_eq!((&gone["type"], &gone["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("a")));
        let number = |v: &Value| v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(number(&gone["object"]) > number(&made));
    }
}

#[tokio::test]
async fn a_selector_sees_objects_come_and_go() {
    let f = common::start().await;
    f.post(MAPS, &map("a", "x")).await;
    let mut x = Watch::open(&f, "labelSelector=l%3Dx", "").await;
    let mut named = Watch::open(&f, "fieldSelector=metadata.name%3Db", "").await;
    assert_eq!(x.brief().await, "ADDED a");
    let relabel = |to: &str| json!({"metadata": {"labels": {"l": to}}});
    let merge = "application/merge-patch+json";
    f.patch(&format!("{MAPS}/a"), merge, &relabel("y")).await;
    let left = x.next().await.unwrap();
    assert_eq!((&left["type"], &left["object"]["metadata"]["labels"]["l"]), (&json!("DELETED"), &json!("x")));
    f.post(MAPS, &map("b", "y")).await;
    f.patch(&format!("{MAPS}/a"), merge, &relabel("x")).await;
    assert_eq!(x.brief().await, "ADDED a");
    f.patch(&format!("{MAPS}/a"), merge, &json!({"data": {"k": "w"}})).await;
    assert_eq!(x.brief().await, "MODIFIED a");
    assert_eq!(named.brief().await, "ADDED b");
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let f = common::start().await;
    f.post(MAPS, &map("a", "x")).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Watch::open(&f, query, "").await;
    assert_eq!(watch.brief().await, "ADDED a");
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    for (query, code) in [
        ("watch=true&sendInitialEvents=true", 422),
        ("watch=true&resourceVersionMatch=NotOlderThan", 422),
        ("watch=true&resourceVersion=x", 400),
    ] {
        assert_eq!(f.get(&format!("{MAPS}?{query}")).await.code, code, "{query}");
    }
}

#[tokio::test]
async fn a_watch_ends_with_its_time_and_a_bookmark() {
    let f = common::start().await;
    let mut watch = Watch::open(&f, "timeoutSeconds=1&allowWatchBookmarks=true", "").await;
    // A write elsewhere moves the bookmark, too.
    f.post("/api/v1/namespaces", &json!({"metadata": {"name": "elsewhere"}})).await;
    let bookmark = watch.next().await.unwrap();
    let newest = f.get(MAPS).await.json()["metadata"]["resourceVersion"].clone();
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["metadata"]["resourceVersion"]),
        (&json!("BOOKMARK"), &newest)
    );
    assert_eq!(watch.brief().await, "end");
}

#[tokio::test]
async fn a_forgotten_version_is_an_error_event() {
    let options = storage::Options { history_events: 4, ..storage::Options::default() };
    let f = common::start_with(options).await;
    for i in 0..10 {
        f.post(MAPS, &map(&format!("m{i}"), "x")).await;
    }
    let mut watch = Watch::open(&f, "resourceVersion=2", "").await;
    let error = watch.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"], &error["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(watch.brief().await, "end");
}

#[tokio::test]
async fn tables_carry_columns_once() {
    let f = common::start().await;
    f.post(MAPS, &map("a", "x")).await;
    let mut watch = Watch::open(&f, "", "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    f.post(MAPS, &map("b", "x")).await;
    let (first, second) = (watch.next().await.unwrap(), watch.next().await.unwrap());
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(second["object"]["columnDefinitions"], Value::Null);
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn watches_end_with_the_server() {
    let mut f = common::start().await;
    f.serve(0).await;
    let mut watch = Watch::open(&f, "", "").await;
    f.stop.cancel();
    assert_eq!(watch.brief().await, "end");
}
