//! The daemon of a node: one process that is its agent and, on the first node, the control plane.
//!
//! Two runtimes. *node*: its threads have entered the node's network namespace, so every socket they make (API server,
//! kubelet, probes, netlink) is the node's. *host*: its threads stay where `skiff start` was called, so image pulls
//! and upstream DNS use the host's resolver, VPN and proxies. Every component talks to the API server through a client of
//! its own (in this process, or over HTTPS on the other nodes); none holds another.

mod addons;
mod agent;
mod answer;
mod components;
mod control_plane;
mod edges;
mod flows;
pub mod network;
pub mod node;
mod nodes;
mod plugins;
mod remote;
mod report;
mod tls;

use std::sync::Arc;

use anyhow::Context;
use cluster::{Member, Profile};
use tokio_util::sync::CancellationToken;

use crate::commands::need_root;
use report::Report;

/// Runs a node of the cluster until it is told to stop; steps go to standard output as JSON lines until it is up.
pub fn run(name: &str, number: u8) -> anyhow::Result<()> {
    need_root()?;
    let member = Member::new(&Profile::new(name)?, number)?;
    let report = Arc::new(Report::new());
    let outcome = supervise(&member, report.clone());
    if let Err(error) = &outcome {
        tracing::error!("{}", crate::output::chain(error));
        report.failed(error);
    }
    outcome
}

fn supervise(member: &Member, report: Arc<Report>) -> anyhow::Result<()> {
    close_inherited();
    // The caller's terminal must not take the cluster down with it; a daemon that already leads its session is fine.
    let _ = nix::unistd::setsid();
    // Run through a link, the kernel would call us by the link's name.
    let _ = nix::sys::prctl::set_name(c"skiff");
    log_to_stderr();
    cluster::files::make_public_dir(&member.state_dir())?;
    // Containers' specifications lie here, and with them what Secrets put into environments.
    cluster::files::make_private_dir(&member.run_dir())?;
    // Layers hold set-uid programs that are the containers' alone.
    cluster::files::make_private_dir(&member.profile.images())?;
    let _lock = node::lock(member)?;
    let host = node::runtime("host", 1, None)?;
    let stop = CancellationToken::new();
    host.block_on(async {
        let signals = tokio::spawn(stop_on_signal(stop.clone()));
        let outcome = components::run(member, report, stop).await;
        signals.abort();
        outcome
    })
}

/// Closes what the caller left open beyond the standard three: a lock or pipe of a script must not live as long as the
/// cluster. Nothing of our own is open yet.
fn close_inherited() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The directory's own is closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Log lines go to standard error; `SKIFF_LOG` says which (default: info).
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SKIFF_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,tower=warn,hyper=warn"));
    // Only fails when one is installed already, and then there is nothing to do.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .try_init();
}

/// Cancels `stop` on SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be listened for.
pub async fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // `skiff start` may have been ended while we wrote to it.
    let mut hup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => {}
        }
    }
    tracing::info!("told to stop");
    stop.cancel();
    Ok(())
}

/// Everything that a request on the control socket may need.
#[derive(Clone)]
struct Running {
    client: kube::Client,
    images: Arc<image::Store>,
    node_name: String,
    stop: CancellationToken,
    /// The runtime on the host's side, from which images are pulled.
    host: tokio::runtime::Handle,
    /// Connections that the node sees.
    flows: netpol::Flows,
}
