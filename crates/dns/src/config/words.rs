//! What single words of a Corefile stand for, or what is wrong with them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use regex::Regex;

use crate::corefile::{Directive, Error, Line};
use crate::forward::Target;
use crate::name::{Domain, Qname};
use crate::wire::{IN, code, kind};

/// A fully qualified name.
pub(super) fn name(word: &str, line: usize) -> Result<Qname, Error> {
    Qname::parse(word).ok_or_else(|| Error::new(line, format!("{word:?} is not a DNS name")))
}

/// A zone.
pub(super) fn domain(word: &str, line: usize) -> Result<Domain, Error> {
    name(word, line).map(|name| Domain::of(&name))
}

/// Zones; everything when none is named.
pub(super) fn domains(words: &[&str], line: usize) -> Result<Vec<Domain>, Error> {
    match words {
        [] => Ok(vec![Domain::root()]),
        all => all.iter().map(|word| domain(word, line)).collect(),
    }
}

pub(super) fn number(word: &str, line: usize, most: u32) -> Result<u32, Error> {
    let outside = || Error::new(line, format!("{word:?} is not a whole number from 0 to {most}"));
    word.parse().ok().filter(|n| *n <= most).ok_or_else(outside)
}

pub(super) fn words(line: &Line) -> Vec<&str> {
    line.words.iter().map(String::as_str).collect()
}

pub(super) fn not_understood(line: &Line) -> Error {
    Error::new(line.number, format!("{:?} is not understood here", line.words.join(" ")))
}

/// A directive that has no block.
pub(super) fn bare(directive: &Directive) -> Result<(), Error> {
    directive.body.first().map_or(Ok(()), |line| Err(not_understood(line)))
}

/// `5s`, `500ms`, `1m`, `1h`, or seconds.
pub(super) fn duration(word: &str, line: usize) -> Result<Duration, Error> {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &word[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(Error::new(line, format!("{word:?} is no time; write it as 500ms, 5s, 1m or 1h"))),
    };
    let millis = u64::from(number(digits, line, 3_600_000)?) * unit;
    Ok(Duration::from_millis(millis))
}

/// A type of records; `ANY` is all of them.
pub(super) fn record_type(word: &str, line: usize) -> Result<u16, Error> {
    match word.parse::<RecordType>() {
        Ok(known) => Ok(u16::from(known)),
        Err(_) => Err(Error::new(line, format!("{word:?} is not a type of records"))),
    }
}

/// A class; `ANY` is all of them.
pub(super) fn class(word: &str, line: usize) -> Result<u16, Error> {
    match word {
        "IN" => Ok(IN),
        "CH" => Ok(3),
        "HS" => Ok(4),
        "ANY" => Ok(kind::ANY),
        _ => Err(Error::new(line, format!("{word:?} is not a class; known are IN, CH, HS and ANY"))),
    }
}

/// A code of answers.
pub(super) fn code(word: &str, line: usize) -> Result<u16, Error> {
    code::parse(word).ok_or_else(|| Error::new(line, format!("{word:?} is not a code of answers")))
}

/// A regular expression.
pub(super) fn regex(word: &str, line: usize) -> Result<Regex, Error> {
    Regex::new(word).map_err(|error| Error::new(line, format!("{word:?} is no regular expression: {error}")))
}

/// `.:53`, `example.org`, `dns://example.org.:53`, and reverse zones as networks.
pub(super) fn zone(key: &str, line: usize) -> Result<Domain, Error> {
    let plain = key.strip_prefix("dns://").unwrap_or(key);
    if plain.contains("://") {
        return Err(Error::new(line, format!("{key:?}: this server speaks plain DNS (dns://) only")));
    }
    match plain.rsplit_once(':') {
        Some((zone, "53")) => domain(zone, line),
        Some((_, port)) => {
            Err(Error::new(line, format!("port {port:?}: this server listens on port 53 only")))
        }
        None => domain(plain, line),
    }
}

/// A server, or a file that names some.
pub(super) fn target(word: &str, line: usize) -> Result<Target, Error> {
    let (plain, port) = match word.strip_prefix("tls://") {
        Some(plain) => (plain, 853),
        None => (word.strip_prefix("dns://").unwrap_or(word), 53),
    };
    if plain.starts_with('/') && port == 53 {
        return Ok(Target::File(plain.into()));
    }
    let bare = plain.trim_matches(['[', ']']).parse().map(|ip: IpAddr| SocketAddr::new(ip, port));
    let what =
        || format!("{word:?} is neither an address of a server, with or without tls:// and port, nor a file");
    let addr = bare.or_else(|_| plain.parse()).map_err(|_| Error::new(line, what()))?;
    Ok(if port == 853 { Target::Tls(addr) } else { Target::Server(addr) })
}
