//! Clients that stay with one endpoint, by a cookie (RFC 6265).

use super::value::{boolean, number, plain};
use super::{Annotation, Policy};

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Affinity {
    pub enabled: bool,
    /// A client keeps its endpoint whatever comes; otherwise new endpoints take their share.
    pub persistent: bool,
    /// A client of the canary stays there.
    pub canary_sticky: bool,
    pub name: String,
    pub path: Option<String>,
    pub domain: Option<String>,
    pub max_age: Option<u64>,
    pub expires: Option<u64>,
    pub same_site: Option<&'static str>,
    /// `SameSite=None` only for browsers that understand it.
    pub conditional_none: bool,
    pub secure: Option<bool>,
    pub change_on_failure: bool,
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            enabled: false,
            persistent: false,
            canary_sticky: true,
            name: "INGRESSCOOKIE".into(),
            path: None,
            domain: None,
            max_age: None,
            expires: None,
            same_site: None,
            conditional_none: false,
            secure: None,
            change_on_failure: false,
        }
    }
}

fn choice(value: &str, yes: &str, no: &str) -> Result<bool, String> {
    match value {
        _ if value == yes => Ok(true),
        _ if value == no => Ok(false),
        _ => Err(format!("{value:?} is neither {yes:?} nor {no:?}")),
    }
}

fn same_site(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.affinity.same_site = Some(match value.to_ascii_lowercase().as_str() {
        "none" => "None",
        "lax" => "Lax",
        "strict" => "Strict",
        _ => return Err(format!("{value:?} is none of None, Lax, Strict")),
    });
    Ok(())
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("affinity", |p, v| match v {
        "cookie" => Ok(p.affinity.enabled = true),
        _ => Err(format!("{v:?} is not \"cookie\"")),
    }),
    Annotation::new("affinity-mode", |p, v| Ok(p.affinity.persistent = choice(v, "persistent", "balanced")?)),
    Annotation::new("affinity-canary-behavior", |p, v| {
        Ok(p.affinity.canary_sticky = choice(v, "sticky", "legacy")?)
    }),
    Annotation::new("session-cookie-name", |p, v| Ok(p.affinity.name = plain(v)?)),
    Annotation::new("session-cookie-path", |p, v| Ok(p.affinity.path = Some(plain(v)?))),
    Annotation::new("session-cookie-domain", |p, v| Ok(p.affinity.domain = Some(plain(v)?))),
    Annotation::new("session-cookie-max-age", |p, v| Ok(p.affinity.max_age = Some(number(v)?))),
    Annotation::new("session-cookie-expires", |p, v| Ok(p.affinity.expires = Some(number(v)?))),
    Annotation::new("session-cookie-samesite", same_site),
    Annotation::new("session-cookie-conditional-samesite-none", |p, v| {
        Ok(p.affinity.conditional_none = boolean(v)?)
    }),
    Annotation::new("session-cookie-secure", |p, v| Ok(p.affinity.secure = Some(boolean(v)?))),
    Annotation::new(
        "session-cookie-change-on-failure",
        |p, v| Ok(p.affinity.change_on_failure = boolean(v)?),
    ),
];
