//! Reads the objects as the API has them, and shares nothing with what it judges.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{Cell, Objects, address, named_ports, namespace_of};

pub fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|e| {
            let value = labels.get(e["key"].as_str().unwrap());
            let listed = || e["values"].as_array().unwrap().contains(value.unwrap());
            match e["operator"].as_str().unwrap() {
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                "In" => value.is_some() && listed(),
                _ => value.is_none() || !listed(),
            }
        })
}

fn covers(cidr: &Value, pod: usize) -> bool {
    let (net, bits) = cidr.as_str().unwrap().split_once('/').unwrap();
    let shift = 32 - bits.parse::<u32>().unwrap();
    let cut = |addr: Ipv4Addr| u64::from(addr.to_bits()) >> shift;
    cut(net.parse().unwrap()) == cut(address(pod))
}

fn is_port(port: &Value, cell: Cell) -> bool {
    let (_, to, protocol, number) = cell;
    if port.get("protocol").map_or("TCP", |p| p.as_str().unwrap()) != protocol {
        return false;
    }
    match &port["port"] {
        Value::Null => true,
        Value::String(name) => named_ports(to).as_array().unwrap().iter().any(|own| {
            own["name"] == **name && own["containerPort"] == number && own["protocol"] == protocol
        }),
        first => {
            let first = first.as_u64().unwrap();
            (first..=port.get("endPort").map_or(first, |end| end.as_u64().unwrap())).contains(&number.into())
        }
    }
}

fn any(list: &Value, is: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_none_or(|items| items.is_empty() || items.iter().any(is))
}

/// One direction of a cell.
pub struct Side<'a> {
    objects: &'a Objects,
    cell: Cell,
    ingress: bool,
}

impl<'a> Side<'a> {
    pub fn new(objects: &'a Objects, cell: Cell, ingress: bool) -> Self {
        Self { objects, cell, ingress }
    }

    fn words(&self) -> (&'static str, &'static str, &'static str) {
        if self.ingress { ("ingress", "from", "Ingress") } else { ("egress", "to", "Egress") }
    }

    /// The policies that speak of it.
    pub fn speaking(&self) -> impl Iterator<Item = &'a Value> {
        let own = if self.ingress { self.cell.1 } else { self.cell.0 };
        let (ingress, kind, objects) = (self.ingress, self.words().2, self.objects);
        objects.policies.iter().filter(move |policy| {
            let spec = &policy["spec"];
            let default = ingress || spec.get("egress").is_some();
            let types = spec["policyTypes"].as_array();
            policy["metadata"]["namespace"] == namespace_of(own)
                && selects(&spec["podSelector"], &objects.pod_labels[own])
                && types.map_or(default, |types| types.contains(&json!(kind)))
        })
    }

    pub fn is_peer(&self, peer: &Value, namespace: &Value) -> bool {
        let other = if self.ingress { self.cell.0 } else { self.cell.1 };
        if let Some(block) = peer.get("ipBlock") {
            let mut except = block["except"].as_array().into_iter().flatten();
            return covers(&block["cidr"], other) && !except.any(|hole| covers(hole, other));
        }
        let there = match peer.get("namespaceSelector") {
            Some(selector) => selects(selector, &self.objects.namespace_labels[namespace_of(other)]),
            None => namespace_of(other) == namespace,
        };
        there
            && peer
                .get("podSelector")
                .is_none_or(|selector| selects(selector, &self.objects.pod_labels[other]))
    }

    /// Whether that rule, or only that peer and that port of it, lets the cell pass.
    pub fn admits(&self, policy: &Value, rule: usize, peer: Option<usize>, port: Option<usize>) -> bool {
        let (rules, peers, _) = self.words();
        let rule = &policy["spec"][rules][rule];
        let namespace = &policy["metadata"]["namespace"];
        let at_peer = match peer {
            Some(peer) => self.is_peer(&rule[peers][peer], namespace),
            None => any(&rule[peers], |peer| self.is_peer(peer, namespace)),
        };
        let at_port = match port {
            Some(port) => is_port(&rule["ports"][port], self.cell),
            None => any(&rule["ports"], |port| is_port(port, self.cell)),
        };
        at_peer && at_port
    }

    pub fn allows(&self) -> bool {
        let enforced = self.speaking().any(|policy| !is_audited(policy));
        !enforced || self.is_permitted()
    }

    /// Whether some rule lets it pass, be its policy enforced or not.
    pub fn is_permitted(&self) -> bool {
        let rules = self.words().0;
        self.speaking().any(|policy| {
            let count = policy["spec"][rules].as_array().map_or(0, Vec::len);
            (0..count).any(|rule| self.admits(policy, rule, None, None))
        })
    }
}

/// Whether a policy drops nothing.
pub fn is_audited(policy: &Value) -> bool {
    policy["metadata"]["annotations"]["skiff.dev/audit"] == "true"
}

pub fn allows(objects: &Objects, cell: Cell) -> bool {
    Side::new(objects, cell, false).allows() && Side::new(objects, cell, true).allows()
}
