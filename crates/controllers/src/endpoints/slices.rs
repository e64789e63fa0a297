//! The EndpointSlice controller.

use std::collections::{BTreeMap, BTreeSet};

use client::endpoints::{SERVICE_NAME, ZONE};
use client::{Change, ObjectKey, Outcome, Regarding, WorkQueue};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use super::hints::{self, Mode};
use super::packing::{Envelope, Wanted, Write, pack};
use super::select::{Backend, families, select};
use super::trigger::Triggers;
use super::{HEADLESS, MANAGED_BY, has_cluster_ip, pods_of, selector_of, services_of};
use crate::expectations::Expectations;
use crate::kit::{
    Context, Doing, Error, delete_uid, is_namespace_terminating, message_of, post, unless_gone,
};
use crate::meta::{self, Map};

const COMPONENT: &str = "endpoint-slice-controller";
const MANAGER: &str = "endpointslice-controller.k8s.io";

/// Runs the EndpointSlice controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let informers = &ctx.informers;
    let ready = futures::try_join!(
        ctx.ready(&informers.services),
        ctx.ready(&informers.pods),
        ctx.ready(&informers.nodes),
        ctx.ready(&informers.slices)
    );
    if ready.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let (expectations, triggers) = (Expectations::default(), Triggers::default());
    let services = informers.services.clone();
    let all = informers.services.clone();
    tokio::join!(
        ctx.feed(&informers.services, &queue, |change| [ObjectKey::of(&**change.object())]),
        ctx.feed(&informers.pods, &queue, move |change| services_of(&services, change)),
        ctx.feed(&informers.slices, &queue, |change| service_of(change.object(), MANAGER)),
        ctx.feed(&informers.nodes, &queue, move |change| {
            let balanced = |s: &Service| hints::mode(s) == Mode::Auto;
            let keys = match (zone_moved(change), shares_moved(change)) {
                (true, _) => all.list(),
                (false, true) => all.filter(balanced),
                (false, false) => Vec::new(),
            };
            keys.into_iter().map(|s| ObjectKey::of(&*s)).collect::<Vec<_>>()
        }),
        ctx.work(COMPONENT, 4, &queue, |key| reconcile(&ctx, &expectations, &triggers, key)),
    );
}

/// The Service of a slice that `manager` keeps.
pub(super) fn service_of(slice: &EndpointSlice, manager: &str) -> Option<ObjectKey> {
    let labels = meta::labels(&slice.metadata);
    let service =
        labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|m| m == manager))?;
    Some(ObjectKey::new(meta::namespace(&slice.metadata), service.as_str()))
}

fn zone_moved(change: &Change<Node>) -> bool {
    let zone = |node: &Node| meta::labels(&node.metadata).get(ZONE).cloned();
    matches!(change, Change::Applied { new, old: Some(old) } if zone(new) != zone(old))
}

/// The zones' shares of the cluster may be others.
fn shares_moved(change: &Change<Node>) -> bool {
    let alone = |node: &Node| hints::shares([node].into_iter());
    !matches!(change, Change::Applied { new, old: Some(old) } if alone(new) == alone(old) && cpu(new) == cpu(old))
}

fn cpu(node: &Node) -> Option<&str> {
    Some(node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?.0.as_str())
}

/// What the slices of a Service should hold.
fn wanted(service: &Service, backends: &[Backend<'_>], zone: impl Fn(&str) -> Option<String>) -> Wanted {
    let mut wanted = Wanted::new();
    for family in families(service) {
        let mut any = false;
        for backend in backends {
            let Some(address) = backend.address(family) else { continue };
            any = true;
            let row = wanted.entry((family, backend.ports.clone())).or_default();
            row.push(endpoint(backend, address, &zone));
        }
        if !any {
            wanted.insert((family, BTreeSet::new()), Vec::new());
        }
    }
    wanted
}

fn endpoint(backend: &Backend<'_>, address: &str, zone: impl Fn(&str) -> Option<String>) -> Endpoint {
    let node = crate::pods::node(backend.pod);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.map(str::to_owned),
        node_name: (!node.is_empty()).then(|| node.to_owned()),
        target_ref: Some(target(backend.pod)),
        zone: zone(node).filter(|z| !z.is_empty()),
        ..Endpoint::default()
    }
}

/// The reference from an endpoint to its Pod.
pub(super) fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn labels(service: &Service) -> Map {
    let mut labels: Map = meta::labels(&service.metadata).clone();
    labels.remove(HEADLESS);
    if !has_cluster_ip(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), meta::name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

async fn reconcile(
    ctx: &Context,
    expectations: &Expectations,
    triggers: &Triggers,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let Some(service) = ctx.informers.services.get_key(&key) else {
        // The garbage collector takes the slices of a deleted Service.
        expectations.forget(&key);
        triggers.forget(&key);
        return Ok(Outcome::Done);
    };
    let Some(selector) = selector_of(&service).filter(|_| !meta::deleting(&service.metadata)) else {
        return Ok(Outcome::Done);
    };
    if let Some(wait) = expectations.pending(&key, &ctx.informers.slices) {
        return Ok(Outcome::After(wait));
    }
    let pods = pods_of(ctx, &key, &selector);
    let trigger = triggers.next(&key, &service, pods.iter().map(|p| &**p));
    let backends = select(&service, pods.iter().map(|p| &**p));
    let zones = |node: &str| {
        let node = ctx.informers.nodes.get("", node)?;
        meta::labels(&node.metadata).get(ZONE).cloned()
    };
    let envelope = Envelope {
        namespace: key.namespace.clone(),
        prefix: key.name.clone(),
        labels: labels(&service),
        owner: meta::controller_ref(&*service),
        trigger,
        annotations: BTreeMap::new(),
    };
    let existing = slices_of(ctx, &key, MANAGER);
    let mut wanted = wanted(&service, &backends, zones);
    write_hints(ctx, &service, &existing, &mut wanted);
    let writes = pack(&existing, wanted, &envelope);
    let result = write(ctx, expectations, &key, writes).await;
    if let Err(error) = &result
        && !is_namespace_terminating(&error.source)
    {
        let namespaced = format!("{}/{}", key.namespace, key.name);
        let message =
            format!("Error updating Endpoint Slices for Service {namespaced}: {}", message_of(&error.source));
        ctx.recorder.warning(COMPONENT, Regarding::of(&*service), "FailedToUpdateEndpointSlices", message);
    }
    result.map(|()| Outcome::Done)
}

/// Says for whom endpoints are meant; tells the Service's owner when zones begin or cease to be kept apart.
fn write_hints(ctx: &Context, service: &Service, existing: &[EndpointSlice], wanted: &mut Wanted) {
    let mode = hints::mode(service);
    let nodes = || hints::shares(ctx.informers.nodes.list().iter().map(|n| &**n));
    let result = hints::write(mode, wanted, nodes);
    let now = wanted.values().flatten().any(|e| e.hints.is_some());
    let (before, about) = (hints::are_in(existing), Regarding::of(service));
    match result {
        Ok(()) if mode == Mode::Auto && now && !before => {
            let message = "Topology Aware Hints has been enabled".to_owned();
            ctx.recorder.normal(COMPONENT, about, "TopologyAwareHintsEnabled", message);
        }
        Err(why) => ctx.recorder.warning(COMPONENT, about, "TopologyAwareHintsDisabled", why),
        Ok(()) => {}
    }
}

/// The slices of a Service that `manager` keeps.
pub(super) fn slices_of(ctx: &Context, service: &ObjectKey, manager: &str) -> Vec<EndpointSlice> {
    let all = ctx.informers.slices.list_in(&service.namespace).into_iter();
    let ours = |s: &EndpointSlice| {
        service_of(s, manager).is_some_and(|k| k == *service) && !meta::deleting(&s.metadata)
    };
    all.filter(|s| ours(s)).map(|s| (*s).clone()).collect()
}

/// Carries out the writes for one Service.
pub(super) async fn write(
    ctx: &Context,
    expectations: &Expectations,
    key: &ObjectKey,
    writes: Vec<Write>,
) -> Result<(), Error> {
    let api = ctx.api::<EndpointSlice>(&key.namespace);
    for write in writes {
        match write {
            Write::Create(slice) => {
                let made =
                    api.create(&post(), &slice).await.doing("create an endpoint slice of service", key)?;
                expectations.wrote(key, made.metadata.resource_version);
            }
            Write::Update(slice) => {
                let name = meta::name(&slice.metadata);
                let made = api.replace(name, &post(), &slice).await.doing("update endpoint slice", &name)?;
                expectations.wrote(key, made.metadata.resource_version);
            }
            Write::Delete { name, uid } => {
                let deleted = unless_gone(api.delete(&name, &delete_uid(&uid)).await);
                deleted.doing("delete endpoint slice", &name)?;
                expectations.deleted(key, ObjectKey::new(key.namespace.as_str(), &*name), &uid);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::fixtures::pod;

    fn service(spec: serde_json::Value) -> Service {
        let meta = serde_json::json!({"name": "svc", "namespace": "ns"});
        serde_json::from_value(serde_json::json!({"metadata": meta, "spec": spec})).unwrap()
    }

    /// `ports -> address flags@node/zone hostname`, flags r(eady) s(erving) t(erminating).
    fn show(service: &Service, pods: &[Pod]) -> Vec<String> {
        let backends = select(service, pods.iter());
        let zone = |node: &str| (node == "n1").then(|| "z1".to_owned());
        let mut lines = Vec::new();
        for ((family, ports), endpoints) in wanted(service, &backends, zone) {
            let ports: Vec<_> =
                ports.iter().map(|p| format!("{}:{}/{}", p.name, p.number, p.protocol)).collect();
            let head = format!("{} [{}]", family.name(), ports.join(" "));
            if endpoints.is_empty() {
                lines.push(head.clone());
            }
            for e in endpoints {
                let c = e.conditions.clone().unwrap();
                let flag = |on: Option<bool>, c: char| if on == Some(true) { c } else { '-' };
                lines.push(format!(
                    "{head} {} {}{}{} {}/{} {}",
                    e.addresses[0],
                    flag(c.ready, 'r'),
                    flag(c.serving, 's'),
                    flag(c.terminating, 't'),
                    e.node_name.unwrap_or_default(),
                    e.zone.unwrap_or_default(),
                    e.hostname.unwrap_or_default(),
                ));
            }
        }
        lines
    }

    fn with_port(mut pod: Pod, name: &str, number: i32) -> Pod {
        let container = serde_json::json!({"name": "c", "ports": [{"name": name, "containerPort": number}]});
        pod.spec.as_mut().unwrap().containers.push(serde_json::from_value(container).unwrap());
        pod
    }

    #[test]
    fn conditions_ports_and_places() {
        let web = service(serde_json::json!({"clusterIP": "10.96.0.5", "ports": [
            {"name": "http", "port": 80, "targetPort": "web"}, {"name": "fix", "port": 81, "protocol": "UDP"}]}));
        let mut named = with_port(pod("c").ip("10.0.0.3").ready_at(1).build(), "web", 9090);
        named.spec.as_mut().unwrap().hostname = Some("c0".into());
        named.spec.as_mut().unwrap().subdomain = Some("svc".into());
        let pods = [
            with_port(pod("a").ip("10.0.0.1").on("n1").ready_at(1).build(), "web", 8080),
            with_port(pod("b").ip("10.0.0.2").on("n2").running().build(), "web", 8080),
            named,
            pod("d").ip("10.0.0.4").ready_at(1).deleting().build(),
            pod("gone").ip("10.0.0.5").phase("Succeeded").build(),
            pod("homeless").running().build(),
        ];
        assert_eq!(
            show(&web, &pods),
            [
                "IPv4 [fix:81/UDP] 10.0.0.4 -st / ",
                "IPv4 [fix:81/UDP http:8080/TCP] 10.0.0.1 rs- n1/z1 ",
                "IPv4 [fix:81/UDP http:8080/TCP] 10.0.0.2 --- n2/ ",
                "IPv4 [fix:81/UDP http:9090/TCP] 10.0.0.3 rs- / c0",
            ]
        );
    }

    #[test]
    fn empty_headless_and_unready() {
        let empty = service(serde_json::json!({"ports": [{"port": 80}], "ipFamilies": ["IPv6", "IPv4"]}));
        assert_eq!(show(&empty, &[]), ["IPv4 []", "IPv6 []"]);
        let headless =
            service(serde_json::json!({"clusterIP": "None", "publishNotReadyAddresses": true, "ports": []}));
        let pods = [pod("a").ip("10.0.0.1").running().build(), pod("b").ip("10.0.0.2").deleting().build()];
        assert_eq!(show(&headless, &pods), ["IPv4 [] 10.0.0.1 r-- / ", "IPv4 [] 10.0.0.2 r-t / "]);
        assert!(labels(&headless).contains_key(HEADLESS));
    }
}
