//! The agent as a whole: Pods of this node in, one worker each; what is left of Pods that are gone is removed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use client::{Change, Informer, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use runtime::{Event, Snapshot, State};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Agent, Config, HostPort};
use crate::directory::Directory;
use crate::edge::{Containers, EdgeError, Images, Network};
use crate::node::{self, Capacity};
use crate::pod;
use crate::server;
use crate::spec::Defaults;
use crate::worker::record::Record;
use crate::worker::run::{Msg, Worker};
use crate::worker::state::{ImageState, PodState};

/// Everything that the agent is given.
pub struct Kubelet {
    /// Facts of the node.
    pub config: Config,
    /// The API server.
    pub client: kube::Client,
    /// The Pods of all nodes.
    pub pods: Informer<Pod>,
    /// Containers.
    pub containers: Arc<dyn Containers>,
    /// News of containers.
    pub events: mpsc::UnboundedReceiver<Event>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// The Pod network.
    pub network: Arc<dyn Network>,
    /// The runtime's defaults ([`crate::real::defaults`]).
    pub defaults: Defaults,
    /// The HTTPS server's certificate and its verifier of client certificates.
    pub tls: Arc<rustls::ServerConfig>,
    /// Where host ports are published, for the service proxy.
    pub host_ports: watch::Sender<Vec<HostPort>>,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Why the agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory cannot be made.
    #[error("cannot make {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The port is taken, or the address is not the node's.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The runtime does not answer.
    #[error("cannot list containers: {0}")]
    Runtime(#[from] EdgeError),
    /// A watch has ended.
    #[error(transparent)]
    Watch(#[from] client::InformerGone),
}

/// ConfigMaps and Secrets are watched for news only; who needs one fetches it. The contents of a whole cluster's are
/// not worth their memory.
type Named<K> = PartialObjectMeta<K>;

struct Handle {
    pod: Arc<Pod>,
    to: mpsc::UnboundedSender<Msg>,
}

struct Manager {
    agent: Arc<Agent>,
    directory: Arc<Directory>,
    stop: CancellationToken,
    /// By Pod uid.
    workers: HashMap<String, Handle>,
    tasks: JoinSet<String>,
    /// What was there when the agent started, until somebody takes it over.
    records: HashMap<String, Record>,
    snapshot: Snapshot,
}

/// Runs the node agent until `stop`; containers run on.
///
/// # Errors
/// When it cannot start, or a watch dies.
pub async fn run(kubelet: Kubelet, stop: CancellationToken) -> Result<(), Error> {
    let Kubelet { config, client, pods, containers, events, images, network, defaults, tls, host_ports } =
        kubelet;
    for path in [&config.root_dir, &config.volatile_dir, &config.log_dir] {
        make_dir(path)?;
    }
    let ip = config.node_ips.first().copied().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let address = SocketAddr::new(ip, config.port);
    let listen = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let port = listener.local_addr().map_err(listen)?.port();
    let stop = stop.child_token();
    let _stop_all = stop.clone().drop_guard();
    let (recorder, writing) = Recorder::new(client.clone(), stop.clone());
    let mut background = JoinSet::new();
    background.spawn(writing);
    let agent = Arc::new(Agent {
        capacity: Capacity::read(&config.root_dir),
        services: Informer::start(Api::all(client.clone()), watcher::Config::default()),
        config,
        client: client.clone(),
        containers,
        images,
        network,
        defaults,
        recorder,
        clock: Timestamp::now,
        host_ports,
    });
    let directory = Arc::new(Directory::default());
    background.spawn(node::run(agent.clone(), port, stop.clone()));
    background.spawn(server::serve(agent.clone(), directory.clone(), listener, tls, stop.clone()));
    background.spawn(deliver(directory.clone(), events, stop.clone()));
    let maps: Informer<Named<ConfigMap>> =
        Informer::start(Api::all(client.clone()), watcher::Config::default());
    let secrets: Informer<Named<Secret>> = Informer::start(Api::all(client), watcher::Config::default());
    let records = read_records(&agent.config.root_dir);
    let snapshot = agent.containers.list().await?;
    adopt_addresses(&agent, &records, &snapshot).await;
    if let Err(error) = agent.network.collect(&snapshot.sandboxes.iter().cloned().collect()).await {
        tracing::warn!(%error, "removing what earlier Pods have left of their network");
    }
    pods.synced().await?;
    agent.services.synced().await?;
    let tasks = JoinSet::new();
    let mut manager = Manager { agent, directory, stop, workers: HashMap::new(), tasks, records, snapshot };
    manager.live(pods, maps, secrets).await;
    // Workers stop with the token; whatever they were writing ends first.
    while manager.tasks.join_next().await.is_some() {}
    Ok(())
}

fn make_dir(path: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |source| Error::Directory { path: path.to_path_buf(), source };
    std::fs::create_dir_all(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o750)).map_err(fail)
}

/// Passes exits to the workers.
async fn deliver(
    directory: Arc<Directory>,
    mut events: mpsc::UnboundedReceiver<Event>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => match event {
                Some(Event::Exited { id, exit }) => {
                    if !directory.deliver(&id, Msg::Exited(id.clone(), exit)) {
                        tracing::debug!(id, "a container that nobody knows has ended");
                    }
                }
                None => return,
            },
        }
    }
}

fn read_records(root: &std::path::Path) -> HashMap<String, Record> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let record = |e: std::fs::DirEntry| {
        let uid = e.file_name().into_string().ok()?;
        Some((uid, Record::read(&e.path().join("record.json")).unwrap_or_default()))
    };
    entries.filter_map(record).collect()
}

async fn adopt_addresses(agent: &Agent, records: &HashMap<String, Record>, snapshot: &Snapshot) {
    for (uid, record) in records {
        let on_host = record.ips.iter().any(|ip| agent.config.node_ips.contains(ip));
        if snapshot.sandboxes.contains(uid)
            && !record.ips.is_empty()
            && !on_host
            && let Err(error) = agent.network.adopt(uid, &record.ips).await
        {
            tracing::warn!(uid, %error, "taking over a Pod's addresses");
        }
    }
}

impl Manager {
    async fn live(
        &mut self,
        pods: Informer<Pod>,
        maps: Informer<Named<ConfigMap>>,
        secrets: Informer<Named<Secret>>,
    ) {
        let mut changes = pods.subscribe();
        let (mut maps, mut secrets) = (maps.subscribe(), secrets.subscribe());
        // The subscription begins with all Pods that are there: take them first, then see what nobody has taken.
        while let Ok(change) = changes.try_recv() {
            self.change(change).await;
        }
        self.orphans().await;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                change = changes.recv() => match change {
                    Some(change) => self.change(change).await,
                    None => return,
                },
                Some(change) = maps.recv() => self.object_changed(&change),
                Some(change) = secrets.recv() => self.object_changed(&change),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(uid) => self.ended(&uid),
                    Err(error) => tracing::error!(%error, "a Pod's worker panicked"),
                },
            }
        }
    }

    /// ConfigMaps and Secrets wake the workers of their namespace, which know whether they care.
    fn object_changed<K: kube::Resource>(&self, change: &Change<K>) {
        let object = change.object();
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        for handle in self.workers.values().filter(|h| pod::namespace(&h.pod) == namespace) {
            // A worker that has just ended needs no news.
            let _ = handle.to.send(Msg::Changed(name.clone()));
        }
    }

    fn ended(&mut self, uid: &str) {
        if let Some(handle) = self.workers.remove(uid) {
            self.directory.hide(&handle.pod, &self.agent.host_ports);
        }
    }

    async fn change(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { new, old } => {
                // A successor of the same name: the watch may have skipped the deletion in between.
                if let Some(old) = old.filter(|old| old.metadata.uid != new.metadata.uid) {
                    self.gone(pod::uid(&old));
                }
                if !self.is_ours(&new) {
                    return;
                }
                match self.workers.get_mut(pod::uid(&new)) {
                    Some(handle) => {
                        handle.pod = new.clone();
                        let _ = handle.to.send(Msg::Update(new));
                    }
                    None => self.begin(new).await,
                }
            }
            Change::Deleted(last) => self.gone(pod::uid(&last)),
        }
    }

    /// Whether a Pod is bound to this node, which no change undoes.
    fn is_ours(&self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        node == Some(self.agent.config.node_name.as_str())
    }

    fn gone(&self, uid: &str) {
        if let Some(handle) = self.workers.get(uid) {
            let _ = handle.to.send(Msg::Gone);
        }
    }

    async fn begin(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_string();
        let now = (self.agent.clock)();
        let state = match self.records.remove(&uid) {
            Some(record) => record.adopt(&uid, &self.snapshot, now),
            None => Record::from_status(&pod).adopt(&uid, &Snapshot::default(), now),
        };
        let state = self.with_images(state).await;
        let (to, inbox) = mpsc::unbounded_channel();
        let mut worker =
            Worker::new(self.agent.clone(), self.directory.clone(), pod.clone(), state, inbox, to.clone());
        // Before it is spawned: what it takes over must be known when the orphans are sought.
        worker.begin_life();
        self.workers.insert(uid.clone(), Handle { pod, to });
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            worker.run(stop).await;
            uid
        });
    }

    /// Running containers that are taken over need their images' facts again (stop signal, lease).
    async fn with_images(&self, mut state: PodState) -> PodState {
        for container in state.containers.values_mut().filter(|c| c.running_id().is_some()) {
            let Some((reference, _)) = &container.image_names else { continue };
            if let Some(image) = self.agent.images.get(reference).await {
                container.image = ImageState::Ready(Arc::new(image));
            }
        }
        state
    }

    /// Ends what no Pod claims: containers, sandboxes, directories.
    async fn orphans(&mut self) {
        let snapshot = std::mem::take(&mut self.snapshot);
        let containers = &self.agent.containers;
        for container in &snapshot.containers {
            if self.directory.knows(&container.id) {
                // It ended while the agent was being told about the Pods.
                continue;
            }
            if container.state != State::Exited
                && let Err(error) = containers.kill(&container.id, libc::SIGKILL).await
            {
                tracing::warn!(id = container.id, %error, "ending a container that no Pod claims");
            }
            if let Err(error) = containers.remove(&container.id).await {
                tracing::warn!(id = container.id, %error, "removing a container that no Pod claims");
            }
        }
        for uid in snapshot.sandboxes.iter().filter(|uid| !self.workers.contains_key(*uid)) {
            let undone = [self.agent.network.detach(uid).await, containers.remove_sandbox(uid).await];
            undone
                .into_iter()
                .filter_map(Result::err)
                .for_each(|e| tracing::warn!(uid, %e, "removing an orphan"));
        }
        for (uid, record) in std::mem::take(&mut self.records) {
            if !self.workers.contains_key(&uid) {
                self.remove_files(&uid, &record);
            }
        }
    }

    fn remove_files(&self, uid: &str, record: &Record) {
        let paths = self.agent.paths(uid);
        let logs = format!("{}_{}_{uid}", record.namespace, record.name);
        let volumes = paths.root.join("volumes/kubernetes.io~empty-dir");
        let (agent, dirs) =
            (self.agent.clone(), [paths.volatile, paths.root, self.agent.config.log_dir.join(logs)]);
        tokio::spawn(async move {
            for entry in std::fs::read_dir(volumes).into_iter().flatten().flatten() {
                // Most are no mounts.
                let _ = agent.containers.unmount(&entry.path()).await;
            }
            for dir in dirs {
                if let Err(error) = tokio::fs::remove_dir_all(&dir).await
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(dir = %dir.display(), %error, "removing the files of a Pod that is gone");
                }
            }
        });
    }
}
