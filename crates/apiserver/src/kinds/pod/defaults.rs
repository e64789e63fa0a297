//! What a Pod gets when its author leaves it out.
//!
//! `spec` applies to Pods and to templates of Pods; `pod` adds what only a Pod itself gets (requests from limits,
//! host ports, service links), so that a template reads back as it was written.

use serde_json::{Value, json};

use super::super::value::{child, default, default_number, elements, list, set, text, unset};

/// The lists of containers in a Pod spec.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod.
pub fn pod(object: &mut Value) {
    let Some(pod_spec) = child(object, "spec") else { return };
    spec(pod_spec);
    default(pod_spec, "enableServiceLinks", true);
    let host_network = pod_spec["hostNetwork"] == true;
    for key in &CONTAINER_LISTS[..2] {
        for container in elements(pod_spec, key) {
            requests_from_limits(container);
            if host_network {
                for port in elements(container, "ports") {
                    let number = port["containerPort"].as_i64().unwrap_or_default();
                    default_number(port, "hostPort", number);
                }
            }
        }
    }
}

/// Defaults of a Pod template (`spec.template` of a workload).
pub fn template(object: &mut Value) {
    if let Some(pod_spec) = child(object, "spec") {
        spec(pod_spec);
    }
}

fn spec(pod_spec: &mut Value) {
    for volume in elements(pod_spec, "volumes") {
        self::volume(volume);
    }
    for key in CONTAINER_LISTS {
        for container in elements(pod_spec, key) {
            self::container(container);
        }
    }
    default(pod_spec, "restartPolicy", "Always");
    default(pod_spec, "terminationGracePeriodSeconds", 30);
    default(pod_spec, "dnsPolicy", "ClusterFirst");
    // The old name of the field goes with the new one.
    let account = match text(pod_spec, "serviceAccountName") {
        "" => text(pod_spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        set(pod_spec, "serviceAccountName", account.clone());
        set(pod_spec, "serviceAccount", account);
    }
    default(pod_spec, "securityContext", json!({}));
    default(pod_spec, "schedulerName", "default-scheduler");
}

fn container(container: &mut Value) {
    for port in elements(container, "ports") {
        default(port, "protocol", "TCP");
    }
    for env in elements(container, "env") {
        if let Some(from) = child(env, "valueFrom") {
            field_ref(from);
        }
    }
    let pull = pull_policy(text(container, "image"));
    default(container, "imagePullPolicy", pull);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, key) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(handler) = child(lifecycle, key) {
                http_get(handler);
            }
        }
    }
}

/// `Always` for images that follow a moving tag.
pub fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn field_ref(source: &mut Value) {
    if let Some(field) = child(source, "fieldRef") {
        default(field, "apiVersion", "v1");
    }
    if let Some(field) = child(source, "resourceFieldRef") {
        default(field, "divisor", "0");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = child(handler, "httpGet") {
        default(get, "path", "/");
        default(get, "scheme", "HTTP");
    }
}

fn probe(probe: &mut Value) {
    http_get(probe);
    if let Some(grpc) = child(probe, "grpc")
        && grpc["service"].is_null()
    {
        set(grpc, "service", "");
    }
    default_number(probe, "timeoutSeconds", 1);
    default_number(probe, "periodSeconds", 10);
    default_number(probe, "successThreshold", 1);
    default_number(probe, "failureThreshold", 3);
}

fn volume(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|v| v.iter().any(|(k, v)| k != "name" && !v.is_null()));
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, key) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(source) = child(volume, "hostPath")
        && source["type"].is_null()
    {
        set(source, "type", "");
    }
    if let Some(source) = child(volume, "downwardAPI") {
        elements(source, "items").for_each(field_ref);
    }
    if let Some(source) = child(volume, "projected") {
        for projection in elements(source, "sources") {
            if let Some(token) = child(projection, "serviceAccountToken") {
                default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(projection, "downwardAPI") {
                elements(downward, "items").for_each(field_ref);
            }
        }
    }
    if let Some(source) = child(volume, "ephemeral")
        && let Some(claim) = child(source, "volumeClaimTemplate")
        && let Some(claim) = child(claim, "spec")
    {
        default(claim, "volumeMode", "Filesystem");
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources["limits"].as_object().cloned().filter(|l| !l.is_empty()) else { return };
    if unset(&resources["requests"]) {
        set(resources, "requests", json!({}));
    }
    if let Some(requests) = child(resources, "requests") {
        for (name, amount) in limits {
            default(requests, &name, amount);
        }
    }
}

/// Labels of a template, for kinds that take theirs from it.
pub fn template_labels(template: &Value) -> Option<&Value> {
    let labels = &template["metadata"]["labels"];
    (!unset(labels)).then_some(labels)
}

/// Tolerations every Pod gets: it may stay five minutes on a node that is gone.
pub fn tolerate_lost_node(pod_spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list(pod_spec, "tolerations").iter().any(|t| {
            let (k, effect) = (text(t, "key"), text(t, "effect"));
            (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            let toleration =
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            super::super::value::append(pod_spec, "tolerations", toleration);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn pull_policies() {
        let table = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in table {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_small_pod_grows() {
        let mut object = json!({"spec": {
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "x"}}]}});
        pod(&mut object);
        let expected = json!({"spec": {
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File"}],
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "x", "defaultMode": 420}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true}});
        assert_eq!(object, expected);
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once, "defaults are idempotent");
    }

    #[test]
    fn templates_keep_limits_and_host_network_as_written() {
        let mut object = json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "a:1",
            "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]}});
        template(&mut object);
        let c = &object["spec"]["containers"][0];
        assert!(c["resources"].get("requests").is_none() && c["ports"][0].get("hostPort").is_none());
        pod(&mut object);
        assert_eq!(object["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    }
}
