//! Answers as they are written: header, question, records with compressed names, and what fits.

use std::net::IpAddr;

use super::{COOKIE, Edns, HEADER, IN, Question, Records, Section, UDP_SIZE, kind};
use crate::name::Qname;

/// Whose record it is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// The name of the question, as it was spelled.
    Asked,
    /// Another name, as in a message.
    Named(&'a [u8]),
}

/// An answer while it is written. The buffers stay with whoever owns it, for the next one.
#[derive(Debug, Default)]
pub struct Response {
    bytes: Vec<u8>,
    /// Where each record begins.
    starts: Vec<(Section, u32)>,
    /// The name that was looked up instead of the one that was asked for: its records are told as those of the latter.
    looked_up: Option<Box<[u8]>>,
    /// Whose the records are that the asked name stands for, if it is an alias.
    owner: Option<Box<[u8]>>,
    /// Names in the data of aliases, which later owners may point to.
    aliases: Vec<u16>,
    asked: usize,
}

impl Response {
    /// Begins the answer to a question.
    pub fn begin(&mut self, question: &Question) {
        self.bytes.clear();
        self.starts.clear();
        self.aliases.clear();
        self.looked_up = None;
        self.owner = None;
        self.bytes.extend_from_slice(&question.id.to_be_bytes());
        self.bytes.extend_from_slice(&[0; HEADER - 2]);
        self.bytes.extend_from_slice(question.raw());
        self.asked = question.raw().len() - 4;
    }

    /// From now on records of this name are told as those of the name that was asked for.
    pub fn stands_for(&mut self, looked_up: &Qname) {
        self.looked_up = Some(looked_up.wire().into());
    }

    /// These bytes are the answer.
    pub fn set(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.starts.clear();
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives back room that only a very large answer needed.
    pub fn shrink(&mut self) {
        if self.bytes.capacity() > 8 << 10 {
            *self = Self::default();
        }
    }

    /// How many records the answer section has.
    pub fn answers(&self) -> usize {
        self.starts.iter().filter(|(section, _)| *section == Section::Answer).count()
    }

    /// Forgets the records.
    pub fn clear(&mut self) {
        let end = self.starts.first().map_or(self.bytes.len(), |(_, at)| *at as usize);
        self.bytes.truncate(end);
        self.starts.clear();
        self.aliases.clear();
        self.owner = None;
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether no record is there.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// From now on what is asked for is the target of the alias that was written last; false when it was seen before.
    pub fn follow(&mut self, target: &Qname) -> bool {
        let name = target.wire();
        let is = |from: usize| {
            self.bytes.get(from..from + name.len()).is_some_and(|b| b.eq_ignore_ascii_case(name))
        };
        let before = self.aliases.len().saturating_sub(1);
        if is(HEADER) || self.aliases[..before].iter().any(|at| is(usize::from(*at))) {
            return false;
        }
        self.owner = Some(name.into());
        true
    }

    /// Adds a record, whose data the function appends. Records must come section by section.
    pub fn add(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        kind: u16,
        ttl: u32,
        data: impl FnOnce(&mut Vec<u8>),
    ) {
        self.record(section, owner, (kind, IN), ttl, data);
    }

    fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        (kind, class): (u16, u16),
        ttl: u32,
        data: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.bytes.len() > usize::from(u16::MAX) {
            return;
        }
        self.starts.push((section, self.bytes.len() as u32));
        match (owner, self.owner.take()) {
            (Owner::Asked, None) => self.bytes.extend_from_slice(&[0xc0, HEADER as u8]),
            (Owner::Asked, Some(name)) => {
                self.write_owner(&name);
                self.owner = Some(name);
            }
            (Owner::Named(name), following) => {
                self.write_owner(name);
                self.owner = following;
            }
        }
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&class.to_be_bytes());
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        let size_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        data(&mut self.bytes);
        let size = (self.bytes.len() - size_at - 2).min(usize::from(u16::MAX)) as u16;
        self.bytes[size_at..size_at + 2].copy_from_slice(&size.to_be_bytes());
        if kind == kind::CNAME
            && let Ok(at) = u16::try_from(size_at + 2)
            && at < 0x4000
        {
            self.aliases.push(at);
        }
    }

    /// An owner's name: where it ends as the question's does, or is the target of an alias above, as a pointer to there.
    fn write_owner(&mut self, name: &[u8]) {
        let asked = |bytes: &[u8], tail: &[u8]| -> Option<u16> {
            let at = HEADER + self.asked.checked_sub(tail.len())?;
            let same = bytes[at..HEADER + self.asked].eq_ignore_ascii_case(tail);
            // Where labels begin: a tail within a label is none.
            let mut label = HEADER;
            while label < at {
                label += 1 + usize::from(bytes[label]);
            }
            (same && label == at && tail.len() > 1).then_some(at as u16)
        };
        if self.looked_up.as_deref().is_some_and(|other| other.eq_ignore_ascii_case(name)) {
            return self.bytes.extend_from_slice(&[0xc0, HEADER as u8]);
        }
        let alias = self.aliases.iter().find(|at| {
            let from = usize::from(**at);
            self.bytes.get(from..from + name.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(name))
        });
        if let Some(at) = alias {
            let pointer = 0xc000 | at;
            return self.bytes.extend_from_slice(&pointer.to_be_bytes());
        }
        let mut from = 0;
        while let Some(size) = name.get(from).filter(|size| **size > 0) {
            if let Some(at) = asked(&self.bytes, &name[from..]) {
                return self.bytes.extend_from_slice(&(0xc000 | at).to_be_bytes());
            }
            let end = (from + 1 + usize::from(*size)).min(name.len());
            self.bytes.extend_from_slice(&name[from..end]);
            from = end;
        }
        self.bytes.push(0);
    }

    /// An address of the asked name.
    pub fn address(&mut self, section: Section, owner: Owner<'_>, ttl: u32, addr: IpAddr) {
        match addr {
            IpAddr::V4(addr) => {
                self.add(section, owner, kind::A, ttl, |out| out.extend_from_slice(&addr.octets()))
            }
            IpAddr::V6(addr) => {
                self.add(section, owner, kind::AAAA, ttl, |out| out.extend_from_slice(&addr.octets()))
            }
        }
    }

    /// Adds records, whose lives the function decides on.
    pub fn extend(&mut self, records: &Records, section: Section, life: impl Fn(u32) -> u32) {
        for s in records.stored.iter().filter(|s| s.section == section) {
            let owner = &records.bytes[s.owner as usize..s.data as usize];
            let data = &records.bytes[s.data as usize..s.end as usize];
            let named = Owner::Named(owner);
            self.record(section, named, (s.kind, s.class), life(s.ttl), |out| out.extend_from_slice(data));
        }
    }

    /// Answers of equal worth begin with another one each time, so that clients that take the first spread.
    pub fn rotate(&mut self) {
        let answers = self.starts.iter().take_while(|(section, _)| *section == Section::Answer);
        let answers = answers.count();
        let is_alias = |at: u32| {
            let mut end = at as usize;
            while let Some(size) = self.bytes.get(end).filter(|size| **size > 0 && **size < 0xc0) {
                end += 1 + usize::from(*size);
            }
            end += if self.bytes.get(end).is_some_and(|b| *b >= 0xc0) { 2 } else { 1 };
            self.bytes.get(end..end + 2) == Some(&kind::CNAME.to_be_bytes())
        };
        let fixed = self.starts[..answers].iter().take_while(|(_, at)| is_alias(*at)).count();
        if answers - fixed < 2 {
            return;
        }
        let first = self.starts[fixed].1 as usize;
        let end = self.starts.get(answers).map_or(self.bytes.len(), |(_, at)| *at as usize);
        let by = self.starts[fixed + rand::random_range(0..answers - fixed)].1 as usize - first;
        self.bytes[first..end].rotate_left(by);
        let (turned, len) = (by as u32, (end - first) as u32);
        for (_, at) in &mut self.starts[fixed..answers] {
            *at = first as u32 + (*at - first as u32 + len - turned) % len;
        }
        self.starts[fixed..answers].sort_unstable_by_key(|(_, at)| *at);
    }

    /// Ends the answer within a size: first without what is merely helpful, then cut and marked so (RFC 2181, 9).
    pub fn finish(&mut self, question: &Question, head: Head, limit: usize) -> &[u8] {
        let cookie = |edns: &Edns| if edns.cookie.1 == 0 { 0 } else { usize::from(edns.cookie.1) + 4 };
        let edns = question.edns.map(|edns| (11 + cookie(&edns), edns));
        let room = limit.saturating_sub(edns.map_or(0, |(size, _)| size));
        let mut truncated = false;
        if self.bytes.len() > room {
            let needed = self.starts.iter().take_while(|(section, _)| *section < Section::Additional).count();
            self.cut(needed);
        }
        if self.bytes.len() > room {
            truncated = true;
            let ends = self.starts.iter().skip(1).map(|(_, at)| *at as usize).chain([self.bytes.len()]);
            let fit = |((s, _), end): &(&(Section, u32), usize)| *s == Section::Answer && *end <= room;
            let fits = self.starts.iter().zip(ends).take_while(fit).count();
            self.cut(fits);
        }
        let count = |wanted| self.starts.iter().filter(|(section, _)| *section == wanted).count() as u16;
        let counts = [
            1,
            count(Section::Answer),
            count(Section::Authority),
            count(Section::Additional) + u16::from(edns.is_some()),
        ];
        let [first, second] = question.flags;
        self.bytes[2] = 0x80 | first & 0x79 | u8::from(head.authoritative) << 2 | u8::from(truncated) << 1;
        self.bytes[3] = 0x80 | second & 0x10 | u8::from(head.authentic) << 5 | (head.code & 0xf) as u8;
        for (at, count) in [4, 6, 8, 10].into_iter().zip(counts) {
            self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        if let Some((_, edns)) = edns {
            let cookie = &edns.cookie.0[..usize::from(edns.cookie.1.min(40))];
            self.bytes.extend_from_slice(&[0, 0, kind::OPT as u8]);
            self.bytes.extend_from_slice(&UDP_SIZE.to_be_bytes());
            self.bytes.extend_from_slice(&[(head.code >> 4) as u8, 0, u8::from(edns.dnssec) << 7, 0]);
            let size = if cookie.is_empty() { 0 } else { cookie.len() as u16 + 4 };
            self.bytes.extend_from_slice(&size.to_be_bytes());
            if !cookie.is_empty() {
                self.bytes.extend_from_slice(&COOKIE.to_be_bytes());
                self.bytes.extend_from_slice(&(cookie.len() as u16).to_be_bytes());
                self.bytes.extend_from_slice(cookie);
            }
        }
        &self.bytes
    }

    /// Leaves the first records alone.
    fn cut(&mut self, records: usize) {
        if let Some((_, at)) = self.starts.get(records) {
            self.bytes.truncate(*at as usize);
            self.starts.truncate(records);
        }
    }

    /// The finished answer.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished answer, for keeps.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// What the header of an answer says.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// Code.
    pub code: u16,
    /// The names are ours.
    pub authoritative: bool,
    /// Somebody has checked the signatures.
    pub authentic: bool,
}

/// An answer without a question, for what cannot be understood further.
pub fn refusal(bytes: &[u8], code: u16) -> Option<[u8; HEADER]> {
    let mut header: [u8; HEADER] = *bytes.first_chunk()?;
    header[2] = 0x80 | header[2] & 0x79;
    header[3] = (code & 0xf) as u8;
    header[4..].fill(0);
    Some(header)
}
