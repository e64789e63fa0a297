//! An answer over HTTP/1.1: its head, and where its body ends (RFC 9112, 6.3).

use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::Frame;

use super::super::chunked::{Chunked, Piece};
use super::{Exchange, Fault};
use crate::body::Body;
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

/// An answer's body: the rest of an exchange, until it has ended.
#[derive(Debug)]
pub(crate) struct Answer(Option<Box<Exchange>>);

impl Answer {
    fn finish(&mut self) {
        if let Some(exchange) = self.0.take() {
            exchange.keep();
        }
    }

    pub fn is_end(&self) -> bool {
        self.0.is_none()
    }

    pub fn exact(&self) -> Option<u64> {
        match self.0.as_ref().map(|exchange| &exchange.length) {
            None => Some(0),
            Some(Length::Exact(left)) => Some(*left),
            Some(_) => None,
        }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let Some(exchange) = &mut self.0 else { return Poll::Ready(None) };
        if let Poll::Ready(Err(fault)) = exchange.poll_send(cx) {
            match fault {
                Fault::Io(_) => exchange.give_up_sending(),
                other => return Poll::Ready(Some(Err(other))),
            }
        }
        loop {
            let Exchange { connection, length, .. } = &mut **exchange;
            let read = &mut connection.read;
            let piece = match length {
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
                    if matches!(length, Length::Exact(0)) {
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
                Ok(Poll::Ready(0)) if matches!(exchange.length, Length::ToTheEnd) => {
                    self.0 = None;
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
    pub fn into_body(self: Box<Self>) -> Answer {
        let ended = matches!(self.length, Length::Exact(0));
        let mut answer = Answer(Some(self));
        if ended {
            answer.finish();
        }
        answer
    }

    /// The head, once it is whole.
    pub(super) fn parse(&mut self) -> Result<Option<Box<Response<Body>>>, Fault> {
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
            let mut response = Box::new(Response::new(Body::default()));
            let code = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
            *response.status_mut() = code.ok_or(Fault::Bad("its status is none"))?;
            if answer.version == Some(0) {
                self.reusable = false;
            }
            let mut said = Said::default();
            let map = response.headers_mut();
            *map = spare();
            for field in answer.headers.iter() {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let name = name.map_err(|_| Fault::Bad("a header's name"))?;
                // A part of what was read, as it is there.
                let value = HeaderValue::from_maybe_shared(input.slice_ref(field.value));
                let value = value.map_err(|_| Fault::Bad("a header's value"))?;
                if said.note(&name, &value) {
                    map.append(name, value);
                }
            }
            self.connection.read.advance(read);
            // Interim answers are for us alone: `Expect` is not passed on.
            let status = response.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            self.length = self.length(status, said)?;
            return Ok(Some(response));
        }
    }

    /// How the answer's body ends (RFC 9112, 6.3).
    fn length(&mut self, status: StatusCode, said: Said) -> Result<Length, Fault> {
        if said.closes {
            self.reusable = false;
        }
        if said.lengths > 1 {
            return Err(Fault::Bad("it has two content-lengths"));
        }
        let length = said.length.map(|value| {
            let text = value.to_str().ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
            let number = text.and_then(|text| text.parse::<u64>().ok());
            number.ok_or(Fault::Bad("its content-length is no number"))
        });
        let length = length.transpose()?;
        if self.head_only || status.is_informational() || matches!(status.as_u16(), 204 | 304) {
            return Ok(Length::Exact(0));
        }
        if let Some(coding) = said.coding {
            if length.is_some() || said.codings > 1 || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
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

/// What an answer's fields say of its connection and its body's end, taken down as they are read: to look each of them up
/// afterwards costs a hash each.
#[derive(Default)]
struct Said {
    closes: bool,
    length: Option<HeaderValue>,
    lengths: u32,
    coding: Option<HeaderValue>,
    codings: u32,
}

impl Said {
    /// Takes a field down; whether it says anything to others.
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        if *name == header::CONTENT_LENGTH {
            self.lengths += 1;
            self.length.get_or_insert_with(|| value.clone());
        } else if *name == header::TRANSFER_ENCODING {
            self.codings += 1;
            self.coding.get_or_insert_with(|| value.clone());
        } else if *name == header::CONNECTION {
            let text = value.as_bytes();
            if text.eq_ignore_ascii_case(b"keep-alive") {
                return false;
            }
            let mut tokens = text.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            self.closes |= tokens.any(|token| token.eq_ignore_ascii_case(b"close"));
        }
        true
    }
}
