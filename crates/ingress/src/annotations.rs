//! What an Ingress says in annotations, by ingress-nginx's names and meanings.
//!
//! One that is not known here is never ignored in silence: it is a problem of the Ingress, told in an Event. One that
//! keeps people out (authentication, address lists, limits) and is not known closes the Ingress: better no answer than
//! one that its owner believes to be guarded.

use std::collections::BTreeMap;
use std::time::Duration;

/// What all annotations of the controller begin with.
pub const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// Annotations that guard a location; unknown ones of these families close it.
const GUARDS: [&str; 9] = [
    "auth-",
    "whitelist-",
    "allowlist-",
    "denylist-",
    "limit-",
    "global-rate-limit",
    "satisfy",
    "enable-modsecurity",
    "modsecurity-",
];

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    Grpc,
}

/// The text of `rewrite-target`, split at its captures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite(pub(crate) Vec<Part>);

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

/// What the annotations of one Ingress come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `ssl-redirect`: to HTTPS where the host has TLS.
    pub ssl_redirect: bool,
    /// `force-ssl-redirect`: to HTTPS in any case.
    pub force_ssl_redirect: bool,
    /// `use-regex`, or a rewrite that implies it.
    pub regex: bool,
    /// `rewrite-target`.
    pub rewrite: Option<Rewrite>,
    /// `backend-protocol`.
    pub protocol: Protocol,
    /// `proxy-body-size`; none is without limit.
    pub body_size: Option<u64>,
    /// `proxy-read-timeout`: how long a backend may take to begin its answer.
    pub read_timeout: Duration,
    /// A guard was asked for that we do not have: nobody comes in.
    pub closed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ssl_redirect: true,
            force_ssl_redirect: false,
            regex: false,
            rewrite: None,
            protocol: Protocol::Http,
            body_size: Some(1 << 20),
            read_timeout: Duration::from_secs(60),
            closed: false,
        }
    }
}

impl Settings {
    /// Reads annotations; `problem` hears of each that is refused, with what to do.
    pub fn parse(annotations: Option<&BTreeMap<String, String>>, mut problem: impl FnMut(String)) -> Self {
        let mut settings = Self::default();
        let ours = annotations.into_iter().flatten();
        for (name, value) in ours.filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.trim()))) {
            if let Err(why) = settings.set(name, value) {
                problem(format!("annotation {PREFIX}{name}: {why}"));
            }
        }
        settings
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "ssl-redirect" => self.ssl_redirect = boolean(value)?,
            "force-ssl-redirect" => self.force_ssl_redirect = boolean(value)?,
            "use-regex" => self.regex |= boolean(value)?,
            "rewrite-target" => {
                if !value.starts_with('/') {
                    return Err(format!("{value:?} is not an absolute path"));
                }
                self.rewrite = Some(Rewrite::parse(value));
                self.regex = true;
            }
            "backend-protocol" => match value.to_ascii_uppercase().as_str() {
                "HTTP" | "AUTO_HTTP" => self.protocol = Protocol::Http,
                "GRPC" => self.protocol = Protocol::Grpc,
                _ => {
                    self.closed = true;
                    return Err(format!("{value:?} is not supported (HTTP and GRPC are); answered with 503"));
                }
            },
            "proxy-body-size" => self.body_size = Some(size(value)?).filter(|bytes| *bytes > 0),
            "proxy-read-timeout" => self.read_timeout = seconds(value)?,
            _ if name.ends_with("-snippet") => {
                return Err("snippets are refused; say it with the annotation made for the purpose".into());
            }
            _ if GUARDS.iter().any(|family| name.starts_with(family)) => {
                self.closed = true;
                return Err("is not supported, and so the Ingress is closed: answered with 503".into());
            }
            _ => return Err("is not supported and has no effect".into()),
        }
        Ok(())
    }
}

fn boolean(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| format!("{value:?} is neither \"true\" nor \"false\""))
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.strip_suffix('s').unwrap_or(value).parse::<u32>().ok().filter(|s| *s > 0);
    seconds.map(|s| Duration::from_secs(s.into())).ok_or(format!("{value:?} is no number of seconds"))
}

/// `8m`, `512k`, `1g` or bytes.
fn size(value: &str) -> Result<u64, String> {
    let lower = value.to_ascii_lowercase();
    let (number, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        Some(b'g') => (&lower[..lower.len() - 1], 1 << 30),
        _ => (lower.as_str(), 1),
    };
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    bytes.ok_or(format!("{value:?} is no size such as 8m"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let map = pairs.iter().map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned())).collect();
        let mut problems = Vec::new();
        let settings = Settings::parse(Some(&map), |p| problems.push(p));
        (settings, problems)
    }

    #[test]
    fn known_ones_are_taken() {
        let (settings, problems) = parse(&[
            ("ssl-redirect", "false"),
            ("force-ssl-redirect", "true"),
            ("proxy-body-size", "8m"),
            ("proxy-read-timeout", "120s"),
            ("backend-protocol", "grpc"),
        ]);
        assert!(problems.is_empty(), "{problems:?}");
        assert!(!settings.ssl_redirect && settings.force_ssl_redirect && !settings.regex);
        assert_eq!(settings.body_size, Some(8 << 20));
        assert_eq!(settings.read_timeout, Duration::from_secs(120));
        assert_eq!(settings.protocol, Protocol::Grpc);
        assert_eq!(parse(&[("proxy-body-size", "0")]).0.body_size, None);
    }

    #[test]
    fn bad_values_are_said_and_change_nothing() {
        for (name, value) in [
            ("ssl-redirect", "maybe"),
            ("proxy-body-size", "8x"),
            ("proxy-body-size", "99999999999999999999g"),
            ("proxy-read-timeout", "soon"),
            ("proxy-read-timeout", "0"),
            ("rewrite-target", "no-slash"),
            ("configuration-snippet", "return 200;"),
            ("no-such-thing", "x"),
        ] {
            let (settings, problems) = parse(&[(name, value)]);
            assert_eq!(settings, Settings::default(), "{name}");
            assert!(matches!(&problems[..], [p] if p.contains(name)), "{problems:?}");
        }
    }

    #[test]
    fn a_guard_that_we_do_not_have_closes() {
        for name in ["auth-url", "auth-type", "whitelist-source-range", "denylist-source-range", "limit-rps"]
        {
            let (settings, problems) = parse(&[(name, "x")]);
            assert!(settings.closed && problems.len() == 1, "{name}");
        }
        assert!(parse(&[("backend-protocol", "HTTPS")]).0.closed);
    }
}
