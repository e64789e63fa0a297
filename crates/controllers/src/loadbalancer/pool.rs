//! Who has which address: the books of the pool.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use client::ObjectKey;

/// The pool's addresses and their holders.
#[derive(Debug)]
pub(super) struct Pool {
    range: RangeInclusive<Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, ObjectKey>,
    by_service: HashMap<ObjectKey, Ipv4Addr>,
}

/// What a Service brings along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// What its status says that it has.
    pub current: Option<Ipv4Addr>,
    /// What its spec asks for (`spec.loadBalancerIP`).
    pub asked: Option<Ipv4Addr>,
}

/// Why a Service gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// All are taken.
    #[error("all addresses from {0} to {1} are in use; delete a Service of type LoadBalancer")]
    Exhausted(Ipv4Addr, Ipv4Addr),
    /// The one asked for is somebody else's.
    #[error("address {0} is in use by Service {1}")]
    Taken(Ipv4Addr, ObjectKey),
    /// The one asked for is not ours to give.
    #[error("address {0} is not among those from {1} to {2}")]
    Outside(Ipv4Addr, Ipv4Addr, Ipv4Addr),
}

impl Pool {
    /// All addresses of a range, free.
    pub fn new(range: RangeInclusive<Ipv4Addr>) -> Self {
        Self { range, by_address: BTreeMap::new(), by_service: HashMap::new() }
    }

    /// Enters what the status of a Service says, unless somebody has it already. To be told of all Services, the oldest
    /// first, before anybody is given anything.
    pub fn recall(&mut self, service: &ObjectKey, wish: Wish) {
        if let Some(address) =
            wish.current.filter(|a| self.range.contains(a) && !self.by_address.contains_key(a))
        {
            self.give(service, address);
        }
    }

    /// The address of a Service: the one asked for, else the one it has, else the lowest free one.
    pub fn assign(&mut self, service: &ObjectKey, wish: Wish) -> Result<Ipv4Addr, Refusal> {
        if let Some(asked) = wish.asked {
            if !self.range.contains(&asked) {
                self.release(service);
                return Err(Refusal::Outside(asked, *self.range.start(), *self.range.end()));
            }
            if let Some(holder) = self.by_address.get(&asked).filter(|holder| *holder != service).cloned() {
                self.release(service);
                return Err(Refusal::Taken(asked, holder));
            }
            self.give(service, asked);
            return Ok(asked);
        }
        if let Some(address) = self.by_service.get(service) {
            return Ok(*address);
        }
        let is_free = |a: &Ipv4Addr| !self.by_address.contains_key(a);
        let known = wish.current.filter(|a| self.range.contains(a) && is_free(a));
        let address = known.or_else(|| self.all().find(is_free));
        let address = address.ok_or(Refusal::Exhausted(*self.range.start(), *self.range.end()))?;
        self.give(service, address);
        Ok(address)
    }

    /// Takes the address of a Service back; whether it had one.
    pub fn release(&mut self, service: &ObjectKey) -> bool {
        let address = self.by_service.remove(service);
        address.is_some_and(|address| self.by_address.remove(&address).is_some())
    }

    fn all(&self) -> impl Iterator<Item = Ipv4Addr> {
        (self.range.start().to_bits()..=self.range.end().to_bits()).map(Ipv4Addr::from_bits)
    }

    fn give(&mut self, service: &ObjectKey, address: Ipv4Addr) {
        self.release(service);
        self.by_address.insert(address, service.clone());
        self.by_service.insert(service.clone(), address);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn pool() -> Pool {
        Pool::new("192.168.49.101".parse().unwrap()..="192.168.49.103".parse().unwrap())
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    fn asks(address: &str) -> Wish {
        Wish { asked: Some(address.parse().unwrap()), current: None }
    }

    fn has(address: &str) -> Wish {
        Wish { current: Some(address.parse().unwrap()), asked: None }
    }

    fn assign(pool: &mut Pool, name: &str, wish: Wish) -> String {
        pool.assign(&key(name), wish)
            .map_or_else(|refusal| refusal.to_string(), |address| address.to_string())
    }

    #[test]
    fn the_lowest_free_address_is_given_and_kept() {
        let mut pool = pool();
        assert_eq!(assign(&mut pool, "a", Wish::default()), "192.168.49.101");
        assert_eq!(assign(&mut pool, "b", Wish::default()), "192.168.49.102");
        assert_eq!(assign(&mut pool, "a", Wish::default()), "192.168.49.101");
        assert!(pool.release(&key("a")) && !pool.release(&key("a")));
        assert_eq!(assign(&mut pool, "c", Wish::default()), "192.168.49.101");
        assert_eq!(assign(&mut pool, "d", Wish::default()), "192.168.49.103");
        let full = "all addresses from 192.168.49.101 to 192.168.49.103 are in use; delete a Service of type LoadBalancer";
        assert_eq!(assign(&mut pool, "e", Wish::default()), full);
    }

    #[test]
    fn what_was_given_before_a_restart_is_kept_by_the_first() {
        let mut pool = pool();
        pool.recall(&key("old"), has("192.168.49.102"));
        pool.recall(&key("copy"), has("192.168.49.102"));
        pool.recall(&key("stray"), has("8.8.8.8"));
        assert_eq!(assign(&mut pool, "new", Wish::default()), "192.168.49.101");
        assert_eq!(assign(&mut pool, "copy", has("192.168.49.102")), "192.168.49.103");
        assert_eq!(assign(&mut pool, "old", has("192.168.49.102")), "192.168.49.102");
    }

    #[test]
    fn a_wanted_address_is_given_or_its_holder_named() {
        let mut pool = pool();
        assert_eq!(assign(&mut pool, "a", asks("192.168.49.103")), "192.168.49.103");
        assert_eq!(
            assign(&mut pool, "b", asks("192.168.49.103")),
            "address 192.168.49.103 is in use by Service ns/a"
        );
        let outside = "address 10.0.0.1 is not among those from 192.168.49.101 to 192.168.49.103";
        assert_eq!(assign(&mut pool, "b", asks("10.0.0.1")), outside);
        assert_eq!(
            assign(&mut pool, "a", asks("192.168.49.101")),
            "192.168.49.101",
            "a changed wish moves it"
        );
        assert_eq!(assign(&mut pool, "b", asks("192.168.49.103")), "192.168.49.103");
    }

    proptest! {
        /// Whatever happens, nobody shares an address and both books agree.
        #[test]
        fn no_address_has_two_holders(steps in prop::collection::vec((0u8..6, 0u8..4, 99u8..106), 0..60)) {
            let mut pool = pool();
            for (service, step, host) in steps {
                let (service, address) = (key(&service.to_string()), Ipv4Addr::new(192, 168, 49, host));
                match step {
                    0 => drop(pool.release(&service)),
                    1 => drop(pool.assign(&service, Wish { asked: Some(address), current: None })),
                    2 => drop(pool.assign(&service, Wish { asked: None, current: Some(address) })),
                    _ => drop(pool.assign(&service, Wish::default())),
                }
                prop_assert_eq!(pool.by_address.len(), pool.by_service.len());
                for (address, holder) in &pool.by_address {
                    prop_assert!(pool.range.contains(address));
                    prop_assert_eq!(pool.by_service.get(holder), Some(address));
                }
            }
        }
    }
}
