//! A component of the node in this process: against the API server of the current context, but in a network namespace of its
//! own, whose kernel rules only it changes and only we look at.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use kube::Client;
use kube::api::{Api, PostParams};
use nft::TableName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use testkit::netns::Netns;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

/// The place of a component, and the component once it runs.
pub struct Beside {
    netns: Arc<Netns>,
    client: Client,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Beside {
    /// A namespace in which nothing runs yet.
    pub fn new(outside: &Client) -> Self {
        // Requests leave by this side: the namespace has no way to the API server.
        let (outside, here) = (outside.clone(), tokio::runtime::Handle::current());
        let carry = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let client = outside.clone();
            let sent = here.spawn(async move { client.send(request).await });
            async move { sent.await.map_err(tower::BoxError::from)?.map_err(tower::BoxError::from) }
        });
        let client = Client::new(carry, "default");
        Self { netns: Arc::new(Netns::new()), client, stop: CancellationToken::new(), thread: None }
    }

    /// Runs the component on a thread of its own.
    pub fn run<F>(mut self, component: impl FnOnce(Client, CancellationToken) -> F + Send + 'static) -> Self
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (netns, client, stop) = (self.netns.clone(), self.client.clone(), self.stop.clone());
        self.thread = Some(std::thread::spawn(move || {
            netns.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(component(client, stop))
            })
        }));
        self
    }

    /// Runs this in the component's network namespace.
    pub fn within<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.netns.within(body)
    }

    /// Ends the component.
    pub fn end(self) -> anyhow::Result<()> {
        self.stop.cancel();
        let ended = self.thread.map_or(Ok(Ok(())), std::thread::JoinHandle::join);
        ended.map_err(|_| anyhow::anyhow!("the component died"))?
    }

    /// Follows these tables of the kernel.
    pub async fn kernel(&self, tables: Vec<TableName>) -> anyhow::Result<Watched> {
        let own = self.netns.within(nft::Socket::open)?;
        let (seen, mut news) = watch::channel((0u64, Instant::now()));
        let netns = self.netns.clone();
        let end = CancellationToken::new();
        let stop = end.clone();
        // Whoever is not `own` changes the tables: the component.
        let listener = std::thread::spawn(move || {
            netns.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let mut monitor = nft::Monitor::open(&own, tables)?;
                    seen.send_replace((1, Instant::now()));
                    while let Some(change) = stop.run_until_cancelled(monitor.foreign_change()).await {
                        change?;
                        seen.send_modify(|(n, when)| (*n, *when) = (*n + 1, Instant::now()));
                    }
                    anyhow::Ok(())
                })
            })
        });
        news.wait_for(|(n, _)| *n > 0).await?;
        Ok(Watched { news, end, listener })
    }
}

/// The kernel's rules, as they change.
pub struct Watched {
    news: watch::Receiver<(u64, Instant)>,
    end: CancellationToken,
    listener: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Watched {
    /// From the beginning of the write until the rules have changed.
    pub async fn until_changed<T, E>(
        &mut self,
        write: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<Duration>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (before, _) = *self.news.borrow_and_update();
        let began = Instant::now();
        write.await?;
        let changed = tokio::time::timeout(LIMIT, self.news.wait_for(|(n, _)| *n > before)).await;
        let (_, when) = *changed.context("the change did not reach the kernel")??;
        Ok(when - began)
    }

    /// When the rules changed last, once they have not done so for that long.
    pub async fn settled(&mut self, quiet: Duration) -> anyhow::Result<Instant> {
        while let Ok(changed) = tokio::time::timeout(quiet, self.news.changed()).await {
            changed.context("the listener ended")?;
        }
        Ok(self.news.borrow().1)
    }

    /// Looks no more.
    pub fn end(self) -> anyhow::Result<()> {
        self.end.cancel();
        self.listener.join().map_err(|_| anyhow::anyhow!("the listener died"))?
    }
}

/// Creates objects with several clients at once.
pub async fn create<K>(namespace: &str, which: Range<u32>, make: fn(u32) -> Value) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize + Send + Sync + 'static,
{
    let mut tasks = JoinSet::new();
    for first in 0..16 {
        let api: Api<K> = Api::namespaced(Client::try_default().await?, namespace);
        let own = (which.start + first..which.end).step_by(16);
        tasks.spawn(async move {
            for i in own {
                api.create(&PostParams::default(), &serde_json::from_value(make(i))?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
