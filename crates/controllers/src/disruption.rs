//! PodDisruptionBudgets: how many of a budget's Pods may go now.

use std::sync::Arc;

use client::{Change, Informer, ObjectKey, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::SelectorExt;
use std::time::Duration;

use crate::kit::{Context, Doing, Error, post, unless_gone};
use crate::{meta, pods};

const COMPONENT: &str = "controllermanager";
/// How long an eviction that the server let through counts though its Pod is not going yet.
const EVICTION_TIMEOUT: i64 = 120;

/// Runs the disruption controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.budgets),
        ctx.ready(&informers.pods),
        ctx.ready(&informers.replica_sets),
        ctx.ready(&informers.deployments),
        ctx.ready(&informers.stateful_sets),
        ctx.ready(&informers.controllers)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    tokio::join!(
        ctx.feed(&informers.budgets, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.pods, &queue, |change| budgets_of(&informers.budgets, change)),
        ctx.work("disruption-controller", 2, &queue, |key| reconcile(&ctx, key)),
    );
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref()).and_then(meta::selector);
    selector.is_some_and(|s| s.matches(meta::labels(&pod.metadata)))
}

fn budgets_of(budgets: &Informer<PodDisruptionBudget>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let pod = change.object();
    let old = match change {
        Change::Applied { old, .. } => old.as_ref(),
        Change::Deleted(_) => None,
    };
    let all = budgets.list_in(meta::namespace(&pod.metadata)).into_iter();
    let touched = all.filter(|b| selects(b, pod) || old.is_some_and(|o| selects(b, o)));
    touched.map(|b| ObjectKey::of(&*b)).collect()
}

/// How many Pods the controllers behind these Pods want; `Err` names a Pod whose controller has no scale.
fn expected(ctx: &Context, pods: &[Arc<Pod>]) -> Result<i32, String> {
    let mut scales = std::collections::BTreeMap::new();
    for pod in pods {
        let namespace = meta::namespace(&pod.metadata);
        let name = meta::name(&pod.metadata);
        let Some(owner) = meta::controller_of(&pod.metadata) else {
            return Err(format!("found no controllers for pod \"{name}\""));
        };
        let informers = &ctx.informers;
        let scale = match owner.kind.as_str() {
            "ReplicaSet" => informers.replica_sets.get(namespace, &owner.name).and_then(|set| {
                let above = meta::controller_of(&set.metadata).filter(|r| r.kind == "Deployment");
                let above = above.and_then(|r| informers.deployments.get(namespace, &r.name));
                match above {
                    Some(d) => Some((d.metadata.uid.clone(), d.spec.as_ref()?.replicas)),
                    None => Some((set.metadata.uid.clone(), set.spec.as_ref()?.replicas)),
                }
            }),
            "StatefulSet" => informers
                .stateful_sets
                .get(namespace, &owner.name)
                .and_then(|s| Some((s.metadata.uid.clone(), s.spec.as_ref()?.replicas))),
            "ReplicationController" => informers
                .controllers
                .get(namespace, &owner.name)
                .and_then(|s| Some((s.metadata.uid.clone(), s.spec.as_ref()?.replicas))),
            _ => None,
        };
        let Some((uid, replicas)) = scale else {
            return Err(format!("{} does not implement the scale subresource", owner.kind));
        };
        scales.insert(uid, replicas.unwrap_or(1));
    }
    Ok(scales.values().sum())
}

/// Pods expected and Pods that must stay healthy.
fn bounds(
    budget: &PodDisruptionBudget,
    pods: i32,
    expected: impl Fn() -> Result<i32, String>,
) -> Result<(i32, i32), String> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let spec = budget.spec.clone().unwrap_or_default();
    match (spec.max_unavailable, spec.min_available) {
        (Some(max), _) => {
            let expected = expected()?;
            Ok((expected, (expected - meta::scaled(&max, expected, true)).max(0)))
        }
        (None, Some(IntOrString::Int(min))) => Ok((pods, min)),
        (None, Some(percent)) => {
            let expected = expected()?;
            Ok((expected, meta::scaled(&percent, expected, true)))
        }
        (None, None) => Ok((pods, 0)),
    }
}

/// The status of a budget over its Pods.
fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    bounds: Result<(i32, i32), String>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, at| {
        let there = pods.iter().find(|p| meta::name(&p.metadata) == name);
        there.is_some_and(|p| !meta::deleting(&p.metadata))
            && at.0.as_second() + EVICTION_TIMEOUT > now.as_second()
    });
    let healthy = pods
        .iter()
        .filter(|p| pods::active(p) && pods::ready(p) && !disrupted.contains_key(meta::name(&p.metadata)));
    let current_healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let (expected_pods, desired_healthy, allowed, failure) = match bounds {
        Ok((expected, desired)) => {
            let allowed = if expected <= 0 { 0 } else { (current_healthy - desired).max(0) };
            (expected, desired, allowed, None)
        }
        Err(why) => (0, 0, 0, Some(why)),
    };
    let (value, reason) = match (&failure, allowed) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, 0) => ("False", "InsufficientPods"),
        (None, _) => ("True", "SufficientPods"),
    };
    let known = old.conditions.iter().flatten().find(|c| c.type_ == "DisruptionAllowed" && c.status == value);
    let condition = Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: failure.unwrap_or_default(),
        observed_generation: budget.metadata.generation,
        last_transition_time: known.map_or_else(|| meta::time(now), |c| c.last_transition_time.clone()),
    };
    PodDisruptionBudgetStatus {
        conditions: Some(vec![condition]),
        current_healthy,
        desired_healthy,
        disruptions_allowed: allowed,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        expected_pods,
        observed_generation: budget.metadata.generation,
    }
}

async fn reconcile(ctx: &Context, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(budget) = ctx.informers.budgets.get_key(&key) else { return Ok(Outcome::Done) };
    let mut pods = ctx.informers.pods.list_in(&key.namespace);
    pods.retain(|pod| selects(&budget, pod));
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let bounds = bounds(&budget, count, || expected(ctx, &pods));
    if let Err(why) = &bounds {
        let regarding = client::Regarding::of(&*budget);
        let message = format!("Failed to calculate the number of expected pods: {why}");
        ctx.recorder.warning(COMPONENT, regarding, "CalculateExpectedPodCountFailed", message);
    }
    let status = status(&budget, &pods, bounds, Timestamp::now());
    let waiting = status.disrupted_pods.is_some();
    if budget.status.as_ref() != Some(&status) {
        // A full update of this very version: an eviction may have written meanwhile.
        let changed = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
        let api = ctx.api::<PodDisruptionBudget>(&key.namespace);
        let written = api.replace_status(&key.name, &post(), &changed).await;
        unless_gone(written).doing("write status of disruption budget", &key)?;
    }
    Ok(if waiting { Outcome::After(Duration::from_secs(10)) } else { Outcome::Done })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::fixtures::pod;
    use serde_json::json;

    #[test]
    fn disruptions_allowed() {
        let now = Timestamp::from_second(100).unwrap();
        let pods: Vec<Arc<Pod>> =
            [pod("a").ready_at(1), pod("b").ready_at(1), pod("c").ready_at(1), pod("d").running()]
                .into_iter()
                .map(|p| Arc::new(p.build()))
                .collect();
        let check = |spec: serde_json::Value, expected: Result<i32, String>| {
            let budget: PodDisruptionBudget =
                serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let status = status(&budget, &pods, bounds(&budget, 4, || expected.clone()), now);
            let reason = status.conditions.unwrap()[0].reason.clone();
            (status.current_healthy, status.desired_healthy, status.disruptions_allowed, reason)
        };
        assert_eq!(check(json!({"minAvailable": 2}), Ok(4)), (3, 2, 1, "SufficientPods".into()));
        assert_eq!(check(json!({"maxUnavailable": 1}), Ok(4)), (3, 3, 0, "InsufficientPods".into()));
        assert_eq!(check(json!({"minAvailable": "50%"}), Ok(5)), (3, 3, 0, "InsufficientPods".into()));
        assert_eq!(check(json!({"maxUnavailable": "50%"}), Err("no".into())), (3, 0, 0, "SyncFailed".into()));
    }
}
