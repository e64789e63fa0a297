#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::sync::Arc;

use super::*;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

fn node(name: &str, spec: Value) -> Arc<Node> {
    let labels = json!({"kubernetes.io/hostname": name, "disk": "ssd", "zone": &name[..1], "cores": "4"});
    let node = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "3"}},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, on: Option<&str>, spec: Value) -> Arc<Pod> {
    let mut spec = spec;
    spec["containers"] = spec.get("containers").cloned().unwrap_or(json!([{"name": "c"}]));
    if let Some(on) = on {
        spec["nodeName"] = json!(on);
    }
    let pod = json!({"metadata": {"name": name, "namespace": "ns", "labels": {"app": name}}, "spec": spec});
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// The reasons why a Pod of this spec does not go on the first of two empty nodes, with `there` running on it.
fn reasons(node_spec: Value, there: Vec<Arc<Pod>>, spec: Value) -> String {
    let all = Snapshot::new([node("a1", node_spec), node("b1", json!({}))], there);
    match filter(&pod("new", None, spec), &all.nodes["a1"], &all, &NamespaceLabels::new()) {
        Ok(()) => "fits".into(),
        Err(Unfit(reasons)) => reasons.join("; "),
    }
}

fn near(kind: &str, app: &str, key: &str) -> Value {
    let term = json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key}]);
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}}})
}

#[test]
fn each_rule_in_upstreams_words() {
    let taint = || json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
    let cpu = |n: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": n}}}]});
    let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]});
    let expression = |key: &str, op: &str, values: Value| {
        let term = json!({"matchExpressions": [{"key": key, "operator": op, "values": values}]});
        let required = json!({"nodeSelectorTerms": [term]});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
    };
    let on = |name: &str, spec: Value| vec![pod(name, Some("a1"), spec)];
    let many = || (0..3).map(|i| pod(&format!("p{i}"), Some("a1"), json!({}))).collect::<Vec<_>>();
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    let table: Vec<(Value, Vec<Arc<Pod>>, Value, &str)> = vec![
        (json!({}), vec![], json!({}), "fits"),
        (json!({"unschedulable": true}), vec![], json!({}), "node(s) were unschedulable"),
        (taint(), vec![], json!({}), "node(s) had untolerated taint(s): {gpu: yes}"),
        (taint(), vec![], json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]}), "fits"),
        (taint(), vec![], json!({"tolerations": [{"key": "gpu", "value": "yes"}]}), "fits"),
        (
            taint(),
            vec![],
            json!({"tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}),
            "node(s) had untolerated taint(s): {gpu: yes}",
        ),
        (
            json!({}),
            vec![],
            json!({"nodeSelector": {"disk": "hdd"}}),
            "node(s) didn't match Pod's node affinity/selector",
        ),
        (json!({}), vec![], expression("cores", "Gt", json!(["3"])), "fits"),
        (
            json!({}),
            vec![],
            expression("cores", "Lt", json!(["3"])),
            "node(s) didn't match Pod's node affinity/selector",
        ),
        (json!({}), vec![], expression("disk", "NotIn", json!(["hdd"])), "fits"),
        (json!({}), vec![], cpu("1500m"), "Insufficient cpu"),
        (json!({}), on("old", cpu("600m")), cpu("500m"), "Insufficient cpu"),
        (json!({}), on("old", cpu("600m")), cpu("400m"), "fits"),
        (json!({}), many(), json!({}), "Too many pods"),
        (
            json!({}),
            on("old", port("")),
            port("10.0.0.1"),
            "node(s) didn't have free ports for the requested pod ports",
        ),
        (json!({}), on("old", port("10.0.0.2")), port("10.0.0.1"), "fits"),
        (json!({}), vec![], near("podAffinity", "db", "zone"), "node(s) didn't match pod affinity rules"),
        (json!({}), on("db", json!({})), near("podAffinity", "db", "zone"), "fits"),
        (json!({}), vec![], near("podAffinity", "new", "zone"), "fits"),
        (
            json!({}),
            on("db", json!({})),
            near("podAntiAffinity", "db", "zone"),
            "node(s) didn't match pod anti-affinity rules",
        ),
        (
            json!({}),
            on("db", near("podAntiAffinity", "new", "zone")),
            json!({}),
            "node(s) didn't satisfy existing pods anti-affinity rules",
        ),
        (json!({}), on("web", json!({})), spread, "node(s) didn't match pod topology spread constraints"),
    ];
    for (i, (node_spec, there, spec, expected)) in table.into_iter().enumerate() {
        assert_eq!(reasons(node_spec, there, spec), expected, "row {i}");
    }
}

#[test]
fn the_event_counts_reasons_over_nodes() {
    let unfit = [
        Unfit(vec!["Insufficient cpu".into(), "Insufficient memory".into()]),
        Unfit(vec!["Insufficient cpu".into()]),
        Unfit(vec!["node(s) were unschedulable".into()]),
    ];
    let text = message(&unfit);
    let expected =
        "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu. ";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(message(&[]), "no nodes available to schedule pods");
}

#[test]
fn ended_pods_hold_nothing() {
    let mut done = (*pod("old", Some("a1"), json!({}))).clone();
    done.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
    assert!(Snapshot::new([node("a1", json!({}))], [Arc::new(done)]).nodes["a1"].pods.is_empty());
}
