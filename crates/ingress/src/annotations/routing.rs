//! Which path a request is matched by and where it is sent back to: rewrites, expressions, redirects, further names.

use super::value::{boolean, expression, list, redirect_code, url};
use super::{Annotation, Policy};
use crate::variables::Template;

/// The text of `rewrite-target`, split at its captures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewrite(pub Vec<Part>);

/// A piece of text and the capture that follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub text: Vec<u8>,
    pub capture: Option<usize>,
}

impl Rewrite {
    /// Splits `/a/$1`; `$` before anything but a digit is text.
    fn parse(target: &str) -> Self {
        let mut parts = Vec::new();
        let mut text = Vec::new();
        let mut bytes = target.bytes().peekable();
        while let Some(byte) = bytes.next() {
            match (byte, bytes.peek()) {
                (b'$', Some(digit @ b'0'..=b'9')) => {
                    let capture = Some(usize::from(digit - b'0'));
                    bytes.next();
                    parts.push(Part { text: std::mem::take(&mut text), capture });
                }
                _ => text.push(byte),
            }
        }
        parts.push(Part { text, capture: None });
        Self(parts)
    }
}

/// A redirect of a whole location.
#[derive(Debug, Clone)]
pub(crate) struct Redirect {
    pub to: Template,
    pub code: u16,
}

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Routing {
    pub ssl_redirect: bool,
    pub force_ssl_redirect: bool,
    pub preserve_trailing_slash: bool,
    pub regex: bool,
    pub rewrite: Option<Rewrite>,
    pub app_root: Option<String>,
    pub permanent: Option<Template>,
    pub permanent_code: u16,
    pub temporal: Option<Template>,
    pub temporal_code: u16,
    pub relative: bool,
    pub aliases: Vec<String>,
    pub www: bool,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            ssl_redirect: true,
            force_ssl_redirect: false,
            preserve_trailing_slash: false,
            regex: false,
            rewrite: None,
            app_root: None,
            permanent: None,
            permanent_code: 301,
            temporal: None,
            temporal_code: 302,
            relative: false,
            aliases: Vec::new(),
            www: false,
        }
    }
}

impl Routing {
    /// Where all of the location is sent to; the temporal one counts for more, as in ingress-nginx.
    pub fn redirect(&self) -> Option<Redirect> {
        let temporal = self.temporal.clone().map(|to| Redirect { to, code: self.temporal_code });
        temporal.or_else(|| self.permanent.clone().map(|to| Redirect { to, code: self.permanent_code }))
    }
}

/// An absolute path.
fn absolute(value: &str) -> Result<&str, String> {
    match value.starts_with('/') && value.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        true => Ok(value),
        false => Err(format!("{value:?} is not an absolute path")),
    }
}

fn target(value: &str) -> Result<Option<Template>, String> {
    // Variables may stand for the whole of it.
    if !value.starts_with('$') && !value.starts_with('/') {
        url(value)?;
    }
    Template::early(value).map(Some)
}

fn aliases(policy: &mut Policy, value: &str) -> Result<(), String> {
    for alias in list(value) {
        match alias.strip_prefix('~') {
            Some(pattern) => {
                expression(pattern)?;
                return Err(format!(
                    "{alias:?}: names by expression are not supported; list the names, or use *.name"
                ));
            }
            None => policy.routing.aliases.push(alias.to_ascii_lowercase()),
        }
    }
    Ok(())
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("ssl-redirect", |p, v| Ok(p.routing.ssl_redirect = boolean(v)?)),
    Annotation::new("force-ssl-redirect", |p, v| Ok(p.routing.force_ssl_redirect = boolean(v)?)),
    Annotation::new("preserve-trailing-slash", |p, v| Ok(p.routing.preserve_trailing_slash = boolean(v)?)),
    Annotation::new("use-regex", |p, v| Ok(p.routing.regex |= boolean(v)?)),
    Annotation::new("rewrite-target", |p, v| Ok(p.routing.rewrite = Some(Rewrite::parse(absolute(v)?)))),
    Annotation::new("app-root", |p, v| Ok(p.routing.app_root = Some(absolute(v)?.to_owned()))),
    Annotation::new("permanent-redirect", |p, v| Ok(p.routing.permanent = target(v)?)),
    Annotation::new("permanent-redirect-code", |p, v| Ok(p.routing.permanent_code = redirect_code(v)?)),
    Annotation::new("temporal-redirect", |p, v| Ok(p.routing.temporal = target(v)?)),
    Annotation::new("temporal-redirect-code", |p, v| Ok(p.routing.temporal_code = redirect_code(v)?)),
    Annotation::new("relative-redirects", |p, v| Ok(p.routing.relative = boolean(v)?)),
    Annotation::new("server-alias", aliases).differs("names and *.name, but no expressions (~...)"),
    Annotation::new("from-to-www-redirect", |p, v| Ok(p.routing.www = boolean(v)?)),
    Annotation::moot("use-port-in-redirects", "redirects of ours name no port"),
];
