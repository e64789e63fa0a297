//! Definitions as people apply them: the Gateway API's, and a monitoring stack's, whose largest is too large for
//! client-side apply; by the real kubectl, client-side and server-side.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Fixture, Kubectl};
use serde_json::{Value, json};

const GATEWAY_API: &str = include_str!("data/gateway-api.yaml");
const KINDS: [&str; 3] = ["gatewayclasses", "gateways", "httproutes"];

async fn server() -> (Fixture, Kubectl) {
    let mut f = common::start().await;
    f.serve(0).await;
    let k = Kubectl { version: None, config: f.kubeconfig(), cache: f.dir.path().join("cache") };
    (f, k)
}

/// Served at once after they are accepted; kubectl is told so by its own wait.
fn established(k: &Kubectl, names: &[String]) {
    for name in names {
        k.run(&["wait", "--for=condition=Established", "--timeout=60s", &format!("crd/{name}")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_api() {
    let (_f, k) = server().await;
    let names: Vec<String> = KINDS.iter().map(|kind| format!("{kind}.gateway.networking.k8s.io")).collect();
    for (flags, first, again) in [
        (&["apply", "-f", "-"][..], "created", "unchanged"),
        (&["apply", "--server-side", "-f", "-"][..], "serverside-applied", "serverside-applied"),
    ] {
        for said in [first, again] {
            let out = k.feed(flags, GATEWAY_API);
            let expected: Vec<String> = names
                .iter()
                .map(|n| format!("customresourcedefinition.apiextensions.k8s.io/{n} {said}"))
                .collect();
            assert_eq!(out, expected.join("\n"));
        }
        established(&k, &names);
        routes(&k);
        k.run(&["delete", "crd", &names[0], &names[1], &names[2], "--timeout=60s"]);
    }
}

/// Objects of the kinds: defaults, rules, immutability, columns.
fn routes(k: &Kubectl) {
    let class = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: skiff}
spec: {controllerName: example.com/gateway}
";
    assert_eq!(k.feed(&["create", "-f", "-"], class), "gatewayclass.gateway.networking.k8s.io/skiff created");
    let changed = k.fail(&["apply", "-f", "-"], &class.replace("example.com/gateway", "example.com/other"));
    assert!(
        changed.contains("spec.controllerName: Invalid value: \"string\": Value is immutable"),
        "{changed}"
    );
    let table = k.run(&["get", "gc"]);
    assert!(table.starts_with("NAME    CONTROLLER            ACCEPTED   AGE"), "{table}");

    let gateway = |listeners: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: web, namespace: default}}\n\
             spec: {{gatewayClassName: skiff, listeners: [{listeners}]}}\n"
        )
    };
    let http = "{name: http, port: 80, protocol: HTTP}";
    for (listeners, why) in [
        (
            "{name: a, port: 80, protocol: HTTP, tls: {certificateRefs: [{name: c}]}}",
            "tls must not be specified for protocols",
        ),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}",
            "tls mode must be Terminate for protocol HTTPS",
        ),
        (
            "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}",
            "Combination of port, protocol and hostname must be unique",
        ),
        (
            "{name: a, port: 0, protocol: HTTP}",
            "spec.listeners[0].port in body should be greater than or equal to 1",
        ),
    ] {
        let refused = k.fail(&["create", "-f", "-"], &gateway(listeners));
        assert!(refused.contains(why), "{refused}");
    }
    k.feed(&["create", "-f", "-"], &gateway(http));
    let from = "jsonpath={.spec.listeners[0].allowedRoutes.namespaces.from} {.apiVersion}";
    assert_eq!(
        k.run(&["get", "gateways.v1beta1.gateway.networking.k8s.io", "web", "-o", from]),
        "Same gateway.networking.k8s.io/v1beta1"
    );

    let route = |rule: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: default}}\n\
             spec: {{parentRefs: [{{name: web}}], rules: [{rule}]}}\n"
        )
    };
    for (rule, why) in [
        (
            "{matches: [{path: {type: Exact, value: nowhere}}]}",
            "value must be an absolute path and start with '/'",
        ),
        ("{matches: [{path: {value: '/a?b'}}]}", "must only contain valid characters"),
        ("{backendRefs: [{name: svc}]}", "Must have port for Service reference"),
        ("{filters: [{type: RequestRedirect}]}", "filter.requestRedirect must be specified"),
        (
            "{timeouts: {request: 1s, backendRequest: 2s}}",
            "backendRequest timeout cannot be longer than request timeout",
        ),
        (
            "{backendRefs: [{name: svc, port: 80}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}",
            "RequestRedirect filter must not be used together with backendRefs",
        ),
    ] {
        let refused = k.fail(&["create", "-f", "-"], &route(rule));
        assert!(refused.contains(why), "{rule}: {refused}");
    }
    k.feed(&["create", "-f", "-"], &route("{backendRefs: [{name: svc, port: 80}]}"));
    let path = "jsonpath={.spec.rules[0].matches[0].path.type} {.spec.rules[0].backendRefs[0].weight}";
    assert_eq!(k.run(&["get", "httproute", "r", "-o", path]), "PathPrefix 1");
    assert!(k.run(&["explain", "httproute.spec.rules.backendRefs.port"]).contains("<integer>"));
}

/// A schema of about so many nodes, with what operators' generators put into theirs.
fn schema(nodes: usize, depth: usize) -> Value {
    let text = "What this field means, at the length that generated descriptions have: a sentence or two about the default, the allowed values, and how it acts together with the other fields of the same object.";
    if depth == 0 || nodes < 8 {
        return json!({"type": "string", "description": text});
    }
    let mut properties = serde_json::Map::new();
    for i in 0..8 {
        let child = schema(nodes / 8, depth - 1);
        let field = match i {
            0 => {
                json!({"type": "array", "items": child, "description": text, "x-kubernetes-list-type": "atomic"})
            }
            1 => json!({"type": "object", "additionalProperties": {"type": "string"}, "description": text}),
            2 => {
                json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true,
                "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"})
            }
            3 => json!({"type": "integer", "format": "int32", "minimum": 0, "description": text}),
            _ => child,
        };
        properties.insert(format!("field{i}"), field);
    }
    json!({"type": "object", "description": text, "properties": properties})
}

fn definition(kind: &str, nodes: usize) -> Value {
    let plural = format!("{}s", kind.to_lowercase());
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.monitoring.example.com"), "annotations": {"controller-gen.kubebuilder.io/version": "v0.16.5"}},
        "spec": {"group": "monitoring.example.com", "scope": "Namespaced",
            "names": {"categories": ["monitoring"], "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"jsonPath": ".metadata.creationTimestamp", "name": "Age", "type": "date"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
                    "spec": schema(nodes, 5), "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitoring_stack() {
    let (_f, k) = server().await;
    let small = ["AlertmanagerConfig", "PodMonitor", "Probe", "PrometheusRule", "ServiceMonitor"];
    let small = json!({"apiVersion": "v1", "kind": "List", "items": small.map(|kind| definition(kind, 256))})
        .to_string();
    let large = definition("Prometheus", 12_000).to_string();
    assert!(large.len() > 300_000 && large.len() < 3_000_000, "{} bytes", large.len());
    let began = Instant::now();
    assert_eq!(k.feed(&["apply", "-f", "-"], &small).matches(" created").count(), 5);
    assert_eq!(k.feed(&["apply", "-f", "-"], &small).matches(" unchanged").count(), 5);
    // Its copy in the annotation is larger than annotations may be: as upstream says it.
    let refused = k.fail(&["apply", "-f", "-"], &large);
    assert!(
        refused.contains("metadata.annotations: Too long: may not be more than 262144 bytes"),
        "{refused}"
    );
    let applied = k.feed(&["apply", "--server-side", "-f", "-"], &large);
    assert!(applied.contains("prometheuss.monitoring.example.com serverside-applied"), "{applied}");
    established(
        &k,
        &["prometheuss.monitoring.example.com".into(), "servicemonitors.monitoring.example.com".into()],
    );
    let object = "apiVersion: monitoring.example.com/v1
kind: Prometheus
metadata: {name: main, namespace: default}
spec: {field2: 500m, field3: 1, field1: {a: b}}
";
    k.feed(&["apply", "-f", "-"], object);
    let wrong = k.fail(&["apply", "-f", "-"], &object.replace("field3: 1", "field3: -1"));
    assert!(wrong.contains("spec.field3 in body should be greater than or equal to 0"), "{wrong}");
    assert!(k.run(&["get", "monitoring", "-A"]).contains("main"));
    assert!(began.elapsed() < Duration::from_secs(120));
}
