//! From bytes to frames and back (draft 3, sections 2.2 and 2.6). No IO.
//!
//! ```text
//! control  |1| version 3 (15) | type (16) |     data  |0| stream (31)        |
//!          | flags (8) | length (24)      |           | flags (8) | length (24) |
//!          | payload                      |           | bytes                   |
//! ```
//!
//! The decoder holds no more than one control frame, bounded by [`MAX_CONTROL`]; bytes of data frames, which a peer may
//! make 16 MiB long, are handed out as they come. Any error is the session's end: header compression has one state per
//! session, so nothing behind a frame that was not understood can be trusted.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{Frame, Headers, StreamId};
use crate::header_block::{Deflater, Inflater};

/// The longest control frame taken.
pub const MAX_CONTROL: usize = 64 * 1024;
/// The longest data frame that fits the format.
pub const MAX_DATA: usize = 0x00ff_ffff;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const ID_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why bytes are no frame, or a frame does not fit into bytes. All are the sender's fault; retrying does not help.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A control frame of another protocol version.
    #[error("decode frame: SPDY version {0} instead of 3")]
    Version(u16),
    /// A frame whose content contradicts its length or the format.
    #[error("decode {0}: malformed")]
    Malformed(&'static str),
    /// A control frame beyond [`MAX_CONTROL`], or a data frame beyond [`MAX_DATA`].
    #[error("frame of {0} bytes is too long")]
    TooLong(usize),
    /// A header block beyond [`MAX_BLOCK`](crate::header_block::MAX_BLOCK).
    #[error("header block is too large")]
    HeadersTooLarge,
    /// A header block that is not compressed as SPDY/3 asks.
    #[error("header block is not a zlib stream with the dictionary of SPDY/3")]
    Compression,
}

/// Bytes of one direction to frames.
#[derive(Default)]
pub struct Decoder {
    inflater: Inflater,
    data: Option<DataFrame>,
}

/// A data frame of which bytes are still to come.
struct DataFrame {
    id: StreamId,
    fin: bool,
    remaining: usize,
}

impl Decoder {
    /// Takes the next frame off the front of `input`; none when more bytes are needed. Frames of unknown types are
    /// skipped, as the specification asks.
    ///
    /// # Errors
    /// When the peer breaks the format; the decoder must not be used after that.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(frame) = self.data.take() {
                return Ok(self.piece(frame, input));
            }
            if input.len() < 8 {
                return Ok(None);
            }
            let first = u32::from_be_bytes([input[0], input[1], input[2], input[3]]);
            let flags = input[4];
            let length = u32::from_be_bytes([0, input[5], input[6], input[7]]) as usize;
            if first & !ID_MASK == 0 {
                if first == 0 {
                    return Err(Error::Malformed("DATA"));
                }
                input.advance(8);
                let frame = DataFrame { id: first, fin: flags & FLAG_FIN != 0, remaining: length };
                if length == 0 {
                    return Ok(Some(Frame::Data { id: frame.id, fin: frame.fin, data: Bytes::new() }));
                }
                self.data = Some(frame);
                continue;
            }
            let version = (first >> 16) as u16 & 0x7fff;
            if version != VERSION {
                return Err(Error::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(Error::TooLong(length));
            }
            if input.len() < 8 + length {
                return Ok(None);
            }
            input.advance(8);
            let payload = input.split_to(length);
            if let Some(frame) = self.control(first as u16, flags, &payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn piece(&mut self, mut frame: DataFrame, input: &mut BytesMut) -> Option<Frame> {
        let length = frame.remaining.min(input.len());
        if length == 0 {
            self.data = Some(frame);
            return None;
        }
        frame.remaining -= length;
        let data = input.split_to(length).freeze();
        let (id, last) = (frame.id, frame.remaining == 0);
        let fin = last && frame.fin;
        if !last {
            self.data = Some(frame);
        }
        Some(Frame::Data { id, fin, data })
    }

    fn control(&mut self, kind: u16, flags: u8, mut p: &[u8]) -> Result<Option<Frame>, Error> {
        let fin = flags & FLAG_FIN != 0;
        Ok(Some(match kind {
            SYN_STREAM => {
                let [id, associated] = numbers(&mut p, "SYN_STREAM")?;
                let (slot, block) = p.split_first_chunk::<2>().ok_or(Error::Malformed("SYN_STREAM"))?;
                Frame::SynStream {
                    id: stream(id, "SYN_STREAM")?,
                    associated: associated & ID_MASK,
                    priority: slot[0] >> 5,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    headers: self.inflater.headers(block)?,
                }
            }
            SYN_REPLY => {
                let [id] = numbers(&mut p, "SYN_REPLY")?;
                Frame::SynReply { id: stream(id, "SYN_REPLY")?, fin, headers: self.inflater.headers(p)? }
            }
            HEADERS => {
                let [id] = numbers(&mut p, "HEADERS")?;
                Frame::Headers { id: stream(id, "HEADERS")?, fin, headers: self.inflater.headers(p)? }
            }
            RST_STREAM => {
                let [id, status] = all(p, "RST_STREAM")?;
                Frame::RstStream { id: stream(id, "RST_STREAM")?, status }
            }
            SETTINGS => settings(p)?,
            PING => {
                let [id] = all(p, "PING")?;
                Frame::Ping(id)
            }
            GOAWAY => {
                let [last_good, status] = all(p, "GOAWAY")?;
                Frame::GoAway { last_good: last_good & ID_MASK, status }
            }
            WINDOW_UPDATE => {
                let [id, delta] = all(p, "WINDOW_UPDATE")?;
                if delta & ID_MASK == 0 {
                    return Err(Error::Malformed("WINDOW_UPDATE"));
                }
                Frame::WindowUpdate { id: id & ID_MASK, delta: delta & ID_MASK }
            }
            _ => return Ok(None),
        }))
    }
}

fn settings(mut p: &[u8]) -> Result<Frame, Error> {
    let [count] = numbers(&mut p, "SETTINGS")?;
    let (pairs, rest) = p.as_chunks::<8>();
    if pairs.len() != count as usize || !rest.is_empty() {
        return Err(Error::Malformed("SETTINGS"));
    }
    // The first byte of an id holds flags about keeping the setting, which we do not.
    let pair = |b: &[u8; 8]| {
        (u32::from_be_bytes([0, b[1], b[2], b[3]]), u32::from_be_bytes([b[4], b[5], b[6], b[7]]))
    };
    Ok(Frame::Settings(pairs.iter().map(pair).collect()))
}

fn stream(id: u32, frame: &'static str) -> Result<StreamId, Error> {
    match id & ID_MASK {
        0 => Err(Error::Malformed(frame)),
        id => Ok(id),
    }
}

fn numbers<const N: usize>(p: &mut &[u8], frame: &'static str) -> Result<[u32; N], Error> {
    let mut out = [0; N];
    for number in &mut out {
        let (bytes, rest) = p.split_first_chunk::<4>().ok_or(Error::Malformed(frame))?;
        *number = u32::from_be_bytes(*bytes);
        *p = rest;
    }
    Ok(out)
}

fn all<const N: usize>(mut p: &[u8], frame: &'static str) -> Result<[u32; N], Error> {
    let out = numbers(&mut p, frame)?;
    if p.is_empty() { Ok(out) } else { Err(Error::Malformed(frame)) }
}

/// Frames to bytes of one direction.
#[derive(Default)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// Appends one frame.
    ///
    /// # Errors
    /// When headers or data do not fit into a frame; nothing is appended then.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        match frame {
            Frame::SynStream { id, associated, priority, fin, unidirectional, headers } => {
                let block = self.deflater.block(headers)?;
                let flags =
                    if *fin { FLAG_FIN } else { 0 } | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                control(out, SYN_STREAM, flags, 10 + block.len());
                out.put_u32(id & ID_MASK);
                out.put_u32(associated & ID_MASK);
                out.put_slice(&[priority << 5, 0]);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.headers(SYN_REPLY, *id, *fin, headers, out)?,
            Frame::Headers { id, fin, headers } => self.headers(HEADERS, *id, *fin, headers, out)?,
            Frame::RstStream { id, status } => pair(out, RST_STREAM, id & ID_MASK, *status),
            Frame::GoAway { last_good, status } => pair(out, GOAWAY, last_good & ID_MASK, *status),
            Frame::WindowUpdate { id, delta } => pair(out, WINDOW_UPDATE, id & ID_MASK, delta & ID_MASK),
            Frame::Ping(id) => {
                control(out, PING, 0, 4);
                out.put_u32(*id);
            }
            Frame::Settings(pairs) => {
                if 4 + pairs.len() * 8 > MAX_CONTROL {
                    return Err(Error::TooLong(4 + pairs.len() * 8));
                }
                control(out, SETTINGS, 0, 4 + pairs.len() * 8);
                out.put_u32(pairs.len() as u32);
                for (id, value) in pairs {
                    out.put_u32(id & 0x00ff_ffff);
                    out.put_u32(*value);
                }
            }
            Frame::Data { id, fin, data } => {
                if data.len() > MAX_DATA {
                    return Err(Error::TooLong(data.len()));
                }
                out.put_u32(id & ID_MASK);
                flags_and_length(out, u8::from(*fin), data.len());
                out.put_slice(data);
            }
        }
        Ok(())
    }

    fn headers(
        &mut self,
        kind: u16,
        id: StreamId,
        fin: bool,
        headers: &Headers,
        out: &mut BytesMut,
    ) -> Result<(), Error> {
        let block = self.deflater.block(headers)?;
        control(out, kind, u8::from(fin), 4 + block.len());
        out.put_u32(id & ID_MASK);
        out.put_slice(&block);
        Ok(())
    }
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, 0, 8);
    out.put_u32(first);
    out.put_u32(second);
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    flags_and_length(out, flags, length);
}

fn flags_and_length(out: &mut BytesMut, flags: u8, length: usize) {
    out.put_u32(u32::from(flags) << 24 | length as u32);
}
