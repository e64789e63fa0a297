//! What a Service gets when its author leaves it out, and what goes when its type changes.

use serde_json::{Value, json};

use super::super::value::{
    child, default, elements, entries, int, keep, list, remove, same, set, text, unset,
};
use super::families;

/// Whether Services of this type have a cluster address.
pub fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether the Service is headless.
pub fn headless(spec: &Value) -> bool {
    text(spec, "clusterIP") == "None" || list(spec, "clusterIPs").first().is_some_and(|ip| ip == "None")
}

/// Whether the ports of the Service are opened on nodes.
pub fn needs_node_port(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether a port for health checks of load balancers is needed.
pub fn needs_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

/// Whether clients outside the cluster can reach the Service.
pub fn externally_accessible(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// Defaults that depend on nothing but the Service.
pub fn service(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    default(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => drop(remove(spec, "sessionAffinityConfig")),
        "ClientIP" => {
            let timeout = int(&spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds");
            if timeout.is_none() {
                set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
            }
        }
        _ => {}
    }
    default(spec, "type", "ClusterIP");
    for port in elements(spec, "ports") {
        default(port, "protocol", "TCP");
        if unset(&port["targetPort"]) || port["targetPort"] == 0 {
            let number = port["port"].clone();
            set(port, "targetPort", number);
        }
    }
    if externally_accessible(spec) {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if needs_cluster_ip(spec) {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    let Some(balancer) = child(object, "status").and_then(|status| child(status, "loadBalancer")) else {
        return;
    };
    for point in elements(balancer, "ingress").filter(|point| !text(point, "ip").is_empty()) {
        default(point, "ipMode", "VIP");
    }
}

/// Whoever gives a new Service one address gets it as the first of the list, too.
pub fn list_cluster_ip(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    let ip = text(spec, "clusterIP").to_owned();
    if !ip.is_empty() && list(spec, "clusterIPs").is_empty() {
        set(spec, "clusterIPs", json!([ip]));
    }
}

/// On update: what the server gave stays when the author leaves it out, and what a new type has no use for goes.
pub fn carry_over(new: &mut Value, old: &Value) {
    let Some(spec) = child(new, "spec") else { return };
    let old = &old["spec"];
    families::carry_over(spec, old);
    if needs_node_port(old) && needs_node_port(spec) {
        carry_node_ports(spec, old);
    }
    if needs_health_port(old) && needs_health_port(spec) && unset(&spec["healthCheckNodePort"]) {
        keep(spec, old, "healthCheckNodePort");
    }
    drop_by_type(spec, old);
}

fn carry_node_ports(spec: &mut Value, old: &Value) {
    let mut given: Vec<i64> = list(spec, "ports").iter().filter_map(|p| int(p, "nodePort")).collect();
    for port in elements(spec, "ports").filter(|p| int(p, "nodePort").unwrap_or(0) == 0) {
        let before = list(old, "ports")
            .iter()
            .find(|o| o["port"] == port["port"] && text(o, "protocol") == text(port, "protocol"));
        if let Some(number) =
            before.and_then(|o| int(o, "nodePort")).filter(|n| *n != 0 && !given.contains(n))
        {
            set(port, "nodePort", number);
            given.push(number);
        }
    }
}

/// Removes fields the new type has no use for, unless the author set them just now.
fn drop_by_type(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if same(&spec[key], &old[key]) {
                remove(spec, key);
            }
        }
    }
    if needs_node_port(old) && !needs_node_port(spec) {
        let olds: Vec<i64> = list(old, "ports").iter().filter_map(|p| int(p, "nodePort")).collect();
        for port in elements(spec, "ports") {
            if int(port, "nodePort").is_some_and(|n| olds.contains(&n)) {
                remove(port, "nodePort");
            }
        }
    }
    if needs_health_port(old)
        && !needs_health_port(spec)
        && same(&spec["healthCheckNodePort"], &old["healthCheckNodePort"])
    {
        remove(spec, "healthCheckNodePort");
    }
    if text(old, "type") == "LoadBalancer" && text(spec, "type") != "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(&spec[key], &old[key]) {
                remove(spec, key);
            }
        }
    }
    if externally_accessible(old)
        && !externally_accessible(spec)
        && same(&spec["externalTrafficPolicy"], &old["externalTrafficPolicy"])
    {
        remove(spec, "externalTrafficPolicy");
    }
    if text(old, "type") == "ExternalName"
        && text(spec, "type") != "ExternalName"
        && same(&spec["externalName"], &old["externalName"])
    {
        remove(spec, "externalName");
    }
}

/// Whether the Service has no selector: its endpoints are somebody else's business.
pub fn selectorless(spec: &Value) -> bool {
    entries(spec, "selector").next().is_none()
}
