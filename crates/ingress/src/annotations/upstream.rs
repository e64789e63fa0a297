//! How a backend is spoken to: its protocol and TLS, time limits, sizes, repeats, and what it is told of the client.

use std::time::Duration;

use http::HeaderValue;

use super::value::{boolean, number, plain, reference, size, timeout};
use super::{Annotation, Policy};
use crate::variables::Template;

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Grpc,
}

/// When a request is sent to another endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Next {
    pub error: bool,
    pub timeout: bool,
    pub non_idempotent: bool,
    pub statuses: Vec<u16>,
    pub tries: u32,
    pub within: Option<Duration>,
}

/// TLS towards a backend (`proxy-ssl-*`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct BackendTls {
    /// `namespace/name` of the Secret with `ca.crt`, and `tls.crt` and `tls.key` to show.
    pub secret: Option<(Option<String>, String)>,
    pub verify: bool,
    pub name: Option<String>,
}

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    pub protocol: Protocol,
    pub tls: bool,
    pub backend_tls: BackendTls,
    pub connect: Duration,
    pub send: Duration,
    pub read: Duration,
    /// Bytes of a request's body; none is without limit.
    pub body_size: Option<u64>,
    pub next: Next,
    pub vhost: Option<Template>,
    pub prefix: Option<HeaderValue>,
    pub connection: Option<HeaderValue>,
    /// Through the Service's own address.
    pub service: bool,
}

impl Default for Upstream {
    fn default() -> Self {
        let next = Next {
            error: true,
            timeout: true,
            non_idempotent: false,
            statuses: vec![],
            tries: 3,
            within: None,
        };
        Self {
            protocol: Protocol::Http,
            tls: false,
            backend_tls: BackendTls::default(),
            connect: Duration::from_secs(5),
            send: Duration::from_secs(60),
            read: Duration::from_secs(60),
            body_size: Some(1 << 20),
            next,
            vhost: None,
            prefix: None,
            connection: None,
            service: false,
        }
    }
}

fn protocol(policy: &mut Policy, value: &str) -> Result<(), String> {
    let (protocol, tls) = match value.to_ascii_uppercase().as_str() {
        "HTTP" | "AUTO_HTTP" => (Protocol::Http, false),
        "HTTPS" => (Protocol::Http, true),
        "GRPC" => (Protocol::Grpc, false),
        "GRPCS" => (Protocol::Grpc, true),
        "FCGI" => {
            return Err(
                "\"FCGI\" is not supported: put a server that speaks HTTP before the application".into()
            );
        }
        _ => return Err(format!("{value:?} is none of HTTP, HTTPS, GRPC, GRPCS, AUTO_HTTP")),
    };
    (policy.upstream.protocol, policy.upstream.tls) = (protocol, tls);
    Ok(())
}

fn next(policy: &mut Policy, value: &str) -> Result<(), String> {
    let mut next = Next {
        error: false,
        timeout: false,
        non_idempotent: false,
        statuses: vec![],
        ..policy.upstream.next.clone()
    };
    for word in value.split_whitespace() {
        match word {
            "error" => next.error = true,
            "timeout" => next.timeout = true,
            "invalid_header" => next.error = true,
            "non_idempotent" => next.non_idempotent = true,
            "off" => next.tries = 1,
            other => match other.strip_prefix("http_").and_then(|code| code.parse().ok()) {
                Some(code @ (403 | 404 | 429 | 500 | 502 | 503 | 504)) => next.statuses.push(code),
                _ => return Err(format!("{other:?} is no case in which a request goes to another endpoint")),
            },
        }
    }
    policy.upstream.next = next;
    Ok(())
}

fn vhost(policy: &mut Policy, value: &str) -> Result<(), String> {
    if !value.contains('$') {
        plain(value)?;
    }
    policy.upstream.vhost = Some(Template::early(value)?);
    Ok(())
}

fn field(value: &str) -> Result<Option<HeaderValue>, String> {
    HeaderValue::from_str(value).map(Some).map_err(|_| format!("{value:?} cannot stand in a header"))
}

const STREAMED: &str = "bodies are streamed in both directions and never written to a buffer or file";

pub(super) const TABLE: &[Annotation] = &[
    Annotation::guard("backend-protocol", protocol).differs("AUTO_HTTP is HTTP, FCGI is refused"),
    Annotation::new("proxy-connect-timeout", |p, v| Ok(p.upstream.connect = timeout(v)?)),
    Annotation::new("proxy-send-timeout", |p, v| Ok(p.upstream.send = timeout(v)?))
        .differs("says with proxy-read-timeout how long a tunnel may be idle; requests have the latter only"),
    Annotation::new("proxy-read-timeout", |p, v| Ok(p.upstream.read = timeout(v)?)),
    Annotation::new("proxy-body-size", |p, v| Ok(p.upstream.body_size = Some(size(v)?).filter(|n| *n > 0))),
    Annotation::new("proxy-next-upstream", next),
    Annotation::new("proxy-next-upstream-tries", |p, v| {
        // Nought is no limit, which would be one for each endpoint.
        p.upstream.next.tries = match number(v)? {
            0 => 16,
            some => some,
        };
        Ok(())
    }),
    Annotation::new("proxy-next-upstream-timeout", |p, v| {
        p.upstream.next.within = Some(super::value::seconds(v)?).filter(|t| !t.is_zero());
        Ok(())
    }),
    Annotation::new("upstream-vhost", vhost),
    Annotation::new("x-forwarded-prefix", |p, v| Ok(p.upstream.prefix = field(v)?)),
    Annotation::new("connection-proxy-header", |p, v| Ok(p.upstream.connection = field(v)?)),
    Annotation::new("service-upstream", |p, v| Ok(p.upstream.service = boolean(v)?)),
    Annotation::guard("proxy-ssl-secret", |p, v| Ok(p.upstream.backend_tls.secret = Some(reference(v)?))),
    Annotation::guard("proxy-ssl-verify", |p, v| {
        p.upstream.backend_tls.verify = match v {
            "on" => true,
            "off" => false,
            _ => return Err(format!("{v:?} is neither \"on\" nor \"off\"")),
        };
        Ok(())
    }),
    Annotation::new("proxy-ssl-name", |p, v| Ok(p.upstream.backend_tls.name = Some(plain(v)?))),
    Annotation::moot("proxy-ssl-server-name", "a backend's name is always asked for"),
    Annotation::moot("proxy-ssl-verify-depth", "a chain is verified to its end"),
    Annotation::moot("proxy-ssl-ciphers", "TLS 1.2 and 1.3 with their safe cipher suites"),
    Annotation::moot("proxy-ssl-protocols", "TLS 1.2 and 1.3"),
    Annotation::moot("proxy-http-version", "HTTP/1.1, or HTTP/2 for GRPC and GRPCS"),
    Annotation::moot("proxy-buffering", STREAMED),
    Annotation::moot("proxy-request-buffering", STREAMED),
    Annotation::moot("proxy-buffer-size", STREAMED),
    Annotation::moot("proxy-buffers-number", STREAMED),
    Annotation::moot("proxy-busy-buffers-size", STREAMED),
    Annotation::moot("proxy-max-temp-file-size", STREAMED),
    Annotation::moot("client-body-buffer-size", STREAMED),
];
