//! Rules: what is read from a packet ([`Key`]) and what is done with it ([`Stmt`]).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::model::{Type, Value, Verdict};

/// Something that can be read of a packet or its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// `ip saddr`.
    IpSaddr,
    /// `ip daddr`.
    IpDaddr,
    /// `ip6 saddr`.
    Ip6Saddr,
    /// `ip6 daddr`.
    Ip6Daddr,
    /// `th sport`: source port of TCP, UDP or SCTP.
    ThSport,
    /// `th dport`: destination port of TCP, UDP or SCTP.
    ThDport,
    /// `icmp type`; needs a match on the protocol before it.
    IcmpType,
    /// `icmpv6 type`; needs a match on the protocol before it.
    Icmpv6Type,
    /// `meta l4proto`.
    L4proto,
    /// `meta nfproto`: 2 for IPv4, 10 for IPv6.
    Nfproto,
    /// `meta mark`.
    Mark,
    /// `iifname`: interface it came in by.
    Iifname,
    /// `oifname`: interface it goes out by.
    Oifname,
    /// `ct state`, a bit mask ([`crate::rule::ct_state`]).
    CtState,
    /// `ct status`, a bit mask ([`crate::rule::ct_status`]).
    CtStatus,
    /// `ct direction`: 0 original, 1 reply.
    CtDirection,
    /// `ct mark`.
    CtMark,
    /// `ct original ip daddr`: where the connection was sent before translation.
    CtOriginalIpDaddr,
    /// `ct original ip6 daddr`.
    CtOriginalIp6Daddr,
    /// `ct original proto-dst`.
    CtOriginalDport,
    /// `fib saddr type` ([`crate::rule::fib_type`]).
    FibSaddrType,
    /// `fib daddr type` ([`crate::rule::fib_type`]).
    FibDaddrType,
    /// `fib saddr . iif oif`: index of the interface by which the source is reached, if that is the one it came in by; else
    /// 0.
    FibSaddrOif,
    /// `numgen random mod N`: a random number below N, in host order.
    Random(u32),
}

/// Bits of [`Key::CtState`].
pub mod ct_state {
    /// The packet belongs to no connection.
    pub const INVALID: u32 = 1;
    /// Packets were seen both ways.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection, as an ICMP error does.
    pub const RELATED: u32 = 4;
    /// Opens a connection.
    pub const NEW: u32 = 8;
    /// Not tracked on purpose.
    pub const UNTRACKED: u32 = 64;
}

/// Bits of [`Key::CtStatus`].
pub mod ct_status {
    /// The source address was translated.
    pub const SNAT: u32 = 16;
    /// The destination address was translated.
    pub const DNAT: u32 = 32;
}

/// Values of [`Key::FibDaddrType`].
pub mod fib_type {
    /// Reached by a route.
    pub const UNICAST: u32 = 1;
    /// An address of this namespace.
    pub const LOCAL: u32 = 2;
}

impl Key {
    /// The type of what is read.
    pub fn data_type(&self) -> Type {
        match self {
            Self::IpSaddr | Self::IpDaddr | Self::CtOriginalIpDaddr => Type::Ipv4Addr,
            Self::Ip6Saddr | Self::Ip6Daddr | Self::CtOriginalIp6Daddr => Type::Ipv6Addr,
            Self::ThSport | Self::ThDport | Self::CtOriginalDport => Type::InetService,
            Self::L4proto => Type::InetProto,
            Self::Mark | Self::CtMark => Type::Mark,
            Self::Iifname | Self::Oifname => Type::Ifname,
            Self::Random(_) => Type::Integer,
            Self::IcmpType | Self::Icmpv6Type | Self::Nfproto | Self::CtDirection => Type::Other { len: 1 },
            Self::CtState | Self::CtStatus | Self::FibSaddrType | Self::FibDaddrType | Self::FibSaddrOif => {
                Type::Other { len: 4 }
            }
        }
    }
}

/// How a [`Stmt::Match`] compares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op {
    /// Equal to a value.
    Eq(Value),
    /// Not equal to a value.
    Ne(Value),
    /// Within two values, both included.
    Range(Value, Value),
    /// An address within a prefix of so many bits.
    Prefix(IpAddr, u8),
    /// An address not within a prefix of so many bits.
    NotPrefix(IpAddr, u8),
    /// Any of these bits set.
    Any(u32),
    /// `key & mask == value`.
    Masked {
        /// Bits looked at.
        mask: u32,
        /// What they must be.
        value: u32,
    },
    /// Equal to a small number of the key's own width.
    Is(u32),
    /// Not equal to a small number of the key's own width.
    IsNot(u32),
    /// An interface name that begins so.
    NameBegins(&'static str),
}

/// What [`Stmt::SetMark`] writes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Assign {
    /// A constant.
    To(u32),
    /// The old mark with these bits set.
    Or(u32),
    /// The old mark with only these bits kept.
    And(u32),
    /// Something read from the packet.
    Key(Key),
    /// Looked up in a map; a miss ends the rule.
    Map(Vec<Key>, String),
}

/// Where [`Stmt::Dnat`] sends a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NatTarget {
    /// Always there.
    Socket(SocketAddr),
    /// Address and port looked up in a map; a miss ends the rule.
    Map(Vec<Key>, String),
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// TCP reset; the rule must match TCP.
    TcpReset,
    /// ICMP or ICMPv6 port unreachable, by the family of the table.
    PortUnreachable,
}

/// Time unit of a [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Per second.
    Second,
    /// Per minute.
    Minute,
}

/// Lets so many packets through per time; further ones end the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Packets per unit.
    pub rate: u64,
    /// Unit.
    pub unit: Unit,
    /// Packets that may come at once.
    pub burst: u32,
}

/// A log line, or a netlink message to the listeners of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    /// Put before the line, at most 127 bytes.
    pub prefix: Option<String>,
    /// NFLOG group; none writes to the kernel log.
    pub group: Option<u16>,
}

/// One step of a rule; the rule goes on with the next one unless it does not match or decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Stmt {
    /// Goes on if the comparison holds.
    Match(Key, Op),
    /// Goes on if the concatenation is in the set.
    InSet(Vec<Key>, String),
    /// Goes on if the concatenation is not in the set.
    NotInSet(Vec<Key>, String),
    /// Takes the verdict of the map; goes on if there is none.
    Vmap(Vec<Key>, String),
    /// Decides.
    Verdict(Verdict),
    /// Writes the packet's mark.
    SetMark(Assign),
    /// Writes the connection's mark from the packet's.
    SaveMark,
    /// Sends the connection elsewhere.
    Dnat(NatTarget),
    /// Gives the connection the address of the interface it leaves by, with a random port.
    Masquerade,
    /// Refuses.
    Reject(Reject),
    /// Counts packets and bytes here.
    Counter,
    /// Counts packets and bytes in a named counter.
    CounterRef(String),
    /// Goes on while the rate is not exceeded.
    Limit(Limit),
    /// Tells.
    Log(Log),
    /// Puts the concatenation into a dynamic set or map, or renews its life there.
    Update {
        /// Name of the set.
        set: String,
        /// Key.
        keys: Vec<Key>,
        /// Life of the element.
        timeout: Option<Duration>,
        /// Value in a map; an element that is there keeps the one it has.
        data: Option<Key>,
    },
    /// Takes the concatenation out of a dynamic set or map.
    Forget {
        /// Name of the set.
        set: String,
        /// Key.
        keys: Vec<Key>,
        /// Of a map; the kernel wants some value named though it takes the element out whatever its value.
        data: Option<Key>,
    },
}

/// A rule: steps in order, and a comment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    /// Steps in order.
    pub stmts: Vec<Stmt>,
    /// Shown by listings, at most 127 bytes.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(stmts: Vec<Stmt>) -> Self {
        Self { stmts, comment: None }
    }

    /// The same with a comment.
    #[must_use]
    pub fn with_comment(self, comment: impl Into<String>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }
}
