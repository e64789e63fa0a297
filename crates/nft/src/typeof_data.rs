//! The `typeof` notes of sets: what each field of key and value is read from.
//!
//! The kernel keeps them as opaque user data; the `nft` tool reads them, so that it lists
//! `typeof ip daddr . numgen random mod 2` and can load its own listing again. Nested type-length-value records of
//! one byte each; expression, protocol and field numbers are nft's own.

use crate::model::{Type, Types};
use crate::rule::Key;

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
/// Longest user data that the kernel takes.
const MOST: usize = 256;

fn record(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    out.push(payload.len() as u8);
    out.extend_from_slice(payload);
}

fn number(out: &mut Vec<u8>, kind: u8, value: u32) {
    record(out, kind, &value.to_ne_bytes());
}

/// Number of the expression and its own records; `None` for keys that nft does not describe.
fn expression(key: &Key) -> Option<(u32, Vec<u8>)> {
    const PAYLOAD: u32 = 7;
    const META: u32 = 9;
    const CT: u32 = 12;
    const NUMGEN: u32 = 23;
    const IP: u32 = 12;
    const IP6: u32 = 13;
    const TH: u32 = 11;
    let pair = |a: u32, b: u32| {
        let mut out = Vec::new();
        number(&mut out, 0, a);
        number(&mut out, 1, b);
        out
    };
    let meta = |key: libc::c_int| {
        let mut out = Vec::new();
        number(&mut out, 0, key as u32);
        Some((META, out))
    };
    match key {
        Key::IpSaddr => Some((PAYLOAD, pair(IP, 11))),
        Key::IpDaddr => Some((PAYLOAD, pair(IP, 12))),
        Key::Ip6Saddr => Some((PAYLOAD, pair(IP6, 8))),
        Key::Ip6Daddr => Some((PAYLOAD, pair(IP6, 9))),
        Key::ThSport => Some((PAYLOAD, pair(TH, 1))),
        Key::ThDport => Some((PAYLOAD, pair(TH, 2))),
        Key::L4proto => meta(libc::NFT_META_L4PROTO),
        Key::Mark => meta(libc::NFT_META_MARK),
        Key::Iifname => meta(libc::NFT_META_IIFNAME),
        Key::Oifname => meta(libc::NFT_META_OIFNAME),
        Key::CtMark => Some((CT, pair(3, u32::MAX))),
        Key::Random(modulus) => {
            let mut out = pair(1, *modulus);
            number(&mut out, 2, 0);
            Some((NUMGEN, out))
        }
        _ => None,
    }
}

fn describe(key: &Key) -> Option<Vec<u8>> {
    let (expression, data) = expression(key)?;
    let mut out = Vec::new();
    number(&mut out, 0, expression);
    record(&mut out, 1, &data);
    Some(out)
}

fn concatenation(keys: &[Key]) -> Option<Vec<u8>> {
    const CONCAT: u32 = 13;
    if let [key] = keys {
        return describe(key);
    }
    let mut fields = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        record(&mut fields, u8::try_from(i).ok()?, &describe(key)?);
    }
    let mut out = Vec::new();
    number(&mut out, 0, CONCAT);
    record(&mut out, 1, &fields);
    Some(out)
}

/// 0 unknown (concatenations), 1 host order, 2 network order.
fn byte_order(types: &Types) -> u32 {
    match types.fields()[..] {
        [Type::Mark | Type::Integer] => 1,
        [_] => 2,
        _ => 0,
    }
}

/// User data of a set; `None` when no field is given by `typeof` or the notes do not fit.
pub(crate) fn user_data(key: &Types, data: Option<&Types>) -> Option<Vec<u8>> {
    let typeof_keys = |types: &Types| match types {
        Types::Typeof(keys) => concatenation(keys),
        Types::Plain(_) => None,
    };
    let mut out = Vec::new();
    number(&mut out, KEY_BYTE_ORDER, byte_order(key));
    if let Some(data) = data {
        number(&mut out, DATA_BYTE_ORDER, byte_order(data));
    }
    let notes = [(KEY_TYPEOF, typeof_keys(key)), (DATA_TYPEOF, data.and_then(typeof_keys))];
    let mut any = false;
    for (kind, note) in notes {
        if let Some(note) = note {
            record(&mut out, kind, &note);
            any = true;
        }
    }
    (any && out.len() <= MOST).then_some(out)
}
