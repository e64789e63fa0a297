//! Requests that somebody else gets a copy of; its answers are thrown away.

use super::value::{plain, url};
use super::{Annotation, Policy};
use crate::variables::Template;

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub target: Option<Template>,
    pub host: Option<String>,
    pub body: bool,
}

impl Default for Mirror {
    fn default() -> Self {
        Self { target: None, host: None, body: true }
    }
}

fn body(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.mirror.body = match value {
        "on" | "true" => true,
        "off" | "false" => false,
        _ => return Err(format!("{value:?} is neither \"on\" nor \"off\"")),
    };
    Ok(())
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::new("mirror-target", |p, v| Ok(p.mirror.target = Some(Template::early(url(v)?)?))),
    Annotation::new("mirror-host", |p, v| Ok(p.mirror.host = Some(plain(v)?))),
    Annotation::new("mirror-request-body", body)
        .differs("a copy that cannot keep pace is given up; the request itself never waits for it"),
];
