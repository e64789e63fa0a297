//! What ReplicaSet and ReplicationController have in common, behind one trait.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use kube::Resource;
use kube::core::Selector;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::plan::Counts;
use crate::meta::{self, some_unless_zero};

/// Why the last run could not make or delete all Pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// A kind that keeps a number of Pods alive.
pub(super) trait Replicator:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// The source of its Events.
    const COMPONENT: &'static str;
    /// Its kind.
    const KIND: &'static str;

    fn selector(&self) -> Option<Selector>;
    fn template(&self) -> PodTemplateSpec;
    fn wanted(&self) -> i32;
    fn min_ready(&self) -> i32;
    /// The object with this status, or `None` if it already has it.
    fn with_status(&self, counts: Counts, failure: Option<Failure>, now: Timestamp) -> Option<Self>;
}

/// The condition list with ReplicaFailure set or removed; a known failure with the same reason keeps its time.
macro_rules! failure_condition {
    ($condition:ident, $old:expr, $failure:expr, $now:expr) => {{
        let old: Option<Vec<$condition>> = $old;
        let mut kept: Vec<$condition> = old.into_iter().flatten().collect();
        let known = kept.iter().position(|c| c.type_ == "ReplicaFailure");
        match ($failure, known) {
            (Some(failure), Some(at)) if kept[at].reason.as_deref() == Some(failure.reason) => {}
            (Some(failure), at) => {
                let at = at.map(|at| kept.remove(at));
                drop(at);
                kept.push($condition {
                    type_: "ReplicaFailure".into(),
                    status: "True".into(),
                    reason: Some(failure.reason.into()),
                    message: Some(failure.message),
                    last_transition_time: Some(meta::time($now)),
                });
            }
            (None, Some(at)) => drop(kept.remove(at)),
            (None, None) => {}
        }
        (!kept.is_empty()).then_some(kept)
    }};
}

impl Replicator for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";
    const KIND: &'static str = "ReplicaSet";

    fn selector(&self) -> Option<Selector> {
        meta::selector(&self.spec.as_ref()?.selector)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn with_status(&self, counts: Counts, failure: Option<Failure>, now: Timestamp) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let new = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some_unless_zero(counts.fully_labelled),
            ready_replicas: some_unless_zero(counts.ready),
            available_replicas: some_unless_zero(counts.available),
            observed_generation: self.metadata.generation,
            conditions: failure_condition!(ReplicaSetCondition, old.conditions.clone(), failure, now),
            terminating_replicas: None,
        };
        (self.status.as_ref() != Some(&new)).then(|| Self { status: Some(new), ..self.clone() })
    }
}

impl Replicator for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";
    const KIND: &'static str = "ReplicationController";

    fn selector(&self) -> Option<Selector> {
        self.spec.as_ref()?.selector.as_ref().filter(|map| !map.is_empty()).map(meta::map_selector)
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn with_status(&self, counts: Counts, failure: Option<Failure>, now: Timestamp) -> Option<Self> {
        let old = self.status.clone().unwrap_or_default();
        let new = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some_unless_zero(counts.fully_labelled),
            ready_replicas: some_unless_zero(counts.ready),
            available_replicas: some_unless_zero(counts.available),
            observed_generation: self.metadata.generation,
            conditions: failure_condition!(
                ReplicationControllerCondition,
                old.conditions.clone(),
                failure,
                now
            ),
        };
        (self.status.as_ref() != Some(&new)).then(|| Self { status: Some(new), ..self.clone() })
    }
}
