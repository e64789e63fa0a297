//! The fields of a message as they go on: without what ends with the connection that they came on, and, of a request, with
//! who asks for what. Maps and lists are used again by the next requests of their thread.

use std::cell::RefCell;

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::annotations::upstream::Protocol;
use crate::configmap::Global;
use crate::fields::{Asked, Client, Peer, REQUEST_ID, SCHEME, written};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

thread_local! {
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}
/// Maps that a thread keeps for the next requests, and how large they may be.
const SPARES: usize = 64;
const SPARE_FIELDS: usize = 64;

/// A map that has room already: growing one costs more than all that is put into it.
pub(crate) fn spare() -> HeaderMap {
    let kept = SPARE.with(|spare| spare.try_borrow_mut().ok()?.pop());
    kept.unwrap_or_else(|| HeaderMap::with_capacity(24))
}

/// Keeps a map that is no longer needed.
pub(crate) fn give_back(mut headers: HeaderMap) {
    if !(16..=SPARE_FIELDS).contains(&headers.capacity()) {
        return;
    }
    headers.clear();
    SPARE.with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.len() < SPARES
        {
            spare.push(headers);
        }
    });
}

/// Fields in the order in which they are written: of so few, a look at each costs less than a hash of one.
#[derive(Debug, Default, Clone)]
pub(crate) struct Fields(Vec<(HeaderName, HeaderValue)>);

thread_local! {
    static LISTS: RefCell<Vec<Vec<(HeaderName, HeaderValue)>>> = const { RefCell::new(Vec::new()) };
}

impl Fields {
    fn new() -> Self {
        let kept = LISTS.with(|lists| lists.try_borrow_mut().ok()?.pop());
        Self(kept.unwrap_or_else(|| Vec::with_capacity(24)))
    }

    /// Adds a field, beside others of its name.
    pub fn push(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push((name, value));
    }

    /// Adds a field in place of all of its name.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        self.remove(&name);
        self.push(name, value);
    }

    pub fn remove(&mut self, name: &HeaderName) {
        self.0.retain(|(own, _)| own != name);
    }

    /// Puts these in place of all of their names.
    pub fn extend(&mut self, headers: &HeaderMap) {
        headers.keys().for_each(|name| self.remove(name));
        self.0.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// The same, for those who want a map.
    pub fn map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len());
        for (name, value) in self.iter() {
            map.append(name, value.clone());
        }
        map
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        LISTS.with(|lists| {
            if let Ok(mut lists) = lists.try_borrow_mut()
                && lists.len() < SPARES
                && (1..=SPARE_FIELDS).contains(&list.capacity())
            {
                lists.push(list);
            }
        });
    }
}

/// What ends with the connection that it came on.
struct Hop(Vec<HeaderName>);

impl Hop {
    fn of(headers: &HeaderMap) -> Self {
        let listed = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
        let names = listed.flat_map(|v| v.split(',')).map(str::trim);
        // Most say no more than this.
        let names = names.filter(|name| !name.eq_ignore_ascii_case("keep-alive"));
        Self(names.filter_map(|name| name.parse().ok()).collect())
    }

    fn ends(&self, name: &HeaderName) -> bool {
        match name.as_str() {
            // RFC 9110, 7.6.1; `Expect` is ours to answer, `Proxy` is what CGI programs take for a setting.
            "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
            | "expect" | "proxy" => true,
            // Framing is not the client's to take away.
            "content-length" | "host" => false,
            _ => self.0.contains(name),
        }
    }
}

/// Takes away what belongs to one connection.
pub(crate) fn pass_on(headers: &mut HeaderMap) {
    let hop = Hop::of(headers);
    let ended: Vec<HeaderName> = headers.keys().filter(|name| hop.ends(name)).cloned().collect();
    for name in ended {
        headers.remove(name);
    }
}

/// Whether a field of a request is ours to write, whatever the client says.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "content-length"
            | "forwarded"
            | "x-request-id"
            | "x-real-ip"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
            | "x-forwarded-scheme"
            | "x-scheme"
    )
}

/// Who asks, how and for whom.
pub(crate) struct Asks<'a> {
    pub asked: &'a Asked,
    pub client: &'a Client,
    pub peer: &'a Peer,
    pub id: &'a HeaderValue,
}

/// The fields of a request that go on to a backend, and who asks for what, whatever the client claimed.
pub(crate) fn onward(
    headers: &HeaderMap,
    protocol: Protocol,
    asks: &Asks<'_>,
    global: &Global,
) -> Result<Fields, StatusCode> {
    let Asks { asked, client, peer, id } = asks;
    let hop = Hop::of(headers);
    let mut out = Fields::new();
    // Most requests have none of these, and a look-up costs a hash.
    let (mut coding, mut claimed, mut claimed_host) = (None, None, None);
    for (name, value) in headers {
        if *name == FORWARDED_FOR {
            claimed.get_or_insert(value);
        } else if *name == FORWARDED_HOST {
            claimed_host.get_or_insert(value);
        } else if *name == header::TE {
            coding.get_or_insert(value);
        } else if !is_ours(name) && !hop.ends(name) {
            out.push(name.clone(), value.clone());
        }
    }
    let trailers = coding.is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if trailers && protocol == Protocol::Grpc {
        out.push(header::TE, HeaderValue::from_static("trailers"));
    }
    let text = |s: &str| HeaderValue::from_str(s).map_err(|_| StatusCode::BAD_REQUEST);
    let scheme = HeaderValue::from_static(client.scheme());
    let direct = peer.address.ip().to_canonical();
    let address = if client.address == direct { peer.text().clone() } else { written(client.address) };
    let mut chain = address.clone();
    if let Some(claimed) = claimed.filter(|_| !hop.ends(&FORWARDED_FOR)) {
        if global.full_forwarded {
            chain = text(&format!("{}, {direct}", claimed.to_str().map_err(|_| StatusCode::BAD_REQUEST)?))?;
        }
        out.insert(HeaderName::from_static("x-original-forwarded-for"), claimed.clone());
    }
    let host = claimed_host.filter(|_| global.forwarded && !hop.ends(&FORWARDED_HOST));
    let host = host.unwrap_or(&asked.raw).clone();
    let port = match client.port {
        80 => HeaderValue::from_static("80"),
        443 => HeaderValue::from_static("443"),
        other => HeaderValue::from(other),
    };
    out.push(REQUEST_ID, (*id).clone());
    out.push(HeaderName::from_static("x-real-ip"), address);
    out.push(FORWARDED_FOR, chain);
    out.push(FORWARDED_HOST, host);
    out.push(HeaderName::from_static("x-forwarded-port"), port);
    out.push(SCHEME, scheme.clone());
    out.push(HeaderName::from_static("x-forwarded-scheme"), scheme.clone());
    out.push(HeaderName::from_static("x-scheme"), scheme);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

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
        pass_on(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    #[test]
    fn nobody_says_for_us_who_asks() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        headers.insert("x-mine", "2".parse().unwrap());
        headers.insert("connection", "x-mine".parse().unwrap());
        let asked = Asked { raw: "a.example:80".parse().unwrap(), host: "a.example".into() };
        let (peer, global) = (Peer::new("[::ffff:10.0.0.9]:4000".parse().unwrap(), 80), Global::default());
        let client = Client::of(&headers, &peer, &global);
        let asks = Asks { asked: &asked, client: &client, peer: &peer, id: &"1".parse().unwrap() };
        let headers = onward(&headers, Protocol::Http, &asks, &global).unwrap().map();
        for (name, value) in [
            ("x-forwarded-for", "10.0.0.9"),
            ("x-real-ip", "10.0.0.9"),
            ("x-original-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "a.example:80"),
            ("x-forwarded-port", "80"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        assert_eq!(headers["x-request-id"], "1");
        assert!(!headers.contains_key("x-mine") && !headers.contains_key("connection"));
    }
}
