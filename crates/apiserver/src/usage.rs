//! `metrics.k8s.io/v1beta1`: what nodes and Pods use right now, for `kubectl top`.
//!
//! Nothing is stored: each request asks the kubelets concerned for `/stats/summary`, all at once. A node that does not
//! answer has no figures, as upstream's metrics-server has none of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::connect;
use crate::core::Call;
use crate::kinds::value::{list, name, namespace, text, unset};
use crate::resource::{GroupResource, Resource};
use crate::rest::answer::Answer;
use crate::rest::list::Filter;
use crate::status::Status;

/// The API group.
const GROUP: &str = "metrics.k8s.io";

/// The rows of the group.
pub fn resources() -> Vec<Resource> {
    let row = |kind, plural| {
        let mut row = Resource::new(GROUP, "v1beta1", kind, plural).only(&["get", "list"]);
        row.singular.clear();
        row
    };
    vec![row("NodeMetrics", "nodes").cluster(), row("PodMetrics", "pods")]
}

/// Whether a request is about figures that are measured, not about stored objects.
pub fn is_usage(row: &Resource) -> bool {
    row.group == GROUP
}

/// The verbs get and list.
///
/// # Errors
/// 404 for what is unknown or has no figures, 405 for a watch.
pub async fn answer(call: &Call) -> Result<Answer, Status> {
    if call.query.flag("watch") {
        return Err(Status::method_not_allowed());
    }
    let items = if call.row.namespaced { pods(call).await? } else { nodes(call).await? };
    if !call.name().is_empty() {
        let one = items.into_iter().next().ok_or_else(|| call.not_found(call.name()))?;
        return Ok(Answer::json(200, &one));
    }
    let list = json!({"kind": format!("{}List", call.row.kind), "apiVersion": call.row.api_version(),
        "metadata": {}, "items": items});
    Ok(Answer::json(200, &list))
}

/// The stored objects that the request is about.
async fn wanted(call: &Call) -> Result<Vec<Arc<Value>>, Status> {
    let resource = GroupResource::new("", &call.row.plural);
    if !call.name().is_empty() {
        let found = call.cx.objects.get(&resource, call.namespace(), call.name()).await?;
        return Ok(found.into_iter().collect());
    }
    let filter = Filter::of(call)?;
    let within = Some(call.namespace()).filter(|n| !n.is_empty());
    let (mut all, _) = call.cx.objects.list(&resource, within).await?;
    all.retain(|o| {
        filter.matches_key(call, &call.row.key(namespace(o), name(o))) && filter.matches_object(o)
    });
    Ok(all)
}

async fn summaries(call: &Call, nodes: impl IntoIterator<Item = String>) -> Vec<(String, Value)> {
    let ask = nodes.into_iter().map(async |node| {
        let summary = connect::kubelet_json(call, &node, "/stats/summary").await;
        summary
            .inspect_err(|status| tracing::debug!(node, why = status.message(), "a node has no figures"))
            .ok()
            .map(|summary| (node, summary))
    });
    join_all(ask).await.into_iter().flatten().collect()
}

async fn nodes(call: &Call) -> Result<Vec<Value>, Status> {
    let objects = wanted(call).await?;
    let summaries = summaries(call, objects.iter().map(|o| name(o).to_owned())).await;
    let figures = |object: &Value| {
        let (_, summary) = summaries.iter().find(|(node, _)| node == name(object))?;
        let mut out = head(call, object, &summary["node"]);
        out["usage"] = usage(&summary["node"])?;
        Some(out)
    };
    Ok(objects.iter().filter_map(|o| figures(o)).collect())
}

async fn pods(call: &Call) -> Result<Vec<Value>, Status> {
    let objects = wanted(call).await?;
    let nodes: BTreeSet<String> = objects.iter().map(|o| text(&o["spec"], "nodeName").to_owned()).collect();
    let summaries = summaries(call, nodes.into_iter().filter(|n| !n.is_empty())).await;
    let figures = |object: &Value| {
        let (_, summary) = summaries.iter().find(|(node, _)| *node == text(&object["spec"], "nodeName"))?;
        let is_it = |reference: &Value| {
            text(reference, "namespace") == namespace(object) && text(reference, "name") == name(object)
        };
        let pod = list(summary, "pods").iter().find(|p| is_it(&p["podRef"]))?;
        let measured = list(pod, "containers");
        let containers: Vec<Value> =
            measured.iter().filter_map(|c| Some(json!({"name": c["name"], "usage": usage(c)?}))).collect();
        let mut out = head(call, object, measured.first().filter(|_| !containers.is_empty())?);
        out["containers"] = containers.into();
        Some(out)
    };
    Ok(objects.iter().filter_map(|o| figures(o)).collect())
}

/// What an object of figures takes from the object that they are about, and when they were measured.
fn head(call: &Call, object: &Value, measured: &Value) -> Value {
    let time = measured["cpu"]["time"].clone();
    let mut metadata = json!({"name": name(object), "creationTimestamp": time});
    if call.row.namespaced {
        metadata["namespace"] = namespace(object).into();
    }
    if !unset(&object["metadata"]["labels"]) {
        metadata["labels"] = object["metadata"]["labels"].clone();
    }
    json!({"kind": call.row.kind, "apiVersion": call.row.api_version(), "metadata": metadata,
        "timestamp": time, "window": "500ms"})
}

/// A ResourceList of one entry of the summary.
fn usage(measured: &Value) -> Option<Value> {
    let cpu = measured["cpu"]["usageNanoCores"].as_u64()?;
    let memory = measured["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory / 1024)}))
}
