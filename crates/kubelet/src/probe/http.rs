//! HTTP requests of probes and hooks: HTTP/1.1, no certificate check, few redirects, short answers.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The start of the body.
    pub body: String,
}

/// A number, or the number of the container's port of that name.
///
/// # Errors
/// When there is no such port.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => {
            let known = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            match (known, name.parse::<i32>()) {
                (Some(known), _) => known.container_port,
                (None, Ok(n)) => n,
                (None, Err(_)) => return Err(format!("couldn't find port: {name}")),
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// The URL of an action.
///
/// # Errors
/// When its port is unknown or its parts make no URL.
pub fn url(action: &HTTPGetAction, container: &Container, ip: IpAddr) -> Result<Uri, String> {
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let host = match action.host.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_string(),
        None if ip.is_ipv6() => format!("[{ip}]"),
        None => ip.to_string(),
    };
    let port = port(&action.port, container)?;
    let path = action.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{scheme}://{host}:{port}{slash}{path}").parse().map_err(|e| format!("invalid probe URL: {e}"))
}

/// Sends a GET and reads the answer; redirects to the same host are followed.
///
/// # Errors
/// In Go's words, as events show them.
pub async fn get(action: &HTTPGetAction, url: Uri, timeout: Duration) -> Result<Answer, String> {
    let shown = url.to_string();
    match tokio::time::timeout(timeout, follow(action, url)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("Get \"{shown}\": {error}")),
        Err(_) => Err(format!(
            "Get \"{shown}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

async fn follow(action: &HTTPGetAction, first: Uri) -> Result<Answer, String> {
    let mut url = first.clone();
    for _ in 0..MAX_REDIRECTS {
        let (answer, location) = once(action, &url).await?;
        let redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(next) = location.filter(|_| redirect).and_then(|l| resolve(&url, &l)) else {
            return Ok(answer);
        };
        // A redirect to another host counts as success, unfollowed.
        if next.host() != first.host() {
            return Ok(answer);
        }
        url = next;
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let path = if location.starts_with('/') { location.to_string() } else { format!("/{location}") };
    let builder = Uri::builder().scheme(base.scheme_str()?).authority(base.authority()?.clone());
    builder.path_and_query(path).build().ok()
}

async fn once(action: &HTTPGetAction, url: &Uri) -> Result<(Answer, Option<String>), String> {
    let tls = url.scheme_str() == Some("https");
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = connect(host, port).await?;
    let request = request(action, url)?;
    if !tls {
        return exchange(stream, request).await;
    }
    let name = rustls::pki_types::ServerName::try_from(host.to_string()).map_err(|e| e.to_string())?;
    let config = tls::unverified().map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(stream, request).await
}

/// Connects; failures read as Go's dialer puts them.
///
/// # Errors
/// When nobody answers.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    TcpStream::connect((host, port)).await.map_err(|e| {
        let why = match e.raw_os_error() {
            Some(libc::ECONNREFUSED) => "connect: connection refused".to_string(),
            Some(libc::EHOSTUNREACH) => "connect: no route to host".to_string(),
            Some(libc::ENETUNREACH) => "connect: network is unreachable".to_string(),
            Some(libc::ETIMEDOUT) => "i/o timeout".to_string(),
            _ => e.to_string(),
        };
        format!("dial tcp {shown}: {why}")
    })
}

fn request(action: &HTTPGetAction, url: &Uri) -> Result<Request<Empty<bytes::Bytes>>, String> {
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().uri(path).body(Empty::new()).map_err(|e| e.to_string())?;
    let headers = request.headers_mut();
    for given in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(given.name.as_str()).map_err(|e| e.to_string())?;
        let value = HeaderValue::try_from(given.value.as_str()).map_err(|e| e.to_string())?;
        headers.append(name, value);
    }
    if !headers.contains_key(header::HOST) {
        let authority = url.authority().map_or("", |a| a.as_str());
        headers.insert(header::HOST, HeaderValue::try_from(authority).map_err(|e| e.to_string())?);
    }
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("kube-probe/1.33"));
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Empty<bytes::Bytes>>,
) -> Result<(Answer, Option<String>), String> {
    let text = |e: hyper::Error| if e.is_incomplete_message() { "EOF".to_string() } else { e.to_string() };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = super::AbortOnDrop(tokio::spawn(async move {
        // Its errors reach the sender as well.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(text)?;
    let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok()).map(String::from);
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    drop(connection);
    let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
    Ok((Answer { status, body }, location))
}
