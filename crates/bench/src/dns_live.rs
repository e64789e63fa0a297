//! Cluster DNS follows the API: from a write at the API server until an answer on the wire says so. The server runs beside,
//! in a network namespace of its own, against the API server of the current context.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dns::DnsConfig;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use crate::beside::Beside;
use crate::figures::{Figures, percentile};
use crate::services::{endpoint, vip};

const NAMESPACE: &str = "bench-dns";
/// A Service without a cluster address: its name is its endpoints.
const HEADLESS: &str = "headless";
/// Of each kind.
const CHANGES: u32 = 200;
const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions, so that asking does not keep the processor from answering.
const PAUSE: Duration = Duration::from_micros(500);

/// Measures and cleans up.
pub async fn measure() -> anyhow::Result<Figures> {
    let client = Client::try_default().await.context("connect to the cluster of the current context")?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let outcome = changes(&client).await;
    let all = (DeleteParams::default(), ListParams::default());
    Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE).delete_collection(&all.0, &all.1).await?;
    Api::<Service>::namespaced(client, NAMESPACE).delete_collection(&all.0, &all.1).await?;
    namespaces.delete(NAMESPACE, &DeleteParams::background()).await?;
    outcome
}

async fn changes(client: &Client) -> anyhow::Result<Figures> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let (create, patch) = (PostParams::default(), PatchParams::default());
    services.create(&create, &serde_json::from_value(service(HEADLESS, None))?).await?;
    slices.create(&create, &serde_json::from_value(slice(endpoint(0, 0)))?).await?;
    let running = Beside::new(client).run(|client, stop| async {
        let pages = DnsConfig { health: None, ready: None, metrics: None, ..DnsConfig::default() };
        Ok(dns::run(pages, client, stop).await?)
    });
    let mut asker = Asker::new(&running).await?;
    asker.until(HEADLESS, endpoint(0, 0)).await.context("the server does not come to know the names")?;

    let (mut made, mut moved) = (Vec::new(), Vec::new());
    for i in 1..=CHANGES {
        let name = format!("s{i}");
        let object = serde_json::from_value(service(&name, Some(vip(i))))?;
        made.push(asker.follows(services.create(&create, &object), &name, vip(i)).await?);
        let change = Patch::Merge(json!({"endpoints": [one(endpoint(i, 0))]}));
        let write = slices.patch(HEADLESS, &patch, &change);
        moved.push(asker.follows(write, HEADLESS, endpoint(i, 0)).await?);
    }
    running.end()?;
    let mut figures = Figures::default();
    for (what, times) in [("Service made", &mut made), ("endpoint replaced", &mut moved)] {
        let what = format!("DNS: {what}, API write to answer");
        figures.add(&format!("{what}, p50"), "ms", percentile(times, 0.5), None);
        figures.add(&format!("{what}, p99"), "ms", percentile(times, 0.99), Some("<= 20"));
    }
    Ok(figures)
}

fn service(name: &str, cluster_ip: Option<Ipv4Addr>) -> Value {
    let cluster_ip = cluster_ip.map_or("None".into(), |ip| ip.to_string());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": cluster_ip, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn slice(address: Ipv4Addr) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": HEADLESS,
            "labels": {"kubernetes.io/service-name": HEADLESS, "endpointslice.kubernetes.io/managed-by": "bench"}},
        "addressType": "IPv4", "endpoints": [one(address)],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
}

fn one(address: Ipv4Addr) -> Value {
    json!({"addresses": [address.to_string()], "conditions": {"ready": true}})
}

/// A client in the server's namespace.
struct Asker {
    socket: UdpSocket,
    id: u16,
}

impl Asker {
    async fn new(running: &Beside) -> anyhow::Result<Self> {
        let socket = running.within(|| std::net::UdpSocket::bind("127.0.0.1:0"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, id: 0 })
    }

    /// From the beginning of the write until the answer has this address and no other.
    async fn follows<T, E>(
        &mut self,
        write: impl Future<Output = Result<T, E>>,
        name: &str,
        address: Ipv4Addr,
    ) -> anyhow::Result<Duration>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let began = Instant::now();
        let written = async { write.await.map(|_| ()).context("write to the API server") };
        let ((), when) = tokio::try_join!(written, self.until(name, address))?;
        Ok(when - began)
    }

    async fn until(&mut self, name: &str, address: Ipv4Addr) -> anyhow::Result<Instant> {
        let began = Instant::now();
        loop {
            if self.ask(name, address).await.unwrap_or(false) {
                return Ok(Instant::now());
            }
            ensure!(began.elapsed() < LIMIT, "no answer with {address} for {name}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the answer now has just this address.
    async fn ask(&mut self, name: &str, address: Ipv4Addr) -> anyhow::Result<bool> {
        self.id = self.id.wrapping_add(1);
        let server = SocketAddr::from(([127, 0, 0, 1], 53));
        self.socket.send_to(&question(self.id, name), server).await?;
        let mut answer = [0; 512];
        loop {
            let got = tokio::time::timeout(Duration::from_secs(1), self.socket.recv(&mut answer)).await??;
            let answer = answer.get(..got).context("a longer answer than asked for")?;
            // One of an earlier question that was given up is passed over.
            if answer.starts_with(&self.id.to_be_bytes()) {
                // A question with no EDNS: the address of the only record ends the answer.
                return Ok(answer.get(6..8) == Some(&[0, 1]) && answer.ends_with(&address.octets()));
            }
        }
    }
}

/// Asks for the addresses (A, IN) of a Service.
fn question(id: u16, service: &str) -> Vec<u8> {
    let mut message = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in [service, NAMESPACE, "svc", "cluster", "local"] {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}
