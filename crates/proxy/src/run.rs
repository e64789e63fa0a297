//! From the API to the kernel: watches wake the loop, one round does all that has changed, one transaction commits it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::endpoints::{ZONE, service_of};
use client::{Cached, Change, Informer, InformerGone, ObjectKey, Packed, Recorder, Regarding, Retry, memory};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::announce::Speakers;
use crate::desired::{health_check, host_port_targets, targets};
use crate::health::{Check, Checks, Health};
use crate::metrics::Metrics;
use crate::model::{Action, Frontend, HostPort, Model, NodeView, Owner, Target};
use crate::stale::stale_connections;
use crate::sync::{Kernel, Synced};
use crate::trim;

/// The name that Events give us.
const COMPONENT: &str = "kube-proxy";
/// On slices: when the change behind this version happened.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// A node that has it is about to be removed.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Least time between two repairs of what others did to our tables, so that a quarrel does not cost all of the processor.
const BETWEEN_REPAIRS: Duration = Duration::from_secs(1);

/// What the proxy of a node must be told.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, first of all the one it is known by; those in the Node's status are added.
    pub node_ips: Vec<IpAddr>,
    /// Networks of all Pods of the cluster; only connections from elsewhere are masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks of cluster IPs; connections to unallocated ones are dropped. Those of ServiceCIDRs are added.
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
/// All threads of the runtime must be in the node's network namespace: health is served there.
///
/// # Errors
/// When a watch dies or the kernel has no nf_tables. Refused transactions are logged and retried instead.
pub async fn run(client: kube::Client, config: ProxyConfig, stop: CancellationToken) -> Result<(), Error> {
    let socket = nft::Socket::open()?;
    // Ends with this function, as do those it lets go.
    let mut aside = JoinSet::new();
    let metrics = Arc::new(Metrics::new());
    let health = Health::new(metrics.clone());
    aside.spawn(health.clone().serve(stop.clone()));
    let (recorder, recording) = Recorder::new(client.clone(), stop.clone());
    aside.spawn(recording);
    let caches = Caches {
        services: Informer::packed(Api::all(client.clone()), trim::service),
        slices: Informer::packed(Api::all(client.clone()), trim::slice),
        nodes: Informer::start(Api::all(client.clone()), watcher::Config::default()),
        cidrs: Informer::start(Api::all(client), watcher::Config::default()),
    };
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = caches.synced() => synced?,
    };
    let mut feeds = Feeds {
        services: caches.services.subscribe(),
        slices: caches.slices.subscribe(),
        nodes: caches.nodes.subscribe(),
        cidrs: caches.cidrs.subscribe(),
        host_ports: config.host_ports.clone(),
    };
    let Caches { services, nodes, cidrs, .. } = caches;
    let mut proxy =
        Proxy::new(config, socket, Followed { services, nodes, cidrs }, health, metrics, recorder);
    let mut monitor = nft::Monitor::open(&proxy.socket, Kernel::tables().into())?;
    proxy.take(&mut feeds);
    loop {
        proxy.round();
        let quiet = proxy.repaired.map(|at| at + BETWEEN_REPAIRS);
        let foreign = async {
            if let Some(until) = quiet {
                tokio::time::sleep_until(until.into()).await;
            }
            monitor.foreign_change().await
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            change = feeds.services.recv() => proxy.service(&change.ok_or(Error::WatchEnded("services"))?),
            change = feeds.slices.recv() => proxy.slice(&change.ok_or(Error::WatchEnded("endpointslices"))?),
            change = feeds.nodes.recv() => proxy.node(&change.ok_or(Error::WatchEnded("nodes"))?),
            change = feeds.cidrs.recv() => proxy.cidr(&change.ok_or(Error::WatchEnded("servicecidrs"))?),
            Ok(()) = feeds.host_ports.changed() => proxy.host_ports(&mut feeds.host_ports),
            changed = foreign => proxy.foreign_change(changed?),
            () = proxy.retry.due() => {}
        }
        proxy.take(&mut feeds);
    }
}

struct Caches {
    services: Informer<Packed<Service>>,
    slices: Informer<Packed<EndpointSlice>>,
    nodes: Informer<Node>,
    cidrs: Informer<ServiceCIDR>,
}

impl Caches {
    async fn synced(&self) -> Result<(), InformerGone> {
        tokio::try_join!(
            self.services.synced(),
            self.slices.synced(),
            self.nodes.synced(),
            self.cidrs.synced()
        )?;
        Ok(())
    }
}

struct Feeds {
    services: UnboundedReceiver<Change<Packed<Service>>>,
    slices: UnboundedReceiver<Change<Packed<EndpointSlice>>>,
    nodes: UnboundedReceiver<Change<Node>>,
    cidrs: UnboundedReceiver<Change<ServiceCIDR>>,
    host_ports: watch::Receiver<Vec<HostPort>>,
}

/// The caches that are looked into; slices are kept by Service instead.
struct Followed {
    services: Informer<Packed<Service>>,
    nodes: Informer<Node>,
    cidrs: Informer<ServiceCIDR>,
}

struct Proxy {
    config: ProxyConfig,
    socket: nft::Socket,
    followed: Followed,
    health: Health,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    /// Services that want to be probed here.
    checks: HashMap<ObjectKey, Check>,
    probed: Checks,
    /// Services that keep to local endpoints and have none: internally, externally.
    no_local: [HashSet<Owner>; 2],
    /// When what happened that is not in the kernel yet.
    triggers: Vec<Timestamp>,
    /// When the last foreign change was repaired.
    repaired: Option<Instant>,
    speakers: Speakers,
    /// Services with a load balancer, and the addresses of theirs that this node answers for.
    answered: HashMap<Owner, Vec<IpAddr>>,
    /// By Service, ordered by name; mostly one, so a list.
    slices: HashMap<ObjectKey, Vec<Arc<Packed<EndpointSlice>>>>,
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
        followed: Followed,
        health: Health,
        metrics: Arc<Metrics>,
        recorder: Recorder,
    ) -> Self {
        let view = NodeView {
            name: config.node_name.clone(),
            zone: None,
            addresses: config.node_ips.clone(),
            pod_cidrs: config.pod_cidrs.clone(),
            service_cidrs: config.service_cidrs.clone(),
        };
        let host_ports = config.host_ports.borrow().clone();
        Self {
            host_ports,
            socket,
            followed,
            probed: Checks::new(health.clone()),
            health,
            metrics,
            recorder,
            checks: HashMap::new(),
            no_local: Default::default(),
            triggers: Vec::new(),
            repaired: None,
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
        while let Ok(change) = feeds.cidrs.try_recv() {
            self.cidr(&change);
        }
        if feeds.host_ports.has_changed().unwrap_or(false) {
            self.host_ports(&mut feeds.host_ports);
        }
    }

    fn service(&mut self, change: &Change<Packed<Service>>) {
        self.metrics.service_changed();
        self.dirty.insert(Owner::service(&change.object().key()));
    }

    fn slice(&mut self, change: &Change<Packed<EndpointSlice>>) {
        self.metrics.endpoints_changed();
        let (new, old) = match change {
            Change::Applied { new, old } => (Some(new), old.as_ref()),
            Change::Deleted(last) => (None, Some(last)),
        };
        let (now, before) = (new.map(|slice| slice.unpack()), old.map(|slice| slice.unpack()));
        self.triggers.extend(trigger(now.as_ref(), before.as_ref()).filter(|_| self.started));
        if let Some((old, key)) = old.zip(before.as_ref().and_then(service_of)) {
            if let Some(slices) = self.slices.get_mut(&key) {
                slices.retain(|slice| slice.key() != old.key());
                if slices.is_empty() {
                    self.slices.remove(&key);
                }
            }
            self.dirty.insert(Owner::service(&key));
        }
        if let Some((new, key)) = new.zip(now.as_ref().and_then(service_of)) {
            self.dirty.insert(Owner::service(&key));
            let slices = self.slices.entry(key).or_default();
            match slices.binary_search_by(|slice| slice.key().cmp(&new.key())) {
                Ok(at) => slices[at] = new.clone(),
                Err(at) => {
                    slices.reserve_exact(1);
                    slices.insert(at, new.clone());
                }
            }
        }
    }

    fn node(&mut self, change: &Change<Node>) {
        let speakers = Speakers::new(&self.followed.nodes.list());
        if speakers != self.speakers {
            self.speakers = speakers;
            self.dirty.extend(self.answered.keys().cloned());
        }
        let Change::Applied { new, .. } = change else { return };
        if new.metadata.name.as_ref() != Some(&self.config.node_name) {
            return;
        }
        let taints = new.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let leaves =
            new.metadata.deletion_timestamp.is_some() || taints.into_iter().any(|t| t.key == TO_BE_DELETED);
        self.health.set_eligible(!leaves);
        let zone = new.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
        if zone != self.view.zone {
            self.view.zone = zone;
            let services = self.followed.services.list();
            self.dirty.extend(services.iter().map(|s| Owner::service(&s.key())));
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

    fn cidr(&mut self, _change: &Change<ServiceCIDR>) {
        let mut all = self.config.service_cidrs.clone();
        for object in self.followed.cidrs.list() {
            let cidrs = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
            for net in cidrs.filter_map(|cidr| cidr.parse::<IpNet>().ok()).map(|net| net.trunc()) {
                if !all.contains(&net) {
                    all.push(net);
                }
            }
        }
        if all != self.view.service_cidrs {
            self.view.service_cidrs = all;
            self.kernel.set_node(self.view.clone());
        }
    }

    fn foreign_change(&mut self, (): ()) {
        tracing::warn!("somebody else changed the service rules of this node, all of them will be replaced");
        self.repaired = Some(Instant::now());
        self.kernel.set_unknown();
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
        let key = ObjectKey::new(namespace, name);
        self.checks.remove(&key);
        let Some(service) = self.followed.services.get_key(&key) else { return Vec::new() };
        let service = service.unpack();
        let slices: Vec<EndpointSlice> =
            self.slices.get(&key).into_iter().flatten().map(|slice| slice.unpack()).collect();
        if let Some(addresses) = self.speakers.addresses(&service, &slices, &self.view.name) {
            self.answered.insert(owner.clone(), addresses);
        }
        if let Some(check) = health_check(&service, &slices, &self.view.name) {
            self.checks.insert(key, check);
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
        let began = Instant::now();
        for owner in std::mem::take(&mut self.dirty) {
            let targets = self.targets(&owner);
            self.count_no_local(&owner, &targets);
            self.pending.extend(self.model.set(&owner, targets));
        }
        self.metrics.no_local(self.no_local[0].len(), self.no_local[1].len());
        if self.started && self.pending.is_empty() && self.kernel.is_known() {
            self.settled();
            return;
        }
        self.health.wait();
        if !self.retry.is_due() {
            return;
        }
        match self.kernel.sync(&mut self.socket, &self.model, &self.pending) {
            Ok(synced) => self.committed(&synced, began),
            Err(error) => {
                self.metrics.failed();
                let delay = self.retry.failed();
                tracing::error!(%error, ?delay, "service rules refused, all of them will be replaced");
            }
        }
    }

    fn committed(&mut self, synced: &Synced, began: Instant) {
        self.retry.succeeded();
        if let Some(error) = &synced.mended {
            self.metrics.failed();
            tracing::warn!(%error, "a change of service rules was refused, all of them were replaced");
        }
        self.report(synced);
        let now = Timestamp::now();
        let since = std::mem::take(&mut self.triggers).into_iter();
        let since: Vec<Duration> = since.map(|t| now.duration_since(t).unsigned_abs()).collect();
        self.metrics.committed(synced.whole, began.elapsed(), &since);
        // At start nothing is known of what the connections of before were translated to.
        let changed = std::mem::take(&mut self.pending);
        let all = self.kernel.all_placed().keys();
        let frontends: Vec<&Frontend> = if self.started { changed.iter().collect() } else { all.collect() };
        let search = Instant::now();
        match stale_connections(frontends, &self.kernel, &self.view.addresses, &mut self.socket) {
            Ok(count) => self.metrics.reconciled(search.elapsed(), count),
            Err(error) => tracing::warn!(%error, "stale UDP connections may go to endpoints that are gone"),
        }
        tracing::debug!(frontends = changed.len(), "service rules committed");
        self.settled();
        if synced.whole {
            memory::give_back();
        }
        if !std::mem::replace(&mut self.started, true) {
            self.config.synced.send_replace(true);
        }
    }

    /// The kernel holds what the objects ask for: now others may know.
    fn settled(&mut self) {
        self.triggers.clear();
        self.health.up_to_date();
        self.announce();
        for (key, port, error) in self.probed.sync(&self.checks) {
            let node = &self.view.name;
            let message =
                format!("node {node} failed to start healthcheck \"{key}\" on port {port}: {error}");
            tracing::error!("{message}");
            if let Some(service) = self.followed.services.get_key(&key) {
                let about = Regarding::of(&service.unpack());
                self.recorder.warning(COMPONENT, about, "FailedToStartServiceHealthcheck", message);
            }
        }
    }

    /// Tells the owners of what the kernel refused.
    fn report(&self, synced: &Synced) {
        for (frontend, refusal) in &synced.refused {
            let owner = self.model.owner(frontend);
            tracing::error!(?owner, ?frontend, %refusal, "refused by the kernel and left out of the service rules");
            let Some(Owner::Service(namespace, name)) = owner else { continue };
            let Some(service) = self.followed.services.get(namespace, name) else { continue };
            let message = format!(
                "node {} does not forward port {}: the kernel refused {refusal}; all else is in force",
                self.view.name, frontend.port
            );
            self.recorder.warning(
                COMPONENT,
                Regarding::of(&service.unpack()),
                "FailedToProgramService",
                message,
            );
        }
    }

    fn count_no_local(&mut self, owner: &Owner, targets: &[(Frontend, Target)]) {
        let internal = targets.iter().any(|(_, t)| t.cluster_ip && t.action == Action::Drop);
        let external = targets.iter().any(|(_, t)| match &t.action {
            Action::Forward(forward) => forward.insiders.is_some() && forward.endpoints.is_empty(),
            _ => false,
        });
        for (set, is) in self.no_local.iter_mut().zip([internal, external]) {
            if is {
                set.insert(owner.clone());
            } else {
                set.remove(owner);
            }
        }
    }
}

/// When the change behind a slice's version happened, if this version brings news of it.
fn trigger(new: Option<&EndpointSlice>, old: Option<&EndpointSlice>) -> Option<Timestamp> {
    let told = |slice: &EndpointSlice| slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME).cloned();
    let now = told(new?)?;
    (old.and_then(told).as_ref() != Some(&now)).then(|| now.parse().ok())?
}
