//! Tables, chains, sets, elements and rules as netlink messages.

use crate::expr;
use crate::model::{Base, ChainType, Data, Element, ElementData, Family, Hook, Policy, Set, Type};
use crate::rule::Rule;
use crate::typeof_data;
use crate::uapi;
use crate::wire::Buffer;

/// Kind number of a named counter.
pub(crate) const OBJECT_COUNTER: u32 = 1;
/// Attributes that the libc crate does not list.
pub(crate) mod attr {
    pub const OBJ_TABLE: u16 = 1;
    pub const OBJ_NAME: u16 = 2;
    pub const OBJ_TYPE: u16 = 3;
    pub const OBJ_DATA: u16 = 4;
    pub const DESC_SIZE: u16 = 1;
    pub const DESC_CONCAT: u16 = 2;
    pub const FIELD_LEN: u16 = 1;
    pub const ELEM_KEY_END: u16 = 10;
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Inet => 1,
        }
    }
}

impl Type {
    /// Bytes of a value.
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Ipv4Addr | Self::Mark | Self::Integer => 4,
            Self::Ipv6Addr | Self::Ifname => 16,
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Other { len } => len,
        }
    }

    /// nft's own number, kept by the kernel for listings.
    fn number(self) -> u32 {
        match self {
            Self::Other { .. } => 0,
            Self::Integer => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::Ifname => 41,
        }
    }
}

/// nft's number of a concatenation, six bits a field; 0 when there are more than fit.
fn type_number(types: &[Type]) -> u32 {
    if types.len() > 5 {
        return 0;
    }
    types.iter().fold(0, |number, t| (number << 6) | t.number())
}

/// Bytes of a concatenation: fields padded to words unless one stands alone.
fn types_len(types: &[Type]) -> u32 {
    match types {
        [one] => one.len() as u32,
        _ => types.iter().map(|t| t.len().next_multiple_of(4) as u32).sum(),
    }
}

pub(crate) fn hook(b: &mut Buffer, base: &Base) {
    let number = match base.hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    };
    let kind = match base.kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
        ChainType::Route => "route",
    };
    b.nest(uapi::CHAIN_HOOK, |b| {
        b.u32(uapi::HOOK_HOOKNUM, number);
        b.attr(uapi::HOOK_PRIORITY, &base.priority.to_be_bytes());
    });
    let policy = match base.policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    };
    b.u32(uapi::CHAIN_POLICY, policy);
    b.str(uapi::CHAIN_TYPE, kind);
}

pub(crate) fn set(b: &mut Buffer, set: &Set, id: u32) {
    let key = set.key.fields();
    let ranges_of_fields = set.flags.interval && key.len() > 1;
    let flag = |on: bool, bit: libc::c_int| if on { bit as u32 } else { 0 };
    const CONCAT: u32 = 0x80;
    let flags = flag(set.flags.interval, libc::NFT_SET_INTERVAL)
        | flag(set.data.is_some(), libc::NFT_SET_MAP)
        | flag(set.flags.timeout || set.timeout.is_some(), libc::NFT_SET_TIMEOUT)
        | flag(set.flags.dynamic, libc::NFT_SET_EVAL)
        | if ranges_of_fields { CONCAT } else { 0 };
    b.str(uapi::SET_NAME, &set.name);
    b.u32(uapi::SET_FLAGS, flags);
    b.u32(uapi::SET_KEY_TYPE, type_number(&key));
    b.u32(uapi::SET_KEY_LEN, types_len(&key));
    let values = match &set.data {
        None => None,
        Some(Data::Verdict) => {
            b.u32(uapi::SET_DATA_TYPE, libc::NFT_DATA_VERDICT);
            b.u32(uapi::SET_DATA_LEN, 0);
            None
        }
        Some(Data::Value(types)) => {
            b.u32(uapi::SET_DATA_TYPE, type_number(&types.fields()));
            b.u32(uapi::SET_DATA_LEN, types_len(&types.fields()));
            Some(types)
        }
    };
    b.u32(uapi::SET_ID, id);
    if let Some(timeout) = set.timeout {
        b.u64(uapi::SET_TIMEOUT, timeout.as_millis() as u64);
    }
    if set.size.is_some() || ranges_of_fields {
        b.nest(uapi::SET_DESC, |b| {
            if let Some(size) = set.size {
                b.u32(attr::DESC_SIZE, size);
            }
            if ranges_of_fields {
                b.nest(attr::DESC_CONCAT, |b| {
                    for field in &key {
                        b.nest(uapi::LIST_ELEM, |b| {
                            b.u32(attr::FIELD_LEN, field.len() as u32);
                        });
                    }
                });
            }
        });
    }
    if let Some(notes) = typeof_data::user_data(&set.key, values) {
        b.attr(uapi::SET_USERDATA, &notes);
    }
}

/// The user data of a comment: kind 0, length, text and NUL; cut to what one length byte and the tool allow.
fn comment(text: &str) -> Vec<u8> {
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = vec![0, end as u8 + 1];
    out.extend_from_slice(&text.as_bytes()[..end]);
    out.push(0);
    out
}

/// One element, in an open list; `with_data` is false for deletions, which name only the key.
pub(crate) fn element(b: &mut Buffer, element: &Element, with_data: bool) {
    let key = expr::concat_bytes(&element.key);
    b.nest(uapi::LIST_ELEM, |b| {
        expr::data_value(b, uapi::SET_ELEM_KEY, &key);
        if let (Some(end), true) = (&element.key_end, element.key.len() > 1) {
            expr::data_value(b, attr::ELEM_KEY_END, &expr::concat_bytes(end));
        }
        if !with_data {
            return;
        }
        match &element.data {
            None => {}
            Some(ElementData::Verdict(verdict)) => {
                expr::data_verdict(b, uapi::SET_ELEM_DATA, verdict);
            }
            Some(ElementData::Value(values)) => {
                expr::data_value(b, uapi::SET_ELEM_DATA, &expr::concat_bytes(values));
            }
        }
        if let Some(timeout) = element.timeout {
            b.u64(uapi::SET_ELEM_TIMEOUT, timeout.as_millis() as u64);
        }
        if let Some(text) = &element.comment {
            b.attr(uapi::SET_ELEM_USERDATA, &comment(text));
        }
    });
    // A range of one field is two elements: its start, and the first key after it marked as an end.
    if let (Some(end), 1) = (&element.key_end, element.key.len())
        && let Some(after) = successor(expr::concat_bytes(end))
    {
        const INTERVAL_END: u32 = 1;
        b.nest(uapi::LIST_ELEM, |b| {
            expr::data_value(b, uapi::SET_ELEM_KEY, &after);
            b.u32(uapi::SET_ELEM_FLAGS, INTERVAL_END);
        });
    }
}

/// The next key in byte order; `None` after the last one.
fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        let (next, carry) = byte.overflowing_add(1);
        *byte = next;
        if !carry {
            return Some(key);
        }
    }
    None
}

pub(crate) fn rule(b: &mut Buffer, family: Family, rule: &Rule) {
    b.nest(uapi::RULE_EXPRESSIONS, |b| {
        rule.stmts.iter().for_each(|stmt| expr::encode(b, family, stmt));
    });
    if let Some(text) = &rule.comment {
        b.attr(uapi::RULE_USERDATA, &comment(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_range_carries_and_ends() {
        assert_eq!(successor(vec![10, 0, 0, 255]), Some(vec![10, 0, 1, 0]));
        assert_eq!(successor(vec![255; 4]), None);
    }

    #[test]
    fn comments_are_cut_at_a_character() {
        let cut = comment(&"é".repeat(100));
        assert_eq!(cut.len(), 2 + 126 + 1);
        assert_eq!(cut[1] as usize, 127);
    }
}
