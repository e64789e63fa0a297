//! The server of the `coredns` Pod.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use client::Recorder;
use parking_lot::RwLock;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::http::{self, Page};
use crate::live::Live;
use crate::name::Domain;
use crate::respond::Responder;
use crate::zone::Zone;
use crate::{metrics, server, watch};

/// What the server must be told.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The cluster's domain, `cluster.local` by default.
    pub zone: String,
    /// Port of UDP and TCP, on all addresses, 53 by default.
    pub port: u16,
    /// Port of `/health`, 8080 by default; none serves no such page.
    pub health: Option<u16>,
    /// Port of `/ready`, 8181 by default.
    pub ready: Option<u16>,
    /// Port of `/metrics`, 9153 by default.
    pub metrics: Option<u16>,
    /// The file that names the servers for all other names while there is no Corefile, `/etc/resolv.conf` by default.
    pub resolv_conf: PathBuf,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            zone: "cluster.local".to_owned(),
            port: 53,
            health: Some(8080),
            ready: Some(8181),
            metrics: Some(9153),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster's domain is no name.
    #[error("cluster domain {0:?} is not a DNS name")]
    Zone(String),
    /// A port is taken, or not for us.
    #[error("listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cluster's domain or the path of `resolv.conf` cannot stand in a Corefile.
    #[error("the Corefile of this server itself")]
    Corefile(#[from] crate::corefile::Error),
    /// A watch has ended for good.
    #[error(transparent)]
    Watch(#[from] client::InformerGone),
}

/// Answers the cluster's names from the API's objects and all others from upstreams, until `stop`.
///
/// # Errors
/// When a port cannot be had, or a watch dies.
pub async fn run(config: DnsConfig, client: kube::Client, stop: CancellationToken) -> Result<(), Error> {
    metrics::count_panics();
    let origin = Domain::parse(&config.zone).ok_or_else(|| Error::Zone(config.zone.clone()))?;
    let zone = Zone::new(origin, 30);
    let corefile = crate::addon::corefile(&config.zone, &[], &config.resolv_conf);
    let first = Config::read(&corefile, zone.origin())?;
    let zone = Arc::new(RwLock::new(zone));
    let responder = Arc::new(Responder::new(Some(zone.clone()), first));
    let (udp, tcp) = (udp_on_all(config.port)?, tcp_on_all(config.port).await?);
    let end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let pages = [(config.health, Page::Health), (config.ready, Page::Ready), (config.metrics, Page::Metrics)];
    for (port, page) in pages {
        if let Some(port) = port {
            tasks.spawn(http::serve(tcp_on_all(port).await?, page, responder.clone(), end.clone()));
        }
    }
    let serving = responder.clone();
    tasks.spawn(server::serve(udp, vec![tcp], serving.clone(), end.clone()));
    let (recorder, recording) = Recorder::new(client.clone(), end.clone());
    tasks.spawn(recording);
    let (stopped, ends) = (stop.clone(), end.clone());
    tasks.spawn(async move {
        stopped.cancelled().await;
        tokio::time::sleep(serving.config().lameduck()).await;
        ends.cancel();
    });
    tracing::info!(zone = config.zone, port = config.port, "listening");
    let (options, selected) = channel::channel(zone.read().options().clone());
    let metrics = responder.metrics.clone();
    let live = Live::new(client.clone(), responder, options, recorder);
    // Names count as known only once it is known how they are to be answered.
    let seen = tokio::select! {
        () = end.cancelled() => return Ok(()),
        seen = live.first() => seen?,
    };
    // The tasks end with this future: dropped, they are aborted.
    tokio::select! {
        () = watch::run(client, zone, metrics, selected, end) => {}
        ended = live.follow(seen) => ended?,
    }
    // What was asked before the end is still answered.
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Both families on one socket; IPv4 alone where the kernel has no IPv6.
fn all(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

/// A socket for each processor, up to four.
fn udp_on_all(port: u16) -> Result<Vec<UdpSocket>, Error> {
    let count = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let listen = |addr| (0..count).map(|_| server::shared_udp(addr)).collect::<io::Result<Vec<_>>>();
    let [both, v4] = all(port);
    listen(both).or_else(|_| listen(v4)).map_err(|source| Error::Listen { port, source })
}

async fn tcp_on_all(port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind(&all(port)[..]).await.map_err(|source| Error::Listen { port, source })
}
