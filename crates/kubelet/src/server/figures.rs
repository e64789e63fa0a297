//! `/stats/summary` and `/pods`: what runs here and what it uses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use runtime::Stats;
use serde_json::{Value, json};

use super::Server;
use crate::pod;

/// CPU use is measured over so long a time.
const WINDOW: Duration = Duration::from_millis(500);

/// The summary document: node and Pods with cpu and memory of their containers. The node's figures are the machine's,
/// as its capacity is.
pub(super) async fn summary(server: &Server) -> Value {
    let (machine, before, since) = (cpu_of_machine(), usage(server).await, Instant::now());
    tokio::time::sleep(WINDOW).await;
    let (machine_now, after, nanos) = (cpu_of_machine(), usage(server).await, since.elapsed().as_nanos());
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let cpu = |total: u64, then: u64| {
        let rate = u128::from(total.saturating_sub(then)) * 1_000_000_000 / nanos.max(1);
        json!({"time": now, "usageNanoCores": rate, "usageCoreNanoSeconds": total})
    };
    let mut pods = Vec::new();
    for view in server.directory.pods() {
        let mut containers = Vec::new();
        for (name, known) in &view.containers {
            let Some(stats) = known.id.as_ref().and_then(|id| after.get(id)) else { continue };
            let then = known.id.as_ref().and_then(|id| before.get(id));
            // A container that is new in this window has used all of its time in it.
            containers.push(json!({
                "name": name,
                "cpu": cpu(stats.cpu_nanos, then.map_or(0, |s| s.cpu_nanos)),
                "memory": {"time": now, "workingSetBytes": stats.memory_bytes, "usageBytes": stats.memory_usage_bytes},
            }));
        }
        pods.push(json!({
            "podRef": {"name": pod::name(&view.pod), "namespace": pod::namespace(&view.pod), "uid": pod::uid(&view.pod)},
            "containers": containers,
        }));
    }
    let node = json!({
        "nodeName": server.agent.config.node_name,
        "cpu": cpu(machine_now, machine),
        "memory": {"time": now, "workingSetBytes": memory_of_machine()},
    });
    json!({"node": node, "pods": pods})
}

/// What every container of this node has used so far, by its id.
async fn usage(server: &Server) -> BTreeMap<String, Stats> {
    let mut out = BTreeMap::new();
    for view in server.directory.pods() {
        for id in view.containers.values().filter_map(|known| known.id.clone()) {
            if let Ok(stats) = server.agent.containers.stats(&id).await {
                out.insert(id, stats);
            }
        }
    }
    out
}

/// Nanoseconds that all processors together were busy since the machine started (proc(5), `/proc/stat`).
fn cpu_of_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy(&text) * NANOS_PER_TICK
}

/// `/proc/stat` counts in hundredths of a second on every architecture of ours.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Ticks of the first line without those of idling and of waiting for disks; guests' are part of users'.
fn busy(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or_default();
    let fields = first.split_whitespace().skip(1).take(8).enumerate();
    fields.filter(|(i, _)| !matches!(i, 3 | 4)).filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum()
}

/// Bytes in use that could not be had at once for something else.
fn memory_of_machine() -> u64 {
    used(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn used(meminfo: &str) -> u64 {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, available) = (field("MemTotal:").unwrap_or(0), field("MemAvailable:").unwrap_or(0));
    total.saturating_sub(available) * 1024
}

/// All Pods of this node.
pub(super) fn pods(server: &Server) -> Value {
    let items: Vec<Value> =
        server.directory.pods().iter().filter_map(|v| serde_json::to_value(&*v.pod).ok()).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_machine() {
        assert_eq!(busy("cpu  10 1 5 1000 7 2 3 4 9 9\ncpu0 1 1 1 1\n"), 25);
        assert_eq!(used("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n"), 60 * 1024);
        assert_eq!((busy(""), used("")), (0, 0));
    }
}
