//! ServiceCIDRs: networks that cluster addresses are taken from. Each becomes Ready, and one that is deleted goes once none
//! of its addresses is in use or another network has them (KEP-1880).
//!
//! The API server gives addresses only from networks that are Ready, so this controller opens and closes them.

use std::net::IpAddr;

use client::{Change, Informer, ObjectKey, Outcome, Regarding, WorkQueue};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::Api;
use kube::api::Patch;
use kube::runtime::watcher;
use serde_json::{Value, json};

use crate::kit::{Context, Doing, Error, patch, unless_gone};
use crate::meta;

const COMPONENT: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

struct Caches {
    cidrs: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

/// Runs the controller until the stop.
pub(crate) async fn run(ctx: Context) {
    let caches = Caches {
        cidrs: Informer::start(Api::all(ctx.client.clone()), watcher::Config::default()),
        addresses: Informer::start(Api::all(ctx.client.clone()), watcher::Config::default()),
    };
    if futures::try_join!(ctx.ready(&caches.cidrs), ctx.ready(&caches.addresses)).is_err() {
        return;
    }
    let queue = WorkQueue::new();
    let waiting = || {
        let all = caches.cidrs.list().into_iter().filter(|c| meta::deleting(&c.metadata));
        all.map(|c| ObjectKey::of(&*c)).collect::<Vec<_>>()
    };
    tokio::join!(
        ctx.feed(&caches.cidrs, &queue, |change| {
            let own = ObjectKey::of(&**change.object());
            // A new network may have the addresses that one waits for that is to go.
            [vec![own], waiting()].concat()
        }),
        ctx.feed(&caches.addresses, &queue, |change| match change {
            Change::Deleted(_) => waiting(),
            Change::Applied { .. } => Vec::new(),
        }),
        ctx.work(COMPONENT, 1, &queue, |key| reconcile(&ctx, &caches, key)),
    );
}

fn networks(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Whether an address of this network is in use that no other network, which stays, has as well.
fn is_needed(cidr: &ServiceCIDR, others: &[&ServiceCIDR], addresses: impl Iterator<Item = IpAddr>) -> bool {
    let own = networks(cidr);
    let stays = |c: &&&ServiceCIDR| c.metadata.name != cidr.metadata.name && !meta::deleting(&c.metadata);
    let others: Vec<IpNet> = others.iter().filter(stays).flat_map(|c| networks(c)).collect();
    let has = |nets: &[IpNet], address: &IpAddr| nets.iter().any(|net| net.contains(address));
    addresses.into_iter().any(|address| has(&own, &address) && !has(&others, &address))
}

fn condition(ready: bool) -> Value {
    let (status, reason, message) = match ready {
        true => ("True", "", "Kubernetes Service CIDR is ready"),
        false => ("False", "Terminating", IN_USE),
    };
    json!({"type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()})
}

fn says(cidr: &ServiceCIDR, status: &str) -> bool {
    let conditions = cidr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == status)
}

async fn reconcile(ctx: &Context, caches: &Caches, key: ObjectKey) -> Result<Outcome, Error> {
    let Some(cidr) = caches.cidrs.get_key(&key) else { return Ok(Outcome::Done) };
    let api = Api::<ServiceCIDR>::all(ctx.client.clone());
    let finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
    let ours = finalizers.iter().any(|f| f == FINALIZER);
    // Only of the version that was judged.
    let version = json!({"resourceVersion": cidr.metadata.resource_version});
    let finalize = |all: Value| {
        let mut metadata = version.clone();
        metadata["finalizers"] = all;
        Patch::Merge(json!({"metadata": metadata}))
    };
    let deleting = meta::deleting(&cidr.metadata);
    if !deleting && !ours {
        let all = [finalizers, vec![FINALIZER.to_owned()]].concat();
        let written = api.patch(&key.name, &patch(), &finalize(json!(all))).await;
        unless_gone(written).doing("protect service network", &key)?;
        // Its own change brings it here again.
        return Ok(Outcome::Done);
    }
    let wanted = if deleting { "False" } else { "True" };
    if !says(&cidr, wanted) && (ours || !deleting) {
        let status = json!({"metadata": version, "status": {"conditions": [condition(!deleting)]}});
        let written = api.patch_status(&key.name, &patch(), &Patch::Merge(status)).await;
        unless_gone(written).doing("set the condition of service network", &key)?;
        return Ok(Outcome::Done);
    }
    if deleting && ours {
        let all = caches.cidrs.list();
        let others: Vec<&ServiceCIDR> = all.iter().map(|c| &**c).collect();
        let addresses = caches.addresses.list();
        let used = addresses.iter().filter_map(|a| a.metadata.name.as_ref()?.parse().ok());
        if is_needed(&cidr, &others, used) {
            ctx.recorder.warning(
                COMPONENT,
                Regarding::of(&*cidr),
                "KubernetesServiceCIDRError",
                IN_USE.into(),
            );
            return Ok(Outcome::Done);
        }
        let rest: Vec<&String> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
        let written = api.patch(&key.name, &patch(), &finalize(json!(rest))).await;
        unless_gone(written).doing("let go of service network", &key)?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn cidr(name: &str, nets: &[&str], deleting: bool) -> ServiceCIDR {
        let deleted = deleting.then_some("2026-01-01T00:00:00Z");
        let metadata = json!({"name": name, "deletionTimestamp": deleted});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"cidrs": nets}})).unwrap()
    }

    #[test]
    fn a_network_is_needed_while_an_address_is_its_alone() {
        let going = cidr("going", &["10.200.0.0/24", "fd00:200::/120"], true);
        let needed = |others: &[&ServiceCIDR], addresses: &[&str]| {
            is_needed(&going, others, addresses.iter().map(|a| a.parse().unwrap()))
        };
        assert!(!needed(&[&going], &[]));
        assert!(!needed(&[&going], &["10.96.0.1"]));
        assert!(needed(&[&going], &["10.200.0.7"]));
        assert!(needed(&[&going], &["fd00:200::7"]));
        let wider = cidr("wider", &["10.200.0.0/16"], false);
        assert!(!needed(&[&going, &wider], &["10.200.0.7"]), "the other network has it");
        let going_too = cidr("going-too", &["10.200.0.0/16"], true);
        assert!(needed(&[&going, &going_too], &["10.200.0.7"]), "the other one goes as well");
    }
}
