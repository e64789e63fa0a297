//! `skiff dns`: what the coredns Pod runs.

use clap::Args;
use tokio_util::sync::CancellationToken;

/// Options of the DNS server; the add-on's Deployment sets them.
#[derive(Debug, Args)]
pub struct Options {
    /// The cluster's domain.
    #[arg(long, default_value = cluster::CLUSTER_DOMAIN)]
    zone: String,
}

/// Serves DNS with the Pod's own account until it is told to end.
pub fn run(options: &Options) -> anyhow::Result<()> {
    crate::daemon::log_to_stderr();
    client::memory::be_sparing();
    // One for each processor, since sockets are; and one more than a single one, so that no list of the API's delays an
    // answer.
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await?;
        let stop = CancellationToken::new();
        tokio::spawn(crate::daemon::stop_on_signal(stop.clone()));
        let config = dns::DnsConfig { zone: options.zone.clone(), ..dns::DnsConfig::default() };
        Ok(dns::run(config, client, stop).await?)
    })
}
