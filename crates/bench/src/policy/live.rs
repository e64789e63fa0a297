//! From the API write to the kernel, in a cluster with all those Pods and policies: the enforcement runs here beside the
//! cluster's own, as that of a node which exists only as an object.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use netpol::layout::{FAMILIES, name_of};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{NAMESPACES, NODE, PODS, POLICIES, address, namespace, pod_object, policy_object};
use crate::beside::{Beside, Watched};
use crate::figures::{Figures, percentile};

const CHANGES: u32 = 100;
const TARGET: Option<&str> = Some("<= 50");
/// Longer than the kernel takes to tell of one change.
const BETWEEN: Duration = Duration::from_millis(30);
/// Changes of one run without pauses for their effect, and the time between two.
const STREAM: u32 = 500;
const BEAT: Duration = Duration::from_millis(10);

/// Measures and cleans up.
pub async fn measure() -> anyhow::Result<Figures> {
    let client = Client::try_default().await.context("connect to the cluster of the current context")?;
    let outcome = async {
        fill(&client).await?;
        changes(&client).await
    };
    let outcome = outcome.await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for number in 0..NAMESPACES {
        namespaces.delete(&namespace(number), &DeleteParams::background()).await?;
    }
    Api::<Node>::all(client).delete(NODE, &DeleteParams::background()).await?;
    outcome
}

fn team(number: u32) -> Value {
    json!({"metadata": {"labels": {"team": format!("team-{number}")}}})
}

async fn fill(client: &Client) -> anyhow::Result<()> {
    let post = PostParams::default();
    let node = json!({"metadata": {"name": NODE}, "spec": {"unschedulable": true}});
    Api::<Node>::all(client.clone()).create(&post, &serde_json::from_value(node)?).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for number in 0..NAMESPACES {
        let mut object = team(number % 5);
        object["metadata"]["name"] = namespace(number).into();
        namespaces.create(&post, &serde_json::from_value(object)?).await?;
    }
    let mut tasks = JoinSet::new();
    for worker in 0..16 {
        let client = Client::try_default().await?;
        tasks.spawn(async move {
            let post = PostParams::default();
            for number in (worker..PODS).step_by(16) {
                let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace(number));
                let made = pods.create(&post, &serde_json::from_value(pod_object(number))?).await?;
                let ip = address(number).to_string();
                let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
                let name = made.metadata.name.unwrap_or_default();
                pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
            }
            for number in (worker..POLICIES).step_by(16) {
                let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), &namespace(number));
                policies.create(&post, &serde_json::from_value(policy_object(number))?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn changes(client: &Client) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let beside = Beside::new(client);
    let mut kernel = beside.kernel(FAMILIES.map(name_of).into()).await?;
    // Kept: without it, no Pod could arrive.
    let (_gate, arrivals) = netpol::gate();
    let flows = netpol::Flows::default();
    let config =
        netpol::Config { node_name: NODE.to_owned(), node_ips: Vec::new(), arrivals, flows, speaks: false };
    let mut running = None;
    let start = async {
        let enforce = |client, stop| async {
            let shared = client::SharedInformers::start(&client);
            Ok(netpol::run(client, shared, config, stop).await?)
        };
        running = Some(beside.run(enforce));
        Ok::<_, kube::Error>(())
    };
    kernel.until_changed(start).await?;
    kernel.settled(Duration::from_secs(1)).await?;

    let mut report = |what: &str, mut times: Vec<Duration>| {
        let what = format!("API write to kernel: {what}, p99");
        figures.add(&what, "ms", percentile(&mut times, 0.99), TARGET);
    };
    let what = "a policy comes or goes";
    report(what, each(what, &mut kernel, |round| toggle(client.clone(), round)).await?);
    let what = "a Pod's label";
    report(what, each(what, &mut kernel, |round| relabel(client.clone(), round)).await?);
    let what = "a namespace's label";
    report(what, each(what, &mut kernel, |round| rename_team(client.clone(), round)).await?);

    let mut beat = tokio::time::interval(BEAT);
    let mut last = Instant::now();
    for round in 0..STREAM {
        beat.tick().await;
        last = Instant::now();
        toggle(client.clone(), round).await?;
    }
    let lag = kernel.settled(Duration::from_millis(500)).await?.saturating_duration_since(last);
    report("the last of 500 policies, 100 a second", vec![lag]);
    kernel.end()?;
    running.map_or(Ok(()), Beside::end)?;
    Ok(figures)
}

async fn each<F>(what: &str, kernel: &mut Watched, change: impl Fn(u32) -> F) -> anyhow::Result<Vec<Duration>>
where
    F: Future<Output = kube::Result<()>>,
{
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let took = kernel.until_changed(change(round)).await;
        times.push(took.with_context(|| format!("{what}: change {round}"))?);
        // The kernel tells of one change in several parts; the last ones must not be taken for the next change's.
        kernel.settled(BETWEEN).await?;
    }
    Ok(times)
}

/// Makes one more policy in even rounds, and takes it away in odd ones.
async fn toggle(client: Client, round: u32) -> kube::Result<()> {
    let number = round / 2;
    let policies: Api<NetworkPolicy> = Api::namespaced(client, &namespace(number));
    if round.is_multiple_of(2) {
        let mut object = policy_object(number);
        object["metadata"]["name"] = "extra".into();
        object["spec"]["ingress"][0]["ports"][0]["port"] = 9999.into();
        let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        policies.create(&PostParams::default(), &object).await.map(drop)
    } else {
        policies.delete("extra", &DeleteParams::default()).await.map(drop)
    }
}

async fn relabel(client: Client, round: u32) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client, &namespace(round));
    // Another application than it has, which some peers name too.
    let labels = json!({"metadata": {"labels": {"app": format!("app-{}", round / NAMESPACES + 1)}}});
    pods.patch(&format!("pod-{round}"), &PatchParams::default(), &Patch::Merge(labels)).await.map(drop)
}

async fn rename_team(client: Client, round: u32) -> kube::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client);
    // Each round gives the namespace another one than it has.
    let labels = team((round % NAMESPACES + 1 + round / NAMESPACES) % 5);
    namespaces.patch(&namespace(round), &PatchParams::default(), &Patch::Merge(labels)).await.map(drop)
}
