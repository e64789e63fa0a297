//! Validation of containers: names, images, ports, environment, mounts, resources, probes, security.

use serde_json::Value;

use super::super::checks;
use super::super::quantity::{MALFORMED, Quantity};
use super::super::value::{entries, flag, int, list, text, unset};
use crate::field::{FieldError, FieldErrors};

/// What containers of a spec share.
pub struct Shared<'a> {
    /// The Pod spec.
    pub spec: &'a Value,
    /// In a Pod itself (not in a template) the image must have its final form.
    pub in_pod: bool,
}

/// All containers of a spec.
pub fn validate(shared: &Shared<'_>, path: &str, errors: &mut FieldErrors) {
    let spec = shared.spec;
    if list(spec, "containers").is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    let mut host_ports: Vec<String> = Vec::new();
    for key in super::defaults::CONTAINER_LISTS {
        for (i, container) in list(spec, key).iter().enumerate() {
            let path = format!("{path}.{key}[{i}]");
            let name = text(container, "name");
            if !name.is_empty() && names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            names.push(name);
            one(shared, container, &path, key, errors);
            if key == "containers" {
                for (p, port) in list(container, "ports").iter().enumerate() {
                    host_port(port, &format!("{path}.ports[{p}]"), &mut host_ports, errors);
                }
            }
        }
    }
}

fn one(shared: &Shared<'_>, container: &Value, path: &str, list_key: &str, errors: &mut FieldErrors) {
    errors.form(container, path, "name", checks::dns1123_label);
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image && shared.in_pod {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), image, why));
    }
    errors.optional_one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    errors.optional_one_of(container, path, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"]);
    ports(shared, container, path, errors);
    env(container, path, errors);
    mounts(shared.spec, container, path, errors);
    resources(&container["resources"], &format!("{path}.resources"), errors);
    security(&container["securityContext"], &format!("{path}.securityContext"), errors);
    probes(container, path, list_key, errors);
    let sidecar = text(container, "restartPolicy");
    if !sidecar.is_empty() && list_key != "initContainers" {
        errors.push(FieldError::forbidden(
            format!("{path}.restartPolicy"),
            "may not be set for non-init containers",
        ));
    } else if !sidecar.is_empty() {
        errors.one_of(container, path, "restartPolicy", &["Always"]);
    }
}

fn ports(shared: &Shared<'_>, container: &Value, path: &str, errors: &mut FieldErrors) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in list(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(port, "name");
        if !name.is_empty() {
            errors.messages(&format!("{path}.name"), name, checks::port_name(name));
            if names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            names.push(name);
        }
        let number = int(port, "containerPort").unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            errors.messages(&format!("{path}.containerPort"), number, checks::port_number(number));
        }
        let host = int(port, "hostPort").unwrap_or(0);
        if host != 0 {
            errors.messages(&format!("{path}.hostPort"), host, checks::port_number(host));
            if flag(shared.spec, "hostNetwork") && host != number {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(format!("{path}.containerPort"), number, why));
            }
        }
        match text(port, "protocol") {
            "" => errors.push(FieldError::required(format!("{path}.protocol"), "")),
            _ => errors.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]),
        }
    }
}

fn host_port(port: &Value, path: &str, seen: &mut Vec<String>, errors: &mut FieldErrors) {
    let number = int(port, "hostPort").unwrap_or(0);
    if number == 0 {
        return;
    }
    let id = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
    if seen.contains(&id) {
        errors.push(FieldError::duplicate(format!("{path}.hostPort"), id.as_str()));
    }
    seen.push(id);
}

fn env(container: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, variable) in list(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        errors.form(variable, &path, "name", checks::env_name);
        let from = &variable["valueFrom"];
        if from.is_null() {
            continue;
        }
        let path = format!("{path}.valueFrom");
        if !text(variable, "value").is_empty() {
            errors.push(FieldError::invalid(&path, "", "may not be specified when `value` is not empty"));
        }
        let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];
        match sources.iter().filter(|s| !from[**s].is_null()).count() {
            0 => errors.push(FieldError::invalid(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
        for key in ["configMapKeyRef", "secretKeyRef"].iter().filter(|k| !from[**k].is_null()) {
            let path = format!("{path}.{key}");
            errors.present(&from[*key], &path, "name");
            errors.form(&from[*key], &path, "key", checks::config_map_key);
        }
        if !from["fieldRef"].is_null() {
            field_path(&from["fieldRef"], &format!("{path}.fieldRef"), ENV_FIELDS, errors);
        }
    }
    for (i, from) in list(container, "envFrom").iter().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        if unset(&from["configMapRef"]) && unset(&from["secretRef"]) {
            let why = "must specify one of: `configMapRef` or `secretRef`";
            errors.push(FieldError::invalid(&path, "", why));
        }
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields a downward API volume may show.
pub const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// `fieldPath` of a downward reference.
pub fn field_path(reference: &Value, path: &str, supported: &[&str], errors: &mut FieldErrors) {
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        errors.push(FieldError::required(format!("{path}.fieldPath"), ""));
        return;
    }
    let by_key = field.starts_with("metadata.annotations['") || field.starts_with("metadata.labels['");
    if by_key && field.ends_with("']") {
        return;
    }
    if !supported.contains(&field) {
        errors.push(FieldError::not_supported(format!("{path}.fieldPath"), field, supported));
    }
}

fn mounts(spec: &Value, container: &Value, path: &str, errors: &mut FieldErrors) {
    let volumes: Vec<&str> = list(spec, "volumes").iter().map(|v| text(v, "name")).collect();
    let mut targets: Vec<&str> = Vec::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError::not_found(format!("{path}.name"), name));
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if targets.contains(&target) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), target, "must be unique"));
        }
        targets.push(target);
        for key in ["subPath", "subPathExpr"] {
            local_path(text(mount, key), &format!("{path}.{key}"), errors);
        }
        if !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), text(mount, "subPathExpr"), why));
        }
    }
}

/// A path below something: relative, without `..`.
pub fn local_path(value: &str, path: &str, errors: &mut FieldErrors) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

/// Requests and limits of a container.
pub fn resources(resources: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["limits", "requests"] {
        for (name, amount) in entries(resources, key) {
            let path = format!("{path}.{key}[{name}]");
            resource_name(name, &path, errors);
            match Quantity::of(amount) {
                None => errors.push(FieldError::invalid(&path, amount.clone(), MALFORMED)),
                Some(q) if q.is_negative() => {
                    let why = "must be greater than or equal to 0";
                    errors.push(FieldError::invalid(&path, amount.clone(), why));
                }
                Some(q) if !q.is_whole() && name.starts_with("hugepages-") => {
                    errors.push(FieldError::invalid(&path, amount.clone(), "must be an integer"));
                }
                Some(_) => {}
            }
        }
    }
    for (name, request) in entries(resources, "requests") {
        let Some(limit) = resources["limits"].get(name) else { continue };
        if let (Some(asked), Some(most)) = (Quantity::of(request), Quantity::of(limit))
            && asked > most
        {
            let shown = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
            let why = format!("must be less than or equal to {name} limit of {shown}");
            errors.push(FieldError::invalid(format!("{path}.requests"), request.clone(), why));
        }
    }
}

fn resource_name(name: &str, path: &str, errors: &mut FieldErrors) {
    errors.messages(path, name, checks::qualified_name(name));
    let standard = ["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    }
}

fn security(context: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["runAsUser", "runAsGroup"] {
        id(context, path, key, errors);
    }
    if context["allowPrivilegeEscalation"] == false && flag(context, "privileged") {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(path, context.clone(), why));
    }
    seccomp(&context["seccompProfile"], &format!("{path}.seccompProfile"), errors);
}

/// A user or group id.
pub fn id(context: &Value, path: &str, key: &str, errors: &mut FieldErrors) {
    if let Some(n) = int(context, key)
        && !(0..=i64::from(i32::MAX)).contains(&n)
    {
        errors.push(FieldError::invalid(
            format!("{path}.{key}"),
            n,
            "must be between 0 and 2147483647, inclusive",
        ));
    }
}

/// A seccomp profile.
pub fn seccomp(profile: &Value, path: &str, errors: &mut FieldErrors) {
    if profile.is_null() {
        return;
    }
    let local = text(profile, "localhostProfile");
    match text(profile, "type") {
        "Localhost" if local.is_empty() => {
            let why = "must be set when seccomp type is Localhost";
            errors.push(FieldError::required(format!("{path}.localhostProfile"), why));
        }
        "Localhost" => local_path(local, &format!("{path}.localhostProfile"), errors),
        "RuntimeDefault" | "Unconfined" => {
            if !local.is_empty() {
                let why = "can only be set when seccomp type is Localhost";
                errors.push(FieldError::invalid(format!("{path}.localhostProfile"), local, why));
            }
        }
        "" => errors.push(FieldError::required(
            format!("{path}.type"),
            "type is required when seccompProfile is set",
        )),
        _ => errors.one_of(profile, path, "type", &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn probes(container: &Value, path: &str, list_key: &str, errors: &mut FieldErrors) {
    let sidecar = text(container, "restartPolicy") == "Always";
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[key];
        if probe.is_null() {
            continue;
        }
        let path = format!("{path}.{key}");
        if list_key == "initContainers" && !sidecar {
            errors.push(FieldError::forbidden(
                &path,
                "may not be set for init containers without restartPolicy=Always",
            ));
            continue;
        }
        handler(probe, &path, &["exec", "grpc", "httpGet", "tcpSocket"], errors);
        let numbers = [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ];
        for number in numbers {
            errors.not_negative(probe, &path, number);
        }
        if key != "readinessProbe" && int(probe, "successThreshold").is_some_and(|n| n != 1) {
            let value = probe["successThreshold"].clone();
            errors.push(FieldError::invalid(format!("{path}.successThreshold"), value, "must be 1"));
        }
    }
    for key in ["postStart", "preStop"] {
        let hook = &container["lifecycle"][key];
        if !hook.is_null() {
            let path = format!("{path}.lifecycle.{key}");
            handler(hook, &path, &["exec", "httpGet", "sleep", "tcpSocket"], errors);
        }
    }
}

fn handler(object: &Value, path: &str, kinds: &[&str], errors: &mut FieldErrors) {
    let mut first = true;
    for kind in kinds.iter().filter(|k| !object[**k].is_null()) {
        let path = format!("{path}.{kind}");
        if !std::mem::take(&mut first) {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        let action = &object[*kind];
        match *kind {
            "exec" => errors.present(action, &path, "command"),
            "httpGet" => {
                errors.present(action, &path, "path");
                port(&action["port"], &format!("{path}.port"), errors);
                errors.one_of(action, &path, "scheme", &["HTTP", "HTTPS"]);
                for (i, header) in list(action, "httpHeaders").iter().enumerate() {
                    let path = format!("{path}.httpHeaders[{i}]");
                    errors.form(header, &path, "name", checks::http_header_name);
                }
            }
            "tcpSocket" | "grpc" => port(&action["port"], &format!("{path}.port"), errors),
            _ => errors.not_negative(action, &path, "seconds"),
        }
    }
    if first {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

/// A port by number or by name.
pub fn port(value: &Value, path: &str, errors: &mut FieldErrors) {
    match value {
        Value::Number(n) => errors.messages(path, n.clone(), checks::port_number(n.as_i64().unwrap_or(0))),
        Value::String(s) => errors.messages(path, s.as_str(), checks::port_name(s)),
        _ => errors.messages(path, 0, checks::port_number(0)),
    }
}
