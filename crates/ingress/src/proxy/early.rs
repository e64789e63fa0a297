//! What is answered before anybody is asked: redirects, and a browser's question about another origin.

use http::{Method, Response, StatusCode, header};

use super::facts::Facts;
use super::page::{Stop, redirect};
use crate::body::Body;
use crate::configmap::Global;

/// The answers of nginx's rewrite phase, in its order.
pub(super) fn answer(facts: &Facts<'_>, global: &Global) -> Result<(), Stop> {
    let policy = &facts.location.served.policy;
    let routing = &policy.routing;
    if let Some(root) = routing.app_root.as_ref().filter(|_| facts.path == b"/") {
        let to = match routing.relative {
            true => root.clone(),
            false => {
                format!("{}://{}{root}", facts.client.scheme(), facts.asked.raw.to_str().unwrap_or_default())
            }
        };
        return Err(redirect(302, &to));
    }
    if policy.cors.enabled
        && facts.parts.method == Method::OPTIONS
        && let Some(headers) = policy.cors.preflight(facts.parts.headers.get(header::ORIGIN))
    {
        let mut response = Box::new(Response::new(Body::default()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.headers_mut() = headers;
        return Err(response.into());
    }
    if let Some(moved) = routing.redirect() {
        return Err(redirect(moved.code, &facts.fill(&moved.to)));
    }
    to_https(facts, global)
}

fn to_https(facts: &Facts<'_>, global: &Global) -> Result<(), Stop> {
    let location = facts.location;
    let routing = &location.served.policy.routing;
    let wanted = routing.force_ssl_redirect || routing.ssl_redirect && location.tls;
    let spared = || global.no_tls_redirect.iter().any(|free| location.path.starts_with(free.as_str()));
    if facts.client.secure || !wanted || spared() {
        return Ok(());
    }
    let mut uri = facts.uri();
    if !routing.preserve_trailing_slash {
        uri = uri.strip_suffix('/').unwrap_or(uri);
    }
    Err(redirect(global.redirect_code, &format!("https://{}{uri}", facts.asked.host)))
}

/// A host that has moved (`from-to-www-redirect`); without the last slash, as ingress-nginx does it.
pub(super) fn moved(scheme: &str, host: &str, uri: &str, global: &Global) -> Stop {
    let uri = uri.strip_suffix('/').unwrap_or(uri);
    redirect(global.redirect_code, &format!("{scheme}://{host}{uri}"))
}
