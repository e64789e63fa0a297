//! A small registry: manifests, blobs, tokens, and trouble on demand.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use image::digest::Digest;
use serde_json::json;

/// What it serves and how it misbehaves.
#[derive(Default)]
pub struct Contents {
    /// By path below `/v2/`.
    pub objects: HashMap<String, (String, Bytes)>,
    /// `user:password` that the token service asks for.
    pub login: Option<String>,
    /// Tokens at all: every request needs one.
    pub tokens: bool,
    /// Answers 503 this many more times to requests for blobs.
    pub stumble: usize,
    /// Requests seen.
    pub log: Vec<String>,
}

pub struct Registry {
    pub address: SocketAddr,
    pub contents: Arc<Mutex<Contents>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let contents = Arc::new(Mutex::new(Contents::default()));
        let shared = contents.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer(&shared, &request, address);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, contents, task }
    }

    /// Puts an image in; gives the manifest's digest.
    pub fn push(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> Digest {
        let blobs: Vec<Vec<u8>> = layers.iter().map(|layer| super::gzip(layer)).collect();
        let config = super::config(layers);
        let manifest = super::manifest(&config, &blobs);
        for blob in blobs.iter().chain([&config]) {
            self.put(&format!("{repository}/blobs/{}", Digest::of(blob)), "application/octet-stream", blob);
        }
        self.tag(repository, tag, "application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    pub fn tag(&self, repository: &str, tag: &str, kind: &str, document: &[u8]) -> Digest {
        let digest = Digest::of(document);
        self.put(&format!("{repository}/manifests/{tag}"), kind, document);
        self.put(&format!("{repository}/manifests/{digest}"), kind, document);
        digest
    }

    pub fn put(&self, path: &str, kind: &str, bytes: &[u8]) {
        let object = (kind.to_owned(), Bytes::copy_from_slice(bytes));
        self.contents.lock().unwrap().objects.insert(path.to_owned(), object);
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Requests for blobs and manifests so far.
    pub fn requests(&self) -> Vec<String> {
        let contents = self.contents.lock().unwrap();
        contents
            .log
            .iter()
            .filter(|path| path.contains("/blobs/") || path.contains("/manifests/"))
            .cloned()
            .collect()
    }
}

fn reply(status: StatusCode, kind: &str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind.parse().unwrap());
    response
}

fn trouble(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let body = json!({"errors": [{"code": code, "message": format!("{code} said the registry")}]});
    reply(status, "application/json", body.to_string().into())
}

fn answer(
    shared: &Mutex<Contents>,
    request: &Request<Incoming>,
    address: SocketAddr,
) -> Response<Full<Bytes>> {
    let mut contents = shared.lock().unwrap();
    let path = request.uri().path().to_owned();
    contents.log.push(path.clone());
    let authorization =
        request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    if path == "/token" {
        return token(&contents, request.uri().query().unwrap_or_default(), authorization.as_deref());
    }
    let name = path.strip_prefix("/v2/").unwrap_or_default();
    let needed = format!(
        "Bearer token-for-{}",
        name.split("/manifests/").next().unwrap().split("/blobs/").next().unwrap()
    );
    if contents.tokens && authorization.as_deref() != Some(needed.as_str()) {
        let mut response = trouble(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        return response;
    }
    if name.is_empty() {
        return reply(StatusCode::OK, "application/json", Bytes::from_static(b"{}"));
    }
    if contents.stumble > 0 && name.contains("/blobs/") {
        contents.stumble -= 1;
        return reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", Bytes::from_static(b"busy"));
    }
    match contents.objects.get(name) {
        Some((kind, bytes)) => reply(StatusCode::OK, kind, bytes.clone()),
        None => trouble(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
    }
}

/// The token service: a token is good for the repository it was asked for.
fn token(contents: &Contents, query: &str, authorization: Option<&str>) -> Response<Full<Bytes>> {
    if let Some(login) = &contents.login {
        use base64::Engine as _;
        let expected = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
        if authorization != Some(expected.as_str()) {
            return reply(
                StatusCode::UNAUTHORIZED,
                "text/plain",
                Bytes::from_static(b"incorrect username or password"),
            );
        }
    }
    let query = query.replace("%3A", ":").replace("%2F", "/");
    let scope = query.split("scope=repository:").nth(1).unwrap_or_default();
    let repository = scope.split(':').next().unwrap_or_default();
    let body = json!({"token": format!("token-for-{repository}"), "expires_in": 300});
    reply(StatusCode::OK, "application/json", body.to_string().into())
}
