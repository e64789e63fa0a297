//! Passes one request on over HTTP/1.1 and its answer back, streaming both ways; after a 101 the two connections are
//! joined byte by byte.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::dial;
use super::target::{Security, Target};
use crate::audit::Record;
use crate::core::Call;
use crate::server::{Body, full};
use crate::status::Status;

/// A target that does not take a connection in this time is down.
const DIAL: Duration = Duration::from_secs(10);

/// Sends the request to the target and answers what it answers.
///
/// # Errors
/// 503 when it cannot be reached.
pub async fn forward(
    call: &Call,
    target: Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let stream = match tokio::time::timeout(DIAL, dial(call, &target)).await {
        Ok(stream) => stream?,
        Err(_) => return Err(unreachable(format!("dial {}:{}: timed out", target.host, target.port))),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    tokio::spawn(connection.with_upgrades());
    let outgoing = outgoing(&target, request)?;
    let mut response = sender.send_request(outgoing).await.map_err(unreachable)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = client.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
        join(client, hyper::upgrade::on(&mut response), call.record.clone());
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, full("")));
    }
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    parts.version = http::Version::default();
    let record = call.record.clone();
    let body = body.map_err(Into::into).map_frame(move |frame| {
        let _held = &record;
        frame
    });
    Ok(Response::from_parts(parts, body.boxed_unsync()))
}

fn unreachable(why: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("error trying to reach service: {why}"))
}

async fn dial(call: &Call, target: &Target) -> Result<Box<dyn dial::Stream>, Status> {
    let tls = match target.security {
        Security::Plain => None,
        Security::Kubelet => Some(call.core.config.kubelet_tls.clone()),
        Security::Unverified => Some(tls::unverified().map_err(Status::internal)?),
    };
    let tls = tls.map(|config| (config, target.host.as_str()));
    dial::open(&target.host, target.port, tls).await.map_err(unreachable)
}

/// The request as the target gets it: its own path, none of our credentials.
fn outgoing(target: &Target, request: Request<Body>) -> Result<Request<Body>, Status> {
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    headers.remove(AUTHORIZATION);
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let host = HeaderValue::from_str(&format!("{host}:{}", target.port)).map_err(Status::internal)?;
    let upgrades = headers.contains_key(UPGRADE);
    if !upgrades {
        strip_hop_by_hop(&mut headers);
    }
    headers.insert(HOST, host);
    let mut out = Request::builder()
        .method(parts.method)
        .uri(&target.path)
        .body(body)
        .map_err(|e| Status::bad_request(format!("invalid path {:?}: {e}", target.path)))?;
    *out.headers_mut() = headers;
    Ok(out)
}

/// Header fields that concern one connection only (RFC 9110, section 7.6.1).
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "te", "trailer"] {
        headers.remove(name);
    }
}

/// Joins the two upgraded connections until either side ends; the record of the request ends with them.
fn join(client: OnUpgrade, target: OnUpgrade, record: Option<Arc<Record>>) {
    tokio::spawn(async move {
        let _held = record;
        match tokio::try_join!(client, target) {
            Ok((client, target)) => {
                let (mut client, mut target) =
                    (Tolerant(TokioIo::new(client)), Tolerant(TokioIo::new(target)));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut target).await;
            }
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
    });
}

/// A connection whose end without TLS' close_notify is an end like any other: as an error it would make the copy drop
/// what it has read and not yet written.
struct Tolerant<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Tolerant<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match std::task::ready!(Pin::new(&mut self.0).poll_read(cx, buf)) {
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                Poll::Ready(Ok(()))
            }
            other => Poll::Ready(other),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tolerant<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
