//! A set of numbered slots handed out at random from the upper part first.
//!
//! The lower band stays free for people who choose numbers themselves (KEP-3070, KEP-3668) until the upper one is
//! full, so that a chosen number seldom collides with one given out.

use std::collections::HashSet;

/// Slots `0..size`, of which `0..reserved` are given out last.
#[derive(Debug)]
pub struct Band {
    size: u64,
    reserved: u64,
    used: HashSet<u64>,
}

impl Band {
    /// All free.
    pub fn new(size: u64, reserved: u64) -> Self {
        Band { size, reserved: reserved.min(size), used: HashSet::new() }
    }

    /// How many slots there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether a slot is taken.
    pub fn is_taken(&self, slot: u64) -> bool {
        self.used.contains(&slot)
    }

    /// The slots that are taken, in no order.
    pub fn taken(&self) -> impl Iterator<Item = u64> {
        self.used.iter().copied()
    }

    /// Takes one slot; false when it is taken or outside.
    pub fn take(&mut self, slot: u64) -> bool {
        slot < self.size && self.used.insert(slot)
    }

    /// Takes some free slot; `random` picks where the search begins.
    pub fn take_any(&mut self, random: u64) -> Option<u64> {
        let upper = self.reserved..self.size;
        let slot = self.free_in(upper, random).or_else(|| self.free_in(0..self.reserved, random))?;
        self.used.insert(slot);
        Some(slot)
    }

    fn free_in(&self, range: std::ops::Range<u64>, random: u64) -> Option<u64> {
        let length = range.end.checked_sub(range.start).filter(|l| *l > 0)?;
        (0..length).map(|i| range.start + (random % length + i) % length).find(|s| !self.used.contains(s))
    }

    /// Gives a slot back.
    pub fn release(&mut self, slot: u64) {
        self.used.remove(&slot);
    }
}

/// Size of the lower band of addresses: a sixteenth, at least 16, at most 256; none of tiny ranges.
pub fn address_band(size: u64) -> u64 {
    if size < 16 { 0 } else { (size / 16).clamp(16, 256) }
}

/// Size of the lower band of ports: a thirty-second, at least 16, at most 128; none of tiny ranges.
pub fn port_band(size: u64) -> u64 {
    if size < 16 { 0 } else { (size / 32).clamp(16, 128) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bands() {
        assert_eq!((address_band(1 << 20), address_band(254), address_band(8)), (256, 16, 0));
        assert_eq!((port_band(2768), port_band(10)), (86, 0));
    }

    proptest! {
        #[test]
        fn upper_first_every_slot_once(size in 1u64..200, seeds in prop::collection::vec(any::<u64>(), 210)) {
            let reserved = address_band(size);
            let mut band = Band::new(size, reserved);
            let mut seen = HashSet::new();
            for (i, seed) in seeds.into_iter().enumerate() {
                match band.take_any(seed) {
                    Some(slot) => {
                        prop_assert!(slot < size && seen.insert(slot));
                        prop_assert_eq!((i as u64) < size - reserved, slot >= reserved);
                    }
                    None => prop_assert_eq!(seen.len() as u64, size),
                }
            }
            band.release(0);
            prop_assert!(band.take(0) && !band.take(0) && !band.take(size));
        }
    }
}
