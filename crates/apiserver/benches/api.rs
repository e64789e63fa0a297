//! How fast the API takes durable writes and how soon watchers see them, in process through the whole request path.
//! `cargo bench -p apiserver`. Figures are for comparing two builds on one machine.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CLIENTS: usize = 32;
const SECONDS: u64 = 4;
const WATCHERS: usize = 1000;
const WRITES: usize = 50;

fn map(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": "b"}}, "data": {"k": "v"}})
        .to_string()
}

/// Small creates by many clients at once.
async fn creates(f: &Arc<common::Fixture>) {
    let done = Arc::new(AtomicUsize::new(0));
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (f, done) = (f.clone(), done.clone());
        clients.spawn(async move {
            let mut i = 0;
            while Instant::now() < end {
                let got = f.send(Method::POST, MAPS, &[], map(&format!("c{client}-{i}"))).await;
                assert_eq!(got.code, 201);
                i += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    clients.join_all().await;
    println!("durable creates, {CLIENTS} clients: {}/s", done.load(Ordering::Relaxed) as u64 / SECONDS);
}

/// Time from the begin of a write until each of many watchers has it.
async fn watchers(f: &Arc<common::Fixture>) {
    let version = f.get(MAPS).await.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let started = Instant::now();
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let uri = format!("{MAPS}?watch=true&resourceVersion={version}");
        let mut body = f.open(Method::GET, &uri, &[], "").await.into_body();
        watchers.spawn(async move {
            let (mut seen, mut lines) = (Vec::with_capacity(WRITES), 0);
            while lines < WRITES {
                let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
                let new = data.iter().filter(|b| **b == b'\n').count();
                let at = started.elapsed();
                seen.extend(std::iter::repeat_n(at, new));
                lines += new;
            }
            seen
        });
    }
    let mut begun = Vec::new();
    for i in 0..WRITES {
        tokio::time::sleep(Duration::from_millis(20)).await;
        begun.push(started.elapsed());
        assert_eq!(f.send(Method::POST, MAPS, &[], map(&format!("w{i}"))).await.code, 201);
    }
    let mut delays: Vec<Duration> = Vec::new();
    for seen in watchers.join_all().await {
        delays.extend(seen.iter().zip(&begun).map(|(seen, begun)| seen.saturating_sub(*begun)));
    }
    delays.sort();
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!("write until seen, {WATCHERS} watchers: p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
}

async fn lists(f: &Arc<common::Fixture>) {
    let started = Instant::now();
    let got = f.get(MAPS).await;
    println!("list of {} MiB: {:?}", got.bytes.len() >> 20, started.elapsed());
    let started = Instant::now();
    let got = f.get(&format!("{MAPS}?labelSelector=a%3Dnope")).await;
    println!("list by label, none of them matching: {:?} ({} bytes)", started.elapsed(), got.bytes.len());
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let f = Arc::new(common::start().await);
        watchers(&f).await;
        creates(&f).await;
        lists(&f).await;
    });
}
