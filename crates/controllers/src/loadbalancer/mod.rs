//! Addresses for Services of type LoadBalancer, with no cloud to ask: each gets one of its own per IP family from a pool on
//! the network of the nodes and the host, which the nodes then answer for (crate `proxy`).
//!
//! The record of what was given is the Services' status; the books in memory follow from it. A Service with a
//! `spec.loadBalancerClass` is somebody else's. An address is free again once its Service is deleted or of another type.
//! The API server clears the status of a Service that is no longer of the type.

mod pool;

use std::net::IpAddr;

use client::{ObjectKey, Outcome, Regarding, WorkQueue};
use k8s_openapi::api::core::v1::Service;
use kube::api::Patch;
use parking_lot::Mutex;
use serde_json::json;

use crate::kit::{Context, Doing, Error, patch, unless_gone};
use crate::meta;
use pool::{Pools, Wishes};

/// Upstream's controller of clouds has this name in Events.
const COMPONENT: &str = "service-controller";

/// Runs the controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let services = &ctx.informers.services;
    if ctx.ready(services).await.is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let pool = Mutex::new(recalled(&ctx));
    tokio::join!(
        ctx.feed(services, &queue, |change| [ObjectKey::of(&**change.object())]),
        // One at a time: the first who asks is served first.
        ctx.work(COMPONENT, 1, &queue, |key| reconcile(&ctx, &queue, &pool, key)),
    );
}

/// The books as the Services' status tells them; where two say the same, the older Service is right.
fn recalled(ctx: &Context) -> Pools {
    let mut pool = Pools::new(&ctx.config.load_balancers);
    let mut services = ctx.informers.services.list();
    services.retain(|service| is_ours(service));
    services.sort_by_key(|s| (s.metadata.creation_timestamp.clone(), ObjectKey::of(&**s)));
    services.iter().for_each(|service| pool.recall(&ObjectKey::of(&**service), &wishes(service)));
    pool
}

fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
        && !meta::deleting(&service.metadata)
}

/// The addresses that the status of a Service says it has.
fn told(service: &Service) -> Vec<&str> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status.into_iter().flat_map(|l| l.ingress.iter().flatten()).filter_map(|i| i.ip.as_deref()).collect()
}

fn wishes(service: &Service) -> Wishes {
    let spec = service.spec.as_ref();
    let asked = spec.and_then(|s| s.load_balancer_ip.as_deref());
    let families = spec.and_then(|s| s.ip_families.as_ref()).into_iter().flatten();
    Wishes {
        families: families.map(|family| family == "IPv4").collect(),
        current: told(service).iter().filter_map(|ip| ip.parse().ok()).collect(),
        asked: asked.and_then(|ip| ip.parse().ok()),
    }
}

async fn reconcile(
    ctx: &Context,
    queue: &WorkQueue<ObjectKey>,
    pool: &Mutex<Pools>,
    key: ObjectKey,
) -> Result<Outcome, Error> {
    let service = ctx.informers.services.get_key(&key).filter(|s| is_ours(s));
    let Some(service) = service else {
        if pool.lock().release(&key) {
            // Who was refused may have it.
            let all = ctx.informers.services.list().into_iter();
            all.filter(|s| is_ours(s) && told(s).is_empty()).for_each(|s| queue.add(ObjectKey::of(&*s)));
        }
        return Ok(Outcome::Done);
    };
    let assigned = pool.lock().assign(&key, &wishes(&service));
    let wanted = assigned.as_deref().unwrap_or_default();
    let texts: Vec<String> = wanted.iter().map(IpAddr::to_string).collect();
    if told(&service) != texts {
        write(ctx, &key, &service, wanted).await?;
    }
    match assigned {
        Ok(_) => Ok(Outcome::Done),
        Err(refusal) => {
            let message = format!("Error syncing load balancer: failed to ensure load balancer: {refusal}");
            ctx.recorder.warning(COMPONENT, Regarding::of(&*service), "SyncLoadBalancerFailed", message);
            Ok(Outcome::Done)
        }
    }
}

/// Says in the Service's status what it has.
async fn write(ctx: &Context, key: &ObjectKey, service: &Service, addresses: &[IpAddr]) -> Result<(), Error> {
    let points = addresses.iter().map(|address| json!({"ip": address.to_string(), "ipMode": "VIP"}));
    let ingress = (!addresses.is_empty()).then(|| points.collect::<Vec<_>>());
    let change = json!({
        "metadata": {"uid": service.metadata.uid},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let api = ctx.api::<Service>(&key.namespace);
    let written = api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await;
    let written = unless_gone(written).doing("set the load balancer's address of Service", key)?;
    if written.is_some() && !addresses.is_empty() {
        let message = "Ensured load balancer".to_owned();
        ctx.recorder.normal(COMPONENT, Regarding::of(service), "EnsuredLoadBalancer", message);
    }
    Ok(())
}
