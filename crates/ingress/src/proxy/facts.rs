//! What is known of a request, as texts with variables ask for it.

use std::fmt::Write as _;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use crate::fields::{Asked, Client, Peer};
use crate::record::escaped;
use crate::table::Location;
use crate::variables::{Template, Variable, argument, escape};

/// A request under way.
pub(super) struct Facts<'a> {
    pub parts: &'a Parts,
    pub path: &'a [u8],
    pub asked: &'a Asked,
    pub client: &'a Client,
    pub peer: &'a Peer,
    pub id: &'a HeaderValue,
    pub location: &'a Location,
}

impl<'a> Facts<'a> {
    /// Path and query as they were sent.
    pub fn uri(&self) -> &'a str {
        self.parts.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn cookie(&self, name: &str) -> Option<&str> {
        cookie(&self.parts.headers, name)
    }

    /// `scheme://host/path?query`.
    pub fn url(&self) -> String {
        let host = self.asked.raw.to_str().unwrap_or_default();
        format!("{}://{host}{}", self.client.scheme(), self.uri())
    }

    pub fn fill(&self, template: &Template) -> String {
        template.fill(|variable, out| self.write(variable, out))
    }

    /// A line of the access log, as far as it can be known now.
    pub fn line(&self, format: &Template, json: bool) -> Template {
        format.begin(|variable, out| {
            let mut value = String::new();
            self.write(variable, &mut value);
            let empty = value.is_empty() && !json;
            escaped(if empty { "-" } else { &value }, json, out);
        })
    }

    fn write(&self, variable: &Variable, out: &mut String) {
        let parts = self.parts;
        let text = |name: &HeaderName| self.header(name).unwrap_or_default();
        match variable {
            Variable::RequestUri => out.push_str(self.uri()),
            Variable::EscapedRequestUri => escape(self.uri(), out),
            Variable::Uri => out.push_str(&String::from_utf8_lossy(self.path)),
            Variable::Args => out.push_str(parts.uri.query().unwrap_or_default()),
            Variable::Arg(name) => {
                out.push_str(parts.uri.query().and_then(|q| argument(q, name)).unwrap_or_default());
            }
            Variable::Host => out.push_str(&self.asked.host),
            Variable::HttpHost => out.push_str(self.asked.raw.to_str().unwrap_or_default()),
            Variable::Header(name) if *name == header::HOST => {
                out.push_str(self.asked.raw.to_str().unwrap_or_default())
            }
            Variable::Header(name) => out.push_str(text(name)),
            Variable::Cookie(name) => out.push_str(self.cookie(name).unwrap_or_default()),
            Variable::Scheme => out.push_str(self.client.scheme()),
            Variable::Port => drop(write!(out, "{}", self.client.port)),
            Variable::Protocol => drop(write!(out, "{:?}", parts.version)),
            Variable::Method => out.push_str(parts.method.as_str()),
            Variable::Request => drop(write!(out, "{} {} {:?}", parts.method, self.uri(), parts.version)),
            Variable::RemoteAddr => drop(write!(out, "{}", self.client.address)),
            Variable::RemotePort => drop(write!(out, "{}", self.peer.address.port())),
            Variable::RemoteUser => out.push_str(&user(text(&header::AUTHORIZATION)).unwrap_or_default()),
            Variable::RequestId => out.push_str(self.id.to_str().unwrap_or_default()),
            Variable::Namespace => out.push_str(&self.location.ingress.namespace),
            Variable::Ingress => out.push_str(&self.location.ingress.name),
            Variable::Service => out.push_str(&self.location.backend.service),
            Variable::ServicePort => out.push_str(&self.location.backend.port),
            Variable::Path => out.push_str(&self.location.path),
            Variable::UpstreamName => {
                let (ingress, backend) = (&self.location.ingress, &self.location.backend);
                let _ = write!(out, "{}-{}-{}", ingress.namespace, backend.service, backend.port);
            }
            Variable::SslProtocol => out.push_str(self.peer.tls.as_ref().map_or("", |tls| tls.version)),
            Variable::SslServerName => {
                out.push_str(self.peer.tls.as_ref().and_then(|tls| tls.name.as_deref()).unwrap_or_default());
            }
            Variable::Late(_) => {}
        }
    }
}

/// A cookie of a request (RFC 6265, 5.4).
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The user that a request names, whether or not its password is right.
fn user(authorization: &str) -> Option<String> {
    use base64::Engine;
    let coded = authorization.strip_prefix("Basic ")?;
    let plain = base64::engine::general_purpose::STANDARD.decode(coded.trim()).ok()?;
    Some(String::from_utf8_lossy(&plain).split_once(':')?.0.to_owned())
}
