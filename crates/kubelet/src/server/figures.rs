//! `/stats/summary` and `/pods`: what runs here and what it uses.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Server;
use crate::pod;

/// The summary document: node and Pods with cpu and memory of their containers.
pub(super) async fn summary(server: &Server) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut pods = Vec::new();
    for view in server.directory.pods() {
        let mut containers = Vec::new();
        for (name, known) in &view.containers {
            let Some(id) = &known.id else { continue };
            let Ok(stats) = server.agent.containers.stats(id).await else { continue };
            containers.push(json!({
                "name": name,
                "cpu": {"time": now, "usageCoreNanoSeconds": stats.cpu_nanos},
                "memory": {"time": now, "workingSetBytes": stats.memory_bytes, "usageBytes": stats.memory_usage_bytes},
            }));
        }
        pods.push(json!({
            "podRef": {"name": pod::name(&view.pod), "namespace": pod::namespace(&view.pod), "uid": pod::uid(&view.pod)},
            "containers": containers,
        }));
    }
    json!({"node": {"nodeName": server.agent.config.node_name}, "pods": pods})
}

/// All Pods of this node.
pub(super) fn pods(server: &Server) -> Value {
    let items: Vec<Value> =
        server.directory.pods().iter().filter_map(|v| serde_json::to_value(&*v.pod).ok()).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}
