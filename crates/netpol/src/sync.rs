//! Keeps the kernel in step with what is desired: one transaction of the differences.

use std::collections::HashSet;

use nft::{Batch, Element, Family, Socket};

use crate::desired::Desired;
use crate::layout::{self, FAMILIES, Names, name_of};
use crate::permit::Direction;

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

    /// Brings the kernel in step: by the differences, or as a whole when nothing is known. Gives whether connections
    /// that were allowed may no longer be.
    ///
    /// # Errors
    /// When the kernel refuses. Then the old rules are still in force and the next call replaces everything.
    pub fn sync(&mut self, socket: &mut Socket, desired: Desired) -> Result<bool, nft::Error> {
        let mut names = if self.known { self.names.clone() } else { Names::default() };
        names.follow(&desired);
        let mut batch = Batch::new();
        let narrower = match self.known {
            true => FAMILIES.iter().fold(false, |any, family| {
                Step { family: *family, batch: &mut batch, old: &self.held, new: &desired }
                    .take(&self.names, &names)
                    | any
            }),
            false => {
                FAMILIES.iter().for_each(|f| batch.replace_table(&layout::table(*f, &desired, &names)));
                true
            }
        };
        self.known = false;
        batch.apply(socket)?;
        (self.held, self.names, self.known) = (desired, names, true);
        Ok(narrower)
    }
}

/// The changes of one family.
struct Step<'a> {
    family: Family,
    batch: &'a mut Batch,
    old: &'a Desired,
    new: &'a Desired,
}

impl Step<'_> {
    /// What comes first, then what refers to it, then what nothing refers to any more.
    fn take(&mut self, before: &Names, after: &Names) -> bool {
        let table = name_of(self.family);
        let mut narrower = self.sets(after);
        for profile in after.profiles().keys().filter(|p| !before.profiles().contains_key(*p)) {
            self.batch.add_chain_with_rules(&table, &layout::chain(self.family, profile, after));
        }
        for direction in Direction::BOTH {
            narrower |= self.verdicts(direction, before, after);
        }
        for (_, name) in before.profiles().iter().filter(|(p, _)| !after.profiles().contains_key(*p)) {
            self.batch.delete_chain(&table, name);
        }
        for key in self.old.sets.keys().filter(|key| !self.new.sets.contains_key(*key)) {
            self.batch.delete_set(&table, before.set(key));
        }
        narrower
    }

    fn sets(&mut self, names: &Names) -> bool {
        let table = name_of(self.family);
        let mut narrower = false;
        for (key, members) in &self.new.sets {
            let old = self.old.sets.get(key);
            if old == Some(members) {
                continue;
            }
            if old.is_none() {
                self.batch.add_set(&table, &layout::set(self.family, key, names));
            }
            let was = old.map(|old| layout::elements(self.family, key, old)).unwrap_or_default();
            let will = layout::elements(self.family, key, members);
            narrower |= self.elements(names.set(key), &was, &will).0;
        }
        narrower
    }

    fn verdicts(&mut self, direction: Direction, before: &Names, after: &Names) -> bool {
        let family = self.family;
        let all = |desired: &Desired, names: &Names| -> Vec<Element> {
            let own = desired.profiles.iter();
            let own = own.filter(|((d, addr), _)| *d == direction && layout::is_of(family, *addr));
            own.map(|((_, addr), profile)| layout::isolated(*addr, profile, names)).collect()
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
