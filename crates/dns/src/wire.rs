//! Questions out of bytes (RFC 1035, 4; RFC 6891) and answers into bytes (`response.rs`), without an allocation per message.
//!
//! Records that come from elsewhere are kept as [`Records`], which are free of compression, so that they can be written
//! into any message.

mod response;

use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::name::Qname;

pub use response::{Head, Owner, Response, refusal};

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
        match KNOWN.get(usize::from(code)) {
            Some(known) => (*known).to_owned(),
            None if code == BADVERS => "BADVERS".to_owned(),
            None => format!("RCODE{code}"),
        }
    }

    /// By its name in any case, or its number; only codes that fit into a header.
    pub fn parse(text: &str) -> Option<u16> {
        let at = KNOWN.iter().position(|known| known.eq_ignore_ascii_case(text));
        let number = at.or_else(|| text.parse().ok()).filter(|n| *n < KNOWN.len())?;
        u16::try_from(number).ok()
    }

    const KNOWN: [&str; 11] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
        "NOTAUTH", "NOTZONE",
    ];
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

/// An option of EDNS: its number and what it says.
pub(crate) type EdnsOption = (u16, Vec<u8>);

/// Options as they stand in a message.
pub(crate) fn write_options(options: &[EdnsOption]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, octets) in options {
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&(octets.len() as u16).to_be_bytes());
        out.extend_from_slice(octets);
    }
    out
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
