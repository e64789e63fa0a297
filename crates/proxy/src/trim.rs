//! What the proxy keeps of Services and EndpointSlices: only the fields that decide where connections go, and what Events
//! about them name. All else is dropped as it arrives, since a node holds every Service of the cluster.

use std::collections::BTreeMap;

use client::endpoints::SERVICE_NAME;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::desired::{HEADLESS, PROXY_NAME};
use crate::run::TRIGGER_TIME;

/// Drops what no rule depends on.
pub fn service(service: &mut Service) {
    metadata(&mut service.metadata, &[PROXY_NAME, HEADLESS], &[]);
    if let Some(status) = &mut service.status {
        status.conditions = None;
    }
    let Some(spec) = &mut service.spec else { return };
    spec.selector = None;
    spec.ip_families = None;
    spec.ip_family_policy = None;
    if spec.cluster_ips.iter().flatten().any(|ip| spec.cluster_ip.as_ref() == Some(ip)) {
        spec.cluster_ip = None;
    }
    for port in spec.ports.iter_mut().flatten() {
        port.target_port = None;
        port.app_protocol = None;
    }
}

/// Drops what no rule depends on.
pub fn slice(slice: &mut EndpointSlice) {
    metadata(&mut slice.metadata, &[SERVICE_NAME], &[TRIGGER_TIME]);
    for endpoint in &mut slice.endpoints {
        endpoint.deprecated_topology = None;
        endpoint.hostname = None;
        endpoint.target_ref = None;
        endpoint.zone = None;
    }
    slice.endpoints.shrink_to_fit();
}

fn metadata(meta: &mut ObjectMeta, labels: &[&str], annotations: &[&str]) {
    let keep = |words: &mut Option<BTreeMap<String, String>>, wanted: &[&str]| {
        if let Some(all) = words {
            all.retain(|name, _| wanted.contains(&name.as_str()));
        }
        *words = words.take().filter(|all| !all.is_empty());
    };
    keep(&mut meta.labels, labels);
    keep(&mut meta.annotations, annotations);
    meta.managed_fields = None;
    meta.owner_references = None;
    meta.finalizers = None;
    meta.generate_name = None;
}

#[cfg(test)]
mod tests {
    use client::ObjectKey;
    use client::endpoints::service_of;
    use serde_json::json;

    use super::*;
    use crate::desired::{desired, health_check, is_foreign};
    use crate::model::{Frontend, Model, NodeView, Target};

    fn meta() -> serde_json::Value {
        json!({"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7", "generateName": "web-",
            "labels": {"app": "web", SERVICE_NAME: "web"},
            "annotations": {TRIGGER_TIME: "2024-01-01T00:00:00Z", "note": "long"},
            "finalizers": ["a/b"], "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u2"}]})
    }

    fn objects() -> (Service, EndpointSlice) {
        let service = json!({"metadata": meta(), "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9",
                "clusterIPs": ["10.96.0.9", "fd00::9"], "ipFamilies": ["IPv4", "IPv6"], "selector": {"app": "web"},
                "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000, "sessionAffinity": "ClientIP",
                "externalIPs": ["192.0.2.1"], "loadBalancerSourceRanges": ["198.51.100.0/24"],
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080, "appProtocol": "http"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}}});
        let slice = json!({"metadata": meta(), "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.244.0.4"], "nodeName": "here", "hostname": "web-0", "zone": "a",
                    "targetRef": {"kind": "Pod", "name": "web-0"}, "hints": {"forZones": [{"name": "a"}]}},
                {"addresses": ["10.244.1.4"], "nodeName": "there", "zone": "b",
                    "hints": {"forZones": [{"name": "b"}]}, "conditions": {"ready": true}},
                {"addresses": ["10.244.1.5"], "conditions": {"ready": false}}]});
        (
            serde_json::from_value(service).unwrap_or_default(),
            serde_json::from_value(slice).unwrap_or_default(),
        )
    }

    fn rules(service: &Service, slice: &EndpointSlice) -> Vec<(Frontend, Target)> {
        let view = NodeView { name: "here".into(), zone: Some("a".into()), ..NodeView::default() };
        let model: Model = desired(&[service], &[slice], &view, &[]);
        let mut all: Vec<_> = model.iter().map(|(f, t)| (*f, (**t).clone())).collect();
        all.sort_by_key(|(frontend, _)| *frontend);
        all
    }

    #[test]
    fn what_is_dropped_changes_no_rule() {
        let (whole, whole_slice) = objects();
        let (mut small, mut small_slice) = objects();
        service(&mut small);
        slice(&mut small_slice);
        let expected = rules(&whole, &whole_slice);
        assert!(expected.len() >= 4, "the objects ask for too little: {expected:?}");
        assert_eq!(rules(&small, &small_slice), expected);
        let check = |service, slice| health_check(service, &[slice], "here");
        assert!(check(&whole, &whole_slice).is_some());
        assert_eq!(check(&small, &small_slice), check(&whole, &whole_slice));
        assert_eq!(service_of(&small_slice), Some(ObjectKey::new("shop", "web")));
        assert_eq!(small_slice.metadata.resource_version.as_deref(), Some("7"));
        assert!(
            small_slice
                .metadata
                .annotations
                .is_some_and(|all| all.contains_key(TRIGGER_TIME) && all.len() == 1)
        );
        assert!(small.metadata.labels.is_none() && small.metadata.annotations.is_none());
    }

    #[test]
    fn labels_that_name_another_proxy_stay() {
        for label in [PROXY_NAME, HEADLESS] {
            let (mut foreign, _) = objects();
            foreign.metadata.labels = Some([(label.to_owned(), "other".to_owned())].into());
            service(&mut foreign);
            assert!(is_foreign(&foreign), "{label}");
        }
    }
}
