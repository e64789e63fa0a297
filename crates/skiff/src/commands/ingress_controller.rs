//! `skiff ingress-controller`: what the ingress-nginx-controller Pod runs.

use std::net::IpAddr;

use clap::Args;
use tokio_util::sync::CancellationToken;

/// Options of the ingress controller, by ingress-nginx's names; the add-on's Deployment sets them.
#[derive(Debug, Args)]
pub struct Options {
    /// `spec.controller` of the IngressClasses to serve.
    #[arg(long, default_value = ingress::addon::CONTROLLER)]
    controller_class: String,
    /// Serve Ingresses without a class as well.
    #[arg(long)]
    watch_ingress_without_class: bool,
    /// The address to write into the status of Ingresses.
    #[arg(long)]
    publish_status_address: Option<IpAddr>,
    /// Port of HTTP.
    #[arg(long, default_value_t = 80)]
    http_port: u16,
    /// Port of HTTPS.
    #[arg(long, default_value_t = 443)]
    https_port: u16,
    /// Port of /healthz and /readyz.
    #[arg(long, default_value_t = 10254)]
    healthz_port: u16,
}

/// Serves Ingresses with the Pod's own account until it is told to end.
pub fn run(options: &Options) -> anyhow::Result<()> {
    crate::daemon::log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await?;
        let stop = CancellationToken::new();
        tokio::spawn(crate::daemon::stop_on_signal(stop.clone()));
        let config = ingress::Config {
            ours: ingress::build::Ours {
                controller: options.controller_class.clone(),
                without_class: options.watch_ingress_without_class,
            },
            publish: options.publish_status_address,
            http_port: options.http_port,
            https_port: options.https_port,
            health_port: options.healthz_port,
        };
        Ok(ingress::run(config, client, stop).await?)
    })
}
