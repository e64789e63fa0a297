//! What policies would change before they are applied: the Pods that they select, and the connections that they would
//! cut or open, found by asking two worlds.

use client::ObjectKey;
use serde::Serialize;

use crate::explain::{deciding, policy_name};
use crate::matrix::{Asked, Party, ends, passes, port_name, ports_of};
use crate::model::{Policy, Port, World};
use crate::permit::Direction;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Each policy of the file.
    pub policies: Vec<Checked>,
    /// Connections that are allowed now and would not be.
    pub cut: Vec<Line>,
    /// Connections that are refused now and would not be.
    pub opened: Vec<Line>,
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checked {
    /// Namespace and name.
    pub policy: String,
    /// Whether one of that name is there and would be replaced.
    pub replaces: bool,
    /// Whether it is only audited.
    pub audit: bool,
    /// The directions that it speaks of.
    pub directions: Vec<&'static str>,
    /// The Pods that it selects.
    pub pods: Vec<String>,
}

/// A connection whose verdict changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// The source.
    pub from: String,
    /// The destination.
    pub to: String,
    /// `80`, `53/udp`.
    pub port: String,
    /// The policies that it would be owed to.
    pub by: Vec<String>,
}

/// Asks what would change if these policies were applied.
pub fn check(now: &World, policies: &[Policy]) -> Check {
    let mut then = now.clone();
    then.policies.extend(policies.iter().map(|policy| (policy.key.clone(), policy.clone())));
    let checked = |policy: &Policy| Checked {
        policy: policy.key.to_string(),
        replaces: now.policies.contains_key(&policy.key),
        audit: policy.audit,
        directions: Direction::BOTH
            .into_iter()
            .filter(|d| policy.rules(*d).is_some())
            .map(Direction::word)
            .collect(),
        pods: now
            .pods_in(&policy.key.namespace)
            .filter(|pod| policy.selects(pod))
            .map(|pod| pod.key.name.clone())
            .collect(),
    };
    let mut check =
        Check { policies: policies.iter().map(checked).collect(), cut: Vec::new(), opened: Vec::new() };
    let worlds = (Parties::of(now), Parties::of(&then));
    let is_touched = |key: &ObjectKey| {
        let versions =
            policies.iter().flat_map(|policy| now.policies.get(&policy.key).into_iter().chain([policy]));
        now.pods.get(key).is_some_and(|pod| versions.into_iter().any(|policy| policy.selects(pod)))
    };
    let touched: Vec<bool> =
        worlds.0.all.iter().map(|party| party.pod.is_some_and(|pod| is_touched(&pod.key))).collect();
    for (i, from) in worlds.0.all.iter().enumerate() {
        for (j, to) in worlds.0.all.iter().enumerate() {
            if i == j || !(touched[i] || touched[j]) {
                continue;
            }
            for asked in ports(to, policies) {
                let (before, after) = (worlds.0.passes(i, j, asked), worlds.1.passes(i, j, asked));
                if before != after {
                    let by = worlds.1.owed(i, j, asked);
                    let line = Line { from: from.name(), to: to.name(), port: port_name(asked), by };
                    if before { check.cut.push(line) } else { check.opened.push(line) }
                }
            }
        }
    }
    check
}

/// What is asked about at a destination: its own ports, and those that the policies name by number.
fn ports(to: &Party<'_>, policies: &[Policy]) -> Vec<Asked> {
    let rules =
        policies.iter().flat_map(|policy| Direction::BOTH.map(|d| policy.rules(d).unwrap_or_default()));
    let named = rules.flatten().flat_map(|rule| rule.ports.iter().flatten());
    let numbers = named.filter_map(|port| match port {
        Port::Range(protocol, first, last) if first <= last => Some((*protocol, *first)),
        _ => None,
    });
    let mut all: Vec<Asked> = ports_of(to).into_iter().chain(numbers).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Everybody in one of the worlds, in the same order in both.
struct Parties<'a> {
    world: &'a World,
    all: Vec<Party<'a>>,
}

impl<'a> Parties<'a> {
    fn of(world: &'a World) -> Self {
        let pods = world.pods.values().map(|pod| Party::of(world, pod));
        Self { world, all: pods.chain([Party::outside()]).collect() }
    }

    fn passes(&self, from: usize, to: usize, asked: Asked) -> bool {
        passes(self.world, &self.all[from], &self.all[to], asked)
    }

    /// The policies that decide.
    fn owed(&self, from: usize, to: usize, asked: Asked) -> Vec<String> {
        let (from, to) = (&self.all[from], &self.all[to]);
        let Some(ends) = ends(from, to) else { return Vec::new() };
        let sides = [
            from.decision(self.world, Direction::Egress, ends, asked),
            to.decision(self.world, Direction::Ingress, ends, asked),
        ];
        let refusing: Vec<_> = sides.iter().filter(|side| !side.allows()).collect();
        let owed = if refusing.is_empty() { sides.iter().collect() } else { refusing };
        owed.into_iter().flat_map(deciding).map(|key| policy_name(&key)).collect()
    }
}
