//! From the API to the kernel: watches wake the loop, one round does all that has changed, one transaction commits it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use client::{Change, Informer, InformerGone, ObjectKey, Retry};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cut;
use crate::desired::Desired;
use crate::gate::{Arrival, Arrivals};
use crate::layout::{FAMILIES, name_of};
use crate::model::{PodView, Policy, World};
use crate::sync::Kernel;

/// What the enforcement of a node must be told.
#[derive(Debug)]
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses; what comes from them is not judged.
    pub node_ips: Vec<IpAddr>,
    /// The Pods that the node agent connects.
    pub arrivals: Arrivals,
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
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    let socket = nft::Socket::open()?;
    let all = watcher::Config::default;
    let pods = Informer::<Pod>::start(Api::all(client.clone()), all());
    let namespaces = Informer::<Namespace>::start(Api::all(client.clone()), all());
    let policies = Informer::<NetworkPolicy>::start(Api::all(client), all());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = async { tokio::try_join!(pods.synced(), namespaces.synced(), policies.synced()) } => synced?,
    };
    let mut feeds = Feeds {
        pods: pods.subscribe(),
        namespaces: namespaces.subscribe(),
        policies: policies.subscribe(),
        arrivals: config.arrivals,
    };
    let mut node = Node::new(config.node_name, config.node_ips, socket);
    node.take(&mut feeds);
    loop {
        node.round();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            change = feeds.policies.recv() => node.policy(&change.ok_or(Error::WatchEnded("networkpolicies"))?),
            change = feeds.namespaces.recv() => node.namespace(&change.ok_or(Error::WatchEnded("namespaces"))?),
            change = feeds.pods.recv() => node.pod(&change.ok_or(Error::WatchEnded("pods"))?),
            Some(arrival) = feeds.arrivals.0.recv() => node.arrival(arrival),
            () = node.retry.due() => {}
        }
        node.take(&mut feeds);
    }
}

struct Feeds {
    pods: UnboundedReceiver<Change<Pod>>,
    namespaces: UnboundedReceiver<Change<Namespace>>,
    policies: UnboundedReceiver<Change<NetworkPolicy>>,
    arrivals: Arrivals,
}

struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    socket: nft::Socket,
    world: World,
    /// Pods by their uid.
    pods: HashMap<String, Arc<Pod>>,
    /// Addresses that this node gave to Pods, by their uid; known before the Pod's status has them.
    attached: HashMap<String, Vec<IpAddr>>,
    /// Who of the Pods had an address last.
    owners: HashMap<IpAddr, String>,
    /// Whose containers wait.
    waiting: Vec<(String, oneshot::Sender<()>)>,
    kernel: Kernel,
    dirty: bool,
    retry: Retry,
}

impl Node {
    fn new(name: String, addresses: Vec<IpAddr>, socket: nft::Socket) -> Self {
        Self {
            name,
            addresses,
            socket,
            world: World::default(),
            pods: HashMap::new(),
            attached: HashMap::new(),
            owners: HashMap::new(),
            waiting: Vec::new(),
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
        self.dirty |= put(&mut self.world.policies, key, new);
    }

    fn namespace(&mut self, change: &Change<Namespace>) {
        let name = change.object().name_any();
        let new = match change {
            Change::Applied { new, .. } => Some(new.labels().clone()),
            Change::Deleted(_) => None,
        };
        self.dirty |= put(&mut self.world.namespaces, name, new);
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
                self.dirty |= put(&mut self.world.pods, ObjectKey::of(&**last), None);
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
        let told = pod.status.as_ref().and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
        let told = || told.filter_map(|ip| ip.ip.parse().ok()).collect();
        let addresses: Vec<IpAddr> = self.attached.get(&uid).cloned().unwrap_or_else(told);
        // A Pod that ended may still name an address that another one has by now.
        let is_own = |addr: &IpAddr| self.owners.get(addr).is_none_or(|owner| *owner == uid);
        let addresses = addresses.into_iter().filter(is_own).collect();
        let view = PodView::of(pod, addresses, &self.name);
        self.dirty |= put(&mut self.world.pods, ObjectKey::of(pod), view);
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
            let desired = Desired::of(&self.world);
            match self.kernel.sync(&mut self.socket, desired) {
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
        if !narrower {
            return;
        }
        match cut::forbidden(&mut self.socket, self.kernel.held(), &self.addresses) {
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
