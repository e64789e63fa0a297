//! From the API to the kernel: watches wake the loop, one round does all that has changed, one transaction commits it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use client::{Change, Informer, InformerGone, ObjectKey, Retry};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::announce::Speakers;
use crate::desired::{host_port_targets, service_of, targets};
use crate::model::{Frontend, HostPort, Model, NodeView, Owner};
use crate::stale::stale_connections;
use crate::sync::Kernel;

/// What the proxy of a node must be told.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, first of all the one it is known by; those in the Node's status are added.
    pub node_ips: Vec<IpAddr>,
    /// Networks of all Pods of the cluster; only connections from elsewhere are masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks of cluster IPs; connections to unallocated ones are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// The host ports of this node's containers, told by the kubelet whenever they change.
    pub host_ports: watch::Receiver<Vec<HostPort>>,
    /// Told for which addresses of load balancers the node has to answer on its network, once rules for them are in the
    /// kernel.
    pub answered: watch::Sender<BTreeSet<IpAddr>>,
    /// Becomes true when the rules are in the kernel for the first time.
    pub synced: watch::Sender<bool>,
}

/// Why the proxy ended.
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

/// Keeps the node's rules in step with the API until `stop`; then leaves them in force, so that connections go on.
///
/// # Errors
/// When a watch dies or the kernel has no nf_tables. Refused transactions are logged and retried instead.
pub async fn run(client: kube::Client, config: ProxyConfig, stop: CancellationToken) -> Result<(), Error> {
    let socket = nft::Socket::open()?;
    let services = Informer::<Service>::start(Api::all(client.clone()), watcher::Config::default());
    let slices = Informer::<EndpointSlice>::start(Api::all(client.clone()), watcher::Config::default());
    let nodes = Informer::<Node>::start(Api::all(client), watcher::Config::default());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = async { tokio::try_join!(services.synced(), slices.synced(), nodes.synced()) } => synced?,
    };
    let mut feeds = Feeds {
        services: services.subscribe(),
        slices: slices.subscribe(),
        nodes: nodes.subscribe(),
        host_ports: config.host_ports.clone(),
    };
    let mut proxy = Proxy::new(config, socket, services, nodes);
    proxy.take(&mut feeds);
    loop {
        proxy.round();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            change = feeds.services.recv() => proxy.service(&change.ok_or(Error::WatchEnded("services"))?),
            change = feeds.slices.recv() => proxy.slice(&change.ok_or(Error::WatchEnded("endpointslices"))?),
            change = feeds.nodes.recv() => proxy.node(&change.ok_or(Error::WatchEnded("nodes"))?),
            Ok(()) = feeds.host_ports.changed() => proxy.host_ports(&mut feeds.host_ports),
            () = proxy.retry.due() => {}
        }
        proxy.take(&mut feeds);
    }
}

struct Feeds {
    services: UnboundedReceiver<Change<Service>>,
    slices: UnboundedReceiver<Change<EndpointSlice>>,
    nodes: UnboundedReceiver<Change<Node>>,
    host_ports: watch::Receiver<Vec<HostPort>>,
}

struct Proxy {
    config: ProxyConfig,
    socket: nft::Socket,
    services: Informer<Service>,
    nodes: Informer<Node>,
    speakers: Speakers,
    /// Services with a load balancer, and the addresses of theirs that this node answers for.
    answered: HashMap<Owner, Vec<IpAddr>>,
    slices: HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>,
    host_ports: Vec<HostPort>,
    view: NodeView,
    model: Model,
    kernel: Kernel,
    dirty: HashSet<Owner>,
    /// Frontends whose change is not committed yet.
    pending: HashSet<Frontend>,
    retry: Retry,
    started: bool,
}

impl Proxy {
    fn new(
        config: ProxyConfig,
        socket: nft::Socket,
        services: Informer<Service>,
        nodes: Informer<Node>,
    ) -> Self {
        let view = NodeView {
            name: config.node_name.clone(),
            addresses: config.node_ips.clone(),
            pod_cidrs: config.pod_cidrs.clone(),
            service_cidrs: config.service_cidrs.clone(),
        };
        let host_ports = config.host_ports.borrow().clone();
        Self {
            host_ports,
            socket,
            services,
            nodes,
            speakers: Speakers::default(),
            answered: HashMap::new(),
            slices: HashMap::new(),
            kernel: Kernel::new(view.clone()),
            view,
            model: Model::default(),
            dirty: HashSet::from([Owner::HostPort]),
            pending: HashSet::new(),
            retry: Retry::default(),
            started: false,
            config,
        }
    }

    /// All that waits in the channels, so that a burst of changes costs one transaction.
    fn take(&mut self, feeds: &mut Feeds) {
        while let Ok(change) = feeds.services.try_recv() {
            self.service(&change);
        }
        while let Ok(change) = feeds.slices.try_recv() {
            self.slice(&change);
        }
        while let Ok(change) = feeds.nodes.try_recv() {
            self.node(&change);
        }
        if feeds.host_ports.has_changed().unwrap_or(false) {
            self.host_ports(&mut feeds.host_ports);
        }
    }

    fn service(&mut self, change: &Change<Service>) {
        self.dirty.insert(Owner::service(&ObjectKey::of(&**change.object())));
    }

    fn slice(&mut self, change: &Change<EndpointSlice>) {
        let old = match change {
            Change::Applied { old, .. } => old.as_ref(),
            Change::Deleted(last) => Some(last),
        };
        if let Some((old, key)) = old.and_then(|old| Some((old, service_of(old)?))) {
            if let Some(slices) = self.slices.get_mut(&key) {
                slices.remove(old.metadata.name.as_deref().unwrap_or_default());
                if slices.is_empty() {
                    self.slices.remove(&key);
                }
            }
            self.dirty.insert(Owner::service(&key));
        }
        if let Change::Applied { new, .. } = change
            && let Some(key) = service_of(new)
        {
            let name = new.metadata.name.clone().unwrap_or_default();
            self.dirty.insert(Owner::service(&key));
            self.slices.entry(key).or_default().insert(name, new.clone());
        }
    }

    fn node(&mut self, change: &Change<Node>) {
        let speakers = Speakers::new(&self.nodes.list());
        if speakers != self.speakers {
            self.speakers = speakers;
            self.dirty.extend(self.answered.keys().cloned());
        }
        let Change::Applied { new, .. } = change else { return };
        if new.metadata.name.as_ref() != Some(&self.config.node_name) {
            return;
        }
        let status = new.status.as_ref().and_then(|s| s.addresses.as_ref());
        let told = status.into_iter().flatten().filter_map(|a| a.address.parse::<IpAddr>().ok());
        let mut addresses = self.config.node_ips.clone();
        for addr in told {
            if !addresses.contains(&addr) {
                addresses.push(addr);
            }
        }
        if addresses != self.view.addresses {
            self.view.addresses = addresses;
            self.kernel.set_node(self.view.clone());
            self.dirty.insert(Owner::HostPort);
        }
    }

    fn host_ports(&mut self, ports: &mut watch::Receiver<Vec<HostPort>>) {
        self.host_ports = ports.borrow_and_update().clone();
        self.dirty.insert(Owner::HostPort);
    }

    fn targets(&mut self, owner: &Owner) -> Vec<(Frontend, crate::model::Target)> {
        let Owner::Service(namespace, name) = owner else {
            return host_port_targets(&self.host_ports, &self.view);
        };
        self.answered.remove(owner);
        let Some(service) = self.services.get(namespace, name) else { return Vec::new() };
        let key = ObjectKey::new(namespace, name);
        let slices: Vec<&EndpointSlice> =
            self.slices.get(&key).into_iter().flatten().map(|(_, slice)| &**slice).collect();
        if let Some(addresses) = self.speakers.addresses(&service, &slices, &self.view.name) {
            self.answered.insert(owner.clone(), addresses);
        }
        targets(&service, &slices, &self.view)
    }

    /// Tells for which addresses this node answers, if that is news.
    fn announce(&self) {
        let now: BTreeSet<IpAddr> = self.answered.values().flatten().copied().collect();
        self.config.answered.send_if_modified(|told| {
            let news = *told != now;
            *told = now;
            news
        });
    }

    /// Computes what has changed and commits it.
    fn round(&mut self) {
        for owner in std::mem::take(&mut self.dirty) {
            let targets = self.targets(&owner);
            self.pending.extend(self.model.set(&owner, targets));
        }
        let settled = self.started && self.pending.is_empty() && self.kernel.is_known();
        if settled {
            self.announce();
        }
        if settled || !self.retry.is_due() {
            return;
        }
        match self.kernel.sync(&mut self.socket, &self.model, &self.pending) {
            Ok(()) => self.committed(),
            Err(error) => {
                let delay = self.retry.failed();
                tracing::error!(%error, ?delay, "service rules refused, all of them will be replaced");
            }
        }
    }

    fn committed(&mut self) {
        self.retry.succeeded();
        // At start nothing is known of what the connections of before were translated to.
        let changed = std::mem::take(&mut self.pending);
        let all = self.kernel.all_placed().keys();
        let frontends: Vec<&Frontend> = if self.started { changed.iter().collect() } else { all.collect() };
        match stale_connections(frontends, &self.kernel, &self.view.addresses, &mut self.socket) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "stale UDP connections deleted"),
            Err(error) => tracing::warn!(%error, "stale UDP connections may go to endpoints that are gone"),
        }
        tracing::debug!(frontends = changed.len(), "service rules committed");
        self.announce();
        if !std::mem::replace(&mut self.started, true) {
            self.config.synced.send_replace(true);
        }
    }
}
