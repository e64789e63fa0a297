//! The controller of the Pod: follows the API, makes tables, serves.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use client::{Informer, InformerGone, ObjectKey, Recorder, Regarding};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::build::{self, Objects, Ours, Problems};
use crate::certificates::{self, Acceptors, ByName};
use crate::front::{Front, Stop, Tls};
use crate::health;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::record::Log;
use crate::state::State;
use crate::status::{COMPONENT, Status};
use crate::table::Table;
use crate::workers;

/// What the controller must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which Ingresses are ours.
    pub ours: Ours,
    /// The address written into statuses; none writes no status.
    pub publish: Option<IpAddr>,
    /// The Pod that this is, where it may not be the only one of its controller.
    pub pod: Option<ObjectKey>,
    /// Port of HTTP, on all addresses.
    pub http_port: u16,
    /// Port of HTTPS, on all addresses.
    pub https_port: u16,
    /// Port of `/healthz`, `/readyz` and `/metrics`.
    pub health_port: u16,
    /// The ConfigMap of the settings for all Ingresses.
    pub settings: Option<ObjectKey>,
    /// The Secret of the certificate for names that have none.
    pub default_certificate: Option<ObjectKey>,
    /// Port of the check at admission, and the Secret with its certificate; none checks nothing.
    pub admission: Option<(u16, ObjectKey)>,
    /// Threads that serve.
    pub workers: usize,
    /// How long the controller goes on serving after it has said that it is not ready, so that whoever sends it
    /// connections can hear of it.
    pub grace: Duration,
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
    /// A thread that serves could not be started, or has died.
    #[error("serve")]
    Worker(#[source] io::Error),
    /// A watch has ended for good.
    #[error(transparent)]
    Watch(#[from] InformerGone),
}

/// Serves the Ingresses of the cluster until `stop`, then lets requests under way end.
///
/// # Errors
/// When a port cannot be had, or a watch dies.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let listeners = Listeners {
        http: listen(config.http_port).await?,
        https: listen(config.https_port).await?,
        health: listen(config.health_port).await?,
        admission: match config.admission {
            Some((port, _)) => Some(listen(port).await?),
            None => None,
        },
    };
    serve(config, client, listeners, stop).await
}

/// Where the controller listens.
pub(crate) struct Listeners {
    pub http: TcpListener,
    pub https: TcpListener,
    pub health: TcpListener,
    pub admission: Option<TcpListener>,
}

/// Serves on these listeners until `stop`.
pub(crate) async fn serve(
    config: Config,
    client: Client,
    listeners: Listeners,
    stop: CancellationToken,
) -> Result<(), Error> {
    let Listeners { http, https, health, admission } = listeners;
    let table = Arc::new(ArcSwap::from_pointee(Table::default()));
    let fallback = certificates::fake().map_err(Error::Tls)?;
    let names = Arc::new(ByName { table: table.clone(), fallback });
    let acceptors = Acceptors::new(names.clone(), (true, true, true)).map_err(|e| Error::Tls(e.into()))?;
    let tls = Tls { acceptors: Arc::new(ArcSwap::from_pointee(acceptors)), table: table.clone() };
    let feeds = Feeds::start(&client);
    let ready = CancellationToken::new();
    let metrics = Arc::new(Metrics::default());
    let mut pages = JoinSet::new();
    pages.spawn(health::serve(health, metrics.clone(), ready.clone(), stop.clone()));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = feeds.synced() => synced?,
    }
    if let Some((listener, (_, key))) = admission.zip(config.admission.clone()) {
        let (secrets, classes, ours) = (feeds.secrets.clone(), feeds.classes.clone(), config.ours.clone());
        let find = Box::new(move || secrets.get_key(&key));
        pages.spawn(admission::serve(
            listener,
            find,
            Arc::new(move |i: &Ingress| ours.serves(i, &classes.list())),
        ));
    }
    let (recorder, writing) = Recorder::new(client.clone(), CancellationToken::new());
    pages.spawn(writing);
    let status = Status {
        client,
        ours: config.ours.clone(),
        address: config.publish,
        ingresses: feeds.ingresses.clone(),
        classes: feeds.classes.clone(),
        pod: config.pod.clone(),
    };
    let proxy =
        Proxy::new(table.clone(), metrics.clone(), Log::stdout()).map_err(|e| Error::Tls(e.into()))?;
    let proxy = Arc::new(proxy);
    let follow = follow(&config, &feeds, &tls, &names, &metrics, &recorder, &ready, &stop);
    // Serving ends later than readiness.
    let ends = Stop { leaving: stop.clone(), closing: CancellationToken::new() };
    // Whatever ends this, the threads end as well.
    let _guard = ends.closing.clone().drop_guard();
    let fronts =
        vec![(http, Front { tls: None, port: 80 }), (https, Front { tls: Some(tls.clone()), port: 443 })];
    let served = async {
        let working = workers::serve(fronts, proxy.clone(), config.workers, ends.clone());
        let told = async {
            stop.cancelled().await;
            tokio::time::sleep(config.grace).await;
            ends.closing.cancel();
            Ok(())
        };
        tokio::try_join!(working, told).map_err(Error::Worker)
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
    configs: Informer<ConfigMap>,
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
            configs: Informer::start(Api::all(client.clone()), all()),
        }
    }

    async fn synced(&self) -> Result<(), InformerGone> {
        tokio::try_join!(
            self.ingresses.synced(),
            self.classes.synced(),
            self.services.synced(),
            self.slices.synced(),
            self.secrets.synced(),
            self.configs.synced()
        )?;
        Ok(())
    }

    fn objects(&self, config: &Config) -> Objects {
        let classes = self.classes.list();
        Objects {
            settings: config.settings.clone(),
            default_certificate: config.default_certificate.clone(),
            configs: self.configs.list().into_iter().map(|c| (ObjectKey::of(&*c), c)).collect(),
            ingresses: self.ingresses.filter(|ingress| config.ours.serves(ingress, &classes)),
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
            wake(&self.secrets, changed),
            wake(&self.configs, changed)
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
#[expect(clippy::too_many_arguments, reason = "the wiring of one loop, called once")]
async fn follow(
    config: &Config,
    feeds: &Feeds,
    tls: &Tls,
    names: &Arc<ByName>,
    metrics: &Metrics,
    recorder: &Recorder,
    ready: &CancellationToken,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let changed = Notify::new();
    let watched = feeds.watch(&changed);
    tokio::pin!(watched);
    let mut state = State::default();
    let mut told = Problems::new();
    let mut tidy = tokio::time::interval(Duration::from_secs(30));
    loop {
        tokio::select! {
            () = async { stop.cancelled().await; tokio::time::sleep(config.grace).await } => return Ok(()),
            ended = &mut watched => return Ok(ended?),
            _ = tidy.tick() => {
                state.alive().iter().for_each(|endpoint| endpoint.prune());
                metrics.prune();
                continue;
            }
            () = changed.notified() => {}
        }
        let (next, problems) = build::table(&feeds.objects(config), &mut state);
        let global = next.global.clone();
        let versions = (global.tls12, global.tls13, global.http2);
        if !tls.acceptors.load().are(versions) {
            match Acceptors::new(names.clone(), versions) {
                Ok(acceptors) => tls.acceptors.store(Arc::new(acceptors)),
                Err(error) => tracing::error!(%error, "the settings of TLS were not changed"),
            }
        }
        *metrics.expiry.lock() = next.certificates.ends();
        tls.table.store(Arc::new(next));
        metrics.reloaded();
        if !ready.is_cancelled() {
            client::memory::give_back();
            ready.cancel();
        }
        for (key, why) in problems.difference(&told) {
            tracing::warn!(object = %key, "{why}");
            let ingress = feeds.ingresses.get_key(key).map(|i| Regarding::of(&*i));
            let settings = || feeds.configs.get_key(key).filter(|_| config.settings.as_ref() == Some(key));
            if let Some(regarding) = ingress.or_else(|| settings().map(|c| Regarding::of(&*c))) {
                recorder.warning(COMPONENT, regarding, "Rejected", why.clone());
            }
        }
        told = problems;
    }
}
