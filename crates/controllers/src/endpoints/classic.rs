//! The Endpoints controller: one object per Service, addresses grouped by the ports they share.

use std::collections::{BTreeMap, BTreeSet};

use client::{ObjectKey, Outcome, Regarding, WorkQueue};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use kube::api::{DeleteParams, ObjectMeta};

use super::select::{Backend, Family, Port, families, select};
use super::slices::target;
use super::trigger::Triggers;
use super::{HEADLESS, TRIGGER_TIME, has_cluster_ip, pods_of, selector_of, services_of};
use crate::expectations::Expectations;
use crate::kit::{
    Context, Doing, Error, is_already_exists, is_namespace_terminating, message_of, post, unless_gone,
};
use crate::{meta, pods};

const COMPONENT: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one Endpoints object at most; unready ones are left out first.
const CAPACITY: usize = 1000;

/// Runs the Endpoints controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.services),
        ctx.ready(&informers.pods),
        ctx.ready(&informers.endpoints)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let (expectations, triggers) = (Expectations::default(), Triggers::default());
    let (services, all) = (informers.services.clone(), informers.services.clone());
    tokio::join!(
        ctx.feed(&informers.services, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.pods, &queue, move |change| services_of(&services, change)),
        ctx.feed(&informers.endpoints, &queue, move |change| {
            let key = ObjectKey::of(&**change.object());
            // Without a Service, Endpoints of other makers (leader election) live on their own; ours are leftovers.
            let ours = meta::labels(&change.object().metadata).contains_key(MANAGED_BY);
            (ours || all.get_key(&key).is_some()).then_some(key)
        }),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, &expectations, &triggers, key)),
    );
}

/// The subsets of a Service, as upstream's `RepackSubsets` packs them: ports with the same addresses in the same
/// condition share a subset. `true` if addresses had to be left out.
fn subsets(service: &Service, backends: &[Backend<'_>]) -> (Vec<EndpointSubset>, bool) {
    let family = families(service).first().copied().unwrap_or(Family::IPv4);
    let has_ports = service.spec.as_ref().and_then(|s| s.ports.as_ref()).is_some_and(|p| !p.is_empty());
    let unready_too = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
    let mut shown: Vec<(&Backend<'_>, &str)> = backends
        .iter()
        .filter(|b| unready_too || !b.terminating)
        .filter_map(|b| b.address(family).map(|address| (b, address)))
        .collect();
    let truncated = shown.len() > CAPACITY;
    shown.sort_by_key(|(b, address)| (!b.ready, *address, meta::uid(&b.pod.metadata)));
    shown.truncate(CAPACITY);
    // Port -> the places (index into `shown`) that have it. No port at all is a place's only port.
    let mut places: BTreeMap<Option<&Port>, BTreeSet<usize>> = BTreeMap::new();
    for (at, (backend, _)) in shown.iter().enumerate() {
        if has_ports {
            for port in &backend.ports {
                places.entry(Some(port)).or_default().insert(at);
            }
        } else if !has_cluster_ip(service) {
            places.entry(None).or_default().insert(at);
        }
    }
    let mut groups: BTreeMap<BTreeSet<usize>, Vec<&Port>> = BTreeMap::new();
    for (port, at) in places {
        groups.entry(at).or_default().extend(port);
    }
    let subset = |(at, ports): (BTreeSet<usize>, Vec<&Port>)| {
        let address = |ready: bool| {
            let of = at.iter().map(|i| &shown[*i]).filter(|(b, _)| b.ready == ready);
            let mut list: Vec<EndpointAddress> = of.map(|(b, ip)| address(b, ip)).collect();
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
            (!list.is_empty()).then_some(list)
        };
        let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
        EndpointSubset {
            addresses: address(true),
            not_ready_addresses: address(false),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    (groups.into_iter().map(subset).collect(), truncated)
}

fn port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then(|| port.name.clone()),
        port: port.number,
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}

fn address(backend: &Backend<'_>, ip: &str) -> EndpointAddress {
    let node = pods::node(backend.pod);
    EndpointAddress {
        ip: ip.to_owned(),
        hostname: backend.hostname.map(str::to_owned),
        node_name: (!node.is_empty()).then(|| node.to_owned()),
        target_ref: Some(target(backend.pod)),
    }
}

/// The object as it should be, or `None` if `current` already is.
fn desired(
    service: &Service,
    current: Option<&Endpoints>,
    (subsets, truncated): (Vec<EndpointSubset>, bool),
    trigger: Option<String>,
) -> Option<Endpoints> {
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let mut labels = meta::labels(&service.metadata).clone();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.into(), COMPONENT.into());
    if !has_cluster_ip(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let mut annotations = current.map(|c| meta::annotations(&c.metadata).clone()).unwrap_or_default();
    let was_truncated = annotations.remove(OVER_CAPACITY).is_some();
    let same = current.is_some_and(|c| {
        c.subsets.clone().filter(|s| !s.is_empty()) == subsets
            && *meta::labels(&c.metadata) == labels
            && was_truncated == truncated
    });
    if same {
        return None;
    }
    annotations.remove(TRIGGER_TIME);
    annotations.extend(trigger.map(|t| (TRIGGER_TIME.to_owned(), t)));
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    let metadata = ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        resource_version: current.and_then(|c| c.metadata.resource_version.clone()),
        uid: current.and_then(|c| c.metadata.uid.clone()),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..ObjectMeta::default()
    };
    Some(Endpoints { metadata, subsets })
}

async fn reconcile(
    ctx: &Context,
    expectations: &Expectations,
    triggers: &Triggers,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let api = ctx.api::<Endpoints>(&key.namespace);
    let current = ctx.informers.endpoints.get_key(&key);
    let Some(service) = ctx.informers.services.get_key(&key) else {
        expectations.forget(&key);
        triggers.forget(&key);
        // Endpoints have no owner reference; they go with their Service, whoever wrote them.
        if current.is_some() {
            let deleted = unless_gone(api.delete(&key.name, &DeleteParams::default()).await);
            deleted.doing("delete endpoints", &key)?;
        }
        return Ok(Outcome::Done);
    };
    let Some(selector) = selector_of(&service).filter(|_| !meta::deleting(&service.metadata)) else {
        return Ok(Outcome::Done);
    };
    if let Some(wait) = expectations.pending(&key, &ctx.informers.endpoints) {
        return Ok(Outcome::After(wait));
    }
    let pods = pods_of(ctx, &key, &selector);
    let trigger = triggers.next(&key, &service, pods.iter().map(|p| &**p));
    let backends = select(&service, pods.iter().map(|p| &**p));
    let Some(desired) = desired(&service, current.as_deref(), subsets(&service, &backends), trigger) else {
        return Ok(Outcome::Done);
    };
    let written = match &current {
        Some(_) => api.replace(&key.name, &post(), &desired).await,
        None => api.create(&post(), &desired).await,
    };
    match written {
        Ok(written) => expectations.wrote(&key, written.metadata.resource_version),
        // The cache will show it in a moment.
        Err(error) if is_already_exists(&error) => return Ok(Outcome::Retry),
        Err(error) => {
            if !is_namespace_terminating(&error) {
                let verb = if current.is_some() { "Update" } else { "Create" };
                let message =
                    format!("Failed to {} endpoint {key}: {}", verb.to_lowercase(), message_of(&error));
                let reason = format!("FailedTo{verb}Endpoint");
                ctx.recorder.warning(COMPONENT, Regarding::of(&*service), &reason, message);
            }
            return Err(error).doing("write endpoints", &key);
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::fixtures::pod;
    use k8s_openapi::api::core::v1::Pod;

    fn show(subsets: &[EndpointSubset]) -> Vec<String> {
        let ips = |l: &Option<Vec<EndpointAddress>>| {
            l.iter().flatten().map(|a| a.ip.as_str()).collect::<Vec<_>>().join(",")
        };
        let ports = |s: &EndpointSubset| {
            let ports = s
                .ports
                .iter()
                .flatten()
                .map(|p| format!("{}:{}", p.name.clone().unwrap_or_default(), p.port));
            ports.collect::<Vec<_>>().join(",")
        };
        subsets
            .iter()
            .map(|s| format!("{}|{} {}", ips(&s.addresses), ips(&s.not_ready_addresses), ports(s)))
            .collect()
    }

    #[test]
    fn ports_with_the_same_addresses_share_a_subset() {
        let service: Service =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "svc"}, "spec": {
            "clusterIP": "10.96.0.9", "ports": [{"name": "a", "port": 1, "targetPort": "one"},
                {"name": "b", "port": 2, "targetPort": "two"}, {"name": "c", "port": 3}]}}))
            .unwrap();
        let with = |mut pod: Pod, ports: serde_json::Value| {
            let container = serde_json::json!({"name": "c", "ports": ports});
            pod.spec.as_mut().unwrap().containers.push(serde_json::from_value(container).unwrap());
            pod
        };
        let both =
            serde_json::json!([{"name": "one", "containerPort": 11}, {"name": "two", "containerPort": 22}]);
        let pods = [
            with(pod("a").ip("10.0.0.2").ready_at(1).build(), both.clone()),
            with(pod("b").ip("10.0.0.1").running().build(), both),
            with(
                pod("c").ip("10.0.0.3").ready_at(1).build(),
                serde_json::json!([{"name": "one", "containerPort": 12}]),
            ),
            pod("gone").ip("10.0.0.4").ready_at(1).deleting().build(),
        ];
        let (subsets, truncated) = subsets(&service, &select(&service, pods.iter()));
        assert_eq!(
            show(&subsets),
            ["10.0.0.2,10.0.0.3|10.0.0.1 c:3", "10.0.0.2|10.0.0.1 a:11,b:22", "10.0.0.3| a:12"]
        );
        assert!(!truncated);
        let first = desired(&service, None, (subsets.clone(), false), None).unwrap();
        assert!(desired(&service, Some(&first), (subsets, false), None).is_none());
        assert!(desired(&service, Some(&first), (vec![], false), None).is_some());
    }

    #[test]
    fn unready_addresses_are_left_out_first() {
        let service: Service = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "svc"}, "spec": {"clusterIP": "None", "ports": []}}),
        )
        .unwrap();
        let pods: Vec<Pod> = (0..1100)
            .map(|n| {
                let pod = pod(&format!("p{n}")).ip(&format!("10.1.{}.{}", n / 250, n % 250));
                if n % 2 == 0 { pod.ready_at(1).build() } else { pod.running().build() }
            })
            .collect();
        let (subsets, truncated) = subsets(&service, &select(&service, pods.iter()));
        assert!(truncated);
        assert_eq!(subsets[0].addresses.as_ref().unwrap().len(), 550);
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap().len(), 450);
    }
}
