//! Which endpoints serve a port of a Service: one answer for all who forward to them. Pure; the rules are upstream's
//! proxy's.
//!
//! * Ready endpoints serve; where there are none, those that still serve while they terminate (KEP-1669).
//! * Hints narrow ready endpoints to those meant for a client's node or zone (KEP-2433, KEP-3015): only when every
//!   ready endpoint has hints and one is for the client; else they are ignored.
//! * Endpoints of one node are chosen by readiness alone.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice};

use crate::ObjectKey;

/// The label that names the Service of a slice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names the zone of a node.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// The Service that a slice belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.clone()?, name))
}

/// How far an endpoint serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes new connections.
    Ready,
    /// It terminates and still serves.
    Terminating,
    /// Neither.
    Unready,
}

/// How far an endpoint serves; what a slice does not say is to its favour.
pub fn state(endpoint: &Endpoint) -> State {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready) != Some(false);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => State::Ready,
        (false, true) => State::Terminating,
        (false, false) => State::Unready,
    }
}

/// Where a client is.
#[derive(Debug, Clone, Copy)]
pub struct Near<'a> {
    /// The name of its node.
    pub node: &'a str,
    /// The zone of its node, if it has one.
    pub zone: Option<&'a str>,
}

struct Candidate<'a> {
    addr: SocketAddr,
    ready: bool,
    node: Option<&'a str>,
    hints: Option<&'a EndpointHints>,
}

impl Candidate<'_> {
    fn for_nodes(&self) -> impl Iterator<Item = &str> {
        self.hints.into_iter().flat_map(|h| h.for_nodes.iter().flatten()).map(|n| n.name.as_str())
    }

    fn for_zones(&self) -> impl Iterator<Item = &str> {
        self.hints.into_iter().flat_map(|h| h.for_zones.iter().flatten()).map(|z| z.name.as_str())
    }
}

/// The endpoints of one port that serve, or would when no better one is there.
pub struct Candidates<'a>(Vec<Candidate<'a>>);

impl<'a> Candidates<'a> {
    /// Of a Service's port in its slices, joined by name and protocol as upstream does.
    pub fn of<E: Borrow<EndpointSlice>>(port: &ServicePort, slices: &'a [E]) -> Self {
        let wanted = (or(&port.name, ""), or(&port.protocol, "TCP"));
        let mut found = Vec::new();
        for slice in slices.iter().map(Borrow::borrow) {
            let number = slice.ports.iter().flatten().find_map(|p| {
                let fits = (or(&p.name, ""), or(&p.protocol, "TCP")) == wanted;
                p.port.filter(|_| fits).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
            });
            let Some(number) = number else { continue };
            for endpoint in &slice.endpoints {
                let state = state(endpoint);
                // One endpoint is one Pod: its further addresses are the same Pod again.
                let addr = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok());
                let Some(addr) = addr.filter(|_| state != State::Unready) else { continue };
                found.push(Candidate {
                    addr: SocketAddr::new(addr, number),
                    ready: state == State::Ready,
                    node: endpoint.node_name.as_deref(),
                    hints: endpoint.hints.as_ref(),
                });
            }
        }
        Self(found)
    }

    /// Only those of one address family.
    #[must_use]
    pub fn in_family(mut self, ipv4: bool) -> Self {
        self.0.retain(|c| c.addr.is_ipv4() == ipv4);
        self
    }

    /// Those that serve clients at that place, wherever they are themselves; at no place, hints count for nothing.
    pub fn cluster(&self, near: Option<Near<'_>>) -> BTreeSet<SocketAddr> {
        let ready: Vec<&Candidate<'_>> = self.0.iter().filter(|c| c.ready).collect();
        if ready.is_empty() {
            return self.0.iter().map(|c| c.addr).collect();
        }
        let all = || ready.iter().map(|c| c.addr).collect();
        let Some(near) = near else { return all() };
        let own_node = hinted(&ready, |c| c.for_nodes().any(|n| n == near.node), |c| c.for_nodes().count());
        let own_zone = |zone| hinted(&ready, |c| c.for_zones().any(|z| z == zone), |c| c.for_zones().count());
        own_node.or_else(|| own_zone(near.zone?)).unwrap_or_else(all)
    }

    /// Those of one node that serve.
    pub fn local(&self, node: &str) -> BTreeSet<SocketAddr> {
        let local = || self.0.iter().filter(|c| c.node == Some(node));
        let ready: BTreeSet<SocketAddr> = local().filter(|c| c.ready).map(|c| c.addr).collect();
        if ready.is_empty() { local().map(|c| c.addr).collect() } else { ready }
    }
}

/// A word that may be missing or empty.
fn or<'a>(word: &'a Option<String>, default: &'a str) -> &'a str {
    word.as_deref().filter(|w| !w.is_empty()).unwrap_or(default)
}

/// Those that are meant for a client, if all say for whom they are and at least one is.
fn hinted(
    ready: &[&Candidate<'_>],
    meant: impl Fn(&Candidate<'_>) -> bool,
    hints: impl Fn(&Candidate<'_>) -> usize,
) -> Option<BTreeSet<SocketAddr>> {
    if ready.iter().any(|c| hints(c) == 0) {
        return None;
    }
    let chosen: BTreeSet<SocketAddr> = ready.iter().filter(|c| meant(c)).map(|c| c.addr).collect();
    (!chosen.is_empty()).then_some(chosen)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::{Value, json};

    /// Endpoints as (last byte, node, flags r(eady) t(erminating and serving), zone hints, node hints).
    type Row<'a> = (u8, &'a str, &'a str, &'a [&'a str], &'a [&'a str]);

    fn slice(rows: &[Row<'_>]) -> EndpointSlice {
        let named = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<Value>>();
        let endpoints: Vec<Value> = rows
            .iter()
            .map(|(byte, node, flags, zones, nodes)| {
                let (r, t) = (flags.contains('r'), flags.contains('t'));
                json!({"addresses": [format!("10.0.0.{byte}"), "10.9.9.9"], "nodeName": node,
                    "conditions": {"ready": r, "serving": r || t, "terminating": t},
                    "hints": {"forZones": named(zones), "forNodes": named(nodes)}})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "", "port": 80, "protocol": "TCP"}]}))
        .unwrap()
    }

    fn shown(set: BTreeSet<SocketAddr>) -> Vec<String> {
        set.iter().map(|a| a.ip().to_string().rsplit('.').next().unwrap().to_owned()).collect()
    }

    fn cluster(rows: &[Row<'_>], node: &str, zone: Option<&str>) -> Vec<String> {
        let slices = [slice(rows)];
        shown(Candidates::of(&ServicePort::default(), &slices).cluster(Some(Near { node, zone })))
    }

    #[test]
    fn ready_ones_serve_and_else_those_that_terminate() {
        let rows: [Row<'_>; 4] = [
            (1, "a", "r", &[], &[]),
            (2, "a", "t", &[], &[]),
            (3, "b", "t", &[], &[]),
            (4, "b", "", &[], &[]),
        ];
        let slices = [slice(&rows)];
        let all = Candidates::of(&ServicePort::default(), &slices);
        assert_eq!((shown(all.cluster(None)), shown(all.local("a"))), (vec!["1".into()], vec!["1".into()]));
        assert_eq!(shown(all.local("b")), ["3"], "a node falls back on its own");
        assert_eq!(cluster(&rows[1..], "a", None), ["2", "3"]);
        assert!(cluster(&rows[3..], "a", None).is_empty());
        assert!(shown(all.in_family(false).cluster(None)).is_empty());
    }

    #[test]
    fn hints_are_followed_only_when_all_have_them_and_one_fits() {
        let (one, two): (Row<'_>, Row<'_>) = ((1, "a", "r", &["z1"], &[]), (2, "b", "r", &["z2"], &[]));
        assert_eq!(cluster(&[one, two], "a", Some("z1")), ["1"]);
        assert_eq!(cluster(&[one, two], "a", Some("z3")), ["1", "2"], "none for this zone");
        assert_eq!(cluster(&[one, two], "a", None), ["1", "2"], "a node without a zone");
        assert_eq!(cluster(&[one, (2, "b", "r", &[], &[])], "a", Some("z1")), ["1", "2"], "one has no hint");
        assert_eq!(
            cluster(&[one, (2, "b", "", &[], &[])], "a", Some("z1")),
            ["1"],
            "unready ones do not count"
        );
        let both: [Row<'_>; 2] = [(1, "a", "r", &["z1"], &["a"]), (2, "b", "r", &["z1"], &["b"])];
        assert_eq!(cluster(&both, "b", Some("z1")), ["2"], "the node before the zone");
        assert_eq!(cluster(&both, "c", Some("z1")), ["1", "2"], "the zone when the node has none");
        let ending: [Row<'_>; 2] = [(1, "a", "t", &["z1"], &[]), (2, "b", "t", &["z2"], &[])];
        assert_eq!(cluster(&ending, "a", Some("z1")), ["1", "2"], "terminating ones serve everybody");
    }

    #[test]
    fn ports_are_joined_by_name_and_protocol() {
        let slices = [slice(&[(1, "a", "r", &[], &[])])];
        for (name, protocol, found) in
            [(None, None, 1), (Some(""), Some("TCP"), 1), (None, Some("UDP"), 0), (Some("x"), None, 0)]
        {
            let port = ServicePort {
                name: name.map(str::to_owned),
                protocol: protocol.map(str::to_owned),
                ..ServicePort::default()
            };
            assert_eq!(Candidates::of(&port, &slices).cluster(None).len(), found, "{name:?} {protocol:?}");
        }
    }
}
