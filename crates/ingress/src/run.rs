//! The controller of the Pod: follows the API, makes tables, serves.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use client::{Informer, InformerGone, ObjectKey, Recorder, Regarding};
use k8s_openapi::api::core::v1::{Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::build::{self, Objects, Ours, Problems};
use crate::certificates::{self, ByName, Cache};
use crate::front::{self, Front, Limits};
use crate::proxy::Proxy;
use crate::status::{COMPONENT, Status};
use crate::table::Table;

/// What the controller must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which Ingresses are ours.
    pub ours: Ours,
    /// The address written into statuses; none writes no status.
    pub publish: Option<IpAddr>,
    /// Port of HTTP, on all addresses.
    pub http_port: u16,
    /// Port of HTTPS, on all addresses.
    pub https_port: u16,
    /// Port of `/healthz` and `/readyz`.
    pub health_port: u16,
}

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken, or not for us.
    #[error("listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No certificate or no TLS could be made.
    #[error("set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A watch has ended for good.
    #[error(transparent)]
    Watch(#[from] InformerGone),
}

/// Serves the Ingresses of the cluster until `stop`, then lets requests under way end.
///
/// # Errors
/// When a port cannot be had, or a watch dies.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let table = Arc::new(ArcSwap::from_pointee(Table::default()));
    let fallback = certificates::fake().map_err(Error::Tls)?;
    let tls = front::acceptor(Arc::new(ByName { table: table.clone(), fallback }));
    let tls = tls.map_err(|e| Error::Tls(e.into()))?;
    let (http, https) = (listen(config.http_port).await?, listen(config.https_port).await?);
    let health = listen(config.health_port).await?;
    let feeds = Feeds::start(&client);
    let ready = CancellationToken::new();
    let mut pages = JoinSet::new();
    pages.spawn(front::health(health, ready.clone(), stop.clone()));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = feeds.synced() => synced?,
    }
    let (recorder, writing) = Recorder::new(client.clone(), CancellationToken::new());
    pages.spawn(writing);
    let status = Status {
        client,
        ours: config.ours.clone(),
        address: config.publish,
        ingresses: feeds.ingresses.clone(),
        classes: feeds.classes.clone(),
    };
    let proxy = Arc::new(Proxy::new(table.clone()));
    let follow = follow(&config.ours, &feeds, &table, &recorder, &ready, &stop);
    let limits = Limits::default();
    let plain = Front { tls: None, port: 80 };
    let secure = Front { tls: Some(tls), port: 443 };
    let served = async {
        tokio::join!(
            front::serve(http, plain, proxy.clone(), limits, stop.clone()),
            front::serve(https, secure, proxy.clone(), limits, stop.clone()),
        );
        Ok::<_, Error>(())
    };
    let told = async { Ok(status.run(recorder.clone(), stop.clone()).await?) };
    tokio::try_join!(follow, told, served)?;
    Ok(())
}

/// Both families on one socket; IPv4 alone where the kernel has no IPv6.
async fn listen(port: u16) -> Result<TcpListener, Error> {
    let all: [SocketAddr; 2] = [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
    TcpListener::bind(&all[..]).await.map_err(|source| Error::Listen { port, source })
}

struct Feeds {
    ingresses: Informer<Ingress>,
    classes: Informer<IngressClass>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    secrets: Informer<Secret>,
}

impl Feeds {
    fn start(client: &Client) -> Self {
        let all = watcher::Config::default;
        Self {
            ingresses: Informer::start(Api::all(client.clone()), all()),
            classes: Informer::start(Api::all(client.clone()), all()),
            services: Informer::start(Api::all(client.clone()), all()),
            slices: Informer::start(Api::all(client.clone()), all()),
            secrets: Informer::start(Api::all(client.clone()), all()),
        }
    }

    async fn synced(&self) -> Result<(), InformerGone> {
        tokio::try_join!(
            self.ingresses.synced(),
            self.classes.synced(),
            self.services.synced(),
            self.slices.synced(),
            self.secrets.synced()
        )?;
        Ok(())
    }

    fn objects(&self, ours: &Ours) -> Objects {
        let classes = self.classes.list();
        Objects {
            ingresses: self.ingresses.filter(|ingress| ours.serves(ingress, &classes)),
            services: self.services.list().into_iter().map(|s| (ObjectKey::of(&*s), s)).collect(),
            slices: self.slices.list(),
            secrets: self.secrets.list().into_iter().map(|s| (ObjectKey::of(&*s), s)).collect(),
        }
    }

    /// Wakes `changed` at every change; ends with the first cache that is no longer filled.
    async fn watch(&self, changed: &Notify) -> Result<(), InformerGone> {
        tokio::try_join!(
            wake(&self.ingresses, changed),
            wake(&self.classes, changed),
            wake(&self.services, changed),
            wake(&self.slices, changed),
            wake(&self.secrets, changed)
        )?;
        Ok(())
    }
}

async fn wake<K>(informer: &Informer<K>, changed: &Notify) -> Result<(), InformerGone>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let mut changes = informer.subscribe();
    changed.notify_one();
    while changes.recv().await.is_some() {
        while changes.try_recv().is_ok() {}
        changed.notify_one();
    }
    informer.synced().await
}

/// Makes a new table whenever something has changed, and says what is wrong with Ingresses.
async fn follow(
    ours: &Ours,
    feeds: &Feeds,
    table: &ArcSwap<Table>,
    recorder: &Recorder,
    ready: &CancellationToken,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let changed = Notify::new();
    let watched = feeds.watch(&changed);
    tokio::pin!(watched);
    let mut cache = Cache::default();
    let mut told = Problems::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ended = &mut watched => return Ok(ended?),
            () = changed.notified() => {}
        }
        let objects = feeds.objects(ours);
        let (next, problems) = build::table(&objects, &mut cache);
        table.store(Arc::new(next));
        ready.cancel();
        cache.retain(|key| objects.secrets.contains_key(key));
        for (key, why) in problems.difference(&told) {
            tracing::warn!(ingress = %key, "{why}");
            if let Some(ingress) = feeds.ingresses.get_key(key) {
                recorder.warning(COMPONENT, Regarding::of(&*ingress), "Rejected", why.clone());
            }
        }
        told = problems;
    }
}
