//! Which nodes a Pod fits on, and in upstream's words why it does not fit on others.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration, TopologySpreadConstraint};

use crate::affinity::{self, NamespaceLabels};
use crate::resources;
use crate::snapshot::{HostPort, NodeInfo, Snapshot, host_ports};

/// The reasons of one node, as they are counted in `FailedScheduling`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit(pub Vec<String>);

/// Whether `pod` fits on `node`; all reasons if not.
///
/// # Errors
/// [`Unfit`] with at least one reason.
pub fn filter(pod: &Pod, node: &NodeInfo, all: &Snapshot, namespaces: &NamespaceLabels) -> Result<(), Unfit> {
    // As upstream, the first plugin that objects ends the check of this node.
    let checks: [&dyn Fn() -> Vec<String>; 8] = [
        &|| one(unschedulable(pod, node), "node(s) were unschedulable"),
        &|| one(is_elsewhere(pod, node), "node(s) didn't match the requested node name"),
        &|| {
            untolerated(pod, node)
                .map(|t| format!("node(s) had untolerated taint(s): {{{t}}}"))
                .into_iter()
                .collect()
        },
        &|| one(!affinity::node_admitted(pod, node), "node(s) didn't match Pod's node affinity/selector"),
        &|| {
            let free = "node(s) didn't have free ports for the requested pod ports";
            one(ports_clash(&host_ports(pod), &node.ports), free)
        },
        &|| lacking(pod, node),
        &|| spread(pod, node, all),
        &|| pods_apart(pod, node, all, namespaces).map(str::to_owned).into_iter().collect(),
    ];
    match checks.iter().map(|check| check()).find(|reasons| !reasons.is_empty()) {
        Some(reasons) => Err(Unfit(reasons)),
        None => Ok(()),
    }
}

fn one(objects: bool, reason: &str) -> Vec<String> {
    if objects { vec![reason.to_owned()] } else { Vec::new() }
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// Whether the toleration covers the taint (`Toleration.ToleratesTaint`).
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let same_value =
        || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            "Equal" => !key.is_empty() && same_value(),
            _ => false,
        }
}

fn taints(node: &NodeInfo) -> &[Taint] {
    node.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// The first taint that keeps the Pod off, as `key: value` for the message.
fn untolerated(pod: &Pod, node: &NodeInfo) -> Option<String> {
    let hard = taints(node).iter().filter(|t| t.effect == "NoSchedule" || t.effect == "NoExecute");
    let first = hard.into_iter().find(|taint| !tolerations(pod).iter().any(|t| tolerates(t, taint)))?;
    Some(format!("{}: {}", first.key, first.value.as_deref().unwrap_or_default()))
}

/// How many soft taints (`PreferNoSchedule`) the Pod does not tolerate.
pub fn soft_taints(pod: &Pod, node: &NodeInfo) -> i64 {
    let soft = taints(node).iter().filter(|t| t.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerations(pod).iter().any(|t| tolerates(t, taint))).count() as i64
}

fn unschedulable(pod: &Pod, node: &NodeInfo) -> bool {
    let closed = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    node.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true)
        && !tolerations(pod).iter().any(|t| tolerates(t, &closed))
}

fn is_elsewhere(pod: &Pod, node: &NodeInfo) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty() && n != node.name())
}

fn ports_clash(wanted: &[HostPort], taken: &[HostPort]) -> bool {
    let same = |(protocol, address, port): &HostPort, other: &HostPort| {
        *protocol == other.0
            && *port == other.2
            && (address.is_empty() || other.1.is_empty() || *address == other.1)
    };
    wanted.iter().any(|w| taken.iter().any(|t| same(w, t)))
}

fn lacking(pod: &Pod, node: &NodeInfo) -> Vec<String> {
    let too_much = |(name, wanted): &(String, i128)| {
        let used = node.requested.get(name).copied().unwrap_or(0);
        *wanted > 0 && used + wanted > node.allocatable.get(name).copied().unwrap_or(0)
    };
    let short = resources::of_pod(pod).into_iter().filter(too_much);
    short
        .map(|(name, _)| if name == "pods" { "Too many pods".into() } else { format!("Insufficient {name}") })
        .collect()
}

fn pods_apart(
    pod: &Pod,
    node: &NodeInfo,
    all: &Snapshot,
    namespaces: &NamespaceLabels,
) -> Option<&'static str> {
    let here = |key: &str, other: &NodeInfo| {
        let own = node.label(key);
        own.is_some() && own == other.label(key)
    };
    let near = affinity::required_near(pod);
    let satisfied = |term| {
        let key = |other: &NodeInfo| here(topology(term), other);
        all.pods().any(|(other, p)| key(other) && affinity::concerns(term, pod, p, namespaces))
    };
    if !near.iter().all(satisfied) && !is_first_of_its_kind(pod, node, all, namespaces) {
        return Some("node(s) didn't match pod affinity rules");
    }
    let repelled = |term| {
        all.pods()
            .any(|(other, p)| here(topology(term), other) && affinity::concerns(term, pod, p, namespaces))
    };
    if affinity::required_far(pod).iter().any(repelled) {
        return Some("node(s) didn't match pod anti-affinity rules");
    }
    let repels = all.pods().any(|(other, p)| {
        let mut terms = affinity::required_far(p).iter();
        terms.any(|t| here(topology(t), other) && affinity::concerns(t, p, pod, namespaces))
    });
    repels.then_some("node(s) didn't satisfy existing pods anti-affinity rules")
}

fn topology(term: &k8s_openapi::api::core::v1::PodAffinityTerm) -> &str {
    &term.topology_key
}

/// A Pod whose affinity is to its own kind may be the first: no Pod matches anywhere, and it matches itself.
fn is_first_of_its_kind(pod: &Pod, node: &NodeInfo, all: &Snapshot, namespaces: &NamespaceLabels) -> bool {
    affinity::required_near(pod).iter().all(|term| {
        node.label(&term.topology_key).is_some()
            && affinity::concerns(term, pod, pod, namespaces)
            && !all.pods().any(|(_, p)| affinity::concerns(term, pod, p, namespaces))
    })
}

fn spread(pod: &Pod, node: &NodeInfo, all: &Snapshot) -> Vec<String> {
    let constraints =
        pod.spec.as_ref().and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
    let hard = constraints.iter().filter(|c| c.when_unsatisfiable == "DoNotSchedule");
    hard.filter_map(|c| skewed(c, pod, node, all)).take(1).collect()
}

fn skewed(
    constraint: &TopologySpreadConstraint,
    pod: &Pod,
    node: &NodeInfo,
    all: &Snapshot,
) -> Option<String> {
    let refusal = "node(s) didn't match pod topology spread constraints";
    let Some(own) = node.label(&constraint.topology_key) else {
        return Some(format!("{refusal} (missing required label)"));
    };
    let counts = domain_counts(constraint, pod, all);
    let least = counts.values().copied().min().unwrap_or(0);
    let least = if counts.len() < constraint.min_domains.unwrap_or(1).max(1) as usize { 0 } else { least };
    let own = counts.get(own).copied().unwrap_or(0);
    (own + 1 - least > i64::from(constraint.max_skew)).then(|| refusal.to_owned())
}

/// Matching Pods per domain, over the nodes that the Pod's own node affinity admits.
pub fn domain_counts<'a>(
    constraint: &TopologySpreadConstraint,
    pod: &Pod,
    all: &'a Snapshot,
) -> BTreeMap<&'a str, i64> {
    let mut counts = BTreeMap::new();
    let none = BTreeMap::new();
    for info in all.nodes.values().filter(|info| affinity::node_admitted(pod, info)) {
        let Some(domain) = info.label(&constraint.topology_key) else { continue };
        let matching = info.pods.iter().filter(|p| {
            p.metadata.namespace == pod.metadata.namespace
                && p.metadata.deletion_timestamp.is_none()
                && constraint
                    .label_selector
                    .as_ref()
                    .is_some_and(|s| affinity::selects(s, p.metadata.labels.as_ref().unwrap_or(&none)))
        });
        *counts.entry(domain).or_default() += matching.count() as i64;
    }
    counts
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable. ...` (`FitError.Error`).
pub fn message(unfit: &[Unfit]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in unfit.iter().flat_map(|u| &u.0) {
        *counts.entry(reason).or_default() += 1;
    }
    let total = unfit.len();
    if total == 0 {
        return "no nodes available to schedule pods".into();
    }
    // Upstream sorts the finished texts, counts included.
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    let reasons = parts.join(", ");
    format!(
        "0/{total} nodes are available: {reasons}. preemption: 0/{total} nodes are available: {total} Preemption is not helpful for scheduling."
    )
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
