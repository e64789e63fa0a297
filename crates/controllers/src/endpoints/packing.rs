//! Packing endpoints into slices of at most a hundred with as few writes as possible: pure.
//!
//! Endpoints that are already in a slice stay there; a slice that changes anyway is filled first; what is left goes
//! into one unchanged slice if it fits, else into new ones; a slice that would be deleted lends its name to one that
//! would be created. Slices hold endpoints of one family and one set of ports.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::TRIGGER_TIME;
use super::select::{Family, Port};
use crate::meta::{self, Map};

/// Endpoints in one slice at most.
pub(super) const PER_SLICE: usize = 100;

/// What slices should hold: per family and set of ports, the endpoints. A family with no endpoints has one empty row.
pub(super) type Wanted = BTreeMap<(Family, BTreeSet<Port>), Vec<Endpoint>>;

/// One write.
#[derive(Debug, PartialEq)]
pub(super) enum Write {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete { name: String, uid: String },
}

/// What all slices of one Service share.
pub(super) struct Envelope {
    pub namespace: String,
    /// The prefix of generated names, without the dash.
    pub prefix: String,
    pub labels: Map,
    pub owner: OwnerReference,
    pub trigger: Option<String>,
    /// Annotations beside the trigger time.
    pub annotations: Map,
}

/// The name of an endpoint through all its changes.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    let uid = endpoint.target_ref.as_ref().and_then(|r| r.uid.clone().or_else(|| r.name.clone()));
    (endpoint.addresses.clone(), uid)
}

fn ports_of(slice: &EndpointSlice) -> BTreeSet<Port> {
    let port = |p: &EndpointPort| Port {
        name: p.name.clone().unwrap_or_default(),
        number: p.port.unwrap_or(0),
        protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: p.app_protocol.clone(),
    };
    slice.ports.iter().flatten().map(port).collect()
}

fn slice_ports(ports: &BTreeSet<Port>) -> Vec<EndpointPort> {
    let port = |p: &Port| EndpointPort {
        name: Some(p.name.clone()),
        port: Some(p.number),
        protocol: Some(p.protocol.clone()),
        app_protocol: p.app_protocol.clone(),
    };
    ports.iter().map(port).collect()
}

/// The writes that turn `existing` into `wanted`.
pub(super) fn pack(existing: &[EndpointSlice], wanted: Wanted, envelope: &Envelope) -> Vec<Write> {
    let mut stale: Vec<EndpointSlice> = Vec::new();
    let mut groups: BTreeMap<(Family, BTreeSet<Port>), Vec<EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        let family = if slice.address_type == "IPv6" { Family::IPv6 } else { Family::IPv4 };
        let key = (family, ports_of(slice));
        if wanted.contains_key(&key) && slice.address_type == family.name() {
            groups.entry(key).or_default().push(slice.clone());
        } else {
            stale.push(slice.clone());
        }
    }
    let mut updates = Vec::new();
    let mut creates = Vec::new();
    for (key, endpoints) in wanted {
        let slices = groups.remove(&key).unwrap_or_default();
        let packed = pack_group(slices, endpoints, envelope);
        updates.extend(packed.updates);
        stale.extend(packed.empty);
        creates.extend(packed.overflow.into_iter().map(|chunk| (key.clone(), chunk)));
    }
    let mut writes: Vec<Write> = updates.into_iter().map(|s| Write::Update(Box::new(s))).collect();
    for ((family, ports), endpoints) in creates {
        let reusable = stale.iter().position(|s| s.address_type == family.name());
        let old = reusable.map(|at| stale.remove(at));
        let slice = dress(old, family, &ports, endpoints, envelope);
        writes.push(match slice.metadata.name {
            Some(_) => Write::Update(Box::new(slice)),
            None => Write::Create(Box::new(slice)),
        });
    }
    writes.extend(stale.into_iter().map(|slice| Write::Delete {
        name: meta::name(&slice.metadata).to_owned(),
        uid: meta::uid(&slice.metadata).to_owned(),
    }));
    writes
}

struct Packed {
    updates: Vec<EndpointSlice>,
    empty: Vec<EndpointSlice>,
    /// The contents of slices to make.
    overflow: Vec<Vec<Endpoint>>,
}

fn pack_group(slices: Vec<EndpointSlice>, endpoints: Vec<Endpoint>, envelope: &Envelope) -> Packed {
    let placeholder = endpoints.is_empty();
    let mut left: BTreeMap<_, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let (mut changed, mut same) = (Vec::new(), Vec::new());
    for mut slice in slices {
        let kept: Vec<Endpoint> =
            slice.endpoints.iter().filter_map(|e| left.remove(&identity(e))).take(PER_SLICE).collect();
        if kept == slice.endpoints && is_dressed(&slice, envelope) {
            same.push(slice);
        } else {
            slice.endpoints = kept;
            changed.push(slice);
        }
    }
    let mut rest: Vec<Endpoint> = left.into_values().collect();
    // Fullest first: the emptiest may then stay empty and go.
    changed.sort_by_key(|s| std::cmp::Reverse(s.endpoints.len()));
    for slice in &mut changed {
        let room = PER_SLICE - slice.endpoints.len();
        slice.endpoints.extend(rest.drain(..room.min(rest.len())));
    }
    let whole = rest.len() - rest.len() % PER_SLICE;
    let mut remainder = rest.split_off(whole);
    let mut overflow: Vec<Vec<Endpoint>> = rest.chunks(PER_SLICE).map(<[Endpoint]>::to_vec).collect();
    if !remainder.is_empty() {
        let fits = |s: &EndpointSlice| s.endpoints.len() + remainder.len() <= PER_SLICE;
        let best = (0..same.len()).filter(|i| fits(&same[*i])).max_by_key(|i| same[*i].endpoints.len());
        match best {
            Some(best) => {
                let mut slice = same.remove(best);
                slice.endpoints.append(&mut remainder);
                changed.push(slice);
            }
            None => overflow.push(remainder),
        }
    }
    let (mut updates, mut empty): (Vec<_>, Vec<_>) =
        changed.into_iter().partition(|s| !s.endpoints.is_empty());
    if placeholder {
        // Exactly one empty slice: keep one that is there, or make one.
        match (same.is_empty(), empty.is_empty()) {
            (true, false) => updates.push(empty.remove(0)),
            (true, true) => overflow.push(Vec::new()),
            (false, _) => empty.extend(same.drain(1..)),
        }
    } else {
        empty.extend(same.into_iter().filter(|s| s.endpoints.is_empty()));
    }
    let updates = updates.into_iter().map(|slice| redress(slice, envelope)).collect();
    Packed { updates, empty, overflow }
}

/// Labels and owner are as they should be.
fn is_dressed(slice: &EndpointSlice, envelope: &Envelope) -> bool {
    let mut annotations = meta::annotations(&slice.metadata).clone();
    annotations.remove(TRIGGER_TIME);
    meta::labels(&slice.metadata) == &envelope.labels
        && annotations == envelope.annotations
        && slice.metadata.owner_references.iter().flatten().any(|r| r.uid == envelope.owner.uid)
}

fn redress(mut slice: EndpointSlice, envelope: &Envelope) -> EndpointSlice {
    slice.metadata.labels = Some(envelope.labels.clone());
    slice.metadata.owner_references = Some(vec![envelope.owner.clone()]);
    let mut annotations = envelope.annotations.clone();
    if let Some(trigger) = &envelope.trigger {
        annotations.insert(TRIGGER_TIME.into(), trigger.clone());
    }
    slice.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    slice
}

fn dress(
    old: Option<EndpointSlice>,
    family: Family,
    ports: &BTreeSet<Port>,
    endpoints: Vec<Endpoint>,
    envelope: &Envelope,
) -> EndpointSlice {
    let metadata = old.map(|s| s.metadata).unwrap_or_else(|| ObjectMeta {
        generate_name: Some(format!("{}-", envelope.prefix)),
        namespace: Some(envelope.namespace.clone()),
        ..ObjectMeta::default()
    });
    let address_type = family.name().to_owned();
    let slice = EndpointSlice { metadata, address_type, endpoints, ports: Some(slice_ports(ports)) };
    redress(slice, envelope)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn endpoint(n: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", n / 256, n % 256)], ..Endpoint::default() }
    }

    fn envelope() -> Envelope {
        Envelope {
            namespace: "ns".into(),
            prefix: "svc".into(),
            labels: [("a".into(), "b".into())].into(),
            owner: OwnerReference { uid: "svc".into(), ..OwnerReference::default() },
            trigger: None,
            annotations: Map::new(),
        }
    }

    fn ports(number: i32) -> BTreeSet<Port> {
        let name = String::new();
        [Port { name, number, protocol: "TCP".into(), app_protocol: None }].into()
    }

    fn wanted(port: i32, endpoints: impl IntoIterator<Item = usize>) -> Wanted {
        let endpoints: Vec<Endpoint> = endpoints.into_iter().map(endpoint).collect();
        let ports = if endpoints.is_empty() { BTreeSet::new() } else { ports(port) };
        [((Family::IPv4, ports), endpoints)].into()
    }

    /// Applies writes; returns (created, updated, deleted).
    fn apply(slices: &mut Vec<EndpointSlice>, wanted: Wanted) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for write in pack(slices, wanted, &envelope()) {
            match write {
                Write::Create(mut slice) => {
                    counts.0 += 1;
                    let next = slices.iter().filter_map(|s| s.metadata.name.as_ref()?[1..].parse().ok());
                    let next: i32 = next.max().unwrap_or(0) + 1;
                    slice.metadata.name = Some(format!("s{next}"));
                    slices.push(*slice);
                }
                Write::Update(slice) => {
                    counts.1 += 1;
                    let at = slices.iter().position(|s| s.metadata.name == slice.metadata.name).unwrap();
                    slices[at] = *slice;
                }
                Write::Delete { name, .. } => {
                    counts.2 += 1;
                    slices.retain(|s| s.metadata.name.as_deref() != Some(&name));
                }
            }
        }
        counts
    }

    #[test]
    fn few_writes() {
        let mut slices = Vec::new();
        assert_eq!(apply(&mut slices, wanted(80, [])), (1, 0, 0));
        assert_eq!(slices[0].ports, Some(vec![]));
        assert_eq!(apply(&mut slices, wanted(80, [])), (0, 0, 0));
        // The placeholder becomes the first real slice.
        assert_eq!(apply(&mut slices, wanted(80, 0..3)), (0, 1, 0));
        assert_eq!(apply(&mut slices, wanted(80, 0..250)), (2, 1, 0));
        assert_eq!(apply(&mut slices, wanted(80, 0..250)), (0, 0, 0));
        assert_eq!(apply(&mut slices, wanted(80, 1..250)), (0, 1, 0));
        // One added endpoint fills the hole of one slice.
        assert_eq!(apply(&mut slices, wanted(80, 0..250)), (0, 1, 0));
        // A changed port renames nothing.
        assert_eq!(apply(&mut slices, wanted(81, 0..250)), (0, 3, 0));
        assert_eq!(apply(&mut slices, wanted(81, [])), (0, 1, 2));
        assert!(slices[0].endpoints.is_empty());
    }

    proptest! {
        #[test]
        fn every_endpoint_is_in_exactly_one_slice(
            steps in prop::collection::vec((80..82i32, prop::collection::btree_set(0usize..400, 0..350)), 1..6)
        ) {
            let mut slices = Vec::new();
            for (port, set) in steps {
                apply(&mut slices, wanted(port, set.clone()));
                let mut held: Vec<String> =
                    slices.iter().flat_map(|s| s.endpoints.iter().map(|e| e.addresses[0].clone())).collect();
                let mut want: Vec<String> = set.iter().map(|n| endpoint(*n).addresses[0].clone()).collect();
                held.sort();
                want.sort();
                prop_assert_eq!(held, want);
                prop_assert!(slices.iter().all(|s| s.endpoints.len() <= PER_SLICE));
                let expected: BTreeSet<Port> = if set.is_empty() { BTreeSet::new() } else { ports(port) };
                prop_assert!(slices.iter().all(|s| ports_of(s) == expected));
                prop_assert!(slices.len() == 1 || slices.iter().all(|s| !s.endpoints.is_empty()));
                prop_assert_eq!(apply(&mut slices, wanted(port, set)), (0, 0, 0));
            }
        }
    }
}
