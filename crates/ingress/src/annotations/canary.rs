//! A second backend for some of the requests: by header, else by cookie, else by weight.

use http::HeaderName;
use regex::Regex;

use super::value::{boolean, expression, header, number, plain};
use super::{Annotation, Policy};

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Canary {
    pub enabled: bool,
    pub header: Option<HeaderName>,
    pub value: Option<String>,
    pub pattern: Option<Regex>,
    pub cookie: Option<String>,
    pub weight: u32,
    pub total: u32,
}

impl Default for Canary {
    fn default() -> Self {
        Self { enabled: false, header: None, value: None, pattern: None, cookie: None, weight: 0, total: 100 }
    }
}

impl Canary {
    /// Whether a request is for the canary; `roll` is below 1.
    pub fn takes(&self, header: Option<&str>, cookie: Option<&str>, roll: impl FnOnce() -> f64) -> bool {
        if let Some(sent) = header {
            match (&self.value, &self.pattern) {
                (Some(value), _) if sent == value => return true,
                (None, Some(pattern)) if pattern.is_match(sent) => return true,
                (None, None) if sent == "always" => return true,
                (None, None) if sent == "never" => return false,
                _ => {}
            }
        }
        match cookie {
            Some("always") => true,
            Some("never") => false,
            _ => roll() * f64::from(self.total) < f64::from(self.weight),
        }
    }
}

fn total(policy: &mut Policy, value: &str) -> Result<(), String> {
    match number(value)? {
        0 => Err("\"0\" is no total of weights".into()),
        some => Ok(policy.canary.total = some),
    }
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("canary", |p, v| Ok(p.canary.enabled = boolean(v)?)),
    Annotation::new("canary-by-header", |p, v| Ok(p.canary.header = Some(header(v)?))),
    Annotation::new("canary-by-header-value", |p, v| Ok(p.canary.value = Some(v.to_owned()))),
    Annotation::new("canary-by-header-pattern", |p, v| Ok(p.canary.pattern = Some(expression(v)?))),
    Annotation::new("canary-by-cookie", |p, v| Ok(p.canary.cookie = Some(plain(v)?))),
    Annotation::new("canary-weight", |p, v| Ok(p.canary.weight = number(v)?)),
    Annotation::new("canary-weight-total", total),
];
