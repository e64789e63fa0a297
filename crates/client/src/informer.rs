//! A cache of one kind that follows the API server by list and watch.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

use crate::packed::Packed;

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: kube::Resource>(object: &K) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What a cache can hold.
pub trait Cached: fmt::Debug + Send + Sync + 'static {
    /// The object's key.
    fn key(&self) -> ObjectKey;
    /// Its `resourceVersion`; 0 if it has none that is a number.
    fn version(&self) -> u64;
}

impl<K: kube::Resource + fmt::Debug + Send + Sync + 'static> Cached for K {
    fn key(&self) -> ObjectKey {
        ObjectKey::of(self)
    }

    fn version(&self) -> u64 {
        version_of(self)
    }
}

/// One change of the cache, in the order in which the server made it.
#[derive(Debug)]
pub enum Change<K> {
    /// Created or updated; `old` is what the cache held before.
    Applied {
        /// The object as it is now.
        new: Arc<K>,
        /// The object as it was, if it was known.
        old: Option<Arc<K>>,
    },
    /// Deleted; its last known state.
    Deleted(Arc<K>),
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied { new, old } => Self::Applied { new: new.clone(), old: old.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

impl<K> Change<K> {
    /// The object that the change is about: new state, or last known state of a deleted one.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Applied { new, .. } => new,
            Self::Deleted(object) => object,
        }
    }
}

/// The task that fills a cache has ended, so the cache will never be filled.
#[derive(Debug, thiserror::Error)]
#[error("the informer of {0} has stopped; restart the component")]
pub struct InformerGone(&'static str);

struct Shared<K> {
    /// Ordered, so that one namespace is one range.
    objects: BTreeMap<ObjectKey, Arc<K>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
    /// The newest `resourceVersion` seen. Raised before subscribers hear of the change: who is woken by its own write
    /// must find it seen.
    revision: u64,
}

impl<K: Cached> Shared<K> {
    fn tell(&mut self, change: &Change<K>) {
        self.subscribers.retain(|s| s.send(change.clone()).is_ok());
    }

    fn apply(&mut self, object: K) {
        let new = Arc::new(object);
        self.revision = self.revision.max(new.version());
        let old = self.objects.insert(new.key(), new.clone());
        self.tell(&Change::Applied { new, old });
    }

    fn delete(&mut self, key: &ObjectKey) {
        if let Some(last) = self.objects.remove(key) {
            self.tell(&Change::Deleted(last));
        }
    }

    /// A relist: what is gone is deleted, what is there applied; readers never see a half-filled cache.
    fn replace(&mut self, listed: Vec<K>) {
        let names: HashSet<ObjectKey> = listed.iter().map(Cached::key).collect();
        let gone: Vec<ObjectKey> = self.objects.keys().filter(|k| !names.contains(*k)).cloned().collect();
        gone.iter().for_each(|key| self.delete(key));
        for object in listed {
            let known = self.objects.get(&object.key()).map(|known| known.version());
            if known != Some(object.version()) || known == Some(0) {
                self.apply(object);
            }
        }
    }
}

/// A cache of one kind; cloning shares it. The watching task ends when the last clone is dropped.
pub struct Informer<K> {
    shared: Arc<RwLock<Shared<K>>>,
    synced: watch::Receiver<bool>,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), synced: self.synced.clone(), _task: self._task.clone() }
    }
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer").field("objects", &self.shared.read().objects.len()).finish()
    }
}

impl<K> Informer<K>
where
    K: kube::Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    /// Starts to follow `api`, narrowed by `config` (label and field selectors). Must be called inside a runtime.
    pub fn start(api: Api<K>, config: watcher::Config) -> Self {
        // Who wrote which field is of no use to a component and often half of an object's size.
        let strip = |object: &mut K| object.meta_mut().managed_fields = None;
        Self::from_events(watcher(api, config).map_ok(move |event| event.modify(strip)))
    }
}

impl<K> Informer<Packed<K>>
where
    K: kube::Resource + Clone + Serialize + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    /// Starts to follow all objects of `api`, of which `trim` drops the fields that nobody looks at.
    pub fn packed(api: Api<K>, trim: fn(&mut K)) -> Self {
        let pack = move |mut object: K| {
            trim(&mut object);
            Packed::new(&object)
        };
        let events = watcher(api, watcher::Config::default());
        Self::from_events(events.map_ok(move |event| match event {
            watcher::Event::Init => watcher::Event::Init,
            watcher::Event::InitApply(object) => watcher::Event::InitApply(pack(object)),
            watcher::Event::InitDone => watcher::Event::InitDone,
            watcher::Event::Apply(object) => watcher::Event::Apply(pack(object)),
            watcher::Event::Delete(object) => watcher::Event::Delete(pack(object)),
        }))
    }
}

impl<K: Cached> Informer<K> {
    /// Follows a given stream of watch events; `start` without a server.
    pub fn from_events(
        events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    ) -> Self {
        let shared =
            Arc::new(RwLock::new(Shared { objects: BTreeMap::new(), subscribers: Vec::new(), revision: 0 }));
        let (tx, synced) = watch::channel(false);
        let task = tokio::spawn(follow(events, shared.clone(), tx));
        Self { shared, synced, _task: Arc::new(AbortOnDrop(task)) }
    }

    /// Resolves once the first list is in the cache.
    ///
    /// # Errors
    /// When the watching task has died before.
    pub async fn synced(&self) -> Result<(), InformerGone> {
        let mut synced = self.synced.clone();
        let result = synced.wait_for(|done| *done).await;
        result.map(|_| ()).map_err(|_| InformerGone(std::any::type_name::<K>()))
    }

    /// The object of that name; `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    /// The object of that key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.read().objects.get(key).cloned()
    }

    /// All objects, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.read().objects.values().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let shared = self.shared.read();
        let from = ObjectKey::new(namespace, "");
        let range = shared.objects.range(from..).take_while(|(key, _)| key.namespace == namespace);
        range.map(|(_, object)| object.clone()).collect()
    }

    /// Whether the cache has seen the write that answered with this `resourceVersion` (of this kind): read your own
    /// writes. Versions are the store's revisions, which Kubernetes defines as comparable integers; one that is none
    /// counts as seen.
    pub fn has_seen(&self, resource_version: &str) -> bool {
        resource_version.parse::<u64>().map_or(true, |v| v <= self.shared.read().revision)
    }

    /// The objects that `keep` keeps, in no order.
    pub fn filter(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.shared.read().objects.values().filter(|o| keep(o)).cloned().collect()
    }

    /// All changes from now on, after one `Applied` for each object already in the cache: nothing is missed between.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (tx, rx) = mpsc::unbounded_channel();
        let mut shared = self.shared.write();
        for new in shared.objects.values() {
            // The receiver is in our hands, so sending cannot fail.
            let _ = tx.send(Change::Applied { new: new.clone(), old: None });
        }
        shared.subscribers.push(tx);
        rx
    }
}

async fn follow<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    shared: Arc<RwLock<Shared<K>>>,
    synced: watch::Sender<bool>,
) where
    K: Cached,
{
    let mut events = std::pin::pin!(events);
    let mut listing = Vec::new();
    let mut delay = FIRST_RETRY;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // A list that only begins says nothing of the server yet.
                if !matches!(event, watcher::Event::Init) {
                    delay = FIRST_RETRY;
                }
                match event {
                    watcher::Event::Init => listing.clear(),
                    watcher::Event::InitApply(object) => listing.push(object),
                    watcher::Event::InitDone => {
                        shared.write().replace(std::mem::take(&mut listing));
                        synced.send_replace(true);
                    }
                    watcher::Event::Apply(object) => shared.write().apply(object),
                    watcher::Event::Delete(object) => {
                        let mut shared = shared.write();
                        shared.revision = shared.revision.max(object.version());
                        shared.delete(&object.key());
                    }
                }
            }
            Err(error) => {
                tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch broke, retrying");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LAST_RETRY);
            }
        }
    }
}

/// The `resourceVersion` as a number, 0 if it is none.
pub(crate) fn version_of<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;

    fn map(name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.namespace = Some("ns".into());
        map.metadata.resource_version = Some(version.into());
        map
    }

    fn show(change: Change<ConfigMap>) -> String {
        match change {
            Change::Applied { new, old } => {
                format!("{}{}", if old.is_some() { "~" } else { "+" }, new.name_any())
            }
            Change::Deleted(last) => format!("-{}", last.name_any()),
        }
    }

    #[tokio::test]
    async fn a_relist_tells_only_the_difference() {
        let (tx, rx) = mpsc::unbounded_channel();
        let informer = Informer::from_events(futures::stream::unfold(rx, |mut rx| async {
            rx.recv().await.map(|e| (e, rx))
        }));
        let mut changes = informer.subscribe();
        for event in [
            Event::Init,
            Event::InitApply(map("a", "1")),
            Event::InitApply(map("b", "2")),
            Event::InitDone,
            Event::Apply(map("a", "3")),
            Event::Init,
            Event::InitApply(map("a", "3")),
            Event::InitApply(map("c", "4")),
            Event::InitDone,
        ] {
            tx.send(Ok(event)).unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(show(changes.recv().await.unwrap()));
        }
        assert_eq!(seen, ["+a", "+b", "~a", "-b", "+c"]);
        assert!(informer.get("ns", "b").is_none());
        assert_eq!(informer.list_in("ns").iter().map(|m| m.name_any()).collect::<Vec<_>>(), ["a", "c"]);
        assert!(informer.list_in("n").is_empty() && informer.list_in("nsx").is_empty());
        assert!(informer.has_seen("4") && !informer.has_seen("5"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_asked_ever_less_often() {
        let failed = || watcher::Error::NoResourceVersion;
        let events =
            futures::stream::iter((0..10).flat_map(|_| [Ok(Event::<ConfigMap>::Init), Err(failed())]));
        let began = tokio::time::Instant::now();
        let shared = Shared { objects: BTreeMap::new(), subscribers: Vec::new(), revision: 0 };
        follow(events, Arc::new(RwLock::new(shared)), watch::channel(false).0).await;
        // 50 ms doubled to 5 s at most.
        let all: u64 = [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000].iter().sum();
        assert_eq!(began.elapsed(), Duration::from_millis(all));
    }

    #[tokio::test]
    async fn waiting_for_a_dead_writer_is_an_error() {
        let informer = Informer::<ConfigMap>::from_events(futures::stream::empty());
        assert!(informer.synced().await.is_err());
    }
}
