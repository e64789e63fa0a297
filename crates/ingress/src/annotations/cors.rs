//! Cross-origin requests (Fetch standard): who may read answers, and the answer to a browser's question beforehand.

use http::header::{self, HeaderMap, HeaderValue};

use super::value::{boolean, list, number};
use super::{Annotation, Policy};

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Cors {
    pub enabled: bool,
    origins: Vec<Origin>,
    methods: HeaderValue,
    headers: HeaderValue,
    credentials: bool,
    expose: Option<HeaderValue>,
    max_age: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Any,
    Exact(String),
    /// `https://*.name:port`: what stands before the star and after it.
    Wildcard(String, String),
}

impl Default for Cors {
    fn default() -> Self {
        Self {
            enabled: false,
            origins: vec![Origin::Any],
            methods: HeaderValue::from_static("GET, PUT, POST, DELETE, PATCH, OPTIONS"),
            headers: HeaderValue::from_static(
                "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,Authorization",
            ),
            credentials: true,
            expose: None,
            max_age: 1_728_000,
        }
    }
}

impl Origin {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wrong = || format!("{text:?} is no origin such as https://name, https://*.name or *");
        let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_');
        let name = host.strip_prefix("*.").unwrap_or(host);
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+') {
            return Err(wrong());
        }
        if name.is_empty() || !name.bytes().all(fine) {
            return Err(wrong());
        }
        let (scheme, name) = (scheme.to_ascii_lowercase(), name.to_ascii_lowercase());
        Ok(match host.starts_with("*.") {
            true => Self::Wildcard(format!("{scheme}://"), format!(".{name}")),
            false => Self::Exact(format!("{scheme}://{name}")),
        })
    }

    fn holds(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(only) => origin == only,
            Self::Wildcard(scheme, rest) => {
                let inner =
                    origin.strip_prefix(scheme.as_str()).and_then(|host| host.strip_suffix(rest.as_str()));
                inner.is_some_and(|label| !label.is_empty() && !label.contains(['/', ':', '@']))
            }
        }
    }
}

impl Cors {
    /// Whether an origin may read, and as whom it is told so.
    fn allows(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        if self.origins.contains(&Origin::Any) {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = origin?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        self.origins.iter().any(|allowed| allowed.holds(&text)).then(|| origin.clone())
    }

    /// Writes what an answer says to this origin; whether it may read.
    pub fn mark(&self, origin: Option<&HeaderValue>, out: &mut HeaderMap) -> bool {
        let Some(allowed) = self.allows(origin) else { return false };
        if allowed != "*" {
            out.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if self.credentials {
            out.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            out.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        true
    }

    /// The answer to a browser that asks beforehand; none for an origin that may not.
    pub fn preflight(&self, origin: Option<&HeaderValue>) -> Option<HeaderMap> {
        let mut out = HeaderMap::new();
        if !self.mark(origin, &mut out) {
            return None;
        }
        out.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
        out.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone());
        out.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        out.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain charset=UTF-8"));
        Some(out)
    }
}

fn origins(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.cors.origins = list(value).map(Origin::parse).collect::<Result<_, _>>()?;
    Ok(())
}

/// A list of names between commas, as it stands.
fn names(value: &str) -> Result<HeaderValue, String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b',' | b' ' | b'*');
    let text = HeaderValue::from_str(value).ok().filter(|_| value.bytes().all(fine));
    text.ok_or_else(|| format!("{value:?} is no list of names"))
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("enable-cors", |p, v| Ok(p.cors.enabled = boolean(v)?)),
    Annotation::new("cors-allow-origin", origins),
    Annotation::new("cors-allow-methods", |p, v| Ok(p.cors.methods = names(v)?)),
    Annotation::new("cors-allow-headers", |p, v| Ok(p.cors.headers = names(v)?)),
    Annotation::new("cors-allow-credentials", |p, v| Ok(p.cors.credentials = boolean(v)?)),
    Annotation::new("cors-expose-headers", |p, v| Ok(p.cors.expose = Some(names(v)?))),
    Annotation::new("cors-max-age", |p, v| Ok(p.cors.max_age = number(v)?)),
];
