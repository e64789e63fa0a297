//! Listeners, TLS, and the limits of what a client may cost.
//!
//! HTTP/1.1 in the clear; over TLS what ALPN agrees on (RFC 7301), HTTP/2 first.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::certificates::ByName;
use crate::fields::Peer;
use crate::proxy::Proxy;

/// What clients may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections of a listener; more wait.
    pub connections: usize,
    /// A handshake.
    pub handshake: Duration,
    /// A request's headers, and the time between two requests.
    pub headers_within: Duration,
    /// Bytes of a request's headers.
    pub header_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Requests of one HTTP/2 connection at a time.
    pub streams: u32,
    /// How long requests under way may take when the controller stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshake: Duration::from_secs(10),
            headers_within: Duration::from_secs(60),
            header_bytes: 64 << 10,
            headers: 100,
            streams: 128,
            drain: Duration::from_secs(20),
        }
    }
}

/// What a listener speaks.
pub(crate) struct Front {
    pub tls: Option<TlsAcceptor>,
    /// The port by which clients know it.
    pub port: u16,
}

/// TLS with the certificate of whomever a client asks for.
pub(crate) fn acceptor(certificates: Arc<ByName>) -> Result<TlsAcceptor, rustls::Error> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves a listener until `stop`, then lets requests under way end.
pub(crate) async fn serve(
    listener: TcpListener,
    front: Front,
    proxy: Arc<Proxy>,
    limits: Limits,
    stop: CancellationToken,
) {
    let open = TaskTracker::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, address, place)) = accepted else { continue };
        let peer = Peer { address, secure: front.tls.is_some(), port: front.port };
        let connection = Connection { proxy: proxy.clone(), peer, limits, stop: stop.clone() };
        let tls = front.tls.clone();
        open.spawn(async move {
            let _place = place;
            connection.serve(stream, tls).await;
        });
    }
    open.close();
    if tokio::time::timeout(limits.drain, open.wait()).await.is_err() {
        tracing::warn!(port = front.port, connections = open.len(), "connections outlived the drain time");
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Only fails on a socket that is gone already.
            let _ = stream.set_nodelay(true);
            Some((stream, address, place))
        }
        Err(error) => {
            tracing::warn!(%error, "accept");
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

struct Connection {
    proxy: Arc<Proxy>,
    peer: Peer,
    limits: Limits,
    stop: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        let Some(tls) = tls else { return self.http1(stream).await };
        let shaken = tokio::time::timeout(self.limits.handshake, tls.accept(stream)).await;
        let Ok(Ok(stream)) = shaken else { return };
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.http2(stream).await,
            _ => self.http1(stream).await,
        }
    }

    async fn http1(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.limits.headers_within);
        builder.max_headers(self.limits.headers).max_buf_size(self.limits.header_bytes);
        let service = service_fn(|request: Request<Incoming>| self.answer(request));
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            // A client's faults end its connection and nobody else's.
            _ = connection.as_mut() => return,
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn http2(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_concurrent_streams(self.limits.streams);
        builder.max_header_list_size(u32::try_from(self.limits.header_bytes).unwrap_or(u32::MAX));
        builder.keep_alive_interval(self.limits.headers_within).keep_alive_timeout(self.limits.handshake);
        let (proxy, peer) = (self.proxy.clone(), self.peer);
        let service = service_fn(move |request: Request<Incoming>| {
            let proxy = proxy.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request, peer).await) }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<crate::proxy::Body>, Infallible> {
        Ok(self.proxy.answer(request, self.peer).await)
    }
}

/// `/healthz` as long as the process lives, `/readyz` once there is a table and until `stop`.
pub(crate) async fn health(listener: TcpListener, ready: CancellationToken, stop: CancellationToken) {
    let open = TaskTracker::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (ready, stop) = (ready.clone(), stop.clone());
        open.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let status = match request.uri().path() {
                    "/healthz" => StatusCode::OK,
                    "/readyz" if ready.is_cancelled() && !stop.is_cancelled() => StatusCode::OK,
                    "/readyz" => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::NOT_FOUND,
                };
                let mut response = Response::new(Empty::<bytes::Bytes>::new());
                *response.status_mut() = status;
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(5));
            // A probe that breaks off has its answer.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
