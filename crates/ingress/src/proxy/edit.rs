//! An endpoint's answer as the client gets it.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode, Version};

use super::admit::Admitted;
use super::facts::Facts;
use crate::annotations::response::{Edits, Swap};
use crate::body::Body;
use crate::configmap::Global;
use crate::onward::pass_on;

/// Takes away what belongs to the backend's connection, and what the backend should not say.
pub(super) fn received(response: &mut Response<Body>, edits: &Edits) {
    let trailers = response.headers().get(header::TRAILER).cloned();
    pass_on(response.headers_mut());
    if let Some(trailers) = trailers {
        response.headers_mut().insert(header::TRAILER, trailers);
    }
    *response.version_mut() = Version::default();
    let headers = response.headers_mut();
    if let Some(swap) = &edits.redirect {
        for name in [header::LOCATION, header::REFRESH] {
            let mended = headers.get(&name).and_then(|value| begins(value, swap));
            if let Some(mended) = mended {
                headers.insert(name, mended);
            }
        }
    }
    if edits.cookie_domain.is_some() || edits.cookie_path.is_some() {
        cookies(headers, edits);
    }
}

/// A value with its beginning replaced.
fn begins(value: &HeaderValue, swap: &Swap) -> Option<HeaderValue> {
    let rest = value.to_str().ok()?.strip_prefix(swap.from.as_str())?;
    HeaderValue::from_str(&format!("{}{rest}", swap.to)).ok()
}

fn cookies(headers: &mut HeaderMap, edits: &Edits) {
    let all: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    headers.remove(header::SET_COOKIE);
    for cookie in all {
        let mended = cookie.to_str().ok().map(|text| {
            let part = |part: &str| {
                let (name, value) = part.split_once('=').unwrap_or((part, ""));
                let swap = match name.trim().to_ascii_lowercase().as_str() {
                    "domain" => edits.cookie_domain.as_ref(),
                    "path" => edits.cookie_path.as_ref(),
                    _ => None,
                };
                match swap {
                    Some(swap) if name.trim().eq_ignore_ascii_case("domain") => {
                        let same = value
                            .trim_start_matches('.')
                            .eq_ignore_ascii_case(swap.from.trim_start_matches('.'));
                        if same { format!("{name}={}", swap.to) } else { part.to_owned() }
                    }
                    Some(swap) => match value.strip_prefix(swap.from.as_str()) {
                        Some(rest) => format!("{name}={}{rest}", swap.to),
                        None => part.to_owned(),
                    },
                    None => part.to_owned(),
                }
            };
            text.split(';').map(part).collect::<Vec<_>>().join(";")
        });
        let mended = mended.and_then(|text| HeaderValue::from_str(&text).ok());
        headers.append(header::SET_COOKIE, mended.unwrap_or(cookie));
    }
}

/// Writes what every answer of a location says, whoever made it.
pub(super) fn finish(response: &mut Response<Body>, facts: &Facts<'_>, global: &Global, admitted: &Admitted) {
    let served = &facts.location.served;
    let policy = &served.policy;
    let status = response.status();
    let headers = response.headers_mut();
    for name in &global.hide {
        headers.remove(name);
    }
    if policy.cors.enabled && !headers.contains_key(header::ACCESS_CONTROL_MAX_AGE) {
        policy.cors.mark(facts.parts.headers.get(header::ORIGIN), headers);
    }
    if let Some(hsts) = global.hsts.as_ref().filter(|_| facts.client.secure && facts.location.tls) {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    for (name, value) in global.add_headers.iter().chain(&served.headers) {
        headers.insert(name.clone(), value.clone());
    }
    for cookie in admitted.cookies(status) {
        headers.append(header::SET_COOKIE, cookie.clone());
    }
    let limits = &policy.limits;
    if limits.rate > 0 && status != StatusCode::SWITCHING_PROTOCOLS {
        let (rate, after) = (limits.rate, limits.rate_after);
        response.body_mut().pace(rate, after);
    }
}
