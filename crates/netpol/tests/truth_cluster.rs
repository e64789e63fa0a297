//! Truth tables with ClusterNetworkPolicies: random ones of both tiers over random NetworkPolicies, what a reading of the
//! API's objects says of each connection and which rule decides, what the explanation says, and whether the connection
//! could be made on real packets.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::dice::Dice;
use common::walk::Walk;
use common::{Cell, Objects, PORTS, address, tiers};
use netpol::Direction;
use netpol::cluster::{ClusterNetworkPolicy, ClusterPolicy};
use netpol::verdict::{Decision, Verdict};
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
    let mut walk = Walk::new();
    let mut dice = Dice::new(0x5eed_0070);
    let (mut open, mut refused, mut decided) = (0, 0, 0);
    for case in 0..CASES {
        let count = dice.below(3);
        let mut objects = Objects::new((0..count).map(|number| dice.policy(number)).collect());
        objects.cluster_policies =
            (0..1 + dice.below(4)).map(|number| Makes(&mut dice).policy(number)).collect();
        let look = |cell, verdict: &Verdict| {
            Direction::BOTH.into_iter().all(|direction| {
                let decision = verdict.of(direction);
                decided += u32::from(matches!(decision, Decision::Accepted(_) | Decision::Denied(_)));
                is_founded(decision, &objects, cell, direction == Direction::Ingress)
            })
        };
        let allowed = |cell| tiers::allows(&objects, cell);
        let (made, not) = walk.case(&format!("case {case}"), &objects, allowed, look);
        (open, refused) = (open + made, refused + not);
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
