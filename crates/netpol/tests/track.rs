//! Whatever changes in whatever order, what is kept in step by the changes is what would be built from nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::IpAddr;

use common::dice::Dice;
use common::{NAMESPACES, Objects, address};
use netpol::Desired;
use netpol::model::{Policy, World};
use netpol::track::{Changes, Touched, Tracker};
use serde_json::Value;

/// Changes one thing of a world, and notes what it was.
fn change(dice: &mut Dice, world: &mut World, changes: &mut Changes) {
    let pods: Vec<client::ObjectKey> = world.pods.keys().cloned().collect();
    match dice.below(6) {
        // A policy comes, or takes the place of another.
        0 | 1 => {
            let number = dice.below(8);
            put(world, changes, &dice.policy(number));
        }
        2 => {
            let Some(key) = world.policies.keys().next().cloned() else { return };
            let gone = world.policies.remove(&key);
            changes.policy(world, &key.namespace, [gone.as_ref(), None]);
        }
        3 => {
            let name = dice.pick(&NAMESPACES);
            let labels = world.namespaces.get_mut(name).unwrap();
            if labels.remove("team").is_none() {
                labels.insert("team".to_owned(), "blue".to_owned());
            }
            changes.namespace(world, name);
        }
        // A Pod gets other labels, or another address, which may be another Pod's for a while.
        4 => {
            let key = dice.pick(&pods);
            let addresses: Vec<IpAddr> = (0..9).map(|pod| address(pod).into()).collect();
            let pod = world.pods.get_mut(&key).unwrap();
            match dice.below(3) {
                0 => drop(pod.labels.insert("parity".to_owned(), dice.pick(&["even", "odd"]).to_owned())),
                1 => pod.addresses = vec![dice.pick(&addresses)],
                _ => pod.local = !pod.local,
            }
            changes.pods.insert(key);
        }
        _ => {
            let key = dice.pick(&pods);
            let gone = world.pods.remove(&key);
            changes.pods.insert(key.clone());
            if dice.below(3) > 0 {
                let again = Objects::new(Vec::new()).world().pods.remove(&key).or(gone).unwrap();
                world.pods.insert(key, again);
            }
        }
    }
}

fn put(world: &mut World, changes: &mut Changes, object: &Value) {
    let policy = Policy::of(&serde_json::from_value(object.clone()).unwrap()).unwrap();
    let key = policy.key.clone();
    let before = world.policies.insert(key.clone(), policy);
    changes.policy(world, &key.namespace, [before.as_ref(), world.policies.get(&key)]);
}

#[test]
fn what_is_kept_in_step_is_what_would_be_built() {
    for seed in 1..=6 {
        let mut dice = Dice::new(seed * 0x9e37_79b9);
        let mut world = Objects::new(Vec::new()).world();
        let mut tracker = Tracker::default();
        tracker.follow(&world, &Changes::all(&world));
        let mut isolated = 0;
        for step in 0..400 {
            if world.pods.len() < 4 {
                world.pods = Objects::new(Vec::new()).world().pods;
                tracker.follow(&world, &Changes::all(&world));
            }
            let before = tracker.desired().clone();
            let mut changes = Changes::default();
            for _ in 0..=dice.below(3) {
                change(&mut dice, &mut world, &mut changes);
            }
            let touched = tracker.follow(&world, &changes);
            let whole = Desired::of(&world);
            assert_eq!(tracker.desired(), &whole, "seed {seed}, step {step}: {changes:?}");
            let between = Touched::between(&before, &whole);
            assert_eq!(
                (&touched.sets, &touched.addresses),
                (&between.sets, &between.addresses),
                "seed {seed}, step {step}"
            );
            assert!(touched.profiles.is_superset(&between.profiles));
            isolated += whole.profiles.len();
        }
        assert!(isolated > 1000, "{isolated} profiles prove little");
    }
}
