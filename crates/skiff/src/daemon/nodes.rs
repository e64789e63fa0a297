//! What the control plane does for `skiff node`: Pods move away before a node stops, and its Node object tells the truth
//! after it.
//!
//! As `kubectl drain` would: Pods that somebody makes anew elsewhere go, those of a DaemonSet and those that nobody would
//! replace stay and start again with the node. PodDisruptionBudgets are not asked: whoever stops a machine has decided.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;

use crate::control::{NodeChange, Reply};

/// On a node that we cordoned, so that starting it again only takes back what stopping it did.
const CORDONED: &str = "skiff.dev/cordoned-by-stop";
/// How long Pods may take to end: the default grace of 30 s, and some.
const PATIENCE: Duration = Duration::from_secs(45);

/// Does it; a node that the cluster does not know is fine.
///
/// # Errors
/// What the API server refused.
pub async fn change(
    client: &Client,
    node: &str,
    change: NodeChange,
    news: &UnboundedSender<Reply>,
) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(object) = nodes.get_opt(node).await.with_context(|| format!("read node {node}"))? else {
        return Ok(());
    };
    match change {
        NodeChange::Drain => {
            cordon(&nodes, &object).await?;
            move_pods(client, node, news).await
        }
        NodeChange::Stopped => stopped(&nodes, node).await,
        NodeChange::Started => uncordon(&nodes, &object).await,
        NodeChange::Deleted => forget(client, &nodes, node).await,
    }
}

async fn cordon(nodes: &Api<Node>, node: &Node) -> anyhow::Result<()> {
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return Ok(());
    }
    let change = json!({"metadata": {"annotations": {CORDONED: "true"}}, "spec": {"unschedulable": true}});
    patch(nodes, &node.name_any(), "cordon", change).await
}

async fn uncordon(nodes: &Api<Node>, node: &Node) -> anyhow::Result<()> {
    if !node.annotations().contains_key(CORDONED) {
        return Ok(());
    }
    let change = json!({"metadata": {"annotations": {CORDONED: null}}, "spec": {"unschedulable": null}});
    patch(nodes, &node.name_any(), "uncordon", change).await
}

async fn patch(nodes: &Api<Node>, node: &str, doing: &str, change: serde_json::Value) -> anyhow::Result<()> {
    let written = nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await;
    written.map(drop).with_context(|| format!("{doing} node {node}"))
}

/// Whether somebody will make this Pod anew, elsewhere.
fn moves(pod: &Pod) -> bool {
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    owner.is_some_and(|owner| owner.kind != "DaemonSet") && !matches!(phase, Some("Succeeded" | "Failed"))
}

async fn pods_of(client: &Client, node: &str) -> anyhow::Result<Vec<Pod>> {
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(client.clone()).list(&on_node).await;
    Ok(pods.with_context(|| format!("list the pods of node {node}"))?.items)
}

async fn move_pods(client: &Client, node: &str, news: &UnboundedSender<Reply>) -> anyhow::Result<()> {
    for pod in pods_of(client, node).await?.iter().filter(|pod| moves(pod)) {
        delete(client, pod, &DeleteParams::default()).await?;
    }
    let all_gone = async {
        loop {
            let left = pods_of(client, node).await?.iter().filter(|pod| moves(pod)).count();
            if left == 0 {
                return anyhow::Ok(());
            }
            // Whoever asked may have gone; the Pods move all the same.
            let _ = news.send(Reply::Detail(format!("{left} Pods are leaving")));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, all_gone).await {
        Ok(outcome) => outcome,
        Err(_) => {
            tracing::warn!("pods of node {node} did not end within {PATIENCE:?}; it stops all the same");
            Ok(())
        }
    }
}

async fn delete(client: &Client, pod: &Pod, options: &DeleteParams) -> anyhow::Result<()> {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let deleted = Api::<Pod>::namespaced(client.clone(), &namespace).delete(&name, options).await;
    gone_is_fine(deleted).with_context(|| format!("delete pod {namespace}/{name}"))
}

fn gone_is_fine<T>(outcome: kube::Result<T>) -> kube::Result<()> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// Without this, Services would send to the node's Pods until its silence is noticed, 40 seconds later.
async fn stopped(nodes: &Api<Node>, node: &str) -> anyhow::Result<()> {
    let condition = json!({
        "type": "Ready", "status": "Unknown", "reason": "NodeStopped",
        "message": format!("The node was stopped; start it again: skiff node start {node}"),
        "lastTransitionTime": Timestamp::now().to_string(),
    });
    let change = json!({"status": {"conditions": [condition]}});
    let written = nodes.patch_status(node, &PatchParams::default(), &Patch::Strategic(change)).await;
    written.map(drop).with_context(|| format!("write the status of node {node}"))
}

/// The Node object, and the Pods that only its agent could have ended.
async fn forget(client: &Client, nodes: &Api<Node>, node: &str) -> anyhow::Result<()> {
    gone_is_fine(nodes.delete(node, &DeleteParams::default()).await)
        .with_context(|| format!("delete node {node}"))?;
    let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    for pod in pods_of(client, node).await? {
        delete(client, &pod, &at_once).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn pod(owner: Option<&str>, phase: &str) -> Pod {
        let owners: Vec<_> = owner
            .map(|kind| json!({"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "1", "controller": true}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "p", "ownerReferences": owners}, "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn only_pods_that_somebody_replaces_elsewhere_move() {
        assert!(moves(&pod(Some("ReplicaSet"), "Running")));
        assert!(moves(&pod(Some("StatefulSet"), "Pending")));
        assert!(!moves(&pod(Some("DaemonSet"), "Running")));
        assert!(!moves(&pod(Some("Job"), "Succeeded")));
        assert!(!moves(&pod(None, "Running")));
    }
}
