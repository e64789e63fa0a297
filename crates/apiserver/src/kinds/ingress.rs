//! Ingresses: hosts, paths, backends, TLS, and the default class.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::checks;
use super::value::{child, int, list, name, set, text, unset};
use crate::field::{FieldError, FieldErrors};
use crate::resource::GroupResource;
use crate::status::Status;
use crate::strategy::{Context, Strategy};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// Rules of Ingresses.
pub struct Ingresses;

#[async_trait]
impl Strategy for Ingresses {
    fn prepare_create(&self, _cx: &Context, object: &mut Value) {
        set(object, "status", json!({"loadBalancer": {}}));
    }

    async fn admit(&self, cx: &Context, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let classed = !unset(&new["spec"]["ingressClassName"])
            || new["metadata"]["annotations"].get(CLASS_ANNOTATION).is_some();
        if old.is_none() && !classed {
            default_class(cx, new).await?;
        }
        Ok(())
    }

    fn validate(&self, _cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let annotation = &object["metadata"]["annotations"][CLASS_ANNOTATION];
        if !annotation.is_null() && !unset(&object["spec"]["ingressClassName"]) {
            let why = "can not be set when the class field is also set";
            errors.push(FieldError::invalid(
                format!("annotations.{CLASS_ANNOTATION}"),
                annotation.clone(),
                why,
            ));
        }
        spec(&object["spec"], &mut errors);
        errors
    }

    fn validate_update(&self, _cx: &Context, new: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        spec(&new["spec"], &mut errors);
        errors
    }
}

async fn default_class(cx: &Context, ingress: &mut Value) -> Result<(), Status> {
    let resource = GroupResource::new("networking.k8s.io", "ingressclasses");
    let (classes, _) = cx.objects.list(&resource, None).await?;
    let mut defaults: Vec<_> =
        classes.iter().filter(|c| c["metadata"]["annotations"][DEFAULT_CLASS] == "true").collect();
    // Of several the newest counts, of equally new ones the first by name.
    defaults.sort_by_key(|c| (text(&c["metadata"], "creationTimestamp"), std::cmp::Reverse(name(c))));
    if let Some(class) = defaults.last()
        && let Some(spec) = child(ingress, "spec")
    {
        set(spec, "ingressClassName", name(class));
    }
    Ok(())
}

fn spec(spec: &Value, errors: &mut FieldErrors) {
    if list(spec, "rules").is_empty() && spec["defaultBackend"].is_null() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", json!([]), why));
    }
    if !spec["defaultBackend"].is_null() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", errors);
    }
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        host(text(rule, "host"), &format!("{path}.host"), errors);
        if rule["http"].is_null() {
            continue;
        }
        let paths = list(&rule["http"], "paths");
        if paths.is_empty() {
            errors.push(FieldError::required(format!("{path}.http.paths"), ""));
        }
        for (p, entry) in paths.iter().enumerate() {
            let path = format!("{path}.http.paths[{p}]");
            http_path(entry, &path, errors);
            backend(&entry["backend"], &format!("{path}.backend"), errors);
        }
    }
    for (i, tls) in list(spec, "tls").iter().enumerate() {
        for (h, name) in list(tls, "hosts").iter().enumerate() {
            host(name.as_str().unwrap_or_default(), &format!("spec.tls[{i}].hosts[{h}]"), errors);
        }
    }
    errors.optional_form(spec, "spec", "ingressClassName", checks::dns1123_subdomain);
}

fn host(host: &str, path: &str, errors: &mut FieldErrors) {
    if host.is_empty() {
        return;
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        errors.push(FieldError::invalid(path, host, "must be a DNS name, not an IP address"));
        return;
    }
    let check = if host.contains('*') { checks::wildcard_subdomain } else { checks::dns1123_subdomain };
    errors.messages(path, host, check(host));
}

fn http_path(entry: &Value, path: &str, errors: &mut FieldErrors) {
    let value = text(entry, "path");
    let at = format!("{path}.path");
    match text(entry, "pathType") {
        "" => {
            let why = "pathType must be specified";
            errors.push(FieldError::required(format!("{path}.pathType"), why));
        }
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.push(FieldError::invalid(&at, value, "must be an absolute path"));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|p| value.contains(**p)) {
                errors.push(FieldError::invalid(&at, value, format!("must not contain '{part}'")));
            }
            for end in ["/..", "/."].iter().filter(|e| value.ends_with(**e)) {
                errors.push(FieldError::invalid(&at, value, format!("cannot end with '{end}'")));
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errors.push(FieldError::invalid(&at, value, "must be an absolute path"));
            }
        }
        _ => errors.one_of(entry, path, "pathType", &["Exact", "ImplementationSpecific", "Prefix"]),
    }
}

fn backend(backend: &Value, path: &str, errors: &mut FieldErrors) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_null(), resource.is_null()) {
        (true, true) => {
            errors.push(FieldError::required(path, "resource or service backend is required"));
        }
        (false, false) => {
            errors.push(FieldError::invalid(path, "", "cannot set both resource and service backends"));
        }
        (true, false) => {
            errors.present(resource, &format!("{path}.resource"), "name");
            errors.present(resource, &format!("{path}.resource"), "kind");
        }
        (false, true) => {
            let path = format!("{path}.service");
            errors.form(service, &path, "name", checks::dns1035_label);
            service_port(&service["port"], &path, errors);
        }
    }
}

fn service_port(port: &Value, path: &str, errors: &mut FieldErrors) {
    let (named, number) = (text(port, "name"), int(port, "number").unwrap_or(0));
    match (named.is_empty(), number == 0) {
        (true, true) => errors.push(FieldError::required(path, "port name or number is required")),
        (false, false) => {
            errors.push(FieldError::invalid(path, "", "cannot set both port name & port number"));
        }
        (false, true) => errors.messages(&format!("{path}.port.name"), named, checks::port_name(named)),
        (true, false) => errors.messages(&format!("{path}.port.number"), number, checks::port_number(number)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::kinds::fake::{Fake, context};
    use crate::resource::Resource;

    fn ingress(path: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"rules": [{"host": "a.example", "http": {"paths": [path]}}]}})
    }

    fn path(extra: Value) -> Value {
        let mut path = json!({"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "web", "port": {"number": 80}}}});
        for (key, value) in extra.as_object().unwrap() {
            path[key] = value.clone();
        }
        ingress(path)
    }

    #[test]
    fn offences() {
        let cx =
            context(Resource::new("networking.k8s.io", "v1", "Ingress", "ingresses"), "a", Fake::with(&[]));
        let table = [
            (path(json!({})), "[]"),
            (
                path(json!({"pathType": null})),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                path(json!({"pathType": "Regex"})),
                "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Regex\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"",
            ),
            (
                path(json!({"path": "x"})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
            ),
            (
                path(json!({"path": "/a//b"})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b\": must not contain '//'",
            ),
            (
                path(json!({"backend": {}})),
                "spec.rules[0].http.paths[0].backend: Required value: resource or service backend is required",
            ),
            (
                path(json!({"backend": {"service": {"name": "web", "port": {}}}})),
                "spec.rules[0].http.paths[0].backend.service: Required value: port name or number is required",
            ),
            (
                json!({"spec": {}}),
                "spec: Invalid value: []: either `defaultBackend` or `rules` must be specified",
            ),
            (
                json!({"spec": {"rules": [{"host": "10.0.0.1"}]}}),
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            ),
            (json!({"spec": {"rules": [{"host": "*.example.com"}]}}), "[]"),
        ];
        for (object, expected) in table {
            assert_eq!(Ingresses.validate(&cx, &object).to_string(), expected);
        }
    }

    #[tokio::test]
    async fn default_class_is_the_newest() {
        let class = |name: &str, at: &str, default: &str| {
            let object = json!({"metadata": {"name": name, "creationTimestamp": at, "annotations": {DEFAULT_CLASS: default}}});
            ("networking.k8s.io", "ingressclasses", object)
        };
        let objects = Fake::with(&[
            class("old", "2024-01-01T00:00:00Z", "true"),
            class("new", "2025-01-01T00:00:00Z", "true"),
            class("other", "2026-01-01T00:00:00Z", "false"),
        ]);
        let cx = context(Resource::new("networking.k8s.io", "v1", "Ingress", "ingresses"), "a", objects);
        let mut object = path(json!({}));
        Ingresses.admit(&cx, &mut object, None).await.unwrap();
        assert_eq!(object["spec"]["ingressClassName"], "new");
        let mut annotated = path(json!({}));
        annotated["metadata"]["annotations"] = json!({CLASS_ANNOTATION: "nginx"});
        Ingresses.admit(&cx, &mut annotated, None).await.unwrap();
        assert!(annotated["spec"].get("ingressClassName").is_none());
    }
}
