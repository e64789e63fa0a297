//! What a new cluster is born with: namespaces, the default access policy, priority classes, the service CIDR and
//! Service `default/kubernetes` with its endpoints.
//!
//! Run at every start, before requests are served: what is missing is made (an upgrade may bring new roles), what a
//! person changed is left alone, except the addresses of this server, which may have moved.

use futures::future::try_join_all;
use serde_json::{Value, json};

use super::rbac::policy;
use crate::config::Config;
use crate::kinds::value::{name, namespace};
use crate::objects::Objects;
use crate::resource::GroupResource;
use crate::status::Status;

/// Namespaces every cluster has.
pub const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
pub async fn ensure(config: &Config, objects: &dyn Objects) -> Result<(), Status> {
    // Side by side, so that the store syncs them in a few groups: a start waits for the disk twice, not 80 times.
    let (first, rest): (Vec<_>, Vec<_>) =
        plan(config)?.into_iter().partition(|(resource, _)| resource.resource == "namespaces");
    for group in [first, rest] {
        let all =
            group.into_iter().map(|(resource, object)| async move { make(objects, &resource, object).await });
        try_join_all(all).await?;
    }
    if config.advertise_address.is_loopback() {
        // No Pod could reach it, and endpoints on the loopback are invalid.
        tracing::warn!(
            "advertise address is a loopback address, service default/kubernetes gets no endpoints"
        );
        return Ok(());
    }
    for (resource, object) in own_endpoints(config) {
        put(objects, &resource, object).await?;
    }
    Ok(())
}

async fn make(objects: &dyn Objects, resource: &GroupResource, object: Value) -> Result<(), Status> {
    let (namespace, name) = (namespace(&object).to_owned(), name(&object).to_owned());
    if objects.get(resource, &namespace, &name).await?.is_some() {
        return Ok(());
    }
    match objects.create(resource, &namespace, object).await {
        Err(e) if e.reason() == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}

/// Makes the object, or brings the stored one's content (all but metadata) in line.
async fn put(objects: &dyn Objects, resource: &GroupResource, object: Value) -> Result<(), Status> {
    let stored = objects.get(resource, namespace(&object), name(&object)).await?;
    let Some(stored) = stored else { return make(objects, resource, object).await };
    let mut wanted = Value::clone(&stored);
    for (key, value) in object.as_object().into_iter().flatten().filter(|(k, _)| *k != "metadata") {
        wanted[key] = value.clone();
    }
    if wanted == *stored {
        return Ok(());
    }
    objects.update(resource, namespace(&object), wanted).await.map(drop)
}

/// All objects besides this server's endpoints.
fn plan(config: &Config) -> Result<Vec<(GroupResource, Value)>, Status> {
    let mut plan = Vec::new();
    for name in NAMESPACES {
        plan.push((
            GroupResource::new("", "namespaces"),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        ));
    }
    for object in policy::defaults().map_err(Status::internal)? {
        let plural = format!("{}s", object["kind"].as_str().unwrap_or_default().to_lowercase());
        plan.push((GroupResource::new("rbac.authorization.k8s.io", &plural), object));
    }
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        plan.push((
            GroupResource::new("scheduling.k8s.io", "priorityclasses"),
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                "value": value, "description": description}),
        ));
    }
    plan.push((
        GroupResource::new("networking.k8s.io", "servicecidrs"),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": config.service_cidrs}}),
    ));
    // A host's address: the one after the network's own, in IPv6 too.
    let first = config.service_cidrs.first().and_then(|net| match net {
        ipnet::IpNet::V4(net) => net.hosts().next().map(|a| a.to_string()),
        ipnet::IpNet::V6(net) => net.hosts().nth(1).map(|a| a.to_string()),
    });
    plan.push((
        GroupResource::new("", "services"),
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": own_labels()},
            "spec": {"type": "ClusterIP", "clusterIP": first.unwrap_or_default(), "ports": [
                {"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}]}}),
    ));
    Ok(plan)
}

fn own_labels() -> Value {
    json!({"component": "apiserver", "provider": "kubernetes"})
}

/// Endpoints and EndpointSlice of Service `default/kubernetes`, which no controller keeps.
fn own_endpoints(config: &Config) -> [(GroupResource, Value); 2] {
    let address = config.advertise_address.to_string();
    let port = config.advertise_port;
    let family = if config.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" };
    // The slice is kept here, so the mirroring controller must pass by the Endpoints.
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family,
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    [
        (GroupResource::new("", "endpoints"), endpoints),
        (GroupResource::new("discovery.k8s.io", "endpointslices"), slice),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::kinds::fake::Fake;
    use crate::kinds::service::tests::config;

    #[tokio::test]
    async fn a_second_start_changes_only_what_moved() {
        let objects = Fake::with(&[]);
        ensure(&config(), &*objects).await.unwrap();
        let slices = GroupResource::new("discovery.k8s.io", "endpointslices");
        let slice = objects.get(&slices, "default", "kubernetes").await.unwrap().unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.168.49.2"]));

        // Somebody narrowed a role; the server moved.
        let roles = GroupResource::new("rbac.authorization.k8s.io", "clusterroles");
        let mut narrowed =
            Value::clone(&*objects.get(&roles, "", "system:basic-user").await.unwrap().unwrap());
        narrowed["rules"] = json!([]);
        objects.update(&roles, "", narrowed.clone()).await.unwrap();
        let moved = Config { advertise_address: "192.168.58.2".parse().unwrap(), ..config() };
        ensure(&moved, &*objects).await.unwrap();
        let slice = objects.get(&slices, "default", "kubernetes").await.unwrap().unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.168.58.2"]));
        assert_eq!(*objects.get(&roles, "", "system:basic-user").await.unwrap().unwrap(), narrowed);
        let service =
            objects.get(&GroupResource::new("", "services"), "default", "kubernetes").await.unwrap();
        assert_eq!(service.unwrap()["spec"]["clusterIP"], "10.96.0.1");
    }
}
