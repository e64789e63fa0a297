//! Listeners, TLS, the PROXY protocol, and the limits of what a client may cost.
//!
//! HTTP/1.1 in the clear; over TLS what ALPN agrees on (RFC 7301), HTTP/2 first. A connection takes the settings that
//! hold when it opens; its requests take the newest.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::body::Body;
use crate::certificates::Acceptors;
use crate::client_tls::TlsPeer;
use crate::configmap::Global;
use crate::fields::Peer;
use crate::line::Line;
use crate::proxy::Proxy;
use crate::proxy_protocol;
use crate::table::Table;
use crate::timer::Timer;

/// How long a handshake may take, and the line of the PROXY protocol.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams that a client may open and reset again, or that are reset for its faults, before it is shown out
/// (CVE-2023-44487).
const RESETS: usize = 64;

/// What TLS of a listener needs.
#[derive(Clone)]
pub(crate) struct Tls {
    pub acceptors: Arc<ArcSwap<Acceptors>>,
    pub table: Arc<ArcSwap<Table>>,
}

/// What a listener speaks.
#[derive(Clone)]
pub(crate) struct Front {
    pub tls: Option<Tls>,
    /// The port by which clients know it.
    pub port: u16,
}

/// How serving ends: connections are asked to go elsewhere while new ones are still served, then the port closes.
#[derive(Clone, Default)]
pub(crate) struct Stop {
    /// Clients are told with each answer (HTTP/1.1), or at once (HTTP/2), that the next request belongs elsewhere: who
    /// is told cannot lose one, as who finds a connection closed may.
    pub leaving: CancellationToken,
    /// No new connections; requests under way end.
    pub closing: CancellationToken,
}

/// Serves a listener until it is to close, then lets requests under way end.
pub(crate) async fn serve(listener: TcpListener, front: Front, proxy: Arc<Proxy>, stop: Stop) {
    let open = TaskTracker::new();
    let room = Arc::new(Semaphore::new(proxy.global().connections));
    let (leave, end) = (Arc::new(End::default()), Arc::new(End::default()));
    let begin = |(stream, address, place): Accepted| {
        // A tunnel outlives what was told to HTTP, and keeps the place of its connection.
        let seat = Arc::new(Seat { _place: place, _open: open.token() });
        let peer = Peer::new(address, front.port).seated(seat);
        let global = proxy.global();
        let (leave, end) = (leave.clone(), end.clone());
        let connection = Connection { proxy: proxy.clone(), peer, global, leave, end };
        let tls = front.tls.clone();
        tokio::spawn(connection.serve(stream, tls));
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.closing.cancelled() => break,
            () = stop.leaving.cancelled(), if !leave.has_come() => {
                leave.come();
                None
            }
            accepted = accept(&listener, &room) => accepted,
        };
        accepted.map(begin);
    }
    leave.come();
    end.come();
    // Whoever had connected by now is served as well; later ones find the port closed.
    while let Ok(Some(accepted)) = tokio::time::timeout(Duration::ZERO, accept(&listener, &room)).await {
        begin(accepted);
    }
    drop(listener);
    open.close();
    if tokio::time::timeout(proxy.global().drain, open.wait()).await.is_err() {
        tracing::warn!(port = front.port, connections = open.len(), "connections outlived the drain time");
    }
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<Accepted> {
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

/// A connection's place among those that there may be, and are waited for at the end.
#[derive(Debug)]
pub(crate) struct Seat {
    _place: OwnedSemaphorePermit,
    _open: TaskTrackerToken,
}

/// A turn of serving, as connections hear of it. They are polled for each request and the end comes once: a flag is
/// all that they look at before.
#[derive(Default)]
struct End {
    came: AtomicBool,
    wakes: CancellationToken,
}

impl End {
    fn come(&self) {
        self.came.store(true, Ordering::Release);
        self.wakes.cancel();
    }

    fn has_come(&self) -> bool {
        self.came.load(Ordering::Acquire)
    }

    /// Drives a connection; `finish` asks it to end after the request under way, once the end has come.
    async fn drive<C: Future>(&self, connection: C, finish: impl Fn(Pin<&mut C>)) {
        let mut connection = std::pin::pin!(connection);
        let mut end = std::pin::pin!(self.wakes.cancelled());
        let (mut listens, mut told) = (false, false);
        poll_fn(|cx| {
            if !told && (!listens || self.has_come()) {
                listens = true;
                if end.as_mut().poll(cx).is_ready() {
                    told = true;
                    finish(connection.as_mut());
                }
            }
            // A client's faults end its connection and nobody else's.
            connection.as_mut().poll(cx).map(drop)
        })
        .await;
    }
}

struct Connection {
    proxy: Arc<Proxy>,
    peer: Peer,
    global: Arc<Global>,
    leave: Arc<End>,
    end: Arc<End>,
}

impl Connection {
    async fn serve(mut self, mut stream: TcpStream, tls: Option<Tls>) {
        let proxy = self.proxy.clone();
        let metrics = proxy.metrics();
        metrics.accepted.fetch_add(1, Ordering::Relaxed);
        metrics.active.fetch_add(1, Ordering::Relaxed);
        let served = async {
            if self.global.proxy_protocol {
                let read = tokio::time::timeout(HANDSHAKE, proxy_protocol::read(&mut stream)).await;
                match read {
                    Ok(Ok(Some(address))) => self.peer = self.peer.instead(address),
                    Ok(Ok(None)) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %self.peer.address, %error, "the PROXY protocol");
                        return;
                    }
                    Err(_) => return,
                }
            }
            match tls {
                None => self.http1(Line::new(stream), true).await,
                Some(tls) => self.https(stream, tls).await,
            }
        };
        served.await;
        metrics.active.fetch_sub(1, Ordering::Relaxed);
    }

    async fn https(mut self, stream: TcpStream, tls: Tls) {
        let shaken = tokio::time::timeout(HANDSHAKE, async {
            let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
            let name = start.client_hello().server_name().map(str::to_ascii_lowercase);
            let asks = name.as_ref().is_some_and(|name| tls.table.load().asks(name));
            let config = tls.acceptors.load().of(asks);
            Ok::<_, std::io::Error>((start.into_stream(config).await?, name, asks))
        });
        // A handshake that fails is its client's affair.
        let Ok(Ok((stream, name, asked))) = shaken.await else { return };
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let http2 = session.alpn_protocol() == Some(b"h2");
        let chain = chain.into_iter().map(rustls::pki_types::CertificateDer::into_owned).collect();
        self.peer.tls = Some(Arc::new(TlsPeer { name, chain, asked, version }));
        match http2 {
            true => self.http2(stream).await,
            false => self.http1(stream, false).await,
        }
    }

    /// `watches`: the stream itself says when the client has gone.
    async fn http1(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, watches: bool) {
        let mut builder = http1::Builder::new();
        builder.half_close(watches);
        let idle = self.global.header_timeout.min(self.global.idle.max(Duration::from_secs(1)));
        builder.timer(Timer::new(idle)).header_read_timeout(idle);
        builder.max_buf_size(self.global.header_bytes.max(8 << 10)).keep_alive(!self.global.idle.is_zero());
        let service = service_fn(|request: Request<Incoming>| self.answer(request));
        let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        self.end.drive(connection, |connection| connection.graceful_shutdown()).await;
    }

    async fn http2(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.global.streams)
            .enable_connect_protocol();
        builder.max_header_list_size(u32::try_from(self.global.header_bytes).unwrap_or(u32::MAX));
        builder.keep_alive_interval(self.global.header_timeout).keep_alive_timeout(HANDSHAKE);
        builder.max_pending_accept_reset_streams(RESETS).max_local_error_reset_streams(RESETS);
        let (proxy, peer) = (self.proxy.clone(), Arc::new(self.peer.clone()));
        let service = service_fn(move |request: Request<Incoming>| {
            let (proxy, peer) = (proxy.clone(), peer.clone());
            let (mut request, body) = request.into_parts();
            async move { Ok::<_, Infallible>(*proxy.answer(&mut request, body, &peer).await) }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        self.leave.drive(connection, |connection| connection.graceful_shutdown()).await;
    }

    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Result<Response<Body>, Infallible>> {
        let (mut request, body) = request.into_parts();
        async move {
            let mut response = self.proxy.answer(&mut request, body, &self.peer).await;
            if self.leave.has_come() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(*response)
        }
    }
}
