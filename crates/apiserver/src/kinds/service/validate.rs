//! Validation of Services.

use serde_json::{Value, json};

use super::super::checks;
use super::super::network::no_special_address;
use super::super::pod::container::port as port_or_name;
use super::super::value::{entries, int, list, text, unset};
use super::defaults::{
    externally_accessible, headless, needs_cluster_ip, needs_health_port, needs_node_port,
};
use super::families;
use crate::field::{FieldError, FieldErrors};

/// A whole Service.
pub fn service(object: &Value, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    let kind = text(spec, "type");
    errors.one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    if list(spec, "ports").is_empty() && !headless(spec) && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    by_type(spec, errors);
    ports(spec, errors);
    for (key, value) in entries(spec, "selector") {
        errors.messages("spec.selector", key.as_str(), checks::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.messages("spec.selector", value, checks::label_value(value));
    }
    affinity(spec, errors);
    if needs_cluster_ip(spec) {
        families::related(spec, errors);
    }
    addresses(spec, errors);
    traffic(spec, errors);
}

fn by_type(spec: &Value, errors: &mut FieldErrors) {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" if headless(spec) => {
            let why = format!("may not be set to 'None' for {} services", text(spec, "type"));
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", why));
        }
        "ExternalName" => {
            let why = "may not be set when `type` is 'ExternalName'";
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !unset(&spec[key]) {
                    errors.push(FieldError::forbidden(format!("spec.{key}"), why));
                }
            }
            let name = text(spec, "externalName");
            if name.is_empty() {
                errors.push(FieldError::required("spec.externalName", ""));
            } else {
                let bare = name.strip_suffix('.').unwrap_or(name);
                errors.messages("spec.externalName", name, checks::dns1123_subdomain(bare));
            }
        }
        _ => {}
    }
}

fn ports(spec: &Value, errors: &mut FieldErrors) {
    let all = list(spec, "ports");
    let mut names: Vec<&str> = Vec::new();
    let mut numbers: Vec<(&str, i64)> = Vec::new();
    let mut node_ports: Vec<(&str, i64)> = Vec::new();
    for (i, port) in all.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = text(port, "name");
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            errors.messages(&format!("{path}.name"), name, checks::dns1123_label(name));
            if names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            names.push(name);
        }
        let number = int(port, "port").unwrap_or(0);
        errors.messages(&format!("{path}.port"), number, checks::port_number(number));
        errors.one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]);
        port_or_name(&port["targetPort"], &format!("{path}.targetPort"), errors);
        let protocol = text(port, "protocol");
        if numbers.contains(&(protocol, number)) {
            errors.push(FieldError::duplicate(&path, json!({"protocol": protocol, "port": number})));
        }
        numbers.push((protocol, number));
        node_port(spec, port, &path, &mut node_ports, errors);
    }
}

fn node_port<'a>(
    spec: &Value,
    port: &'a Value,
    path: &str,
    seen: &mut Vec<(&'a str, i64)>,
    errors: &mut FieldErrors,
) {
    let Some(number) = int(port, "nodePort").filter(|n| *n != 0) else { return };
    let path = format!("{path}.nodePort");
    let kind = text(spec, "type");
    if matches!(kind, "ClusterIP" | "ExternalName") {
        let why = format!("may not be used when `type` is '{kind}'");
        errors.push(FieldError::forbidden(path, why));
        return;
    }
    debug_assert!(needs_node_port(spec) || kind == "LoadBalancer");
    let id = (text(port, "protocol"), number);
    if seen.contains(&id) {
        errors.push(FieldError::duplicate(path, number));
    }
    seen.push(id);
}

fn affinity(spec: &Value, errors: &mut FieldErrors) {
    errors.one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"]);
    let client = &spec["sessionAffinityConfig"]["clientIP"];
    if let Some(seconds) = int(client, "timeoutSeconds")
        && !(1..=86400).contains(&seconds)
    {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(path, seconds, "must be greater than 0 and less than 86400"));
    }
}

fn addresses(spec: &Value, errors: &mut FieldErrors) {
    for (i, ip) in list(spec, "externalIPs").iter().enumerate() {
        no_special_address(ip.as_str().unwrap_or_default(), &format!("spec.externalIPs[{i}]"), errors);
    }
    let balanced = text(spec, "type") == "LoadBalancer";
    let only_balanced = "may only be used when `type` is 'LoadBalancer'";
    // Upstream spells this path with a capital.
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() && !balanced {
        errors.push(FieldError::forbidden("spec.LoadBalancerSourceRanges", only_balanced));
    }
    for (i, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        errors.messages(&format!("spec.LoadBalancerSourceRanges[{i}]"), range, checks::cidr(range));
    }
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !unset(&spec[key]) && !balanced {
            errors.push(FieldError::forbidden(format!("spec.{key}"), only_balanced));
        }
    }
    let class = text(spec, "loadBalancerClass");
    if balanced && !unset(&spec["loadBalancerClass"]) {
        errors.messages("spec.loadBalancerClass", class, checks::qualified_name(class));
    }
}

/// The status that a load balancer's controller writes.
pub fn status(object: &Value, errors: &mut FieldErrors) {
    let ingress = list(&object["status"]["loadBalancer"], "ingress");
    if text(&object["spec"], "type") != "LoadBalancer" && !ingress.is_empty() {
        let why = "may only be used when `spec.type` is \"LoadBalancer\"";
        errors.push(FieldError::forbidden("status.loadBalancer.ingress", why));
    }
    for (i, point) in ingress.iter().enumerate() {
        let path = format!("status.loadBalancer.ingress[{i}]");
        let (ip, mode) = (text(point, "ip"), text(point, "ipMode"));
        if !ip.is_empty() {
            errors.messages(&format!("{path}.ip"), ip, checks::ip(ip));
            if mode.is_empty() {
                errors.push(FieldError::required(
                    format!("{path}.ipMode"),
                    "must be specified when `ip` is set",
                ));
            }
        } else if !mode.is_empty() {
            let why = "may not be specified when `ip` is not set";
            errors.push(FieldError::forbidden(format!("{path}.ipMode"), why));
        }
        if !mode.is_empty() {
            errors.one_of(point, &path, "ipMode", &["Proxy", "VIP"]);
        }
        let host = text(point, "hostname");
        if !host.is_empty() {
            errors.messages(&format!("{path}.hostname"), host, checks::dns1123_subdomain(host));
            if host.parse::<std::net::IpAddr>().is_ok() {
                let why = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(format!("{path}.hostname"), host, why));
            }
        }
    }
}

fn traffic(spec: &Value, errors: &mut FieldErrors) {
    let external = text(spec, "externalTrafficPolicy");
    if externally_accessible(spec) {
        errors.one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"]);
    } else if !external.is_empty() {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", external, why));
    }
    errors.optional_one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"]);
    if int(spec, "healthCheckNodePort").is_some_and(|n| n != 0) && !needs_health_port(spec) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(
            "spec.healthCheckNodePort",
            spec["healthCheckNodePort"].clone(),
            why,
        ));
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    errors.optional_one_of(spec, "spec", "trafficDistribution", &distributions);
}

/// What may not change.
pub fn update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    let balanced = |spec: &Value| text(spec, "type") == "LoadBalancer";
    if balanced(spec) && balanced(before) && spec["loadBalancerClass"] != before["loadBalancerClass"] {
        let class = spec["loadBalancerClass"].clone();
        errors.push(FieldError::invalid("spec.loadBalancerClass", class, "may not change once set"));
    }
    if needs_health_port(spec)
        && needs_health_port(before)
        && spec["healthCheckNodePort"] != before["healthCheckNodePort"]
    {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    families::unchanged(spec, before, errors);
}
