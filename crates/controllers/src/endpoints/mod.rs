//! From Services and Pods to Endpoints and EndpointSlices.
//!
//! One function ([`select::select`]) decides which Pod stands behind a Service, at which addresses and ports and in
//! which condition; [`slices`] packs the answer into EndpointSlices, [`classic`] into Endpoints, so the two cannot
//! disagree. [`mirror`] turns hand-written Endpoints of selectorless Services into slices.

mod classic;
mod hints;
mod mirror;
mod packing;
mod select;
mod slices;
mod trigger;

pub(crate) use classic::run as run_endpoints;
pub(crate) use mirror::run as run_mirroring;
pub(crate) use slices::run as run_slices;

use std::sync::Arc;

use client::{Change, Informer, ObjectKey};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::core::{Selector, SelectorExt};

use crate::kit::Context;
use crate::{meta, pods};

/// On slices: who writes them.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// On both, for Services without a cluster address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// When the change that led to this version happened, for latency measurements.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// `spec.clusterIP` is an address.
fn has_cluster_ip(service: &Service) -> bool {
    let ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or("");
    !ip.is_empty() && ip != "None"
}

/// The selector of a Service whose endpoints we keep; `None` for selectorless and ExternalName Services.
fn selector_of(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|map| !map.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| meta::map_selector(selector))
}

/// The Pods that a Service's selector takes.
fn pods_of(ctx: &Context, service: &ObjectKey, selector: &Selector) -> Vec<Arc<Pod>> {
    let mut pods = ctx.informers.pods.list_in(&service.namespace);
    pods.retain(|pod| selector.matches(meta::labels(&pod.metadata)));
    pods
}

/// The Services that a change of a Pod concerns: those that select it, or selected it before.
fn services_of(services: &Informer<Service>, change: &Change<Pod>) -> Vec<ObjectKey> {
    let pod = change.object();
    let old = match change {
        Change::Applied { old: Some(old), .. } if same_endpoint(old, pod) => return Vec::new(),
        Change::Applied { old, .. } => old.as_ref(),
        Change::Deleted(_) => None,
    };
    let labels = meta::labels(&pod.metadata);
    let before = old.map(|o| meta::labels(&o.metadata)).filter(|b| *b != labels);
    let concerns = |service: &Service| {
        selector_of(service).is_some_and(|s| s.matches(labels) || before.is_some_and(|b| s.matches(b)))
    };
    let all = services.list_in(meta::namespace(&pod.metadata)).into_iter();
    all.filter(|s| concerns(s)).map(|s| ObjectKey::of(&*s)).collect()
}

/// Nothing that shows in an endpoint differs: most status updates of a Pod.
fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    let facts = |pod: &Pod| {
        (
            pods::ready(pod),
            pods::finished(pod),
            meta::deleting(&pod.metadata),
            pod.metadata.labels.clone(),
            pod.metadata.uid.clone(),
            pod.status.as_ref().map(|s| (s.pod_ip.clone(), s.pod_ips.clone())),
        )
    };
    facts(a) == facts(b) && pods::node(a) == pods::node(b)
}
