//! Questions that are looked up as others (directive `rewrite`).

use hickory_proto::rr::rdata::{CNAME, MX, NS, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record};
use regex::Regex;

use crate::name::Qname;

/// Which names a rule is about. Texts are in lower case; those of `Exact` and `Suffix` end with a dot.
#[derive(Debug)]
pub enum Match {
    /// The name itself.
    Exact(String),
    /// Names that begin so.
    Prefix(String),
    /// Names that end so.
    Suffix(String),
    /// Names that hold this somewhere.
    Substring(String),
    /// Names that this fits.
    Regex(Regex),
}

impl Match {
    /// The name that comes out; `{1}` in `to` is what the first pair of brackets of a regular expression holds.
    fn replace(&self, text: &str, to: &str) -> Option<String> {
        match self {
            Self::Exact(from) => (text == from).then(|| to.to_owned()),
            Self::Prefix(from) => text.strip_prefix(&**from).map(|rest| format!("{to}{rest}")),
            Self::Suffix(from) => text.strip_suffix(&**from).map(|rest| format!("{rest}{to}")),
            Self::Substring(from) => text.contains(&**from).then(|| text.replace(&**from, to)),
            Self::Regex(from) => {
                let found = from.captures(text)?;
                let mut new = to.to_owned();
                for (i, group) in found.iter().enumerate().skip(1) {
                    new = new.replace(&format!("{{{i}}}"), group.map_or("", |g| g.as_str()));
                }
                Some(new)
            }
        }
    }
}

/// What is looked up instead.
#[derive(Debug)]
pub enum Change {
    /// Another name.
    Name(Match, String),
    /// Another type.
    Kind(u16, u16),
}

/// What becomes of names in the answer.
#[derive(Debug)]
pub enum Back {
    /// Owners of records.
    Name(Match, String),
    /// Names that records tell.
    Value(Match, String),
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// What is looked up instead.
    pub change: Change,
    /// What becomes of the answer.
    pub back: Vec<Back>,
    /// Whether later rules see the new question.
    pub goes_on: bool,
}

/// A question that is looked up as another one.
#[derive(Debug, Clone)]
pub(crate) struct Rewritten {
    pub(crate) name: Qname,
    pub(crate) kind: u16,
    /// The rules that had a part in it.
    rules: Vec<usize>,
}

/// What to look up instead; none when no rule is about it, or what comes out is no name.
pub(crate) fn rewritten(rules: &[Rule], name: &Qname, kind: u16) -> Option<Rewritten> {
    if rules.is_empty() {
        return None;
    }
    let mut text = name.to_string();
    let (mut new_kind, mut taken) = (kind, Vec::new());
    for (index, rule) in rules.iter().enumerate() {
        match &rule.change {
            Change::Name(from, to) => match from.replace(&text, to) {
                Some(new) => text = new,
                None => continue,
            },
            Change::Kind(from, to) if *from == new_kind => new_kind = *to,
            Change::Kind(..) => continue,
        }
        taken.push(index);
        if !rule.goes_on {
            break;
        }
    }
    if taken.is_empty() {
        return None;
    }
    Some(Rewritten { name: Qname::parse(&text)?, kind: new_kind, rules: taken })
}

impl Rewritten {
    /// Whether the answer is changed beyond the name that was asked for.
    pub(crate) fn changes_answers(&self, rules: &[Rule]) -> bool {
        self.rules.iter().any(|index| rules.get(*index).is_some_and(|rule| !rule.back.is_empty()))
    }

    /// Changes a record of the answer back.
    pub(crate) fn back(&self, rules: &[Rule], record: &mut Record) {
        for back in self.rules.iter().rev().filter_map(|index| rules.get(*index)).flat_map(|rule| &rule.back)
        {
            match back {
                Back::Name(from, to) => {
                    if let Some(new) = renamed(from, to, &record.name) {
                        record.name = new;
                    }
                }
                Back::Value(from, to) => {
                    let new = |name: &Name| renamed(from, to, name);
                    let data = match &record.data {
                        RData::CNAME(old) => new(&old.0).map(|name| RData::CNAME(CNAME(name))),
                        RData::PTR(old) => new(&old.0).map(|name| RData::PTR(PTR(name))),
                        RData::NS(old) => new(&old.0).map(|name| RData::NS(NS(name))),
                        RData::MX(old) => {
                            new(&old.exchange).map(|name| RData::MX(MX::new(old.preference, name)))
                        }
                        RData::SRV(old) => new(&old.target)
                            .map(|name| RData::SRV(SRV::new(old.priority, old.weight, old.port, name))),
                        _ => None,
                    };
                    record.data = data.unwrap_or_else(|| record.data.clone());
                }
            }
        }
    }
}

fn renamed(from: &Match, to: &str, name: &Name) -> Option<Name> {
    let text = Qname::from_name(name)?.to_string();
    Some(Qname::parse(&from.replace(&text, to)?)?.to_name())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::wire::kind;

    fn rule(from: Match, to: &str, goes_on: bool) -> Rule {
        Rule { change: Change::Name(from, to.into()), back: Vec::new(), goes_on }
    }

    #[test]
    fn the_first_rule_that_fits_decides_unless_it_goes_on() {
        let rules = [
            rule(Match::Suffix(".corp.".into()), ".default.svc.cluster.local.", true),
            rule(Match::Prefix("old-".into()), "new-", false),
            rule(Match::Exact("a.b.".into()), "c.d.", false),
            rule(Match::Substring("x".into()), "yy", false),
            rule(Match::Regex(Regex::new(r"^(\w+)-(\w+)\.r\.$").unwrap()), "{2}.{1}.s.", false),
            Rule { change: Change::Kind(kind::ANY, kind::HINFO), back: Vec::new(), goes_on: false },
        ];
        let got =
            |name: &str| rewritten(&rules, &Qname::parse(name).unwrap(), kind::A).map(|r| r.name.to_string());
        assert_eq!(got("Old-web.Corp.").unwrap(), "new-web.default.svc.cluster.local.");
        assert_eq!(got("A.b.").unwrap(), "c.d.");
        assert_eq!(got("x.ax.").unwrap(), "yy.ayy.");
        assert_eq!(got("one-two.r.").unwrap(), "two.one.s.");
        assert_eq!(got("z.a.b."), None);
        let any = rewritten(&rules, &Qname::parse("z.").unwrap(), kind::ANY).unwrap();
        assert_eq!((any.kind, any.name.to_string()), (kind::HINFO, "z.".into()));
        let long = [rule(Match::Substring("x".into()), &"y".repeat(64), false)];
        assert!(rewritten(&long, &Qname::parse("x.").unwrap(), kind::A).is_none(), "no name comes out");
    }
}
