//! Addresses of Pods: which Pod has which, which is next. In memory, because the kernel's own routes are the record
//! that survives (see [`crate::PodNetwork`]).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::error::{Error, Result};

/// The addresses of one node, of one or both families.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    ranges: Vec<Range>,
    pods: HashMap<String, Vec<IpAddr>>,
}

/// One range and where the search goes on: an address given back is not handed out again at once, while others may
/// still believe in its former owner.
#[derive(Debug)]
struct Range {
    net: IpNet,
    taken: BTreeMap<u128, ()>,
    next: u128,
}

impl Range {
    fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let (first, _) = bounds(net);
        Self { net, taken: BTreeMap::new(), next: first }
    }

    fn take_next(&mut self) -> Option<IpAddr> {
        let (first, last) = bounds(self.net);
        let start = self.next.clamp(first, last);
        let found = self.free_from(start, last).or_else(|| self.free_from(first, start))?;
        self.taken.insert(found, ());
        self.next = if found == last { first } else { found + 1 };
        Some(to_address(found, self.net))
    }

    /// The first free address of a stretch; steps over runs of taken ones.
    fn free_from(&self, first: u128, last: u128) -> Option<u128> {
        let mut candidate = first;
        for (&taken, ()) in self.taken.range(first..=last) {
            if taken > candidate {
                break;
            }
            candidate = taken + 1;
        }
        (candidate <= last).then_some(candidate)
    }

    fn holds(&self, address: IpAddr) -> bool {
        let (first, last) = bounds(self.net);
        self.net.contains(&address) && (first..=last).contains(&to_number(address))
    }
}

/// The first and last address for Pods: not the network's own, not the first (the node's, by custom), not the last
/// (IPv4's broadcast).
fn bounds(net: IpNet) -> (u128, u128) {
    let (first, last) = (to_number(net.network()), to_number(net.broadcast()));
    match last - first {
        0..=3 => (first, last),
        _ => (first + 2, last - 1),
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn to_address(number: u128, net: IpNet) -> IpAddr {
    match net {
        IpNet::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl Addresses {
    pub fn new(ranges: &[IpNet]) -> Self {
        Self { ranges: ranges.iter().copied().map(Range::new).collect(), pods: HashMap::new() }
    }

    /// The Pod's addresses, one of each range; asking again gives the same.
    pub fn allocate(&mut self, pod: &str) -> Result<Vec<IpAddr>> {
        if let Some(known) = self.pods.get(pod) {
            return Ok(known.clone());
        }
        let mut given = Vec::new();
        for at in 0..self.ranges.len() {
            match self.ranges.get_mut(at).and_then(Range::take_next) {
                Some(address) => given.push(address),
                None => {
                    let full = self.ranges.get(at).map(|range| range.net.to_string()).unwrap_or_default();
                    self.give_back(&given);
                    return Err(Error::Exhausted(full));
                }
            }
        }
        self.pods.insert(pod.to_owned(), given.clone());
        Ok(given)
    }

    /// Notes addresses that a Pod already has.
    pub fn adopt(&mut self, pod: &str, addresses: &[IpAddr]) -> Result<()> {
        let known = self.pods.get(pod).cloned().unwrap_or_default();
        let refuse = |address, reason| Err(Error::Address { address, pod: pod.to_owned(), reason });
        for &address in addresses {
            let Some(range) = self.ranges.iter().find(|range| range.holds(address)) else {
                return refuse(address, "is not of this node's range");
            };
            if range.taken.contains_key(&to_number(address)) && !known.contains(&address) {
                return refuse(address, "belongs to another pod");
            }
        }
        let lost: Vec<IpAddr> = known.into_iter().filter(|address| !addresses.contains(address)).collect();
        self.give_back(&lost);
        for &address in addresses {
            if let Some(range) = self.ranges.iter_mut().find(|range| range.holds(address)) {
                range.taken.insert(to_number(address), ());
                range.next = range.next.max(to_number(address).saturating_add(1));
            }
        }
        self.pods.insert(pod.to_owned(), addresses.to_vec());
        Ok(())
    }

    /// Forgets a Pod; gives what it had.
    pub fn release(&mut self, pod: &str) -> Vec<IpAddr> {
        let had = self.pods.remove(pod).unwrap_or_default();
        self.give_back(&had);
        had
    }

    fn give_back(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            for range in self.ranges.iter_mut().filter(|range| range.holds(*address)) {
                range.taken.remove(&to_number(*address));
            }
        }
    }

    pub fn of(&self, pod: &str) -> Option<&[IpAddr]> {
        self.pods.get(pod).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn v4(net: &str) -> Addresses {
        Addresses::new(&[net.parse().unwrap()])
    }

    #[test]
    fn addresses_go_round_before_they_come_again() {
        let mut addresses = v4("10.244.0.0/29");
        let mut give = |pod: &str| addresses.allocate(pod).unwrap()[0].to_string();
        assert_eq!(
            (give("a").as_str(), give("b").as_str(), give("a").as_str()),
            ("10.244.0.2", "10.244.0.3", "10.244.0.2")
        );
        addresses.release("a");
        for (pod, expected) in [("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
            assert_eq!(addresses.allocate(pod).unwrap()[0].to_string(), format!("10.244.0.{expected}"));
        }
        assert!(matches!(addresses.allocate("g"), Err(Error::Exhausted(_))));
        assert_eq!(addresses.release("nobody"), Vec::<IpAddr>::new());
    }

    #[test]
    fn both_families_and_what_is_full_gives_nothing() {
        let nets = ["10.244.0.0/24".parse().unwrap(), "fd00::/126".parse().unwrap()];
        let mut addresses = Addresses::new(&nets);
        let first = addresses.allocate("a").unwrap();
        assert_eq!(first.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.244.0.2", "fd00::"]);
        for pod in ["b", "c", "d"] {
            addresses.allocate(pod).unwrap();
        }
        assert!(addresses.allocate("e").is_err());
        addresses.release("a");
        // The IPv4 address that "e" was about to get was given back.
        assert_eq!(addresses.allocate("e").unwrap()[1].to_string(), "fd00::");
        assert_eq!(addresses.ranges[0].taken.len(), 4);
    }

    #[test]
    fn adopted_addresses_are_taken() {
        let mut addresses = v4("10.244.0.0/24");
        let address: IpAddr = "10.244.0.2".parse().unwrap();
        addresses.adopt("old", &[address]).unwrap();
        addresses.adopt("old", &[address]).unwrap();
        assert_ne!(addresses.allocate("new").unwrap()[0], address);
        assert_eq!(addresses.allocate("old").unwrap()[0], address);
        assert!(addresses.adopt("thief", &[address]).is_err());
        assert!(addresses.adopt("x", &["10.245.0.2".parse().unwrap()]).is_err());
        assert!(addresses.adopt("x", &["10.244.0.255".parse().unwrap()]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No two Pods ever share an address, and a range is used to its last one.
        #[test]
        fn no_address_twice(steps in prop::collection::vec((0u8..40, any::<bool>()), 0..200), bits in 26u8..=32) {
            let net = format!("10.244.7.0/{bits}");
            let mut addresses = v4(&net);
            let (first, last) = bounds(net.parse().unwrap());
            for (pod, up) in steps {
                let pod = pod.to_string();
                if up {
                    let room = addresses.pods.len() < (last - first + 1) as usize || addresses.pods.contains_key(&pod);
                    prop_assert_eq!(addresses.allocate(&pod).is_ok(), room);
                } else {
                    addresses.release(&pod);
                }
                let all: Vec<_> = addresses.pods.values().flatten().collect();
                prop_assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
                prop_assert_eq!(addresses.ranges[0].taken.len(), all.len());
            }
        }
    }
}
