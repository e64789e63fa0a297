//! Names and addresses that stand in the Corefile itself (directive `hosts`).

use std::collections::HashMap;
use std::net::IpAddr;

use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::answer::Answer;
use crate::zone::address;

/// A table of names.
#[derive(Debug)]
pub struct Hosts {
    names: HashMap<Name, Vec<IpAddr>>,
    addresses: HashMap<IpAddr, Vec<Name>>,
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
    pub fn add(&mut self, addr: IpAddr, name: Name) {
        self.names.entry(name.clone()).or_default().push(addr);
        self.addresses.entry(addr).or_default().push(name);
    }

    /// Addresses have no names any more.
    pub fn without_reverse(&mut self) {
        self.addresses.clear();
    }

    /// The answer; none about names that are not here.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Option<Answer> {
        let data: Vec<RData> = match self.names.get(name) {
            Some(addresses) => addresses.iter().map(|addr| address(*addr)).collect(),
            None => {
                let net =
                    name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len())?;
                let names = self.addresses.get(&net.addr())?;
                names.iter().map(|name| RData::PTR(PTR(name.clone()))).collect()
            }
        };
        let of_kind = data.into_iter().filter(|data| data.record_type() == kind);
        let records: Vec<Record> =
            of_kind.map(|data| Record::from_rdata(name.clone(), self.ttl, data)).collect();
        Some(if records.is_empty() { Answer::NoData } else { Answer::Records(records, Vec::new()) })
    }
}
