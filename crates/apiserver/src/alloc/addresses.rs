//! Cluster addresses: the configured networks, one per address family, and those of ServiceCIDRs.
//!
//! Networks may overlap; an address that is taken is so in all that contain it.

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
    /// The ServiceCIDR that it comes from; none when configured.
    of: Option<String>,
    /// Addresses may be taken from it; those that are taken stay so in any case.
    open: bool,
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
        let band = Band::new(size, address_band(size));
        Range { net, of: None, open: true, first: number(net.network()) + 1, band }
    }

    fn slot(&self, address: IpAddr) -> Option<u64> {
        if !self.net.contains(&address) {
            return None;
        }
        let slot = number(address).checked_sub(self.first).and_then(|s| u64::try_from(s).ok());
        slot.filter(|slot| *slot < self.band.size())
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
        self.0.iter().filter(|r| r.of.is_none()).map(|r| family(r.net.network())).collect()
    }

    /// The networks of a ServiceCIDR, and whether addresses may be taken from them.
    pub fn set(&mut self, name: &str, nets: &[IpNet], open: bool) {
        let is_own = |range: &Range| range.of.as_deref() == Some(name);
        self.0.retain(|range| !is_own(range) || nets.contains(&range.net));
        for net in nets.iter().map(IpNet::trunc) {
            if let Some(range) = self.0.iter_mut().find(|range| is_own(range) && range.net == net) {
                range.open = open;
            } else if !self.0.iter().any(|range| range.of.is_none() && range.net == net) {
                let mut range = Range { of: Some(name.to_owned()), open, ..Range::new(net) };
                for other in &self.0 {
                    let taken = other.band.taken().filter_map(|slot| range.slot(other.address(slot)));
                    for slot in taken.collect::<Vec<_>>() {
                        range.band.take(slot);
                    }
                }
                self.0.push(range);
            }
        }
    }

    /// Takes a given address.
    pub fn take(&mut self, address: IpAddr) -> Result<(), AllocError> {
        if !self.0.iter().any(|r| r.open && r.slot(address).is_some()) {
            let nets = self.0.iter().filter(|r| r.open).map(|r| r.net.to_string());
            return Err(AllocError::AddressOutside(address, nets.collect::<Vec<_>>().join(",")));
        }
        if self.0.iter().any(|r| r.slot(address).is_some_and(|slot| r.band.is_taken(slot))) {
            return Err(AllocError::AddressTaken(address));
        }
        self.mark(address);
        Ok(())
    }

    fn mark(&mut self, address: IpAddr) {
        for range in &mut self.0 {
            if let Some(slot) = range.slot(address) {
                range.band.take(slot);
            }
        }
    }

    /// Takes some address of a family.
    pub fn take_any(&mut self, wanted: &str, random: u64) -> Result<IpAddr, AllocError> {
        let mut ranges = self.0.iter_mut().filter(|r| r.open && family(r.net.network()) == wanted);
        let found = ranges.find_map(|r| r.band.take_any(random).map(|slot| r.address(slot)));
        let address = found.ok_or(AllocError::AddressesFull)?;
        self.mark(address);
        Ok(address)
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
    fn networks_come_and_go_and_may_overlap() {
        let mut addresses = Addresses::new(&["10.0.0.0/30".parse().unwrap()]);
        let wide: IpNet = "10.0.0.0/29".parse().unwrap();
        let (own, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.5".parse().unwrap());
        addresses.take(own).unwrap();
        addresses.set("wide", &[wide], false);
        assert!(matches!(addresses.take(other), Err(AllocError::AddressOutside(..))), "not ready yet");
        addresses.set("wide", &[wide], true);
        assert_eq!(
            addresses.take(own),
            Err(AllocError::AddressTaken(own)),
            "it was so before the network came"
        );
        addresses.take(other).unwrap();
        assert_eq!(addresses.families(), ["IPv4"], "a further network is no further family");
        let mut rest: Vec<String> =
            std::iter::from_fn(|| addresses.take_any("IPv4", 3).ok()).map(|a| a.to_string()).collect();
        rest.sort();
        assert_eq!(rest, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6"], "each once");
        addresses.set("wide", &[wide], false);
        addresses.release(other);
        assert_eq!(addresses.take_any("IPv4", 0), Err(AllocError::AddressesFull));
        addresses.set("wide", &[], false);
        addresses.release("10.0.0.2".parse().unwrap());
        assert_eq!(addresses.take_any("IPv4", 0), Ok("10.0.0.2".parse().unwrap()));
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
