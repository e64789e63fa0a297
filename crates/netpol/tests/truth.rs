//! Truth tables: random policies over three namespaces of three Pods each, what a reading of the API's objects says of
//! each connection, what the explanation says and why, and whether the connection could be made, on real packets
//! between network namespaces. Each case is reached from the one before by its differences alone, over connections that
//! are still known.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::dice::Dice;
use common::net::Cluster;
use common::reference::{self, Side, is_audited};
use common::{Cell, Objects, cells, said};
use netpol::sync::Kernel;
use netpol::verdict::Decision;
use netpol::{Desired, Direction};
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
    let cluster = Cluster::new();
    let mut socket = cluster.node.within(|| nft::Socket::open().unwrap());
    let mut kernel = Kernel::new();
    let mut dice = Dice::new(0x5eed_0007);
    let (mut open, mut refused, mut audited) = (0, 0, 0);
    for case in 0..CASES {
        let count = dice.below(6);
        let objects = Objects::new((0..count).map(|number| dice.policy(number)).collect());
        let expected: BTreeSet<Cell> = cells().filter(|cell| reference::allows(&objects, *cell)).collect();
        let world = objects.world();
        let desired = Desired::of(&world);
        for cell in cells() {
            let verdict = said(&world, &desired, cell);
            let context = || format!("case {case} {cell:?} {verdict:?} {:#?}", objects.policies);
            assert_eq!(verdict.allows(), expected.contains(&cell), "{}", context());
            for direction in Direction::BOTH {
                let side = Side::new(&objects, cell, direction == Direction::Ingress);
                assert!(is_founded(verdict.of(direction), &side), "{}", context());
                audited += u32::from(matches!(verdict.of(direction), Decision::Audited(_)));
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
            "case {case}: {wrong:?} of {:#?}\n{}",
            objects.policies,
            kernel.table(nft::Family::Ip)
        );
        (open, refused) = (open + expected.len(), refused + cells().count() - expected.len());
    }
    // Tables that decide nothing would prove nothing.
    assert!(
        open > 9000 && refused > 9000 && audited > 100,
        "{open} open, {refused} refused, {audited} audited"
    );
}
