//! The model as `nft list ruleset` prints it.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::model::{
    Base, Chain, ChainType, Data, Element, ElementData, Family, Hook, Object, Policy, Set, Table, TableName,
    Type, Types, Value, Verdict,
};
use crate::rule::{Assign, Key, Limit, Log, NatTarget, Op, Reject, Rule, Stmt, Unit, ct_state, ct_status};

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        })
    }
}

impl Display for TableName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {{", self.name)?;
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.objects.iter().map(ToString::to_string));
        parts.extend(self.sets.iter().map(ToString::to_string));
        parts.extend(self.chains.iter().map(ToString::to_string));
        f.write_str(&parts.join("\n"))?;
        writeln!(f, "}}")
    }
}

impl Display for Object {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tcounter {} {{\n\t\tpackets 0 bytes 0\n\t}}", self.name)
    }
}

impl Display for Type {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::Ifname => "ifname",
            Self::Integer | Self::Other { .. } => "integer",
        })
    }
}

fn joined<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ")
}

impl Display for Types {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(types) => f.write_str(&joined(types)),
            Self::Typeof(keys) => f.write_str(&joined(keys)),
        }
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\t{} {} {{", if self.data.is_some() { "map" } else { "set" }, self.name)?;
        let typeof_data = matches!(&self.data, Some(Data::Value(Types::Typeof(_))));
        let word = if typeof_data || matches!(self.key, Types::Typeof(_)) { "typeof" } else { "type" };
        write!(f, "\t\t{word} {}", self.key)?;
        match &self.data {
            None => writeln!(f)?,
            Some(Data::Verdict) => writeln!(f, " : verdict")?,
            Some(Data::Value(types)) => writeln!(f, " : {types}")?,
        }
        if let Some(size) = self.size {
            writeln!(f, "\t\tsize {size}")?;
        }
        let timed = self.flags.timeout && self.timeout.is_none();
        let flags = [(self.flags.dynamic, "dynamic"), (self.flags.interval, "interval"), (timed, "timeout")];
        let flags: Vec<&str> = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        if !flags.is_empty() {
            writeln!(f, "\t\tflags {}", flags.join(","))?;
        }
        if let Some(timeout) = self.timeout {
            writeln!(f, "\t\ttimeout {}", Time(timeout))?;
        }
        self.print_elements(f)?;
        writeln!(f, "\t}}")
    }
}

impl Set {
    fn print_elements(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.elements.is_empty() {
            return Ok(());
        }
        let mut elements: Vec<&Element> = self.elements.iter().collect();
        elements.sort_by(|a, b| a.key.cmp(&b.key));
        // nft puts as many elements on a line as their type is short.
        let per_line = match self.key.fields()[..] {
            [Type::Ipv4Addr] => 2,
            [Type::InetService | Type::InetProto | Type::Mark] => 5,
            _ => 1,
        };
        f.write_str("\t\telements = { ")?;
        for (i, element) in elements.iter().enumerate() {
            match i {
                0 => {}
                i if i % per_line == 0 => f.write_str(",\n\t\t\t     ")?,
                _ => f.write_str(", ")?,
            }
            write!(f, "{element}")?;
        }
        writeln!(f, " }}")
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip4(addr) => addr.fmt(f),
            Self::Ip6(addr) => addr.fmt(f),
            Self::Proto(number) => match protocol(*number) {
                Some(name) => f.write_str(name),
                None => number.fmt(f),
            },
            Self::Port(port) => port.fmt(f),
            Self::Mark(mark) => write!(f, "0x{mark:08x}"),
            Self::Integer(number) => number.fmt(f),
            Self::Ifname(name) => {
                write!(f, "\"{}\"", String::from_utf8_lossy(name).trim_end_matches('\0'))
            }
        }
    }
}

fn protocol(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "ipv6-icmp",
        132 => "sctp",
        _ => return None,
    })
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Continue => f.write_str("continue"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, low) in self.key.iter().enumerate() {
            let high = self.key_end.as_ref().and_then(|end| end.get(i)).unwrap_or(low);
            write!(f, "{}{}", if i == 0 { "" } else { " . " }, Range(low, high))?;
        }
        if let Some(timeout) = self.timeout {
            write!(f, " timeout {}", Time(timeout))?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " comment \"{comment}\"")?;
        }
        match &self.data {
            None => Ok(()),
            Some(ElementData::Verdict(verdict)) => write!(f, " : {verdict}"),
            Some(ElementData::Value(values)) => write!(f, " : {}", joined(values)),
        }
    }
}

/// A range as nft prints it: one value, a prefix, or both ends.
struct Range<'a>(&'a Value, &'a Value);

impl Display for Range<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(low, high) = self;
        let bits = match (low, high) {
            (Value::Ip4(a), Value::Ip4(b)) => {
                prefix_bits(u128::from(a.to_bits()), u128::from(b.to_bits()), 32)
            }
            (Value::Ip6(a), Value::Ip6(b)) => prefix_bits(a.to_bits(), b.to_bits(), 128),
            _ => None,
        };
        match bits {
            _ if low == high => low.fmt(f),
            Some(bits) => write!(f, "{low}/{bits}"),
            None => write!(f, "{low}-{high}"),
        }
    }
}

fn prefix_bits(low: u128, high: u128, width: u32) -> Option<u32> {
    let differing = low ^ high;
    let host = 128 - differing.leading_zeros();
    // A prefix is a block of 2^host addresses: all host bits differ, and the lower end has none of them.
    (differing.count_ones() == host && low & differing == 0).then(|| width - host)
}

struct Time(Duration);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let parts = [
            (seconds / 86400, "d"),
            (seconds / 3600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
        ];
        for (amount, unit) in parts.into_iter().filter(|(amount, _)| *amount > 0) {
            write!(f, "{amount}{unit}")?;
        }
        match self.0.subsec_millis() {
            0 if seconds == 0 => f.write_str("0s"),
            0 => Ok(()),
            ms => write!(f, "{ms}ms"),
        }
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
        writeln!(f, "\t}}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
            ChainType::Route => "route",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        write!(f, "type {kind} hook {hook} priority {}; policy {policy};", Priority(self))
    }
}

struct Priority<'a>(&'a Base);

impl Display for Priority<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let priority = self.0.priority;
        // nft knows names for some places and prints what is within ten of them relative to them.
        let names = [
            (-300, "raw"),
            (-150, "mangle"),
            (-100, "dstnat"),
            (0, "filter"),
            (50, "security"),
            (100, "srcnat"),
        ];
        let usable = |name: &str| match name {
            "dstnat" => matches!(self.0.hook, Hook::Prerouting),
            "srcnat" => matches!(self.0.hook, Hook::Postrouting),
            _ => true,
        };
        let near = |at: i32| (-10..=10).contains(&(priority - at));
        match names.into_iter().find(|(at, name)| usable(name) && near(*at)) {
            Some((at, name)) if at == priority => f.write_str(name),
            Some((at, name)) if priority > at => write!(f, "{name} + {}", priority - at),
            Some((at, name)) => write!(f, "{name} - {}", at - priority),
            None => priority.fmt(f),
        }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpSaddr => "ip saddr",
            Self::IpDaddr => "ip daddr",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
            Self::ThSport => "th sport",
            Self::ThDport => "th dport",
            Self::IcmpType => "icmp type",
            Self::Icmpv6Type => "icmpv6 type",
            Self::L4proto => "meta l4proto",
            Self::Nfproto => "meta nfproto",
            Self::Mark => "meta mark",
            Self::Iifname => "iifname",
            Self::Oifname => "oifname",
            Self::CtState => "ct state",
            Self::CtStatus => "ct status",
            Self::CtDirection => "ct direction",
            Self::CtMark => "ct mark",
            Self::CtOriginalIpDaddr => "ct original ip daddr",
            Self::CtOriginalIp6Daddr => "ct original ip6 daddr",
            Self::CtOriginalDport => "ct original proto-dst",
            Self::FibSaddrType => "fib saddr type",
            Self::FibDaddrType => "fib daddr type",
            Self::FibSaddrOif => "fib saddr . iif oif",
            Self::Random(modulus) => return write!(f, "numgen random mod {modulus}"),
        })
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut protocol_match = None;
        let mut first = true;
        for (i, stmt) in self.stmts.iter().enumerate() {
            // nft merges a protocol into the port match or the reset that needs it.
            if let Stmt::Match(Key::L4proto, Op::Eq(Value::Proto(number))) = stmt
                && self.stmts.get(i + 1).is_some_and(absorbs_protocol)
            {
                protocol_match = Some(*number);
                continue;
            }
            if !std::mem::take(&mut first) {
                f.write_str(" ")?;
            }
            match (stmt, protocol_match.take().and_then(protocol)) {
                (Stmt::Match(key @ (Key::ThDport | Key::ThSport), op), Some(protocol)) => {
                    let port = if *key == Key::ThDport { "dport" } else { "sport" };
                    write!(f, "{protocol} {port} {}", Compared(key, op))?;
                }
                _ => write!(f, "{stmt}")?,
            }
        }
        match &self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}

fn absorbs_protocol(next: &Stmt) -> bool {
    matches!(
        next,
        Stmt::Match(Key::ThDport | Key::ThSport | Key::IcmpType | Key::Icmpv6Type, _)
            | Stmt::Reject(Reject::TcpReset)
    )
}

/// The right side of a comparison.
struct Compared<'a>(&'a Key, &'a Op);

impl Display for Compared<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.1 {
            Op::Eq(value) => value.fmt(f),
            Op::Ne(value) => write!(f, "!= {value}"),
            Op::Range(low, high) => write!(f, "{low}-{high}"),
            Op::Prefix(addr, bits) => write!(f, "{addr}/{bits}"),
            Op::NotPrefix(addr, bits) => write!(f, "!= {addr}/{bits}"),
            Op::Any(mask) => f.write_str(&bits(self.0, *mask)),
            Op::Masked { mask, value } => write!(f, "& 0x{mask:08x} == 0x{value:08x}"),
            Op::Is(number) => f.write_str(&named(self.0, *number)),
            Op::IsNot(number) => write!(f, "!= {}", named(self.0, *number)),
            Op::NameBegins(start) => write!(f, "\"{start}*\""),
        }
    }
}

fn bits(key: &Key, mask: u32) -> String {
    let names: &[(u32, &str)] = match key {
        Key::CtState => &[
            (ct_state::INVALID, "invalid"),
            (ct_state::ESTABLISHED, "established"),
            (ct_state::RELATED, "related"),
            (ct_state::NEW, "new"),
            (ct_state::UNTRACKED, "untracked"),
        ],
        Key::CtStatus => &[(ct_status::SNAT, "snat"), (ct_status::DNAT, "dnat")],
        _ => return format!("0x{mask:08x}"),
    };
    let set: Vec<&str> = names.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, name)| *name).collect();
    set.join(",")
}

fn named(key: &Key, number: u32) -> String {
    let name = match (key, number) {
        (Key::FibDaddrType | Key::FibSaddrType, 1) => "unicast",
        (Key::FibDaddrType | Key::FibSaddrType, 2) => "local",
        (Key::CtDirection, 0) => "original",
        (Key::CtDirection, 1) => "reply",
        (Key::Nfproto, 2) => "ipv4",
        (Key::Nfproto, 10) => "ipv6",
        (Key::Icmpv6Type, 133) => "nd-router-solicit",
        (Key::Icmpv6Type, 134) => "nd-router-advert",
        (Key::Icmpv6Type, 135) => "nd-neighbor-solicit",
        (Key::Icmpv6Type, 136) => "nd-neighbor-advert",
        (Key::Icmpv6Type, 128) | (Key::IcmpType, 8) => "echo-request",
        (Key::Icmpv6Type, 129) | (Key::IcmpType, 0) => "echo-reply",
        (Key::Mark | Key::CtMark, number) => return format!("0x{number:08x}"),
        (_, number) => return number.to_string(),
    };
    name.to_owned()
}

impl Display for Stmt {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(key, op) => write!(f, "{key} {}", Compared(key, op)),
            Self::InSet(keys, set) => write!(f, "{} @{set}", joined(keys)),
            Self::NotInSet(keys, set) => write!(f, "{} != @{set}", joined(keys)),
            Self::Vmap(keys, map) => write!(f, "{} vmap @{map}", joined(keys)),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::SetMark(assign) => write!(f, "meta mark set {assign}"),
            Self::SaveMark => f.write_str("ct mark set meta mark"),
            Self::Dnat(NatTarget::Socket(addr)) => write!(f, "dnat to {addr}"),
            Self::Dnat(NatTarget::Map(keys, map)) => {
                let ip6 = keys.iter().any(|key| key.data_type() == Type::Ipv6Addr);
                write!(f, "dnat {} to {} map @{map}", if ip6 { "ip6" } else { "ip" }, joined(keys))
            }
            Self::Masquerade => f.write_str("masquerade fully-random"),
            Self::Reject(Reject::TcpReset) => f.write_str("reject with tcp reset"),
            Self::Reject(Reject::PortUnreachable) => f.write_str("reject"),
            Self::Counter => f.write_str("counter packets 0 bytes 0"),
            Self::CounterRef(name) => write!(f, "counter name \"{name}\""),
            Self::Limit(limit) => limit.fmt(f),
            Self::Log(log) => log.fmt(f),
            Self::Forget { set, keys, data } => {
                write!(f, "delete @{set} {{ {}", joined(keys))?;
                data.iter().try_for_each(|data| write!(f, " : {data}"))?;
                f.write_str(" }")
            }
            Self::Update { set, keys, timeout, data } => {
                write!(f, "update @{set} {{ {}", joined(keys))?;
                timeout.iter().try_for_each(|timeout| write!(f, " timeout {}", Time(*timeout)))?;
                data.iter().try_for_each(|data| write!(f, " : {data}"))?;
                f.write_str(" }")
            }
        }
    }
}

impl Display for Assign {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::To(mark) => write!(f, "0x{mark:08x}"),
            Self::Or(bits) => write!(f, "meta mark | 0x{bits:08x}"),
            Self::And(bits) => write!(f, "meta mark & 0x{bits:08x}"),
            Self::Key(key) => key.fmt(f),
            Self::Map(keys, map) => write!(f, "{} map @{map}", joined(keys)),
        }
    }
}

impl Display for Limit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Second => "second",
            Unit::Minute => "minute",
        };
        write!(f, "limit rate {}/{unit}", self.rate)?;
        // Five is nft's own default and goes without saying.
        if self.burst == 5 { Ok(()) } else { write!(f, " burst {} packets", self.burst) }
    }
}

impl Display for Log {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("log")?;
        if let Some(prefix) = &self.prefix {
            write!(f, " prefix \"{prefix}\"")?;
        }
        match self.group {
            Some(group) => write!(f, " group {group}"),
            None => Ok(()),
        }
    }
}
