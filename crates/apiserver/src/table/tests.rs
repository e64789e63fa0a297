//! Objects in, cells out.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

const NOW: &str = "2025-03-01T00:10:00Z";

fn shown(plural: &str, object: Value) -> String {
    let registry = crate::registry::Registry::new(crate::builtin::resources());
    let rows: Vec<_> = registry.versions.iter().flat_map(|v| &v.resources).collect();
    let row = rows.iter().find(|r| r.plural == plural).unwrap();
    let cells = (printer(row).cells)(&object, NOW.parse().unwrap());
    assert_eq!(cells.len(), printer(row).columns.len(), "{plural}");
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    cells.iter().map(text).collect::<Vec<_>>().join(" | ")
}

#[test]
fn durations() {
    for (seconds, expected) in [
        (-5, "<invalid>"),
        (-1, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (601, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_000, "3h3m"),
        (30_000, "8h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (86_400 * 8, "8d"),
        (86_400 * 729, "729d"),
        (86_400 * 731, "2y1d"),
        (86_400 * 365 * 9, "9y"),
    ] {
        assert_eq!(format::duration(seconds), expected, "{seconds}");
    }
}

fn pod(status: Value) -> Value {
    json!({
        "metadata": {"name": "p", "creationTimestamp": "2025-03-01T00:00:00Z"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n1",
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
        "status": status,
    })
}

#[test]
fn pod_states() {
    let running = |restarts: i64| json!({"ready": true, "restartCount": restarts, "state": {"running": {}}});
    let cases = [
        (json!({"phase": "Pending"}), "p | 0/3 | Pending | 0 | 10m | <none> | n1 | <none> | <none>"),
        (
            json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [running(0), running(2)],
                "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "s", "started": true, "ready": true, "state": {"running": {}}}]}),
            "p | 3/3 | Running | 2 | 10m | 10.0.0.1 | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [
                {"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"finishedAt": "2025-03-01T00:09:00Z"}}}]}),
            "p | 0/3 | CrashLoopBackOff | 4 (60s ago) | 10m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            "p | 0/3 | Init:0/2 | 0 | 10m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 1,
                "state": {"terminated": {"exitCode": 3}}}]}),
            "p | 0/3 | Init:ExitCode:3 | 1 | 10m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running(0),
                {"restartCount": 0, "state": {"terminated": {"reason": "Completed"}}}]}),
            "p | 1/3 | NotReady | 0 | 10m | <none> | n1 | <none> | <none>",
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
            "p | 0/3 | Signal:9 | 0 | 10m | <none> | n1 | <none> | <none>",
        ),
    ];
    for (status, expected) in cases {
        assert_eq!(shown("pods", pod(status.clone())), expected, "{status}");
    }
    let mut leaving = pod(json!({"phase": "Running"}));
    leaving["metadata"]["deletionTimestamp"] = NOW.into();
    assert!(shown("pods", leaving).contains("Terminating"));
}

#[test]
fn services_and_endpoints() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.7"],
        "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
        "selector": {"b": "2", "a": "1"}}});
    assert_eq!(
        shown("services", service),
        "s | LoadBalancer | 10.96.0.7 | <pending> | 80:30080/TCP,53/UDP | <unknown> | a=1,b=2"
    );
    let endpoints = json!({"metadata": {"name": "e"}, "subsets": [{
        "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"port": 80}, {"port": 443}]}]});
    assert_eq!(
        shown("endpoints", endpoints),
        "e | 10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more... | <unknown>"
    );
}

#[test]
fn workloads_and_others() {
    let deployment = json!({"metadata": {"name": "d", "creationTimestamp": "2025-03-01T00:09:00Z"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "nginx"}]}}},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}});
    assert_eq!(shown("deployments", deployment), "d | 2/3 | 3 | 2 | 60s | c | nginx | app=d");
    let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.33.0"},
            "addresses": [{"type": "InternalIP", "address": "192.168.49.2"}]}});
    assert_eq!(
        shown("nodes", node),
        "n | Ready,SchedulingDisabled | control-plane | <unknown> | v1.33.0 | 192.168.49.2 | <none> | <unknown> | <unknown> | <unknown>"
    );
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"},
        "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 50}}}]}});
    assert_eq!(
        shown("horizontalpodautoscalers", hpa),
        "h | Deployment/d | cpu: <unknown>/50% | <unset> | 5 | 0 | <unknown>"
    );
    let event = json!({"metadata": {"name": "e"}, "lastTimestamp": "2025-03-01T00:09:50Z", "type": "Normal",
        "reason": "Started", "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m\n", "count": 2,
        "source": {"component": "kubelet", "host": "n"}});
    assert_eq!(
        shown("events", event),
        "10s | Normal | Started | pod/p |  | kubelet, n | m | <unknown> | 2 | e"
    );
}

#[test]
fn every_kind_fills_its_columns() {
    let registry = crate::registry::Registry::new(crate::builtin::resources());
    for row in registry.versions.iter().flat_map(|v| &v.resources) {
        let cells = cells(row, &json!({"metadata": {"name": "x"}}));
        assert_eq!(cells.len(), printer(row).columns.len(), "{}", row.plural);
    }
}
