//! For whom an endpoint is meant: hints that proxies follow (KEP-2433, KEP-3015, KEP-4444). Pure.
//!
//! `spec.trafficDistribution` keeps clients to their zone or node and leaves the balance to its author. The annotation
//! `service.kubernetes.io/topology-mode: Auto`, which comes first, gives each zone as many endpoints as its share of the
//! cluster's processors asks for, and gives up where that would overload some of them by more than a fifth.

use std::collections::BTreeMap;

use client::endpoints::ZONE;
use client::quantity::millis;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, EndpointSlice, ForNode, ForZone};

use super::packing::Wanted;
use super::select::Family;
use crate::meta;

const MODES: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
/// Their processors are not for what Services serve.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// How much more than its share an endpoint may get, before hints do more harm than good.
const OVERLOAD: f64 = 0.2;

/// What a Service asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Nobody,
    SameZone,
    SameNode,
    Auto,
}

pub(super) fn mode(service: &Service) -> Mode {
    let annotations = meta::annotations(&service.metadata);
    if MODES.iter().any(|key| annotations.get(*key).is_some_and(|v| v == "Auto" || v == "auto")) {
        return Mode::Auto;
    }
    match service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Mode::SameZone,
        Some("PreferSameNode") => Mode::SameNode,
        _ => Mode::Nobody,
    }
}

/// Each zone's share of the processors that Pods run on; `None` when a node does not say its zone or size.
pub(super) fn shares<'a>(nodes: impl Iterator<Item = &'a Node>) -> Option<BTreeMap<String, f64>> {
    let mut zones: BTreeMap<String, f64> = BTreeMap::new();
    for node in nodes.filter(|node| serves(node)) {
        let zone = meta::labels(&node.metadata).get(ZONE).filter(|zone| !zone.is_empty())?;
        let allocatable = node.status.as_ref()?.allocatable.as_ref()?;
        let cpu = allocatable.get("cpu").and_then(millis).filter(|cpu| *cpu > 0)?;
        *zones.entry(zone.clone()).or_default() += cpu as f64;
    }
    let total: f64 = zones.values().sum();
    zones.values_mut().for_each(|share| *share /= total);
    Some(zones)
}

fn serves(node: &Node) -> bool {
    let labels = meta::labels(&node.metadata);
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && !CONTROL_PLANE.iter().any(|label| labels.contains_key(*label))
}

/// Whether slices carry hints by zone.
pub(super) fn are_in(slices: &[EndpointSlice]) -> bool {
    slices.iter().flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.hints.is_some())
}

/// Writes the hints; with [`Mode::Auto`] all or none, and none for a reason.
pub(super) fn write(
    mode: Mode,
    wanted: &mut Wanted,
    shares: impl Fn() -> Option<BTreeMap<String, f64>>,
) -> Result<(), String> {
    match mode {
        Mode::Nobody => {}
        Mode::SameZone => ready(wanted, None).for_each(|e| e.hints = close(e, false)),
        Mode::SameNode => ready(wanted, None).for_each(|e| e.hints = close(e, true)),
        Mode::Auto => {
            let shares = shares().ok_or("Nodes do not all have a zone and allocatable CPU")?;
            for family in [Family::IPv4, Family::IPv6] {
                let mut endpoints: Vec<&mut Endpoint> = ready(wanted, Some(family)).collect();
                if let Err(why) = balance(&mut endpoints, &shares) {
                    ready(wanted, None).for_each(|e| e.hints = None);
                    return Err(why);
                }
            }
        }
    }
    Ok(())
}

fn ready(wanted: &mut Wanted, only: Option<Family>) -> impl Iterator<Item = &mut Endpoint> {
    let rows = wanted.iter_mut().filter(move |((family, _), _)| only.is_none_or(|o| o == *family));
    let all = rows.flat_map(|(_, row)| row);
    all.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
}

fn zone(name: &str) -> Vec<ForZone> {
    vec![ForZone { name: name.to_owned() }]
}

fn close(endpoint: &Endpoint, node_too: bool) -> Option<EndpointHints> {
    let for_zones = endpoint.zone.as_deref().map(zone);
    let node = endpoint.node_name.as_ref().filter(|_| node_too);
    let for_nodes = node.map(|name| vec![ForNode { name: name.clone() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

/// Gives each zone its share of the endpoints: its own first, and from zones with too many to those with too few.
fn balance(endpoints: &mut [&mut Endpoint], shares: &BTreeMap<String, f64>) -> Result<(), String> {
    let count = endpoints.len();
    if count == 0 {
        return Ok(());
    }
    if shares.len() < 2 {
        return Err("Insufficient number of zones (at least two are needed)".into());
    }
    if count < shares.len() {
        let (have, need) = (count, shares.len());
        return Err(format!("Insufficient number of endpoints ({have} endpoints, {need} zones)"));
    }
    let least = |share: f64| (share * count as f64 / (1.0 + OVERLOAD)).ceil() as usize;
    let sum: usize = shares.values().map(|share| least(*share)).sum();
    if sum > count {
        return Err(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold"
                .into(),
        );
    }
    let mut zones: BTreeMap<&str, Vec<usize>> = shares.keys().map(|z| (z.as_str(), Vec::new())).collect();
    let mut homeless = Vec::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let own = endpoint.zone.as_deref().ok_or("One or more endpoints do not have a zone specified")?;
        match zones.get_mut(own) {
            Some(row) => row.push(i),
            None => homeless.push(i),
        }
    }
    // What a zone has beyond what it needs; all zones together have enough, so that this ends.
    let beyond = |(name, row): (&&str, &Vec<usize>)| row.len() as i64 - least(shares[*name]) as i64;
    loop {
        let poorest = zones.iter().min_by_key(|zone| beyond(*zone)).map(|zone| (*zone.0, beyond(zone)));
        let richest = zones.iter().max_by_key(|zone| beyond(*zone)).map(|zone| *zone.0);
        let (Some((poor, has)), Some(rich)) = (poorest, richest) else { break };
        let given = match homeless.pop() {
            Some(given) => Some(given),
            None if has < 0 => zones.get_mut(rich).and_then(Vec::pop),
            None => None,
        };
        let Some(given) = given else { break };
        zones.entry(poor).or_default().push(given);
    }
    for (name, row) in &zones {
        for i in row {
            endpoints[*i].hints = Some(EndpointHints { for_nodes: None, for_zones: Some(zone(name)) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeSet;

    use k8s_openapi::api::discovery::v1::EndpointConditions;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rows(zones: &[&str]) -> Wanted {
        let endpoint = |(i, zone): (usize, &&str)| Endpoint {
            addresses: vec![format!("10.0.0.{i}")],
            conditions: Some(EndpointConditions { ready: Some(true), ..Default::default() }),
            node_name: Some(format!("n{i}")),
            zone: (!zone.is_empty()).then(|| (*zone).to_owned()),
            ..Endpoint::default()
        };
        [((Family::IPv4, BTreeSet::new()), zones.iter().enumerate().map(endpoint).collect())].into()
    }

    fn hints(wanted: &Wanted) -> Vec<String> {
        let names = |hints: &EndpointHints| {
            let zones = hints.for_zones.iter().flatten().map(|z| z.name.clone());
            let nodes = hints.for_nodes.iter().flatten().map(|n| n.name.clone());
            zones.chain(nodes).collect::<Vec<_>>().join("+")
        };
        wanted.values().flatten().map(|e| e.hints.as_ref().map(names).unwrap_or_default()).collect()
    }

    fn written(mode: Mode, zones: &[&str], shares: &[(&str, f64)]) -> (Result<(), String>, Vec<String>) {
        let mut wanted = rows(zones);
        let shares = shares.iter().map(|(z, s)| ((*z).to_owned(), *s)).collect::<BTreeMap<_, _>>();
        let result = write(mode, &mut wanted, || Some(shares.clone()));
        (result, hints(&wanted))
    }

    #[test]
    fn clients_are_kept_close() {
        assert_eq!(written(Mode::SameZone, &["a", "b", ""], &[]).1, ["a", "b", ""]);
        assert_eq!(written(Mode::SameNode, &["a", "b", ""], &[]).1, ["a+n0", "b+n1", "n2"]);
        assert_eq!(written(Mode::Nobody, &["a"], &[]).1, [""]);
        let mut unready = rows(&["a"]);
        unready.values_mut().flatten().for_each(|e| e.conditions.as_mut().unwrap().ready = Some(false));
        write(Mode::SameZone, &mut unready, || None).unwrap();
        assert_eq!(hints(&unready), [""], "who is not ready is meant for nobody");
    }

    #[test]
    fn what_a_service_asks_for() {
        let asks = |annotation: Option<&str>, distribution: Option<&str>| {
            let annotations = annotation.map(|value| json!({"service.kubernetes.io/topology-mode": value}));
            let spec = json!({"trafficDistribution": distribution});
            mode(
                &serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec}))
                    .unwrap(),
            )
        };
        assert_eq!(asks(None, None), Mode::Nobody);
        assert_eq!(asks(None, Some("PreferClose")), Mode::SameZone);
        assert_eq!(asks(None, Some("PreferSameZone")), Mode::SameZone);
        assert_eq!(asks(None, Some("PreferSameNode")), Mode::SameNode);
        assert_eq!(asks(Some("Auto"), Some("PreferClose")), Mode::Auto, "the annotation comes first");
        assert_eq!(asks(Some("Disabled"), Some("PreferClose")), Mode::SameZone);
    }

    #[test]
    fn zones_get_their_share_or_nobody_gets_hints() {
        let half = [("a", 0.5), ("b", 0.5)];
        assert_eq!(written(Mode::Auto, &["a", "a", "b", "b"], &half).1, ["a", "a", "b", "b"]);
        // All in one zone: half of them are for the other.
        let (ok, lopsided) = written(Mode::Auto, &["a", "a", "a", "a"], &half);
        assert!(ok.is_ok() && lopsided.iter().filter(|z| *z == "b").count() == 2, "{lopsided:?}");
        let refused = |zones: &[&str], shares: &[(&str, f64)]| {
            let (result, hints) = written(Mode::Auto, zones, shares);
            assert!(hints.iter().all(String::is_empty), "{hints:?}");
            result.unwrap_err()
        };
        assert!(refused(&["a"], &half).starts_with("Insufficient number of endpoints"));
        assert!(refused(&["a", "a"], &[("a", 1.0)]).starts_with("Insufficient number of zones"));
        assert!(refused(&["a", ""], &half).contains("do not have a zone"));
        assert!(refused(&["a", "b", "c"], &[("a", 0.5), ("b", 0.5), ("c", 0.0001)]).contains("overload"));
    }

    fn node(name: &str, zone: Option<&str>, cpu: &str, labels: &[&str], ready: bool) -> Node {
        let mut all: BTreeMap<String, String> = labels.iter().map(|l| ((*l).into(), String::new())).collect();
        all.extend(zone.map(|zone| (ZONE.into(), zone.into())));
        let ready = if ready { "True" } else { "False" };
        serde_json::from_value(json!({"metadata": {"name": name, "labels": all}, "status": {
            "allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    #[test]
    fn shares_are_those_of_the_processors() {
        let mut nodes = vec![
            node("a", Some("z1"), "2", &[], true),
            node("b", Some("z2"), "6", &[], true),
            node("c", None, "8", &["node-role.kubernetes.io/control-plane"], true),
            node("d", None, "8", &[], false),
        ];
        let expected: BTreeMap<String, f64> = [("z1".into(), 0.25), ("z2".into(), 0.75)].into();
        assert_eq!(shares(nodes.iter()), Some(expected));
        nodes.push(node("e", None, "1", &[], true));
        assert_eq!(shares(nodes.iter()), None);
    }

    proptest! {
        /// Every ready endpoint is for exactly one zone, and no zone has less than it needs.
        #[test]
        fn nobody_is_overloaded(places in prop::collection::vec(0usize..4, 1..40), weights in prop::collection::vec(1u32..9, 3)) {
            let names = ["a", "b", "c", "elsewhere"];
            let zones: Vec<&str> = places.iter().map(|p| names[*p]).collect();
            let total: u32 = weights.iter().sum();
            let shares: Vec<(&str, f64)> =
                names.iter().zip(&weights).map(|(n, w)| (*n, f64::from(*w) / f64::from(total))).collect();
            let (result, hints) = written(Mode::Auto, &zones, &shares);
            if result.is_err() {
                prop_assert!(hints.iter().all(String::is_empty));
                return Ok(());
            }
            for (name, share) in shares {
                let has = hints.iter().filter(|h| *h == name).count() as f64;
                let wish = share * zones.len() as f64;
                prop_assert!(has >= wish / 1.2 - 1e-9, "{name} has {has} of {wish}: {hints:?}");
            }
            prop_assert!(hints.iter().all(|h| h != "elsewhere" && !h.is_empty()));
        }
    }
}
