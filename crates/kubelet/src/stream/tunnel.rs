//! A byte stream inside the binary messages of a WebSocket, as kubectl from 1.31 on carries SPDY through proxies that
//! know only WebSocket (KEP 4006). Where a message ends means nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, frame::coding::CloseCode};

/// The server's end.
pub struct Tunnel<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
    said_close: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<S> {
    /// Over a connection on which the upgrade is done.
    pub async fn new(io: S) -> Self {
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        Tunnel { socket, unread: Bytes::new(), said_close: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.unread = data,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    let what = "a text message in a tunnel of bytes";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
                // tungstenite answers pings itself.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(io::Error::other)?;
        socket.start_send(Message::binary(Bytes::copy_from_slice(bytes))).map_err(io::Error::other)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_close {
            let mut socket = Pin::new(&mut self.socket);
            ready!(socket.as_mut().poll_ready(cx)).map_err(io::Error::other)?;
            // Go's end takes any other code for a failure.
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            socket.start_send(Message::Close(Some(frame))).map_err(io::Error::other)?;
            self.said_close = true;
        }
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use futures::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn bytes_pass_whatever_the_messages_are() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        let mut tunnel = Tunnel::new(ours).await;
        for part in [&b"he"[..], b"", b"llo"] {
            client.send(Message::binary(part.to_vec())).await.unwrap();
        }
        let mut buffer = [0; 5];
        tunnel.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"hello");
        tunnel.write_all(b"answer").await.unwrap();
        tunnel.shutdown().await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"answer".to_vec()));
        let Message::Close(Some(frame)) = client.next().await.unwrap().unwrap() else { panic!("no close") };
        assert_eq!(frame.code, CloseCode::Normal);
    }

    #[tokio::test]
    async fn text_is_no_tunnel() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        let mut tunnel = Tunnel::new(ours).await;
        client.send(Message::text("hello")).await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
