//! A Deployment's spec with defaults resolved, and the arithmetic of surge, unavailability and proportions.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::meta;

/// On ReplicaSets: how many replicas the Deployment wanted when it last sized them.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// On ReplicaSets: the same with the surge added; the base of proportional scaling.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// What a Deployment asks for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub replicas: i32,
    pub rolling: bool,
    /// Most Pods beyond `replicas`; 0 unless rolling.
    pub max_surge: i32,
    /// Most Pods missing; 0 unless rolling.
    pub max_unavailable: i32,
    pub min_ready: i32,
    /// `None` means that no progress is asked for.
    pub deadline: Option<i32>,
    pub history: Option<i32>,
    pub paused: bool,
    pub template: PodTemplateSpec,
}

impl Wish {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.unwrap_or_default();
        let rolling = strategy.type_.as_deref() != Some("Recreate");
        let rolling_update = strategy.rolling_update.unwrap_or_default();
        let quarter = || IntOrString::String("25%".into());
        let max_surge = scaled(&rolling_update.max_surge.unwrap_or_else(quarter), replicas, true);
        let mut max_unavailable =
            scaled(&rolling_update.max_unavailable.unwrap_or_else(quarter), replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            // Both may round to zero, and then nothing could ever move.
            max_unavailable = 1;
        }
        Self {
            replicas,
            rolling,
            max_surge: if rolling { max_surge } else { 0 },
            max_unavailable: if rolling { max_unavailable.min(replicas) } else { 0 },
            min_ready: spec.min_ready_seconds.unwrap_or(0),
            deadline: spec.progress_deadline_seconds.filter(|s| *s != i32::MAX),
            history: spec.revision_history_limit.filter(|n| *n != i32::MAX),
            paused: spec.paused.unwrap_or(false),
            template: spec.template,
        }
    }

    /// How large the new ReplicaSet may be now.
    pub fn new_size(&self, all: i32, new: i32) -> i32 {
        if !self.rolling {
            return self.replicas;
        }
        let most = self.replicas + self.max_surge;
        if all >= most {
            return new;
        }
        new + (most - all).min(self.replicas - new)
    }

    /// The share of `to_add` that falls to one ReplicaSet when a rollout is scaled in its middle.
    pub fn proportion(&self, set: &ReplicaSet, status_replicas: i32, to_add: i32, added: i32) -> i32 {
        if size(set) == 0 || to_add == 0 || to_add == added {
            return 0;
        }
        let fraction = self.fraction(set, status_replicas);
        let allowed = to_add - added;
        if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
    }

    fn fraction(&self, set: &ReplicaSet, status_replicas: i32) -> i32 {
        if self.replicas == 0 {
            return -size(set);
        }
        let annotated = meta::annotation_number(&set.metadata, MAX).filter(|n| *n != 0);
        let before = annotated.unwrap_or(i64::from(status_replicas));
        if before == 0 {
            return 0;
        }
        let scaled = f64::from(size(set)) * f64::from(self.replicas + self.max_surge) / before as f64;
        // Saturates; sizes are far below.
        scaled.round() as i32 - size(set)
    }
}

fn scaled(value: &IntOrString, replicas: i32, round_up: bool) -> i32 {
    meta::scaled(value, replicas, round_up)
}

/// `spec.replicas`.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// `status.availableReplicas`.
pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// `status.replicas`.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}
