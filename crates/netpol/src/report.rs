//! What users are told by Events: on a policy, since when it is in force for how many Pods, or that the kernel refused it;
//! on a Pod, which policy refused its connection.
//!
//! A NetworkPolicy of networking.k8s.io/v1 has no status (withdrawn with KEP-2943), and an annotation would show up in
//! `kubectl describe` and in everybody's diffs; Events of the object are what upstream leaves for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::ObjectKey;
use client::events::{Recorder, Regarding};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ObjectMeta;
use parking_lot::Mutex;

use crate::explain::policy_name;
use crate::flows::Seen;
use crate::model::{PodView, Policy};

const COMPONENT: &str = "network-policy";
/// One Event a policy and Pod in this time.
const QUIET: Duration = Duration::from_secs(60);
/// Pairs of policy and Pod remembered for that.
const REMEMBERED: usize = 4096;

/// Writes the Events of a node.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    recorder: Recorder,
    node: Arc<str>,
    told: Arc<Mutex<HashMap<(ObjectKey, ObjectKey), Instant>>>,
}

impl Reporter {
    pub(crate) fn new(recorder: Recorder, node: &str) -> Self {
        Self { recorder, node: node.into(), told: Arc::default() }
    }

    /// A policy is in force for so many of the node's Pods.
    pub(crate) fn enforced(&self, policy: &Policy, local: usize, total: usize) {
        let since = Timestamp::now().to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC");
        let what = if policy.audit { "audited, nothing is dropped" } else { "in force" };
        let message = match (local, total) {
            (_, 0) => format!("selects no Pod; {what} since {since}, from the first packet of Pods to come"),
            (local, total) => {
                let all = if total == 1 { "1 Pod".to_owned() } else { format!("{total} Pods") };
                format!("selects {all}, {local} on node {}; {what} there since {since}", self.node)
            }
        };
        self.recorder.normal(COMPONENT, about(policy), "Enforced", message);
    }

    /// The kernel has refused the rules in which these policies changed.
    pub(crate) fn refused(&self, policies: &[&Policy], error: &nft::Error) {
        for policy in policies {
            let message = format!(
                "node {}: the kernel refuses its rules, those before stay in force and it is tried again: {error}",
                self.node
            );
            self.recorder.warning(COMPONENT, about(policy), "RulesRefused", message);
        }
    }

    /// A connection of a Pod, or to it from outside, was refused.
    pub(crate) fn connection_refused(&self, pod: &PodView, policies: &[ObjectKey], seen: &Seen) {
        for policy in policies {
            if !self.is_due((policy.clone(), pod.key.clone())) {
                continue;
            }
            let side = seen.direction.as_deref().unwrap_or_default();
            let from = seen.from.pod.clone().unwrap_or_else(|| seen.from.address.ip().to_string());
            let ip = seen.to.address.ip();
            let to = seen.to.pod.as_ref().map_or_else(|| ip.to_string(), |pod| format!("{pod} ({ip})"));
            let target = seen.to.pod.as_ref().map_or_else(|| ip.to_string(), |pod| format!("pod/{pod}"));
            let port = seen.to.address.port();
            let protocol = seen.protocol.to_lowercase();
            let more = if seen.from.pod.is_some() {
                format!("; skiff policy explain --from {from} --to {target} --port {port}/{protocol}")
            } else {
                String::new()
            };
            let message = format!(
                "connection from {from} to {to} at port {port}/{protocol} refused by {} ({side}){more}",
                policy_name(policy)
            );
            let regarding = Regarding::of(&Pod { metadata: meta(&pod.key, &pod.uid), ..Pod::default() });
            self.recorder.warning(COMPONENT, regarding, "ConnectionRefused", message);
        }
    }

    fn is_due(&self, pair: (ObjectKey, ObjectKey)) -> bool {
        let mut told = self.told.lock();
        let now = Instant::now();
        if told.len() >= REMEMBERED {
            told.retain(|_, since| now.duration_since(*since) < QUIET);
        }
        // So many at once would flood the store.
        if told.len() >= REMEMBERED {
            return false;
        }
        let since = told.get(&pair).copied();
        let due = since.is_none_or(|since| now.duration_since(since) >= QUIET);
        if due {
            told.insert(pair, now);
        }
        due
    }
}

fn about(policy: &Policy) -> Regarding {
    let object = NetworkPolicy { metadata: meta(&policy.key, &policy.uid), ..NetworkPolicy::default() };
    Regarding::of(&object)
}

fn meta(key: &ObjectKey, uid: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(key.name.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectMeta::default()
    }
}
