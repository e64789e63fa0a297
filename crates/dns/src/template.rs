//! Answers that are made from the question (directive `template`): CoreDNS's syntax, as far as it names parts of the
//! question. Functions and pipes of Go's templates are refused.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::rr::Name;
use hickory_proto::serialize::txt::Parser;
use regex::{Captures, Regex};

use crate::answer::Verdict;
use crate::config::Through;
use crate::name::{Domain, Qname};
use crate::wire::{Records, Response, Section, code, kind};

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Name,
    Zone,
    Class,
    Kind,
    Remote,
    /// What a named pair of brackets holds.
    Group(String),
    /// What a pair of brackets holds, the whole match being 0.
    Match(usize),
}

/// A record with gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line(Vec<Part>);

impl Line {
    /// Reads the line.
    ///
    /// # Errors
    /// Names the expression that is not understood.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (inner, behind) = after.split_once("}}").ok_or("`{{` without `}}`")?;
            parts.push(Part::Text(before.to_owned()));
            let words: Vec<&str> = inner.split_whitespace().collect();
            parts.push(match words[..] {
                [".Name"] => Part::Name,
                [".Zone"] => Part::Zone,
                [".Class"] => Part::Class,
                [".Type"] => Part::Kind,
                [".Remote"] => Part::Remote,
                [word] if word.strip_prefix(".Group.").is_some_and(|name| !name.is_empty()) => {
                    Part::Group(word.trim_start_matches(".Group.").to_owned())
                }
                ["index", ".Match", number] => {
                    Part::Match(number.parse().map_err(|_| format!("{number:?} is no number of a match"))?)
                }
                _ => {
                    return Err(format!(
                        "{{{{{inner}}}}} is not understood; known are .Name, .Zone, .Class, .Type, .Remote, \
                         .Group.NAME and index .Match NUMBER"
                    ));
                }
            });
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }
}

/// One directive.
#[derive(Debug)]
pub struct Template {
    /// Class, or any.
    pub class: u16,
    /// Type, or any.
    pub kind: u16,
    /// Which names it may be about.
    pub zones: Vec<Domain>,
    /// Which of them it is about.
    pub matches: Vec<Regex>,
    /// The records, section by section.
    pub lines: Vec<(Section, Line)>,
    /// The code.
    pub code: u16,
    /// Names that fit no expression are others'.
    pub(crate) through: Through,
    /// How often it was about a question.
    pub(crate) seen: AtomicU64,
}

struct Gaps<'a> {
    name: &'a str,
    zone: String,
    kind: u16,
    remote: IpAddr,
    found: Captures<'a>,
}

impl Template {
    /// How often it was about a question.
    pub(crate) fn matched(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// The answer; none when the question is left to others.
    pub(crate) fn answer(
        &self,
        name: &Qname,
        (class, kind): (u16, u16),
        remote: IpAddr,
        out: &mut Response,
    ) -> Option<Verdict> {
        let of = |own: u16, asked: u16| own == kind::ANY || own == asked;
        let zone = self.zones.iter().filter(|zone| zone.holds(name)).max_by_key(|zone| zone.labels())?;
        if !of(self.class, class) || !of(self.kind, kind) {
            return None;
        }
        let text = name.to_string();
        let Some(found) = self.matches.iter().find_map(|regex| regex.captures(&text)) else {
            return (!self.through.lets(name)).then_some(Verdict::Told(code::NXDOMAIN));
        };
        self.seen.fetch_add(1, Ordering::Relaxed);
        let gaps = Gaps { name: &text, zone: zone.to_string(), kind, remote, found };
        let mut records = Records::default();
        let mut alias = None;
        for (section, line) in &self.lines {
            let Some(target) = add(&mut records, *section, &gaps.fill(line)) else {
                tracing::error!(name = text, "the template gives no record: {}", gaps.fill(line));
                return Some(Verdict::Told(code::SERVFAIL));
            };
            alias = target.or(alias);
        }
        for section in [Section::Answer, Section::Authority, Section::Additional] {
            out.extend(&records, section, |ttl| ttl);
        }
        match alias.filter(|_| matches!(kind, kind::A | kind::AAAA) && self.code == code::NOERROR) {
            Some(target) => Some(Verdict::Alias(Box::new(target))),
            None => Some(Verdict::Told(self.code)),
        }
    }
}

impl Gaps<'_> {
    fn fill(&self, line: &Line) -> String {
        let mut text = String::new();
        for part in &line.0 {
            match part {
                Part::Text(own) => text.push_str(own),
                Part::Name => text.push_str(self.name),
                Part::Zone => text.push_str(&self.zone),
                Part::Class => text.push_str("IN"),
                Part::Kind => text.push_str(&hickory_proto::rr::RecordType::from(self.kind).to_string()),
                Part::Remote => text.push_str(&self.remote.to_string()),
                Part::Group(name) => text.push_str(self.found.name(name).map_or("", |m| m.as_str())),
                Part::Match(number) => text.push_str(self.found.get(*number).map_or("", |m| m.as_str())),
            }
        }
        text
    }
}

/// Adds a record in the form of a zone file; gives the target of an alias.
fn add(records: &mut Records, section: Section, text: &str) -> Option<Option<Qname>> {
    let (_, sets) = Parser::new(format!("{text}\n"), None, Some(Name::root())).parse().ok()?;
    let mut alias = None;
    let mut any = false;
    for record in sets.values().flat_map(|set| set.records_without_rrsigs()) {
        any = true;
        if let hickory_proto::rr::RData::CNAME(target) = &record.data {
            alias = Qname::from_name(&target.0);
        }
        records.add(section, record);
    }
    any.then_some(alias)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn gaps_are_named_and_others_refused() {
        let line = Line::read("{{ .Name }} 60 IN A {{ .Group.b }}.{{index .Match 1}}").unwrap();
        assert_eq!(line.0.len(), 7);
        for wrong in
            ["{{ .Name", "{{ .Meta \"x\" }}", "{{ index .Match x }}", "{{ .Group. }}", "{{ . | print }}"]
        {
            assert!(Line::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn records_are_read_as_in_zone_files() {
        let mut records = Records::default();
        assert_eq!(add(&mut records, Section::Answer, "a.b. 60 IN A 1.2.3.4"), Some(None));
        let alias = add(&mut records, Section::Answer, "a.b. 60 IN CNAME c.d.").unwrap().unwrap();
        assert_eq!(alias.to_string(), "c.d.");
        assert_eq!(add(&mut records, Section::Answer, "a.b. 60 IN A nonsense"), None);
        assert_eq!(add(&mut records, Section::Answer, ""), None);
    }
}
