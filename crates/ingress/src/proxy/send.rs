//! A request's way to an endpoint, and to the next one where that can do nothing twice.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use http::HeaderValue;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::Instant;

use super::affinity::Ticket;
use crate::annotations::Policy;
use crate::annotations::upstream::Protocol;
use crate::body::{Body, BodyError, Outgoing};
use crate::onward::Fields;
use crate::record::{Asked, Record};
use crate::upstream::Backend;
use crate::upstream::balance::hash;
use crate::upstream::endpoint::{Busy, Endpoint};
use crate::upstream::h1::{Connection, Exchange, Fault, buffer, fields};
use crate::upstream::stream::Prefixed;

/// What goes to an endpoint, but for the endpoint.
#[derive(Debug)]
pub(super) struct Onward<'a> {
    pub method: Method,
    pub target: Cow<'a, str>,
    pub host: HeaderValue,
    pub headers: Fields,
}

/// Makes what goes to an endpoint anew, for another time: to keep it would take more memory than all else of a request
/// that waits for its answer.
pub(super) type Make<'a> = &'a (dyn Fn() -> Result<Onward<'a>, StatusCode> + Sync);

/// How an endpoint is chosen for this request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// By the location's algorithm.
    Turn,
    /// By a key of `upstream-hash-by`.
    Key(u64),
    /// By the client's cookie.
    Ticket(Ticket),
}

impl Choice {
    pub fn key(text: &str) -> Self {
        Self::Key(hash(text.as_bytes()))
    }
}

/// An endpoint's answer.
pub(super) struct Reply {
    /// When its head had come.
    pub at: Instant,
    pub response: Box<Response<Body>>,
    pub endpoint: Arc<Endpoint>,
    /// The connection, after it has changed its protocol.
    pub tunnel: Option<Box<Prefixed>>,
}

/// A way to send one request.
pub(super) struct Sending<'a> {
    pub onward: Make<'a>,
    pub method: &'a Method,
    pub backend: &'a Backend,
    pub policy: &'a Policy,
    pub choice: Choice,
    /// How long a client may be silent in the middle of its body.
    pub client_wait: Duration,
    /// The backend as the newest table has it: what is tried again is tried where endpoints are by now.
    pub newest: &'a (dyn Fn() -> Option<Arc<Backend>> + Sync),
}

impl<'a> Sending<'a> {
    /// Sends to one endpoint after the other as long as that cannot do anything twice; `first` is what goes to the first.
    pub async fn send(
        &self,
        first: Onward<'a>,
        body: Outgoing,
        record: &mut Record,
    ) -> Result<Reply, StatusCode> {
        let next = &self.policy.upstream.next;
        let empty = body.is_empty();
        let repeatable = empty && (self.method.is_idempotent() || next.non_idempotent);
        let end = next.within.map(|within| Instant::now() + within);
        let (mut first, mut body) = (Some(first), Some(body));
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut last = StatusCode::BAD_GATEWAY;
        for attempt in 1..=next.tries.max(1) {
            let newest = if attempt > 1 { (self.newest)() } else { None };
            let backend = newest.as_deref().unwrap_or(self.backend);
            let endpoint = self.endpoint(backend, &tried).ok_or(StatusCode::SERVICE_UNAVAILABLE)?.clone();
            let onward = first.take().map_or_else(self.onward, Ok)?;
            let started = Instant::now();
            let outcome = match endpoint.protocol() {
                Protocol::Http => self.http1(&endpoint, onward, started, &mut body, record).await,
                Protocol::Grpc => Box::pin(self.http2(&endpoint, onward, &mut body, record)).await,
            };
            let ended = outcome.as_ref().map_or_else(|_| Instant::now(), |reply| reply.at);
            let took = ended - started;
            let status = match &outcome {
                Ok(reply) => Some(reply.response.status()),
                Err(fault) => (!is_clients(fault)).then(|| status_of(fault)),
            };
            let answered = outcome.is_ok();
            record.asked.push(Asked { endpoint: endpoint.clone(), status, answered, took });
            let more = attempt < next.tries && end.is_none_or(|end| Instant::now() < end);
            let fault = match outcome {
                Ok(reply) => {
                    endpoint.answered(ended, took);
                    let again =
                        more && repeatable && next.statuses.contains(&reply.response.status().as_u16());
                    if !again {
                        return Ok(reply);
                    }
                    tried.push(endpoint);
                    body.get_or_insert_with(Outgoing::empty);
                    continue;
                }
                Err(fault) => fault,
            };
            last = status_of(&fault);
            if is_clients(&fault) {
                return Err(last);
            }
            tracing::warn!(%endpoint.text, error = %fault, "no answer");
            endpoint.failed();
            // What never left can be sent again, whatever it is.
            let unsent = body.is_some();
            let timeout = matches!(fault, Fault::Timeout | Fault::ConnectTimeout);
            let case = if timeout { next.timeout } else { next.error };
            if !more || !case || !(unsent || repeatable) {
                return Err(last);
            }
            body.get_or_insert_with(Outgoing::empty);
            tried.push(endpoint);
        }
        Err(last)
    }

    fn endpoint<'b>(&self, backend: &'b Backend, tried: &[Arc<Endpoint>]) -> Option<&'b Arc<Endpoint>> {
        let (balancing, affinity) = (&self.policy.balancing, &self.policy.affinity);
        match self.choice {
            Choice::Turn => backend.pick(balancing.algorithm, tried),
            Choice::Key(key) => match balancing.subset {
                Some(size) => backend.of_subset(key, size, tried),
                None => backend.of_key(key, tried),
            },
            Choice::Ticket(ticket) => {
                let named = ticket.endpoint(backend, affinity.persistent, tried);
                named.or_else(|| backend.pick(balancing.algorithm, tried))
            }
        }
    }

    async fn http1(
        &self,
        endpoint: &Arc<Endpoint>,
        mut onward: Onward<'a>,
        now: Instant,
        body: &mut Option<Outgoing>,
        record: &mut Record,
    ) -> Result<Reply, Fault> {
        let busy = Busy::at(endpoint);
        if let Some(mut idle) = endpoint.idle(now) {
            idle.since = now;
            let empty = body.as_ref().is_none_or(Outgoing::is_empty);
            let mut exchange = self.exchange(idle, endpoint, onward, body);
            match exchange.head().await {
                // It was closed while it was idle, as far as we know: what was sent was not read.
                Err(Fault::Closed | Fault::Io(_))
                    if exchange.reused() && !exchange.heard() && empty && self.method.is_idempotent() => {}
                Err(fault) => return Err(fault),
                Ok(response) => return Ok(reply(exchange, response, endpoint, busy)),
            }
            onward = (self.onward)().map_err(Fault::Refused)?;
        }
        let started = Instant::now();
        let connection = Box::pin(endpoint.connect(self.policy.upstream.connect)).await?;
        record.connected = Some(connection.since - started);
        let mut exchange = self.exchange(connection, endpoint, onward, body);
        let response = exchange.head().await?;
        Ok(reply(exchange, response, endpoint, busy))
    }

    fn exchange(
        &self,
        connection: Box<Connection>,
        endpoint: &Arc<Endpoint>,
        onward: Onward<'_>,
        body: &mut Option<Outgoing>,
    ) -> Box<Exchange> {
        let Onward { method, target, host, headers } = onward;
        let mut head = buffer();
        head.put_slice(method.as_str().as_bytes());
        head.put_u8(b' ');
        head.put_slice(target.as_bytes());
        head.put_slice(b" HTTP/1.1\r\nhost: ");
        head.put_slice(host.as_bytes());
        head.put_slice(b"\r\n");
        fields(&mut head, headers.iter());
        let waits = (self.policy.upstream.read, self.client_wait);
        let body = body.take().unwrap_or_else(Outgoing::empty);
        Exchange::new(connection, endpoint.clone(), head, &method, body, waits)
    }

    async fn http2(
        &self,
        endpoint: &Arc<Endpoint>,
        onward: Onward<'_>,
        body: &mut Option<Outgoing>,
        record: &mut Record,
    ) -> Result<Reply, Fault> {
        let busy = Busy::at(endpoint);
        let started = Instant::now();
        let mut sender = endpoint.http2(self.policy.upstream.connect).await?;
        record.connected = Some(started.elapsed());
        let request = request(endpoint, onward, body)?;
        let sent = tokio::time::timeout(self.policy.upstream.read, async {
            sender.ready().await?;
            sender.send_request(request).await
        });
        let response = match sent.await {
            Err(_) => return Err(Fault::Timeout),
            Ok(Err(error)) => match too_large(&error) {
                true => return Err(Fault::Client(BodyError::TooLarge)),
                false => return Err(Fault::Http2(error)),
            },
            Ok(Ok(response)) => response,
        };
        let response = Box::new(response.map(|incoming| Body::http2(incoming, busy)));
        Ok(Reply { at: Instant::now(), response, endpoint: endpoint.clone(), tunnel: None })
    }
}

/// A request over HTTP/2; the body is taken if it can be one.
fn request(
    endpoint: &Endpoint,
    onward: Onward<'_>,
    body: &mut Option<Outgoing>,
) -> Result<Request<Outgoing>, Fault> {
    let Onward { method, target, host, headers } = onward;
    let mut uri = http::uri::Parts::default();
    let scheme = if endpoint.secure() { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP };
    uri.scheme = Some(scheme);
    let host = host.to_str().ok().filter(|host| !host.is_empty());
    uri.authority = host.unwrap_or(&endpoint.text).parse().ok();
    uri.path_and_query = target.parse().ok();
    let uri = Uri::from_parts(uri).map_err(|_| Fault::Refused(StatusCode::BAD_REQUEST))?;
    let mut request = Request::new(body.take().unwrap_or_else(Outgoing::empty));
    *request.uri_mut() = uri;
    *request.method_mut() = method;
    *request.headers_mut() = headers.map();
    *request.version_mut() = Version::HTTP_2;
    Ok(request)
}

fn reply(
    exchange: Box<Exchange>,
    mut response: Box<Response<Body>>,
    endpoint: &Arc<Endpoint>,
    busy: Busy,
) -> Reply {
    let (at, endpoint) = (exchange.since(), endpoint.clone());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (stream, first) = exchange.into_stream();
        return Reply { at, response, endpoint, tunnel: Some(Box::new(Prefixed { first, stream })) };
    }
    *response.body_mut() = Body::answer(exchange.into_body(), busy);
    Reply { at, response, endpoint, tunnel: None }
}

fn too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(this) = next {
        if matches!(this.downcast_ref(), Some(BodyError::TooLarge)) {
            return true;
        }
        next = this.source();
    }
    false
}

/// Whether a fault is the client's, and no endpoint's.
fn is_clients(fault: &Fault) -> bool {
    matches!(fault, Fault::Client(_) | Fault::ClientSlow | Fault::Refused(_))
}

fn status_of(fault: &Fault) -> StatusCode {
    match fault {
        Fault::Timeout | Fault::ConnectTimeout => StatusCode::GATEWAY_TIMEOUT,
        Fault::Refused(status) => *status,
        Fault::ClientSlow => StatusCode::REQUEST_TIMEOUT,
        Fault::Client(BodyError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
        Fault::Client(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::BAD_GATEWAY,
    }
}
