//! The cookie that keeps a client with its endpoint.
//!
//! Its value is `key|backend`: a key chosen at random, which hashes to an endpoint (mode balanced), or the endpoint's own
//! hash (mode persistent); and the hash of the backend, so that a client of the canary is known as one.

use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderValue;
use http::header;

use super::facts::Facts;
use crate::annotations::affinity::Affinity;
use crate::upstream::Backend;
use crate::upstream::balance::hash;
use crate::upstream::endpoint::Endpoint;

/// What a client's cookie says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    key: u64,
    backend: u64,
}

/// How often a new ticket is drawn until it is of an endpoint that can be asked.
const DRAWS: usize = 16;

impl Ticket {
    /// The ticket that a request shows.
    pub fn shown(facts: &Facts<'_>, affinity: &Affinity) -> Option<Self> {
        let (key, backend) = facts.cookie(&affinity.name)?.split_once('|')?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Self { key: number(key)?, backend: number(backend)? })
    }

    /// Whether it is of this backend.
    pub fn is_of(self, backend: &Backend) -> bool {
        self.backend == name(backend)
    }

    /// The endpoint that it names, if that is still there.
    pub fn endpoint<'a>(
        self,
        backend: &'a Backend,
        persistent: bool,
        tried: &[Arc<Endpoint>],
    ) -> Option<&'a Arc<Endpoint>> {
        match persistent {
            true => backend.named(self.key).filter(|e| !tried.iter().any(|t| Arc::ptr_eq(t, e))),
            false => backend.of_key(self.key, tried),
        }
    }

    /// Whether the endpoint that it was given for can be asked.
    pub fn is_good(self, backend: &Backend, persistent: bool) -> bool {
        let endpoint = if persistent { backend.named(self.key) } else { backend.owner(self.key) };
        endpoint.is_some_and(|endpoint| endpoint.is_well())
    }

    /// A new ticket of a backend, for mode balanced: of an endpoint that can be asked, unless hardly any can.
    pub fn new(backend: &Backend) -> Self {
        let ticket = || Self { key: rand::random(), backend: name(backend) };
        (0..DRAWS).map(|_| ticket()).find(|ticket| ticket.is_good(backend, false)).unwrap_or_else(ticket)
    }

    /// A ticket that names an endpoint, for mode persistent.
    pub fn naming(backend: &Backend, endpoint: &Endpoint) -> Self {
        Self { key: hash(endpoint.text.as_bytes()), backend: name(backend) }
    }

    /// The cookie.
    pub fn cookie(self, facts: &Facts<'_>, affinity: &Affinity) -> Option<HeaderValue> {
        let mut out = format!("{}={:016x}|{:016x}", affinity.name, self.key, self.backend);
        let routing = &facts.location.served.policy.routing;
        let own = if routing.regex { "/" } else { &facts.location.path };
        let _ = write!(out, "; Path={}", affinity.path.as_deref().unwrap_or(own));
        if let Some(domain) = &affinity.domain {
            let _ = write!(out, "; Domain={domain}");
        }
        if let Some(age) = affinity.max_age {
            let _ = write!(out, "; Max-Age={age}");
        }
        if let Some(expires) = affinity.expires {
            let span = jiff::SignedDuration::from_secs(i64::try_from(expires).unwrap_or(i64::MAX / 4));
            if let Ok(end) = jiff::Timestamp::now().checked_add(span) {
                let end = end.to_zoned(jiff::tz::TimeZone::UTC);
                let _ = write!(out, "; Expires={}", end.strftime("%a, %d-%b-%y %H:%M:%S GMT"));
            }
        }
        if affinity.secure.unwrap_or(facts.client.secure) {
            out.push_str("; Secure");
        }
        out.push_str("; HttpOnly");
        let agent = facts.header(&header::USER_AGENT).unwrap_or_default();
        match affinity.same_site {
            Some("None") if affinity.conditional_none && !knows_none(agent) => {}
            Some(site) => drop(write!(out, "; SameSite={site}")),
            None => {}
        }
        HeaderValue::from_str(&out).ok()
    }
}

fn name(backend: &Backend) -> u64 {
    hash(format!("{}:{}", backend.service, backend.port).as_bytes())
}

/// Whether a browser understands `SameSite=None`; some of 2018 to 2020 do not.
fn knows_none(agent: &str) -> bool {
    let old_chrome = (51..=66)
        .any(|v| agent.contains(&format!("Chrome/{v}.")) || agent.contains(&format!("Chromium/{v}.")));
    let old_apple = agent.contains("iPhone OS 12_") || agent.contains("iPad; CPU OS 12_");
    let old_mac = agent.contains("Mac OS X 10_14_") && agent.contains("Version/") && agent.contains("Safari");
    !(old_chrome || old_apple || old_mac)
}
