//! The check when an Ingress is written: what the controller would refuse is refused there, with the field and the
//! reason, in place of an Event that nobody reads.
//!
//! The add-on makes an authority of its own, whose certificate the API server is told and whose key this server finds in
//! Secret `ingress-nginx-admission`. An Ingress that was written while nobody could be asked is told of in Events as
//! before. <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::ObjectKey;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::Ingress;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::annotations::{PREFIX, Policy};
use crate::certificates;
use crate::table::pattern;

/// A review, which holds an object twice, and no object is larger than 3 MiB.
const LARGEST: usize = 8 << 20;
/// Reviews at a time; the API server's own are few.
const AT_ONCE: usize = 64;
/// How long a review may take to arrive.
const ARRIVES: Duration = Duration::from_secs(10);

/// What is wrong with an Ingress: a field and the reason.
pub fn faults(ingress: &Ingress) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let annotations = ingress.metadata.annotations.as_ref();
    let policy = Policy::parse(&Policy::default(), annotations, |problem| {
        if problem.refused {
            out.push((format!("metadata.annotations[{}]", problem.annotation), problem.why));
        }
    });
    let spec = ingress.spec.as_ref();
    for (r, rule) in spec.into_iter().flat_map(|spec| spec.rules.iter().flatten().enumerate()) {
        for (p, path) in rule.http.iter().flat_map(|http| http.paths.iter().enumerate()) {
            let field = format!("spec.rules[{r}].http.paths[{p}].path");
            let text = path.path.as_deref().unwrap_or_default();
            if policy.routing.regex
                && let Err(why) = pattern(text)
            {
                out.push((field, why));
            }
        }
    }
    if policy
        .routing
        .rewrite
        .as_ref()
        .is_some_and(|rewrite| rewrite.0.iter().any(|part| part.capture.is_some()))
    {
        let paths = spec.into_iter().flat_map(|spec| spec.rules.iter().flatten());
        let paths = paths.flat_map(|rule| rule.http.iter().flat_map(|http| &http.paths));
        if paths.clone().count() > 0
            && paths.clone().all(|path| !path.path.as_deref().unwrap_or_default().contains('('))
        {
            let why = "names a capture, but no path has a group in parentheses";
            out.push((format!("metadata.annotations[{PREFIX}rewrite-target]"), why.to_owned()));
        }
    }
    out
}

/// The answer to a review; `ours` says whether an Ingress is this controller's.
fn review(review: &Value, ours: impl Fn(&Ingress) -> bool) -> Result<Value, String> {
    let request = &review["request"];
    let uid = request["uid"].as_str().ok_or("it has no request.uid")?;
    let mut response = json!({"uid": uid, "allowed": true});
    if request["kind"]["kind"] == "Ingress" && !request["object"].is_null() {
        let ingress: Ingress =
            serde_json::from_value(request["object"].clone()).map_err(|e| e.to_string())?;
        let faults = if ours(&ingress) { faults(&ingress) } else { Vec::new() };
        if !faults.is_empty() {
            let text =
                faults.iter().map(|(field, why)| format!("{field}: {why}")).collect::<Vec<_>>().join("; ");
            response["allowed"] = json!(false);
            response["status"] = json!({"code": 400, "reason": "BadRequest", "message": text});
        }
    }
    Ok(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

type Ours = dyn Fn(&Ingress) -> bool + Send + Sync;
type Find = dyn Fn() -> Option<Arc<Secret>> + Send + Sync;

/// Shows whatever certificate the Secret has now.
struct OfSecret(Box<Find>);

impl std::fmt::Debug for OfSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OfSecret")
    }
}

impl ResolvesServerCert for OfSecret {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let secret = (self.0)()?;
        certificates::read(&secret)
            .map(Arc::new)
            .map_err(|why| tracing::warn!(why, "the certificate for admission"))
            .ok()
    }
}

/// Answers reviews with the certificate of the Secret that `find` gives, until it is dropped.
pub(crate) async fn serve(listener: TcpListener, find: Box<Find>, ours: Arc<Ours>) {
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    let config = match config {
        Ok(config) => config.with_no_client_auth().with_cert_resolver(Arc::new(OfSecret(find))),
        Err(error) => return tracing::error!(%error, "no TLS for admission"),
    };
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok(place) = room.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (acceptor, ours) = (acceptor.clone(), ours.clone());
        tokio::spawn(async move {
            let _place = place;
            let served = async {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: Request<Incoming>| answer(request, ours.clone()));
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(ARRIVES).keep_alive(false);
                // Whoever breaks off has no answer.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            };
            let _ = tokio::time::timeout(2 * ARRIVES, served).await;
        });
    }
}

async fn answer(request: Request<Incoming>, ours: Arc<Ours>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match Limited::new(request.into_body(), LARGEST).collect().await {
        Err(_) => (StatusCode::PAYLOAD_TOO_LARGE, "the review is too large".to_owned()),
        Ok(body) => {
            let parsed = serde_json::from_slice::<Value>(&body.to_bytes()).map_err(|e| e.to_string());
            match parsed.and_then(|value| review(&value, |ingress| ours(ingress))) {
                Ok(answer) => (StatusCode::OK, answer.to_string()),
                Err(why) => (StatusCode::BAD_REQUEST, why),
            }
        }
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The authority and the certificate of the check, as the add-on hands them out.
#[derive(Debug)]
pub(crate) struct Identity {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// A new one for a Service.
    ///
    /// # Errors
    /// When none can be made.
    pub fn new(service: &ObjectKey) -> Result<Self, rcgen::Error> {
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.distinguished_name.push(rcgen::DnType::CommonName, "ingress-nginx-admission");
        let key = rcgen::KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        let issuer = rcgen::Issuer::new(params, key);
        let own = format!("{}.{}.svc", service.name, service.namespace);
        let mut params = rcgen::CertificateParams::new(vec![own.clone(), format!("{own}.cluster.local")])?;
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        let key = rcgen::KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Self { authority, certificate, key: key.serialize_pem() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn ingress(annotations: Value, path: &str) -> Value {
        let backend = json!({"service": {"name": "a", "port": {"number": 80}}});
        json!({
            "metadata": {"name": "x", "namespace": "ns", "annotations": annotations},
            "spec": {"rules": [{"http": {"paths": [
                {"path": path, "pathType": "ImplementationSpecific", "backend": backend},
            ]}}]},
        })
    }

    fn asked(object: &Value, ours: bool) -> Value {
        let request = json!({"request": {"uid": "7", "kind": {"kind": "Ingress"}, "object": object}});
        review(&request, |_| ours).unwrap()["response"].clone()
    }

    #[test]
    fn what_would_be_refused_is_refused_with_its_field() {
        for (annotations, path, field, reason) in [
            (json!({format!("{PREFIX}proxy-body-size"): "big"}), "/", "proxy-body-size]", "no size"),
            (json!({format!("{PREFIX}server-snippet"): "x"}), "/", "server-snippet]", "custom-headers"),
            (
                json!({format!("{PREFIX}use-regex"): "true"}),
                "/a(",
                "spec.rules[0].http.paths[0].path",
                "no usable expression",
            ),
            (
                json!({format!("{PREFIX}rewrite-target"): "/$1"}),
                "/a",
                "rewrite-target]",
                "no path has a group",
            ),
            (json!({format!("{PREFIX}auth-type"): "basic"}), "/", "auth-secret]", "needs the Secret"),
        ] {
            let answer = asked(&ingress(annotations.clone(), path), true);
            let message = answer["status"]["message"].as_str().unwrap_or_default();
            assert!(
                answer["allowed"] == false && message.contains(field) && message.contains(reason),
                "{answer}"
            );
            assert_eq!(asked(&ingress(annotations, path), false)["allowed"], true, "not ours to judge");
        }
        for fine in [json!({}), json!({format!("{PREFIX}no-such-thing"): "x", "other/annotation": "y"})] {
            assert_eq!(asked(&ingress(fine, "/"), true), json!({"uid": "7", "allowed": true}));
        }
    }

    #[test]
    fn a_review_that_is_none_is_an_error_and_a_deletion_is_fine() {
        assert!(review(&json!({}), |_| true).is_err());
        let gone = json!({"request": {"uid": "7", "kind": {"kind": "Ingress"}, "object": null}});
        assert_eq!(review(&gone, |_| true).unwrap()["response"]["allowed"], true);
    }
}
