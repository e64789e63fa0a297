//! One request: its location, its way to an endpoint, the answer's way back.
//!
//! Bodies stream in both directions. Messages are framed anew on the backend's side, and what belongs to one connection
//! (RFC 9110, 7.6.1) is not passed on, so there is nothing that two parsers could read differently.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::annotations::Protocol;
use crate::fields::{Asked, Peer, identify, pass_on};
use crate::path;
use crate::table::{Location, Table};

type BoxError = Box<dyn StdError + Send + Sync>;
/// A streamed body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// How often an idempotent request is sent: an endpoint may be gone, or close an idle connection just then.
const TRIES: usize = 3;
/// How long an endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections kept per endpoint, as ingress-nginx keeps them.
const IDLE: usize = 320;
/// What a rewritten path must not hold as it is.
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'%');

/// Answers requests by the newest table.
pub(crate) struct Proxy {
    table: Arc<ArcSwap<Table>>,
    http: Client<HttpConnector, Body>,
    grpc: Client<HttpConnector, Body>,
}

impl Proxy {
    pub fn new(table: Arc<ArcSwap<Table>>) -> Self {
        let client = |http2: bool| {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            connector.set_connect_timeout(Some(CONNECT));
            let mut builder = Client::builder(TokioExecutor::new());
            builder.pool_timer(TokioTimer::new()).pool_max_idle_per_host(IDLE);
            builder.pool_idle_timeout(Duration::from_secs(60)).http2_only(http2);
            builder.build(connector)
        };
        Self { table, http: client(false), grpc: client(true) }
    }

    /// The answer to a request; every failure is one.
    pub async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        match self.route(request, peer).await {
            Ok(response) => response,
            Err(status) => page(status),
        }
    }

    async fn route(&self, request: Request<Incoming>, peer: Peer) -> Result<Response<Body>, StatusCode> {
        if request.method() == Method::CONNECT {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let asked = Asked::of(&request)?;
        let path = path::normal(request.uri().path()).ok_or(StatusCode::BAD_REQUEST)?.into_owned();
        let table = self.table.load();
        let location = table.find(&asked.host, &path).ok_or(StatusCode::NOT_FOUND)?.clone();
        drop(table);
        let settings = &location.settings;
        if settings.closed {
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        }
        if !peer.secure && (settings.force_ssl_redirect || settings.ssl_redirect && location.tls) {
            return to_https(&asked.host, request.uri());
        }
        self.forward(request, &asked, &path, &location, peer).await
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        asked: &Asked,
        path: &[u8],
        location: &Location,
        peer: Peer,
    ) -> Result<Response<Body>, StatusCode> {
        let settings = &location.settings;
        let limit = settings.body_size.unwrap_or(u64::MAX);
        if request.body().size_hint().lower() > limit {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        let target = target(request.uri(), location.rewritten(path))?;
        let (mut parts, body) = request.into_parts();
        let upgrade = upgrade_of(&mut parts);
        pass_on(&mut parts.headers, settings.protocol);
        if let Some((protocol, _)) = &upgrade {
            parts.headers.insert(header::UPGRADE, protocol.clone());
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        identify(&mut parts.headers, asked, peer)?;
        let onward = Onward { method: parts.method, headers: parts.headers, target };
        let body = body.map_err(BoxError::from).boxed_unsync();
        let body = match usize::try_from(limit) {
            Ok(usize::MAX) | Err(_) => body,
            Ok(limit) => Limited::new(body, limit).boxed_unsync(),
        };
        let response = self.send(onward, body, location).await?;
        returned(response, upgrade.map(|(_, on)| on))
    }

    /// Sends to one endpoint after the other as long as that cannot do anything twice.
    async fn send(
        &self,
        onward: Onward,
        body: Body,
        location: &Location,
    ) -> Result<Response<Incoming>, StatusCode> {
        let (settings, backend) = (&location.settings, &location.backend);
        let repeatable = onward.method.is_idempotent() && body.is_end_stream();
        let tries = if repeatable { TRIES } else { 1 };
        let client = match settings.protocol {
            Protocol::Http => &self.http,
            Protocol::Grpc => &self.grpc,
        };
        let mut body = Some(body);
        for _ in 0..tries {
            let endpoint = backend.pick().ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            let request = onward.to(endpoint, settings.protocol, body.take().unwrap_or_else(empty))?;
            let sent = tokio::time::timeout(settings.read_timeout, client.request(request)).await;
            match sent {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) if caused::<LengthLimitError>(&error) => {
                    return Err(StatusCode::PAYLOAD_TOO_LARGE);
                }
                Ok(Err(error)) => {
                    tracing::warn!(ingress = %location.ingress, %endpoint, error = said(&error), "no answer");
                }
                Err(_) => {
                    tracing::warn!(ingress = %location.ingress, %endpoint, "no answer in time");
                    return Err(StatusCode::GATEWAY_TIMEOUT);
                }
            }
        }
        Err(StatusCode::BAD_GATEWAY)
    }
}

/// What goes to an endpoint, but for the endpoint.
struct Onward {
    method: Method,
    headers: HeaderMap,
    target: PathAndQuery,
}

impl Onward {
    fn to(&self, endpoint: &Authority, protocol: Protocol, body: Body) -> Result<Request<Body>, StatusCode> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(endpoint.clone());
        uri.path_and_query = Some(self.target.clone());
        let mut request = Request::new(body);
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| StatusCode::BAD_REQUEST)?;
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        *request.version_mut() = match protocol {
            Protocol::Http => Version::HTTP_11,
            Protocol::Grpc => Version::HTTP_2,
        };
        Ok(request)
    }
}

/// What the backend is asked for: the client's own words, or a rewritten path with the client's query.
fn target(uri: &Uri, rewritten: Option<Vec<u8>>) -> Result<PathAndQuery, StatusCode> {
    let Some(path) = rewritten else {
        let sent = uri.path_and_query().cloned();
        return Ok(sent.unwrap_or_else(|| PathAndQuery::from_static("/")));
    };
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let text = format!("{}{query}", percent_encode(&path, UNSAFE));
    // A capture may begin with a second slash; an authority it must not become.
    let text = format!("/{}", text.trim_start_matches('/'));
    PathAndQuery::try_from(text).map_err(|_| StatusCode::BAD_REQUEST)
}

fn to_https(host: &str, uri: &Uri) -> Result<Response<Body>, StatusCode> {
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let location = HeaderValue::from_str(&format!("https://{host}{target}"));
    let mut response = page(StatusCode::PERMANENT_REDIRECT);
    response.headers_mut().insert(header::LOCATION, location.map_err(|_| StatusCode::BAD_REQUEST)?);
    Ok(response)
}

/// The protocol that an HTTP/1.1 client wants to change to, and its side of the connection then.
fn upgrade_of(parts: &mut http::request::Parts) -> Option<(HeaderValue, OnUpgrade)> {
    let wanted = parts.headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let mut tokens = wanted.flat_map(|v| v.split(','));
    let asks = parts.version == Version::HTTP_11 && tokens.any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = parts.headers.get(header::UPGRADE).filter(|_| asks)?.clone();
    Some((protocol, parts.extensions.remove::<OnUpgrade>()?))
}

/// The backend's answer as the client gets it; two connections become one where both sides changed protocols.
fn returned(
    mut response: Response<Incoming>,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>, StatusCode> {
    let changed = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = response.headers().get(header::UPGRADE).cloned();
    pass_on(response.headers_mut(), Protocol::Http);
    response.headers_mut().entry(header::SERVER).or_insert(HeaderValue::from_static("skiff"));
    *response.version_mut() = Version::default();
    if !changed {
        return Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    }
    let (Some(client), Some(protocol)) = (upgrade, protocol) else { return Err(StatusCode::BAD_GATEWAY) };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        if let Ok((client, backend)) = tokio::try_join!(client, backend) {
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            // Either side may go at any time.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
        }
    });
    response.headers_mut().insert(header::UPGRADE, protocol);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(response.map(|_| empty()))
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A page of ours for a status, titled as nginx titles it.
fn page(status: StatusCode) -> Response<Body> {
    let title = match status {
        StatusCode::SERVICE_UNAVAILABLE => "503 Service Temporarily Unavailable".to_owned(),
        StatusCode::GATEWAY_TIMEOUT => "504 Gateway Time-out".to_owned(),
        other => other.to_string(),
    };
    let text = format!(
        "<html>\n<head><title>{title}</title></head>\n<body>\n<center><h1>{title}</h1></center>\n</body>\n</html>\n"
    );
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("skiff"));
    response
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
}

fn caused<E: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|e| e.is::<E>())
}

fn said(error: &(dyn StdError + 'static)) -> String {
    chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn rewritten_paths_stay_paths() {
        let uri: Uri = "http://h/old?x=1".parse().unwrap();
        let to = |path: &str| target(&uri, Some(path.into())).unwrap().to_string();
        assert_eq!(to("/new"), "/new?x=1");
        assert_eq!(to("//evil.example/a b?c#d%"), "/evil.example/a%20b%3Fc%23d%25?x=1");
        assert_eq!(target(&uri, None).unwrap().to_string(), "/old?x=1");
    }
}
