//! One request: its location, who may come in, its way to an endpoint, the answer's way back.
//!
//! ```text
//!  request ─ host, path ─ location ─ early ─ limits ─ admit ─ canary, cookie ─ send ─ edit ─ answer
//!                            │         │        │       │                       │       │
//!                           404     redirect   503    401 403                502 503   errors taken over
//!                                   preflight                                 504
//! ```
//!
//! Bodies stream in both directions. Messages are framed anew on the backend's side, and what belongs to one connection
//! (RFC 9110, 7.6.1) is not passed on, so there is nothing that two parsers could read differently.

mod admit;
mod affinity;
mod early;
mod edit;
mod facts;
mod mirror;
mod page;
mod send;
mod tunnel;

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::body::{Body, Outgoing};
use crate::configmap::Global;
use crate::fields::{Asked, Client, Peer, REQUEST_ID};
use crate::metrics::{Labels, Metrics};
use crate::onward::{self, Asks, Fields, give_back};
use crate::path;
use crate::record::{Ledger, Log, Record};
use crate::table::{Alternative, Found, Location, Table};
use crate::throttle::Over;
use crate::upstream::Backend;
use admit::Admitted;
use affinity::Ticket;
use facts::Facts;
use page::{Stop, page};
use send::{Choice, Onward, Reply, Sending};
use tunnel::Tunnel;

/// What a rewritten path must not hold as it is.
const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'%');
const SERVER: HeaderValue = HeaderValue::from_static("skiff");

/// Answers requests by the newest table.
pub(crate) struct Proxy {
    table: Arc<ArcSwap<Table>>,
    asker: reqwest::Client,
    ledger: Arc<Ledger>,
}

/// Where a request goes of the backends that its location has.
struct Way<'a> {
    backend: &'a Arc<Backend>,
    choice: Choice,
    /// A cookie that the client gets for it; `None` inside: one that names the endpoint.
    ticket: Option<Option<Ticket>>,
    /// It was sent to a default backend, for this status.
    instead_of: Option<StatusCode>,
}

impl Proxy {
    pub fn new(table: Arc<ArcSwap<Table>>, metrics: Arc<Metrics>, log: Log) -> reqwest::Result<Self> {
        Ok(Self { table, asker: admit::asker()?, ledger: Arc::new(Ledger { metrics, log }) })
    }

    pub fn metrics(&self) -> &Metrics {
        &self.ledger.metrics
    }

    /// The settings of the newest table.
    pub fn global(&self) -> Arc<Global> {
        self.table.load().global.clone()
    }

    /// The answer to a request, of which nothing is left; every failure is one.
    pub async fn answer(&self, request: &mut Parts, body: Incoming, peer: &Peer) -> Box<Response<Body>> {
        let mut record = Box::new(Record::new(self.ledger.clone(), request.method.clone()));
        let routed = self.route(request, body, peer, &mut record).await;
        give_back(std::mem::take(&mut request.headers));
        let mut response = routed.unwrap_or_else(|Stop(response)| response);
        response.headers_mut().entry(header::SERVER).or_insert(SERVER);
        record.status = response.status().as_u16();
        response.body_mut().record(record);
        response
    }

    async fn route(
        &self,
        parts: &mut Parts,
        body: Incoming,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<Box<Response<Body>>, Stop> {
        let table = self.table.load_full();
        let global = &table.global;
        let tunnel = Tunnel::wanted(parts);
        let parts = &*parts;
        if parts.method == Method::CONNECT {
            return Err(StatusCode::METHOD_NOT_ALLOWED.into());
        }
        let asked = Asked::of(parts)?;
        let path = path::normal(parts.uri.path()).ok_or(StatusCode::BAD_REQUEST)?;
        let client = Client::of(&parts.headers, peer, global);
        let location = match table.find(&asked.host, &path) {
            Found::Location(location) => location,
            Found::Moved(to) => {
                let uri = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
                return Err(early::moved(client.scheme(), to, uri, global));
            }
            Found::Nothing => return Err(StatusCode::NOT_FOUND.into()),
        };
        let id = request_id(&parts.headers);
        let facts = Facts { parts, path: &path, asked: &asked, client: &client, peer, id: &id, location };
        self.begin(record, &facts, global);
        let outcome = self.serve(&facts, body, tunnel, global, record).await;
        outcome.map_err(|Stop(mut response)| {
            edit::finish(&mut response, &facts, global, &Admitted::default());
            Stop(response)
        })
    }

    /// Takes down what is to be logged and counted.
    fn begin(&self, record: &mut Record, facts: &Facts<'_>, global: &Global) {
        let location = facts.location;
        let stats = location.stats.get_or_init(|| {
            self.ledger.metrics.stats(Labels {
                namespace: location.ingress.namespace.clone(),
                ingress: location.ingress.name.clone(),
                service: location.backend.service.clone(),
                host: location.host.to_string(),
                path: location.path.to_string(),
                canary: location.canary.as_ref().map(|c| c.backend.service.clone()).unwrap_or_default(),
            })
        });
        record.stats = Some(stats.clone());
        let skipped = || global.log_skip.iter().any(|path| facts.parts.uri.path() == path);
        if let Some(format) =
            global.log.as_ref().filter(|_| location.served.policy.response.log && !skipped())
        {
            record.line = Some(facts.line(format, global.log_escape_json));
            record.head_length =
                facts.parts.headers.iter().map(|(n, v)| n.as_str().len() + v.len() + 4).sum::<usize>() as u64
                    + facts.uri().len() as u64
                    + 16;
        }
    }

    async fn serve(
        &self,
        facts: &Facts<'_>,
        body: Incoming,
        tunnel: Option<Tunnel>,
        global: &Global,
        record: &mut Record,
    ) -> Result<Box<Response<Body>>, Stop> {
        let served = &facts.location.served;
        let policy = &served.policy;
        if policy.closed || served.closed {
            return Err(StatusCode::SERVICE_UNAVAILABLE.into());
        }
        admit::blocked(facts, global)?;
        early::answer(facts, global)?;
        if let Some(zones) = &served.zones {
            let entered = zones.enter(facts.client.address);
            record.place = entered.map_err(|over| match over {
                Over::Requests => page::status(global.limit_req_status),
                Over::Connections => page::status(global.limit_conn_status),
            })?;
        }
        let admitted = admit::admit(facts, global, &self.asker).await?;
        let way = way(facts);
        if way.backend.service != facts.location.backend.service {
            record.alternative = Some(format!(
                "{}-{}-{}",
                facts.location.ingress.namespace, way.backend.service, way.backend.port
            ));
        }
        let limit = policy.upstream.body_size;
        if limit.is_some_and(|limit| body.size_hint().lower() > limit) {
            return Err(StatusCode::PAYLOAD_TOO_LARGE.into());
        }
        let protocol = tunnel.as_ref().map(|tunnel| tunnel.protocol.clone());
        let onward = || onward(facts, global, &admitted, &way, protocol.as_ref());
        let mut outgoing = Outgoing::client(body, limit, &mut record.received);
        let first = onward()?;
        mirror::mirror(facts, &first.headers, &mut outgoing, &self.asker);
        let client_wait = global.body_timeout;
        let newest = || self.newest(facts, &way);
        let sending = Sending {
            onward: &onward,
            method: &facts.parts.method,
            backend: way.backend,
            policy,
            choice: way.choice,
            client_wait,
            newest: &newest,
        };
        let replied = sending.send(first, outgoing, record).await;
        let mut response = match replied {
            Ok(reply) => self.replied(reply, tunnel, &way, facts)?,
            Err(status) => page(status),
        };
        let code = response.status().as_u16();
        if policy.response.intercept && policy.response.errors.contains(&code) && way.instead_of.is_none() {
            response = Box::pin(self.instead(facts, response, &onward, record)).await;
        }
        edit::finish(&mut response, facts, global, &admitted);
        Ok(response)
    }

    /// The backend of a request's way as the newest table has it.
    fn newest(&self, facts: &Facts<'_>, way: &Way<'_>) -> Option<Arc<Backend>> {
        let table = self.table.load();
        let location = table.find(&facts.asked.host, facts.path).location()?;
        let canary = location.canary.iter().map(|canary| &canary.backend);
        let mut all =
            std::iter::once(&location.backend).chain(canary).chain(&location.served.default_backend);
        let same = |b: &&Arc<Backend>| b.service == way.backend.service && b.port == way.backend.port;
        all.find(same).filter(|backend| !backend.endpoints.is_empty()).cloned()
    }

    /// An endpoint's answer as ours; two connections become one where both sides changed protocols.
    fn replied(
        &self,
        reply: Reply,
        tunnel: Option<Tunnel>,
        way: &Way<'_>,
        facts: &Facts<'_>,
    ) -> Result<Box<Response<Body>>, Stop> {
        let policy = &facts.location.served.policy;
        let Reply { mut response, endpoint, tunnel: changed, .. } = reply;
        let protocol = changed.as_ref().and_then(|_| response.headers().get(header::UPGRADE).cloned());
        edit::received(&mut response, &policy.response);
        if let Some(ticket) = way.ticket {
            let ticket = ticket.unwrap_or_else(|| Ticket::naming(way.backend, &endpoint));
            if let Some(cookie) = ticket.cookie(facts, &policy.affinity) {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
        }
        let Some(stream) = changed else { return Ok(response) };
        let Some(tunnel) = tunnel else { return Err(StatusCode::BAD_GATEWAY.into()) };
        if tunnel.extended {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove("sec-websocket-accept");
        } else {
            let Some(protocol) = protocol else { return Err(StatusCode::BAD_GATEWAY.into()) };
            response.headers_mut().insert(header::UPGRADE, protocol);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let silence = policy.upstream.read.max(policy.upstream.send);
        tunnel.join(stream, silence, facts.peer.seat.clone());
        Ok(response)
    }

    /// What the default backend answers in place of an error; a page of ours where there is none.
    async fn instead(
        &self,
        facts: &Facts<'_>,
        response: Box<Response<Body>>,
        onward: send::Make<'_>,
        record: &mut Record,
    ) -> Box<Response<Body>> {
        let code = response.status();
        drop(response);
        let Some(backend) = &facts.location.served.default_backend else { return page(code) };
        let onward = || {
            let mut headers = onward()?.headers;
            explain(&mut headers, facts, code);
            // Whatever was asked for, and of whom the backend was asked: the page of the error is at the root.
            let target = facts.parts.uri.query().map_or("/".into(), |query| format!("/?{query}").into());
            Ok(Onward { method: Method::GET, target, host: facts.asked.raw.clone(), headers })
        };
        let Ok(first) = onward() else { return page(code) };
        let policy = &facts.location.served.policy;
        let sending = Sending {
            onward: &onward,
            method: &Method::GET,
            backend,
            policy,
            choice: Choice::Turn,
            client_wait: policy.upstream.read,
            newest: &|| None,
        };
        match sending.send(first, Outgoing::empty(), record).await {
            Ok(Reply { mut response, tunnel: None, .. }) => {
                edit::received(&mut response, &policy.response);
                response
            }
            _ => page(code),
        }
    }
}

/// Which of a location's backends a request goes to, and how an endpoint is chosen.
fn way<'a>(facts: &'a Facts<'a>) -> Way<'a> {
    let location: &Location = facts.location;
    let policy = &location.served.policy;
    let affinity = &policy.affinity;
    let shown = if affinity.enabled { Ticket::shown(facts, affinity) } else { None };
    let mut backend = match &location.canary {
        Some(canary) if takes(facts, canary, shown, affinity.canary_sticky) => &canary.backend,
        _ => &location.backend,
    };
    let mut instead_of = None;
    if let Some(default) = location.served.default_backend.as_ref().filter(|_| backend.endpoints.is_empty()) {
        backend = default;
        instead_of = Some(StatusCode::SERVICE_UNAVAILABLE);
    }
    let (mut choice, mut ticket) = (Choice::Turn, None);
    if affinity.enabled {
        let kept = shown.filter(|shown| shown.is_of(backend));
        let there = kept.filter(|kept| {
            kept.endpoint(backend, affinity.persistent, &[]).is_some()
                && (!affinity.change_on_failure || kept.is_good(backend, affinity.persistent))
        });
        (choice, ticket) = match (there, affinity.persistent) {
            (Some(kept), _) => (Choice::Ticket(kept), None),
            (None, true) => (Choice::Turn, Some(None)),
            (None, false) => {
                let new = Ticket::new(backend);
                (Choice::Ticket(new), Some(Some(new)))
            }
        };
    } else if let Some(template) = &policy.balancing.hash_by {
        choice = Choice::key(&facts.fill(template));
    }
    Way { backend, choice, ticket, instead_of }
}

fn takes(facts: &Facts<'_>, canary: &Alternative, shown: Option<Ticket>, sticky: bool) -> bool {
    if canary.backend.endpoints.is_empty() {
        return false;
    }
    let settings = &canary.served.policy.canary;
    let header = settings.header.as_ref().and_then(|name| facts.header(name));
    let cookie = settings.cookie.as_ref().and_then(|name| facts.cookie(name));
    settings.takes(header, cookie, || match shown.filter(|_| sticky) {
        Some(shown) if shown.is_of(&canary.backend) => 0.0,
        Some(shown) if shown.is_of(&facts.location.backend) => f64::INFINITY,
        _ => rand::random_range(0.0..1.0),
    })
}

/// What goes to the backend; `protocol` is what the connection is to change to.
fn onward<'a>(
    facts: &Facts<'a>,
    global: &Global,
    admitted: &Admitted,
    way: &Way<'_>,
    protocol: Option<&HeaderValue>,
) -> Result<Onward<'a>, StatusCode> {
    let parts: &'a Parts = facts.parts;
    let served = &facts.location.served;
    let policy = &served.policy;
    let target = target(facts.uri(), parts.uri.query(), facts.location.rewritten(facts.path));
    let asks = Asks { asked: facts.asked, client: facts.client, peer: facts.peer, id: facts.id };
    let mut headers = onward::onward(&parts.headers, policy.upstream.protocol, &asks, global)?;
    if let Some(protocol) = protocol {
        headers.push(header::UPGRADE, protocol.clone());
        headers.push(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if let Some(connection) = policy.upstream.connection.as_ref() {
        headers.push(header::CONNECTION, connection.clone());
    }
    if let Some(prefix) = &policy.upstream.prefix {
        headers.insert(HeaderName::from_static("x-forwarded-prefix"), prefix.clone());
    }
    // What the authority says is not the client's to say.
    for name in policy.auth.external.iter().flat_map(|external| &external.response_headers) {
        headers.remove(name);
    }
    if served.authority.is_some() {
        for name in ["ssl-client-verify", "ssl-client-subject-dn", "ssl-client-issuer-dn", "ssl-client-cert"]
        {
            headers.remove(&HeaderName::from_static(name));
        }
    }
    headers.extend(&admitted.headers);
    for (name, template) in &global.set_headers {
        if let Ok(value) = HeaderValue::from_str(&facts.fill(template)) {
            headers.insert(name.clone(), value);
        }
    }
    if let Some(status) = way.instead_of {
        explain(&mut headers, facts, status);
    }
    let host = match &policy.upstream.vhost {
        Some(vhost) => HeaderValue::from_str(&facts.fill(vhost)).map_err(|_| StatusCode::BAD_REQUEST)?,
        None => facts.asked.raw.clone(),
    };
    Ok(Onward { method: parts.method.clone(), target, host, headers })
}

/// Tells a default backend what it answers for.
fn explain(headers: &mut Fields, facts: &Facts<'_>, status: StatusCode) {
    let location = facts.location;
    let format = facts.header(&header::ACCEPT).unwrap_or_default().to_owned();
    let texts = [
        ("x-code", status.as_str().to_owned()),
        ("x-format", format),
        ("x-original-uri", facts.uri().to_owned()),
        ("x-namespace", location.ingress.namespace.clone()),
        ("x-ingress-name", location.ingress.name.clone()),
        ("x-service-name", location.backend.service.clone()),
        ("x-service-port", location.backend.port.clone()),
    ];
    for (name, text) in texts {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| id.len() <= 128 && id.to_str().is_ok());
    let new = || {
        let mut text = [0; 32];
        hex(rand::random(), &mut text);
        HeaderValue::from_bytes(&text)
    };
    given.cloned().or_else(|| new().ok()).unwrap_or(HeaderValue::from_static("-"))
}

/// A number's hexadecimal digits; formatting one of 128 bits costs as much as a look-up of a route.
fn hex(number: u128, out: &mut [u8; 32]) {
    for (at, digit) in out.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (124 - 4 * at)) as usize & 15];
    }
}

/// What the backend is asked for: the client's own words, or a rewritten path with the client's query.
fn target<'a>(sent: &'a str, query: Option<&str>, rewritten: Option<Vec<u8>>) -> Cow<'a, str> {
    let Some(path) = rewritten else { return sent.into() };
    // A capture may begin with a second slash; an authority it must not become.
    let path = percent_encode(&path, UNSAFE).to_string();
    let mut target = format!("/{}", path.trim_start_matches('/'));
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    target.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn rewritten_paths_stay_paths() {
        let to = |path: &str| target("/old?x=1", Some("x=1"), Some(path.into()));
        assert_eq!(to("/new"), "/new?x=1");
        assert_eq!(to("//evil.example/a b?c#d%"), "/evil.example/a%20b%3Fc%23d%25?x=1");
        assert_eq!(target("/old?x=1", Some("x=1"), None), "/old?x=1");
    }
}
