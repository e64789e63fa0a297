//! A client's connection in the clear, as hyper serves it.
//!
//! hyper notices a client that goes away in the middle of a request by reading ahead, for which it takes a new buffer with
//! every request, since the old one still holds the request. It can be told to leave that (`half_close`); then this looks
//! for it instead, by peeking (recv(2), MSG_PEEK), whenever hyper flushes and does not read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection whose client's end is an error for whoever flushes it while a request is under way.
#[derive(Debug)]
pub(crate) struct Line {
    stream: TcpStream,
    /// Nobody reads, and all that was sent has been read as far as is known.
    watched: bool,
}

impl Line {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, watched: false }
    }

    /// The connection, for another protocol.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Whether the client has gone; the task is woken when it goes.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut byte = [0];
        match self.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(0)) => Err(io::ErrorKind::ConnectionAborted.into()),
            // Its next request is here already: what comes behind it cannot be seen.
            Poll::Ready(Ok(_)) => {
                self.watched = false;
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watched = false;
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.watched = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watched {
            this.poll_gone(cx)?;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
