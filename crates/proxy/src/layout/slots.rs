//! Endpoints in slots: who stays keeps its place, the last moves into a hole.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::layout::MARK;
use crate::model::Endpoints;

/// An endpoint in its slot, with the number it keeps while the frontend lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub(crate) addr: SocketAddr,
    pub(crate) number: u32,
}

/// Endpoints in slots 0..N.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    pub(crate) slots: Vec<Slot>,
    next: u32,
}

/// Numbers stay below the mark bit, which is added to them.
const NUMBERS: u32 = MARK;

impl Slots {
    /// The addresses, by slot.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.slots.iter().map(|s| s.addr).collect()
    }

    /// The same frontend with other endpoints: who stays keeps its slot as far as there are no holes.
    pub fn with(&self, endpoints: &Endpoints) -> Self {
        let wanted: BTreeSet<SocketAddr> = endpoints.iter().copied().collect();
        let known: BTreeSet<SocketAddr> = self.slots.iter().map(|s| s.addr).collect();
        let mut next = self.next;
        let mut taken: BTreeSet<u32> =
            self.slots.iter().filter(|s| wanted.contains(&s.addr)).map(|s| s.number).collect();
        let mut fresh = wanted.difference(&known).map(|addr| {
            // Numbers go round, so that a new endpoint does not inherit the clients of one that just left.
            while taken.contains(&(next % NUMBERS)) && taken.len() < NUMBERS as usize {
                next += 1;
            }
            let number = next % NUMBERS;
            next = (number + 1) % NUMBERS;
            taken.insert(number);
            Slot { addr: *addr, number }
        });
        let mut slots: Vec<Option<Slot>> = self
            .slots
            .iter()
            .map(|s| wanted.contains(&s.addr).then_some(*s).or_else(|| fresh.next()))
            .collect();
        slots.extend(fresh.map(Some));
        let mut hole = 0;
        while hole < slots.len() {
            if slots[hole].is_none() {
                slots.swap_remove(hole);
            } else {
                hole += 1;
            }
        }
        let mut slots: Vec<Slot> = slots.into_iter().flatten().collect();
        slots.shrink_to_fit();
        Self { slots, next }
    }
}
