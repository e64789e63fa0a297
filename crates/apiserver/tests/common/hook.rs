//! A webhook's server: TLS by the cluster's authority, answers by a function, and what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Fixture;

/// Code and body for a path and a review; `None` never answers.
pub type Answer = fn(&str, &Value) -> Option<(u16, String)>;

pub struct Hook {
    asked: Arc<Mutex<Vec<Value>>>,
    port: u16,
}

async fn serve(
    asked: Arc<Mutex<Vec<Value>>>,
    answer: Answer,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    asked.lock().unwrap().push(review["request"].clone());
    match answer(&path, &review) {
        Some((code, text)) => Response::builder().status(code).body(Full::from(text)).unwrap(),
        None => std::future::pending().await,
    }
}

impl Hook {
    pub async fn start(f: &Fixture, answer: Answer) -> Self {
        let (_, _, certificate, key) = f.pki.issue("hook", &[], &["127.0.0.1"]);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let (acceptor, listener) =
            (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let hook = Hook { asked: Arc::default(), port: listener.local_addr().unwrap().port() };
        let asked = hook.asked.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, asked) = (acceptor.clone(), asked.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| {
                        let asked = asked.clone();
                        async move { Ok::<_, Infallible>(serve(asked, answer, request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        hook
    }

    /// `clientConfig` of a path.
    pub fn client(&self, f: &Fixture, path: &str) -> Value {
        let url = format!("https://127.0.0.1:{}{path}", self.port);
        json!({"url": url, "caBundle": STANDARD.encode(&f.pki.ca_pem)})
    }

    /// The requests since the last look.
    pub fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}
