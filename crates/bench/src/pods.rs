//! From the API write to a running Pod with its address, one at a time; and a hundred Pods that answer HTTP.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::figures::{Figures, percentile};

const IMAGE: &str = "localhost/skiff:latest";
const ONE_BY_ONE: usize = 30;
const MANY: usize = 100;
const LIMIT: Duration = Duration::from_secs(60);

/// Measures and cleans up.
pub async fn measure() -> anyhow::Result<Figures> {
    let client = Client::try_default().await.context("connect to the cluster of the current context")?;
    let mut figures = Figures::default();
    let mut times = one_by_one(&client).await?;
    figures.add("API write to running with address, p50", "ms", percentile(&mut times, 0.5), Some("<= 40"));
    figures.add("API write to running with address, p99", "ms", percentile(&mut times, 0.99), None);
    let all = many(&client).await?;
    figures.add("100 Pods answering HTTP", "ms", all.as_secs_f64() * 1000.0, Some("<= 3000"));
    Ok(figures)
}

fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"bench": "pods"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": IMAGE, "command": ["sleep", "3600"]}],
        },
    }))?)
}

async fn one_by_one(client: &Client) -> anyhow::Result<Vec<Duration>> {
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut times = Vec::new();
    for i in 0..ONE_BY_ONE {
        let name = format!("bench-{i}");
        let from =
            api.list(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
        let watch = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = Box::pin(api.watch(&watch, &from).await?);
        let began = Instant::now();
        api.create(&PostParams::default(), &pod(&name)?).await?;
        loop {
            let next = tokio::time::timeout(LIMIT, events.try_next())
                .await
                .context("the Pod did not run in time")?;
            let Some(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = next? else { continue };
            let status = pod.status.unwrap_or_default();
            if status.phase.as_deref() == Some("Running") && status.pod_ip.is_some() {
                break;
            }
        }
        times.push(began.elapsed());
        api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    }
    Ok(times)
}

/// The cluster's Pods are reached from the host by an HTTP readiness probe of the node agent: Ready means answering.
async fn many(client: &Client) -> anyhow::Result<Duration> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let labels = json!({"bench": "many"});
    let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    let container = json!({"name": "c", "image": IMAGE, "command": ["serve"], "readinessProbe": probe});
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
    let deployment: Deployment = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bench-many"},
        "spec": {
            "replicas": MANY, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }))?;
    let began = Instant::now();
    deployments.create(&PostParams::default(), &deployment).await?;
    let time = loop {
        let status = deployments.get("bench-many").await?.status.unwrap_or_default();
        if status.ready_replicas == Some(i32::try_from(MANY)?) {
            break began.elapsed();
        }
        if began.elapsed() > LIMIT {
            bail!("{:?} of {MANY} Pods answered within {LIMIT:?}", status.ready_replicas);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    deployments.delete("bench-many", &DeleteParams::foreground()).await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    while !pods.list(&ListParams::default().labels("bench=many")).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if began.elapsed() > LIMIT * 2 {
            let left = pods.list(&ListParams::default().labels("bench=many")).await?;
            bail!(
                "{} Pods did not go away, first {:?}",
                left.items.len(),
                left.items.first().map(ResourceExt::name_any)
            );
        }
    }
    Ok(time)
}
