//! Ranges of addresses: what remains of a block without its exceptions.

use std::net::IpAddr;

use ipnet::IpNet;

/// Addresses from one to another of the same family, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
}

impl Range {
    /// Whether an address lies within.
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&addr)
    }
}

/// The addresses of a network that are in none of the exceptions: ascending, disjoint and apart.
pub fn without(net: IpNet, except: &[IpNet]) -> Vec<Range> {
    let v4 = net.addr().is_ipv4();
    let mut holes: Vec<(u128, u128)> =
        except.iter().filter(|hole| hole.addr().is_ipv4() == v4).map(bounds).collect();
    holes.sort_unstable();
    let (mut first, last) = bounds(&net);
    let mut ranges = Vec::new();
    for (hole, end) in holes {
        if end < first || hole > last {
            continue;
        }
        if hole > first {
            ranges.push(range(v4, first, hole - 1));
        }
        if end >= last {
            return ranges;
        }
        first = end + 1;
    }
    ranges.push(range(v4, first, last));
    ranges
}

/// The same addresses in as few ranges as there can be: ascending, disjoint and apart.
pub fn union(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut all: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut().filter(|last| last.first.is_ipv4() == range.first.is_ipv4()) {
            Some(last) if number(range.first) <= number(last.last).saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => all.push(range),
        }
    }
    all
}

fn bounds(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn range(v4: bool, first: u128, last: u128) -> Range {
    let addr = |bits: u128| match v4 {
        // The bits came from an IPv4 address or lie between two.
        true => IpAddr::V4((bits as u32).into()),
        false => IpAddr::V6(bits.into()),
    };
    Range { first: addr(first), last: addr(last) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn text(net: &str, except: &[&str]) -> String {
        let except: Vec<IpNet> = except.iter().map(|e| e.parse().unwrap()).collect();
        let ranges = without(net.parse().unwrap(), &except);
        ranges.iter().map(|r| format!("{}-{}", r.first, r.last)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn exceptions_are_cut_out() {
        assert_eq!(text("10.0.0.0/30", &[]), "10.0.0.0-10.0.0.3");
        assert_eq!(text("10.0.0.0/29", &["10.0.0.2/31"]), "10.0.0.0-10.0.0.1 10.0.0.4-10.0.0.7");
        assert_eq!(text("10.0.0.0/30", &["10.0.0.0/30"]), "");
        assert_eq!(text("0.0.0.0/0", &["128.0.0.0/1"]), "0.0.0.0-127.255.255.255");
        assert_eq!(text("fd00::/126", &["fd00::/128"]), "fd00::1-fd00::3");
        assert_eq!(text("10.0.0.5/30", &["fd00::/8"]), "10.0.0.4-10.0.0.7");
    }

    proptest! {
        #[test]
        fn a_union_has_the_addresses_of_all(
            nets in prop::collection::vec((0u32..4096, 24u8..=32), 0..9), probe in 0u32..4096
        ) {
            let at = |low: u32| IpAddr::from((0x0a00_0000 + low).to_be_bytes());
            let ranges: Vec<Range> = nets.iter().flat_map(|(low, bits)| without(IpNet::new(at(*low), *bits).unwrap(), &[])).collect();
            let all = union(ranges.clone());
            let has = |ranges: &[Range]| ranges.iter().any(|range| range.contains(at(probe)));
            prop_assert_eq!(has(&all), has(&ranges));
            prop_assert!(all.windows(2).all(|pair| number(pair[0].last) + 1 < number(pair[1].first)));
        }

        #[test]
        fn an_address_is_within_iff_the_block_has_it_and_no_exception(
            bits in 20u8..=32, except in prop::collection::vec((0u32..4096, 20u8..=32), 0..6), probe in 0u32..4096
        ) {
            let at = |low: u32| IpAddr::from((0x0a00_0000 + low).to_be_bytes());
            let net = IpNet::new(at(0), bits).unwrap();
            let except: Vec<IpNet> = except.into_iter().map(|(low, bits)| IpNet::new(at(low), bits).unwrap()).collect();
            let expected = net.contains(&at(probe)) && !except.iter().any(|hole| hole.contains(&at(probe)));
            let ranges = without(net, &except);
            prop_assert_eq!(ranges.iter().any(|range| range.contains(at(probe))), expected);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].last < pair[1].first));
        }
    }
}
