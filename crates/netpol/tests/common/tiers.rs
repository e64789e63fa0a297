//! Reads ClusterNetworkPolicies as the API has them, on top of the reading of NetworkPolicies, and shares nothing with
//! what it judges.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::reference::{Side, is_audited, selects};
use super::{Cell, Objects, address, named_ports, namespace_of};

/// A node as the tests have it: its labels, and a Pod's address for its own.
pub const NODES: [(&str, &str, usize); 2] = [("n1", "edge", 4), ("n2", "core", 7)];

fn is_pod(selector: &Value, pod: usize, objects: &Objects) -> bool {
    match (selector.get("namespaces"), selector.get("pods")) {
        (Some(namespaces), None) => selects(namespaces, &objects.namespace_labels[namespace_of(pod)]),
        (None, Some(pods)) => {
            let namespaces = pods.get("namespaceSelector").cloned().unwrap_or(json!({}));
            selects(&namespaces, &objects.namespace_labels[namespace_of(pod)])
                && selects(&pods["podSelector"], &objects.pod_labels[pod])
        }
        other => panic!("{other:?}"),
    }
}

fn is_peer(peer: &Value, pod: usize, objects: &Objects) -> bool {
    if let Some(networks) = peer["networks"].as_array() {
        return networks.iter().any(|net| {
            let (net, bits) = net.as_str().unwrap().split_once('/').unwrap();
            let mask = u32::MAX.checked_shl(32 - bits.parse::<u32>().unwrap()).unwrap_or(0);
            net.parse::<Ipv4Addr>().unwrap().to_bits() & mask == address(pod).to_bits() & mask
        });
    }
    if let Some(nodes) = peer.get("nodes") {
        return NODES.iter().any(|(_, role, at)| *at == pod && selects(nodes, &json!({"role": role})));
    }
    is_pod(peer, pod, objects)
}

fn is_protocol(protocol: &Value, (_, to, kind, number): Cell) -> bool {
    if let Some(name) = protocol.get("destinationNamedPort") {
        let named = named_ports(to);
        return named
            .as_array()
            .unwrap()
            .iter()
            .any(|own| own["name"] == *name && own["containerPort"] == number && own["protocol"] == kind);
    }
    let Some(of) = protocol.get(kind.to_lowercase()) else { return false };
    let port = &of["destinationPort"];
    match port.get("number") {
        Some(wanted) => *wanted == number,
        None => (port["range"]["start"].as_u64().unwrap()..=port["range"]["end"].as_u64().unwrap())
            .contains(&number.into()),
    }
}

/// Which rule of a tier decides about one direction of a cell: policy, place and action; none when no rule does.
pub fn decider(objects: &Objects, cell: Cell, ingress: bool, tier: &str) -> Option<(String, usize, String)> {
    let (own, other) = if ingress { (cell.1, cell.0) } else { (cell.0, cell.1) };
    let (rules, peers) = if ingress { ("ingress", "from") } else { ("egress", "to") };
    let mut policies: Vec<&Value> = objects
        .cluster_policies
        .iter()
        .filter(|p| p["spec"]["tier"] == tier && is_pod(&p["spec"]["subject"], own, objects))
        .collect();
    policies
        .sort_by_key(|p| (p["spec"]["priority"].as_i64().unwrap(), p["metadata"]["name"].as_str().unwrap()));
    for policy in policies {
        for (place, rule) in policy["spec"][rules].as_array().into_iter().flatten().enumerate() {
            let at_peer = rule[peers].as_array().unwrap().iter().any(|peer| is_peer(peer, other, objects));
            let protocols = rule["protocols"].as_array();
            if at_peer && protocols.is_none_or(|all| all.iter().any(|protocol| is_protocol(protocol, cell))) {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                return Some((text(&policy["metadata"]["name"]), place, text(&rule["action"])));
            }
        }
    }
    None
}

/// What one direction of a cell comes to.
pub fn direction(objects: &Objects, cell: Cell, ingress: bool) -> bool {
    let by_tier = |tier| match decider(objects, cell, ingress, tier) {
        Some((_, _, action)) if action == "Accept" => Some(true),
        Some((_, _, action)) if action == "Deny" => Some(false),
        _ => None,
    };
    if let Some(decided) = by_tier("Admin") {
        return decided;
    }
    let side = Side::new(objects, cell, ingress);
    if side.is_permitted() {
        return true;
    }
    if side.speaking().any(|policy| !is_audited(policy)) {
        return false;
    }
    by_tier("Baseline").unwrap_or(true)
}

pub fn allows(objects: &Objects, cell: Cell) -> bool {
    direction(objects, cell, false) && direction(objects, cell, true)
}
