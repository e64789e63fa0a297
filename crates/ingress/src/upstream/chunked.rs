//! The chunked coding of an answer's body (RFC 9112, 7.1), strictly: what is not exactly it is an error, so that no two
//! readers can disagree about where a message ends.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Bytes of a chunk's line, or of all trailers.
const LINE: usize = 8 << 10;

/// Where in the coding a reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    End,
    Trailers,
    Done,
}

/// What comes out of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    Done,
    /// More bytes are needed.
    More,
}

/// A reader of the coding.
#[derive(Debug)]
pub(crate) struct Chunked(State);

impl Chunked {
    pub fn new() -> Self {
        Self(State::Size)
    }

    /// The next piece that `input` holds.
    ///
    /// # Errors
    /// What is no chunked coding.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Piece, &'static str> {
        loop {
            match self.0 {
                State::Size => {
                    let Some(end) = line_end(input)? else { return Ok(Piece::More) };
                    let size = size(&input[..end])?;
                    input.advance(end + 2);
                    self.0 = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) => {
                    if input.is_empty() {
                        return Ok(Piece::More);
                    }
                    let now = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let rest = left - now as u64;
                    self.0 = if rest == 0 { State::End } else { State::Data(rest) };
                    return Ok(Piece::Data(input.split_to(now)));
                }
                State::End => match input.get(..2) {
                    None => return Ok(Piece::More),
                    Some(b"\r\n") => {
                        input.advance(2);
                        self.0 = State::Size;
                    }
                    Some(_) => return Err("a chunk is longer than it says"),
                },
                State::Trailers => return self.trailers(input),
                State::Done => return Ok(Piece::Done),
            }
        }
    }

    fn trailers(&mut self, input: &mut Bytes) -> Result<Piece, &'static str> {
        if input.starts_with(b"\r\n") {
            input.advance(2);
            self.0 = State::Done;
            return Ok(Piece::Done);
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let (read, fields) = match httparse::parse_headers(input, &mut headers) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) if input.len() < LINE => return Ok(Piece::More),
            Ok(httparse::Status::Partial) => return Err("the trailers are too long"),
            Err(_) => return Err("the trailers are no headers"),
        };
        let mut map = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "a trailer's name")?;
            map.append(name, HeaderValue::from_bytes(field.value).map_err(|_| "a trailer's value")?);
        }
        input.advance(read);
        self.0 = State::Done;
        Ok(Piece::Trailers(map))
    }
}

/// Where the line ends, before its CR LF.
fn line_end(input: &[u8]) -> Result<Option<usize>, &'static str> {
    match input.iter().take(LINE).position(|b| *b == b'\n') {
        Some(0) => Err("a chunk's size is missing"),
        Some(at) if input[at - 1] == b'\r' => Ok(Some(at - 1)),
        Some(_) => Err("a chunk's line ends without CR"),
        None if input.len() >= LINE => Err("a chunk's line is too long"),
        None => Ok(None),
    }
}

/// The size before an extension.
fn size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = &line[digits..];
    let extension = rest.iter().position(|b| !matches!(b, b' ' | b'\t')).map(|at| rest[at]);
    if digits == 0 || digits > 15 || !matches!(extension, None | Some(b';')) {
        return Err("a chunk's size is no number");
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| "a chunk's size is no number")?;
    u64::from_str_radix(text, 16).map_err(|_| "a chunk's size is no number")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    /// Feeds `coded` in pieces of `step` bytes; the data, and what was left over.
    fn read(coded: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), &'static str> {
        let (mut reader, mut input) = (Chunked::new(), Bytes::new());
        let (mut data, mut trailers) = (Vec::new(), None);
        let mut fed = 0;
        loop {
            match reader.next(&mut input)? {
                Piece::Data(bytes) => data.extend_from_slice(&bytes),
                Piece::Trailers(map) => trailers = Some(map),
                Piece::Done => return Ok((data, trailers, input.len() + coded.len() - fed)),
                Piece::More if fed == coded.len() => return Err("more"),
                Piece::More => {
                    let next = (fed + step).min(coded.len());
                    input = [&input[..], &coded[fed..next]].concat().into();
                    fed = next;
                }
            }
        }
    }

    #[test]
    fn what_is_not_exactly_it_is_refused() {
        for bad in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhelloXX0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5 x\r\nhello\r\n0\r\n\r\n",
            "\r\n",
            "ffffffffffffffffff\r\n",
        ] {
            let error = read(bad.as_bytes(), 3).unwrap_err();
            assert_ne!(error, "more", "{bad:?}");
        }
        let (data, trailers, _) = read(b"5;ext=1\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", 1).unwrap();
        assert_eq!(data, b"hello");
        assert_eq!(trailers.unwrap()["x-sum"], "1");
        assert_eq!(read(&[b'1'; 9000], 1000).unwrap_err(), "a chunk's line is too long");
    }

    proptest! {
        #[test]
        fn what_was_coded_comes_out(chunks: Vec<Vec<u8>>, step in 1usize..40, after in 0usize..5) {
            let mut coded = Vec::new();
            for chunk in chunks.iter().filter(|c| !c.is_empty()) {
                coded.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                coded.extend_from_slice(chunk);
                coded.extend_from_slice(b"\r\n");
            }
            coded.extend_from_slice(b"0\r\n\r\n");
            coded.extend_from_slice(&b"extra"[..after]);
            let (data, trailers, left) = read(&coded, step).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert!(trailers.is_none() && left == after);
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, step in 1usize..40) {
            let _ = read(&bytes, step);
        }
    }
}
