//! The control plane, which the first node runs: API server, controllers, scheduler, the add-ons' objects.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use apiserver::audit::policy::Policy;
use client::SharedInformers;
use cluster::pki::{Authority, Identity, Subject};
use cluster::{API_PORT, CLUSTER_DOMAIN};
use kube::Client;
use tokio::net::TcpListener;

use super::components::{Parts, Tasks};
use super::network::networks;
use super::{addons, tls};

/// The audit log is set aside when it is so large (kube-apiserver's default),
const AUDIT_SIZE: u64 = 100 << 20;
/// and so many of those are kept.
const AUDIT_BACKUPS: usize = 5;

impl Parts {
    /// Starts what works on the API server's objects: controllers, scheduler, the add-ons' objects.
    ///
    /// # Errors
    /// What kept one from starting.
    pub(super) async fn control_plane(
        &self,
        authority: &Authority,
        client: &(dyn Fn(&str) -> anyhow::Result<Client> + Sync),
        shared: SharedInformers,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        self.controllers(authority, client("system:kube-controller-manager")?, shared.clone(), tasks)?;
        let scheduling = scheduler::run(client("system:kube-scheduler")?, shared, self.components.clone());
        tasks.spawn(async { ("the scheduler", scheduling.await.map_err(Into::into)) });
        let six = self.network.gateway6.map(IpAddr::V6);
        let host = std::iter::once(IpAddr::V4(self.network.gateway)).chain(six).collect();
        let addon =
            dns::addon::AddonConfig { host, ..dns::addon::AddonConfig::new(self.network.dns_services()) };
        let manager = client("system:addon-manager")?;
        addons::apply(&manager, vec![netpol::definition::definition(self.unenforced()?)]).await?;
        addons::apply(&manager, dns::addon::manifests(&addon)).await?;
        if let Err(error) = addons::refresh(&manager).await {
            tracing::warn!(error = format!("{error:#}"), "the add-ons are as an earlier skiff left them");
        }
        Ok(())
    }

    /// Starts the API server, through which everything on this node talks to the cluster.
    ///
    /// # Errors
    /// What kept it from starting.
    pub(super) async fn api_server(
        &self,
        authority: &Authority,
        tasks: &mut Tasks,
    ) -> anyhow::Result<Arc<apiserver::ApiServer>> {
        let store = storage::Embedded::open(&self.member.profile.store(), storage::Options::default())?;
        let subject = Subject { user: "kube-apiserver-kubelet-client", groups: &["system:masters"] };
        let config = apiserver::Config {
            advertise_address: self.network.main_node_ip(),
            advertise_port: API_PORT,
            service_cidrs: networks(self.network.ip_family, cluster::SERVICE_CIDR, cluster::SERVICE_CIDR6)?,
            node_ports: 30000..=32767,
            policies: self.enforcement()?,
            client_ca: vec![authority.certificate.clone()],
            service_account_key: authority.service_account_key_pem.clone(),
            service_account_issuer: format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            kubelet_tls: Arc::new(tls::client(authority, &authority.client(subject)?)?),
            audit: self.audit()?,
        };
        let api = apiserver::ApiServer::new(config, Arc::new(store)).await.context("start the API server")?;
        let serving = tls::server(authority, &self.api_identity(authority)?)?;
        for address in self.api_addresses() {
            let address = SocketAddr::from((address, API_PORT));
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            let served = api.clone().serve(listener, serving.clone(), self.components.clone());
            tasks.spawn(async {
                served.await;
                ("the API server", Ok(()))
            });
        }
        Ok(api)
    }

    /// Where the API server listens: on the address that the host comes by, and on those that the cluster knows.
    fn api_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = vec![IpAddr::V4(self.network.node)];
        addresses.extend(self.network.node_ips(self.network.node).into_iter().filter(IpAddr::is_ipv6));
        addresses
    }

    /// The audit log, if a start asked for one.
    fn audit(&self) -> anyhow::Result<Option<apiserver::audit::Settings>> {
        let profile = &self.member.profile;
        let file = profile.audit_policy();
        let Some(text) = cluster::files::read_if_there(&file)? else { return Ok(None) };
        let policy = Policy::parse(&String::from_utf8_lossy(&text));
        let policy = policy.map_err(|why| anyhow::anyhow!("audit policy {}: {why}", file.display()))?;
        Ok(Some(apiserver::audit::Settings {
            policy: Arc::new(policy),
            path: profile.audit_log(),
            max_size: AUDIT_SIZE,
            max_backups: AUDIT_BACKUPS,
        }))
    }

    /// How far this cluster enforces network policies.
    fn enforcement(&self) -> anyhow::Result<apiserver::Enforcement> {
        Ok(match &self.plugins {
            Some(plugins) => plugins.enforcement(),
            None if self.member.profile.cni()? == cluster::Cni::Kubenet => apiserver::Enforcement::Off,
            None => apiserver::Enforcement::Full,
        })
    }

    /// What whoever makes a policy of the cluster is to know.
    fn unenforced(&self) -> anyhow::Result<Option<&'static str>> {
        Ok(match self.enforcement()? {
            apiserver::Enforcement::Full => None,
            apiserver::Enforcement::Partial => Some(
                "this cluster's CNI plugin may lead packets around the node: ClusterNetworkPolicies are enforced only on those that pass it",
            ),
            apiserver::Enforcement::Off => Some(
                "this cluster does not enforce ClusterNetworkPolicies (--cni=kubenet): they are kept and have no effect",
            ),
        })
    }

    fn api_identity(&self, authority: &Authority) -> anyhow::Result<Identity> {
        let services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let mut names: Vec<String> = services.map(str::to_owned).into();
        names.push(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
        names.push(self.member.name());
        let mut addresses = self.api_addresses();
        addresses.extend(self.network.kubernetes_services());
        addresses.push(Ipv4Addr::LOCALHOST.into());
        Ok(authority.server(Subject { user: "kube-apiserver", groups: &[] }, &names, &addresses)?)
    }

    fn controllers(
        &self,
        authority: &Authority,
        client: Client,
        shared: SharedInformers,
        tasks: &mut Tasks,
    ) -> anyhow::Result<()> {
        let config = controllers::Config {
            ca_pem: authority.certificate_pem.clone(),
            cluster_cidrs: networks(self.network.ip_family, cluster::POD_CIDR, cluster::POD_CIDR6)?
                .into_iter()
                .map(|net| (net, if net.addr().is_ipv4() { 24 } else { 64 }))
                .collect(),
            load_balancers: self.network.load_balancer_ranges(),
        };
        let running = controllers::run(client, shared, config, self.components.clone());
        tasks.spawn(async {
            running.await;
            ("the controller manager", Ok(()))
        });
        Ok(())
    }
}
