//! Objects of the API, a data plane that serves them on loopback, and servers that say what they were asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use client::ObjectKey;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::annotations::PREFIX;
use crate::build::{self, Objects, Problems};
use crate::certificates::{self, Acceptors, ByName};
use crate::front::{self, Front, Stop, Tls};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::record::Log;
use crate::state::State;

/// More than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(20);
pub const SETTINGS: &str = "ingress-nginx-controller";

pub fn read<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

pub fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"number": 8080}}})
}

pub fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": backend(service)})
}

pub fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

pub fn ingress(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})
}

/// An Ingress of host `h`, all paths, to Service `a`, with annotations by their short names.
pub fn annotated(pairs: &[(&str, &str)]) -> Value {
    with(ingress("x", json!({"rules": [rule("h", &[path("/", "Prefix", "a")])]})), pairs)
}

/// Sets annotations by their short names.
pub fn with(mut ingress: Value, pairs: &[(&str, &str)]) -> Value {
    for (name, value) in pairs {
        ingress["metadata"]["annotations"][format!("{PREFIX}{name}")] = json!(value);
    }
    ingress
}

/// A Service whose endpoints are these.
pub fn service(objects: &mut Objects, name: &str, endpoints: &[SocketAddr]) {
    let service: Arc<Service> = read(json!({
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"clusterIP": "127.0.0.1", "ports": [{"name": "web", "port": 8080}, {"name": "other", "port": 81}]},
    }));
    objects.services.insert(ObjectKey::of(&*service), service);
    objects.slices.retain(|slice| !slice.metadata.name.as_ref().unwrap().starts_with(&format!("{name}-")));
    for (i, endpoint) in endpoints.iter().enumerate() {
        objects.slices.push(read::<EndpointSlice>(json!({
            "metadata": {"name": format!("{name}-{i}"), "namespace": "ns",
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": endpoint.port()}],
            "endpoints": [{"addresses": [endpoint.ip()]}],
        })));
    }
}

pub fn secret(objects: &mut Objects, name: &str, data: &[(&str, &[u8])]) {
    static VERSION: AtomicU32 = AtomicU32::new(1);
    let data = data.iter().map(|(k, v)| ((*k).to_owned(), k8s_openapi::ByteString(v.to_vec()))).collect();
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.namespace = Some("ns".into());
    secret.metadata.name = Some(name.into());
    secret.metadata.resource_version = Some(VERSION.fetch_add(1, Ordering::Relaxed).to_string());
    objects.secrets.insert(ObjectKey::of(&secret), Arc::new(secret));
}

pub fn config(objects: &mut Objects, name: &str, data: &[(&str, &str)]) {
    let data: BTreeMap<String, String> = data.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let mut config = ConfigMap { data: Some(data), ..ConfigMap::default() };
    config.metadata.namespace = Some("ns".into());
    config.metadata.name = Some(name.into());
    objects.configs.insert(ObjectKey::of(&config), Arc::new(config));
    objects.settings = Some(ObjectKey::new("ns", SETTINGS));
}

pub async fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// A server that says who it is and what it was asked; `?status=418` chooses its status, `?header=name:value` adds one.
pub async fn echo(name: &'static str) -> SocketAddr {
    let listener = loopback().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| told(name, address, request));
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(async move { connection.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

/// What an echo server answers.
pub async fn told(
    name: &str,
    pod: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let mut headers = serde_json::Map::new();
    for (name, value) in &parts.headers {
        headers.insert(name.as_str().into(), String::from_utf8_lossy(value.as_bytes()).into_owned().into());
    }
    let said = json!({
        "service": name, "pod": pod.to_string(), "method": parts.method.as_str(), "path": parts.uri.to_string(),
        "headers": headers, "body": String::from_utf8_lossy(&body), "proto": format!("{:?}", parts.version),
    });
    let mut response = Response::new(Full::new(Bytes::from(said.to_string())));
    for (key, value) in form(parts.uri.query().unwrap_or_default()) {
        match key.as_str() {
            "status" => *response.status_mut() = StatusCode::from_u16(value.parse().unwrap()).unwrap(),
            "header" => {
                let (name, value) = value.split_once(':').unwrap();
                response.headers_mut().append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            _ => {}
        }
    }
    Ok(response)
}

fn form(query: &str) -> Vec<(String, String)> {
    let plain = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (plain(k), plain(v))).collect()
}

/// An address where nobody listens: its port is held by a socket that does not.
pub fn nobody() -> (SocketAddr, tokio::net::TcpSocket) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// Reads an answer that ends with its connection.
    pub fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        Self { status, headers, body: body.to_owned() }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// What the echo server was asked.
    #[track_caller]
    pub fn told(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The Service that answered; the status where none did.
    pub fn service(&self) -> String {
        let told = serde_json::from_str::<Value>(&self.body).ok();
        told.and_then(|v| Some(v["service"].as_str()?.to_owned())).unwrap_or_else(|| self.status.to_string())
    }

    /// A header that the backend got.
    #[track_caller]
    pub fn sent(&self, name: &str) -> String {
        self.told()["headers"][name].as_str().unwrap_or_default().to_owned()
    }
}

/// A request.
pub struct Ask<'a> {
    world: &'a World,
    method: &'static str,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    tls: bool,
    client: Option<Arc<rustls::ClientConfig>>,
    sni: Option<String>,
}

impl Ask<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self.method = "POST";
        self
    }

    pub fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// With a certificate to show.
    pub fn shows(mut self, client: Arc<rustls::ClientConfig>) -> Self {
        self.client = Some(client);
        self.tls()
    }

    pub fn sni(mut self, name: &str) -> Self {
        self.sni = Some(name.into());
        self
    }

    pub async fn send(self) -> Answer {
        let Self { world, method, host, path, headers, body, tls, client, sni } = self;
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(&body);
        if !tls {
            return Answer::parse(
                &talk(TcpStream::connect(world.plain).await.unwrap(), text.as_bytes()).await,
            );
        }
        let config = client.unwrap_or_else(|| tls::unverified().unwrap());
        let stream = TcpStream::connect(world.secure).await.unwrap();
        let name = ServerName::try_from(sni.unwrap_or(host)).unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        Answer::parse(&talk(stream, text.as_bytes()).await)
    }
}

/// Sends bytes and reads until the connection ends.
pub async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    // The answer may come, and the connection end, before all is sent.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("an end in time");
    drop(read);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A controller's data plane without a controller.
pub struct World {
    pub objects: Objects,
    pub state: State,
    pub problems: Problems,
    pub metrics: Arc<Metrics>,
    pub lines: std::sync::mpsc::Receiver<String>,
    tls: Tls,
    names: Arc<ByName>,
    pub plain: SocketAddr,
    pub secure: SocketAddr,
    pub stop: Stop,
    pub serving: JoinHandle<()>,
}

impl World {
    /// Serves these Ingresses; Services `a` to `d` have an endpoint each that says its name.
    pub async fn start(ingresses: &[Value]) -> Self {
        let mut objects = Objects::default();
        for name in ["a", "b", "c", "d"] {
            service(&mut objects, name, &[echo(name).await]);
        }
        objects.ingresses = ingresses.iter().cloned().map(read::<Ingress>).collect();
        Self::of(objects).await
    }

    pub async fn of(objects: Objects) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(crate::table::Table::default()));
        let fallback = certificates::fake().unwrap();
        let names = Arc::new(ByName { table: table.clone(), fallback });
        let acceptors = Acceptors::new(names.clone(), (true, true, true)).unwrap();
        let tls = Tls { acceptors: Arc::new(ArcSwap::from_pointee(acceptors)), table: table.clone() };
        let (plain, secure) = (loopback().await, loopback().await);
        let (log, lines) = Log::to_test();
        let metrics = Arc::new(Metrics::default());
        let proxy = Arc::new(Proxy::new(table, metrics.clone(), log).unwrap());
        let stop = Stop::default();
        let (plain_at, secure_at) = (plain.local_addr().unwrap(), secure.local_addr().unwrap());
        let mut world = Self {
            objects,
            state: State::default(),
            problems: Problems::new(),
            metrics,
            lines,
            tls: tls.clone(),
            names,
            plain: plain_at,
            secure: secure_at,
            stop: stop.clone(),
            serving: tokio::spawn(async {}),
        };
        world.follow();
        world.serving = tokio::spawn(async move {
            tokio::join!(
                front::serve(plain, Front { tls: None, port: 80 }, proxy.clone(), stop.clone()),
                front::serve(secure, Front { tls: Some(tls), port: 443 }, proxy.clone(), stop.clone()),
            );
        });
        world
    }

    /// Changes objects, and the table with them.
    pub fn change(&mut self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.objects);
        self.follow();
    }

    fn follow(&mut self) {
        let (table, problems) = build::table(&self.objects, &mut self.state);
        self.problems = problems;
        let global = table.global.clone();
        let versions = (global.tls12, global.tls13, global.http2);
        if !self.tls.acceptors.load().are(versions) {
            self.tls.acceptors.store(Arc::new(Acceptors::new(self.names.clone(), versions).unwrap()));
        }
        self.tls.table.store(Arc::new(table));
    }

    pub fn set(&mut self, ingresses: &[Value]) {
        let ingresses = ingresses.iter().cloned().map(read::<Ingress>).collect();
        self.change(|objects| objects.ingresses = ingresses);
    }

    #[track_caller]
    pub fn fine(&self) {
        assert_eq!(self.problems, Problems::new());
    }

    pub fn ask(&self, host: &str, path: &str) -> Ask<'_> {
        Ask {
            world: self,
            method: "GET",
            host: host.into(),
            path: path.into(),
            headers: Vec::new(),
            body: String::new(),
            tls: false,
            client: None,
            sni: None,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("h", path).send().await
    }

    pub async fn raw(&self, request: &[u8]) -> String {
        talk(TcpStream::connect(self.plain).await.unwrap(), request).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.closing.cancel();
    }
}
