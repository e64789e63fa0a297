//! Questions out of bytes and answers into bytes (RFC 1035, 4; RFC 6891), without an allocation per message.
//!
//! Records that come from elsewhere are kept as [`Records`], which are free of compression, so that they can be written
//! into any message.

use std::net::IpAddr;

use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::name::Qname;

/// Types of records, by their numbers (RFC 1035, 2782, 3596, 6891, 8482).
pub mod kind {
    #![allow(missing_docs, reason = "the names are the registry's")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// Codes of answers (RFC 1035, 4.1.1; RFC 6891, 9).
pub mod code {
    #![allow(missing_docs, reason = "the names are the registry's")]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;

    /// As the registry spells it.
    pub fn name(code: u16) -> String {
        let known = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
        match known.get(usize::from(code)) {
            Some(known) => (*known).to_owned(),
            None if code == BADVERS => "BADVERS".to_owned(),
            None => format!("RCODE{code}"),
        }
    }
}

/// The class of the Internet.
pub const IN: u16 = 1;
/// What we take by UDP: fits every path (DNS flag day 2020).
pub const UDP_SIZE: u16 = 1232;
/// Size of a header.
pub const HEADER: usize = 12;
/// The option that carries a cookie (RFC 7873).
const COOKIE: u16 = 10;

/// What a client says by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that it takes.
    pub size: u16,
    /// Version.
    pub version: u8,
    /// It wants signatures.
    pub dnssec: bool,
    /// Its cookie with its length: what a client puts in is echoed, as CoreDNS does.
    cookie: ([u8; 40], u8),
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Of the message.
    pub id: u16,
    flags: [u8; 2],
    /// The name as it was spelled, with type and class.
    raw: [u8; 255 + 4],
    raw_len: u16,
    /// The name.
    pub name: Qname,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// What else the client says.
    pub edns: Option<Edns>,
}

/// Why bytes are no question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Nobody asked.
    NoQuestion,
    /// To be told with this code.
    Told(u16),
}

impl Question {
    /// Reads a message.
    ///
    /// # Errors
    /// When it is not one question.
    pub fn read(bytes: &[u8]) -> Result<Self, Wrong> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else { return Err(Wrong::NoQuestion) };
        if header[2] & 0x80 != 0 {
            return Err(Wrong::NoQuestion);
        }
        let [questions, answers, authorities, further] =
            [4, 6, 8, 10].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
        if questions != 1 {
            return Err(Wrong::Told(code::FORMERR));
        }
        let malformed = Wrong::Told(code::FORMERR);
        let (name, end) = Qname::read(bytes, HEADER).ok_or(malformed)?;
        let fixed = bytes.get(end..end + 4).ok_or(malformed)?;
        let mut question = Self {
            id: u16::from_be_bytes([header[0], header[1]]),
            flags: [header[2], header[3]],
            raw: [0; 255 + 4],
            raw_len: (end + 4 - HEADER) as u16,
            name,
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            edns: None,
        };
        question.raw[..end + 4 - HEADER].copy_from_slice(&bytes[HEADER..end + 4]);
        let mut at = end + 4;
        for index in 0..u32::from(answers) + u32::from(authorities) + u32::from(further) {
            let record = Raw::read(bytes, at).ok_or(malformed)?;
            at = record.end;
            if record.kind == kind::OPT {
                let in_place = index >= u32::from(answers) + u32::from(authorities) && record.owner_is_root;
                if !in_place || question.edns.is_some() {
                    return Err(malformed);
                }
                question.edns = Some(Edns::read(&record, &bytes[record.data..record.end]).ok_or(malformed)?);
            }
        }
        if header[2] >> 3 & 0xf != 0 { Err(Wrong::Told(code::NOTIMP)) } else { Ok(question) }
    }

    /// A question of our own.
    pub fn new(name: &Qname, kind: u16, class: u16) -> Self {
        let mut raw = [0; 255 + 4];
        let len = name.wire().len();
        raw[..len].copy_from_slice(name.wire());
        raw[len..len + 2].copy_from_slice(&kind.to_be_bytes());
        raw[len + 2..len + 4].copy_from_slice(&class.to_be_bytes());
        Self {
            id: 0,
            flags: [1, 0],
            raw,
            raw_len: len as u16 + 4,
            name: name.clone(),
            kind,
            class,
            edns: None,
        }
    }

    /// Name, type and class as they were sent.
    pub fn raw(&self) -> &[u8] {
        &self.raw[..usize::from(self.raw_len)]
    }

    /// The client wants signatures.
    pub fn dnssec(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec)
    }

    /// The client checks signatures itself.
    pub fn checking_disabled(&self) -> bool {
        self.flags[1] & 0x10 != 0
    }

    /// The client understands the bit that says that signatures were checked (RFC 6840, 5.7).
    pub fn knows_authentic(&self) -> bool {
        self.flags[1] & 0x20 != 0 || self.dnssec()
    }
}

impl Edns {
    fn read(record: &Raw, data: &[u8]) -> Option<Self> {
        let [_, version, flags, _] = record.ttl.to_be_bytes();
        let mut edns = Self { size: record.class, version, dnssec: flags & 0x80 != 0, cookie: ([0; 40], 0) };
        let mut rest = data;
        while !rest.is_empty() {
            let (head, more) = rest.split_first_chunk::<4>()?;
            let size = usize::from(u16::from_be_bytes([head[2], head[3]]));
            let (value, after) = more.split_at_checked(size)?;
            if u16::from_be_bytes([head[0], head[1]]) == COOKIE {
                // RFC 7873, 5.2.2: 8 octets, or 16 to 40.
                if size != 8 && !(16..=40).contains(&size) {
                    return None;
                }
                edns.cookie.0[..size].copy_from_slice(value);
                edns.cookie.1 = size as u8;
            }
            rest = after;
        }
        Some(edns)
    }
}

/// A record of a message: where it is and what its fixed fields say.
struct Raw {
    owner_is_root: bool,
    kind: u16,
    class: u16,
    ttl: u32,
    data: usize,
    end: usize,
}

impl Raw {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let mut from = at;
        loop {
            match *bytes.get(from)? {
                0 => break,
                // A pointer ends a name.
                size if size >= 0xc0 => {
                    from += 1;
                    break;
                }
                size if size > 63 => return None,
                size => from += 1 + usize::from(size),
            }
        }
        let fixed: &[u8; 10] = bytes.get(from + 1..from + 11)?.first_chunk()?;
        let data = from + 11;
        let end = data + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        bytes.get(data..end)?;
        Some(Self {
            owner_is_root: bytes[at] == 0,
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            data,
            end,
        })
    }
}

/// The three sections behind the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who says so.
    Authority,
    /// What will be asked for next.
    Additional,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    section: Section,
    /// Where the owner's name begins in the bytes; the data follows it.
    owner: u32,
    data: u32,
    end: u32,
    kind: u16,
    class: u16,
    ttl: u32,
}

/// Records on their own, without compression.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    bytes: Vec<u8>,
    stored: Vec<Stored>,
}

impl Records {
    /// Takes in a record; the root's OPT is nobody's but the hop's. Records that cannot be written are left out.
    pub fn add(&mut self, section: Section, record: &Record) {
        let kind = u16::from(record.record_type());
        if kind == kind::OPT {
            return;
        }
        let owner = self.bytes.len() as u32;
        write_labels(&mut self.bytes, &record.name);
        let data = self.bytes.len() as u32;
        let mut encoded = Vec::new();
        let mut encoder = BinEncoder::new(&mut encoded);
        if record.data.emit(&mut encoder).is_err() {
            self.bytes.truncate(owner as usize);
            return;
        }
        self.bytes.extend_from_slice(&encoded);
        let (end, class) = (self.bytes.len() as u32, u16::from(record.dns_class));
        self.stored.push(Stored { section, owner, data, end, kind, class, ttl: record.ttl });
    }

    /// The lives of a section's records, and the lives of negative answers that stand there (RFC 2308, 5).
    pub fn lives(&self, section: Section) -> impl Iterator<Item = (u16, u32, Option<u32>)> {
        self.stored.iter().filter(move |s| s.section == section).map(|s| {
            let data = &self.bytes[s.data as usize..s.end as usize];
            let minimum =
                data.last_chunk::<4>().filter(|_| s.kind == kind::SOA).map(|b| u32::from_be_bytes(*b));
            (s.kind, s.ttl, minimum)
        })
    }

    /// Whether there are none in a section.
    pub fn none_in(&self, section: Section) -> bool {
        self.stored.iter().all(|s| s.section != section)
    }

    /// Octets kept.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.stored.len() * size_of::<Stored>()
    }

    /// Frees what is not needed to keep them.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.stored.shrink_to_fit();
    }
}

fn write_labels(out: &mut Vec<u8>, name: &Name) {
    for label in name.iter() {
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
}

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
