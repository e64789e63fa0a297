//! The HTTPS server on port 10250: logs, exec, attach, port-forward, health, figures; for the API server and its like only.
//!
//! ```text
//! /healthz                                       "ok"
//! /containerLogs/{ns}/{pod}/{container}          ?follow &tailLines &sinceSeconds &sinceTime &timestamps &limitBytes &previous
//! /exec/{ns}/{pod}/{container}                   ?command=.. &stdin &stdout &stderr &tty (also as input, output, error)
//! /attach/{ns}/{pod}/{container}                 the same without command
//! /portForward/{ns}/{pod}
//! /stats/summary  /pods                          JSON
//! ```

mod figures;
mod logs;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Agent;
use crate::directory::Directory;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Groups that may use this server.
const GROUPS: [&str; 2] = ["system:masters", "system:kubelet-api-admin"];
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until `stop`; connections that carry streams end with it.
pub async fn serve(
    agent: Arc<Agent>,
    directory: Arc<Directory>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let server = Server { agent, directory, stop: stop.clone() };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(server.clone().connection(acceptor.clone(), stream));
                }
                Err(error) => {
                    // Out of descriptors, most likely: let some go.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What requests are answered from.
#[derive(Clone)]
struct Server {
    agent: Arc<Agent>,
    directory: Arc<Directory>,
    stop: CancellationToken,
}

/// Whether a client may come in: what its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Nobody,
    Stranger,
    Friend,
}

impl Server {
    async fn connection(self, acceptor: TlsAcceptor, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
            Err(_) => return,
        };
        let access =
            access(stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.as_ref()));
        let service = service_fn(|request| {
            let server = self.clone();
            async move { Ok::<_, Infallible>(server.answer(access, request).await) }
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection");
        }
    }

    async fn answer(&self, access: Access, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_string();
        if path == "/healthz" {
            return text(StatusCode::OK, "ok");
        }
        match access {
            Access::Nobody => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Access::Stranger => return text(StatusCode::FORBIDDEN, "Forbidden"),
            Access::Friend => {}
        }
        let parts: Vec<String> = path.split('/').skip(1).map(decoded).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["containerLogs", namespace, pod, container] => {
                let query = request.uri().query().unwrap_or_default();
                logs::answer(self, namespace, pod, container, query)
            }
            [verb @ ("exec" | "attach"), namespace, pod, container] => {
                streams::answer(self, verb, namespace, pod, container, request)
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                streams::forward(self, namespace, pod, request)
            }
            ["stats", "summary"] => json(&figures::summary(self).await),
            ["pods"] => json(&figures::pods(self)),
            _ => text(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }
}

fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// Reads the groups (O) of a client's certificate, which TLS has verified.
fn access(certificate: Option<&[u8]>) -> Access {
    let Some(certificate) = certificate else { return Access::Nobody };
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Access::Stranger };
    let mut groups = parsed.subject().iter_organization().filter_map(|o| o.as_str().ok());
    if groups.any(|g| GROUPS.contains(&g)) { Access::Friend } else { Access::Stranger }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_string())).boxed_unsync());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, &value.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body of what comes out of a channel.
fn streaming(receiver: mpsc::Receiver<Bytes>) -> Body {
    let frames =
        futures::stream::unfold(receiver, |mut rx| async move { rx.recv().await.map(|bytes| (bytes, rx)) });
    StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync()
}

#[cfg(test)]
mod tests;
