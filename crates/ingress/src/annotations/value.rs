//! How values of annotations are written.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, Uri};
use ipnet::IpNet;
use regex::{Regex, RegexBuilder};

/// What is wrong with a value.
pub(crate) type Wrong = String;

/// As Go's `strconv.ParseBool`.
pub(crate) fn boolean(value: &str) -> Result<bool, Wrong> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{value:?} is neither \"true\" nor \"false\"")),
    }
}

pub(crate) fn number<T: std::str::FromStr>(value: &str) -> Result<T, Wrong> {
    value.parse().map_err(|_| format!("{value:?} is no number, or too large a one"))
}

/// `60`, `60s`, `5m`, `1h`, `1d`.
pub(crate) fn seconds(value: &str) -> Result<Duration, Wrong> {
    let (digits, unit) = match value.char_indices().last() {
        Some((at, 's')) => (&value[..at], 1),
        Some((at, 'm')) => (&value[..at], 60),
        Some((at, 'h')) => (&value[..at], 3600),
        Some((at, 'd')) => (&value[..at], 86_400),
        _ => (value, 1),
    };
    let seconds = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
    seconds.map(|s| Duration::from_secs(s.into())).ok_or(format!("{value:?} is no number of seconds"))
}

/// A timeout, which cannot be nothing.
pub(crate) fn timeout(value: &str) -> Result<Duration, Wrong> {
    match seconds(value)? {
        Duration::ZERO => Err(format!("{value:?} leaves no time at all")),
        some => Ok(some),
    }
}

/// `8m`, `512k`, `1g` or bytes.
pub(crate) fn size(value: &str) -> Result<u64, Wrong> {
    let lower = value.to_ascii_lowercase();
    let (number, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        Some(b'g') => (&lower[..lower.len() - 1], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    bytes.ok_or(format!("{value:?} is no size such as 8m"))
}

/// Entries between commas, without the empty ones.
pub(crate) fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// Networks and addresses.
pub(crate) fn networks(value: &str) -> Result<Vec<IpNet>, Wrong> {
    list(value).map(network).collect()
}

fn network(entry: &str) -> Result<IpNet, Wrong> {
    let alone = || entry.parse::<IpAddr>().ok().map(IpNet::from);
    let found = entry.parse::<IpNet>().ok().or_else(alone);
    found.ok_or_else(|| format!("{entry:?} is neither an address nor a network such as 10.0.0.0/8"))
}

/// Whether one of the networks holds an address.
pub(crate) fn holds(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

pub(crate) fn headers(value: &str) -> Result<Vec<HeaderName>, Wrong> {
    list(value).map(header).collect()
}

pub(crate) fn header(value: &str) -> Result<HeaderName, Wrong> {
    value.parse().map_err(|_| format!("{value:?} is no name of a header"))
}

pub(crate) fn statuses(value: &str) -> Result<Vec<u16>, Wrong> {
    let status = |text: &str| match text.parse() {
        Ok(code @ 300..=599) => Ok(code),
        _ => Err(format!("{text:?} is no status from 300 to 599")),
    };
    list(value).map(status).collect()
}

/// The code of a redirect.
pub(crate) fn redirect_code(value: &str) -> Result<u16, Wrong> {
    match value.parse() {
        Ok(code @ 300..=308) => Ok(code),
        _ => Err(format!("{value:?} is no code of a redirect, which are 300 to 308")),
    }
}

/// An expression, of bounded size.
pub(crate) fn expression(value: &str) -> Result<Regex, Wrong> {
    let built = RegexBuilder::new(value).size_limit(1 << 20).build();
    built.map_err(|error| format!("{value:?} is no usable expression: {error}"))
}

/// Something that may stand in a header as it is: visible, no quotes, no ends of lines.
pub(crate) fn plain(value: &str) -> Result<String, Wrong> {
    let fine = |b: u8| (0x21..0x7f).contains(&b) && !matches!(b, b'"' | b'\\' | b';');
    match !value.is_empty() && value.bytes().all(fine) {
        true => Ok(value.to_owned()),
        false => Err(format!("{value:?} has characters that it cannot have")),
    }
}

/// An address that begins with `http://` or `https://`; variables may follow.
pub(crate) fn url(value: &str) -> Result<&str, Wrong> {
    let rest = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
    let fine = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    let visible = value.bytes().all(|b| (0x21..0x7f).contains(&b));
    let parses = value.contains('$') || value.parse::<Uri>().is_ok();
    match fine && visible && parses {
        true => Ok(value),
        false => Err(format!("{value:?} is no address such as http://name/path")),
    }
}

/// `name` or `namespace/name`.
pub(crate) fn reference(value: &str) -> Result<(Option<String>, String), Wrong> {
    let name = |text: &str| {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        (begins && text.len() <= 253 && text.bytes().all(fine)).then(|| text.to_owned())
    };
    let parts = match value.split_once('/') {
        Some((namespace, rest)) => name(namespace).map(Some).zip(name(rest)),
        None => name(value).map(|name| (None, name)),
    };
    parts.ok_or_else(|| format!("{value:?} is no name of an object"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn values() {
        assert_eq!(seconds("5m").unwrap(), Duration::from_secs(300));
        assert!(timeout("0").is_err() && seconds("-1").is_err() && seconds("é").is_err());
        assert_eq!(size("8M").unwrap(), 8 << 20);
        assert!(size("99999999999999999999g").is_err() && size("m").is_err());
        assert_eq!(networks("10.0.0.0/8, 192.168.0.1").unwrap().len(), 2);
        assert!(networks("10.0.0.0/33").is_err());
        assert!(url("https://a.b/c?d=$request_uri").is_ok());
        assert!(
            url("javascript:alert(1)").is_err() && url("http:///x").is_err() && url("http://a b").is_err()
        );
        assert_eq!(reference("a/b").unwrap(), (Some("a".into()), "b".into()));
        assert!(reference("a/b/c").is_err() && reference("../x").is_err());
        assert!(statuses("404,abc").is_err() && redirect_code("200").is_err());
        assert!(plain("a b").is_err() && plain("x\r\ny").is_err());
    }
}
