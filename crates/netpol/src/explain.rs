//! A verdict in words: each side with the object and the rule that decided, and what each other rule lacks.

use client::ObjectKey;
use nft::Protocol;
use serde::Serialize;

use crate::isolation::Isolation;
use crate::model::World;
use crate::permit::Direction;
use crate::verdict::{Decision, End, Miss, decision, misses};

/// What one side says of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// `egress`: the source's; `ingress`: the destination's.
    pub direction: &'static str,
    /// Whether it lets the connection pass.
    pub allowed: bool,
    /// The policies that decided: the one that permits, or all that refuse.
    pub policies: Vec<String>,
    /// The rule that permits, as the object's field is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The whole in a sentence.
    pub text: String,
    /// Where nothing permits: each rule, and what it lacks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<Lack>,
}

/// A rule that does not let the connection pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// Its policy.
    pub policy: String,
    /// `ingress[0]`.
    pub rule: String,
    /// `the peer`, `the port` or both.
    pub text: String,
}

/// The name of a policy as people say it.
pub fn policy_name(key: &ObjectKey) -> String {
    match key.namespace.is_empty() {
        true => format!("ClusterNetworkPolicy {}", key.name),
        false => format!("NetworkPolicy {key}"),
    }
}

/// What both sides say of a connection, in the order in which it passes them.
pub fn explain(world: &World, from: End<'_>, to: End<'_>, protocol: Protocol, port: u16) -> [Side; 2] {
    Direction::BOTH.map(|direction| side(world, direction, from, to, (protocol, port)))
}

fn side(world: &World, direction: Direction, from: End<'_>, to: End<'_>, asked: (Protocol, u16)) -> Side {
    let own = if direction == Direction::Ingress { to } else { from };
    let isolation = own.pod.and_then(|pod| Isolation::of(world, pod, direction));
    let decided = match own.pod {
        None => Decision::NoPod,
        Some(pod) => decision(world, isolation.as_ref(), pod, from, to, asked),
    };
    let who = own.pod.map_or_else(|| own.address.to_string(), |pod| pod.key.to_string());
    let refuses = matches!(decided, Decision::Refused(_) | Decision::Audited(_));
    let lacking = match (&isolation, own.pod) {
        (Some(isolation), Some(pod)) if refuses => misses(world, isolation, pod, from, to, asked),
        _ => Vec::new(),
    };
    let rule = match &decided {
        Decision::Permitted(origin) => Some(origin.to_string()),
        Decision::Accepted(origin) | Decision::Denied(origin) => Some(origin.to_string()),
        _ => None,
    };
    Side {
        direction: direction.word(),
        allowed: decided.allows(),
        policies: deciding(&decided).iter().map(policy_name).collect(),
        rule,
        text: text(&decided, direction, &who),
        lacking: lacking.iter().map(|miss| lack(miss, direction)).collect(),
    }
}

/// The policies that a decision is owed to.
pub fn deciding(decision: &Decision) -> Vec<ObjectKey> {
    match decision {
        Decision::NoPod | Decision::Node | Decision::Open => Vec::new(),
        Decision::Permitted(origin) => vec![origin.policy.clone()],
        Decision::Accepted(origin) | Decision::Denied(origin) => vec![ObjectKey::new("", &origin.policy)],
        Decision::Refused(by) | Decision::Audited(by) => by.clone(),
    }
}

fn text(decision: &Decision, direction: Direction, who: &str) -> String {
    let word = direction.word();
    let list = |by: &[ObjectKey]| by.iter().map(policy_name).collect::<Vec<_>>().join(", ");
    match decision {
        Decision::NoPod => format!("{who} is not on the Pod network: no policy speaks of its {word}"),
        Decision::Node => format!("the node always reaches its own Pods, so no policy of {who} is asked"),
        Decision::Open => format!("no policy selects {who} for {word}: all is allowed"),
        Decision::Permitted(origin) => format!("{} permits it: {origin}", policy_name(&origin.policy)),
        Decision::Accepted(origin) | Decision::Denied(origin) => {
            let (verb, tier) = (if decision.allows() { "accepts" } else { "denies" }, origin.tier.word());
            format!("ClusterNetworkPolicy {} (tier {tier}) {verb} it: {origin}", origin.policy)
        }
        Decision::Refused(by) => format!("{} isolates {who} for {word}, and no rule permits it", list(by)),
        Decision::Audited(by) => {
            format!("{} would refuse it, but is only audited: it is logged and passes", list(by))
        }
    }
}

fn lack(miss: &Miss, direction: Direction) -> Lack {
    let peers = if direction == Direction::Ingress { "from" } else { "to" };
    let text = match (miss.peer, miss.port) {
        (false, true) => format!("the port fits, but nobody in `{peers}` is the other end"),
        (true, false) => "the other end fits, but the port is not among its `ports`".to_owned(),
        _ => format!("neither `{peers}` nor `ports` fit"),
    };
    let rule = format!("{}[{}]", direction.word(), miss.rule);
    Lack { policy: policy_name(&miss.policy), rule, text }
}
