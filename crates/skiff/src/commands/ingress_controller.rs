//! `skiff ingress-controller`: what the ingress-nginx-controller Pod runs.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use client::ObjectKey;
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
    /// Namespace and name of the ConfigMap with the settings for all Ingresses.
    #[arg(long, value_parser = object)]
    configmap: Option<ObjectKey>,
    /// Namespace and name of the Secret with the certificate for names that have none.
    #[arg(long, value_parser = object)]
    default_ssl_certificate: Option<ObjectKey>,
    /// Namespace and name of the Secret with the certificate of the check at admission; without one nothing is checked.
    #[arg(long, value_parser = object)]
    admission_secret: Option<ObjectKey>,
    /// Port of the check at admission.
    #[arg(long, default_value_t = 8443)]
    admission_port: u16,
    /// Seconds to go on serving after the Pod has said that it is no longer ready.
    #[arg(long, default_value_t = 0)]
    shutdown_grace_period: u64,
    /// Threads that serve; as many as there are processors by default.
    #[arg(long)]
    worker_processes: Option<usize>,
    /// Port of /healthz, /readyz and /metrics.
    #[arg(long, default_value_t = 10254)]
    healthz_port: u16,
}

/// Serves Ingresses with the Pod's own account until it is told to end.
pub fn run(options: &Options) -> anyhow::Result<()> {
    crate::daemon::log_to_stderr();
    // What follows the API; threads that serve have runtimes of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
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
            pod: pod(),
            http_port: options.http_port,
            https_port: options.https_port,
            health_port: options.healthz_port,
            settings: options.configmap.clone(),
            default_certificate: options.default_ssl_certificate.clone(),
            admission: options.admission_secret.clone().map(|secret| (options.admission_port, secret)),
            workers: options
                .worker_processes
                .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
            grace: Duration::from_secs(options.shutdown_grace_period),
        };
        Ok(ingress::run(config, client, stop).await?)
    })
}

/// The Pod that this is, as its environment says under ingress-nginx's names.
fn pod() -> Option<ObjectKey> {
    let (namespace, name) = (std::env::var("POD_NAMESPACE").ok()?, std::env::var("POD_NAME").ok()?);
    Some(ObjectKey::new(namespace, name))
}

/// `namespace/name`.
fn object(text: &str) -> Result<ObjectKey, String> {
    let (namespace, name) = text.split_once('/').ok_or("write NAMESPACE/NAME")?;
    Ok(ObjectKey::new(namespace, name))
}
