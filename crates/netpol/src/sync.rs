//! Keeps the kernel in step with what is desired: one transaction of the differences.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use nft::{Batch, Element, Family, Socket};

use crate::desired::{Desired, Profile};
use crate::layout::{self, FAMILIES, Names, name_of};
use crate::permit::Direction;
use crate::track::{Touched, Tracker};

/// What we know to be in the kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    held: Desired,
    names: Names,
    /// False until the first full replacement, and after a refused transaction.
    known: bool,
}

impl Kernel {
    /// Nothing is known of the kernel yet; the first [`Self::sync`] replaces everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the kernel holds what was last asked for.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// What it holds.
    pub fn held(&self) -> &Desired {
        &self.held
    }

    /// The complete table of a family as it is in the kernel.
    pub fn table(&self, family: Family) -> nft::Table {
        layout::table(family, &self.held, &self.names)
    }

    /// Brings the kernel in step with a whole, whatever has changed.
    ///
    /// # Errors
    /// As [`Self::follow`].
    pub fn sync(&mut self, socket: &mut Socket, desired: &Desired) -> Result<bool, nft::Error> {
        let used: BTreeSet<&Arc<Profile>> = desired.profiles.values().collect();
        let touched = Touched::between(&self.held, desired);
        self.step(socket, desired, &touched, |profile| used.contains(profile))
    }

    /// Brings the kernel in step with what was touched, or as a whole when nothing is known. Gives whether connections
    /// that were allowed may no longer be.
    ///
    /// # Errors
    /// When the kernel refuses. Then the old rules are still in force and the next call replaces everything.
    pub fn follow(
        &mut self,
        socket: &mut Socket,
        tracker: &Tracker,
        touched: &Touched,
    ) -> Result<bool, nft::Error> {
        self.step(socket, tracker.desired(), touched, |profile| tracker.uses(profile) > 0)
    }

    fn step(
        &mut self,
        socket: &mut Socket,
        desired: &Desired,
        touched: &Touched,
        is_used: impl Fn(&Arc<Profile>) -> bool,
    ) -> Result<bool, nft::Error> {
        if !std::mem::take(&mut self.known) {
            return self.replace(socket, desired, is_used);
        }
        let before = self.names.clone();
        self.names.follow(desired, touched, is_used);
        let mut batch = Batch::new();
        let narrower = FAMILIES.iter().fold(false, |any, family| {
            let mut step =
                Step { family: *family, batch: &mut batch, touched, old: &self.held, new: desired };
            step.take(&before, &self.names) | any
        });
        batch.apply(socket)?;
        self.known = true;
        for key in &touched.sets {
            put(&mut self.held.sets, key, desired.sets.get(key));
        }
        for at in &touched.addresses {
            put(&mut self.held.profiles, at, desired.profiles.get(at));
        }
        Ok(narrower)
    }

    fn replace(
        &mut self,
        socket: &mut Socket,
        desired: &Desired,
        is_used: impl Fn(&Arc<Profile>) -> bool,
    ) -> Result<bool, nft::Error> {
        let mut names = Names::default();
        names.follow(desired, &Touched::between(&Desired::default(), desired), is_used);
        let mut batch = Batch::new();
        FAMILIES.iter().for_each(|family| batch.replace_table(&layout::table(*family, desired, &names)));
        batch.apply(socket)?;
        (self.held, self.names, self.known) = (desired.clone(), names, true);
        Ok(true)
    }
}

fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: Option<&V>) {
    match value {
        Some(value) => drop(map.insert(key.clone(), value.clone())),
        None => drop(map.remove(key)),
    }
}

/// The changes of one family.
struct Step<'a> {
    family: Family,
    batch: &'a mut Batch,
    touched: &'a Touched,
    old: &'a Desired,
    new: &'a Desired,
}

impl Step<'_> {
    /// What comes first, then what refers to it, then what nothing refers to any more.
    fn take(&mut self, before: &Names, after: &Names) -> bool {
        let table = name_of(self.family);
        let mut narrower = self.sets(after);
        let has = |names: &Names, profile: &Arc<Profile>| names.profiles().contains_key(profile);
        for profile in self.touched.profiles.iter().filter(|p| has(after, p) && !has(before, p)) {
            for chain in layout::chains(self.family, profile, after) {
                self.batch.add_chain_with_rules(&table, &chain);
            }
        }
        for direction in Direction::BOTH {
            narrower |= self.verdicts(direction, before, after);
        }
        for profile in self.touched.profiles.iter().filter(|p| has(before, p) && !has(after, p)) {
            for name in layout::chain_names(profile, before) {
                self.batch.delete_chain(&table, &name);
            }
        }
        for key in self.touched.sets.iter().filter(|key| !self.new.sets.contains_key(*key)) {
            self.batch.delete_set(&table, before.set(key));
        }
        narrower
    }

    fn sets(&mut self, names: &Names) -> bool {
        let table = name_of(self.family);
        let denies = self.new.profiles.values().any(|profile| profile.denies());
        let mut narrower = false;
        for key in &self.touched.sets {
            let Some(members) = self.new.sets.get(key) else { continue };
            let old = self.old.sets.get(key);
            if old.is_none() {
                self.batch.add_set(&table, &layout::set(self.family, key, names));
            }
            let was = old.map(|old| layout::elements(self.family, key, old)).unwrap_or_default();
            let will = layout::elements(self.family, key, members);
            let (gone, came) = self.elements(names.set(key), &was, &will);
            narrower |= gone || (came && denies);
        }
        narrower
    }

    fn verdicts(&mut self, direction: Direction, before: &Names, after: &Names) -> bool {
        let (family, touched) = (self.family, self.touched);
        let all = |desired: &Desired, names: &Names| -> Vec<Element> {
            let own =
                touched.addresses.iter().filter(|(d, addr)| *d == direction && layout::is_of(family, *addr));
            own.filter_map(|at| Some(layout::isolated(at.1, desired.profiles.get(at)?, names))).collect()
        };
        let (was, will) = (all(self.old, before), all(self.new, after));
        let (gone, came) = self.elements(layout::map_of(direction), &was, &will);
        gone || came
    }

    /// Puts one list of elements in the place of another; gives whether some went and whether some came.
    fn elements(&mut self, set: &str, was: &[Element], will: &[Element]) -> (bool, bool) {
        let table = name_of(self.family);
        let (before, after): (HashSet<&Element>, HashSet<&Element>) =
            (was.iter().collect(), will.iter().collect());
        let gone: Vec<&Element> = was.iter().filter(|element| !after.contains(element)).collect();
        self.batch.delete_elements(&table, set, gone.iter().copied());
        let came: Vec<&Element> = will.iter().filter(|element| !before.contains(element)).collect();
        self.batch.add_elements(&table, set, came.iter().copied());
        (!gone.is_empty(), !came.is_empty())
    }
}
