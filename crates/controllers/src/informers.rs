//! The caches that the controllers share: one per kind, for all namespaces.

use std::fmt::Debug;

use client::{Informer, SharedInformers};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

/// Where node agents renew their Leases.
pub(crate) const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The ConfigMap that every namespace gets.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

/// One cache per kind.
pub(crate) struct Informers {
    pub pods: Informer<Pod>,
    pub services: Informer<Service>,
    pub endpoints: Informer<Endpoints>,
    pub slices: Informer<EndpointSlice>,
    pub nodes: Informer<Node>,
    pub namespaces: Informer<Namespace>,
    pub service_accounts: Informer<ServiceAccount>,
    pub controllers: Informer<ReplicationController>,
    pub deployments: Informer<Deployment>,
    pub replica_sets: Informer<ReplicaSet>,
    pub stateful_sets: Informer<StatefulSet>,
    pub daemon_sets: Informer<DaemonSet>,
    pub revisions: Informer<ControllerRevision>,
    pub jobs: Informer<Job>,
    pub cron_jobs: Informer<CronJob>,
    pub budgets: Informer<PodDisruptionBudget>,
    /// Only those of [`LEASE_NAMESPACE`].
    pub leases: Informer<Lease>,
    /// Only those named [`ROOT_CA`].
    pub root_cas: Informer<ConfigMap>,
}

impl Informers {
    /// Starts those that are not shared; must be called inside a runtime.
    pub fn start(client: &Client, shared: SharedInformers) -> Self {
        let leases = Api::namespaced(client.clone(), LEASE_NAMESPACE);
        let root_ca = watcher::Config::default().fields(&format!("metadata.name={ROOT_CA}"));
        Self {
            pods: shared.pods,
            services: all(client),
            endpoints: all(client),
            slices: all(client),
            nodes: shared.nodes,
            namespaces: shared.namespaces,
            service_accounts: all(client),
            controllers: all(client),
            deployments: all(client),
            replica_sets: all(client),
            stateful_sets: all(client),
            daemon_sets: all(client),
            revisions: all(client),
            jobs: all(client),
            cron_jobs: all(client),
            budgets: all(client),
            leases: Informer::start(leases, watcher::Config::default()),
            root_cas: Informer::start(Api::all(client.clone()), root_ca),
        }
    }
}

fn all<K>(client: &Client) -> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    Informer::start(Api::all(client.clone()), watcher::Config::default())
}
