//! The caller's ends of a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::{Frame, Headers, StreamId, reset};
use crate::state::Shared;

/// A stream that the client asks for. Dropping it refuses it.
pub struct Pending {
    stream: Stream,
}

impl Pending {
    pub(crate) fn new(id: StreamId, headers: Headers, shared: Arc<Shared>) -> Self {
        Pending { stream: Stream { id, headers, shared, on_drop: reset::REFUSED_STREAM } }
    }

    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.stream.id
    }

    /// What the client wants it for.
    pub fn headers(&self) -> &Headers {
        &self.stream.headers
    }

    /// Replies to the client, with no headers, as Kubernetes' servers do.
    pub fn accept(mut self) -> Stream {
        let reply = Frame::SynReply { id: self.stream.id, fin: false, headers: Headers::default() };
        self.stream.shared.control(reply);
        self.stream.on_drop = reset::CANCEL;
        self.stream
    }

    /// Ends the stream instead, with one of [`reset`]'s statuses; Kubernetes' servers send [`reset::CANCEL`].
    pub fn reject(mut self, status: u32) {
        self.stream.on_drop = status;
    }
}

/// An open stream. Reading ends when the client closed its half; `shutdown` closes ours. Dropping it before both halves
/// are closed resets it.
pub struct Stream {
    id: StreamId,
    headers: Headers,
    shared: Arc<Shared>,
    on_drop: u32,
}

impl Stream {
    /// The stream's number.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// The headers that it was opened with.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.release(self.id, self.on_drop);
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_read(self.id, buf.remaining(), cx).map_ok(|bytes| buf.put_slice(&bytes))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.poll_write(self.id, bytes, cx)
    }

    /// The session writes whatever is queued as soon as the connection takes it; there is nothing to push.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.finish(self.id);
        Poll::Ready(Ok(()))
    }
}
