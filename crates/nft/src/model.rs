//! Tables, chains, sets and maps as plain values, in the kernel's own terms.
//!
//! A [`Table`] is complete: printing it gives what `nft list table` prints, [`crate::Batch::add_table`] makes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

use crate::rule::{Key, Rule};

/// The protocol family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both; keys of one family need a match on [`Key::Nfproto`] before them.
    Inet,
}

/// Family and name of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Protocol family.
    pub family: Family,
    /// Name within the family.
    pub name: String,
}

impl TableName {
    /// A name from its parts.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

/// A table with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Family and name.
    pub name: TableName,
    /// Named counters.
    pub objects: Vec<Object>,
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains with their rules.
    pub chains: Vec<Chain>,
}

impl Table {
    /// An empty table.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { name: TableName::new(family, name), objects: Vec::new(), sets: Vec::new(), chains: Vec::new() }
    }
}

/// A stateful object that rules refer to by name: a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Name within the table.
    pub name: String,
}

/// Where in the network stack a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Every arriving packet, before routing.
    Prerouting,
    /// Packets for this namespace's own sockets.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets of this namespace's own sockets.
    Output,
    /// Every leaving packet, after routing.
    Postrouting,
}

/// The kind of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Accepts and drops.
    Filter,
    /// Sees the first packet of each connection and translates addresses.
    Nat,
    /// Like filter, but reroutes a locally made packet whose mark or addresses it changed.
    Route,
}

/// What happens to a packet that reaches the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Base {
    /// Kind.
    pub kind: ChainType,
    /// Place.
    pub hook: Hook,
    /// Order among the chains of the same hook, lower first; -100 is dstnat, 0 filter, 100 srcnat.
    pub priority: i32,
    /// Fate of a packet no rule decided about.
    pub policy: Policy,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name within the table.
    pub name: String,
    /// Set for a chain that the kernel calls, none for one that rules jump to.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that rules jump to.
    pub fn new(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), base: None, rules }
    }

    /// A chain that the kernel calls, with policy accept.
    pub fn base(
        name: impl Into<String>,
        kind: ChainType,
        hook: Hook,
        priority: i32,
        rules: Vec<Rule>,
    ) -> Self {
        Self { name: name.into(), base: Some(Base { kind, hook, priority, policy: Policy::Accept }), rules }
    }
}

/// A data type of a key or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`: layer 4 protocol number.
    InetProto,
    /// `inet_service`: port.
    InetService,
    /// `mark`: 32 bits in host order.
    Mark,
    /// `ifname`: interface name.
    Ifname,
    /// `integer` of 32 bits in host order; only by way of [`Types::Typeof`].
    Integer,
    /// The remaining types of [`Key`]s, which sets do not use.
    Other {
        /// Bytes.
        len: usize,
    },
}

/// The type of a key or a value: a concatenation, by types or by expressions of those types.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Types {
    /// `type ipv4_addr . inet_service`.
    Plain(Vec<Type>),
    /// `typeof ip daddr . th dport`.
    Typeof(Vec<Key>),
}

impl Types {
    /// The types, one per field.
    pub fn fields(&self) -> Vec<Type> {
        match self {
            Self::Plain(types) => types.clone(),
            Self::Typeof(keys) => keys.iter().map(Key::data_type).collect(),
        }
    }
}

/// What a map maps to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// A verdict.
    Verdict,
    /// A value.
    Value(Types),
}

/// Properties of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SetFlags {
    /// Elements are ranges or prefixes.
    pub interval: bool,
    /// Elements may expire.
    pub timeout: bool,
    /// Rules add elements.
    pub dynamic: bool,
}

/// A set, or a map when it has `data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name within the table.
    pub name: String,
    /// Type of the keys.
    pub key: Types,
    /// Type of the values of a map.
    pub data: Option<Data>,
    /// Properties.
    pub flags: SetFlags,
    /// Most elements it may hold; needed by dynamic sets.
    pub size: Option<u32>,
    /// Default life of an element.
    pub timeout: Option<Duration>,
    /// What is in it.
    pub elements: Vec<Element>,
}

impl Set {
    /// A set without elements.
    pub fn new(name: impl Into<String>, key: Types) -> Self {
        let (data, flags) = (None, SetFlags::default());
        Self { name: name.into(), key, data, flags, size: None, timeout: None, elements: Vec::new() }
    }

    /// A map without elements.
    pub fn map(name: impl Into<String>, key: Types, data: Data) -> Self {
        Self { data: Some(data), ..Self::new(name, key) }
    }

    /// The same with other flags.
    #[must_use]
    pub fn with_flags(self, flags: SetFlags) -> Self {
        Self { flags, ..self }
    }

    /// The same with elements.
    #[must_use]
    pub fn with_elements(self, elements: Vec<Element>) -> Self {
        Self { elements, ..self }
    }
}

/// One field of a key or of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// An IPv4 address.
    Ip4(Ipv4Addr),
    /// An IPv6 address.
    Ip6(Ipv6Addr),
    /// A layer 4 protocol number.
    Proto(u8),
    /// A port.
    Port(u16),
    /// A packet mark.
    Mark(u32),
    /// A plain number in host order.
    Integer(u32),
    /// An interface name, padded with NUL.
    Ifname([u8; 16]),
}

impl Value {
    /// An interface name; cut at 15 bytes, the longest that the kernel gives.
    pub fn ifname(name: &str) -> Self {
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self::Ifname(bytes)
    }
}

impl From<IpAddr> for Value {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => Self::Ip4(addr),
            IpAddr::V6(addr) => Self::Ip6(addr),
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Leaves this hook's table and goes on.
    Accept,
    /// Vanishes.
    Drop,
    /// Back to the calling chain.
    Return,
    /// The next rule.
    Continue,
    /// Into a chain, and back here afterwards.
    Jump(String),
    /// Into a chain, and not back here.
    Goto(String),
}

/// What an element of a map maps to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ElementData {
    /// A verdict.
    Verdict(Verdict),
    /// A value, field by field.
    Value(Vec<Value>),
}

/// An element of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// The key, field by field; the lower end in an interval set.
    pub key: Vec<Value>,
    /// The upper end (included) in an interval set; none for a single key.
    pub key_end: Option<Vec<Value>>,
    /// Of maps only.
    pub data: Option<ElementData>,
    /// How long it lives, in sets with timeouts.
    pub timeout: Option<Duration>,
    /// Shown by listings, at most 127 bytes.
    pub comment: Option<String>,
}

impl Element {
    /// An element of a set.
    pub fn new(key: Vec<Value>) -> Self {
        Self { key, key_end: None, data: None, timeout: None, comment: None }
    }

    /// An element of a map of values.
    pub fn value(key: Vec<Value>, data: Vec<Value>) -> Self {
        Self { data: Some(ElementData::Value(data)), ..Self::new(key) }
    }

    /// An element of a map of verdicts.
    pub fn verdict(key: Vec<Value>, verdict: Verdict) -> Self {
        Self { data: Some(ElementData::Verdict(verdict)), ..Self::new(key) }
    }

    /// An element of an interval set of addresses.
    pub fn prefix(net: IpNet) -> Self {
        Self { key_end: Some(vec![net.broadcast().into()]), ..Self::new(vec![net.network().into()]) }
    }
}
