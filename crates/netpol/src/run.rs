//! From the API to the kernel: watches wake the loop, one round does all that has changed, one transaction commits it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use client::events::Recorder;
use client::{Change, Informer, InformerGone, ObjectKey, Retry, SharedInformers};
use k8s_openapi::api::core::v1::{Namespace, Node as ApiNode, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use parking_lot::RwLock;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cluster::{ClusterNetworkPolicy, ClusterPolicy};
use crate::cut;
use crate::flows::Flows;
use crate::gate::{Arrival, Arrivals};
use crate::layout::{FAMILIES, name_of};
use crate::model::{NodeView, PodView, Policy, World, addresses_of};
use crate::observe::{Observer, observe};
use crate::report::Reporter;
use crate::sync::Kernel;
use crate::track::{Changes, Tracker};

/// How often some policies' Pods are counted anew, and how many policies'.
const RECOUNT: Duration = Duration::from_secs(2);
const AT_ONCE: usize = 20;
/// A count that no policy has.
const NEVER: (usize, usize) = (usize::MAX, usize::MAX);

/// What the enforcement of a node must be told.
#[derive(Debug)]
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses; what comes from them is not judged.
    pub node_ips: Vec<IpAddr>,
    /// The Pods that the node agent connects.
    pub arrivals: Arrivals,
    /// Where connections that the node sees are told.
    pub flows: Flows,
    /// Whether Events of the cluster as a whole are this node's to write.
    pub speaks: bool,
}

/// Why the enforcement ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A watch has ended for good.
    #[error(transparent)]
    Informer(#[from] InformerGone),
    /// A watch's channel was closed.
    #[error("the watch of {0} ended")]
    WatchEnded(&'static str),
    /// The kernel's netfilter cannot be reached.
    #[error("nftables on this node")]
    Kernel(#[from] nft::Error),
}

/// Takes away what an earlier run enforced in the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn disable() -> Result<(), Error> {
    let mut batch = nft::Batch::new();
    FAMILIES.iter().for_each(|family| batch.delete_table(&name_of(*family)));
    Ok(batch.apply(&mut nft::Socket::open()?)?)
}

/// Keeps the node's rules in step with the API until `stop`; then leaves them in force.
///
/// # Errors
/// When a watch dies or the kernel has no nf_tables. Refused transactions are logged and retried instead.
pub async fn run(
    client: kube::Client,
    shared: SharedInformers,
    config: Config,
    stop: CancellationToken,
) -> Result<(), Error> {
    let socket = nft::Socket::open()?;
    let all = watcher::Config::default;
    let SharedInformers { pods, nodes, namespaces } = shared;
    let policies = Informer::<NetworkPolicy>::start(Api::all(client.clone()), all());
    let cluster_policies = Informer::<ClusterNetworkPolicy>::start(Api::all(client.clone()), all());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = async { tokio::try_join!(
            pods.synced(), namespaces.synced(), policies.synced(), cluster_policies.synced(), nodes.synced()
        ) } => synced.map(drop)?,
    };
    let mut feeds = Feeds {
        pods: pods.subscribe(),
        namespaces: namespaces.subscribe(),
        policies: policies.subscribe(),
        cluster_policies: cluster_policies.subscribe(),
        nodes: nodes.subscribe(),
        arrivals: config.arrivals,
    };
    let (recorder, writing) = Recorder::new(client, stop.clone());
    tokio::spawn(writing);
    let reporter = Reporter::new(recorder, &config.node_name);
    let mut node = Node::new(config.node_name, config.node_ips, socket, reporter);
    node.speaks = config.speaks;
    node.take(&mut feeds);
    // What was there before the node is nothing new.
    node.changed.clear();
    let observer = Observer {
        node: node.name.clone(),
        node_ips: node.addresses.clone(),
        world: node.world.clone(),
        flows: config.flows,
        reporter: node.reporter.clone(),
    };
    tokio::spawn(observe(observer, stop.clone()));
    let mut recount = tokio::time::interval(RECOUNT);
    loop {
        node.round();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            change = feeds.policies.recv() => node.policy(&change.ok_or(Error::WatchEnded("networkpolicies"))?),
            change = feeds.cluster_policies.recv() => {
                node.cluster_policy(&change.ok_or(Error::WatchEnded("clusternetworkpolicies"))?);
            }
            change = feeds.nodes.recv() => node.node(&change.ok_or(Error::WatchEnded("nodes"))?),
            change = feeds.namespaces.recv() => node.namespace(&change.ok_or(Error::WatchEnded("namespaces"))?),
            change = feeds.pods.recv() => node.pod(&change.ok_or(Error::WatchEnded("pods"))?),
            Some(arrival) = feeds.arrivals.0.recv() => node.arrival(arrival),
            () = node.retry.due() => {}
            _ = recount.tick() => node.recount(),
        }
        node.take(&mut feeds);
    }
}

struct Feeds {
    pods: UnboundedReceiver<Change<Pod>>,
    namespaces: UnboundedReceiver<Change<Namespace>>,
    policies: UnboundedReceiver<Change<NetworkPolicy>>,
    cluster_policies: UnboundedReceiver<Change<ClusterNetworkPolicy>>,
    nodes: UnboundedReceiver<Change<ApiNode>>,
    arrivals: Arrivals,
}

struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    socket: nft::Socket,
    world: Arc<RwLock<World>>,
    reporter: Reporter,
    speaks: bool,
    /// Policies that have changed since the kernel took the rules.
    changed: BTreeSet<ObjectKey>,
    /// For how many Pods each policy was said to be in force: of this node, and in all.
    counted: HashMap<ObjectKey, (usize, usize)>,
    /// The policy that was counted last.
    cursor: Option<ObjectKey>,
    /// Pods by their uid.
    pods: HashMap<String, Arc<Pod>>,
    /// Addresses that this node gave to Pods, by their uid; known before the Pod's status has them.
    attached: HashMap<String, Vec<IpAddr>>,
    /// Who of the Pods had an address last.
    owners: HashMap<IpAddr, String>,
    /// Whose containers wait.
    waiting: Vec<(String, oneshot::Sender<()>)>,
    /// What has changed since the tracker looked.
    changes: Changes,
    tracker: Tracker,
    kernel: Kernel,
    dirty: bool,
    retry: Retry,
}

impl Node {
    fn new(name: String, addresses: Vec<IpAddr>, socket: nft::Socket, reporter: Reporter) -> Self {
        Self {
            name,
            addresses,
            socket,
            world: Arc::default(),
            reporter,
            speaks: false,
            changed: BTreeSet::new(),
            counted: HashMap::new(),
            cursor: None,
            pods: HashMap::new(),
            attached: HashMap::new(),
            owners: HashMap::new(),
            waiting: Vec::new(),
            changes: Changes::default(),
            tracker: Tracker::default(),
            kernel: Kernel::new(),
            dirty: true,
            retry: Retry::default(),
        }
    }

    /// All that waits in the channels, so that a burst of changes costs one transaction.
    fn take(&mut self, feeds: &mut Feeds) {
        while let Ok(change) = feeds.policies.try_recv() {
            self.policy(&change);
        }
        while let Ok(change) = feeds.cluster_policies.try_recv() {
            self.cluster_policy(&change);
        }
        while let Ok(change) = feeds.nodes.try_recv() {
            self.node(&change);
        }
        while let Ok(change) = feeds.namespaces.try_recv() {
            self.namespace(&change);
        }
        while let Ok(change) = feeds.pods.try_recv() {
            self.pod(&change);
        }
        while let Ok(arrival) = feeds.arrivals.0.try_recv() {
            self.arrival(arrival);
        }
    }

    fn policy(&mut self, change: &Change<NetworkPolicy>) {
        let key = ObjectKey::of(&**change.object());
        let new = match change {
            Change::Applied { new, .. } => Policy::of(new),
            Change::Deleted(_) => None,
        };
        let mut world = self.world.write();
        let before = world.policies.get(&key).cloned();
        if !put(&mut world.policies, key.clone(), new) {
            return;
        }
        self.changes.policy(&world, &key.namespace, [before.as_ref(), world.policies.get(&key)]);
        self.dirty = true;
        self.changed.insert(key);
    }

    fn cluster_policy(&mut self, change: &Change<ClusterNetworkPolicy>) {
        let new = match change {
            Change::Applied { new, .. } => ClusterPolicy::of(new),
            Change::Deleted(_) => None,
        };
        let name = change.object().name_any();
        let mut world = self.world.write();
        let before = world.cluster_policies.get(&name).cloned();
        if put(&mut world.cluster_policies, name.clone(), new) {
            self.changes.cluster_policy(&world, [before.as_ref(), world.cluster_policies.get(&name)]);
            self.dirty = true;
        }
    }

    fn node(&mut self, change: &Change<ApiNode>) {
        let new = match change {
            Change::Applied { new, .. } => Some(NodeView::of(new)),
            Change::Deleted(_) => None,
        };
        if put(&mut self.world.write().nodes, change.object().name_any(), new) {
            self.changes.nodes = true;
            self.dirty = true;
        }
    }

    fn namespace(&mut self, change: &Change<Namespace>) {
        let name = change.object().name_any();
        let new = match change {
            Change::Applied { new, .. } => Some(new.labels().clone()),
            Change::Deleted(_) => None,
        };
        let mut world = self.world.write();
        if put(&mut world.namespaces, name.clone(), new) {
            self.dirty = true;
            self.changes.namespace(&world, &name);
        }
    }

    fn pod(&mut self, change: &Change<Pod>) {
        let uid = change.object().uid().unwrap_or_default();
        match change {
            Change::Applied { new, old } => {
                if let Some(old) = old.as_ref().and_then(|old| old.uid()).filter(|old| *old != uid) {
                    self.forget(&old);
                }
                self.pods.insert(uid, new.clone());
                self.view(new);
            }
            Change::Deleted(last) => {
                self.forget(&uid);
                self.put_pod(ObjectKey::of(&**last), None);
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
        for addr in self.attached.remove(uid).into_iter().flatten() {
            if self.owners.get(&addr).is_some_and(|owner| owner == uid) {
                self.owners.remove(&addr);
            }
        }
    }

    /// Reads a Pod anew.
    fn view(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        let addresses = self.attached.get(&uid).cloned().unwrap_or_else(|| addresses_of(pod));
        // A Pod that ended may still name an address that another one has by now.
        let is_own = |addr: &IpAddr| self.owners.get(addr).is_none_or(|owner| *owner == uid);
        let addresses = addresses.into_iter().filter(is_own).collect();
        let view = PodView::of(pod, addresses, &self.name);
        self.put_pod(ObjectKey::of(pod), view);
    }

    fn put_pod(&mut self, key: ObjectKey, view: Option<PodView>) {
        if put(&mut self.world.write().pods, key.clone(), view) {
            self.dirty = true;
            self.changes.pods.insert(key);
        }
    }

    fn arrival(&mut self, arrival: Arrival) {
        let mut readers = vec![arrival.uid.clone()];
        for addr in &arrival.addresses {
            readers.extend(self.owners.insert(*addr, arrival.uid.clone()));
        }
        self.attached.insert(arrival.uid.clone(), arrival.addresses);
        for uid in readers {
            if let Some(pod) = self.pods.get(&uid).cloned() {
                self.view(&pod);
            }
        }
        self.waiting.extend(arrival.done.map(|done| (arrival.uid, done)));
    }

    /// Computes what has changed and commits it.
    fn round(&mut self) {
        if (self.dirty || !self.kernel.is_known()) && self.retry.is_due() {
            let changes = std::mem::take(&mut self.changes);
            let touched = self.tracker.follow(&self.world.read(), &changes);
            match self.kernel.follow(&mut self.socket, &self.tracker, &touched) {
                Ok(narrower) => self.committed(narrower),
                Err(error) => self.refused(&error),
            }
        }
        if self.kernel.is_known() && !self.dirty {
            self.open_gates();
        }
    }

    fn committed(&mut self, narrower: bool) {
        self.dirty = false;
        self.retry.succeeded();
        for key in std::mem::take(&mut self.changed) {
            self.counted.insert(key.clone(), NEVER);
            self.count(&key);
        }
        if !narrower {
            return;
        }
        let node = cut::own_addresses(&self.addresses);
        match cut::forbidden(&mut self.socket, self.kernel.held(), &node) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "connections that a network policy forbids were cut"),
            Err(error) => {
                tracing::error!(%error, "connections that a network policy forbids may go on");
            }
        }
    }

    fn refused(&mut self, error: &nft::Error) {
        let delay = self.retry.failed();
        tracing::error!(%error, ?delay, "policy rules refused, the old ones stay and all will be replaced");
        let world = self.world.read();
        let changed: Vec<&Policy> = self.changed.iter().filter_map(|key| world.policies.get(key)).collect();
        self.reporter.refused(&changed, error);
    }

    /// Says for how many Pods a policy is in force, if that is news.
    fn count(&mut self, key: &ObjectKey) {
        let world = self.world.read();
        let Some(policy) = world.policies.get(key) else {
            self.counted.remove(key);
            return;
        };
        let selected = || world.pods_in(&key.namespace).filter(|pod| policy.selects(pod));
        let now = (selected().filter(|pod| pod.local).count(), selected().count());
        let before = self.counted.insert(key.clone(), now);
        let is_ours = now.0 > 0 || (now.1 == 0 && self.speaks);
        // One that was there before the node is nothing new.
        if before.is_some_and(|before| before != now) && is_ours {
            self.reporter.enforced(policy, now.0, now.1);
        }
    }

    /// Says anew for how many Pods policies are in force, as Pods come and go: some policies at a time.
    fn recount(&mut self) {
        let after = self.cursor.take().map_or(Bound::Unbounded, Bound::Excluded);
        let keys: Vec<ObjectKey> = {
            let world = self.world.read();
            world
                .policies
                .range((after, Bound::Unbounded))
                .take(AT_ONCE)
                .map(|(key, _)| key.clone())
                .collect()
        };
        keys.iter().for_each(|key| self.count(key));
        self.cursor = keys.into_iter().next_back();
    }

    /// Lets those go whose verdict stands.
    fn open_gates(&mut self) {
        let pods = &self.pods;
        let (known, unknown) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(uid, _)| pods.contains_key(uid));
        self.waiting = unknown;
        self.waiting.retain(|(_, done)| !done.is_closed());
        let known: Vec<(String, oneshot::Sender<()>)> = known;
        for (_, done) in known {
            // Who no longer waits needs no answer.
            let _ = done.send(());
        }
    }
}

/// Puts a value into a map or takes it out; gives whether that changed something.
fn put<K: Ord, V: PartialEq>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}
