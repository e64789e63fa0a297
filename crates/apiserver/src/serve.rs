//! The listener: TLS, HTTP/1.1 and HTTP/2 by ALPN, upgrades, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::BufWriter;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::identity::{PeerAddress, PeerCertificates};
use crate::server::ApiServer;

/// A client that does not finish its TLS handshake or its request head in time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What is written between two flushes goes out in pieces of this size: as much as a TLS record holds.
const BUFFER: usize = 16 << 10;
/// How long running requests may take after the stop.
const DRAIN: Duration = Duration::from_secs(2);

impl ApiServer {
    /// Serves until `stop`; then watches end, running requests get two seconds, and the rest is cut off.
    /// `tls` needs a client verifier that lets clients without a certificate in (tokens), such as
    /// [`client_verifier`](crate::serve::client_verifier).
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        mut tls: rustls::ServerConfig,
        stop: CancellationToken,
    ) {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let (api, acceptor, stop) = (self.clone(), acceptor.clone(), stop.clone());
                        let peer = PeerAddress(peer.ip().to_canonical());
                        connections.spawn(api.connection(stream, peer, acceptor, stop));
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: give the others time to end.
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        self.core.stop.cancel();
        let drained =
            tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::info!(connections = connections.len(), "connections outlived the drain time");
        }
        connections.shutdown().await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: PeerAddress,
        acceptor: TlsAcceptor,
        stop: CancellationToken,
    ) {
        let _ = stream.set_nodelay(true);
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
        let peer = stream.get_ref().1.peer_certificates().map(|chain| {
            PeerCertificates(chain.iter().map(|c| c.clone().into_owned()).collect::<Vec<_>>().into())
        });
        // HTTP/2 writes a frame at a time and flushes when it has no more: without a buffer each frame of each watch is a
        // TLS record and a system call of its own, here and at the reader. HTTP/1 writes an answer at once.
        let stream = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Either::Left(BufWriter::with_capacity(BUFFER, stream)),
            _ => Either::Right(stream),
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let api = self.clone();
            let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            request.extensions_mut().insert(address);
            if let Some(peer) = &peer {
                request.extensions_mut().insert(peer.clone());
            }
            // What works an answer out takes tens of kilobytes, and a stream lives for as long as its answer is sent: boxed, a
            // watch does not hold on to them.
            async move { Ok::<_, std::convert::Infallible>(api.handle(request).await) }.boxed()
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000).adaptive_window(true);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => {}
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }
}

/// A verifier for client certificates of the cluster's CA that also lets clients without one in: they may have a
/// token, or ask what anyone may ask.
///
/// # Errors
/// A CA that rustls cannot use.
pub fn client_verifier(
    ca: &[rustls::pki_types::CertificateDer<'static>],
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate.clone())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))
}
