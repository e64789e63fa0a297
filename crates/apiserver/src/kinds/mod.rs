//! Rules per kind: defaults, validation, immutability, hooks. One [`Strategy`](crate::strategy::Strategy) each.
//!
//! Most kinds are plain functions over the object ([`rules::Rules`]); those that look at other objects or reserve
//! something are types of their own. Field paths, reasons and texts are upstream's: clients match on them.

pub mod access;
pub mod admission;
pub mod batch;
pub mod checks;
pub mod cluster;
pub mod config;
pub mod definition;
#[cfg(test)]
pub(crate) mod fake;
pub mod ingress;
pub mod network;
pub mod pod;
pub mod policy;
pub mod quantity;
pub mod quota;
mod report;
pub mod rules;
pub mod scaling;
pub mod selector;
pub mod service;
pub mod storage;
pub mod value;
pub mod workload;

use std::sync::Arc;

use crate::alloc::Allocators;
use crate::auth::AuthError;
use crate::auth::reviews::Reviews;
use crate::auth::token::Tokens;
use crate::config::{Config, Enforcement};
use crate::resource::GroupResource;
use crate::strategy::Strategy;
use rules::Rules;

/// The rules of all kinds, with what they share (allocators, token issuer).
pub struct Kinds {
    tokens: Arc<Tokens>,
    allocators: Arc<Allocators>,
    policies: Enforcement,
}

impl Kinds {
    /// Made once at start, before anything is stored.
    ///
    /// # Errors
    /// The service account key of the configuration is no key.
    pub fn new(config: &Config) -> Result<Self, AuthError> {
        let (allocators, policies) = (Allocators::new(config), config.policies);
        Ok(Kinds { tokens: Arc::new(Tokens::new(config)?), allocators, policies })
    }

    /// The rules of a kind; kinds without rules of their own get the generic ones.
    pub fn strategy(&self, resource: &GroupResource) -> Arc<dyn Strategy> {
        if let Some(rules) = plain(&resource.group, &resource.resource) {
            return Arc::new(rules);
        }
        let tokens = self.tokens.clone();
        match (resource.group.as_str(), resource.resource.as_str()) {
            ("", "pods") => Arc::new(pod::Pods),
            ("", "services") => Arc::new(service::Services { allocators: self.allocators.clone() }),
            ("networking.k8s.io", "servicecidrs") => {
                Arc::new(network::ServiceCidrs { allocators: self.allocators.clone() })
            }
            ("", "serviceaccounts") => Arc::new(config::ServiceAccounts { tokens }),
            ("", "persistentvolumeclaims") => Arc::new(storage::Claims),
            ("networking.k8s.io", "networkpolicies") => Arc::new(match self.policies {
                Enforcement::Full => network::NETWORK_POLICY,
                Enforcement::Partial => network::DOUBTFUL_NETWORK_POLICY,
                Enforcement::Off => network::IDLE_NETWORK_POLICY,
            }),
            ("networking.k8s.io", "ingresses") => Arc::new(ingress::Ingresses),
            ("rbac.authorization.k8s.io", "roles" | "clusterroles") => Arc::new(access::Roles),
            ("rbac.authorization.k8s.io", _) => Arc::new(access::Bindings),
            ("authentication.k8s.io" | "authorization.k8s.io", _) => Arc::new(Reviews { tokens }),
            _ => Arc::new(Rules::NONE),
        }
    }
}

/// Kinds whose rules are plain functions.
fn plain(group: &str, plural: &str) -> Option<Rules> {
    Some(match (group, plural) {
        ("", "configmaps") => config::CONFIG_MAP,
        ("", "secrets") => config::SECRET,
        ("", "endpoints") => network::ENDPOINTS,
        ("", "events") => cluster::EVENT,
        ("", "limitranges") => cluster::LIMIT_RANGE,
        ("", "namespaces") => cluster::NAMESPACE,
        ("", "nodes") => cluster::NODE,
        ("", "persistentvolumes") => storage::VOLUME,
        ("", "podtemplates") => workload::POD_TEMPLATE,
        ("", "replicationcontrollers") => workload::REPLICATION_CONTROLLER,
        ("", "resourcequotas") => quota::RESOURCE_QUOTA,
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations") => admission::MUTATING_WEBHOOKS,
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => policy::POLICY,
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => policy::BINDING,
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations") => admission::VALIDATING_WEBHOOKS,
        ("apps", "controllerrevisions") => workload::CONTROLLER_REVISION,
        ("apps", "daemonsets") => workload::DAEMON_SET,
        ("apps", "deployments") => workload::DEPLOYMENT,
        ("apps", "replicasets") => workload::REPLICA_SET,
        ("apps", "statefulsets") => workload::STATEFUL_SET,
        ("autoscaling", "horizontalpodautoscalers") => scaling::AUTOSCALER,
        ("batch", "cronjobs") => batch::CRON_JOB,
        ("batch", "jobs") => batch::JOB,
        ("certificates.k8s.io", "certificatesigningrequests") => batch::CERTIFICATE_REQUEST,
        ("coordination.k8s.io", "leases") => cluster::LEASE,
        ("discovery.k8s.io", "endpointslices") => network::ENDPOINT_SLICE,
        ("networking.k8s.io", "ingressclasses") => network::INGRESS_CLASS,
        ("networking.k8s.io", "ipaddresses") => network::IP_ADDRESS,
        ("node.k8s.io", "runtimeclasses") => cluster::RUNTIME_CLASS,
        ("policy", "poddisruptionbudgets") => scaling::DISRUPTION_BUDGET,
        ("scheduling.k8s.io", "priorityclasses") => cluster::PRIORITY_CLASS,
        ("storage.k8s.io", "storageclasses") => storage::STORAGE_CLASS,
        ("apiextensions.k8s.io", "customresourcedefinitions") => definition::DEFINITION,
        _ => return None,
    })
}
