//! Truth tables with ClusterNetworkPolicies: random ones of both tiers over random NetworkPolicies, what a reading of the
//! API's objects says of each connection and which rule decides, what the explanation says, and whether the connection
//! could be made on real packets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::dice::Dice;
use common::net::Cluster;
use common::{Cell, Objects, PORTS, address, cells, said, tiers};
use netpol::cluster::{ClusterNetworkPolicy, ClusterPolicy};
use netpol::sync::Kernel;
use netpol::verdict::Decision;
use netpol::{Desired, Direction};
use serde_json::{Value, json};

const CASES: u32 = 100;

/// Policies of the cluster out of a generator of everything else.
struct Makes<'a>(&'a mut Dice);

impl Makes<'_> {
    fn list(&mut self, least: u64, most: u64, mut item: impl FnMut(&mut Self) -> Value) -> Value {
        let count = least + self.0.below(most - least + 1);
        Value::Array((0..count).map(|_| item(self)).collect())
    }

    fn pods(&mut self) -> Value {
        match self.0.below(3) {
            0 => json!({"namespaces": self.0.namespace_selector()}),
            1 => json!({"pods": {"podSelector": self.0.pod_selector()}}),
            _ => {
                json!({"pods": {"namespaceSelector": self.0.namespace_selector(), "podSelector": self.0.pod_selector()}})
            }
        }
    }

    fn peer(&mut self, egress: bool) -> Value {
        let someone = address(usize::try_from(self.0.below(9)).unwrap());
        match self.0.below(if egress { 6 } else { 3 }) {
            4 => json!({"nodes": self.0.pick(&[json!({}), json!({"matchLabels": {"role": "edge"}})])}),
            5 => {
                // Networks may overlap and have host bits.
                json!({"networks": [format!("{someone}/{}", self.0.pick(&[28, 30, 32])), format!("{someone}/32")]})
            }
            _ => self.pods(),
        }
    }

    fn protocol(&mut self, named: bool) -> Value {
        let kind = self.0.pick(&["tcp", "tcp", "udp", "sctp"]);
        match self.0.below(if named { 4 } else { 3 }) {
            0 => json!({kind: {"destinationPort": {"range": {"start": 79, "end": self.0.pick(&[80, 81])}}}}),
            3 => json!({"destinationNamedPort": format!("{}-{kind}", self.0.pick(&PORTS).1)}),
            _ => json!({kind: {"destinationPort": {"number": self.0.pick(&[80, 81])}}}),
        }
    }

    fn rule(&mut self, egress: bool) -> Value {
        let peers = if egress { "to" } else { "from" };
        let mut rule = json!({"action": self.0.pick(&["Accept", "Deny", "Pass", "Deny"]), "name": "r"});
        rule[peers] = self.list(1, 2, |makes| makes.peer(egress));
        if self.0.below(2) == 0 {
            let by_place = |peer: &Value| peer.get("networks").or(peer.get("nodes")).is_some();
            let named = !rule[peers].as_array().unwrap().iter().any(by_place);
            rule["protocols"] = self.list(1, 2, |makes| makes.protocol(named));
        }
        rule
    }

    fn policy(&mut self, number: u64) -> Value {
        let mut spec = json!({"tier": self.0.pick(&["Admin", "Baseline"]), "priority": self.0.below(3), "subject": self.pods()});
        for (rules, egress) in [("ingress", false), ("egress", true)] {
            if self.0.below(3) > 0 {
                spec[rules] = self.list(1, 3, |makes| makes.rule(egress));
            }
        }
        json!({"metadata": {"name": format!("c{number}")}, "spec": spec})
    }
}

/// Whether the explanation names the rule that decides.
fn is_founded(decision: &Decision, objects: &Objects, cell: Cell, ingress: bool) -> bool {
    let decides = |tier: &str, action: &str| {
        tiers::decider(objects, cell, ingress, tier).filter(|decided| decided.2 == action)
    };
    let admin = tiers::decider(objects, cell, ingress, "Admin").filter(|decided| decided.2 != "Pass");
    match decision {
        Decision::Accepted(origin) | Decision::Denied(origin) => {
            let action = if decision.allows() { "Accept" } else { "Deny" };
            let named = decides(origin.tier.word(), action);
            named.is_some_and(|(policy, place, _)| (policy, place) == (origin.policy.clone(), origin.rule))
        }
        Decision::NoPod => false,
        _ => admin.is_none(),
    }
}

#[test]
fn tiers_are_asked_in_order_and_the_first_rule_decides() {
    let cluster = Cluster::new();
    let mut socket = cluster.node.within(|| nft::Socket::open().unwrap());
    let mut kernel = Kernel::new();
    let mut dice = Dice::new(0x5eed_0070);
    let (mut open, mut refused, mut decided) = (0, 0, 0);
    for case in 0..CASES {
        let count = dice.below(3);
        let mut objects = Objects::new((0..count).map(|number| dice.policy(number)).collect());
        objects.cluster_policies =
            (0..1 + dice.below(4)).map(|number| Makes(&mut dice).policy(number)).collect();
        let expected: BTreeSet<Cell> = cells().filter(|cell| tiers::allows(&objects, *cell)).collect();
        let world = objects.world();
        let desired = Desired::of(&world);
        for cell in cells() {
            let verdict = said(&world, &desired, cell);
            let context = || {
                format!(
                    "case {case} {cell:?} {verdict:?} {:#?} {:#?}",
                    objects.cluster_policies, objects.policies
                )
            };
            assert_eq!(verdict.allows(), expected.contains(&cell), "{}", context());
            for direction in Direction::BOTH {
                let founded =
                    is_founded(verdict.of(direction), &objects, cell, direction == Direction::Ingress);
                assert!(founded, "{}", context());
                decided +=
                    u32::from(matches!(verdict.of(direction), Decision::Accepted(_) | Decision::Denied(_)));
            }
        }
        kernel.sync(&mut socket, &desired).unwrap();
        if case == 0 {
            cluster.node.sh("echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose");
        }
        netpol::cut::forbidden(&mut socket, kernel.held(), &[]).unwrap();
        let made = cluster.made(case, &expected);
        let wrong: Vec<&Cell> = made.symmetric_difference(&expected).collect();
        assert!(
            wrong.is_empty(),
            "case {case}: {wrong:?} of {:#?} {:#?}\n{}",
            objects.cluster_policies,
            objects.policies,
            kernel.table(nft::Family::Ip)
        );
        (open, refused) = (open + expected.len(), refused + cells().count() - expected.len());
    }
    // Tables that decide nothing would prove nothing.
    assert!(
        open > 5000 && refused > 5000 && decided > 10_000,
        "{open} open, {refused} refused, {decided} decided"
    );
}

fn read(spec: Value) -> ClusterPolicy {
    let object = json!({"metadata": {"name": "p"}, "spec": spec});
    ClusterPolicy::of(&serde_json::from_value::<ClusterNetworkPolicy>(object).unwrap()).unwrap()
}

#[test]
fn what_is_not_understood_fails_closed() {
    let rules = json!([
        {"action": "Accept", "from": [{"planets": {}}]},
        {"action": "Pass", "from": [{"namespaces": {}}, {"planets": {}}]},
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"quic": {}}]},
        {"action": "Ponder", "from": [{"namespaces": {}}]},
        {"action": "Accept", "from": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {"range": {"start": 9, "end": 1}}}}]}
    ]);
    let policy =
        read(json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": rules}));
    let said: Vec<String> = policy
        .ingress
        .iter()
        .map(|rule| {
            format!("{:?} {:?} {}", rule.action, rule.peers.as_ref().map(Vec::len), rule.ports.is_some())
        })
        .collect();
    let (nobody, everybody) = ("Accept Some(0) false", "Deny None false");
    assert_eq!(said, [nobody, everybody, everybody, "Deny Some(1) false", nobody]);
    let unknown =
        json!({"metadata": {"name": "p"}, "spec": {"tier": "Middle", "subject": {"namespaces": {}}}});
    assert_eq!(ClusterPolicy::of(&serde_json::from_value(unknown).unwrap()), None);
}
