//! From HTTP to verbs and back: who asks, may they, what do they ask for.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use storage::Store;

use crate::audit::{self, Audit, Record};
use crate::auth::{self, Auth, impersonate};
use crate::backend::Backend;
use crate::config::Config;
use crate::connect;
use crate::core::{Call, Core};
use crate::crd;
use crate::expire;
use crate::flow::{self, Flow};
use crate::identity::{Attributes, PeerAddress, UserInfo};
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::paths;
use crate::quota;
use crate::request::{self, Query, ResourcePath};
use crate::rest;
use crate::rest::answer::{Answer, JSON, Payload};
use crate::status::Status;

/// What can go wrong with a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bodies of requests and answers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Marks a request of a component of this process: it needs no credentials. Only [`crate::inprocess`] sets it; it
/// cannot come in from the network.
#[derive(Debug, Clone)]
pub struct Trusted(pub Arc<UserInfo>);

/// An API server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys or certificates are unusable.
    #[error("set up authentication: {0}")]
    Auth(#[from] auth::AuthError),
    /// The objects every cluster has could not be made.
    #[error("make the first objects of the cluster: {0}")]
    Bootstrap(Status),
    /// The audit log cannot be written.
    #[error("open the audit log {}: {error}", path.display())]
    Audit {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// The API server.
pub struct ApiServer {
    pub(crate) core: Arc<Core>,
    pub(crate) auth: Auth,
    objects: Arc<dyn Objects>,
    flow: Flow,
    audit: Option<Arc<Audit>>,
    metrics: Metrics,
    pub(crate) documents: paths::Documents,
}

impl Drop for ApiServer {
    /// Ends the watches of our own caches, which would hold the store open.
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

impl ApiServer {
    /// Sets up the server over a store and makes the objects that every cluster has.
    ///
    /// # Errors
    /// Unusable keys, a store that does not take writes.
    pub async fn new(config: Config, store: Arc<dyn Store>) -> Result<Arc<Self>, StartError> {
        let audit = config.audit.as_ref().map(|settings| {
            Audit::open(settings).map_err(|error| StartError::Audit { path: settings.path.clone(), error })
        });
        let audit = audit.transpose()?;
        let core = Arc::new(Core::new(config, store)?);
        let objects: Arc<dyn Objects> = Arc::new(Backend::new(core.clone()));
        let auth = auth::new(&core.config, objects.clone())?;
        auth::bootstrap::ensure(&core.config, objects.as_ref()).await.map_err(StartError::Bootstrap)?;
        let (definitions, revision) = crd::follow::load(&core).await.map_err(StartError::Bootstrap)?;
        tokio::spawn(crd::follow::run(core.clone(), definitions, revision));
        tokio::spawn(expire::run(core.clone()));
        tokio::spawn(quota::follow::run(core.clone()));
        let (metrics, documents) = (Metrics::default(), paths::Documents::default());
        Ok(Arc::new(ApiServer { core, auth, objects, flow: Flow::default(), audit, metrics, documents }))
    }

    /// Direct access to the objects, for code of this process that must not depend on HTTP.
    pub fn objects(&self) -> Arc<dyn Objects> {
        self.objects.clone()
    }

    /// The text that scrapers read.
    pub(crate) fn metrics(&self) -> String {
        self.metrics.render() + &self.audit.as_ref().map(|audit| audit.render()).unwrap_or_default()
    }

    /// Answers one request. Never fails: failures are Status objects.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let query = Query::parse(request.uri().query());
        let path = request::resource_path(request.uri().path());
        let attributes = request::attributes(request.method(), request.uri().path(), path.as_ref(), &query);
        let trace = Trace {
            id: audit::id_of(request.headers()),
            warnings: Arc::default(),
            record: OnceLock::new(),
            long_running: flow::is_long_running(&attributes, &query),
        };
        let result = self.route(request, &attributes, path, query, &trace).await;
        trace.answered(&result);
        let mut response = match result {
            Ok(answer) => respond(answer),
            Err(status) => respond_status(&status),
        };
        add_warnings(&mut response, &trace.warnings.lock());
        response.headers_mut().insert(audit::ID, trace.id.clone());
        self.metrics.count(&attributes, response.status().as_u16(), started.elapsed());
        response
    }

    async fn route(
        &self,
        request: Request<Body>,
        attributes: &Attributes,
        path: Option<ResourcePath>,
        query: Query,
        trace: &Trace,
    ) -> Result<Answer, Status> {
        let (parts, body) = request.into_parts();
        let inside = parts.extensions.get::<Trusted>().is_some();
        let user = self.user(&parts, attributes, trace).await?;
        let decision = self.auth.authorizer.authorize(&user, attributes).await;
        if let Some(record) = trace.record.get() {
            record.note("authorization.k8s.io/decision", if decision.allowed { "allow" } else { "forbid" });
            record.note("authorization.k8s.io/reason", &decision.reason);
        }
        if !decision.allowed {
            return Err(auth::forbidden(&user, attributes, &decision.reason));
        }
        let takes_place = !inside && !trace.long_running;
        let _place = if takes_place { Some(self.flow.enter(&user).await?) } else { None };
        let Some(path) = path else {
            return paths::answer(self, &parts, &query).await;
        };
        let registry = self.core.registry.load();
        let row =
            registry.get(&path.group, &path.version, &path.resource).ok_or_else(Status::path_not_found)?;
        if !row.namespaced && !path.namespace.is_empty() && !row.is_namespaces() {
            return Err(Status::path_not_found());
        }
        if row.namespaced && path.namespace.is_empty() && !cluster_wide(&parts.method, &path) {
            return Err(Status::method_not_allowed());
        }
        drop(registry);
        let access = (self.objects.clone(), self.auth.authorizer.clone());
        let mut call = Call::new(&self.core, row, &path, query, user, access);
        call.cx.warnings = trace.warnings.clone();
        if let Some(record) = trace.record.get() {
            call.cx.notes = record.notes.clone();
            call.record = Some(record.clone());
        }
        if let Some(warning) = call.row.warning.clone() {
            call.cx.warn(warning);
        }
        call.headers = parts.headers.clone();
        if connect::is_connection(&call) {
            return connect::connect(&call, Request::from_parts(parts, body)).await;
        }
        let bytes = crate::body::read(body).await?;
        if let Some(record) = &call.record {
            record.request(&parts.headers, &bytes);
        }
        rest::dispatch(call, &parts.method, bytes).await
    }

    /// Who asks, impersonation included; the audit log hears of it.
    async fn user(&self, parts: &Parts, attributes: &Attributes, trace: &Trace) -> Result<UserInfo, Status> {
        if let Some(trusted) = parts.extensions.get::<Trusted>() {
            trace.begin(self.audit.as_ref(), parts, attributes, &trusted.0);
            return Ok(UserInfo::clone(&trusted.0));
        }
        let found = self.auth.authenticator.authenticate(parts).await.inspect_err(|status| {
            trace.refused(self.audit.as_ref(), parts, attributes, status);
        })?;
        let user = found.unwrap_or_else(UserInfo::anonymous);
        trace.begin(self.audit.as_ref(), parts, attributes, &user);
        let acting = impersonate::acting(&parts.headers, &user, self.auth.authorizer.as_ref()).await?;
        if let (Some(record), Some(acting)) = (trace.record.get(), &acting) {
            record.impersonates(acting);
        }
        Ok(acting.unwrap_or(user))
    }
}

/// What goes along with a request besides the request.
struct Trace {
    id: HeaderValue,
    warnings: Arc<Mutex<Vec<String>>>,
    /// Set once it is known who asks, if the audit log is to say something of it.
    record: OnceLock<Arc<Record>>,
    /// Lasts as long as its client wishes.
    long_running: bool,
}

impl Trace {
    fn head(&self, parts: &Parts, attributes: &Attributes, user: &UserInfo) -> audit::Head {
        let agent = parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let uri = parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string);
        audit::Head {
            id: self.id.to_str().unwrap_or_default().to_owned(),
            uri,
            sources: sources(parts),
            agent: agent.to_owned(),
            received: jiff::Timestamp::now(),
            attributes: attributes.clone(),
            user: user.clone(),
        }
    }

    fn begin(&self, audit: Option<&Arc<Audit>>, parts: &Parts, attributes: &Attributes, user: &UserInfo) {
        let Some(audit) = audit else { return };
        if let Some(record) = Record::begin(audit, self.head(parts, attributes, user)) {
            record.received();
            let _ = self.record.set(record);
        }
    }

    /// Credentials that do not hold.
    fn refused(&self, audit: Option<&Arc<Audit>>, parts: &Parts, attributes: &Attributes, status: &Status) {
        let Some(audit) = audit else { return };
        if let Some(record) = Record::begin(audit, self.head(parts, attributes, &UserInfo::default())) {
            record.refused(status);
        }
    }

    fn answered(&self, result: &Result<Answer, Status>) {
        let Some(record) = self.record.get() else { return };
        match result {
            Ok(answer) => {
                let bytes = if let Payload::Whole(bytes) = &answer.payload { Some(bytes) } else { None };
                record.response(answer.code, answer.content_type, bytes);
            }
            Err(status) => {
                record.response(status.code(), JSON, Some(&status.to_value().to_string().into()));
            }
        }
        if self.long_running {
            record.started();
        }
    }
}

/// Where a request comes from: what proxies say, then who connected.
fn sources(parts: &Parts) -> Vec<String> {
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let told = header("x-forwarded-for").split(',').chain([header("x-real-ip")]);
    let peer = parts.extensions.get::<PeerAddress>().map(|peer| peer.0);
    let mut all: Vec<IpAddr> = Vec::new();
    for address in told.filter_map(|text| text.trim().parse().ok()).chain(peer) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all.iter().map(ToString::to_string).collect()
}

/// Collections of namespaced kinds can be read over all namespaces, nothing else.
fn cluster_wide(method: &Method, path: &ResourcePath) -> bool {
    path.name.is_empty() && matches!(*method, Method::GET | Method::HEAD)
}

fn respond(answer: Answer) -> Response<Body> {
    let body = match answer.payload {
        Payload::Whole(bytes) => full(bytes),
        Payload::Stream(stream) => StreamBody::new(stream.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync(),
        Payload::Raw(response) => return *response,
    };
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(answer.code).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, private"));
    response
}

/// A failure as HTTP.
pub fn respond_status(status: &Status) -> Response<Body> {
    let mut response =
        respond(Answer::bytes(status.code(), JSON, status.to_value().to_string().into_bytes()));
    if let Some(seconds) = status.details().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// `Warning: 299 - "text"`, once per text.
fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    const WARNING: HeaderName = HeaderName::from_static("warning");
    let mut seen: Vec<&String> = Vec::new();
    for text in warnings {
        if seen.contains(&text) {
            continue;
        }
        seen.push(text);
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
