//! One HTTPS request to a webhook, of admission or of conversion: its `clientConfig` says where, the caller says what.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::connect::dial;
use crate::connect::target::endpoint;
use crate::kinds::value::text;
use crate::objects::Objects;

/// Answers beyond this size, and beyond four times that of the question, are no answers.
const LIMIT: usize = 8 << 20;

/// Where a webhook is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The name its certificate is for.
    name: String,
    port: u16,
    path: String,
    /// Namespace and name of the Service, unless the place is a URL.
    service: Option<(String, String)>,
}

impl Place {
    fn of(config: &Value) -> Result<Self, String> {
        let service = &config["service"];
        if service.is_object() {
            let (namespace, name) = (text(service, "namespace"), text(service, "name"));
            let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
            let path = format!("/{}", text(service, "path").trim_start_matches('/'));
            let service = Some((namespace.to_owned(), name.to_owned()));
            return Ok(Place { name: format!("{name}.{namespace}.svc"), port, path, service });
        }
        let url = text(config, "url");
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
        let host = host.ok_or_else(|| format!("url {url:?} is not one of https with a host"))?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let name = host.trim_matches(['[', ']']).to_owned();
        Ok(Place { name, port: uri.port_u16().unwrap_or(443), path, service: None })
    }

    fn url(&self) -> String {
        format!("https://{}:{}{}", self.name, self.port, self.path)
    }

    /// Address and port to dial.
    async fn address(&self, objects: &dyn Objects) -> Result<(String, u16), String> {
        match &self.service {
            None => Ok((self.name.clone(), self.port)),
            Some((namespace, name)) => {
                let found = endpoint(objects, namespace, name, &self.port.to_string()).await;
                found.map_err(|status| status.message().to_owned())
            }
        }
    }
}

/// Sends a JSON document and gives the JSON of the answer.
///
/// # Errors
/// What went wrong, as a sentence.
pub async fn post(
    objects: &dyn Objects,
    config: &Value,
    body: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let mut place = Place::of(config)?;
    let and = if place.path.contains('?') { '&' } else { '?' };
    place.path.push_str(&format!("{and}timeout={}s", timeout.as_secs()));
    let work = exchange(objects, &place, config, body);
    let outcome = tokio::time::timeout(timeout, work).await;
    let outcome = outcome.unwrap_or_else(|_| Err("context deadline exceeded".into()));
    outcome.map_err(|why| format!("Post {:?}: {why}", place.url()))
}

async fn exchange(
    objects: &dyn Objects,
    place: &Place,
    config: &Value,
    body: &Value,
) -> Result<Value, String> {
    let (host, port) = place.address(objects).await?;
    let tls = trusting(text(config, "caBundle"))?;
    let stream = dial::open(&host, port, Some((Arc::new(tls), &place.name))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let body = body.to_string();
    let limit = LIMIT.max(4 * body.len());
    let request = Request::post(&place.path)
        .header(HOST, format!("{}:{}", place.name, place.port))
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json, */*")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let code = response.status();
    let bytes =
        Limited::new(response.into_body(), limit).collect().await.map_err(|e| e.to_string())?.to_bytes();
    connection.abort();
    if !code.is_success() {
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).trim().to_owned();
        return Err(format!(
            "an error on the server ({said:?}, status {code}) has prevented the request from succeeding"
        ));
    }
    serde_json::from_slice(&bytes).map_err(|e| format!("the answer is no JSON: {e}"))
}

/// TLS that trusts the authorities of a bundle (base64 of PEM) alone.
fn trusting(bundle: &str) -> Result<rustls::ClientConfig, String> {
    if bundle.is_empty() {
        return Err(
            "clientConfig.caBundle is empty: name the authority that signed the webhook's certificate".into(),
        );
    }
    let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
        roots.add(certificate).map_err(|e| format!("caBundle: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn places() {
        let service = json!({"service": {"namespace": "ns", "name": "hook", "path": "check"}});
        assert_eq!(Place::of(&service).unwrap().url(), "https://hook.ns.svc:443/check");
        let url = json!({"url": "https://[::1]:8443/a?b=c"});
        let place = Place::of(&url).unwrap();
        assert_eq!((place.name.as_str(), place.port, place.path.as_str()), ("::1", 8443, "/a?b=c"));
        for bad in ["http://a/", "nonsense", ""] {
            assert!(Place::of(&json!({"url": bad})).is_err(), "{bad}");
        }
    }

    #[test]
    fn bundles() {
        assert!(trusting("").unwrap_err().contains("caBundle"));
        assert!(trusting("!").is_err());
    }
}
