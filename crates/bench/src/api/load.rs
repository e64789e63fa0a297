//! What one core serves: reads and creates of Pods, and thousands of watchers of one object each.
//!
//! The server is held to the first core and this process to the second, so that neither takes from the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::client::Body;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{CLIENTS, NAMESPACE, config_map};
use crate::cores::Pinned;
use crate::figures::{Figures, percentile};
use crate::http2;
use crate::memory::resident;

const PODS: usize = 5000;
const LISTS: usize = 20;
const WATCHERS: usize = 5000;
/// A little more than is asked for, so that the end of the last write does not decide.
const WRITES_A_SECOND: u64 = 1100;
/// A hundred streams are what one HTTP/2 connection is given.
const STREAMS: usize = 100;

/// What thousands of watchers cost a server that has nothing else to keep yet; its process is given.
pub async fn watched(
    client: &Client,
    time: Duration,
    server: u32,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let _pinned = Pinned::each(&[server, std::process::id()])?;
    let before = resident(server)?;
    let mut seen = watches(client, time, server).await?;
    let rate = Some(">= 1000");
    figures.add("writes/s beside 5,000 watchers", "/s", seen.rate, rate);
    let p99 = percentile(&mut seen.times, 0.99);
    figures.add("write seen by its one of 5,000, p99", "ms", p99, Some("<= 100"));
    figures.add("memory of the server before 5,000 watchers", "MB", before, None);
    figures.add("memory of the server, 5,000 watchers open", "MB", seen.opened, None);
    figures.add("memory of the server, 5,000 watchers served", "MB", seen.served, Some("<= 200"));
    Ok(())
}

/// What one core serves; the server's process is given.
pub async fn measure(
    client: &Client,
    time: Duration,
    server: u32,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let _pinned = Pinned::each(&[server, std::process::id()])?;
    let rate = creates(client).await?;
    figures.add("creates of Pods, one core", "/s", rate, Some(">= 3000"));
    let rate = gets(time).await?;
    figures.add("GETs of a Pod, one core", "/s", rate, Some(">= 15000"));
    let mut times = lists(client).await?;
    figures.add("LIST of 5,000 Pods, one core, p50", "ms", percentile(&mut times, 0.5), Some("<= 25"));
    Ok(())
}

/// No scheduler takes such a Pod: it is the API that is measured.
fn pod(name: &str) -> anyhow::Result<Pod> {
    let container = json!({
        "name": "web", "image": "nginx:1.27", "ports": [{"containerPort": 80}],
        "env": [{"name": "A", "value": "b"}], "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}},
    });
    let metadata = json!({"name": name, "labels": {"app": "web", "tier": "front"}});
    let spec = json!({"schedulerName": "nobody", "containers": [container]});
    Ok(serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?)
}

/// As many Pods as the lists are to have.
async fn creates(client: &Client) -> anyhow::Result<f64> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let began = Instant::now();
    while accounts.get_opt("default").await?.is_none() {
        ensure!(began.elapsed() < Duration::from_secs(20), "{NAMESPACE} got no ServiceAccount");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..CLIENTS {
        let pods: Api<Pod> = Api::namespaced(Client::try_default().await?, NAMESPACE);
        let next = next.clone();
        tasks.spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= PODS {
                    return anyhow::Ok(0);
                }
                pods.create(&PostParams::default(), &pod(&format!("p-{i}"))?).await?;
            }
        });
    }
    sum(tasks).await?;
    Ok(PODS as f64 / began.elapsed().as_secs_f64())
}

async fn sum(mut tasks: JoinSet<anyhow::Result<usize>>) -> anyhow::Result<usize> {
    let mut sum = 0;
    while let Some(made) = tasks.join_next().await {
        sum += made??;
    }
    Ok(sum)
}

/// Asks for one path and reads the answer to its end, without a look into it.
async fn read(client: &Client, path: &str) -> anyhow::Result<usize> {
    let response = client.send(http::Request::get(path).body(Body::empty())?).await?;
    ensure!(response.status().is_success(), "GET {path}: {}", response.status());
    Ok(response.into_body().collect().await?.to_bytes().len())
}

async fn gets(time: Duration) -> anyhow::Result<f64> {
    let mut tasks = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = Client::try_default().await?;
        tasks.spawn(async move {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/p-0");
            let (began, mut done) = (Instant::now(), 0);
            while began.elapsed() < time {
                read(&client, &path).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    Ok(sum(tasks).await? as f64 / time.as_secs_f64())
}

async fn lists(client: &Client) -> anyhow::Result<Vec<Duration>> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let mut times = Vec::new();
    for _ in 0..LISTS {
        let at = Instant::now();
        read(client, &path).await?;
        times.push(at.elapsed());
    }
    Ok(times)
}

/// How soon writes were seen, how many there were a second, and the server's memory in MB before and after them.
struct Seen {
    times: Vec<Duration>,
    rate: f64,
    opened: f64,
    served: f64,
}

/// Each watcher looks at one object, as kubelets look at what their Pods mount, and the writes go round.
async fn watches(client: &Client, time: Duration, server: u32) -> anyhow::Result<Seen> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let (tx, mut rx) = mpsc::unbounded_channel();
    let (mut watchers, opened) = (JoinSet::new(), Arc::new(Semaphore::new(0)));
    let from = maps.list_metadata(&Default::default()).await?.metadata.resource_version.unwrap_or_default();
    for c in 0..WATCHERS / STREAMS {
        let client = http2::client().await?;
        for i in 0..STREAMS {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
            let (tx, from, name) = (tx.clone(), from.clone(), format!("one-{}", c * STREAMS + i));
            let opened = opened.clone();
            watchers.spawn(async move {
                let wanted = WatchParams::default().fields(&format!("metadata.name={name}"));
                let mut events = Box::pin(maps.watch(&wanted, &from).await?);
                opened.add_permits(1);
                while let Some(event) = events.try_next().await? {
                    if let WatchEvent::Added(map) | WatchEvent::Modified(map) = event {
                        let value = map.data.and_then(|d| d.get("value")?.parse::<usize>().ok());
                        tx.send((value, Instant::now()))?;
                    }
                }
                anyhow::Ok(())
            });
        }
    }
    let all = tokio::time::timeout(Duration::from_secs(30), opened.acquire_many(WATCHERS as u32)).await;
    while let Some(ended) = watchers.try_join_next() {
        ended?.context("a watch ended")?;
    }
    ensure!(all.is_ok(), "{} of {WATCHERS} watches opened", opened.available_permits());
    let before = resident(server)?;
    let (written, spent) = writes(client, time).await?;
    let served = resident(server)?;
    let mut seen = Vec::new();
    while seen.len() < written.len() {
        let next = tokio::time::timeout(Duration::from_secs(10), rx.recv()).await;
        let (value, at) = next
            .with_context(|| format!("{} of {} writes were seen", seen.len(), written.len()))?
            .context("all watchers ended")?;
        if let Some(since) = value.and_then(|value| written.get(&value)) {
            seen.push(at - *since);
        }
    }
    watchers.abort_all();
    let rate = written.len() as f64 / spent.as_secs_f64();
    Ok(Seen { times: seen, rate, opened: before, served })
}

/// Writes at an even pace; when each began, by the value that it wrote, and how long they took together.
async fn writes(client: &Client, time: Duration) -> anyhow::Result<(HashMap<usize, Instant>, Duration)> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut pace = tokio::time::interval(Duration::from_secs(1) / WRITES_A_SECOND as u32);
    let (mut tasks, mut written) = (JoinSet::new(), HashMap::new());
    let began = Instant::now();
    for i in 0..(time.as_secs() * WRITES_A_SECOND) as usize {
        pace.tick().await;
        let place = places.clone().acquire_owned().await?;
        let (maps, at) = (maps.clone(), Instant::now());
        written.insert(i, at);
        tasks.spawn(async move {
            let _place = place;
            let name = format!("one-{}", i % WATCHERS);
            let data = std::collections::BTreeMap::from([("value".to_owned(), i.to_string())]);
            let map = ConfigMap { data: Some(data), ..config_map(name.clone()) };
            if i < WATCHERS {
                maps.create(&PostParams::default(), &map).await?;
            } else {
                let change = json!({"data": {"value": i.to_string()}});
                maps.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await?;
            }
            anyhow::Ok(0)
        });
    }
    sum(tasks).await?;
    Ok((written, began.elapsed()))
}
