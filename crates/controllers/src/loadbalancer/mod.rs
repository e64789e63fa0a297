//! Addresses for Services of type LoadBalancer, with no cloud to ask: each gets one of its own from a pool on the network
//! of the nodes and the host, which the nodes then answer for (crate `proxy`).
//!
//! The record of what was given is the Services' status; the books in memory follow from it. A Service with a
//! `spec.loadBalancerClass` is somebody else's. An address is free again once its Service is deleted or of another type.
//! The API server clears the status of a Service that is no longer of the type.

mod pool;

use std::net::Ipv4Addr;

use client::{ObjectKey, Outcome, Regarding, WorkQueue};
use k8s_openapi::api::core::v1::Service;
use kube::api::Patch;
use parking_lot::Mutex;
use serde_json::json;

use crate::kit::{Context, Doing, Error, patch, unless_gone};
use crate::meta;
use pool::{Pool, Wish};

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
fn recalled(ctx: &Context) -> Pool {
    let mut pool = Pool::new(ctx.config.load_balancers.clone());
    let mut services = ctx.informers.services.list();
    services.retain(|service| is_ours(service));
    services.sort_by_key(|s| (s.metadata.creation_timestamp.clone(), ObjectKey::of(&**s)));
    services.iter().for_each(|service| pool.recall(&ObjectKey::of(&**service), wish(service)));
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

fn wish(service: &Service) -> Wish {
    let asked = service.spec.as_ref().and_then(|s| s.load_balancer_ip.as_deref());
    Wish {
        current: told(service).first().and_then(|ip| ip.parse().ok()),
        asked: asked.and_then(|ip| ip.parse().ok()),
    }
}

async fn reconcile(
    ctx: &Context,
    queue: &WorkQueue<ObjectKey>,
    pool: &Mutex<Pool>,
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
    let assigned = pool.lock().assign(&key, wish(&service));
    let wanted = match &assigned {
        Ok(address) => vec![address.to_string()],
        Err(_) => Vec::new(),
    };
    if told(&service) != wanted {
        write(ctx, &key, &service, assigned.as_ref().ok()).await?;
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
async fn write(
    ctx: &Context,
    key: &ObjectKey,
    service: &Service,
    address: Option<&Ipv4Addr>,
) -> Result<(), Error> {
    let ingress = address.map(|address| json!([{"ip": address.to_string(), "ipMode": "VIP"}]));
    let change = json!({
        "metadata": {"uid": service.metadata.uid},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let api = ctx.api::<Service>(&key.namespace);
    let written = api.patch_status(&key.name, &patch(), &Patch::Merge(change)).await;
    let written = unless_gone(written).doing("set the load balancer's address of Service", key)?;
    if written.is_some() && address.is_some() {
        let message = "Ensured load balancer".to_owned();
        ctx.recorder.normal(COMPONENT, Regarding::of(service), "EnsuredLoadBalancer", message);
    }
    Ok(())
}
