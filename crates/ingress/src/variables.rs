//! Texts with nginx's variables: `$request_uri`, `${arg_id}`, `$http_x_mine`.
//!
//! Redirects, hash keys, sign-in addresses, mirrors and access logs are written with them. A text is split once, when an
//! object changes; a variable that nobody knows is an error then, and never an empty string in front of a user.

use std::fmt::Write as _;

use http::HeaderName;

/// A variable that is known when a request has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `$request_uri`: path and query as they were sent.
    RequestUri,
    /// `$escaped_request_uri`: the same, fit for a query's value.
    EscapedRequestUri,
    /// `$uri`: the normalised path.
    Uri,
    /// `$args`, `$query_string`.
    Args,
    /// `$arg_NAME`.
    Arg(Box<str>),
    /// `$host`.
    Host,
    /// `$http_host`, `$best_http_host`: with its port.
    HttpHost,
    /// `$http_NAME`.
    Header(HeaderName),
    /// `$cookie_NAME`.
    Cookie(Box<str>),
    /// `$scheme`, `$pass_access_scheme`.
    Scheme,
    /// `$server_port`, `$pass_server_port`.
    Port,
    /// `$server_protocol`.
    Protocol,
    /// `$request_method`.
    Method,
    /// `$request`: the request's first line.
    Request,
    /// `$remote_addr`, `$binary_remote_addr`, `$the_real_ip`.
    RemoteAddr,
    /// `$remote_port`.
    RemotePort,
    /// `$remote_user`.
    RemoteUser,
    /// `$req_id`, `$request_id`.
    RequestId,
    /// `$namespace`.
    Namespace,
    /// `$ingress_name`.
    Ingress,
    /// `$service_name`.
    Service,
    /// `$service_port`.
    ServicePort,
    /// `$location_path`.
    Path,
    /// `$proxy_upstream_name`.
    UpstreamName,
    /// `$ssl_protocol`.
    SslProtocol,
    /// `$ssl_server_name`.
    SslServerName,
    /// One that is known when the answer has been sent.
    Late(Late),
}

/// A variable of access logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// `$status`.
    Status,
    /// `$body_bytes_sent`, `$bytes_sent`.
    BytesSent,
    /// `$request_length`.
    RequestLength,
    /// `$request_time`, in seconds.
    RequestTime,
    /// `$time_local`.
    TimeLocal,
    /// `$time_iso8601`.
    TimeIso,
    /// `$msec`.
    Msec,
    /// `$upstream_addr`.
    UpstreamAddr,
    /// `$upstream_status`.
    UpstreamStatus,
    /// `$upstream_response_time`.
    UpstreamTime,
    /// `$upstream_response_length`.
    UpstreamLength,
    /// `$proxy_alternative_upstream_name`.
    Alternative,
}

impl Variable {
    fn named(name: &str) -> Option<Self> {
        let late = |late| Some(Self::Late(late));
        match name {
            "request_uri" => Some(Self::RequestUri),
            "escaped_request_uri" => Some(Self::EscapedRequestUri),
            "uri" | "document_uri" => Some(Self::Uri),
            "args" | "query_string" => Some(Self::Args),
            "host" | "server_name" => Some(Self::Host),
            "http_host" | "best_http_host" => Some(Self::HttpHost),
            "scheme" | "pass_access_scheme" => Some(Self::Scheme),
            "server_port" | "pass_server_port" | "pass_port" => Some(Self::Port),
            "server_protocol" => Some(Self::Protocol),
            "request_method" => Some(Self::Method),
            "request" => Some(Self::Request),
            "remote_addr"
            | "binary_remote_addr"
            | "the_real_ip"
            | "proxy_protocol_addr"
            | "realip_remote_addr" => Some(Self::RemoteAddr),
            "remote_port" => Some(Self::RemotePort),
            "remote_user" => Some(Self::RemoteUser),
            "req_id" | "request_id" => Some(Self::RequestId),
            "namespace" => Some(Self::Namespace),
            "ingress_name" => Some(Self::Ingress),
            "service_name" => Some(Self::Service),
            "service_port" => Some(Self::ServicePort),
            "location_path" => Some(Self::Path),
            "proxy_upstream_name" => Some(Self::UpstreamName),
            "ssl_protocol" => Some(Self::SslProtocol),
            "ssl_server_name" => Some(Self::SslServerName),
            "status" => late(Late::Status),
            "body_bytes_sent" | "bytes_sent" => late(Late::BytesSent),
            "request_length" => late(Late::RequestLength),
            "request_time" => late(Late::RequestTime),
            "time_local" => late(Late::TimeLocal),
            "time_iso8601" => late(Late::TimeIso),
            "msec" => late(Late::Msec),
            "upstream_addr" => late(Late::UpstreamAddr),
            "upstream_status" => late(Late::UpstreamStatus),
            "upstream_response_time" => late(Late::UpstreamTime),
            "upstream_response_length" => late(Late::UpstreamLength),
            "proxy_alternative_upstream_name" => late(Late::Alternative),
            other => Self::family(other),
        }
    }

    fn family(name: &str) -> Option<Self> {
        if let Some(header) = name.strip_prefix("http_") {
            return header.replace('_', "-").parse().ok().map(Self::Header);
        }
        if let Some(cookie) = name.strip_prefix("cookie_") {
            return Some(Self::Cookie(cookie.into()));
        }
        name.strip_prefix("arg_").map(|arg| Self::Arg(arg.into()))
    }
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Text(String),
    /// To be filled in.
    Variable(Variable),
}

/// A text with variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template(Vec<Part>);

impl Template {
    /// Splits a text at its variables.
    ///
    /// # Errors
    /// A variable that there is not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            plain.push_str(before);
            let (name, left) = match after.strip_prefix('{') {
                Some(braced) => {
                    braced.split_once('}').ok_or_else(|| format!("{text:?} has a ${{ without its end"))?
                }
                None => {
                    let end =
                        after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                    after.split_at(end)
                }
            };
            if name.is_empty() {
                plain.push('$');
                rest = after;
                continue;
            }
            let variable =
                Variable::named(name).ok_or_else(|| format!("there is no variable ${name} here"))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Variable(variable));
            rest = left;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// The same for texts that are read before an answer is sent.
    ///
    /// # Errors
    /// A variable that there is not, or not yet.
    pub fn early(text: &str) -> Result<Self, String> {
        let template = Self::parse(text)?;
        match template.0.iter().any(|part| matches!(part, Part::Variable(Variable::Late(_)))) {
            true => {
                Err(format!("{text:?} names a variable of access logs, which has no value before the answer"))
            }
            false => Ok(template),
        }
    }

    /// Whether nothing is to be filled in.
    pub fn is_text(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// Filled in.
    pub fn fill(&self, mut value: impl FnMut(&Variable, &mut String)) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(variable) => value(variable, &mut out),
            }
        }
        out
    }

    /// Filled in as far as can be now; what is late stays.
    pub fn begin(&self, mut value: impl FnMut(&Variable, &mut String)) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => plain.push_str(text),
                Part::Variable(Variable::Late(_)) => {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(part.clone());
                }
                Part::Variable(variable) => value(variable, &mut plain),
            }
        }
        parts.push(Part::Text(plain));
        Self(parts)
    }
}

/// The value of a query's argument, as it was sent.
pub(crate) fn argument<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// A text as a query's value may hold it.
pub(crate) fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => drop(write!(out, "%{other:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn texts_are_split_at_their_variables() {
        let template = Template::parse("a$host/${arg_id}x$http_x_mine$").unwrap();
        let filled = template.fill(|variable, out| {
            let _ = write!(out, "<{variable:?}>");
        });
        assert_eq!(filled, "a<Host>/<Arg(\"id\")>x<Header(\"x-mine\")>$");
        assert!(Template::parse("plain").unwrap().is_text());
        for bad in ["$no_such", "${host", "${}"] {
            let parsed = Template::parse(bad);
            assert!(parsed.is_err() || bad == "${}", "{bad}");
        }
        assert!(Template::early("$status").is_err());
    }

    #[test]
    fn what_is_late_is_filled_in_late() {
        let line = Template::parse("$host $status $host").unwrap();
        let begun = line.begin(|_, out| out.push('h'));
        assert_eq!(begun.fill(|_, out| out.push_str("200")), "h 200 h");
    }

    #[test]
    fn escapes() {
        let mut out = String::new();
        escape("/a?b=c d", &mut out);
        assert_eq!(out, "%2Fa%3Fb%3Dc%20d");
        assert_eq!(argument("a=1&B=2&c", "b"), Some("2"));
        assert_eq!(argument("a=1&B=2&c", "c"), Some(""));
        assert_eq!(argument("a=1", "x"), None);
    }
}
