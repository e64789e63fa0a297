//! Which components a node runs and what each is told. Order is only what one needs of another; all else is the
//! components' own business, because each waits for what it watches.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
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
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::edges::{NodePods, OnHost, forward_host_ports};
use super::report::Report;
use super::{Running, addons, answer, node, tls};

/// The port of kubelets.
const KUBELET_PORT: u16 = 10250;
/// How long a node may take to be ready before the start is called failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long components may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// The machine's registries; its shape is [`image::RegistryConfig`].
const REGISTRIES: &str = "/etc/skiff/registries.yaml";
/// The host's resolvers; a relative of systemd-resolved keeps its stub there, which the relay reaches as it is.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Starts everything, says when it is up, runs until `stop`, and takes the node away.
///
/// # Errors
/// What kept the cluster from starting, or the component that died.
pub async fn run(profile: &Profile, report: Arc<Report>, stop: CancellationToken) -> anyhow::Result<()> {
    report.step("Preparing the node");
    let (shim, events) =
        runtime::Runtime::start_or_connect(shim_options(profile)).await.context("start the node")?;
    let netns = Arc::new(shim.node_netns().await.context("open the node's network namespace")?);
    let network = prepare_network(profile, netns.clone()).await?;
    let in_node = netns.try_clone().context("open the node's network namespace")?;
    let node_runtime = node::runtime("node", 2, Some(in_node))?;
    let parts = Parts {
        profile: profile.clone(),
        network,
        shim: shim.clone(),
        netns,
        host: Handle::current(),
        components: CancellationToken::new(),
        daemon: stop,
    };
    // Whatever a component spawns belongs to the node's runtime, so all of them are started there.
    let outcome = node_runtime.spawn(parts.run(report, events)).await.context("the node's runtime died")?;
    let removed = node::remove(profile, Some(shim)).await;
    node_runtime.shutdown_background();
    outcome.and(removed)
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
async fn prepare_network(profile: &Profile, netns: Arc<OwnedFd>) -> anyhow::Result<Network> {
    let profile = profile.clone();
    let work = move || {
        let known = profile.network()?;
        let subnet = match &known {
            Some(network) => ipnet::Ipv4Net::new(network.gateway, network.prefix)?.trunc(),
            None => podnet::subnet::choose(&podnet::used_networks(&profile.name)?).context(
                "every private network of ours is in use by this host; free one of 192.168.0.0/16",
            )?,
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

/// How registries are reached: mirrors, insecure ones and authorities from the machine's file, if there is one, and
/// the credentials of the host's Docker.
fn registries(path: &Path) -> anyhow::Result<image::RegistryConfig> {
    let mut config = match cluster::files::read_if_there(path)? {
        Some(text) => image::RegistryConfig::from_yaml(&String::from_utf8_lossy(&text))
            .with_context(|| format!("read {}", path.display()))?,
        None => image::RegistryConfig::default(),
    };
    config.docker_config = config.docker_config.or_else(image::host_docker_config);
    Ok(config)
}

/// What all components of the node are made from.
struct Parts {
    profile: Profile,
    network: Network,
    shim: runtime::Runtime,
    netns: Arc<OwnedFd>,
    /// The runtime on the host's side.
    host: Handle,
    /// Ends the components.
    components: CancellationToken,
    /// Ends the daemon.
    daemon: CancellationToken,
}

type Tasks = JoinSet<(&'static str, anyhow::Result<()>)>;

impl Parts {
    /// The life of the components: started, watched, drained.
    async fn run(self, report: Arc<Report>, events: runtime::Events) -> anyhow::Result<()> {
        let mut tasks = Tasks::new();
        let mut outcome = self.start(&report, events, &mut tasks).await;
        if outcome.is_ok() {
            tokio::select! {
                () = self.daemon.cancelled() => {}
                Some(ended) = tasks.join_next() => outcome = Err(died(ended)),
            }
        }
        self.components.cancel();
        let drain = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "components outlived the drain time");
        }
        outcome
    }

    async fn start(&self, report: &Report, events: runtime::Events, tasks: &mut Tasks) -> anyhow::Result<()> {
        report.step("Starting the API server");
        let authority = Authority::open(&self.profile.pki())?;
        let images = self.images()?;
        let api = self.api_server(&authority, tasks).await?;
        let client = |user: &str| Client::new(api.in_process(user, &["system:masters"]), "default");

        report.step("Starting controllers, scheduler and node agent");
        self.controllers(&authority, client("system:kube-controller-manager"), tasks)?;
        let scheduling = scheduler::run(client("system:kube-scheduler"), self.components.clone());
        tasks.spawn(async { ("the scheduler", scheduling.await.map_err(Into::into)) });
        let node_user = format!("system:node:{}", self.profile.name);
        let host_ports = self.node_agent(&authority, client(&node_user), images.clone(), events, tasks)?;
        let proxied = self.proxy(client("system:kube-proxy"), host_ports, tasks)?;
        self.dns_relay(tasks)?;
        let addon = dns::addon::AddonConfig::new(IpAddr::V4(DNS_SERVICE));
        addons::apply(&client("system:addon-manager"), dns::addon::manifests(&addon)).await?;
        self.control_socket(client("system:control-socket"), images, tasks)?;

        report.step("Waiting for the node and its DNS");
        let ready = self.wait_ready(client("system:control-socket"), proxied);
        tokio::select! {
            ready = tokio::time::timeout(PATIENCE, ready) => {
                ready.with_context(|| format!("the node and its DNS were not ready within {PATIENCE:?}"))??;
            }
            Some(ended) = tasks.join_next() => return Err(died(ended)),
            () = self.daemon.cancelled() => bail!("told to stop before the cluster was up"),
        }
        report.up();
        Ok(())
    }

    /// The image store, with the running binary as the built-in image.
    fn images(&self) -> anyhow::Result<Arc<image::Store>> {
        let registries = registries(Path::new(REGISTRIES))?;
        let images =
            image::Store::open(&self.profile.images(), registries).context("open the image store")?;
        let builtin = image::Builtin { applets: &toolbox::APPLETS, env: &[] };
        images.set_builtin(BUILTIN_IMAGE, builtin).context("make the built-in image")?;
        Ok(images)
    }

    async fn api_server(
        &self,
        authority: &Authority,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Arc<apiserver::ApiServer>> {
        let store = storage::Embedded::open(&self.profile.store(), storage::Options::default())?;
        let subject = Subject { user: "kube-apiserver-kubelet-client", groups: &["system:masters"] };
        let config = apiserver::Config {
            advertise_address: IpAddr::V4(self.network.node),
            advertise_port: API_PORT,
            service_cidr: cluster::SERVICE_CIDR.parse().context("the service network")?,
            node_ports: 30000..=32767,
            client_ca: vec![authority.certificate.clone()],
            service_account_key: authority.service_account_key_pem.clone(),
            service_account_issuer: format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            kubelet_tls: Arc::new(tls::client(authority, &authority.client(subject)?)?),
        };
        let api = apiserver::ApiServer::new(config, Arc::new(store)).await.context("start the API server")?;
        let serving = tls::server(authority, &self.api_identity(authority)?)?;
        let address = SocketAddr::from((self.network.node, API_PORT));
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let served = api.clone().serve(listener, serving, self.components.clone());
        tasks.spawn(async {
            served.await;
            ("the API server", Ok(()))
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

    fn controllers(&self, authority: &Authority, client: Client, tasks: &mut Tasks) -> anyhow::Result<()> {
        let config = controllers::Config {
            ca_pem: authority.certificate_pem.clone(),
            cluster_cidr: cluster::POD_CIDR.parse().context("the pod network")?,
            node_cidr_mask: 24,
        };
        let running = controllers::run(client, config, self.components.clone());
        tasks.spawn(async {
            running.await;
            ("the controller manager", Ok(()))
        });
        Ok(())
    }

    /// The kubelet; gives the host ports that its Pods ask for.
    fn node_agent(
        &self,
        authority: &Authority,
        client: Client,
        images: Arc<image::Store>,
        events: runtime::Events,
        tasks: &mut Tasks,
    ) -> anyhow::Result<watch::Receiver<Vec<kubelet::HostPort>>> {
        let node = IpAddr::V4(self.network.node);
        let user = format!("system:node:{}", self.profile.name);
        let subject = Subject { user: &user, groups: &["system:nodes"] };
        let identity = authority.server(subject, std::slice::from_ref(&self.profile.name), &[node])?;
        let (host_ports, wanted) = watch::channel(Vec::new());
        let agent = kubelet::Kubelet {
            config: kubelet::Config {
                node_name: self.profile.name.clone(),
                node_ips: vec![node],
                port: KUBELET_PORT,
                root_dir: self.profile.state_dir.join("pods"),
                volatile_dir: self.profile.run_dir.join("pods"),
                log_dir: self.profile.state_dir.join("logs"),
                cgroup: self.profile.cgroup(),
                cluster_dns: vec![IpAddr::V4(DNS_SERVICE)],
                cluster_domain: CLUSTER_DOMAIN.to_owned(),
                host_resolv_conf: HOST_RESOLV_CONF.into(),
                node_dns: Some(node),
                node_labels: BTreeMap::new(),
                node_annotations: BTreeMap::new(),
                pod_cidr: None,
                max_pods: 110,
                runtime_handlers: Vec::new(),
                pause: Some(kubelet::Pause {
                    image: BUILTIN_IMAGE.to_owned(),
                    args: vec!["pause".to_owned()],
                }),
            },
            client: client.clone(),
            containers: Arc::new(self.shim.clone()),
            events,
            images: Arc::new(OnHost::new(
                kubelet::real::ImageStore::new(images, self.shim.binary()),
                self.host.clone(),
            )),
            network: Arc::new(NodePods::new(client, self.profile.name.clone(), self.netns.clone())),
            defaults: kubelet::real::defaults().context("the containers' defaults")?,
            tls: Arc::new(tls::server(authority, &identity)?),
            host_ports,
        };
        let running = kubelet::run(agent, self.components.clone());
        tasks.spawn(async { ("the node agent", running.await.map_err(Into::into)) });
        Ok(wanted)
    }

    /// The service proxy; gives a sign once its rules are in the kernel.
    fn proxy(
        &self,
        client: Client,
        host_ports: watch::Receiver<Vec<kubelet::HostPort>>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<watch::Receiver<bool>> {
        let (synced, is_synced) = watch::channel(false);
        let (to_proxy, ports) = watch::channel(Vec::new());
        let config = proxy::ProxyConfig {
            node_name: self.profile.name.clone(),
            node_ips: vec![IpAddr::V4(self.network.node)],
            pod_cidrs: vec![cluster::POD_CIDR.parse().context("the pod network")?],
            service_cidrs: vec![cluster::SERVICE_CIDR.parse().context("the service network")?],
            host_ports: ports,
            synced,
        };
        let running = proxy::run(client, config, self.components.clone());
        tasks.spawn(async { ("the service proxy", running.await.map_err(Into::into)) });
        tokio::spawn(forward_host_ports(host_ports, to_proxy));
        Ok(is_synced)
    }

    /// The host's resolvers for Pods that ask beyond the cluster: listened for on the node, asked from the host.
    fn dns_relay(&self, tasks: &mut Tasks) -> anyhow::Result<()> {
        let address = SocketAddr::from((self.network.node, 53));
        let failed = || format!("listen on {address}");
        let udp = std::net::UdpSocket::bind(address).with_context(failed)?;
        let tcp = std::net::TcpListener::bind(address).with_context(failed)?;
        let relay = dns::relay::run(udp, tcp, HOST_RESOLV_CONF.into(), self.components.clone());
        tasks.spawn_on(async { ("the DNS relay", relay.await.map_err(Into::into)) }, &self.host);
        Ok(())
    }

    fn control_socket(
        &self,
        client: Client,
        images: Arc<image::Store>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let listener = answer::listen(&self.profile.control_socket())?;
        let node_name = self.profile.name.clone();
        let running =
            Running { client, images, node_name, stop: self.daemon.clone(), host: self.host.clone() };
        let stop = self.components.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(answer::serve(listener, running)).await;
            ("the control socket", Ok(()))
        });
        Ok(())
    }

    /// Resolves once the node is Ready and the cluster's DNS answers through its Service.
    async fn wait_ready(&self, client: Client, mut proxied: watch::Receiver<bool>) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(client);
        let is_ready = |node: Option<&Node>| {
            let conditions = node.and_then(|n| n.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        kube::runtime::wait::await_condition(nodes, &self.profile.name, is_ready)
            .await
            .context("watch the node")?;
        proxied.wait_for(|synced| *synced).await.context("the service proxy ended")?;
        let servers = vec![SocketAddr::from((DNS_SERVICE, 53))];
        let resolver = toolbox::resolve::Resolver { servers, search: Vec::new(), ndots: 1 };
        let name = format!("kubernetes.default.svc.{CLUSTER_DOMAIN}");
        loop {
            let asked =
                tokio::time::timeout(Duration::from_millis(250), resolver.query(&name, RecordType::A));
            if let Ok(Ok((_, answer))) = asked.await
                && answer.metadata.response_code == ResponseCode::NoError
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_machines_registries_are_read_and_mistakes_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        assert!(registries(&path).unwrap().registries.is_empty());
        std::fs::write(&path, "registries:\n  docker.io:\n    mirrors: [http://127.0.0.1:5000]\n").unwrap();
        assert_eq!(registries(&path).unwrap().registries["docker.io"].mirrors, ["http://127.0.0.1:5000"]);
        std::fs::write(&path, "registries:\n  docker.io:\n    mirors: []\n").unwrap();
        let said = format!("{:#}", registries(&path).unwrap_err());
        assert!(said.contains("registries.yaml") && said.contains("mirors"), "{said}");
    }
}
