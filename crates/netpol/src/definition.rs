//! The CustomResourceDefinition by which the cluster has ClusterNetworkPolicies: upstream's object, fields, limits and
//! columns.
//!
//! Of upstream's experimental fields there are node peers and named ports; domain names are not there, and refused.

use serde_json::{Value, json};

/// The most rules of a direction, peers and protocols of a rule, networks of a peer.
const MOST: usize = 25;

/// The object to apply; where policies are not enforced, whoever asks for one is told so.
pub fn definition(unenforced: Option<&str>) -> Value {
    let (group, plural) = ("policy.networking.k8s.io", "clusternetworkpolicies");
    let column = |name: &str, path: &str, kind: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let mut version = json!({
        "name": "v1alpha2", "served": true, "storage": true, "subresources": {"status": {}},
        "additionalPrinterColumns": [
            column("Tier", ".spec.tier", "string"), column("Priority", ".spec.priority", "string"),
            column("Age", ".metadata.creationTimestamp", "date")],
        "schema": {"openAPIV3Schema": schema()},
    });
    if let Some(warning) = unenforced {
        // The way of a definition to have a warning.
        version["deprecated"] = true.into();
        version["deprecationWarning"] = warning.into();
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/300"},
            "labels": {"app.kubernetes.io/managed-by": "skiff"},
        },
        "spec": {
            "group": group, "scope": "Cluster",
            "names": {"kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList", "plural": plural,
                "singular": "clusternetworkpolicy", "shortNames": ["cnp"]},
            "versions": [version],
        },
    })
}

fn schema() -> Value {
    let spec = json!({"type": "object", "required": ["priority", "subject", "tier"],
    "description": "What is to become of the connections of certain Pods.",
    "properties": {
        "tier": {"type": "string", "enum": ["Admin", "Baseline"],
            "description": "Admin is asked before NetworkPolicies, Baseline after them, about Pods that none selects."},
        "priority": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000,
            "description": "The lower, the earlier within the tier."},
        "subject": one_of(json!({"namespaces": selector(), "pods": pods()}),
            "The Pods that it applies to: all of certain namespaces, or certain Pods of them."),
        "ingress": rules("from", json!({"namespaces": selector(), "pods": pods()}), &[]),
        "egress": rules("to", json!({"namespaces": selector(), "pods": pods(), "nodes": selector(), "networks": networks()}),
            &[("!(self.to.exists(peer, has(peer.networks) || has(peer.nodes)) && has(self.protocols) && \
                self.protocols.exists(protocol, has(protocol.destinationNamedPort)))",
                "networks/nodes peer cannot be set with namedPorts since there are no namedPorts for networks/nodes")]),
    }});
    json!({"type": "object", "required": ["metadata", "spec"],
    "description": "ClusterNetworkPolicy says for the whole cluster who may talk to whom.",
    "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": spec, "status": status(),
    }})
}

/// An object of which exactly one field is set.
fn one_of(properties: Value, description: &str) -> Value {
    json!({"type": "object", "minProperties": 1, "maxProperties": 1, "properties": properties, "description": description})
}

fn rules(peers: &str, kinds: Value, checks: &[(&str, &str)]) -> Value {
    let checks: Vec<Value> =
        checks.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect();
    let mut rule = json!({"type": "object", "required": ["action", peers], "properties": {
        "name": {"type": "string", "maxLength": 100, "description": "What explanations call this rule."},
        "action": {"type": "string", "enum": ["Accept", "Deny", "Pass"],
            "description": "Accept and Deny decide in this direction; Pass leaves it to the next tier."},
        peers: {"type": "array", "minItems": 1, "maxItems": MOST,
            "items": one_of(kinds, "Who is at the other end.")},
        "protocols": {"type": "array", "minItems": 1, "maxItems": MOST, "items": protocol(),
            "description": "The destination's ports; every one when missing."},
    }});
    if !checks.is_empty() {
        rule["x-kubernetes-validations"] = checks.into();
    }
    json!({"type": "array", "maxItems": MOST, "items": rule,
        "description": "The first rule that means a connection decides."})
}

fn selector() -> Value {
    json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {
            "type": "object", "required": ["key", "operator"], "properties": {
                "key": {"type": "string"}, "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                "values": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string"}}}}},
    }})
}

fn pods() -> Value {
    json!({"type": "object", "required": ["podSelector"],
        "properties": {"namespaceSelector": selector(), "podSelector": selector()}})
}

fn networks() -> Value {
    json!({"type": "array", "x-kubernetes-list-type": "set", "minItems": 1, "maxItems": MOST, "items": {
        "type": "string", "maxLength": 43,
        "x-kubernetes-validations": [{"rule": "isCIDR(self)", "message": "Invalid CIDR format provided"}]}})
}

fn protocol() -> Value {
    let number = || json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535});
    let range = json!({"type": "object", "required": ["end", "start"],
        "properties": {"start": number(), "end": number()},
        "x-kubernetes-validations": [{"rule": "self.start < self.end", "message": "Start port must be less than End port"}]});
    let ports = || {
        let port = one_of(json!({"number": number(), "range": range}), "A number, or a range of them.");
        json!({"type": "object", "minProperties": 1, "properties": {"destinationPort": port}})
    };
    let kinds = json!({"tcp": ports(), "udp": ports(), "sctp": ports(),
        "destinationNamedPort": {"type": "string", "description": "As containers of the destination call it."}});
    one_of(kinds, "A protocol's ports, or a port by its name.")
}

fn status() -> Value {
    let text = |most: usize| json!({"type": "string", "maxLength": most});
    json!({"type": "object", "required": ["conditions"], "properties": {"conditions": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {
            "type": "object", "required": ["lastTransitionTime", "message", "reason", "status", "type"], "properties": {
                "type": text(316), "reason": text(1024), "message": text(32768),
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time"}}}}}})
}
