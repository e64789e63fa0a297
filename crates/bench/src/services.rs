//! The service proxy: loading the kernel beside kube-proxy's nftables layout, one change seen from the API write to the
//! kernel, memory, and what a cluster address costs packets beside the direct way.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use proxy::model::{Action, Forward, Frontend, Masquerade, Model, NodeView, Owner, Place, Protocol, Target};
use proxy::sync::Kernel;
use serde_json::{Value, json};
use testkit::netns::Netns;
use tokio::sync::watch;

use crate::beside::{Beside, create};
use crate::figures::{Figures, percentile};
use crate::layout;
use crate::memory;
use crate::rounds::median;
use crate::traffic;

const NAMESPACE: &str = "bench-services";
/// Of few Services, to compare with many.
const FEW: u32 = 10;
/// Of Services that the peer's tool can load in reasonable time.
const PEER: u32 = 2000;
const PEER_NAME: &str = "kube-proxy's layout by nft";
const CHANGES: u32 = 200;
const LOADS: usize = 5;

/// Measures with so many Services and cleans up.
pub async fn measure(services: u32) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    whole(services, &mut figures).await?;
    tokio::task::spawn_blocking(move || {
        kernel(services, &mut figures)?;
        traffic::measure(services, &mut figures)?;
        Ok(figures)
    })
    .await?
}

/// The node that the rules are made for.
pub fn view() -> NodeView {
    let net = |a, b, len| ipnet::IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(10, a, b, 0)), len);
    NodeView {
        name: "bench".into(),
        zone: None,
        addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 168, 49, 2))],
        pod_cidrs: vec![net(244, 0, 16)],
        service_cidrs: vec![net(96, 0, 12)],
    }
}

/// Cluster address of Service `i`, beyond those that a cluster has itself.
pub fn vip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 100, 0, 0).to_bits() + i)
}

/// Endpoint `n` of Service `i`.
pub fn endpoint(i: u32, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 245, 0, 0).to_bits() + 4 * i + n)
}

/// What Service `i` asks of the node, with these endpoints.
pub fn target(i: u32, endpoints: &[Ipv4Addr]) -> (Owner, Vec<(Frontend, Target)>) {
    let front = Frontend { place: Place::Address(vip(i).into()), protocol: Protocol::Tcp, port: 80 };
    let forward = Forward {
        endpoints: endpoints.iter().map(|ip| SocketAddr::from((*ip, 8080))).collect(),
        masquerade: Masquerade::Outsiders,
        affinity: None,
        insiders: None,
    };
    let action = Action::Forward(forward);
    let target = Target { action, cluster_ip: true, hairpins: Vec::new(), sources: Vec::new() };
    (Owner::Service("bench".into(), format!("s{i}")), vec![(front, target)])
}

/// A kernel with so many Services.
fn loaded(count: u32) -> anyhow::Result<(Kernel, Model, nft::Socket, Duration)> {
    let mut model = Model::default();
    for i in 0..count {
        let (owner, targets) = target(i, &[endpoint(i, 0), endpoint(i, 1)]);
        model.set(&owner, targets);
    }
    let (mut kernel, mut socket) = (Kernel::new(view()), nft::Socket::open()?);
    let began = Instant::now();
    kernel.replace(&mut socket, &model)?;
    Ok((kernel, model, socket, began.elapsed()))
}

fn kernel(services: u32, figures: &mut Figures) -> anyhow::Result<()> {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    // In the middle of several: what a cluster leaves behind when it is emptied takes turns from one.
    let load = |count| -> anyhow::Result<f64> {
        let times = (0..LOADS).map(|_| Netns::new().within(|| loaded(count).map(|(.., took)| ms(took))));
        Ok(median(times.collect::<anyhow::Result<_>>()?))
    };
    figures.add(&format!("{services} Services into the kernel"), "ms", load(services)?, Some("<= 300"));
    let peer = Netns::new();
    let took = peer.within(|| layout::load(&layout::table(PEER)))?;
    figures.add(&format!("{PEER} Services into the kernel"), "ms", load(PEER)?, None);
    figures.beside(PEER_NAME, ms(took));
    for count in [FEW, services] {
        let mut times = Netns::new().within(|| changes(count))?;
        let what = format!("one endpoint replaced of {count}, transaction, p99");
        figures.add(&what, "ms", percentile(&mut times, 0.99), Some("<= 1"));
    }
    let mut times = Vec::new();
    for round in 0..10 {
        times.push(peer.within(|| layout::load(&layout::change(round)))?);
    }
    figures.beside(PEER_NAME, percentile(&mut times, 0.99));
    Ok(())
}

fn changes(count: u32) -> anyhow::Result<Vec<Duration>> {
    let (mut kernel, mut model, mut socket, _) = loaded(count)?;
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let i = round % count;
        let (owner, targets) = target(i, &[endpoint(i, 0), endpoint(i, 2 + round / count % 2)]);
        let changed = model.set(&owner, targets);
        let began = Instant::now();
        kernel.sync(&mut socket, &model, &changed)?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// The whole proxy against the API server.
async fn start(client: &Client) -> anyhow::Result<(Beside, Duration)> {
    let (_, host_ports) = watch::channel(Vec::new());
    let (synced, mut is_synced) = watch::channel(false);
    let view = view();
    let config = proxy::ProxyConfig {
        node_name: view.name,
        node_ips: view.addresses,
        pod_cidrs: view.pod_cidrs,
        service_cidrs: view.service_cidrs,
        host_ports,
        answered: watch::channel(BTreeSet::new()).0,
        synced,
    };
    let began = Instant::now();
    let running = Beside::new(client);
    let running = running.run(|client, stop| async { Ok(proxy::run(client, config, stop).await?) });
    is_synced.wait_for(|synced| *synced).await.context("the proxy ended")?;
    Ok((running, began.elapsed()))
}

/// From API writes to the kernel.
async fn follow(running: &Beside, client: &Client, count: u32) -> anyhow::Result<Vec<Duration>> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let mut kernel = running.kernel(Kernel::tables().into()).await?;
    let mut times = Vec::new();
    for round in 0..CHANGES {
        let i = round % count;
        let change = json!({"endpoints": endpoints(&[endpoint(i, 0), endpoint(i, 2 + round / count % 2)])});
        let name = format!("s{i}");
        let (patch, change) = (PatchParams::default(), Patch::Merge(change));
        times.push(kernel.until_changed(slices.patch(&name, &patch, &change)).await?);
    }
    kernel.end()?;
    Ok(times)
}

fn endpoints(addresses: &[Ipv4Addr]) -> Vec<Value> {
    addresses.iter().map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}})).collect()
}

fn service(i: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{i}")},
        "spec": {"clusterIP": vip(i).to_string(), "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn slice(i: u32) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": format!("s{i}"),
            "labels": {"kubernetes.io/service-name": format!("s{i}"), "endpointslice.kubernetes.io/managed-by": "bench"}},
        "addressType": "IPv4", "endpoints": endpoints(&[endpoint(i, 0), endpoint(i, 1)]),
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

async fn whole(services: u32, figures: &mut Figures) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("connect to the cluster of the current context")?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let outcome = with_services(&client, services, figures).await;
    let all = (DeleteParams::default(), ListParams::default());
    Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE).delete_collection(&all.0, &all.1).await?;
    Api::<Service>::namespaced(client.clone(), NAMESPACE).delete_collection(&all.0, &all.1).await?;
    namespaces.delete(NAMESPACE, &DeleteParams::background()).await?;
    outcome
}

async fn with_services(client: &Client, services: u32, figures: &mut Figures) -> anyhow::Result<()> {
    create::<Service>(NAMESPACE, 0..FEW, service).await?;
    create::<EndpointSlice>(NAMESPACE, 0..FEW, slice).await?;
    let (running, _) = start(client).await?;
    let mut times = follow(&running, client, FEW).await?;
    running.end()?;
    let what = |count: u32| format!("API write to kernel, {count} Services, p99");
    figures.add(&what(FEW), "ms", percentile(&mut times, 0.99), Some("<= 10"));
    create::<Service>(NAMESPACE, FEW..services, service).await?;
    create::<EndpointSlice>(NAMESPACE, FEW..services, slice).await?;
    // What creating them has left in this process is not the proxy's.
    client::memory::give_back();
    let idle = memory::own()?;
    let (running, took) = start(client).await?;
    let full = memory::own()?;
    let ms = took.as_secs_f64() * 1000.0;
    figures.add(&format!("whole proxy, {services} Services from empty"), "ms", ms, Some("<= 2000"));
    figures.add(
        &format!("whole proxy, {services} Services, resident memory"),
        "MB",
        full - idle,
        Some("<= 40"),
    );
    let mut times = follow(&running, client, services).await?;
    running.end()?;
    figures.add(&what(services), "ms", percentile(&mut times, 0.99), Some("<= 10"));
    ensure!(times.len() as u32 == CHANGES, "some changes were not seen");
    Ok(())
}

/// A kernel with so many Services, of which the first have these endpoints, in the calling thread's network namespace.
pub fn load(count: u32, first: &[(u32, Vec<Ipv4Addr>)]) -> anyhow::Result<()> {
    let (mut kernel, mut model, mut socket, _) = loaded(count)?;
    let mut changed = HashSet::new();
    for (i, endpoints) in first {
        let (owner, targets) = target(*i, endpoints);
        changed.extend(model.set(&owner, targets));
    }
    kernel.sync(&mut socket, &model, &changed)?;
    Ok(())
}
