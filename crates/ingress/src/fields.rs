//! The fields of a request that its way decides on: whom it asks for, and who it says asks.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{StatusCode, Version};

use crate::annotations::value::holds;
use crate::client_tls::TlsPeer;
use crate::configmap::Global;
use crate::front::Seat;

pub(crate) const SCHEME: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// From where and how a connection came.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub address: SocketAddr,
    pub port: u16,
    pub tls: Option<Arc<TlsPeer>>,
    /// The connection's place; none in tests.
    pub seat: Option<Arc<Seat>>,
    /// The address without its port, as backends are told.
    text: HeaderValue,
}

/// An address as a header's value.
pub(crate) fn written(address: IpAddr) -> HeaderValue {
    // Digits, letters, dots and colons are always good.
    HeaderValue::try_from(address.to_string()).unwrap_or(HeaderValue::from_static("-"))
}

impl Peer {
    /// A peer without TLS; `port` is the one by which it knows us.
    pub fn new(address: SocketAddr, port: u16) -> Self {
        Self { address, port, tls: None, seat: None, text: written(address.ip().to_canonical()) }
    }

    /// Somebody whom a proxy speaks for.
    pub fn instead(self, address: SocketAddr) -> Self {
        Self { tls: self.tls, seat: self.seat, ..Self::new(address, self.port) }
    }

    pub fn seated(self, seat: Arc<Seat>) -> Self {
        Self { seat: Some(seat), ..self }
    }

    pub fn secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The address without its port, as a header's value.
    pub fn text(&self) -> &HeaderValue {
        &self.text
    }
}

/// Who asks, after proxies that are trusted have said for whom.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub address: IpAddr,
    pub secure: bool,
    pub port: u16,
}

impl Client {
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    pub fn of(headers: &HeaderMap, peer: &Peer, global: &Global) -> Self {
        let direct = peer.address.ip().to_canonical();
        let own = Self { address: direct, secure: peer.secure(), port: peer.port };
        let trusts = |address| global.trusted.is_empty() || holds(&global.trusted, address);
        if !global.forwarded || !trusts(direct) {
            return own;
        }
        let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let mut hops = text(&global.forwarded_header).into_iter().flat_map(|list| list.rsplit(','));
        let mut address = direct;
        // From the nearest on, as far as those are trusted that say so.
        while trusts(address) {
            let Some(next) = hops.next().and_then(|hop| hop.trim().parse::<IpAddr>().ok()) else { break };
            address = next.to_canonical();
        }
        let secure = match text(&SCHEME) {
            Some("https") => true,
            Some("http") => false,
            _ => own.secure,
        };
        let port = headers.get("x-forwarded-port").and_then(|v| v.to_str().ok()?.parse().ok());
        Self { address, secure, port: port.unwrap_or(if secure { 443 } else { own.port }) }
    }
}

/// Whom a request asks for.
pub(crate) struct Asked {
    /// As the client wrote it, with its port.
    pub raw: HeaderValue,
    /// Lower case, no port.
    pub host: String,
}

impl Asked {
    pub(crate) fn of(request: &Parts) -> Result<Self, StatusCode> {
        let bad = StatusCode::BAD_REQUEST;
        let mut fields = request.headers.get_all(header::HOST).iter();
        let raw = match (request.uri.authority(), fields.next()) {
            // An absolute target and HTTP/2's :authority count for more than the field (RFC 9112, 3.2.2).
            (Some(authority), _) => HeaderValue::from_str(authority.as_str()).map_err(|_| bad)?,
            (None, Some(field)) => field.clone(),
            (None, None) if request.version < Version::HTTP_11 => HeaderValue::from_static(""),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use http::Request;

    fn peer(address: &str) -> Peer {
        Peer::new(address.parse().unwrap(), 80)
    }

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
        let status =
            |request: http::request::Builder| Asked::of(&request.body(()).unwrap().into_parts().0).err();
        let bad = Some(StatusCode::BAD_REQUEST);
        assert_eq!(status(Request::get("/")), bad);
        assert_eq!(status(Request::get("/").header("host", "a").header("host", "b")), bad);
        assert_eq!(status(Request::get("/").version(Version::HTTP_10)), None);
        let absolute = Request::get("http://one/").header("host", "two").body(()).unwrap();
        assert_eq!(Asked::of(&absolute.into_parts().0).unwrap().host, "one");
    }

    #[test]
    fn proxies_that_are_trusted_say_who_asks() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6, 9.9.9.9, 10.0.0.7".parse().unwrap());
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        let trusted = vec!["10.0.0.0/8".parse().unwrap()];
        let mut global = Global::default();
        (global.forwarded, global.trusted) = (true, trusted);
        let client = Client::of(&headers, &peer("10.0.0.9:1"), &global);
        assert_eq!((client.address, client.secure, client.port), ("9.9.9.9".parse().unwrap(), true, 443));
        let stranger = Client::of(&headers, &peer("8.8.8.8:1"), &global);
        assert_eq!((stranger.address, stranger.secure), ("8.8.8.8".parse().unwrap(), false));
        global.trusted.clear();
        assert_eq!(
            Client::of(&headers, &peer("8.8.8.8:1"), &global).address,
            "6.6.6.6".parse::<IpAddr>().unwrap()
        );
    }
}
