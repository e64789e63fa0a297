//! Random policies, the same in every run.

use serde_json::{Value, json};

use super::{NAMESPACES, PODS, PORTS, address, policy};

/// A generator with a seed: the same cases in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()].clone()
    }

    pub fn pod_selector(&mut self) -> Value {
        match self.below(6) {
            0 => json!({}),
            1 => json!({"matchLabels": {"parity": self.pick(&["even", "odd"])}}),
            2 => {
                json!({"matchExpressions": [{"key": "pod", "operator": self.pick(&["In", "NotIn"]), "values": [self.pick(&PODS), "a"]}]})
            }
            3 => {
                json!({"matchExpressions": [{"key": "none", "operator": self.pick(&["Exists", "DoesNotExist"])}]})
            }
            _ => json!({"matchLabels": {"pod": self.pick(&PODS)}}),
        }
    }

    pub fn namespace_selector(&mut self) -> Value {
        match self.below(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {"team": "blue"}}),
            2 => {
                json!({"matchExpressions": [{"key": "team", "operator": self.pick(&["Exists", "DoesNotExist"])}]})
            }
            _ => json!({"matchLabels": {"kubernetes.io/metadata.name": self.pick(&NAMESPACES)}}),
        }
    }

    pub fn peer(&mut self) -> Value {
        let someone = address(usize::try_from(self.below(9)).unwrap());
        match self.below(7) {
            0 | 1 => json!({"podSelector": self.pod_selector()}),
            2 => json!({"namespaceSelector": self.namespace_selector()}),
            3 | 4 => {
                json!({"namespaceSelector": self.namespace_selector(), "podSelector": self.pod_selector()})
            }
            5 => json!({"ipBlock": {"cidr": format!("{someone}/{}", self.pick(&[30, 32]))}}),
            _ => {
                json!({"ipBlock": {"cidr": "10.244.0.0/24", "except": [format!("{someone}/{}", self.pick(&[31, 32]))]}})
            }
        }
    }

    pub fn port(&mut self) -> Value {
        let protocol = self.pick(&["TCP", "TCP", "UDP", "SCTP"]);
        match self.below(5) {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": 79, "endPort": self.pick(&[80, 81])}),
            2 => {
                let name = format!("{}-{}", self.pick(&PORTS).1, protocol.to_lowercase());
                json!({"protocol": protocol, "port": name})
            }
            3 => json!({"port": self.pick(&[80, 81])}),
            _ => json!({"protocol": protocol, "port": self.pick(&[80, 81])}),
        }
    }

    pub fn list(&mut self, most: u64, mut item: impl FnMut(&mut Self) -> Value) -> Value {
        let count = self.below(most + 1);
        Value::Array((0..count).map(|_| item(self)).collect())
    }

    pub fn policy(&mut self, number: u64) -> Value {
        let mut spec = json!({"podSelector": self.pod_selector()});
        for (rules, peers, kind) in [("ingress", "from", "Ingress"), ("egress", "to", "Egress")] {
            if self.below(2) == 0 {
                continue;
            }
            spec[rules] = self.list(2, |dice| {
                let mut rule = json!({});
                if dice.below(4) > 0 {
                    rule[peers] = dice.list(2, Self::peer);
                }
                if dice.below(2) > 0 {
                    rule["ports"] = dice.list(2, Self::port);
                }
                rule
            });
            if self.below(2) == 0 {
                spec["policyTypes"] = json!([kind]);
            }
        }
        let mut policy = policy(self.pick(&NAMESPACES), &format!("p{number}"), &spec);
        if self.below(8) == 0 {
            policy["metadata"]["annotations"] = json!({"skiff.dev/audit": "true"});
        }
        policy
    }
}
