//! The life of a node: its components are made, watched and drained. Order is only what one needs of another; all else is
//! the components' own business, because each waits for what it watches.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use client::SharedInformers;
use cluster::pki::Authority;
use cluster::{Member, Network};
use kube::Client;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plugins::Plugins;
use super::report::Report;
use super::{network, node, remote};

/// How long a node may take to be ready before the start is called failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long components may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Starts everything, says when it is up, runs until `stop`, and takes the node away.
///
/// # Errors
/// What kept the node from starting, or the component that died.
pub async fn run(member: &Member, report: Arc<Report>, stop: CancellationToken) -> anyhow::Result<()> {
    report.step("Preparing the node");
    let (shim, events) =
        runtime::Runtime::start_or_connect(shim_options(member)).await.context("start the node")?;
    let netns = Arc::new(shim.node_netns().await.context("open the node's network namespace")?);
    let (network, address) = network::prepare(member, netns.clone()).await?;
    let plugins = Plugins::of(member, netns.clone()).await.context("prepare the Pods' network")?;
    let in_node = netns.try_clone().context("open the node's network namespace")?;
    let node_runtime = node::runtime("node", 2, Some(in_node))?;
    let parts = Parts {
        member: member.clone(),
        network,
        address,
        shim: shim.clone(),
        netns,
        plugins,
        host: Handle::current(),
        flows: netpol::Flows::default(),
        components: CancellationToken::new(),
        daemon: stop,
    };
    // Whatever a component spawns belongs to the node's runtime, so all of them are started there.
    let outcome = node_runtime.spawn(parts.run(report, events)).await.context("the node's runtime died")?;
    let removed = node::remove(member, Some(shim)).await;
    node_runtime.shutdown_background();
    outcome.and(removed)
}

fn died(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow!("{name} ended by itself"),
        Ok((name, Err(error))) => error.context(format!("{name} died")),
        Err(error) => anyhow!("a component died: {error}"),
    }
}

/// Where the shim of a node is.
pub fn shim_options(member: &Member) -> runtime::ShimOptions {
    runtime::ShimOptions { socket: member.shim_socket(), run_dir: member.run_dir(), cgroup: member.cgroup() }
}

/// What all components of the node are made from.
pub(super) struct Parts {
    pub member: Member,
    /// The cluster's.
    pub network: Network,
    /// This node's IPv4 address, by which the host comes.
    pub address: Ipv4Addr,
    pub shim: runtime::Runtime,
    pub netns: Arc<OwnedFd>,
    /// Who connects the Pods, if not we ourselves.
    pub plugins: Option<Plugins>,
    /// The runtime on the host's side.
    pub host: Handle,
    /// Connections that the node sees.
    pub flows: netpol::Flows,
    /// Ends the components.
    pub components: CancellationToken,
    /// Ends the daemon.
    pub daemon: CancellationToken,
}

pub(super) type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

impl Parts {
    /// The addresses that the cluster knows this node by, the main family's first.
    pub(super) fn node_ips(&self) -> Vec<IpAddr> {
        self.network.node_ips(self.address)
    }

    /// The life of the components: started, watched, drained.
    async fn run(self, report: Arc<Report>, events: runtime::Events) -> anyhow::Result<()> {
        let mut tasks = Tasks::new();
        let mut outcome = self.start(&report, events, &mut tasks).await;
        if outcome.is_ok() {
            tokio::select! {
                () = self.daemon.cancelled() => {}
                Some(ended) = tasks.join_next() => outcome = Err(died(ended)),
            }
        }
        self.components.cancel();
        let drain = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "components outlived the drain time");
        }
        outcome
    }

    async fn start(&self, report: &Report, events: runtime::Events, tasks: &mut Tasks) -> anyhow::Result<()> {
        let authority = Authority::open(&self.member.profile.pki())?;
        let images = self.images()?;
        let api = match self.member.is_control_plane() {
            true => {
                report.step("Starting the API server");
                Some(self.api_server(&authority, tasks).await?)
            }
            false => {
                report.step("Joining the cluster");
                None
            }
        };
        let client = |user: &str| match &api {
            Some(api) => Ok(Client::new(api.in_process(user, &["system:masters"]), "default")),
            None => remote::client(&authority, self.network.node, user),
        };
        let shared = SharedInformers::start(&client("system:skiff:informers")?);
        if api.is_some() {
            report.step("Starting controllers, scheduler and node agent");
            self.control_plane(&authority, &client, shared.clone(), tasks).await?;
        }
        let proxied = self.agent(&authority, &images, &client, shared, events, tasks)?;
        let own = client("system:control-socket")?;
        self.control_socket(own.clone(), images, tasks)?;

        report.step("Waiting for the node and its DNS");
        let ready = self.wait_ready(own, proxied);
        tokio::select! {
            ready = tokio::time::timeout(PATIENCE, ready) => {
                ready.with_context(|| format!("the node and its DNS were not ready within {PATIENCE:?}"))??;
            }
            Some(ended) = tasks.join_next() => return Err(died(ended)),
            () = self.daemon.cancelled() => bail!("told to stop before the cluster was up"),
        }
        report.up();
        // Half of what starts a cluster is never run again.
        client::memory::give_back();
        Ok(())
    }
}
