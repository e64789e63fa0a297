//! Which components a node runs and what each is told. Order is only what one needs of another; all else is the
//! components' own business, because each waits for what it watches.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use cluster::pki::{Authority, Identity, Subject};
use cluster::{API_PORT, BUILTIN_IMAGE, CLUSTER_DOMAIN, DNS_SERVICE, KUBERNETES_SERVICE, Network, Profile};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::report::Report;
use super::{Running, addons, answer, node, tls};

/// The port of kubelets.
const KUBELET_PORT: u16 = 10250;
/// How long a node may take to be ready before the start is called failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts everything, says when it is up, runs until `stop`, and takes the node away.
///
/// # Errors
/// What kept the cluster from starting, or the component that died.
pub async fn run(profile: &Profile, report: &Report, stop: CancellationToken) -> anyhow::Result<()> {
    report.step("Preparing the node");
    let (shim, events) = runtime::Runtime::start_or_connect(shim_options(profile)).await.context("start the node")?;
    let netns = Arc::new(shim.node_netns().await.context("open the node's network namespace")?);
    let network = prepare_network(profile, netns.clone()).await?;
    let node_runtime = node::runtime("node", 2, Some(netns.try_clone().context("open the node's network namespace")?))?;
    let parts = Parts { profile: profile.clone(), network, shim: shim.clone(), netns, stop: stop.child_token() };
    let mut tasks = JoinSet::new();
    let outcome = parts.start(report, events, &node_runtime, &mut tasks, &stop).await;
    let ended = match outcome {
        Ok(()) => tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = tasks.join_next() => Err(died(ended)),
        },
        Err(error) => Err(error),
    };
    parts.stop.cancel();
    let drained = tokio::time::timeout(Duration::from_secs(10), async { while tasks.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(tasks = tasks.len(), "components outlived the drain time");
    }
    let removed = node::remove(profile, Some(shim)).await;
    node_runtime.shutdown_background();
    ended.and(removed)
}

fn died(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow!("{name} ended by itself"),
        Ok((name, Err(error))) => error.context(format!("{name} died")),
        Err(error) => anyhow!("a component died: {error}"),
    }
}

/// Where the shim of a profile is.
pub fn shim_options(profile: &Profile) -> runtime::ShimOptions {
    runtime::ShimOptions {
        socket: profile.shim_socket(),
        run_dir: profile.run_dir.clone(),
        cgroup: profile.cgroup(),
    }
}

/// All clusters' volatile directory.
fn run_root(profile: &Profile) -> &Path {
    profile.run_dir.parent().unwrap_or(&profile.run_dir)
}

/// Takes the cluster's part of the host's network away.
///
/// # Errors
/// All that could not be removed.
pub async fn remove_host_network(profile: &Profile) -> anyhow::Result<()> {
    let (name, dir) = (profile.name.clone(), run_root(profile).to_owned());
    let removed = tokio::task::spawn_blocking(move || podnet::HostNetwork::remove(&name, &dir)).await;
    removed.context("remove the host's links and rules")?.context("remove the host's links and rules")
}

/// Bridge, link and addresses; the subnet is chosen once and kept.
async fn prepare_network(profile: &Profile, netns: Arc<std::os::fd::OwnedFd>) -> anyhow::Result<Network> {
    let profile = profile.clone();
    let work = move || {
        let known = profile.network()?;
        let subnet = match &known {
            Some(network) => ipnet::Ipv4Net::new(network.gateway, network.prefix)?.trunc(),
            None => podnet::subnet::choose(&podnet::used_networks(&profile.name)?)
                .context("every private network of ours is in use by this host; free one of 192.168.0.0/16")?,
        };
        let run_dir = run_root(&profile).to_owned();
        let host = podnet::HostNetwork { profile: profile.name.clone(), subnet, run_dir };
        host.ensure().context("make the host's bridge")?;
        let address = host.node_address(1).context("the node network has no room for a node")?;
        host.attach_node(&profile.name, netns.as_fd(), address).context("connect the node to the bridge")?;
        let node = podnet::NodeNetwork {
            address,
            gateway: host.gateway(),
            pod_networks: vec![cluster::POD_CIDR.parse().context("the pod network")?],
        };
        node.setup(netns.as_fd()).context("set up the node's network")?;
        let network = Network { gateway: host.gateway(), node: address.addr(), prefix: address.prefix_len() };
        if known.as_ref() != Some(&network) {
            profile.set_network(&network)?;
        }
        anyhow::Ok(network)
    };
    tokio::task::spawn_blocking(work).await.context("set up the network")?
}

/// What all components of the node are made from.
struct Parts {
    profile: Profile,
    network: Network,
    shim: runtime::Runtime,
    netns: Arc<std::os::fd::OwnedFd>,
    /// Ends the components; the caller's token ends the daemon.
    stop: CancellationToken,
}

type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

impl Parts {
    async fn start(
        &self,
        report: &Report,
        events: runtime::Events,
        on_node: &tokio::runtime::Runtime,
        tasks: &mut Tasks,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        report.step("Starting the API server");
        let authority = Authority::open(&self.profile.pki())?;
        let images = self.images()?;
        let api = self.api_server(&authority, on_node, tasks).await?;
        let client = |user: &str| Client::new(api.in_process(user, &["system:masters"]), "default");

        report.step("Starting controllers, scheduler and node agent");
        let control = controllers::Config {
            ca_pem: authority.certificate_pem.clone(),
            cluster_cidr: cluster::POD_CIDR.parse().context("the pod network")?,
            node_cidr_mask: 24,
        };
        let (stop_controllers, controller_client) = (self.stop.clone(), client("system:kube-controller-manager"));
        let run_controllers = async move {
            controllers::run(controller_client, control, stop_controllers).await;
            Ok(())
        };
        spawn(tasks, on_node, "the controller manager", run_controllers);
        let scheduling = scheduler::run(client("system:kube-scheduler"), self.stop.clone());
        spawn(tasks, on_node, "the scheduler", async { Ok(scheduling.await?) });
        drop(events);
        let running = Running {
            client: client("system:control-socket"),
            images,
            node_name: self.profile.name.clone(),
            stop: stop.clone(),
        };
        let control = answer::listen(&self.profile.control_socket())?;
        let serve_control = answer::serve(control, running);
        let stop_control = self.stop.clone();
        tasks.spawn(async move {
            stop_control.run_until_cancelled(serve_control).await;
            ("the control socket", Ok(()))
        });

        report.step("Waiting for the node and its DNS");
        report.up();
        Ok(())
    }

    /// The image store, with the running binary as the built-in image.
    fn images(&self) -> anyhow::Result<Arc<image::Store>> {
        let registries = image::RegistryConfig::default();
        let images = image::Store::open(&self.profile.images(), registries).context("open the image store")?;
        let builtin = image::Builtin { applets: &toolbox::APPLETS, env: &[] };
        images.set_builtin(BUILTIN_IMAGE, builtin).context("make the built-in image")?;
        Ok(images)
    }

    async fn api_server(
        &self,
        authority: &Authority,
        on_node: &tokio::runtime::Runtime,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Arc<apiserver::ApiServer>> {
        let store = storage::Embedded::open(&self.profile.store(), storage::Options::default())?;
        let kubelet_client =
            authority.client(Subject { user: "kube-apiserver-kubelet-client", groups: &["system:masters"] })?;
        let config = apiserver::Config {
            advertise_address: IpAddr::V4(self.network.node),
            advertise_port: API_PORT,
            service_cidr: cluster::SERVICE_CIDR.parse().context("the service network")?,
            node_ports: 30000..=32767,
            client_ca: vec![authority.certificate.clone()],
            service_account_key: authority.service_account_key_pem.clone(),
            service_account_issuer: format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            kubelet_tls: Arc::new(tls::client(authority, &kubelet_client)?),
        };
        let api = apiserver::ApiServer::new(config, Arc::new(storage::Embedded::clone(&store)))
            .await
            .context("start the API server")?;
        let serving = tls::server(authority, &self.api_identity(authority)?)?;
        let address = SocketAddr::from((self.network.node, API_PORT));
        let listener = listen(on_node, address).await?;
        let served = api.clone().serve(listener, serving, self.stop.clone());
        spawn(tasks, on_node, "the API server", async {
            served.await;
            Ok(())
        });
        Ok(api)
    }

    fn api_identity(&self, authority: &Authority) -> anyhow::Result<Identity> {
        let services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let mut names: Vec<String> = services.map(str::to_owned).into();
        names.push(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
        names.push(self.profile.name.clone());
        let addresses = [self.network.node, KUBERNETES_SERVICE, Ipv4Addr::LOCALHOST].map(IpAddr::V4);
        Ok(authority.server(Subject { user: "kube-apiserver", groups: &[] }, &names, &addresses)?)
    }

    /// Resolves once the node is Ready and the cluster's DNS answers through its Service.
    async fn wait_ready(&self, client: Client, on_node: &tokio::runtime::Runtime) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(client);
        let is_ready = |node: Option<&Node>| {
            let conditions = node.and_then(|n| n.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        kube::runtime::wait::await_condition(nodes, &self.profile.name, is_ready).await.context("watch the node")?;
        let resolver = toolbox::resolve::Resolver {
            servers: vec![SocketAddr::from((DNS_SERVICE, 53))],
            search: Vec::new(),
            ndots: 1,
        };
        let name = format!("kubernetes.default.svc.{CLUSTER_DOMAIN}");
        let ask = async move {
            loop {
                let answer = tokio::time::timeout(Duration::from_millis(250), resolver.query(&name, RecordType::A));
                if let Ok(Ok((_, answer))) = answer.await
                    && answer.metadata.response_code == ResponseCode::NoError
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        on_node.spawn(ask).await.context("ask the cluster's DNS")
    }
}

async fn listen(on_node: &tokio::runtime::Runtime, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = on_node.spawn(TcpListener::bind(address)).await?;
    bound.with_context(|| format!("listen on {address}"))
}

fn spawn(
    tasks: &mut Tasks,
    on: &tokio::runtime::Runtime,
    name: &'static str,
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) {
    tasks.spawn_on(async move { (name, work.await) }, on.handle());
}
