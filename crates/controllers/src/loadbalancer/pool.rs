//! Who has which address: the books of the pools, one per IP family.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use client::ObjectKey;

/// The pool's addresses and their holders.
#[derive(Debug)]
pub(super) struct Pool {
    range: RangeInclusive<IpAddr>,
    by_address: BTreeMap<IpAddr, ObjectKey>,
    by_service: HashMap<ObjectKey, IpAddr>,
}

/// What a Service brings along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// What its status says that it has.
    pub current: Option<IpAddr>,
    /// What its spec asks for (`spec.loadBalancerIP`).
    pub asked: Option<IpAddr>,
}

/// Why a Service gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// All are taken.
    #[error("all addresses from {0} to {1} are in use; delete a Service of type LoadBalancer")]
    Exhausted(IpAddr, IpAddr),
    /// The one asked for is somebody else's.
    #[error("address {0} is in use by Service {1}")]
    Taken(IpAddr, ObjectKey),
    /// The one asked for is not ours to give.
    #[error("address {0} is not among those from {1} to {2}")]
    Outside(IpAddr, IpAddr, IpAddr),
}

/// Unique local addresses are far above all that IPv4 has.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// All pools.
#[derive(Debug)]
pub(super) struct Pools(Vec<Pool>);

/// What a Service brings along, over all families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Its families (whether IPv4), in its own order; with none, the main one is meant.
    pub families: Vec<bool>,
    /// What its status says that it has.
    pub current: Vec<IpAddr>,
    /// What its spec asks for.
    pub asked: Option<IpAddr>,
}

impl Wishes {
    fn of(&self, pool: &Pool) -> Wish {
        let fits = |address: &&IpAddr| address.is_ipv4() == pool.is_ipv4();
        Wish {
            current: self.current.iter().find(fits).copied(),
            asked: self.asked.as_ref().filter(fits).copied(),
        }
    }
}

impl Pools {
    /// Of these ranges, that of the main family first.
    pub fn new(ranges: &[RangeInclusive<IpAddr>]) -> Self {
        Self(ranges.iter().cloned().map(Pool::new).collect())
    }

    /// Enters what the status of a Service says: see [`Pool::recall`].
    pub fn recall(&mut self, service: &ObjectKey, wishes: &Wishes) {
        self.0.iter_mut().for_each(|pool| pool.recall(service, wishes.of(pool)));
    }

    /// The addresses of a Service, one per family of its own, in its order; a family that it gave up is given back. All or
    /// none.
    pub fn assign(&mut self, service: &ObjectKey, wishes: &Wishes) -> Result<Vec<IpAddr>, Refusal> {
        let main = self.0.first().map(Pool::is_ipv4);
        let families =
            if wishes.families.is_empty() { main.into_iter().collect() } else { wishes.families.clone() };
        let mut given = Vec::new();
        let mut refused = None;
        for pool in &mut self.0 {
            if !families.contains(&pool.is_ipv4()) {
                pool.release(service);
                continue;
            }
            match pool.assign(service, wishes.of(pool)) {
                Ok(address) => given.push(address),
                Err(refusal) => refused = Some(refusal),
            }
        }
        if let Some(refusal) = refused {
            self.release(service);
            return Err(refusal);
        }
        given.sort_by_key(|address| families.iter().position(|four| *four == address.is_ipv4()));
        Ok(given)
    }

    /// Takes the addresses of a Service back; whether it had one.
    pub fn release(&mut self, service: &ObjectKey) -> bool {
        self.0.iter_mut().fold(false, |any, pool| pool.release(service) | any)
    }
}

impl Pool {
    fn is_ipv4(&self) -> bool {
        self.range.start().is_ipv4()
    }

    /// All addresses of a range, free.
    pub fn new(range: RangeInclusive<IpAddr>) -> Self {
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
    pub fn assign(&mut self, service: &ObjectKey, wish: Wish) -> Result<IpAddr, Refusal> {
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
        let is_free = |a: &IpAddr| !self.by_address.contains_key(a);
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

    fn all(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let of = |bits: u128| match u32::try_from(bits) {
            Ok(bits) => IpAddr::V4(bits.into()),
            Err(_) => IpAddr::V6(bits.into()),
        };
        (number(*self.range.start())..=number(*self.range.end())).map(of)
    }

    fn give(&mut self, service: &ObjectKey, address: IpAddr) {
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

    #[test]
    fn one_address_per_family_or_none() {
        let range = |a: &str, b: &str| a.parse().unwrap()..=b.parse().unwrap();
        let mut pools =
            Pools::new(&[range("192.168.49.101", "192.168.49.103"), range("fd00::101", "fd00::102")]);
        let mut assign = |name: &str, families: &[bool], asked: Option<&str>| {
            let wishes = Wishes {
                families: families.to_vec(),
                current: Vec::new(),
                asked: asked.map(|ip| ip.parse().unwrap()),
            };
            match pools.assign(&key(name), &wishes) {
                Ok(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                Err(refusal) => refusal.to_string(),
            }
        };
        assert_eq!(assign("plain", &[], None), "192.168.49.101");
        assert_eq!(assign("six", &[false], None), "fd00::101");
        assert_eq!(assign("both", &[false, true], Some("192.168.49.103")), "fd00::102 192.168.49.103");
        assert_eq!(
            assign("late", &[true, false], None),
            "all addresses from fd00::101 to fd00::102 are in use; delete a Service of type LoadBalancer"
        );
        // The one that it could have had was not kept from others; and who gives a family up gives its address back.
        assert_eq!(assign("third", &[true], None), "192.168.49.102");
        assert_eq!(assign("both", &[false], None), "fd00::102");
        assert_eq!(assign("fourth", &[true], None), "192.168.49.103");
    }

    proptest! {
        /// Whatever happens, nobody shares an address and both books agree.
        #[test]
        fn no_address_has_two_holders(steps in prop::collection::vec((0u8..6, 0u8..4, 99u8..106), 0..60)) {
            let mut pool = pool();
            for (service, step, host) in steps {
                let (service, address) = (key(&service.to_string()), IpAddr::from([192, 168, 49, host]));
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
