//! What is desired, kept in step with the world by what has changed in it.
//!
//! The unit is an address: who has it, its profiles, and which sets it is in. A Pod that joins costs a look at the
//! policies of its namespace and at each set once, however many other Pods there are. Built from nothing it is the whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use client::ObjectKey;

use crate::cluster::ClusterPolicy;
use crate::desired::{Compiler, Desired, Members, Profile, SetKey, members};
use crate::isolation::Isolation;
use crate::model::{Peer, PodView, Policy, World};
use crate::permit::{Direction, Permit};

/// What has changed in a world.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Pods that came, went or changed, or whose namespace's labels did.
    pub pods: BTreeSet<ObjectKey>,
    /// Pods of whom other policies speak.
    pub isolated: BTreeSet<ObjectKey>,
    /// Whether nodes came, went or changed.
    pub nodes: bool,
}

impl Changes {
    /// Everything.
    pub fn all(world: &World) -> Self {
        Self { pods: world.pods.keys().cloned().collect(), isolated: BTreeSet::new(), nodes: true }
    }

    /// A policy of a namespace was another one before, or is there for the first or the last time.
    pub fn policy(&mut self, world: &World, namespace: &str, versions: [Option<&Policy>; 2]) {
        let is_spoken_of = |pod: &&PodView| versions.iter().flatten().any(|policy| policy.selects(pod));
        self.isolated.extend(world.pods_in(namespace).filter(is_spoken_of).map(|pod| pod.key.clone()));
    }

    /// A policy of the cluster was another one before, or is there for the first or the last time.
    pub fn cluster_policy(&mut self, world: &World, versions: [Option<&ClusterPolicy>; 2]) {
        for policy in versions.into_iter().flatten() {
            self.isolated.extend(world.pods_of(&policy.subject).map(|pod| pod.key.clone()));
        }
    }

    /// The labels of a namespace changed.
    pub fn namespace(&mut self, world: &World, name: &str) {
        self.pods.extend(world.pods_in(name).map(|pod| pod.key.clone()));
    }
}

/// What of the desired has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Sets that came, went or have other members.
    pub sets: BTreeSet<SetKey>,
    /// Addresses whose profile is another one, or that have one no longer.
    pub addresses: BTreeSet<(Direction, IpAddr)>,
    /// Profiles that some address had or has among those.
    pub profiles: BTreeSet<Arc<Profile>>,
}

impl Touched {
    /// All in which two differ.
    pub fn between(old: &Desired, new: &Desired) -> Self {
        let mut touched = Self::default();
        for key in old.sets.keys().chain(new.sets.keys()) {
            if old.sets.get(key) != new.sets.get(key) {
                touched.sets.insert(key.clone());
            }
        }
        for at in old.profiles.keys().chain(new.profiles.keys()) {
            let (was, will) = (old.profiles.get(at), new.profiles.get(at));
            if was != will {
                touched.addresses.insert(*at);
                touched.profiles.extend(was.into_iter().chain(will).cloned());
            }
        }
        touched
    }
}

/// The desired and what it takes to keep it.
#[derive(Debug, Clone, Default)]
pub struct Tracker {
    desired: Desired,
    /// The Pods that have an address; more than one only for a moment.
    owners: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// The addresses that a Pod had when it was last looked at.
    addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// How many addresses have a profile, and how many permits of profiles look into a set.
    profiles: BTreeMap<Arc<Profile>, usize>,
    sets: BTreeMap<SetKey, usize>,
}

impl Tracker {
    /// What is desired.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The same, for who needs nothing else.
    pub fn into_desired(self) -> Desired {
        self.desired
    }

    /// How many addresses have that profile.
    pub fn uses(&self, profile: &Arc<Profile>) -> usize {
        self.profiles.get(profile).copied().unwrap_or(0)
    }

    /// Follows the world; gives what has changed of the desired.
    pub fn follow(&mut self, world: &World, changes: &Changes) -> Touched {
        let mut touched = Touched::default();
        let moved = self.moved(world, changes);
        let others = changes.isolated.iter().filter_map(|key| self.addresses.get(key)).flatten();
        let judged: BTreeSet<IpAddr> = moved.iter().chain(others).copied().collect();
        let mut compiler = Compiler::knowing(self.profiles.keys().cloned());
        for address in judged {
            for direction in Direction::BOTH {
                let profile = self.profile(world, &mut compiler, address, direction);
                self.judge((direction, address), profile, &mut touched);
            }
        }
        self.follow_members(world, &moved, &mut touched);
        if changes.nodes {
            self.follow_nodes(world, &mut touched);
        }
        self.follow_sets(world, &mut touched);
        touched
    }

    /// Notes who has which addresses now; gives those of all that changed, before and after.
    fn moved(&mut self, world: &World, changes: &Changes) -> BTreeSet<IpAddr> {
        let mut moved = BTreeSet::new();
        for key in &changes.pods {
            for address in self.addresses.remove(key).into_iter().flatten() {
                moved.insert(address);
                if let Some(owners) = self.owners.get_mut(&address) {
                    owners.remove(key);
                    if owners.is_empty() {
                        self.owners.remove(&address);
                    }
                }
            }
            let Some(pod) = world.pods.get(key) else { continue };
            for address in &pod.addresses {
                moved.insert(*address);
                self.owners.entry(*address).or_default().insert(key.clone());
            }
            self.addresses.insert(key.clone(), pod.addresses.clone());
        }
        moved
    }

    fn pods<'w>(
        &self,
        world: &'w World,
        address: IpAddr,
    ) -> impl DoubleEndedIterator<Item = &'w PodView> + use<'_, 'w> {
        let owners = self.owners.get(&address).into_iter().flatten();
        owners.filter_map(|key| world.pods.get(key))
    }

    /// The profile of an address; of several Pods the last one that is isolated has it.
    fn profile<'w>(
        &self,
        world: &'w World,
        compiler: &mut Compiler<'w>,
        address: IpAddr,
        direction: Direction,
    ) -> Option<Arc<Profile>> {
        self.pods(world, address).rev().filter(|pod| pod.local).find_map(|pod| {
            let isolation = Isolation::of(world, pod, direction)?;
            Some(compiler.profile(&isolation, pod))
        })
    }

    fn judge(&mut self, at: (Direction, IpAddr), profile: Option<Arc<Profile>>, touched: &mut Touched) {
        let before = self.desired.profiles.get(&at);
        if before == profile.as_ref() {
            return;
        }
        touched.addresses.insert(at);
        touched.profiles.extend(before.into_iter().chain(&profile).cloned());
        let before = match profile {
            Some(profile) => {
                self.hold(&profile);
                self.desired.profiles.insert(at, profile)
            }
            None => self.desired.profiles.remove(&at),
        };
        if let Some(before) = before {
            self.release(&before);
        }
    }

    fn hold(&mut self, profile: &Arc<Profile>) {
        let uses = self.profiles.entry(profile.clone()).or_default();
        *uses += 1;
        if *uses == 1 {
            for key in profile.all_permits().flat_map(Permit::sets) {
                *self.sets.entry(key).or_default() += 1;
            }
        }
    }

    fn release(&mut self, profile: &Arc<Profile>) {
        let Some(uses) = self.profiles.get_mut(profile) else { return };
        *uses -= 1;
        if *uses > 0 {
            return;
        }
        self.profiles.remove(profile);
        for key in profile.all_permits().flat_map(Permit::sets) {
            if let Some(uses) = self.sets.get_mut(&key) {
                *uses -= 1;
                if *uses == 0 {
                    self.sets.remove(&key);
                }
            }
        }
    }

    /// Brings addresses into the sets that are there, and out of them.
    fn follow_members(&mut self, world: &World, moved: &BTreeSet<IpAddr>, touched: &mut Touched) {
        let mut sets = std::mem::take(&mut self.desired.sets);
        for (key, members) in &mut sets {
            let mut changed = false;
            for address in moved {
                changed |= match (key, &mut *members) {
                    (SetKey::Peer(peer), Members::Addresses(all)) => {
                        let Peer::Pods(set) = &**peer else { continue };
                        match self.pods(world, *address).any(|pod| world.is_in(set, pod)) {
                            true => all.insert(*address),
                            false => all.remove(address),
                        }
                    }
                    (SetKey::Port(protocol, name), Members::Ports(all)) => {
                        let own = self.pods(world, *address).flat_map(|pod| pod.numbers(*protocol, name));
                        let will: BTreeSet<(IpAddr, u16)> = own.map(|number| (*address, number)).collect();
                        let was: BTreeSet<(IpAddr, u16)> =
                            all.range((*address, 0)..=(*address, u16::MAX)).copied().collect();
                        all.retain(|at| at.0 != *address || will.contains(at));
                        all.extend(&will);
                        was != will
                    }
                    _ => false,
                };
            }
            if changed {
                touched.sets.insert(key.clone());
            }
        }
        self.desired.sets = sets;
    }

    /// Brings the sets of nodes' addresses up to date.
    fn follow_nodes(&mut self, world: &World, touched: &mut Touched) {
        for (key, known) in &mut self.desired.sets {
            if !matches!(key, SetKey::Peer(peer) if matches!(**peer, Peer::Nodes(_))) {
                continue;
            }
            let now = members(key, world);
            if *known != now {
                *known = now;
                touched.sets.insert(key.clone());
            }
        }
    }

    /// Makes the sets that are looked into now, and forgets the others.
    fn follow_sets(&mut self, world: &World, touched: &mut Touched) {
        let looked_into =
            touched.profiles.iter().flat_map(|profile| profile.all_permits().flat_map(Permit::sets));
        for key in looked_into.collect::<BTreeSet<SetKey>>() {
            match (self.sets.contains_key(&key), self.desired.sets.contains_key(&key)) {
                (true, false) => {
                    let members = members(&key, world);
                    self.desired.sets.insert(key.clone(), members);
                    touched.sets.insert(key);
                }
                (false, true) => {
                    self.desired.sets.remove(&key);
                    touched.sets.insert(key);
                }
                _ => {}
            }
        }
    }
}
