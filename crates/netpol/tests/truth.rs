//! Truth tables: random policies over three namespaces of three Pods each, what a reading of the API's objects says of
//! each connection, what the explanation says and why, and whether the connection could be made, on real packets
//! between network namespaces. Each case is reached from the one before by its differences alone, over connections that
//! are still known.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::Objects;
use common::dice::Dice;
use common::reference::{self, Side, is_audited};
use common::walk::Walk;
use netpol::Direction;
use netpol::verdict::{Decision, Verdict};
use serde_json::Value;

const CASES: u32 = 200;

/// Holds a decision's reasons against the objects: the rule that it names lets the cell pass by itself, and those that
/// refuse are all that speak of the Pod.
fn is_founded(decision: &Decision, side: &Side<'_>) -> bool {
    let names = |audited: bool| -> Vec<&Value> {
        side.speaking().filter(|p| is_audited(p) == audited).map(|p| &p["metadata"]["name"]).collect()
    };
    let are = |keys: &[client::ObjectKey], names: &[&Value]| {
        let said: BTreeSet<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        said == names.iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>()
    };
    match decision {
        Decision::NoPod | Decision::Node | Decision::Accepted(_) | Decision::Denied(_) => false,
        Decision::Open => side.speaking().next().is_none(),
        Decision::Permitted(origin) => {
            let named = side.speaking().find(|policy| policy["metadata"]["name"] == *origin.policy.name);
            named.is_some_and(|policy| side.admits(policy, origin.rule, origin.peer, origin.port))
        }
        Decision::Refused(by) => !side.is_permitted() && are(by, &names(false)),
        Decision::Audited(by) => {
            !side.is_permitted() && names(false).is_empty() && !by.is_empty() && are(by, &names(true))
        }
    }
}

#[test]
fn every_connection_of_random_policies_is_as_the_api_says_and_as_explained() {
    let mut walk = Walk::new();
    let mut dice = Dice::new(0x5eed_0007);
    let (mut open, mut refused, mut audited) = (0, 0, 0);
    for case in 0..CASES {
        let count = dice.below(6);
        let objects = Objects::new((0..count).map(|number| dice.policy(number)).collect());
        let look = |cell, verdict: &Verdict| {
            Direction::BOTH.into_iter().all(|direction| {
                let decision = verdict.of(direction);
                audited += u32::from(matches!(decision, Decision::Audited(_)));
                is_founded(decision, &Side::new(&objects, cell, direction == Direction::Ingress))
            })
        };
        let allowed = |cell| reference::allows(&objects, cell);
        let (made, not) = walk.case(&format!("case {case}"), &objects, allowed, look);
        (open, refused) = (open + made, refused + not);
    }
    // Tables that decide nothing would prove nothing.
    assert!(
        open > 9000 && refused > 9000 && audited > 100,
        "{open} open, {refused} refused, {audited} audited"
    );
}
