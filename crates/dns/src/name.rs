//! Names as they stand in messages (RFC 1035, 3.1): labels with their lengths, in lower case, on the stack.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// Longest name in a message, with the root's empty label.
const LONGEST: usize = 255;

/// A name in lower case, and where its labels begin.
#[derive(Clone)]
pub struct Qname {
    wire: [u8; LONGEST],
    len: u8,
    starts: [u8; 128],
    labels: u8,
}

impl Qname {
    /// The root.
    pub const ROOT: Self = Self { wire: [0; LONGEST], len: 1, starts: [0; 128], labels: 0 };

    /// Reads an uncompressed name at `at`; gives where it ends.
    pub fn read(bytes: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self::ROOT;
        let mut from = at;
        loop {
            let size = usize::from(*bytes.get(from)?);
            if size == 0 {
                return Some((name, from + 1));
            }
            name.push(bytes.get(from + 1..from + 1 + size)?)?;
            from += 1 + size;
        }
    }

    /// A name out of labels, the nearest to the root last.
    pub fn of<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut name = Self::ROOT;
        labels.into_iter().try_for_each(|label| name.push(label))?;
        Some(name)
    }

    /// The same name of another library.
    pub fn from_name(name: &Name) -> Option<Self> {
        Self::of(name.iter())
    }

    /// Reads text, as in `web.default`; a dot at the end changes nothing.
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_name(&Name::from_ascii(text).ok()?)
    }

    /// The same name for another library.
    pub fn to_name(&self) -> Name {
        let mut name = Name::from_labels(self.iter()).unwrap_or_default();
        name.set_fqdn(true);
        name
    }

    fn push(&mut self, label: &[u8]) -> Option<()> {
        let from = usize::from(self.len) - 1;
        let end = from + 1 + label.len();
        if label.is_empty() || label.len() > 63 || end >= LONGEST {
            return None;
        }
        *self.starts.get_mut(usize::from(self.labels))? = from as u8;
        self.labels += 1;
        self.wire[from] = label.len() as u8;
        self.wire[from + 1..end].copy_from_slice(label);
        self.wire[from + 1..end].make_ascii_lowercase();
        self.wire[end] = 0;
        self.len = end as u8 + 1;
        Some(())
    }

    /// The labels of `self` without the last `leave`, then those of `domain`.
    pub fn moved(&self, leave: usize, domain: &[u8]) -> Option<Self> {
        let kept = self.labels().checked_sub(leave)?;
        let mut name = Self::of((0..kept).map(|i| self.label(i)))?;
        let mut rest = domain;
        while let [size, more @ ..] = rest
            && *size > 0
        {
            let (label, after) = more.split_at_checked(usize::from(*size))?;
            name.push(label)?;
            rest = after;
        }
        Some(name)
    }

    /// As in a message.
    pub fn wire(&self) -> &[u8] {
        &self.wire[..usize::from(self.len)]
    }

    /// How many labels, without the root's.
    pub fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// One label, from the left; nothing behind the last.
    pub fn label(&self, index: usize) -> &[u8] {
        if index >= self.labels() {
            return &[];
        }
        let at = usize::from(self.starts[index]);
        &self.wire[at + 1..at + 1 + usize::from(self.wire[at])]
    }

    /// One label as text; nothing when it is none, so that no name of ours can be meant.
    pub fn text(&self, index: usize) -> &str {
        std::str::from_utf8(self.label(index)).unwrap_or_default()
    }

    /// The labels from left to right.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.labels()).map(|i| self.label(i))
    }

    /// The name from a label on, as in a message.
    pub fn tail(&self, index: usize) -> &[u8] {
        let from =
            if index < self.labels() { usize::from(self.starts[index]) } else { usize::from(self.len) - 1 };
        &self.wire[from..usize::from(self.len)]
    }

    /// The address that a name of the reverse trees stands for, if it is one whole address.
    pub fn reversed(&self) -> Option<IpAddr> {
        let digit =
            |i: usize, radix| u8::from_str_radix(Some(self.text(i)).filter(|t| !t.is_empty())?, radix).ok();
        match (self.labels(), self.text(self.labels().checked_sub(2)?), self.text(self.labels() - 1)) {
            (6, "in-addr", "arpa") => {
                Some(Ipv4Addr::new(digit(3, 10)?, digit(2, 10)?, digit(1, 10)?, digit(0, 10)?).into())
            }
            (34, "ip6", "arpa") => {
                let mut octets = [0; 16];
                for (i, octet) in octets.iter_mut().enumerate() {
                    let (low, high) = (digit(30 - 2 * i, 16)?, digit(31 - 2 * i, 16)?);
                    *octet = Some(high << 4 | low).filter(|_| high < 16 && low < 16)?;
                }
                Some(Ipv6Addr::from(octets).into())
            }
            _ => None,
        }
    }
}

impl PartialEq for Qname {
    fn eq(&self, other: &Self) -> bool {
        self.wire() == other.wire()
    }
}

impl Eq for Qname {}

impl fmt::Debug for Qname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Qname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labels == 0 {
            return f.write_str(".");
        }
        self.iter().try_for_each(|label| write!(f, "{}.", label.escape_ascii()))
    }
}

/// A name that others lie below.
#[derive(Clone, PartialEq, Eq)]
pub struct Domain {
    wire: Box<[u8]>,
    labels: usize,
}

impl Domain {
    /// Everything below this name.
    pub fn of(name: &Qname) -> Self {
        Self { wire: name.wire().into(), labels: name.labels() }
    }

    /// Reads text, as in `cluster.local`.
    pub fn parse(text: &str) -> Option<Self> {
        Qname::parse(text).map(|name| Self::of(&name))
    }

    /// Every name.
    pub fn root() -> Self {
        Self::of(&Qname::ROOT)
    }

    /// How many labels, without the root's.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// As in a message.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// As a name.
    pub fn name(&self) -> Qname {
        Qname::read(&self.wire, 0).map_or(Qname::ROOT, |(name, _)| name)
    }

    /// Whether a name lies here or below.
    pub fn holds(&self, name: &Qname) -> bool {
        self.above(name).is_some()
    }

    /// How many labels a name has below this one, if it lies here.
    pub fn above(&self, name: &Qname) -> Option<usize> {
        let below = name.labels().checked_sub(self.labels)?;
        (name.tail(below) == &*self.wire).then_some(below)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name(), f)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name(), f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_and_compared_without_case() {
        let name = Qname::parse("Web.Default.svc").unwrap();
        assert_eq!(name.wire(), b"\x03web\x07default\x03svc\0");
        assert_eq!((name.labels(), name.text(1), name.text(3)), (3, "default", ""));
        let domain = Domain::parse("default.svc.").unwrap();
        assert_eq!(domain.above(&name), Some(1));
        assert!(!domain.holds(&Qname::parse("webdefault.svc").unwrap()));
        assert!(Domain::root().holds(&Qname::ROOT));
        assert_eq!(name.moved(2, domain.wire()).unwrap().to_string(), "web.default.svc.");
        assert!(Qname::read(b"\x03we", 0).is_none() && Qname::read(b"\xc0\x0c", 0).is_none());
    }

    #[test]
    fn reverse_names_give_addresses() {
        let of = |text: &str| Qname::parse(text).unwrap().reversed();
        assert_eq!(of("7.0.96.10.in-addr.arpa"), Some([10, 96, 0, 7].into()));
        assert_eq!(of("96.10.in-addr.arpa"), None);
        assert_eq!(of("300.0.96.10.in-addr.arpa"), None);
        let six = format!("7.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(of(&six), Some("fd00::7".parse().unwrap()));
        assert_eq!(of(&six.replacen('7', "77", 1)), None);
    }

    proptest! {
        /// What the other library makes of the same bytes is the same name.
        #[test]
        fn both_libraries_read_the_same(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..6)) {
            let mut wire: Vec<u8> = labels.iter().flat_map(|l| [&[l.len() as u8][..], l].concat()).collect();
            wire.push(0);
            match Qname::read(&wire, 0) {
                Some((name, end)) => {
                    prop_assert_eq!(end, wire.len());
                    prop_assert_eq!(name.wire(), wire.to_ascii_lowercase());
                    prop_assert_eq!(Qname::from_name(&name.to_name()).unwrap(), name);
                }
                None => prop_assert!(wire.len() > LONGEST),
            }
        }
    }
}
