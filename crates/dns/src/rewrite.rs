//! Questions that are looked up as others, and answers that are told as others (directive `rewrite`,
//! <https://coredns.io/plugins/rewrite/>).

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hickory_proto::rr::rdata::{CNAME, MX, NS, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record};
use regex::Regex;

use crate::name::Qname;
use crate::respond::Transport;
use crate::wire::{EdnsOption, write_options};

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
    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(from) => text == from,
            Self::Prefix(from) => text.starts_with(&**from),
            Self::Suffix(from) => text.ends_with(&**from),
            Self::Substring(from) => text.contains(&**from),
            Self::Regex(from) => from.is_match(text),
        }
    }

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
    /// Another class.
    Class(u16, u16),
    /// The same; the records that come of it live so long.
    Life(Match, RangeInclusive<u32>),
    /// The same; where this code comes of it, another one is told.
    Code(Match, u16, u16),
    /// The same; upstreams are told more.
    Option(Action, u16, Tell),
}

/// What becomes of an option of EDNS that earlier rules have put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is replaced, or put in.
    Set,
    /// Another one is put in.
    Append,
    /// It is taken out.
    Unset,
}

/// What an option of EDNS tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tell {
    /// These octets.
    Octets(Vec<u8>),
    /// The name that is asked for, as text.
    Name,
    /// The type, in two octets.
    Kind,
    /// The client's address, in four octets or sixteen.
    Client,
    /// `udp` or `tcp`.
    Transport,
    /// The client's network, of so many bits in IPv4 and in IPv6 (RFC 7871).
    Subnet(u8, u8),
}

impl Tell {
    fn octets(&self, name: &str, kind: u16, asked: &Asked<'_>) -> Vec<u8> {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        match self {
            Self::Octets(octets) => octets.clone(),
            Self::Name => name.as_bytes().to_vec(),
            Self::Kind => kind.to_be_bytes().to_vec(),
            Self::Client => octets(asked.peer.to_canonical()),
            Self::Transport if asked.transport == Transport::Tcp => b"tcp".to_vec(),
            Self::Transport => b"udp".to_vec(),
            Self::Subnet(four, six) => {
                let peer = asked.peer.to_canonical();
                let (family, bits) = if peer.is_ipv4() { (1, *four) } else { (2, *six) };
                let mut network = octets(peer);
                network.truncate(usize::from(bits).div_ceil(8));
                if let Some(last) = network.last_mut().filter(|_| bits % 8 != 0) {
                    *last &= 0xff << (8 - bits % 8);
                }
                [&[0, family, bits, 0][..], &network].concat()
            }
        }
    }
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

/// A question, and who asks.
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a Qname,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) peer: IpAddr,
    pub(crate) transport: Transport,
}

/// A question that is looked up as another one.
#[derive(Debug, Clone)]
pub(crate) struct Rewritten {
    pub(crate) name: Qname,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// Options of EDNS for upstreams, as they are sent.
    pub(crate) options: Box<[u8]>,
    /// The rules that had a part in it.
    rules: Vec<usize>,
}

/// What to look up instead; none when no rule is about it, or what comes out is no name.
pub(crate) fn rewritten(rules: &[Rule], asked: &Asked<'_>) -> Option<Rewritten> {
    if rules.is_empty() {
        return None;
    }
    let mut text = asked.name.to_string();
    let (mut kind, mut class) = (asked.kind, asked.class);
    let (mut options, mut taken) = (Vec::<EdnsOption>::new(), Vec::new());
    for (index, rule) in rules.iter().enumerate() {
        match &rule.change {
            Change::Name(from, to) => match from.replace(&text, to) {
                Some(new) => text = new,
                None => continue,
            },
            Change::Kind(from, to) if *from == kind => kind = *to,
            Change::Class(from, to) if *from == class => class = *to,
            Change::Life(of, _) | Change::Code(of, ..) if of.fits(&text) => {}
            Change::Option(action, number, tell) => {
                if *action != Action::Append {
                    options.retain(|(known, _)| known != number);
                }
                if *action != Action::Unset {
                    options.push((*number, tell.octets(&text, kind, asked)));
                }
            }
            Change::Kind(..) | Change::Class(..) | Change::Life(..) | Change::Code(..) => continue,
        }
        taken.push(index);
        if !rule.goes_on {
            break;
        }
    }
    if taken.is_empty() {
        return None;
    }
    let options = write_options(&options).into();
    Some(Rewritten { name: Qname::parse(&text)?, kind, class, options, rules: taken })
}

impl Rewritten {
    /// The rules that had a part in it, the last one first.
    fn taken<'a>(&self, rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().rev().filter_map(|index| rules.get(*index))
    }

    /// Whether records of the answer are changed beyond the name that was asked for.
    pub(crate) fn changes_records(&self, rules: &[Rule]) -> bool {
        self.taken(rules).any(|rule| !rule.back.is_empty() || matches!(rule.change, Change::Life(..)))
    }

    /// The code that is told.
    pub(crate) fn code(&self, rules: &[Rule], code: u16) -> u16 {
        self.taken(rules).fold(code, |code, rule| match &rule.change {
            Change::Code(_, from, to) if *from == code => *to,
            _ => code,
        })
    }

    /// Changes a record of the answer back.
    pub(crate) fn back(&self, rules: &[Rule], record: &mut Record) {
        for rule in self.taken(rules) {
            if let Change::Life(_, life) = &rule.change {
                record.ttl = record.ttl.clamp(*life.start(), *life.end());
            }
        }
        for back in self.taken(rules).flat_map(|rule| &rule.back) {
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
    use hickory_proto::rr::rdata::A;

    use super::*;
    use crate::wire::{IN, code, kind};

    fn asked(rules: &[Rule], name: &str, kind: u16) -> Option<Rewritten> {
        let name = Qname::parse(name).unwrap();
        let (peer, transport) = ([10, 244, 3, 77].into(), Transport::Udp);
        rewritten(rules, &Asked { name: &name, kind, class: IN, peer, transport })
    }

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
        let got = |name: &str| asked(&rules, name, kind::A).map(|r| r.name.to_string());
        assert_eq!(got("Old-web.Corp.").unwrap(), "new-web.default.svc.cluster.local.");
        assert_eq!(got("A.b.").unwrap(), "c.d.");
        assert_eq!(got("x.ax.").unwrap(), "yy.ayy.");
        assert_eq!(got("one-two.r.").unwrap(), "two.one.s.");
        assert_eq!(got("z.a.b."), None);
        let any = asked(&rules, "z.", kind::ANY).unwrap();
        assert_eq!((any.kind, any.name.to_string()), (kind::HINFO, "z.".into()));
        let long = [rule(Match::Substring("x".into()), &"y".repeat(64), false)];
        assert!(asked(&long, "x.", kind::A).is_none(), "no name comes out");
    }

    #[test]
    fn answers_are_told_with_other_lives_and_codes() {
        let rule = |change| Rule { change, back: Vec::new(), goes_on: true };
        let of = || Match::Suffix(".test.".into());
        let rules = [
            rule(Change::Life(of(), 15..=30)),
            rule(Change::Code(of(), code::SERVFAIL, code::NXDOMAIN)),
            rule(Change::Class(3, IN)),
        ];
        assert!(asked(&rules, "a.other.", kind::A).is_none());
        let found = asked(&rules, "a.test.", kind::A).unwrap();
        assert!(found.changes_records(&rules));
        assert_eq!(found.code(&rules, code::SERVFAIL), code::NXDOMAIN);
        assert_eq!(found.code(&rules, code::REFUSED), code::REFUSED);
        for (came, told) in [(0, 15), (20, 20), (300, 30)] {
            let data = RData::A(A::new(1, 2, 3, 4));
            let mut record = Record::from_rdata(Name::from_ascii("a.test.").unwrap(), came, data);
            found.back(&rules, &mut record);
            assert_eq!(record.ttl, told);
        }
    }

    #[test]
    fn options_say_who_asks_for_what() {
        let rule = |action, number, tell| {
            let change = Change::Option(action, number, tell);
            Rule { change, back: Vec::new(), goes_on: true }
        };
        let octets = |text: &str| Tell::Octets(text.into());
        let rules = [
            rule(Action::Set, 0xffee, octets("old")),
            rule(Action::Set, 0xffee, octets("new")),
            rule(Action::Append, 0xffee, Tell::Kind),
            rule(Action::Set, 3, octets("")),
            rule(Action::Unset, 3, octets("")),
            rule(Action::Set, 0xfffe, Tell::Name),
            rule(Action::Set, 8, Tell::Subnet(20, 56)),
            rule(Action::Set, 0xfffd, Tell::Client),
            rule(Action::Set, 0xfffc, Tell::Transport),
        ];
        let found = asked(&rules, "a.test.", kind::AAAA).unwrap();
        let wanted: [(u16, &[u8]); 6] = [
            (0xffee, b"new"),
            (0xffee, &[0, 28]),
            (0xfffe, b"a.test."),
            (8, &[0, 1, 20, 0, 10, 244, 0]),
            (0xfffd, &[10, 244, 3, 77]),
            (0xfffc, b"udp"),
        ];
        let wanted: Vec<EdnsOption> = wanted.iter().map(|(n, data)| (*n, data.to_vec())).collect();
        assert_eq!(*found.options, *write_options(&wanted));
        assert!(!found.changes_records(&rules));
    }
}
