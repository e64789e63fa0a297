//! Rules as the kernel's expressions: small instructions over sixteen 32-bit registers.

use std::net::IpAddr;
use std::time::Duration;

use crate::model::{Family, Value, Verdict};
use crate::rule::{Assign, Key, Limit, Log, NatTarget, Op, Reject, Stmt, Unit};
use crate::uapi;
use crate::wire::Buffer;

/// Register of the verdict.
const VERDICT: u32 = 0;
/// Register of the first 32-bit word.
const R0: u32 = 1;

/// The number of the register that begins at a 32-bit word; whole 128-bit registers have their old names.
fn register(word: usize) -> u32 {
    if word.is_multiple_of(4) { 1 + (word / 4) as u32 } else { 8 + word as u32 }
}

/// The bytes of a value as they lie in a register.
pub(crate) fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Ip4(addr) => addr.octets().to_vec(),
        Value::Ip6(addr) => addr.octets().to_vec(),
        Value::Proto(number) => vec![*number],
        Value::Port(port) => port.to_be_bytes().to_vec(),
        Value::Mark(number) | Value::Integer(number) => number.to_ne_bytes().to_vec(),
        Value::Ifname(name) => name.to_vec(),
    }
}

/// A concatenation: each field padded to whole 32-bit words, except a field that stands alone.
pub(crate) fn concat_bytes(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * 4);
    for value in values {
        bytes.extend_from_slice(&value_bytes(value));
        if values.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

pub(crate) fn data_value(b: &mut Buffer, attr: u16, bytes: &[u8]) {
    b.nest(attr, |b| b.attr(uapi::DATA_VALUE, bytes));
}

pub(crate) fn data_verdict(b: &mut Buffer, attr: u16, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Continue => (libc::NFT_CONTINUE, None),
        Verdict::Return => (libc::NFT_RETURN, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
    };
    b.nest(attr, |b| {
        b.nest(uapi::DATA_VERDICT, |b| {
            b.attr(uapi::VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                b.str(uapi::VERDICT_CHAIN, chain);
            }
        });
    });
}

fn expr(b: &mut Buffer, name: &str, fill: impl FnOnce(&mut Buffer)) {
    b.nest(uapi::LIST_ELEM, |b| {
        b.str(uapi::EXPR_NAME, name);
        b.nest(uapi::EXPR_DATA, fill);
    });
}

/// Packet header bases of payload expressions.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

fn load_payload(b: &mut Buffer, reg: u32, base: u32, offset: u32, len: u32) {
    expr(b, "payload", |b| {
        b.u32(uapi::PAYLOAD_DREG, reg);
        b.u32(uapi::PAYLOAD_BASE, base);
        b.u32(uapi::PAYLOAD_OFFSET, offset);
        b.u32(uapi::PAYLOAD_LEN, len);
    });
}

fn load_meta(b: &mut Buffer, reg: u32, key: libc::c_int) {
    expr(b, "meta", |b| {
        b.u32(uapi::META_DREG, reg);
        b.u32(uapi::META_KEY, key as u32);
    });
}

/// Attributes of the ct and fib expressions, which the libc crate does not list in full.
mod attr {
    pub const CT_DREG: u16 = 1;
    pub const CT_KEY: u16 = 2;
    pub const CT_DIRECTION: u16 = 3;
    pub const CT_SREG: u16 = 4;
    pub const FIB_DREG: u16 = 1;
    pub const FIB_RESULT: u16 = 2;
    pub const FIB_FLAGS: u16 = 3;
    pub const FIB_RESULT_OIF: u32 = 1;
    pub const FIB_RESULT_ADDRTYPE: u32 = 3;
    pub const FIB_F_SADDR: u32 = 1;
    pub const FIB_F_DADDR: u32 = 2;
    pub const FIB_F_IIF: u32 = 8;
    pub const CT_KEY_STATE: u32 = 0;
    pub const CT_KEY_DIRECTION: u32 = 1;
    pub const CT_KEY_STATUS: u32 = 2;
    pub const CT_KEY_MARK: u32 = 3;
    pub const CT_KEY_PROTO_DST: u32 = 12;
    pub const CT_KEY_DST_IP: u32 = 20;
    pub const CT_KEY_DST_IP6: u32 = 22;
}

fn load_ct(b: &mut Buffer, reg: u32, key: u32, original: bool) {
    expr(b, "ct", |b| {
        b.u32(attr::CT_DREG, reg);
        b.u32(attr::CT_KEY, key);
        if original {
            b.u8(attr::CT_DIRECTION, 0);
        }
    });
}

fn load_fib(b: &mut Buffer, reg: u32, result: u32, flags: u32) {
    expr(b, "fib", |b| {
        b.u32(attr::FIB_DREG, reg);
        b.u32(attr::FIB_RESULT, result);
        b.u32(attr::FIB_FLAGS, flags);
    });
}

fn load(b: &mut Buffer, reg: u32, key: &Key) {
    match key {
        Key::IpSaddr => load_payload(b, reg, NETWORK, 12, 4),
        Key::IpDaddr => load_payload(b, reg, NETWORK, 16, 4),
        Key::Ip6Saddr => load_payload(b, reg, NETWORK, 8, 16),
        Key::Ip6Daddr => load_payload(b, reg, NETWORK, 24, 16),
        Key::ThSport => load_payload(b, reg, TRANSPORT, 0, 2),
        Key::ThDport => load_payload(b, reg, TRANSPORT, 2, 2),
        Key::IcmpType | Key::Icmpv6Type => load_payload(b, reg, TRANSPORT, 0, 1),
        Key::L4proto => load_meta(b, reg, libc::NFT_META_L4PROTO),
        Key::Nfproto => load_meta(b, reg, libc::NFT_META_NFPROTO),
        Key::Mark => load_meta(b, reg, libc::NFT_META_MARK),
        Key::Iifname => load_meta(b, reg, libc::NFT_META_IIFNAME),
        Key::Oifname => load_meta(b, reg, libc::NFT_META_OIFNAME),
        Key::CtState => load_ct(b, reg, attr::CT_KEY_STATE, false),
        Key::CtStatus => load_ct(b, reg, attr::CT_KEY_STATUS, false),
        Key::CtDirection => load_ct(b, reg, attr::CT_KEY_DIRECTION, false),
        Key::CtMark => load_ct(b, reg, attr::CT_KEY_MARK, false),
        Key::CtOriginalIpDaddr => load_ct(b, reg, attr::CT_KEY_DST_IP, true),
        Key::CtOriginalIp6Daddr => load_ct(b, reg, attr::CT_KEY_DST_IP6, true),
        Key::CtOriginalDport => load_ct(b, reg, attr::CT_KEY_PROTO_DST, true),
        Key::FibSaddrType => load_fib(b, reg, attr::FIB_RESULT_ADDRTYPE, attr::FIB_F_SADDR),
        Key::FibDaddrType => load_fib(b, reg, attr::FIB_RESULT_ADDRTYPE, attr::FIB_F_DADDR),
        Key::FibSaddrOif => load_fib(b, reg, attr::FIB_RESULT_OIF, attr::FIB_F_SADDR | attr::FIB_F_IIF),
        Key::Random(modulus) => expr(b, "numgen", |b| {
            b.u32(uapi::NG_DREG, reg);
            b.u32(uapi::NG_MODULUS, *modulus);
            b.u32(uapi::NG_TYPE, libc::NFT_NG_RANDOM as u32);
            b.u32(uapi::NG_OFFSET, 0);
        }),
    }
}

/// Loads a concatenation from the first register on; gives the word after it.
fn load_all(b: &mut Buffer, keys: &[Key]) -> usize {
    let mut word = 0;
    for key in keys {
        load(b, register(word), key);
        word += key.data_type().len().div_ceil(4);
    }
    word
}

fn cmp(b: &mut Buffer, op: libc::c_int, bytes: &[u8]) {
    expr(b, "cmp", |b| {
        b.u32(uapi::CMP_SREG, R0);
        b.u32(uapi::CMP_OP, op as u32);
        data_value(b, uapi::CMP_DATA, bytes);
    });
}

fn bitwise(b: &mut Buffer, mask: &[u8], xor: &[u8]) {
    expr(b, "bitwise", |b| {
        b.u32(uapi::BITWISE_SREG, R0);
        b.u32(uapi::BITWISE_DREG, R0);
        b.u32(uapi::BITWISE_LEN, mask.len() as u32);
        data_value(b, uapi::BITWISE_MASK, mask);
        data_value(b, uapi::BITWISE_XOR, xor);
    });
}

/// Address bytes and the mask of a prefix.
fn prefix(addr: &IpAddr, bits: u8) -> (Vec<u8>, Vec<u8>) {
    let bytes = value_bytes(&Value::from(*addr));
    let mask: Vec<u8> = (0..bytes.len())
        .map(|i| {
            let here = usize::from(bits).saturating_sub(i * 8).min(8);
            (0xff00u16 >> here) as u8
        })
        .collect();
    (bytes.iter().zip(&mask).map(|(b, m)| b & m).collect(), mask)
}

fn matches(b: &mut Buffer, key: &Key, op: &Op) {
    load(b, R0, key);
    match op {
        Op::Eq(value) => cmp(b, libc::NFT_CMP_EQ, &value_bytes(value)),
        Op::Ne(value) => cmp(b, libc::NFT_CMP_NEQ, &value_bytes(value)),
        Op::Range(low, high) => {
            cmp(b, libc::NFT_CMP_GTE, &value_bytes(low));
            cmp(b, libc::NFT_CMP_LTE, &value_bytes(high));
        }
        Op::Prefix(addr, bits) | Op::NotPrefix(addr, bits) => {
            let (bytes, mask) = prefix(addr, *bits);
            bitwise(b, &mask, &vec![0; mask.len()]);
            let negated = matches!(op, Op::NotPrefix(..));
            cmp(b, if negated { libc::NFT_CMP_NEQ } else { libc::NFT_CMP_EQ }, &bytes);
        }
        Op::Any(mask) => {
            bitwise(b, &mask.to_ne_bytes(), &[0; 4]);
            cmp(b, libc::NFT_CMP_NEQ, &[0; 4]);
        }
        Op::Masked { mask, value } => {
            bitwise(b, &mask.to_ne_bytes(), &[0; 4]);
            cmp(b, libc::NFT_CMP_EQ, &value.to_ne_bytes());
        }
        Op::Is(number) | Op::IsNot(number) => {
            let how = if matches!(op, Op::Is(_)) { libc::NFT_CMP_EQ } else { libc::NFT_CMP_NEQ };
            match key.data_type().len() {
                1 => cmp(b, how, &[*number as u8]),
                _ => cmp(b, how, &number.to_ne_bytes()),
            }
        }
        Op::NameBegins(start) => cmp(b, libc::NFT_CMP_EQ, start.as_bytes()),
    }
}

fn lookup(b: &mut Buffer, set: &str, into: Option<u32>, inverted: bool) {
    const FLAGS: u16 = 5;
    expr(b, "lookup", |b| {
        b.str(uapi::LOOKUP_SET, set);
        b.u32(uapi::LOOKUP_SREG, R0);
        if let Some(reg) = into {
            b.u32(uapi::LOOKUP_DREG, reg);
        }
        if inverted {
            b.u32(FLAGS, 1);
        }
    });
}

fn immediate(b: &mut Buffer, reg: u32, bytes: &[u8]) {
    expr(b, "immediate", |b| {
        b.u32(uapi::IMMEDIATE_DREG, reg);
        data_value(b, uapi::IMMEDIATE_DATA, bytes);
    });
}

fn set_mark(b: &mut Buffer, assign: &Assign) {
    match assign {
        Assign::To(mark) => immediate(b, R0, &mark.to_ne_bytes()),
        Assign::Or(bits) => {
            load(b, R0, &Key::Mark);
            bitwise(b, &(!bits).to_ne_bytes(), &bits.to_ne_bytes());
        }
        Assign::And(bits) => {
            load(b, R0, &Key::Mark);
            bitwise(b, &bits.to_ne_bytes(), &[0; 4]);
        }
        Assign::Key(key) => load(b, R0, key),
        Assign::Map(keys, map) => {
            load_all(b, keys);
            lookup(b, map, Some(R0), false);
        }
    }
    expr(b, "meta", |b| {
        b.u32(uapi::META_KEY, libc::NFT_META_MARK as u32);
        b.u32(uapi::META_SREG, R0);
    });
}

fn dnat(b: &mut Buffer, family: Family, target: &NatTarget) {
    let (ip6, port) = match target {
        NatTarget::Socket(addr) => {
            immediate(b, R0, &value_bytes(&Value::from(addr.ip())));
            immediate(b, register(4), &addr.port().to_be_bytes());
            (addr.is_ipv6(), register(4))
        }
        NatTarget::Map(keys, map) => {
            load_all(b, keys);
            lookup(b, map, Some(R0), false);
            let ip6 = keys.iter().any(|k| k.data_type().len() == 16) || family == Family::Ip6;
            (ip6, register(if ip6 { 4 } else { 1 }))
        }
    };
    let family = if ip6 { libc::AF_INET6 } else { libc::AF_INET } as u32;
    expr(b, "nat", |b| {
        b.u32(uapi::NAT_TYPE, libc::NFT_NAT_DNAT as u32);
        b.u32(uapi::NAT_FAMILY, family);
        b.u32(uapi::NAT_REG_ADDR_MIN, R0);
        b.u32(uapi::NAT_REG_PROTO_MIN, port);
    });
}

fn reject(b: &mut Buffer, family: Family, how: Reject) {
    // Types: 0 ICMP of the table's family, 1 TCP reset, 2 ICMP of the packet's family.
    let (kind, code) = match (how, family) {
        (Reject::TcpReset, _) => (1, 0),
        (Reject::PortUnreachable, Family::Ip) => (0, 3),
        (Reject::PortUnreachable, Family::Ip6) => (0, 4),
        (Reject::PortUnreachable, Family::Inet) => (2, 1),
    };
    expr(b, "reject", |b| {
        b.u32(uapi::REJECT_TYPE, kind);
        b.u8(uapi::REJECT_ICMP_CODE, code);
    });
}

fn limit(b: &mut Buffer, limit: &Limit) {
    let seconds = match limit.unit {
        Unit::Second => 1,
        Unit::Minute => 60,
    };
    expr(b, "limit", |b| {
        b.u64(uapi::LIMIT_RATE, limit.rate);
        b.u64(uapi::LIMIT_UNIT, seconds);
        b.u32(uapi::LIMIT_BURST, limit.burst);
        b.u32(uapi::LIMIT_TYPE, 0);
    });
}

fn log(b: &mut Buffer, log: &Log) {
    expr(b, "log", |b| {
        if let Some(prefix) = &log.prefix {
            b.str(uapi::LOG_PREFIX, prefix);
        }
        if let Some(group) = log.group {
            b.u16(uapi::LOG_GROUP, group);
        }
    });
}

/// Adds the expressions of one step, in a nest that the caller has opened.
pub(crate) fn encode(b: &mut Buffer, family: Family, stmt: &Stmt) {
    match stmt {
        Stmt::Match(key, op) => matches(b, key, op),
        Stmt::InSet(keys, set) | Stmt::NotInSet(keys, set) => {
            load_all(b, keys);
            lookup(b, set, None, matches!(stmt, Stmt::NotInSet(..)));
        }
        Stmt::Vmap(keys, map) => {
            load_all(b, keys);
            lookup(b, map, Some(VERDICT), false);
        }
        Stmt::Verdict(verdict) => expr(b, "immediate", |b| {
            b.u32(uapi::IMMEDIATE_DREG, VERDICT);
            data_verdict(b, uapi::IMMEDIATE_DATA, verdict);
        }),
        Stmt::SetMark(assign) => set_mark(b, assign),
        Stmt::SaveMark => {
            load(b, R0, &Key::Mark);
            expr(b, "ct", |b| {
                b.u32(attr::CT_KEY, attr::CT_KEY_MARK);
                b.u32(attr::CT_SREG, R0);
            });
        }
        Stmt::Dnat(target) => dnat(b, family, target),
        Stmt::Masquerade => {
            const RANDOM_FULLY: u32 = 1 << 4;
            expr(b, "masq", |b| b.u32(uapi::MASQ_FLAGS, RANDOM_FULLY));
        }
        Stmt::Reject(how) => reject(b, family, *how),
        Stmt::Counter => expr(b, "counter", |b| {
            b.u64(uapi::COUNTER_BYTES, 0);
            b.u64(uapi::COUNTER_PACKETS, 0);
        }),
        Stmt::CounterRef(name) => expr(b, "objref", |b| {
            b.u32(1, crate::encode::OBJECT_COUNTER);
            b.str(2, name);
        }),
        Stmt::Limit(l) => limit(b, l),
        Stmt::Log(l) => log(b, l),
        Stmt::Update { set, keys, timeout, data } => {
            dynset(b, libc::NFT_DYNSET_OP_UPDATE as u32, set, keys, *data, *timeout);
        }
        Stmt::Forget { set, keys, data } => {
            const DELETE: u32 = 2;
            dynset(b, DELETE, set, keys, *data, None);
        }
    }
}

fn dynset(b: &mut Buffer, op: u32, set: &str, keys: &[Key], data: Option<Key>, timeout: Option<Duration>) {
    let word = load_all(b, keys).next_multiple_of(4);
    if let Some(data) = data {
        load(b, register(word), &data);
    }
    expr(b, "dynset", |b| {
        b.str(uapi::DYNSET_SET_NAME, set);
        b.u32(uapi::DYNSET_OP, op);
        b.u32(uapi::DYNSET_SREG_KEY, R0);
        if data.is_some() {
            b.u32(uapi::DYNSET_SREG_DATA, register(word));
        }
        if let Some(timeout) = timeout {
            b.u64(uapi::DYNSET_TIMEOUT, timeout.as_millis() as u64);
        }
    });
}
