//! `IPAddress` objects: the visible record of who has which cluster address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::addresses::family;
use crate::kinds::value::{name, namespace, text};
use crate::objects::Objects;
use crate::resource::GroupResource;
use crate::status::Status;

const MANAGER: &str = "ipallocator.k8s.io";

fn resource() -> GroupResource {
    GroupResource::new("networking.k8s.io", "ipaddresses")
}

fn object(address: IpAddr, service: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {"name": address.to_string(), "labels": {
            "ipaddress.kubernetes.io/ip-family": family(address),
            "ipaddress.kubernetes.io/managed-by": MANAGER,
        }},
        "spec": {"parentRef": {
            "group": "", "resource": "services", "namespace": namespace(service), "name": name(service),
        }},
    })
}

/// Records an address; failures are logged, the next start repairs.
pub async fn add(objects: &dyn Objects, address: IpAddr, service: &Value) {
    match objects.create(&resource(), "", object(address, service)).await {
        Ok(_) => {}
        Err(e) if e.reason() == "AlreadyExists" => {}
        Err(error) => tracing::warn!(%error, %address, "recording a cluster address"),
    }
}

/// Removes the record of an address.
pub async fn remove(objects: &dyn Objects, address: IpAddr) {
    match objects.delete(&resource(), "", &address.to_string()).await {
        Ok(()) => {}
        Err(e) if e.reason() == "NotFound" => {}
        Err(error) => tracing::warn!(%error, %address, "removing the record of a cluster address"),
    }
}

/// Makes missing records and removes those of Services that are gone.
pub async fn repair(objects: &dyn Objects, owners: &HashMap<IpAddr, Arc<Value>>) -> Result<(), Status> {
    let (records, _) = objects.list(&resource(), None).await?;
    let mut recorded: Vec<IpAddr> = Vec::new();
    for record in records.iter().filter(|r| managed(r)) {
        let Ok(address) = name(record).parse::<IpAddr>() else { continue };
        let parent = &record["spec"]["parentRef"];
        let right = owners
            .get(&address)
            .is_some_and(|s| text(parent, "name") == name(s) && text(parent, "namespace") == namespace(s));
        if right {
            recorded.push(address);
        } else {
            remove(objects, address).await;
        }
    }
    for (address, service) in owners.iter().filter(|(a, _)| !recorded.contains(a)) {
        add(objects, *address, service).await;
    }
    Ok(())
}

fn managed(record: &Value) -> bool {
    record["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"] == MANAGER
}
