//! An answer over HTTP/1.1: its head, and where its body ends (RFC 9112, 6.3).

use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;

use super::super::chunked::{Chunked, Piece};
use super::{Exchange, Fault};
use crate::onward::spare;

/// Bytes of an answer's headers.
const HEAD: usize = 128 << 10;
/// Headers of an answer.
const HEADERS: usize = 128;

/// How an answer's body ends.
#[derive(Debug)]
pub(crate) enum Length {
    /// After so many more bytes.
    Exact(u64),
    /// As the chunks say.
    Chunked(Chunked),
    /// With the connection.
    ToTheEnd,
}

/// An answer's body, and the rest of the exchange.
#[derive(Debug)]
pub(crate) struct Answer {
    exchange: Option<Box<Exchange>>,
    length: Length,
}

impl Answer {
    fn finish(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.keep();
        }
    }

    pub fn is_end(&self) -> bool {
        self.exchange.is_none()
    }

    pub fn exact(&self) -> Option<u64> {
        match self.length {
            Length::Exact(left) => Some(left),
            _ => None,
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        if let Poll::Ready(Err(fault)) = exchange.poll_send(cx) {
            match fault {
                Fault::Io(_) => exchange.give_up_sending(),
                other => return Poll::Ready(Some(Err(other))),
            }
        }
        loop {
            let read = &mut exchange.connection.read;
            let piece = match &mut self.length {
                Length::Exact(0) => Piece::Done,
                Length::Exact(_) | Length::ToTheEnd if read.is_empty() => Piece::More,
                Length::Exact(left) => {
                    let now = read.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= now as u64;
                    Piece::Data(read.split_to(now))
                }
                Length::ToTheEnd => Piece::Data(std::mem::take(read)),
                Length::Chunked(chunked) => match chunked.next(read) {
                    Ok(piece) => piece,
                    Err(why) => return Poll::Ready(Some(Err(Fault::Bad(why)))),
                },
            };
            match piece {
                Piece::Data(data) => {
                    if matches!(self.length, Length::Exact(0)) {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Piece::Trailers(map) => {
                    self.finish();
                    return Poll::Ready(Some(Ok(Frame::trailers(map))));
                }
                Piece::Done => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Piece::More => {}
            }
            match exchange.poll_fill(cx) {
                Err(fault) => return Poll::Ready(Some(Err(fault))),
                Ok(Poll::Ready(0)) if matches!(self.length, Length::ToTheEnd) => {
                    self.exchange = None;
                    return Poll::Ready(None);
                }
                Ok(Poll::Ready(0)) => return Poll::Ready(Some(Err(Fault::Bad("it ends in its body")))),
                Ok(Poll::Ready(_)) => {}
                Ok(Poll::Pending) => return exchange.poll_timer(cx).map(|fault| Some(Err(fault))),
            }
        }
    }
}

impl Exchange {
    /// The answer's body.
    pub fn into_body(self: Box<Self>, length: Length) -> Answer {
        let mut answer = Answer { exchange: Some(self), length };
        if matches!(answer.length, Length::Exact(0)) {
            answer.finish();
        }
        answer
    }

    /// The head, once it is whole.
    pub(super) fn parse(&mut self) -> Result<Option<(Response<()>, Length)>, Fault> {
        loop {
            let input = &self.connection.read;
            let mut headers = [const { std::mem::MaybeUninit::uninit() }; HEADERS];
            let mut answer = httparse::Response::new(&mut []);
            let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut answer,
                input,
                &mut headers,
            );
            let read = match parsed {
                Ok(httparse::Status::Complete(read)) => read,
                Ok(httparse::Status::Partial) if input.len() < HEAD => return Ok(None),
                Ok(httparse::Status::Partial) => return Err(Fault::Bad("its headers are too long")),
                Err(httparse::Error::TooManyHeaders) => return Err(Fault::Bad("it has too many headers")),
                Err(_) => return Err(Fault::Bad("it is no HTTP")),
            };
            let mut response = Response::new(());
            let code = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
            *response.status_mut() = code.ok_or(Fault::Bad("its status is none"))?;
            if answer.version == Some(0) {
                self.reusable = false;
            }
            let map = response.headers_mut();
            *map = spare();
            for field in answer.headers.iter() {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let name = name.map_err(|_| Fault::Bad("a header's name"))?;
                // A part of what was read, as it is there.
                let value = HeaderValue::from_maybe_shared(input.slice_ref(field.value));
                map.append(name, value.map_err(|_| Fault::Bad("a header's value"))?);
            }
            self.connection.read.advance(read);
            // Interim answers are for us alone: `Expect` is not passed on.
            let status = response.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            let length = self.length(&response)?;
            return Ok(Some((response, length)));
        }
    }

    /// How the answer's body ends (RFC 9112, 6.3).
    fn length(&mut self, response: &Response<()>) -> Result<Length, Fault> {
        let (headers, status) = (response.headers(), response.status());
        if closes(headers) {
            self.reusable = false;
        }
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let length = match (lengths.next(), lengths.next()) {
            (None, _) => None,
            (Some(only), None) => {
                let text = only.to_str().ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
                let number = text.and_then(|text| text.parse::<u64>().ok());
                Some(number.ok_or(Fault::Bad("its content-length is no number"))?)
            }
            (Some(_), Some(_)) => return Err(Fault::Bad("it has two content-lengths")),
        };
        if self.head_only || status.is_informational() || matches!(status.as_u16(), 204 | 304) {
            return Ok(Length::Exact(0));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            if length.is_some()
                || codings.next().is_some()
                || !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
            {
                return Err(Fault::Bad("its framing is not one"));
            }
            return Ok(Length::Chunked(Chunked::new()));
        }
        if length.is_none() {
            self.reusable = false;
        }
        Ok(length.map_or(Length::ToTheEnd, Length::Exact))
    }
}

/// Whether a message ends its connection.
fn closes(headers: &HeaderMap) -> bool {
    let listed = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    listed.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("close"))
}
