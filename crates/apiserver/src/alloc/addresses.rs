//! Cluster addresses: one band per address family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::AllocError;
use super::band::{Band, address_band};

/// Largest part of an IPv6 range that is used: as many addresses as a /12 of IPv4 and more than ever needed.
const MOST: u64 = 1 << 20;

/// The service ranges of a cluster.
#[derive(Debug)]
pub struct Addresses(Vec<Range>);

#[derive(Debug)]
struct Range {
    net: IpNet,
    /// First address that may be given: the one after the network's own.
    first: u128,
    band: Band,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// `IPv4` or `IPv6`.
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl Range {
    fn new(net: IpNet) -> Self {
        let host_bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let total = 1u64.checked_shl(host_bits.min(63)).unwrap_or(MOST);
        // Without the network's address, and without the broadcast address of IPv4.
        let size = total.saturating_sub(if net.network().is_ipv4() { 2 } else { 1 }).min(MOST);
        Range { net, first: number(net.network()) + 1, band: Band::new(size, address_band(size)) }
    }

    fn slot(&self, address: IpAddr) -> Option<u64> {
        if !self.net.contains(&address) {
            return None;
        }
        number(address).checked_sub(self.first).and_then(|s| u64::try_from(s).ok())
    }

    fn address(&self, slot: u64) -> IpAddr {
        let number = self.first + u128::from(slot);
        match self.net {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX))),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }
}

impl Addresses {
    /// Of these ranges, the main family first.
    pub fn new(nets: &[IpNet]) -> Self {
        Addresses(nets.iter().map(|net| Range::new(net.trunc())).collect())
    }

    /// Families, the main one first.
    pub fn families(&self) -> Vec<&'static str> {
        self.0.iter().map(|r| family(r.net.network())).collect()
    }

    /// Takes a given address.
    pub fn take(&mut self, address: IpAddr) -> Result<(), AllocError> {
        let nets: Vec<String> = self.0.iter().map(|r| r.net.to_string()).collect();
        let found = self.0.iter_mut().find_map(|r| r.slot(address).map(|slot| (r, slot)));
        let Some((range, slot)) = found.filter(|(r, slot)| *slot < r.band.size()) else {
            return Err(AllocError::AddressOutside(address, nets.join(",")));
        };
        if range.band.take(slot) { Ok(()) } else { Err(AllocError::AddressTaken(address)) }
    }

    /// Takes some address of a family.
    pub fn take_any(&mut self, wanted: &str, random: u64) -> Result<IpAddr, AllocError> {
        let range = self.0.iter_mut().find(|r| family(r.net.network()) == wanted);
        let range = range.ok_or(AllocError::AddressesFull)?;
        let slot = range.band.take_any(random).ok_or(AllocError::AddressesFull)?;
        Ok(range.address(slot))
    }

    /// Gives an address back.
    pub fn release(&mut self, address: IpAddr) {
        for range in &mut self.0 {
            if let Some(slot) = range.slot(address) {
                range.band.release(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn upper_band_first_and_nothing_twice() {
        let mut addresses = Addresses::new(&["10.96.0.0/12".parse().unwrap()]);
        let dns: IpAddr = "10.96.0.10".parse().unwrap();
        addresses.take(dns).unwrap();
        assert_eq!(addresses.take(dns), Err(AllocError::AddressTaken(dns)));
        for random in 0..100 {
            let address = addresses.take_any("IPv4", random * 7919).unwrap();
            let IpAddr::V4(a) = address else { panic!("{address}") };
            assert!(a > Ipv4Addr::new(10, 96, 1, 0), "{a} is of the lower band");
        }
        let outside: IpAddr = "10.112.0.1".parse().unwrap();
        assert_eq!(
            addresses.take(outside).unwrap_err().to_string(),
            "failed to allocate IP 10.112.0.1: the provided IP (10.112.0.1) is not in the valid range. The range of valid IPs is 10.96.0.0/12"
        );
        assert!(addresses.take("10.96.0.0".parse().unwrap()).is_err(), "the network's own address");
        assert!(addresses.take("10.111.255.255".parse().unwrap()).is_err(), "the broadcast address");
        addresses.release(dns);
        addresses.take(dns).unwrap();
    }

    #[test]
    fn small_and_v6_ranges() {
        let mut small = Addresses::new(&["10.0.0.0/30".parse().unwrap(), "fd00::/108".parse().unwrap()]);
        assert_eq!(small.families(), ["IPv4", "IPv6"]);
        let mut got: Vec<String> = (0..2).map(|i| small.take_any("IPv4", i).unwrap().to_string()).collect();
        got.sort();
        assert_eq!(got, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(small.take_any("IPv4", 0), Err(AllocError::AddressesFull));
        assert!(small.take_any("IPv6", 5).unwrap().is_ipv6());
    }
}
