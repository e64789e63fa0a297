//! What the kernel holds: its chains with the number of their rules, and its sets with their elements, as text. For
//! whoever shows rules or compares them before and after; what they mean is not read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::error::Error;
use crate::model::{TableName, Value};
use crate::socket::Socket;
use crate::uapi;
use crate::wire::{Attrs, Buffer, Message};
use crate::{Family, Verdict};

const LIST_TABLE: u16 = 1;
const LIST_ELEMENTS: u16 = 3;
const RULE_CHAIN: u16 = uapi::RULE_CHAIN;
const VERDICTS: [(i32, Verdict); 2] = [(0, Verdict::Drop), (1, Verdict::Accept)];

/// What is in the tables of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// By table and name: the number of rules.
    pub chains: BTreeMap<(TableName, String), usize>,
    /// By table and name: the elements, as `nft list set` writes them but for comments and times.
    pub sets: BTreeMap<(TableName, String), BTreeSet<String>>,
}

/// Asks the kernel.
///
/// # Errors
/// When it refuses a listing.
pub fn take(socket: &mut Socket) -> Result<Census, Error> {
    let mut census = Census::default();
    dump(
        socket,
        libc::NFT_MSG_GETCHAIN,
        0,
        |_| (),
        |table, attrs| {
            if let Some(name) = text(attrs, uapi::CHAIN_NAME) {
                census.chains.entry((table, name)).or_default();
            }
        },
    )?;
    dump(
        socket,
        libc::NFT_MSG_GETRULE,
        0,
        |_| (),
        |table, attrs| {
            if let Some(chain) = text(attrs, RULE_CHAIN) {
                *census.chains.entry((table, chain)).or_default() += 1;
            }
        },
    )?;
    let mut sets = Vec::new();
    dump(
        socket,
        libc::NFT_MSG_GETSET,
        0,
        |_| (),
        |table, attrs| {
            if let Some(name) = text(attrs, uapi::SET_NAME) {
                let number = |kind| Attrs::find(attrs, kind).and_then(be32).unwrap_or(0);
                sets.push((table, name, number(uapi::SET_KEY_TYPE), number(uapi::SET_DATA_TYPE)));
            }
        },
    )?;
    for (table, name, key, data) in sets {
        let mut elements = BTreeSet::new();
        let ask = |b: &mut Buffer| {
            b.str(LIST_TABLE, &table.name);
            b.str(uapi::SET_ELEM_LIST_SET, &name);
        };
        dump(socket, libc::NFT_MSG_GETSETELEM, table.family.number(), ask, |_, attrs| {
            let list = Attrs::find(attrs, LIST_ELEMENTS).unwrap_or_default();
            let each = Attrs(list).filter(|(kind, _)| *kind == uapi::LIST_ELEM);
            elements.extend(each.filter_map(|(_, element)| shown(element, key, data)));
        })?;
        census.sets.insert((table, name), elements);
    }
    Ok(census)
}

fn dump(
    socket: &mut Socket,
    kind: libc::c_int,
    family: u8,
    fill: impl FnOnce(&mut Buffer),
    mut each: impl FnMut(TableName, &[u8]),
) -> Result<(), Error> {
    socket.seq = socket.seq.wrapping_add(1);
    let seq = socket.seq;
    let mut request = Buffer::default();
    let kind = ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kind as u16;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let start = request.message(kind, flags, seq, family, 0);
    fill(&mut request);
    request.end_message(start);
    socket.drain(|_| {})?;
    socket.send(&request.bytes)?;
    socket.dump(seq, |message: Message<'_>| {
        let family = message.payload.first().and_then(|number| family_of(*number));
        let attrs = message.payload.get(4..).unwrap_or(&[]);
        // Every kind of object has its table's name as attribute 1.
        if let (Some(family), Some(table)) = (family, text(attrs, LIST_TABLE)) {
            each(TableName::new(family, table), attrs);
        }
    })
}

fn family_of(number: u8) -> Option<Family> {
    [Family::Ip, Family::Ip6, Family::Inet].into_iter().find(|family| family.number() == number)
}

fn text(attrs: &[u8], kind: u16) -> Option<String> {
    let bytes = Attrs::find(attrs, kind)?;
    Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// `10.96.0.1 . tcp . 443 : goto n1`; nothing for the closing end of an interval.
fn shown(element: &[u8], key_types: u32, data_types: u32) -> Option<String> {
    const INTERVAL_END: u32 = 1;
    if Attrs::find(element, uapi::SET_ELEM_FLAGS).and_then(be32).is_some_and(|f| f & INTERVAL_END != 0) {
        return None;
    }
    let key = Attrs::find(Attrs::find(element, uapi::SET_ELEM_KEY)?, uapi::DATA_VALUE)?;
    let key = joined(key, key_types);
    let Some(data) = Attrs::find(element, uapi::SET_ELEM_DATA) else { return Some(key) };
    if let Some(verdict) = Attrs::find(data, uapi::DATA_VERDICT) {
        return Some(match verdict_of(verdict) {
            Some(verdict) => format!("{key} : {verdict}"),
            None => key,
        });
    }
    let value = Attrs::find(data, uapi::DATA_VALUE).map(|bytes| joined(bytes, data_types));
    Some(value.map_or(key.clone(), |value| format!("{key} : {value}")))
}

fn verdict_of(bytes: &[u8]) -> Option<Verdict> {
    let code = Attrs::find(bytes, uapi::VERDICT_CODE).and_then(be32)?.cast_signed();
    let chain = || text(bytes, uapi::VERDICT_CHAIN);
    match code {
        libc::NFT_JUMP => chain().map(Verdict::Jump),
        libc::NFT_GOTO => chain().map(Verdict::Goto),
        libc::NFT_RETURN => Some(Verdict::Return),
        code => VERDICTS.into_iter().find(|(number, _)| *number == code).map(|(_, verdict)| verdict),
    }
}

/// A key or value by nft's numbers of its fields' types, six bits each; what has none is written as bytes.
fn joined(bytes: &[u8], types: u32) -> String {
    let mut numbers: Vec<u32> = (0..5).map(|i| (types >> (6 * i)) & 0x3f).collect();
    while numbers.last() == Some(&0) {
        numbers.pop();
    }
    let (mut rest, mut fields) = (bytes, Vec::new());
    for number in numbers.into_iter().rev() {
        let Some((value, len)) = field(rest, number) else { break };
        fields.push(value.to_string());
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    if !rest.is_empty() {
        fields.push(rest.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    fields.join(" . ")
}

fn field(bytes: &[u8], number: u32) -> Option<(Value, usize)> {
    let four = || <[u8; 4]>::try_from(bytes.get(..4)?).ok();
    Some(match number {
        4 => (Value::Integer(u32::from_ne_bytes(four()?)), 4),
        7 => (Value::Ip4(Ipv4Addr::from(four()?)), 4),
        8 => (Value::Ip6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(..16)?).ok()?)), 16),
        12 => (Value::Proto(*bytes.first()?), 1),
        13 => (Value::Port(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?)), 2),
        19 => (Value::Mark(u32::from_ne_bytes(four()?)), 4),
        41 => (Value::Ifname(bytes.get(..16)?.try_into().ok()?), 16),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: u32 = (7 << 12) | (12 << 6) | 13;

    fn element(fill: impl FnOnce(&mut Buffer)) -> Vec<u8> {
        let mut buffer = Buffer::default();
        fill(&mut buffer);
        buffer.bytes
    }

    #[test]
    fn elements_read_as_nft_writes_them() {
        let key = [10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0];
        let verdict = element(|b| {
            b.nest(uapi::SET_ELEM_KEY, |b| b.attr(uapi::DATA_VALUE, &key));
            b.nest(uapi::SET_ELEM_DATA, |b| {
                b.nest(uapi::DATA_VERDICT, |b| {
                    b.u32(uapi::VERDICT_CODE, libc::NFT_GOTO.cast_unsigned());
                    b.str(uapi::VERDICT_CHAIN, "n1");
                });
            });
        });
        assert_eq!(shown(&verdict, SERVICE, 0).as_deref(), Some("10.96.0.1 . tcp . 443 : goto n1"));
        let end = element(|b| {
            b.nest(uapi::SET_ELEM_KEY, |b| b.attr(uapi::DATA_VALUE, &key));
            b.u32(uapi::SET_ELEM_FLAGS, 1);
        });
        assert_eq!(shown(&end, SERVICE, 0), None);
        assert_eq!(joined(&[1, 2, 3], 0), "010203");
        assert_eq!(joined(&[10, 96], SERVICE), "0a60", "too short for its type");
    }
}
