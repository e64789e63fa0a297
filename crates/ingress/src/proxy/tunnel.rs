//! Connections that change their protocol: WebSocket and what else upgrades (RFC 9110, 7.8), and the same over HTTP/2's
//! extended CONNECT (RFC 8441), which becomes an upgrade towards the backend.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};
use hyper::upgrade::{OnUpgrade, Parts as Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use crate::front::Seat;
use crate::line::Line;
use crate::upstream::stream::{Prefixed, Stream};

/// What a client wants to change to.
pub(super) struct Tunnel {
    pub protocol: HeaderValue,
    /// By CONNECT over HTTP/2.
    pub extended: bool,
    client: OnUpgrade,
}

impl Tunnel {
    /// Takes the wish out of a request, and makes of it what an HTTP/1.1 backend understands.
    pub fn wanted(parts: &mut Parts) -> Option<Self> {
        if parts.method == Method::CONNECT {
            let protocol = parts.extensions.remove::<hyper::ext::Protocol>()?;
            let client = parts.extensions.remove::<OnUpgrade>()?;
            let protocol = HeaderValue::from_str(protocol.as_str()).ok()?;
            parts.method = Method::GET;
            let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
            parts
                .headers
                .insert(HeaderName::from_static("sec-websocket-key"), HeaderValue::from_str(&key).ok()?);
            return Some(Self { protocol, extended: true, client });
        }
        let wanted = parts.headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
        let mut tokens = wanted.flat_map(|v| v.split(','));
        if parts.version != Version::HTTP_11 || !tokens.any(|t| t.trim().eq_ignore_ascii_case("upgrade")) {
            return None;
        }
        let protocol = parts.headers.get(header::UPGRADE)?.clone();
        // To HTTP/2 nobody is changed: whoever speaks it says so in the first place.
        if protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
            return None;
        }
        Some(Self { protocol, extended: false, client: parts.extensions.remove::<OnUpgrade>()? })
    }

    /// Joins both sides until one ends, or both are silent for so long; the client's connection counts until then.
    pub fn join(self, backend: Box<Prefixed>, silence: Duration, seat: Option<Arc<Seat>>) {
        tokio::spawn(async move {
            let _seat = seat;
            let Ok(client) = self.client.await else { return };
            match client.downcast::<TokioIo<Line>>() {
                Ok(Upgraded { io, read_buf, .. }) => {
                    let stream = Stream::Plain(io.into_inner().into_stream());
                    both(Prefixed { first: read_buf, stream }, backend, silence).await;
                }
                Err(client) => both(TokioIo::new(client), backend, silence).await,
            }
        });
    }
}

async fn both(client: impl AsyncRead + AsyncWrite, backend: impl AsyncRead + AsyncWrite, silence: Duration) {
    let (client_read, client_write) = split(client);
    let (backend_read, backend_write) = split(backend);
    let (mark, mut seen) = tokio::sync::watch::channel(());
    let up = copy(client_read, backend_write, &mark);
    let down = copy(backend_read, client_write, &mark);
    let quiet = async { while tokio::time::timeout(silence, seen.changed()).await.is_ok() {} };
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        () = quiet => {}
    }
}

/// Copies until the end, which is passed on.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mark: &tokio::sync::watch::Sender<()>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        mark.send_replace(());
    }
}
