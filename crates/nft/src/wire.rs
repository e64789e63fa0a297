//! Netlink messages and attributes in a growing buffer.
//!
//! ```text
//! nlmsghdr  { len:u32 type:u16 flags:u16 seq:u32 pid:u32 }  host order
//! nfgenmsg  { family:u8 version:u8 res_id:u16be }
//! nlattr    { len:u16 type:u16 } payload, padded to 4       lengths in host order, nf_tables' numbers in network order
//! ```

pub(crate) const HEADER: usize = 16;
pub(crate) const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// A buffer of netlink messages under construction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Buffer {
    pub(crate) bytes: Vec<u8>,
}

impl Buffer {
    /// Opens a message; close it with [`Self::end_message`] and the offset returned here.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, seq: u32, family: u8, res_id: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&res_id.to_be_bytes());
        start
    }

    pub(crate) fn end_message(&mut self, start: usize) {
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        self.bytes.extend_from_slice(&((payload.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.attr(kind, &[value]);
    }

    pub(crate) fn u16(&mut self, kind: u16, value: u16) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A string with its closing NUL.
    pub(crate) fn str(&mut self, kind: u16, value: &str) {
        self.bytes.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(crate) fn nest<R>(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> R) -> R {
        let start = self.open(kind);
        let result = fill(self);
        self.close(start);
        result
    }

    /// Opens a nest by hand, for loops that split it; [`Self::nest`] otherwise.
    pub(crate) fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        start
    }

    pub(crate) fn close(&mut self, start: usize) {
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Walks the attributes of a message from the kernel; stops at the first one that does not fit.
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?);
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & TYPE_MASK, payload))
    }
}

impl<'a> Attrs<'a> {
    /// The payload of the first attribute of that kind.
    pub(crate) fn find(bytes: &'a [u8], kind: u16) -> Option<&'a [u8]> {
        Attrs(bytes).find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }
}

/// One message from the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits a datagram into its messages.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let word =
            |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?)) };
        let half =
            |at: usize| -> Option<u16> { Some(u16::from_ne_bytes(self.0.get(at..at + 2)?.try_into().ok()?)) };
        let (len, kind, flags, seq) = (word(0)? as usize, half(4)?, half(6)?, word(8)?);
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message { kind, flags, seq, payload })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut buffer = Buffer::default();
        let start = buffer.message(7, 1, 9, 2, 0);
        buffer.str(1, "ab");
        buffer.nest(2, |b| b.u32(3, 5));
        buffer.end_message(start);
        let message = Messages(&buffer.bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.seq), (7, 1, 9));
        let attrs: Vec<_> = Attrs(&message.payload[4..]).collect();
        assert_eq!(attrs[0], (1, &b"ab\0"[..]));
        assert_eq!(Attrs::find(attrs[1].1, 3), Some(&5u32.to_be_bytes()[..]));
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        assert_eq!(Attrs(&[255, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attrs(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
        assert_eq!(Messages(&[8, 0, 0, 0, 1, 0, 0, 0]).count(), 0);
    }
}
