//! Header blocks: names and values behind 32-bit lengths, deflated by one zlib stream per direction and session
//! (draft 3, section 2.6.10).
//!
//! ```text
//! +----------------------+
//! | number of pairs (32) |
//! +----------------------+   per pair
//! | length of name  (32) |
//! | name, lower case     |
//! | length of value (32) |
//! | value, several are separated by NUL
//! +----------------------+
//! ```
//!
//! A block is bounded once inflated, so that a few bytes cannot ask for much memory.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::codec::Error;
use crate::dictionary;
use crate::frame::Headers;

/// The longest header block, inflated; half of what a control frame may hold, so that a block always fits.
pub const MAX_BLOCK: usize = 32 * 1024;

/// The most values in a block, which bounds the work of telling names apart.
pub const MAX_VALUES: usize = 256;

/// The inflating end of one direction.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Inflater(Decompress::new(true))
    }
}

impl Inflater {
    /// Inflates and parses the block of one frame.
    ///
    /// # Errors
    /// When the bytes are no zlib stream with SPDY's dictionary, hold too much, or are no header block. The session is
    /// unusable after that, since the streams of both ends no longer agree.
    pub fn headers(&mut self, compressed: &[u8]) -> Result<Headers, Error> {
        parse(&self.inflate(compressed)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut chunk = [0u8; 4096];
        loop {
            let (consumed, produced) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(input, &mut chunk, FlushDecompress::Sync);
            let taken = (self.0.total_in() - consumed) as usize;
            let written = (self.0.total_out() - produced) as usize;
            input = &input[taken.min(input.len())..];
            out.extend_from_slice(&chunk[..written.min(chunk.len())]);
            if out.len() > MAX_BLOCK {
                return Err(Error::HeadersTooLarge);
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(dictionary::bytes()).map_err(|_| Error::Compression)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Error::Compression),
                Ok(_) => {}
            }
            // Output left in the inflater shows as a full chunk.
            if input.is_empty() && written < chunk.len() {
                return Ok(out);
            }
            if taken == 0 && written == 0 {
                return Err(Error::Compression);
            }
        }
    }
}

/// The deflating end of one direction.
pub struct Deflater {
    zlib: Compress,
    primed: bool,
}

impl Default for Deflater {
    fn default() -> Self {
        Deflater { zlib: Compress::new(Compression::fast(), true), primed: false }
    }
}

impl Deflater {
    /// The compressed block of one frame.
    ///
    /// # Errors
    /// When the block is longer than a peer of ours would take, or zlib fails.
    pub fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let plain = serialize(headers)?;
        if !self.primed {
            self.zlib.set_dictionary(dictionary::bytes()).map_err(|_| Error::Compression)?;
            self.primed = true;
        }
        let mut input = plain.as_slice();
        let mut out = Vec::with_capacity(plain.len() + 64);
        loop {
            let consumed = self.zlib.total_in();
            out.reserve(256);
            self.zlib.compress_vec(input, &mut out, FlushCompress::Sync).map_err(|_| Error::Compression)?;
            input = &input[(self.zlib.total_in() - consumed) as usize..];
            // Room left in the output means that the flush is complete.
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

fn serialize(headers: &Headers) -> Result<Vec<u8>, Error> {
    if headers.0.len() > MAX_VALUES {
        return Err(Error::HeadersTooLarge);
    }
    // A name stands once in a block; further values join the first behind a NUL.
    let mut merged: Vec<(String, String)> = Vec::with_capacity(headers.0.len());
    for (name, value) in &headers.0 {
        let name = name.to_ascii_lowercase();
        match merged.iter_mut().find(|(n, _)| *n == name) {
            Some((_, values)) => {
                values.push('\0');
                values.push_str(value);
            }
            None => merged.push((name, value.clone())),
        }
    }
    let mut out = Vec::new();
    out.extend_from_slice(&(merged.len() as u32).to_be_bytes());
    for text in merged.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    if out.len() > MAX_BLOCK { Err(Error::HeadersTooLarge) } else { Ok(out) }
}

fn parse(mut block: &[u8]) -> Result<Headers, Error> {
    let count = take_u32(&mut block)?;
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = take_text(&mut block)?.to_ascii_lowercase();
        let values = take_text(&mut block)?;
        if name.is_empty() || headers.get(&name).is_some() {
            return Err(Error::Malformed("header block"));
        }
        headers
            .0
            .extend(values.split('\0').take(MAX_VALUES + 1).map(|value| (name.clone(), value.to_owned())));
        if headers.0.len() > MAX_VALUES {
            return Err(Error::HeadersTooLarge);
        }
    }
    if block.is_empty() { Ok(headers) } else { Err(Error::Malformed("header block")) }
}

fn take_u32(block: &mut &[u8]) -> Result<u32, Error> {
    let (number, rest) = block.split_first_chunk::<4>().ok_or(Error::Malformed("header block"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*number))
}

fn take_text<'a>(block: &mut &'a [u8]) -> Result<&'a str, Error> {
    let length = take_u32(block)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(Error::Malformed("header block"))?;
    *block = rest;
    std::str::from_utf8(text).map_err(|_| Error::Malformed("header block"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn one_zlib_stream_spans_the_blocks_of_a_session() {
        let (mut deflate, mut inflate) = (Deflater::default(), Inflater::default());
        let first: Headers =
            [("streamtype", "stdin"), ("port", "80"), ("a", "1"), ("a", "2")].into_iter().collect();
        let block = deflate.block(&first).unwrap();
        // zlib header with the dictionary bit, then the dictionary's identifier.
        assert_eq!(block[2..6], 0xe3c6_a7c2u32.to_be_bytes());
        assert_eq!(inflate.headers(&block).unwrap(), first);
        let again = deflate.block(&first).unwrap();
        assert!(again.len() < block.len(), "the second block refers to the first");
        assert_eq!(inflate.headers(&again).unwrap(), first);
        let empty = deflate.block(&Headers::default()).unwrap();
        assert_eq!(inflate.headers(&empty).unwrap(), Headers::default());
    }

    #[test]
    fn long_values_pass_and_bombs_do_not() {
        let (mut deflate, mut inflate) = (Deflater::default(), Inflater::default());
        let long: Headers = [("x", "y".repeat(30_000))].into_iter().collect();
        assert_eq!(inflate.headers(&deflate.block(&long).unwrap()).unwrap(), long);

        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(dictionary::bytes()).unwrap();
        let mut bomb = Vec::with_capacity(1 << 20);
        zlib.compress_vec(&vec![0u8; 4 << 20], &mut bomb, FlushCompress::Sync).unwrap();
        assert!(bomb.len() < 32 * 1024);
        assert!(matches!(Inflater::default().headers(&bomb), Err(Error::HeadersTooLarge)));
    }

    #[test]
    fn blocks_that_lie_are_refused() {
        for (block, why) in [
            (&b"\0\0"[..], "cut count"),
            (b"\0\0\0\x01\0\0\0\x09x", "name longer than the block"),
            (b"\0\0\0\x01\0\0\0\0\0\0\0\0", "empty name"),
            (b"\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0\0\x01a\0\0\0\0", "a name twice"),
            (b"\0\0\0\0\0", "bytes behind the end"),
            (b"\xff\xff\xff\xff", "pairs that are not there"),
            (b"\0\0\0\x01\0\0\0\x01\xff\0\0\0\0", "not text"),
        ] {
            assert!(parse(block).is_err(), "{why}");
        }
        let many = "\0".repeat(MAX_VALUES);
        let mut block = b"\0\0\0\x01\0\0\0\x01a\0\0\x01\0".to_vec();
        block.extend_from_slice(many.as_bytes());
        assert_eq!(parse(&block), Err(Error::HeadersTooLarge));
    }
}
