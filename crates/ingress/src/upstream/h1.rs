//! One request and its answer over one HTTP/1.1 connection (RFC 9112), driven by the task that serves the client.
//!
//! A proxy's cost is what it does besides reading and writing. Here are no second task, no channel between tasks and no
//! timer per request: both directions are polled in one place, and a connection's timer is set anew only when it rings.
//! The body goes up while the answer comes down, so neither side can be made to wait for the other.

mod answer;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep};

use super::endpoint::Endpoint;
use super::stream::Stream;
use crate::body::{Body, BodyError, Outgoing};
pub(crate) use answer::Answer;
use answer::Length;

/// How much is read at once, at the least, and what a thread reads into.
const READ: usize = 8 << 10;
const BLOCK: usize = 32 << 10;
/// Bodies up to this size are copied behind the head, to be written with it.
const COPIED: usize = 8 << 10;

/// A connection between two requests.
#[derive(Debug)]
pub(crate) struct Connection {
    pub stream: Stream,
    read: Bytes,
    timer: Pin<Box<Sleep>>,
    /// When it was last used.
    pub since: Instant,
    /// Requests that it has served.
    pub served: u32,
    /// Whose runtime it belongs to.
    pub thread: u32,
}

thread_local! {
    /// What this thread reads next goes here. Answers are split off and, once they have been written to their clients,
    /// leave their room to others: all connections use the same few pages, and an idle one has none.
    static ROOM: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    /// What requests were written from, for the next ones.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Buffers for requests that a thread keeps, and how large they may be.
const SPARES: usize = 16;
const SPARE_BYTES: usize = 16 << 10;

/// An empty buffer for a request.
pub(crate) fn buffer() -> BytesMut {
    let kept = SPARE.with(|spare| spare.try_borrow_mut().ok()?.pop());
    kept.unwrap_or_else(|| BytesMut::with_capacity(1024))
}

fn give_back(mut buffer: BytesMut) {
    if buffer.capacity() == 0 && buffer.is_empty() {
        return;
    }
    // What was written has left its room at the front.
    buffer.reserve(1024);
    SPARE.with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.len() < SPARES
            && buffer.capacity() <= SPARE_BYTES
        {
            spare.push(buffer);
        }
    });
}

/// A number that is this thread's alone.
pub(crate) fn this_thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local!(static THIS: u32 = NEXT.fetch_add(1, Ordering::Relaxed));
    THIS.with(|this| *this)
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now));
        Self { stream, read: Bytes::new(), timer, since: now, served: 0, thread: this_thread() }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Nothing was sent.
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    /// Nothing was sent in time.
    #[error("connect: no answer in time")]
    ConnectTimeout,
    /// The connection ended before an answer began.
    #[error("the endpoint closed the connection without an answer")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The answer is none.
    #[error("not a good answer: {0}")]
    Bad(&'static str),
    /// An answer over HTTP/2 is none.
    #[error("{0}")]
    Http2(#[from] hyper::Error),
    /// The endpoint was silent.
    #[error("no answer in time")]
    Timeout,
    /// The request is none that could be sent.
    #[error("the request cannot go on: {0}")]
    Refused(StatusCode),
    /// The client was silent.
    #[error("the client did not send its request in time")]
    ClientSlow,
    /// The client's body could not be had.
    #[error("{0}")]
    Client(#[source] BodyError),
}

/// How the request's body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunked,
}

/// A request under way on a connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    connection: Box<Connection>,
    endpoint: Arc<Endpoint>,
    /// To be written, in this order: `out`, `chunk`, `after`.
    out: BytesMut,
    chunk: Bytes,
    after: &'static [u8],
    body: Option<Outgoing>,
    framing: Framing,
    head_only: bool,
    wait: Duration,
    client_wait: Duration,
    waits_for_client: bool,
    heard: bool,
    reusable: bool,
    /// Where the answer's body ends, once its head has come.
    length: Length,
}

impl Exchange {
    /// Starts a request; `head` holds the request line and the headers, without the empty line and without framing.
    /// The times are how long the endpoint may be silent, and the client. The connection's `since` is now.
    pub fn new(
        connection: Box<Connection>,
        endpoint: Arc<Endpoint>,
        mut head: BytesMut,
        method: &Method,
        body: Outgoing,
        (wait, client_wait): (Duration, Duration),
    ) -> Box<Self> {
        let mut framing = Framing::Length;
        let length = body.size_hint().exact();
        // A body of nothing is said for methods that are expected to have one.
        let silent = length == Some(0) && !matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        match length {
            _ if silent => {}
            Some(length) => head.put_slice(format!("content-length: {length}\r\n").as_bytes()),
            None => {
                framing = Framing::Chunked;
                head.put_slice(b"transfer-encoding: chunked\r\n");
            }
        }
        head.put_slice(b"\r\n");
        Box::new(Self {
            connection,
            endpoint,
            out: head,
            chunk: Bytes::new(),
            after: b"",
            body: (length != Some(0)).then_some(body),
            framing,
            head_only: *method == Method::HEAD,
            wait,
            client_wait,
            waits_for_client: false,
            heard: false,
            reusable: true,
            length: Length::Exact(0),
        })
    }

    /// Whether the connection had served before, so that its end may have nothing to do with this request.
    pub fn reused(&self) -> bool {
        self.connection.served > 0
    }

    /// When the connection was last used: when the head of its answer came, once that has.
    pub fn since(&self) -> Instant {
        self.connection.since
    }

    /// Whether any byte of an answer has come.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// The answer's head; its body is what [`Exchange::into_body`] makes. Boxed, since every step of its way to the client
    /// would copy it otherwise.
    pub async fn head(&mut self) -> Result<Box<Response<Body>>, Fault> {
        std::future::poll_fn(|cx| self.poll_head(cx)).await
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Response<Body>>, Fault>> {
        if let Poll::Ready(Err(fault)) = self.poll_send(cx) {
            match fault {
                // An endpoint may answer, and close, before it has read all of a request.
                Fault::Io(_) => self.give_up_sending(),
                other => return Poll::Ready(Err(other)),
            }
        }
        loop {
            if !self.connection.read.is_empty()
                && let Some(response) = self.parse()?
            {
                return Poll::Ready(Ok(response));
            }
            match self.poll_fill(cx)? {
                Poll::Ready(0) if self.heard => {
                    return Poll::Ready(Err(Fault::Bad("it ends in its headers")));
                }
                Poll::Ready(0) => return Poll::Ready(Err(Fault::Closed)),
                Poll::Ready(_) => {}
                Poll::Pending => return self.poll_timer(cx).map(Err),
            }
        }
    }

    fn give_up_sending(&mut self) {
        self.body = None;
        self.reusable = false;
        self.out.clear();
        self.chunk.clear();
        self.after = b"";
    }

    /// Writes what there is to write, as far as it goes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            // A small body leaves with the head.
            if self.chunk.is_empty() && self.after.is_empty() && self.out.len() < COPIED {
                self.next_frame(cx)?;
            }
            let left = self.out.len() + self.chunk.len() + self.after.len();
            if left == 0 {
                if self.body.is_some() {
                    return Poll::Pending;
                }
                // For the next request at once, of which there may be many before this one has its answer.
                give_back(std::mem::take(&mut self.out));
                return Poll::Ready(Ok(()));
            }
            let slices = [IoSlice::new(&self.out), IoSlice::new(&self.chunk), IoSlice::new(self.after)];
            let stream = Pin::new(&mut self.connection.stream);
            let written = match self.chunk.is_empty() && self.after.is_empty() {
                true => ready!(stream.poll_write(cx, &self.out)),
                false => ready!(stream.poll_write_vectored(cx, &slices)),
            };
            let written = written.map_err(Fault::Io)?;
            if written == 0 {
                return Poll::Ready(Err(Fault::Io(io::ErrorKind::WriteZero.into())));
            }
            self.wrote(written);
            if self.body.is_some() || !self.chunk.is_empty() {
                self.connection.since = Instant::now();
            }
            let left = self.out.len() + self.chunk.len() + self.after.len();
            if left == 0 && matches!(self.connection.stream, Stream::Tls(_)) {
                ready!(Pin::new(&mut self.connection.stream).poll_flush(cx)).map_err(Fault::Io)?;
            }
        }
    }

    fn wrote(&mut self, mut written: usize) {
        let head = written.min(self.out.len());
        self.out.advance(head);
        written -= head;
        let chunk = written.min(self.chunk.len());
        self.chunk.advance(chunk);
        written -= chunk;
        self.after = &self.after[written.min(self.after.len())..];
    }

    /// Takes the next piece of the body, if there is one now.
    fn next_frame(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let polled = Pin::new(body).poll_frame(cx);
        self.waits_for_client = polled.is_pending();
        match polled {
            Poll::Pending => {}
            Poll::Ready(None) => {
                self.body = None;
                if self.framing == Framing::Chunked {
                    self.out.put_slice(b"0\r\n\r\n");
                }
            }
            Poll::Ready(Some(Err(error))) => return Err(Fault::Client(error)),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => self.data(data),
                Err(frame) => {
                    self.body = None;
                    if let (Ok(trailers), Framing::Chunked) = (frame.into_trailers(), self.framing) {
                        self.out.put_slice(b"0\r\n");
                        fields(&mut self.out, &trailers);
                        self.out.put_slice(b"\r\n");
                    }
                }
            },
        }
        Ok(())
    }

    fn data(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let chunked = self.framing == Framing::Chunked;
        if chunked {
            self.out.put_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        if data.len() <= COPIED {
            self.out.put_slice(&data);
            if chunked {
                self.out.put_slice(b"\r\n");
            }
        } else {
            self.chunk = data;
            self.after = if chunked { b"\r\n" } else { b"" };
        }
    }

    /// Reads more of the answer; how much.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Result<Poll<usize>, Fault> {
        let connection = &mut *self.connection;
        let polled = ROOM.with_borrow_mut(|room| {
            if room.capacity() < READ {
                room.reserve(BLOCK);
            }
            let read = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut connection.stream), cx, room))?;
            let new = room.split().freeze();
            connection.read = match connection.read.is_empty() {
                true => new,
                false => [&connection.read[..], &new].concat().into(),
            };
            Poll::Ready(Ok(read))
        });
        match polled {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(read)) => {
                if read > 0 {
                    self.heard = true;
                    connection.since = Instant::now();
                }
                Ok(Poll::Ready(read))
            }
            // A reset is an end like another as long as nothing has come.
            Poll::Ready(Err(_)) if !self.heard => Ok(Poll::Ready(0)),
            Poll::Ready(Err(error)) => Err(Fault::Io(error)),
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        let client = self.waits_for_client && !self.heard;
        let Connection { timer, since, .. } = &mut *self.connection;
        let end = *since + if client { self.client_wait } else { self.wait };
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                let fault = if client { Fault::ClientSlow } else { Fault::Timeout };
                return Poll::Ready(fault);
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }

    /// The connection itself, after both sides have changed protocols; with what has been read already.
    pub fn into_stream(self) -> (Stream, Bytes) {
        let Connection { stream, read, .. } = *self.connection;
        (stream, read)
    }

    /// Keeps the connection for another request, if it can be.
    fn keep(self: Box<Self>) {
        let sent =
            self.body.is_none() && self.out.is_empty() && self.chunk.is_empty() && self.after.is_empty();
        if self.reusable && sent && self.connection.read.is_empty() {
            let mut connection = self.connection;
            connection.served += 1;
            // Even of nothing, a part keeps the whole.
            connection.read = Bytes::new();
            self.endpoint.keep(connection);
        }
    }
}

/// Headers as they are written.
pub(crate) fn fields<'a>(
    out: &mut BytesMut,
    headers: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) {
    for (name, value) in headers {
        out.reserve(name.as_str().len() + value.len() + 4);
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
}
