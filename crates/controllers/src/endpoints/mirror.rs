//! EndpointSlice mirroring: hand-written Endpoints of a selectorless Service, as slices.

use std::collections::BTreeMap;

use client::endpoints::SERVICE_NAME;
use client::{ObjectKey, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};

use super::packing::{Envelope, Wanted, pack};
use super::select::{Family, Port};
use super::slices::{service_of, slices_of, write};
use super::{HEADLESS, MANAGED_BY, TRIGGER_TIME, selector_of};
use crate::expectations::Expectations;
use crate::kit::{Context, Error};
use crate::meta::{self, Map};

const COMPONENT: &str = "endpoint-slice-mirroring-controller";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses mirrored per subset at most.
const PER_SUBSET: usize = 1000;

/// Runs the mirroring controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.services),
        ctx.ready(&informers.endpoints),
        ctx.ready(&informers.slices)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let expectations = Expectations::default();
    tokio::join!(
        ctx.feed(&informers.services, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.endpoints, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.slices, &queue, |change| service_of(change.object(), MANAGER)),
        ctx.work(COMPONENT, 2, &queue, |key| reconcile(&ctx, &expectations, key)),
    );
}

/// Whether Endpoints are to be mirrored at all.
fn wants_mirror(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    meta::labels(meta).get(SKIP).is_none_or(|v| v != "true")
        && !meta::annotations(meta).contains_key(LEADER)
        && !meta::deleting(meta)
}

fn wanted(endpoints: &Endpoints) -> Wanted {
    let mut wanted = Wanted::new();
    for subset in endpoints.subsets.iter().flatten() {
        let port = |p: &k8s_openapi::api::core::v1::EndpointPort| Port {
            name: p.name.clone().unwrap_or_default(),
            number: p.port,
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: p.app_protocol.clone(),
        };
        let ports: std::collections::BTreeSet<Port> = subset.ports.iter().flatten().map(port).collect();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (address, ready) in ready.chain(unready).take(PER_SUBSET) {
            // What is no address (a name, say) cannot be in a slice.
            let Some(family) = Family::of(&address.ip) else { continue };
            wanted.entry((family, ports.clone())).or_default().push(endpoint(address, ready));
        }
    }
    wanted
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

async fn reconcile(ctx: &Context, expectations: &Expectations, key: ObjectKey) -> Result<Outcome, Error> {
    if let Some(wait) = expectations.pending(&key, &ctx.informers.slices) {
        return Ok(Outcome::After(wait));
    }
    let existing = slices_of(ctx, &key, MANAGER);
    let service = ctx.informers.services.get_key(&key).filter(|s| {
        selector_of(s).is_none()
            && s.spec.as_ref().is_some_and(|s| s.selector.as_ref().is_none_or(Map::is_empty))
    });
    let endpoints = ctx.informers.endpoints.get_key(&key).filter(|e| wants_mirror(e) && service.is_some());
    let (wanted, envelope) = match &endpoints {
        Some(endpoints) => (wanted(endpoints), envelope(endpoints)),
        None if existing.is_empty() => return Ok(Outcome::Done),
        None => (Wanted::new(), envelope(&Endpoints::default())),
    };
    write(ctx, expectations, &key, pack(&existing, wanted, &envelope)).await?;
    Ok(Outcome::Done)
}

fn envelope(endpoints: &Endpoints) -> Envelope {
    let name = meta::name(&endpoints.metadata).to_owned();
    let mut labels = meta::labels(&endpoints.metadata).clone();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations: Map = BTreeMap::clone(meta::annotations(&endpoints.metadata));
    annotations.remove(LAST_APPLIED);
    let trigger = annotations.remove(TRIGGER_TIME);
    Envelope {
        namespace: meta::namespace(&endpoints.metadata).to_owned(),
        prefix: name,
        labels,
        owner: meta::controller_ref(endpoints),
        trigger,
        annotations,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn addresses_of_both_families_keep_their_readiness() {
        let endpoints: Endpoints = serde_json::from_value(serde_json::json!({"metadata": {"name": "db"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]}]}))
        .unwrap();
        let show: Vec<String> = wanted(&endpoints)
            .into_iter()
            .flat_map(|((family, _), all)| {
                all.into_iter().map(move |e| {
                    let ready = e.conditions.unwrap().ready.unwrap();
                    format!("{} {} {ready}", family.name(), e.addresses[0])
                })
            })
            .collect();
        assert_eq!(show, ["IPv4 192.0.2.1 true", "IPv4 192.0.2.2 false", "IPv6 2001:db8::1 true"]);
        let mut skipped = endpoints.clone();
        skipped.metadata.labels = Some([(SKIP.into(), "true".into())].into());
        assert!(wants_mirror(&endpoints) && !wants_mirror(&skipped));
    }
}
