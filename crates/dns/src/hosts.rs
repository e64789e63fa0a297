//! Names and addresses that stand in the Corefile itself (directive `hosts`).

use std::collections::HashMap;
use std::net::IpAddr;

use crate::answer::Verdict;
use crate::name::Qname;
use crate::wire::{Owner, Response, Section, kind};

/// A table of names.
#[derive(Debug)]
pub struct Hosts {
    names: HashMap<Box<[u8]>, Vec<IpAddr>>,
    addresses: HashMap<IpAddr, Vec<Box<[u8]>>>,
    /// Seconds for which clients may keep answers, an hour by default.
    pub ttl: u32,
}

impl Default for Hosts {
    fn default() -> Self {
        Self { names: HashMap::new(), addresses: HashMap::new(), ttl: 3600 }
    }
}

impl Hosts {
    /// An address has a name.
    pub fn add(&mut self, addr: IpAddr, name: &Qname) {
        self.names.entry(name.wire().into()).or_default().push(addr);
        self.addresses.entry(addr).or_default().push(name.wire().into());
    }

    /// Addresses have no names any more.
    pub fn without_reverse(&mut self) {
        self.addresses.clear();
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The answer; none about names that are not here.
    pub fn answer(&self, name: &Qname, kind: u16, out: &mut Response) -> Option<Verdict> {
        let before = out.len();
        match self.names.get(name.wire()) {
            Some(addresses) => {
                for addr in addresses {
                    if kind == if addr.is_ipv4() { kind::A } else { kind::AAAA } {
                        out.address(Section::Answer, Owner::Asked, self.ttl, *addr);
                    }
                }
            }
            None => {
                let names = self.addresses.get(&name.reversed()?)?;
                for name in names.iter().filter(|_| kind == kind::PTR) {
                    let data = |data: &mut Vec<u8>| data.extend_from_slice(name);
                    out.add(Section::Answer, Owner::Asked, kind, self.ttl, data);
                }
            }
        }
        Some(if out.len() > before { Verdict::Found } else { Verdict::NoData })
    }
}
