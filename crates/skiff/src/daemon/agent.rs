//! What every node runs: images, the kubelet, the service proxy, the way to the host's resolvers and to other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client::{Informer, SharedInformers};
use cluster::pki::{Authority, Subject};
use cluster::{BUILTIN_IMAGE, CLUSTER_DOMAIN, IpFamily};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client};
use tokio::sync::{OnceCell, watch};

use super::components::{Parts, Tasks};
use super::edges::{NodePods, OnHost, forward_host_ports};
use super::plugins::Plugins;
use super::{Running, answer, network, tls};

/// The port of kubelets.
const KUBELET_PORT: u16 = 10250;
/// The machine's registries; its shape is [`image::RegistryConfig`].
const REGISTRIES: &str = "/etc/skiff/registries.yaml";
/// The host's resolvers; a relative of systemd-resolved keeps its stub there, which the relay reaches as it is.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

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

/// What the node agent acts with.
struct Hands {
    network: NodePods,
    images: Arc<image::Store>,
    /// What becomes of containers.
    events: runtime::Events,
}

impl Parts {
    /// Starts the node's components with clients of their users; gives a sign once Services are in the kernel.
    ///
    /// # Errors
    /// What kept one from starting.
    pub(super) fn agent(
        &self,
        authority: &Authority,
        images: &Arc<image::Store>,
        client: &dyn Fn(&str) -> anyhow::Result<Client>,
        shared: SharedInformers,
        events: runtime::Events,
        tasks: &mut Tasks,
    ) -> anyhow::Result<watch::Receiver<bool>> {
        let node_client = client(&self.node_user())?;
        let pods = shared.pods.clone();
        let gate = self.policies(client("system:network-policy")?, shared, tasks)?;
        let network = self.pods(node_client.clone(), gate);
        let hands = Hands { network, images: images.clone(), events };
        let mut host_ports = self.node_agent(authority, node_client.clone(), pods, hands, tasks)?;
        if self.plugins.as_ref().is_some_and(Plugins::map_ports) {
            host_ports = watch::channel(Vec::new()).1;
        }
        let proxied = self.proxy(client("system:kube-proxy")?, host_ports, tasks)?;
        self.dns_relay(tasks)?;
        let (name, netns) = (self.member.name(), self.netns.clone());
        let routes = network::follow_peers(node_client, name, netns);
        let stop = self.components.clone();
        tasks.spawn(async move {
            let ended = stop.run_until_cancelled(routes).await;
            ("the routes to other nodes", ended.unwrap_or(Ok(())))
        });
        Ok(proxied)
    }

    /// The network of this node's Pods: our own, or that of plugins.
    fn pods(&self, client: Client, gate: Option<netpol::Gate>) -> NodePods {
        NodePods {
            client,
            node_name: self.member.name(),
            netns: self.netns.clone(),
            shim: self.shim.pid(),
            plugins: self.plugins.clone(),
            network: OnceCell::new(),
            gate,
        }
    }

    /// The label by which `kubectl get nodes` shows what a node is for.
    fn role(&self) -> BTreeMap<String, String> {
        let label = ("node-role.kubernetes.io/control-plane".to_owned(), String::new());
        self.member.is_control_plane().then_some(label).into_iter().collect()
    }

    /// The node's user, as upstream's node authorizer knows it.
    pub(super) fn node_user(&self) -> String {
        format!("system:node:{}", self.member.name())
    }

    /// The image store, with the running binary as the built-in image.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn images(&self) -> anyhow::Result<Arc<image::Store>> {
        let registries = registries(Path::new(REGISTRIES))?;
        let images =
            image::Store::open(&self.member.profile.images(), registries).context("open the image store")?;
        let builtin = image::Builtin { applets: &toolbox::APPLETS, env: &[], command: &[] };
        images.set_builtin(BUILTIN_IMAGE, builtin).context("make the built-in image")?;
        Ok(images)
    }

    /// The kubelet; gives the host ports that its Pods ask for.
    fn node_agent(
        &self,
        authority: &Authority,
        client: Client,
        pods: Informer<Pod>,
        Hands { network, images, events }: Hands,
        tasks: &mut Tasks,
    ) -> anyhow::Result<watch::Receiver<Vec<kubelet::HostPort>>> {
        let (name, ips) = (self.member.name(), self.node_ips());
        let user = self.node_user();
        let subject = Subject { user: &user, groups: &["system:nodes"] };
        let identity = authority.server(subject, std::slice::from_ref(&name), &ips)?;
        let (host_ports, wanted) = watch::channel(Vec::new());
        let agent = kubelet::Kubelet {
            config: kubelet::Config {
                node_name: name,
                node_dns: ips.first().copied(),
                node_ips: ips,
                port: KUBELET_PORT,
                root_dir: self.member.state_dir().join("pods"),
                volatile_dir: self.member.run_dir().join("pods"),
                log_dir: self.member.state_dir().join("logs"),
                cgroup: self.member.cgroup(),
                cluster_dns: self.network.dns_services().into_iter().take(1).collect(),
                cluster_domain: CLUSTER_DOMAIN.to_owned(),
                host_resolv_conf: HOST_RESOLV_CONF.into(),
                node_labels: self.role(),
                node_annotations: BTreeMap::new(),
                pod_cidr: None,
                max_pods: 110,
                runtime_handlers: Vec::new(),
                pause: Some(kubelet::Pause {
                    image: BUILTIN_IMAGE.to_owned(),
                    args: vec!["pause".to_owned()],
                }),
            },
            client,
            pods,
            containers: Arc::new(self.shim.clone()),
            events,
            images: Arc::new(OnHost::new(
                kubelet::real::ImageStore::new(images, self.shim.binary()),
                self.host.clone(),
            )),
            network: Arc::new(network),
            defaults: kubelet::real::defaults().context("the containers' defaults")?,
            tls: Arc::new(tls::server(authority, &identity)?),
            host_ports,
        };
        let running = kubelet::run(agent, self.components.clone());
        tasks.spawn(async { ("the node agent", running.await.map_err(Into::into)) });
        Ok(wanted)
    }

    /// The enforcement of network policies; gives the gate that new Pods wait at. None where policies only are kept.
    fn policies(
        &self,
        client: Client,
        shared: SharedInformers,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Option<netpol::Gate>> {
        if self.member.profile.cni()? == cluster::Cni::Kubenet {
            netpol::disable().context("remove the rules of network policies")?;
            return Ok(None);
        }
        let (gate, arrivals) = netpol::gate();
        let config = netpol::Config {
            node_name: self.member.name(),
            node_ips: self.node_ips(),
            arrivals,
            flows: self.flows.clone(),
            speaks: self.member.is_control_plane(),
        };
        let running = netpol::run(client, shared, config, self.components.clone());
        tasks.spawn(async { ("the enforcement of network policies", running.await.map_err(Into::into)) });
        Ok(Some(gate))
    }

    /// Where Pods' addresses are from.
    fn pod_networks(&self) -> anyhow::Result<Vec<IpNet>> {
        let mut networks = network::networks(self.network.ip_family, cluster::POD_CIDR, cluster::POD_CIDR6)?;
        networks.extend(self.plugins.iter().flat_map(Plugins::pod_networks));
        Ok(networks)
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
        let (answered, addresses) = watch::channel(BTreeSet::new());
        let config = proxy::ProxyConfig {
            node_name: self.member.name(),
            node_ips: self.node_ips(),
            pod_cidrs: self.pod_networks()?,
            service_cidrs: network::networks(
                self.network.ip_family,
                cluster::SERVICE_CIDR,
                cluster::SERVICE_CIDR6,
            )?,
            host_ports: ports,
            answered,
            synced,
        };
        let running = proxy::run(client, config, self.components.clone());
        tasks.spawn(async { ("the service proxy", running.await.map_err(Into::into)) });
        tokio::spawn(forward_host_ports(host_ports, to_proxy));
        let answering =
            network::answer_for(self.node_ips(), addresses, is_synced.clone(), self.netns.clone());
        let stop = self.components.clone();
        tasks.spawn(async move {
            let ended = stop.run_until_cancelled(answering).await;
            ("the load balancers' addresses", ended.unwrap_or(Ok(())))
        });
        Ok(is_synced)
    }

    /// The host's resolvers for Pods that ask beyond the cluster: listened for on the node, asked from the host.
    fn dns_relay(&self, tasks: &mut Tasks) -> anyhow::Result<()> {
        for address in self.node_ips() {
            let address = SocketAddr::from((address, 53));
            let failed = || format!("listen on {address}");
            let udp = std::net::UdpSocket::bind(address).with_context(failed)?;
            let tcp = std::net::TcpListener::bind(address).with_context(failed)?;
            let relay = dns::relay::run(udp, tcp, HOST_RESOLV_CONF.into(), self.components.clone());
            tasks.spawn_on(async { ("the DNS relay", relay.await.map_err(Into::into)) }, &self.host);
        }
        Ok(())
    }

    /// What the command line asks of this node's daemon.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(super) fn control_socket(
        &self,
        client: Client,
        images: Arc<image::Store>,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let listener = answer::listen(&self.member.control_socket())?;
        let node_name = self.member.name();
        let (stop, host, flows) = (self.daemon.clone(), self.host.clone(), self.flows.clone());
        let running = Running { client, images, node_name, stop, host, flows };
        let stop = self.components.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(answer::serve(listener, running)).await;
            ("the control socket", Ok(()))
        });
        Ok(())
    }

    /// Resolves once the node is Ready and the cluster's DNS answers through its Service.
    ///
    /// # Errors
    /// When what it waits for has died.
    pub(super) async fn wait_ready(
        &self,
        client: Client,
        mut proxied: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(client);
        let is_ready = |node: Option<&Node>| {
            let conditions = node.and_then(|n| n.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        kube::runtime::wait::await_condition(nodes, &self.member.name(), is_ready)
            .await
            .context("watch the node")?;
        proxied.wait_for(|synced| *synced).await.context("the service proxy ended")?;
        let services = self.network.dns_services().into_iter();
        let servers: Vec<SocketAddr> = services.map(|address| (address, 53).into()).collect();
        let main = if self.network.ip_family == IpFamily::Ipv6 { RecordType::AAAA } else { RecordType::A };
        let resolver = toolbox::resolve::Resolver { servers, search: Vec::new(), ndots: 1 };
        let name = format!("kubernetes.default.svc.{CLUSTER_DOMAIN}");
        loop {
            let asked = tokio::time::timeout(Duration::from_millis(250), resolver.query(&name, main));
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
