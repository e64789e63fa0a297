//! The controllers: loops that bring the cluster from what it is to what its objects ask for.
//!
//! One module per controller. Each has a pure core (objects in, actions out, tested as text) and a thin loop over
//! shared caches that writes what the core decided. All are event-driven: an idle cluster costs nothing but open
//! watches. Behaviour, Events and condition texts follow upstream's kube-controller-manager, because people and
//! scripts read them.

mod catalog;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod expectations;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fixtures;
mod gc;
mod hash;
mod history;
mod informers;
mod job;
mod kit;
mod loadbalancer;
#[cfg(test)]
mod loops;
mod meta;
mod namespace;
mod namespaced_defaults;
mod node;
mod nodematch;
mod podcontrol;
mod podgc;
mod pods;
mod replicaset;
mod servicecidr;
mod statefulset;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use client::{Recorder, SharedInformers};
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::informers::Informers;
use crate::kit::Context;

/// What the controllers need to know of the cluster.
#[derive(Debug, Clone)]
pub struct Config {
    /// The CA bundle (PEM) that `kube-root-ca.crt` publishes in every namespace.
    pub ca_pem: String,
    /// The addresses of all Pods, one range per IP family, the main family first; each node gets a part of each, of that
    /// prefix length: 24 gives 254 Pods a node.
    pub cluster_cidrs: Vec<(ipnet::IpNet, u8)>,
    /// The addresses for Services of type LoadBalancer, on the nodes' own network, one range per IP family.
    pub load_balancers: Vec<RangeInclusive<IpAddr>>,
}

/// Runs all controllers until `stop`; returns when the last has ended.
pub async fn run(client: Client, shared: SharedInformers, config: Config, stop: CancellationToken) {
    let (recorder, writing) = Recorder::new(client.clone(), stop.clone());
    let informers = Arc::new(Informers::start(&client, shared));
    let ctx = Context { client, informers, recorder, config: Arc::new(config), stop };
    let mut running = JoinSet::new();
    running.spawn(writing);
    running.spawn(deployment::run(ctx.clone()));
    running.spawn(replicaset::run(ctx.clone()));
    running.spawn(replicaset::run_controllers(ctx.clone()));
    running.spawn(endpoints::run_slices(ctx.clone()));
    running.spawn(endpoints::run_endpoints(ctx.clone()));
    running.spawn(endpoints::run_mirroring(ctx.clone()));
    running.spawn(loadbalancer::run(ctx.clone()));
    running.spawn(servicecidr::run(ctx.clone()));
    running.spawn(namespace::run(ctx.clone()));
    running.spawn(namespaced_defaults::run_service_accounts(ctx.clone()));
    running.spawn(namespaced_defaults::run_root_ca(ctx.clone()));
    running.spawn(gc::run(ctx.clone()));
    running.spawn(node::run_ipam(ctx.clone()));
    running.spawn(node::run_health(ctx.clone()));
    running.spawn(node::run_eviction(ctx.clone()));
    running.spawn(podgc::run(ctx.clone()));
    running.spawn(daemonset::run(ctx.clone()));
    running.spawn(job::run(ctx.clone()));
    running.spawn(statefulset::run(ctx.clone()));
    running.spawn(disruption::run(ctx.clone()));
    running.spawn(cronjob::run(ctx.clone()));
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller died");
        }
    }
}
