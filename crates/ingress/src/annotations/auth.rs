//! Who may come in: passwords of a Secret, or an authority that is asked for each request.

use http::{HeaderName, Method};

use super::value::{boolean, header, headers, list, plain, reference, url};
use super::{Annotation, Policy};
use crate::variables::Template;

/// How the users' Secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretType {
    /// The key `auth` holds a file of `htpasswd`.
    File,
    /// Each key is a user, its value the hash.
    Map,
}

/// Passwords (RFC 7617).
#[derive(Debug, Clone)]
pub(crate) struct Basic {
    pub secret: (Option<String>, String),
    pub kind: SecretType,
    pub realm: String,
}

/// Somebody who is asked (`auth-url`).
#[derive(Debug, Clone)]
pub(crate) struct External {
    pub url: Template,
    pub method: Option<Method>,
    pub signin: Option<Template>,
    pub signin_parameter: String,
    pub response_headers: Vec<HeaderName>,
    pub request_redirect: Option<Template>,
    pub always_set_cookie: bool,
    /// `namespace/name` of the ConfigMap with headers for the authority.
    pub set_headers: Option<(Option<String>, String)>,
}

/// The family's settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Auth {
    pub basic: Option<Basic>,
    pub external: Option<External>,
    /// `enable-global-auth`, where the ConfigMap names an authority for all.
    pub global: Option<bool>,
    /// The authority is the Ingress's own.
    own: bool,
    wants_basic: bool,
    secret: Option<(Option<String>, String)>,
    kind: Option<SecretType>,
    realm: Option<String>,
    url: Option<Template>,
    method: Option<Method>,
    signin: Option<Template>,
    signin_parameter: Option<String>,
    response_headers: Vec<HeaderName>,
    request_redirect: Option<Template>,
    always_set_cookie: bool,
    set_headers: Option<(Option<String>, String)>,
}

impl Auth {
    /// What was read is for all Ingresses, each of which may have its own.
    pub fn shared(&mut self) {
        self.own = false;
    }

    /// Joins what stands in several annotations.
    pub(super) fn complete(&mut self) -> Result<(), (&'static str, &'static str)> {
        let url = self.url.clone().filter(|_| self.own || self.global != Some(false));
        self.external = url.map(|url| External {
            url,
            method: self.method.clone(),
            signin: self.signin.clone(),
            signin_parameter: self.signin_parameter.clone().unwrap_or_else(|| "rd".into()),
            response_headers: self.response_headers.clone(),
            request_redirect: self.request_redirect.clone(),
            always_set_cookie: self.always_set_cookie,
            set_headers: self.set_headers.clone(),
        });
        self.basic = None;
        if self.wants_basic {
            let Some(secret) = self.secret.clone() else {
                return Err(("auth-secret", "auth-type needs the Secret of the users"));
            };
            let kind = self.kind.unwrap_or(SecretType::File);
            let realm = self.realm.clone().unwrap_or_default();
            self.basic = Some(Basic { secret, kind, realm });
        }
        Ok(())
    }
}

fn kind(policy: &mut Policy, value: &str) -> Result<(), String> {
    match value {
        "basic" => policy.auth.wants_basic = true,
        "" => {}
        "digest" => {
            return Err("\"digest\" is not supported: use basic over TLS, or auth-url".into());
        }
        _ => return Err(format!("{value:?} is not \"basic\"")),
    }
    Ok(())
}

fn secret_kind(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.auth.kind = Some(match value {
        "auth-file" => SecretType::File,
        "auth-map" => SecretType::Map,
        _ => return Err(format!("{value:?} is neither auth-file nor auth-map")),
    });
    Ok(())
}

fn realm(policy: &mut Policy, value: &str) -> Result<(), String> {
    let fine = |b: u8| (0x20..0x7f).contains(&b) && !matches!(b, b'"' | b'\\');
    if !value.bytes().all(fine) {
        return Err(format!("{value:?} cannot stand between quotes"));
    }
    policy.auth.realm = Some(value.to_owned());
    Ok(())
}

fn method(policy: &mut Policy, value: &str) -> Result<(), String> {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    let found = known.contains(&value).then(|| value.parse().ok()).flatten();
    policy.auth.method = Some(found.ok_or_else(|| format!("{value:?} is no method"))?);
    Ok(())
}

fn address(value: &str) -> Result<Option<Template>, String> {
    Template::early(url(value)?).map(Some)
}

const ASKED: &str = "the authority is asked for every request, over connections that are kept";

pub(super) const TABLE: &[Annotation] = &[
    Annotation::guard("auth-type", kind).differs("basic; digest is refused"),
    Annotation::guard("auth-secret", |p, v| Ok(p.auth.secret = Some(reference(v)?))),
    Annotation::guard("auth-secret-type", secret_kind),
    Annotation::new("auth-realm", realm),
    Annotation::guard("auth-url", |p, v| {
        p.auth.url = address(v)?;
        p.auth.own = true;
        Ok(())
    }),
    Annotation::guard("auth-method", method),
    Annotation::new("auth-signin", |p, v| Ok(p.auth.signin = address(v)?)),
    Annotation::new("auth-signin-redirect-param", |p, v| Ok(p.auth.signin_parameter = Some(plain(v)?))),
    Annotation::new("auth-response-headers", |p, v| Ok(p.auth.response_headers = headers(v)?)),
    Annotation::new("auth-request-redirect", |p, v| Ok(p.auth.request_redirect = Some(Template::early(v)?))),
    Annotation::new("auth-always-set-cookie", |p, v| Ok(p.auth.always_set_cookie = boolean(v)?)),
    Annotation::guard("auth-proxy-set-headers", |p, v| Ok(p.auth.set_headers = Some(reference(v)?))),
    Annotation::guard("enable-global-auth", |p, v| Ok(p.auth.global = Some(boolean(v)?))),
    Annotation::moot("auth-cache-key", ASKED),
    Annotation::moot("auth-cache-duration", ASKED),
    Annotation::moot("auth-keepalive", ASKED),
    Annotation::moot("auth-keepalive-share-vars", ASKED),
    Annotation::moot("auth-keepalive-requests", ASKED),
    Annotation::moot("auth-keepalive-timeout", ASKED),
    Annotation::refused_guard("auth-snippet", "set headers with auth-proxy-set-headers"),
];

/// Names between commas that a ConfigMap's key lists.
pub(crate) fn names(value: &str) -> Result<Vec<HeaderName>, String> {
    list(value).map(header).collect()
}
