//! A client's connection in the clear, as hyper serves it.
//!
//! hyper notices a client that goes away in the middle of a request by reading ahead, for which it takes a new buffer with
//! every request, since the old one still holds the request. It can be told to leave that (`half_close`); then this looks
//! for it instead, by peeking (recv(2), MSG_PEEK), whenever hyper flushes, or cannot write, and does not read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is read and thrown away before a connection is closed, at most.
const REST: usize = 64 << 10;

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

    /// An error if the client has gone and nobody reads; the task is woken when it goes.
    fn gone(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.watched {
            return Ok(());
        }
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

    /// A write that may have to wait, and then must not wait for somebody who has gone.
    fn unless_gone<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_pending() {
            self.gone(cx)?;
        }
        written
    }

    /// Throws away what the client has sent: to close over bytes that nobody has read resets the connection, and an answer
    /// that is still on its way with it.
    fn drain(&self) {
        let (mut some, mut left) = ([0; 4096], REST);
        while let Ok(read @ 1..) = self.stream.try_read(&mut some)
            && left > 0
        {
            left = left.saturating_sub(read);
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
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.unless_gone(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.unless_gone(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.gone(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.drain();
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
