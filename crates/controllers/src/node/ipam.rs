//! Each node gets a part of the cluster's Pod addresses, one per IP family: `spec.podCIDRs`.

use std::collections::{HashMap, HashSet};

use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::Patch;
use parking_lot::Mutex;
use serde_json::json;

use crate::kit::{Context, Doing, Error, patch, unless_gone};
use crate::meta;

const COMPONENT: &str = "cidrAllocator";

/// Runs the allocator until the stop.
pub(crate) async fn run(ctx: Context) {
    if ctx.ready(&ctx.informers.nodes).await.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    // What was given out and may not show in the cache yet, by node.
    let given: Mutex<HashMap<String, Vec<IpNet>>> = Mutex::default();
    let forget = |change: &Change<Node>| match change {
        Change::Applied { new, .. } => needs_cidr(new).then(|| ObjectKey::of(&**new)),
        Change::Deleted(node) => {
            given.lock().remove(meta::name(&node.metadata));
            None
        }
    };
    tokio::join!(
        ctx.feed(&ctx.informers.nodes, &queue, forget),
        // One at a time: two nodes must not get the same part.
        ctx.work(COMPONENT, 1, &queue, |key| reconcile(&ctx, &given, key)),
    );
}

fn needs_cidr(node: &Node) -> bool {
    cidrs(node).next().is_none() && !meta::deleting(&node.metadata)
}

fn cidrs(node: &Node) -> impl Iterator<Item = IpNet> {
    let spec = node.spec.as_ref();
    let one = spec.and_then(|s| s.pod_cidr.as_ref()).into_iter();
    let all = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten();
    one.chain(all).filter_map(|text| text.parse().ok())
}

/// The first part of `cluster` that overlaps nothing in use.
fn free(cluster: IpNet, mask: u8, used: &HashSet<IpNet>) -> Option<IpNet> {
    let overlaps = |part: &IpNet| used.iter().any(|u| u.contains(part) || part.contains(u));
    cluster.subnets(mask).ok()?.find(|part| !used.contains(part) && !overlaps(part))
}

async fn reconcile(
    ctx: &Context,
    given: &Mutex<HashMap<String, Vec<IpNet>>>,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let Some(node) = ctx.informers.nodes.get_key(&key).filter(|n| needs_cidr(n)) else {
        return Ok(Outcome::Done);
    };
    let others = ctx.informers.nodes.list();
    let known = given.lock().get(&key.name).cloned();
    let parts = known.or_else(|| {
        let mut used: HashSet<IpNet> = given.lock().values().flatten().copied().collect();
        used.extend(others.iter().flat_map(|n| cidrs(n)));
        // All or nothing: Pods get an address of each family.
        ctx.config.cluster_cidrs.iter().map(|(cluster, mask)| free(*cluster, *mask, &used)).collect()
    });
    let Some(parts) = parts else {
        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
        ctx.recorder.normal(COMPONENT, Regarding::node(&key.name), "CIDRNotAvailable", message);
        // A deleted node frees its part; that is rare enough to look again now and then.
        return Ok(Outcome::After(std::time::Duration::from_secs(60)));
    };
    given.lock().insert(key.name.clone(), parts.clone());
    let api: Api<Node> = Api::all(ctx.client.clone());
    let change = json!({
        "metadata": {"uid": node.metadata.uid},
        "spec": {"podCIDR": parts.first(), "podCIDRs": parts},
    });
    unless_gone(api.patch(&key.name, &patch(), &Patch::Merge(change)).await)
        .doing("set the pod addresses of node", &key)?;
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn parts_do_not_overlap_and_end() {
        let cluster: IpNet = "10.244.0.0/22".parse().unwrap();
        let mut used: HashSet<IpNet> = ["10.244.1.128/25".parse().unwrap()].into();
        let mut got = Vec::new();
        while let Some(part) = free(cluster, 24, &used) {
            got.push(part.to_string());
            used.insert(part);
        }
        assert_eq!(got, ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
    }
}
