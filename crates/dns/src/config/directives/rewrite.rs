//! `rewrite [continue|stop] name [exact|prefix|suffix|substring|regex] FROM TO [answer ...]`, on a line or in a block, and
//! `rewrite [continue|stop] type FROM TO`.

use regex::Regex;

use super::super::words::{name, not_understood, record_type, regex, words};
use crate::corefile::{Directive, Error};
use crate::rewrite::{Back, Change, Match, Rule};

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
    match rest {
        ["type", from, to] => {
            let change = Change::Kind(record_type(from, at)?, record_type(to, at)?);
            Ok(Rule { change, back: Vec::new(), goes_on })
        }
        ["name", how @ ("exact" | "prefix" | "suffix" | "substring" | "regex"), from, to, back @ ..] => {
            rule(how, from, to, back, goes_on, directive)
        }
        ["name", from, to, back @ ..] => rule("exact", from, to, back, goes_on, directive),
        _ => Err(not_understood(head)),
    }
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
