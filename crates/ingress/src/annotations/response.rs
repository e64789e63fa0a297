//! What becomes of an answer: errors taken over, headers, cookies and addresses mended, and whether it is logged.

use super::value::{boolean, reference, statuses};
use super::{Annotation, Policy};

/// A replacement in a header: what to look for, and what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Swap {
    pub from: String,
    pub to: String,
}

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Edits {
    /// Statuses that the default backend answers.
    pub errors: Vec<u16>,
    /// The Service that answers for a backend without endpoints, and errors.
    pub default_backend: Option<String>,
    pub intercept: bool,
    pub custom_headers: Option<(Option<String>, String)>,
    pub cookie_domain: Option<Swap>,
    pub cookie_path: Option<Swap>,
    pub redirect: Option<Swap>,
    redirect_from: Option<String>,
    redirect_to: Option<String>,
    pub log: bool,
}

impl Default for Edits {
    fn default() -> Self {
        Self {
            errors: Vec::new(),
            default_backend: None,
            intercept: true,
            custom_headers: None,
            cookie_domain: None,
            cookie_path: None,
            redirect: None,
            redirect_from: None,
            redirect_to: None,
            log: true,
        }
    }
}

/// `from to`, or `off`.
fn swap(value: &str) -> Result<Option<Swap>, String> {
    let words: Vec<&str> = value.split_whitespace().collect();
    match words[..] {
        ["off"] => Ok(None),
        [from, _] if from.starts_with('~') => {
            Err(format!("{value:?}: expressions (~...) are not supported here"))
        }
        [from, to] if !to.contains([';', ',']) => Ok(Some(Swap { from: from.to_owned(), to: to.to_owned() })),
        _ => Err(format!("{value:?} is not what to replace and what to write, nor \"off\"")),
    }
}

fn redirects(policy: &mut Policy) {
    let edits = &mut policy.response;
    let from = edits.redirect_from.clone().filter(|from| from != "off" && from != "default");
    let both = from.zip(edits.redirect_to.clone());
    edits.redirect = both.map(|(from, to)| Swap { from, to });
}

fn part(value: &str) -> Result<Option<String>, String> {
    if value.starts_with('~') || value.contains(['$', ' ']) {
        return Err(format!(
            "{value:?}: expressions and variables are not supported here; write the beginning of an address"
        ));
    }
    Ok(Some(value.to_owned()))
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("custom-http-errors", |p, v| Ok(p.response.errors = statuses(v)?)),
    Annotation::new("disable-proxy-intercept-errors", |p, v| Ok(p.response.intercept = !boolean(v)?)),
    Annotation::new("default-backend", |p, v| {
        let (namespace, name) = reference(v)?;
        if namespace.is_some() {
            return Err(format!("{v:?}: a default backend is a Service of the Ingress's own namespace"));
        }
        Ok(p.response.default_backend = Some(name))
    }),
    Annotation::new("custom-headers", |p, v| Ok(p.response.custom_headers = Some(reference(v)?))),
    Annotation::new("proxy-cookie-domain", |p, v| Ok(p.response.cookie_domain = swap(v)?)),
    Annotation::new("proxy-cookie-path", |p, v| Ok(p.response.cookie_path = swap(v)?)),
    Annotation::new("proxy-redirect-from", |p, v| {
        p.response.redirect_from = part(v)?;
        redirects(p);
        Ok(())
    }),
    Annotation::new("proxy-redirect-to", |p, v| {
        p.response.redirect_to = part(v)?;
        redirects(p);
        Ok(())
    }),
    Annotation::new("enable-access-log", |p, v| Ok(p.response.log = boolean(v)?)),
    Annotation::moot(
        "enable-rewrite-log",
        "routing needs no log: `skiff ingress lint` says what an Ingress does",
    ),
    Annotation::moot("http2-push-preload", "browsers have given HTTP/2 push up"),
];
