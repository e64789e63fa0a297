//! The fields of a request that its way decides on: whom it asks for, what ends with its connection, who it says asks.

use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Version};

use crate::annotations::Protocol;

/// Headers of one connection, besides those that `Connection` names.
const HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// From where and how a request came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub address: SocketAddr,
    pub secure: bool,
    pub port: u16,
}

/// Whom a request asks for.
pub(crate) struct Asked {
    /// As the client wrote it, with its port.
    pub raw: HeaderValue,
    /// Lower case, no port.
    pub host: String,
}

impl Asked {
    pub(crate) fn of<B>(request: &Request<B>) -> Result<Self, StatusCode> {
        let bad = StatusCode::BAD_REQUEST;
        let mut fields = request.headers().get_all(header::HOST).iter();
        let raw = match (request.uri().authority(), fields.next()) {
            // An absolute target and HTTP/2's :authority count for more than the field (RFC 9112, 3.2.2).
            (Some(authority), _) => HeaderValue::from_str(authority.as_str()).map_err(|_| bad)?,
            (None, Some(field)) => field.clone(),
            (None, None) if request.version() < Version::HTTP_11 => HeaderValue::from_static(""),
            (None, None) => return Err(bad),
        };
        if fields.next().is_some() {
            return Err(bad);
        }
        let host = host_of(raw.to_str().map_err(|_| bad)?).ok_or(bad)?;
        Ok(Self { raw, host })
    }
}

/// The host of `Host: host[:port]`, if it can be one.
fn host_of(field: &str) -> Option<String> {
    if field.starts_with('[') {
        let (literal, rest) = field.split_once(']')?;
        let is_port = rest.is_empty() || rest.strip_prefix(':').is_some_and(digits);
        return (is_port && literal[1..].parse::<std::net::Ipv6Addr>().is_ok())
            .then(|| format!("{literal}]"));
    }
    let host = match field.rsplit_once(':') {
        Some((host, port)) if digits(port) => host,
        Some(_) => return None,
        None => field,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (host.len() <= 253 && host.bytes().all(legal)).then(|| host.to_ascii_lowercase())
}

fn digits(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit())
}

/// Takes away what belongs to one connection.
pub(crate) fn pass_on(headers: &mut HeaderMap, protocol: Protocol) {
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let listed = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named: Vec<HeaderName> =
        listed.flat_map(|v| v.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in named.iter().chain(&HOP) {
        // Framing is not the client's to take away.
        if *name != header::CONTENT_LENGTH && *name != header::HOST {
            headers.remove(name);
        }
    }
    // Ours to answer, and what CGI programs take for a setting.
    headers.remove(header::EXPECT);
    headers.remove("proxy");
    if trailers && protocol == Protocol::Grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Says who asks for what, whatever the client claimed.
pub(crate) fn identify(headers: &mut HeaderMap, asked: &Asked, peer: Peer) -> Result<(), StatusCode> {
    let text = |s: &str| HeaderValue::from_str(s).map_err(|_| StatusCode::BAD_REQUEST);
    let scheme = HeaderValue::from_static(if peer.secure { "https" } else { "http" });
    let client = text(&peer.address.ip().to_canonical().to_string())?;
    headers.remove(header::FORWARDED);
    if let Some(claimed) = headers.remove("x-forwarded-for") {
        headers.insert("x-original-forwarded-for", claimed);
    }
    headers.entry("x-request-id").or_insert(text(&format!("{:032x}", rand::random::<u128>()))?);
    headers.insert(header::HOST, asked.raw.clone());
    headers.insert("x-real-ip", client.clone());
    headers.insert("x-forwarded-for", client);
    headers.insert("x-forwarded-host", asked.raw.clone());
    headers.insert("x-forwarded-port", HeaderValue::from(peer.port));
    headers.insert("x-forwarded-proto", scheme.clone());
    headers.insert("x-forwarded-scheme", scheme.clone());
    headers.insert("x-scheme", scheme);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn hosts() {
        for (field, host) in [
            ("foo.bar.com", Some("foo.bar.com")),
            ("FOO.bar.com:8080", Some("foo.bar.com")),
            ("foo.bar.com.", Some("foo.bar.com")),
            ("", Some("")),
            ("192.168.49.2:30080", Some("192.168.49.2")),
            ("[fd00::1]:80", Some("[fd00::1]")),
            ("a b", None),
            ("a/b", None),
            ("a:b", None),
            ("a@b", None),
            ("[nonsense]", None),
            ("[", None),
        ] {
            assert_eq!(host_of(field).as_deref(), host, "{field}");
        }
    }

    #[test]
    fn one_host_is_needed() {
        let status = |request: http::request::Builder| Asked::of(&request.body(()).unwrap()).err();
        let bad = Some(StatusCode::BAD_REQUEST);
        assert_eq!(status(Request::get("/")), bad);
        assert_eq!(status(Request::get("/").header("host", "a").header("host", "b")), bad);
        assert_eq!(status(Request::get("/").version(Version::HTTP_10)), None);
        let absolute = Request::get("http://one/").header("host", "two").body(()).unwrap();
        assert_eq!(Asked::of(&absolute).unwrap().host, "one");
    }

    #[test]
    fn headers_of_a_connection_end_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine, content-length, host"),
            ("x-mine", "1"),
            ("content-length", "3"),
            ("host", "h"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy", "evil"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        pass_on(&mut headers, Protocol::Http);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    #[test]
    fn nobody_says_for_us_who_asks() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        let asked = Asked { raw: "a.example:80".parse().unwrap(), host: "a.example".into() };
        let address = "[::ffff:10.0.0.9]:4000".parse().unwrap();
        identify(&mut headers, &asked, Peer { address, secure: false, port: 80 }).unwrap();
        for (name, value) in [
            ("x-forwarded-for", "10.0.0.9"),
            ("x-real-ip", "10.0.0.9"),
            ("x-original-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "a.example:80"),
            ("x-forwarded-port", "80"),
            ("host", "a.example:80"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        assert_eq!(headers["x-request-id"].len(), 32);
    }
}
