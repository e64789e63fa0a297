//! Durable creates per second with 32 clients, how soon 1,000 watchers see a write, and what one core serves.

mod load;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::etcd::{self, Etcd};
use crate::figures::{Figures, percentile};
use crate::http2;

const CLIENTS: usize = 32;
const WATCHERS: usize = 1000;
const WRITES: usize = 100;
const NAMESPACE: &str = "bench-api";

/// Measures and cleans up.
pub async fn measure(seconds: u64, server: Option<u32>) -> anyhow::Result<Figures> {
    let time = Duration::from_secs(seconds.clamp(1, 60));
    let client = Client::try_default().await.context("connect to the cluster of the current context")?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let metadata = ObjectMeta { name: Some(NAMESPACE.into()), ..ObjectMeta::default() };
    namespaces.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
    let outcome = run(&client, time, server).await;
    namespaces.delete(NAMESPACE, &DeleteParams::background()).await?;
    outcome
}

async fn run(client: &Client, time: Duration, server: Option<u32>) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    if let Some(server) = server {
        load::watched(client, time, server, &mut figures).await?;
    }
    let (rate, mut times) = creates(time).await?;
    figures.add("durable creates, 32 clients", "/s", rate, Some(">= 5000"));
    let etcd = Etcd::start().await?;
    let mut peer_times = Vec::new();
    if etcd.is_some() {
        let (peer_rate, taken) = puts(time).await?;
        figures.beside("etcd alone", peer_rate);
        peer_times = taken;
    }
    drop(etcd);
    figures.add("one create, p99", "ms", percentile(&mut times, 0.99), None);
    if !peer_times.is_empty() {
        figures.beside("etcd alone", percentile(&mut peer_times, 0.99));
    }
    let mut seen = watches(client).await?;
    figures.add("write seen by 1,000 watchers, p50", "ms", percentile(&mut seen, 0.5), None);
    figures.add("write seen by 1,000 watchers, p99", "ms", percentile(&mut seen, 0.99), Some("<= 20"));
    if let Some(server) = server {
        load::measure(client, time, server, &mut figures).await?;
    }
    Ok(figures)
}

fn config_map(name: String) -> ConfigMap {
    let metadata =
        ObjectMeta { name: Some(name), namespace: Some(NAMESPACE.into()), ..ObjectMeta::default() };
    let data = BTreeMap::from([("value".to_owned(), "x".repeat(100))]);
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}

/// Each client has a connection of its own, as kubectl and controllers do.
async fn creates(time: Duration) -> anyhow::Result<(f64, Vec<Duration>)> {
    let mut tasks = JoinSet::new();
    for c in 0..CLIENTS {
        let client = Client::try_default().await?;
        tasks.spawn(async move {
            let api: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
            let mut times = Vec::new();
            let began = Instant::now();
            while began.elapsed() < time {
                let at = Instant::now();
                api.create(&PostParams::default(), &config_map(format!("c-{c}-{}", times.len()))).await?;
                times.push(at.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    gather(tasks, time).await
}

async fn puts(time: Duration) -> anyhow::Result<(f64, Vec<Duration>)> {
    let value = Arc::new(serde_json::to_vec(&config_map("peer".into()))?);
    let mut tasks = JoinSet::new();
    for c in 0..CLIENTS {
        let value = value.clone();
        tasks.spawn(async move {
            let mut sender = etcd::connect().await?;
            let mut times = Vec::new();
            let began = Instant::now();
            while began.elapsed() < time {
                let at = Instant::now();
                etcd::put(&mut sender, &format!("/registry/configmaps/b/c-{c}-{}", times.len()), &value)
                    .await?;
                times.push(at.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    gather(tasks, time).await
}

async fn gather(
    mut tasks: JoinSet<anyhow::Result<Vec<Duration>>>,
    time: Duration,
) -> anyhow::Result<(f64, Vec<Duration>)> {
    let mut all = Vec::new();
    while let Some(times) = tasks.join_next().await {
        all.extend(times??);
    }
    Ok((all.len() as f64 / time.as_secs_f64(), all))
}

async fn watches(client: &Client) -> anyhow::Result<Vec<Duration>> {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let from = api.list_metadata(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    for _ in 0..WATCHERS / 100 {
        // A hundred streams are what one HTTP/2 connection is given.
        let client = http2::client().await?;
        for _ in 0..100 {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
            let (tx, from) = (tx.clone(), from.clone());
            tasks.spawn(async move {
                let mut events = Box::pin(api.watch(&WatchParams::default(), &from).await?);
                while let Some(event) = events.try_next().await? {
                    if let WatchEvent::Added(map) = event {
                        tx.send((map.name_any(), Instant::now()))?;
                    }
                }
                anyhow::Ok(())
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut written = BTreeMap::new();
    for i in 0..WRITES {
        let name = format!("w-{i}");
        let at = Instant::now();
        api.create(&PostParams::default(), &config_map(name.clone())).await?;
        written.insert(name, at);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut seen = Vec::new();
    while seen.len() < WRITES * WATCHERS {
        let next = tokio::time::timeout(Duration::from_secs(5), rx.recv()).await;
        let (name, at) = next
            .with_context(|| format!("{} of {} events seen", seen.len(), WRITES * WATCHERS))?
            .context("all watchers ended")?;
        if let Some(since) = written.get(&name) {
            seen.push(at - *since);
        }
    }
    tasks.abort_all();
    Ok(seen)
}
