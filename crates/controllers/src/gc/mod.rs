//! The garbage collector: objects follow their owners.
//!
//! It watches every kind that discovery names (custom resources too), keeps the [`graph`] of owner references and acts
//! ([`act`]) on what the graph points out: background deletion, foreground deletion (`blockOwnerDeletion`), orphaning,
//! and objects whose owner never was. Nothing is deleted on the word of the cache alone: the object and each owner that the graph does not know are read from the server first.

mod act;
mod graph;
mod item;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use client::{Outcome, WorkQueue};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::watcher;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use self::graph::{Graph, Work};
use self::item::Item;
use crate::catalog::{Kind, discover};
use crate::kit::{Context, is_conflict, is_not_found, message_of};
use crate::meta;

const WORKERS: usize = 8;
/// How long work waits for the first lists; a kind that cannot be listed does not hold up the others.
const PATIENCE: Duration = Duration::from_secs(10);
/// Several CRDs usually come together.
const SETTLE: Duration = Duration::from_millis(300);

struct Collector {
    ctx: Context,
    graph: Mutex<Graph>,
    queue: WorkQueue<Work>,
    kinds: RwLock<Vec<Arc<Kind>>>,
    /// A CustomResourceDefinition has changed.
    kinds_changed: Notify,
}

/// Runs the garbage collector until the stop.
pub(crate) async fn run(ctx: Context) {
    let collector = Arc::new(Collector {
        ctx: ctx.clone(),
        graph: Mutex::default(),
        queue: WorkQueue::new(),
        kinds: RwLock::default(),
        kinds_changed: Notify::new(),
    });
    let (synced, mut lists) = mpsc::unbounded_channel();
    let watching = async {
        tokio::select! {
            () = ctx.stop.cancelled() => {}
            () = collector.watch_kinds(synced) => {}
        }
    };
    let working = async {
        let first = async { while lists.recv().await == Some(false) {} };
        tokio::select! {
            () = ctx.stop.cancelled() => return,
            _ = tokio::time::timeout(PATIENCE, first) => {}
        }
        collector.queue.run(WORKERS, ctx.stop.clone(), |work| collector.work(work)).await;
    };
    tokio::join!(watching, working);
}

impl Collector {
    fn enqueue(&self, work: Vec<Work>) {
        work.into_iter().for_each(|w| self.queue.add(w));
    }

    async fn work(&self, work: Work) -> Outcome {
        let done = match &work {
            Work::Collect(uid) => self.collect(uid).await,
            Work::Orphan(uid) => self.orphan(uid).await,
        };
        done.unwrap_or_else(|error| {
            let race = is_conflict(&error.source) || is_not_found(&error.source);
            if race {
                tracing::debug!(%error, "garbage collector will try again");
            } else {
                tracing::warn!(%error, "garbage collector will try again");
            }
            Outcome::Retry
        })
    }

    /// The kind that an owner reference names, in whatever version is served.
    fn kind(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.read();
        kinds.iter().find(|k| k.resource.group == group && k.resource.kind == kind).cloned()
    }

    /// Keeps one watch per kind that is served; tells `true` on the channel when the first lists are all in.
    async fn watch_kinds(self: &Arc<Self>, synced: mpsc::UnboundedSender<bool>) {
        let mut tasks = JoinSet::new();
        let mut running: HashMap<String, AbortHandle> = HashMap::new();
        let mut first = true;
        loop {
            let catalog = match discover(&self.ctx.client).await {
                Ok(catalog) => catalog,
                Err(error) => {
                    tracing::debug!(error = message_of(&error), "discovery failed, trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let partial = !catalog.failures.is_empty();
            let kinds: Vec<Arc<Kind>> = catalog.kinds.into_iter().map(Arc::new).collect();
            self.kinds.write().clone_from(&kinds);
            let wanted = self.watchable(&kinds);
            if !partial {
                running.retain(|url, task| {
                    wanted.contains_key(url) || {
                        task.abort();
                        false
                    }
                });
            }
            let barrier = first.then(|| Barrier::new(wanted.len(), synced.clone()));
            for (url, kind) in wanted {
                running.entry(url).or_insert_with(|| tasks.spawn(self.clone().watch(kind, barrier.clone())));
            }
            first = false;
            while tasks.try_join_next().is_some() {}
            let retry = async {
                if partial {
                    tokio::time::sleep(Duration::from_secs(30)).await
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = self.kinds_changed.notified() => tokio::time::sleep(SETTLE).await,
                () = retry => {}
            }
        }
    }

    /// What is worth a watch, by URL. Events own nothing and are owned by nothing.
    fn watchable(&self, kinds: &[Arc<Kind>]) -> HashMap<String, Arc<Kind>> {
        let url = |kind: &Arc<Kind>| {
            let api = Api::<DynamicObject>::all_with(self.ctx.client.clone(), &kind.resource);
            (api.resource_url().to_owned(), kind.clone())
        };
        let watched = |k: &&Arc<Kind>| k.can(&["delete", "list", "watch"]) && k.resource.kind != "Event";
        kinds.iter().filter(watched).map(url).collect()
    }

    /// Follows one kind.
    async fn watch(self: Arc<Self>, kind: Arc<Kind>, barrier: Option<Barrier>) {
        let api: Api<Item> = Api::all_with(self.ctx.client.clone(), &kind.resource);
        let url = api.resource_url().to_owned();
        let mut events = pin!(watcher::watcher(api, watcher::Config::default()));
        // When the kind is no longer served its task is aborted; dropping this deletes its objects from the graph.
        let known = Known { collector: &self, kind: kind.clone() };
        let mut listed: HashSet<String> = HashSet::new();
        let mut pause = Duration::from_millis(100);
        while let Some(event) = events.next().await {
            if self.ctx.stop.is_cancelled() {
                return;
            }
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::debug!(kind = kind.resource.kind, %error, "watch broke, retrying");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(30));
                    continue;
                }
            };
            pause = Duration::from_millis(100);
            match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) => {
                    listed.insert(meta::uid(&object.metadata).to_owned());
                    known.apply(&object.metadata);
                }
                watcher::Event::InitDone => {
                    known.keep(&std::mem::take(&mut listed));
                    if let Some(barrier) = &barrier {
                        barrier.arrive(&url);
                    }
                }
                watcher::Event::Apply(object) => {
                    known.apply(&object.metadata);
                    self.note_definition(&kind);
                }
                watcher::Event::Delete(object) => {
                    known.delete(meta::uid(&object.metadata));
                    self.note_definition(&kind);
                }
            }
        }
    }

    fn note_definition(&self, kind: &Kind) {
        if kind.resource.kind == "CustomResourceDefinition" {
            self.kinds_changed.notify_one();
        }
    }
}

/// The objects that one watch has put into the graph.
struct Known<'a> {
    collector: &'a Collector,
    kind: Arc<Kind>,
}

impl Known<'_> {
    fn apply(&self, object: &ObjectMeta) {
        let work = self.collector.graph.lock().apply(&self.kind, object);
        self.collector.enqueue(work);
    }

    fn delete(&self, uid: &str) {
        let work = self.collector.graph.lock().delete(uid);
        self.collector.enqueue(work);
    }

    fn keep(&self, listed: &HashSet<String>) {
        let gone = self.collector.graph.lock().others(&self.kind, listed);
        gone.iter().for_each(|uid| self.delete(uid));
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        if !self.collector.ctx.stop.is_cancelled() {
            self.keep(&HashSet::new());
        }
    }
}

/// Counts the first lists.
#[derive(Clone)]
struct Barrier {
    left: Arc<Mutex<(usize, HashSet<String>)>>,
    done: mpsc::UnboundedSender<bool>,
}

impl Barrier {
    fn new(count: usize, done: mpsc::UnboundedSender<bool>) -> Self {
        if count == 0 {
            // The receiver may be past caring.
            let _ = done.send(true);
        }
        Self { left: Arc::new(Mutex::new((count, HashSet::new()))), done }
    }

    fn arrive(&self, url: &str) {
        let mut left = self.left.lock();
        if left.1.insert(url.to_owned()) {
            left.0 = left.0.saturating_sub(1);
        }
        // The receiver stops listening after the first `true`.
        let _ = self.done.send(left.0 == 0);
    }
}
