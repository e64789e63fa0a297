//! A copy of a request for somebody else, whose answer is thrown away.

use http::{HeaderValue, header};

use super::facts::Facts;
use crate::body::Outgoing;
use crate::onward::Fields;

/// Sends a copy of what goes to the backend, if the location wants one; nothing waits for it.
pub(super) fn mirror(facts: &Facts<'_>, headers: &Fields, body: &mut Outgoing, asker: &reqwest::Client) {
    let mirror = &facts.location.served.policy.mirror;
    let Some(target) = &mirror.target else { return };
    let url = facts.fill(target);
    let mut headers = headers.map();
    if let Some(host) = mirror.host.as_deref().and_then(|host| HeaderValue::from_str(host).ok()) {
        headers.insert(header::HOST, host);
    }
    let copy = if mirror.body { body.copied() } else { Outgoing::empty() };
    let mut request = asker.request(facts.parts.method.clone(), &url).headers(headers);
    if !copy.is_empty() {
        request = request.body(reqwest::Body::wrap(copy));
    }
    tokio::spawn(async move {
        if let Err(error) = request.send().await {
            tracing::debug!(url, %error, "the mirror did not answer");
        }
    });
}
