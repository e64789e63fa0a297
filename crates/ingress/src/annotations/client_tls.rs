//! Certificates that clients must show (`auth-tls-*`).

use regex::Regex;

use super::value::{boolean, expression, number, reference, url};
use super::{Annotation, Policy};

/// What a certificate is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Without a good one, 400.
    On,
    /// A good one or none.
    Optional,
    /// Whatever is shown is taken, and said to the backend.
    OptionalNoCa,
}

/// The family's settings.
#[derive(Debug, Clone)]
pub(crate) struct ClientTls {
    pub secret: Option<(Option<String>, String)>,
    /// None where it is off.
    pub verify: Option<Verify>,
    pub depth: u32,
    pub error_page: Option<String>,
    pub pass: bool,
    pub common_name: Option<Regex>,
    named: bool,
}

impl Default for ClientTls {
    fn default() -> Self {
        Self {
            secret: None,
            verify: Some(Verify::On),
            depth: 1,
            error_page: None,
            pass: false,
            common_name: None,
            named: false,
        }
    }
}

impl ClientTls {
    pub(super) fn complete(&self) -> Result<(), (&'static str, &'static str)> {
        match self.named && self.secret.is_none() {
            true => Err(("auth-tls-secret", "the other auth-tls-* need the Secret of the authority")),
            false => Ok(()),
        }
    }
}

fn verify(policy: &mut Policy, value: &str) -> Result<(), String> {
    policy.client_tls.named = value != "off";
    policy.client_tls.verify = match value {
        "on" => Some(Verify::On),
        "optional" => Some(Verify::Optional),
        "optional_no_ca" => Some(Verify::OptionalNoCa),
        "off" => None,
        _ => return Err(format!("{value:?} is none of on, off, optional, optional_no_ca")),
    };
    Ok(())
}

fn common_name(policy: &mut Policy, value: &str) -> Result<(), String> {
    let pattern = value.strip_prefix("CN=").ok_or_else(|| format!("{value:?} does not begin with CN="))?;
    policy.client_tls.common_name = Some(expression(&format!("^(?:{pattern})$"))?);
    policy.client_tls.named = true;
    Ok(())
}

pub(super) const TABLE: &[Annotation] = &[
    Annotation::guard("auth-tls-secret", |p, v| Ok(p.client_tls.secret = Some(reference(v)?))),
    Annotation::guard("auth-tls-verify-client", verify),
    Annotation::guard("auth-tls-verify-depth", |p, v| Ok(p.client_tls.depth = number(v)?)),
    Annotation::new("auth-tls-error-page", |p, v| Ok(p.client_tls.error_page = Some(url(v)?.to_owned()))),
    Annotation::new("auth-tls-pass-certificate-to-upstream", |p, v| Ok(p.client_tls.pass = boolean(v)?)),
    Annotation::guard("auth-tls-match-cn", common_name),
];
