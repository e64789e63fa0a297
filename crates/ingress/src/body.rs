//! Bodies in both directions, without a box where none is needed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::record::Record;
use crate::upstream::endpoint::Busy;
use crate::upstream::h1::{Answer, Fault};

/// Why a body has no end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The client sends more than it may.
    #[error("the body is larger than proxy-body-size")]
    TooLarge,
    /// The client went.
    #[error("{0}")]
    Client(#[source] hyper::Error),
    /// The backend went.
    #[error("{0}")]
    Backend(#[source] Box<Fault>),
}

/// A request's body on its way to a backend.
#[derive(Debug)]
pub(crate) struct Outgoing {
    source: Source,
    /// Bytes that may still come.
    left: u64,
    /// Bytes that have come.
    count: Option<Arc<AtomicU64>>,
    /// Who gets a copy.
    copy: Option<mpsc::Sender<Bytes>>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Client(Incoming),
    Copy(mpsc::Receiver<Bytes>),
}

impl Outgoing {
    pub fn empty() -> Self {
        Self::of(Source::Empty)
    }

    /// A client's body of at most `limit` bytes, which are counted in `count`.
    pub fn client(body: Incoming, limit: Option<u64>, count: &mut Option<Arc<AtomicU64>>) -> Self {
        if http_body::Body::is_end_stream(&body) {
            return Self::empty();
        }
        let count = Some(count.get_or_insert_default().clone());
        Self { left: limit.unwrap_or(u64::MAX), count, ..Self::of(Source::Client(body)) }
    }

    fn of(source: Source) -> Self {
        Self { source, left: u64::MAX, count: None, copy: None }
    }

    /// A copy of what will pass, as far as its reader keeps pace.
    pub fn copied(&mut self) -> Self {
        if matches!(self.source, Source::Empty) {
            return Self::empty();
        }
        let (sender, receiver) = mpsc::channel(64);
        self.copy = Some(sender);
        Self::of(Source::Copy(receiver))
    }

    /// Whether there is nothing to send, so that sending once more loses nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Copy(receiver) => {
                return receiver.poll_recv(cx).map(|data| data.map(|d| Ok(Frame::data(d))));
            }
            Source::Client(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        let Some(frame) = frame else {
            this.copy = None;
            return Poll::Ready(None);
        };
        let frame = frame.map_err(BodyError::Client)?;
        if let Some(data) = frame.data_ref() {
            let len = data.len() as u64;
            let Some(left) = this.left.checked_sub(len) else {
                return Poll::Ready(Some(Err(BodyError::TooLarge)));
            };
            this.left = left;
            if let Some(count) = &this.count {
                count.fetch_add(len, Ordering::Relaxed);
            }
            // Half a copy would be a lie: one that cannot keep pace ends here, without its end.
            if this.copy.as_ref().is_some_and(|copy| copy.try_send(data.clone()).is_err()) {
                this.copy = None;
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Client(body) => body.is_end_stream(),
            Source::Copy(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Client(body) => body.size_hint(),
            Source::Copy(_) => SizeHint::default(),
        }
    }
}

/// An answer's body on its way to the client.
#[derive(Debug, Default)]
pub(crate) struct Body {
    content: Content,
    sent: u64,
    pace: Option<Box<Pace>>,
    record: Option<Box<Record>>,
    _busy: Option<Busy>,
}

#[derive(Debug, Default)]
enum Content {
    #[default]
    Empty,
    Full(Bytes),
    Answer(Answer),
    Http2(Incoming),
}

/// `limit-rate`: so many bytes a second, after the first ones.
#[derive(Debug)]
struct Pace {
    rate: u64,
    free: u64,
    start: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
    /// What has come and may not go yet.
    held: Bytes,
}

impl Pace {
    /// How many bytes may go now, after `sent`; no less than what a tenth of a second allows.
    fn poll(&mut self, sent: u64, cx: &mut Context<'_>) -> Poll<usize> {
        let start = *self.start.get_or_insert_with(Instant::now);
        let wanted = (self.held.len() as u64).min(self.rate / 10 + 1);
        loop {
            let earned = (start.elapsed().as_secs_f64() * self.rate as f64) as u64;
            let may = (self.free + earned).saturating_sub(sent);
            if may >= wanted {
                return Poll::Ready(usize::try_from(may).unwrap_or(usize::MAX).min(self.held.len()));
            }
            let due = (sent + wanted).saturating_sub(self.free) as f64 / self.rate as f64;
            self.sleep.as_mut().reset(start + Duration::from_secs_f64(due + 0.001));
            ready!(self.sleep.as_mut().poll(cx));
        }
    }
}

impl Body {
    fn of(content: Content, busy: Option<Busy>) -> Self {
        Self { content, sent: 0, pace: None, record: None, _busy: busy }
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::of(Content::Full(bytes.into()), None)
    }

    pub fn answer(answer: Answer, busy: Busy) -> Self {
        Self::of(Content::Answer(answer), Some(busy))
    }

    pub fn http2(body: Incoming, busy: Busy) -> Self {
        Self::of(Content::Http2(body), Some(busy))
    }

    /// Sends no faster than this.
    pub fn pace(&mut self, rate: u64, free: u64) {
        let sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        self.pace = Some(Box::new(Pace { rate: rate.max(1), free, start: None, sleep, held: Bytes::new() }));
    }

    /// What is written down once it has been sent.
    pub fn record(&mut self, record: Box<Record>) {
        self.record = Some(record);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(pace) = this.pace.as_mut().filter(|pace| !pace.held.is_empty()) {
            let may = ready!(pace.poll(this.sent, cx));
            let part = pace.held.split_to(may);
            this.sent += part.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        let frame = match &mut this.content {
            Content::Empty => return Poll::Ready(None),
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.content = Content::Empty;
                Some(Ok(Frame::data(bytes)))
            }
            Content::Answer(answer) => ready!(answer.poll(cx))
                .map(|frame| frame.map_err(|fault| BodyError::Backend(Box::new(fault)))),
            Content::Http2(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                frame.map(|frame| frame.map_err(|e| BodyError::Backend(Box::new(Fault::Http2(e)))))
            }
        };
        let frame = match (&mut this.pace, frame) {
            (Some(pace), Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    pace.held = data;
                    return Pin::new(this).poll_frame(cx);
                }
                Err(frame) => Some(Ok(frame)),
            },
            (_, frame) => frame,
        };
        match &frame {
            Some(Ok(frame)) => this.sent += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(error)) => {
                if let Some(record) = &mut this.record {
                    record.broke(error);
                }
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        if self.pace.as_ref().is_some_and(|pace| !pace.held.is_empty()) {
            return false;
        }
        match &self.content {
            Content::Empty => true,
            Content::Full(bytes) => bytes.is_empty(),
            Content::Answer(answer) => answer.is_end(),
            Content::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Answer(answer) => answer.exact().map_or_else(SizeHint::default, SizeHint::with_exact),
            Content::Http2(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            record.finish(self.sent);
        }
    }
}
