//! `rewrite [continue|stop]`, on a line or in a block, and then one of
//!
//! ```text
//! name  [exact|prefix|suffix|substring|regex] FROM TO [answer ...]
//! type  FROM TO
//! class FROM TO
//! ttl   [exact|prefix|suffix|substring|regex] NAME SECONDS, or LEAST-MOST, LEAST-, -MOST
//! rcode [exact|prefix|suffix|substring|regex] NAME FROM TO
//! edns0 local set|append|unset CODE DATA; DATA is text, 0x..., {qname}, {qtype}, {client_ip} or {protocol}
//! edns0 nsid set|append|unset
//! edns0 subnet set|append|unset BITS4 BITS6
//! ```
//! Options of EDNS reach upstreams alone; a client's own end here, so there is nothing of its to replace.

use regex::Regex;

use super::super::words::{class, code, name, not_understood, number, record_type, regex, words};
use crate::corefile::{Directive, Error};
use crate::rewrite::{Action, Back, Change, Match, Rule, Tell};

/// Numbers of options (RFC 5001, 7871).
const NSID: u16 = 3;
const SUBNET: u16 = 8;

pub(super) fn read(directive: &Directive) -> Result<Rule, Error> {
    let head = &directive.head;
    let mut all = words(head);
    for line in &directive.body {
        all.extend(words(line));
    }
    let mut rest = &all[1..];
    let goes_on = rest.first() == Some(&"continue");
    if let ["continue" | "stop", more @ ..] = rest {
        rest = more;
    }
    let at = head.number;
    let alone = |change| Ok(Rule { change, back: Vec::new(), goes_on });
    match rest {
        ["type", from, to] => alone(Change::Kind(record_type(from, at)?, record_type(to, at)?)),
        ["class", from, to] => alone(Change::Class(class(from, at)?, class(to, at)?)),
        ["ttl", how @ .., of, life] if how.len() < 2 => {
            let (least, most) = match life.split_once('-') {
                None => (*life, *life),
                Some((least, most)) => (if least.is_empty() { "0" } else { least }, most),
            };
            let least = number(least, at, LONGEST)?;
            let most = if most.is_empty() { LONGEST } else { number(most, at, LONGEST)? };
            if least > most {
                return Err(Error::new(at, format!("{life:?}: the least is more than the most")));
            }
            alone(Change::Life(matching(how, of, directive)?, least..=most))
        }
        ["rcode", how @ .., of, from, to] if how.len() < 2 => {
            alone(Change::Code(matching(how, of, directive)?, code(from, at)?, code(to, at)?))
        }
        ["edns0", option @ ..] => alone(edns(option, directive)?),
        ["name", how @ ("exact" | "prefix" | "suffix" | "substring" | "regex"), from, to, back @ ..] => {
            rule(how, from, to, back, goes_on, directive)
        }
        ["name", from, to, back @ ..] => rule("exact", from, to, back, goes_on, directive),
        _ => Err(not_understood(head)),
    }
}

/// The longest life (RFC 2181, 8).
const LONGEST: u32 = i32::MAX.cast_unsigned();

/// Which names a rule is about that does not change them.
fn matching(how: &[&str], of: &str, directive: &Directive) -> Result<Match, Error> {
    let how = how.first().copied().unwrap_or("exact");
    if of.is_empty() || !["exact", "prefix", "suffix", "substring", "regex"].contains(&how) {
        return Err(not_understood(&directive.head));
    }
    pattern(how, of, if how == "exact" { of } else { "" }, directive.head.number).map(|(of, _)| of)
}

fn edns(words: &[&str], directive: &Directive) -> Result<Change, Error> {
    let at = directive.head.number;
    let [kind, action, rest @ ..] = words else { return Err(not_understood(&directive.head)) };
    let action = match *action {
        "set" => Action::Set,
        "append" => Action::Append,
        "unset" => Action::Unset,
        "replace" => {
            let what = "clients' options are not passed on, so there is none to replace; write set";
            return Err(Error::new(at, what));
        }
        _ => return Err(not_understood(&directive.head)),
    };
    let nothing = Tell::Octets(Vec::new());
    let (number, tell) = match (*kind, action, rest) {
        ("local", Action::Unset, [code]) => (option(code, at)?, nothing),
        ("local", Action::Set | Action::Append, [code, data]) => (option(code, at)?, tell(data, at)?),
        ("nsid", _, []) => (NSID, nothing),
        ("subnet", Action::Unset, []) => (SUBNET, nothing),
        ("subnet", Action::Set | Action::Append, [four, six]) => {
            let bits = |word: &str, most| number(word, at, most).map(|bits| bits as u8);
            (SUBNET, Tell::Subnet(bits(four, 32)?, bits(six, 128)?))
        }
        _ => return Err(not_understood(&directive.head)),
    };
    Ok(Change::Option(action, number, tell))
}

/// The number of an option, decimal or with `0x`.
fn option(word: &str, line: usize) -> Result<u16, Error> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| Error::new(line, format!("{word:?} is not the number of an option (0 to 0xffff)")))
}

fn tell(word: &str, line: usize) -> Result<Tell, Error> {
    if let Some(digits) = word.strip_prefix("0x") {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let octet = |two: &[u8]| Some((digit(two.first()?)? << 4 | digit(two.get(1)?)?) as u8);
        let octets: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(octet).collect();
        let wrong = || Error::new(line, format!("{word:?} is no list of octets in hexadecimal digits"));
        return octets.map(Tell::Octets).ok_or_else(wrong);
    }
    Ok(match word {
        "{qname}" => Tell::Name,
        "{qtype}" => Tell::Kind,
        "{client_ip}" => Tell::Client,
        "{protocol}" => Tell::Transport,
        other if other.starts_with('{') && other.ends_with('}') => {
            let what = format!("{other}: known are {{qname}}, {{qtype}}, {{client_ip}} and {{protocol}}");
            return Err(Error::new(line, what));
        }
        text => Tell::Octets(text.into()),
    })
}

fn rule(
    how: &str,
    from: &str,
    to: &str,
    back: &[&str],
    goes_on: bool,
    of: &Directive,
) -> Result<Rule, Error> {
    let (lines, at) = (back, of.head.number);
    if from.is_empty() {
        return Err(not_understood(&of.head));
    }
    let (change, to) = pattern(how, from, to, at)?;
    let mut rule = Rule { change: Change::Name(change, to.clone()), back: Vec::new(), goes_on };
    let mut rest = lines;
    while let ["answer", more @ ..] = rest {
        match more {
            ["auto", more @ ..] if how != "regex" => {
                let reversed = || pattern(how, &to, from, at);
                let (by, old) = reversed()?;
                rule.back.push(Back::Name(by, old));
                let (by, old) = reversed()?;
                rule.back.push(Back::Value(by, old));
                rest = more;
            }
            ["name", from, to, more @ ..] => {
                rule.back.push(Back::Name(Match::Regex(regex(from, at)?), (*to).to_owned()));
                rest = more;
            }
            ["value", from, to, more @ ..] => {
                rule.back.push(Back::Value(Match::Regex(regex(from, at)?), (*to).to_owned()));
                rest = more;
            }
            _ => return Err(not_understood(&of.head)),
        }
    }
    if rest.is_empty() { Ok(rule) } else { Err(not_understood(&of.head)) }
}

fn pattern(how: &str, from: &str, to: &str, line: usize) -> Result<(Match, String), Error> {
    let whole = |word: &str| name(word, line).map(|name| name.to_string());
    let end = |word: &str| format!("{}.", word.trim_end_matches('.').to_ascii_lowercase());
    let lower = |word: &str| word.to_ascii_lowercase();
    Ok(match how {
        "exact" => (Match::Exact(whole(from)?), whole(to)?),
        "suffix" => (Match::Suffix(end(from)), end(to)),
        "prefix" => (Match::Prefix(lower(from)), lower(to)),
        "substring" => (Match::Substring(lower(from)), lower(to)),
        _ => {
            let from: Regex = regex(from, line)?;
            (Match::Regex(from), lower(to))
        }
    })
}
