//! Services, endpoints, ingresses, policies.

use std::collections::BTreeSet;

use serde_json::Value;

use super::format::{age_of, few, labels, list, none, or, selector};
use super::{AGE, NAME, Printer, text, wide};
use crate::object::meta;

pub(super) fn printer(plural: &str) -> Option<&'static Printer> {
    Some(match plural {
        "services" => &SERVICES,
        "endpoints" => &ENDPOINTS,
        "endpointslices" => &SLICES,
        "ingresses" => &INGRESSES,
        "ingressclasses" => &INGRESS_CLASSES,
        "networkpolicies" => &POLICIES,
        "ipaddresses" => &ADDRESSES,
        "servicecidrs" => &CIDRS,
        _ => return None,
    })
}

static SERVICES: Printer = Printer {
    columns: &[
        NAME,
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        AGE,
        wide("Selector"),
    ],
    cells: |o, now| {
        let spec = &o["spec"];
        let ip = list(&spec["clusterIPs"]).first().unwrap_or(&spec["clusterIP"]);
        vec![
            meta(o, "name").into(),
            or(&spec["type"], "ClusterIP").into(),
            or(ip, "<none>").into(),
            external(o).into(),
            ports(spec).into(),
            age_of(o, now),
            labels(&spec["selector"]).into(),
        ]
    },
};

fn texts(value: &Value) -> Vec<String> {
    list(value).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Addresses or host names that a load balancer has given, sorted.
fn balancer(status: &Value) -> Vec<String> {
    let ingress = list(&status["loadBalancer"]["ingress"]).iter();
    let names: BTreeSet<String> =
        ingress.map(|i| or(&i["ip"], or(&i["hostname"], "")).to_owned()).filter(|t| !t.is_empty()).collect();
    names.into_iter().collect()
}

fn external(service: &Value) -> String {
    let spec = &service["spec"];
    let mut own = texts(&spec["externalIPs"]);
    match or(&spec["type"], "ClusterIP") {
        "ExternalName" => or(&spec["externalName"], "").to_owned(),
        "LoadBalancer" => {
            let mut all = balancer(&service["status"]);
            all.append(&mut own);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        _ => none(own.join(",")),
    }
}

fn ports(spec: &Value) -> String {
    let one = |p: &Value| {
        let protocol = or(&p["protocol"], "TCP");
        match p["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{}:{node}/{protocol}", p["port"]),
            _ => format!("{}/{protocol}", p["port"]),
        }
    };
    none(list(&spec["ports"]).iter().map(one).collect::<Vec<_>>().join(","))
}

fn join(host: &str, port: &Value) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

static ENDPOINTS: Printer = Printer {
    columns: &[NAME, text("Endpoints"), AGE],
    cells: |o, now| {
        let mut all = Vec::new();
        for subset in list(&o["subsets"]) {
            let addresses: Vec<&str> =
                list(&subset["addresses"]).iter().filter_map(|a| a["ip"].as_str()).collect();
            let ports = list(&subset["ports"]);
            if ports.is_empty() {
                all.extend(addresses.iter().map(|a| (*a).to_owned()));
            }
            for port in ports {
                all.extend(addresses.iter().map(|a| join(a, &port["port"])));
            }
        }
        vec![meta(o, "name").into(), few(&all, "<none>").into(), age_of(o, now)]
    },
};

static SLICES: Printer = Printer {
    columns: &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE],
    cells: |o, now| {
        let port = |p: &Value| if p["port"].is_null() { "*".to_owned() } else { p["port"].to_string() };
        let ports: Vec<String> = list(&o["ports"]).iter().map(port).collect();
        let addresses: Vec<String> =
            list(&o["endpoints"]).iter().flat_map(|e| texts(&e["addresses"])).collect();
        vec![
            meta(o, "name").into(),
            or(&o["addressType"], "").into(),
            few(&ports, "<unset>").into(),
            few(&addresses, "<unset>").into(),
            age_of(o, now),
        ]
    },
};

static INGRESSES: Printer = Printer {
    columns: &[NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE],
    cells: |o, now| {
        let spec = &o["spec"];
        let hosts: Vec<String> = list(&spec["rules"])
            .iter()
            .filter_map(|r| r["host"].as_str())
            .filter(|h| !h.is_empty())
            .map(str::to_owned)
            .collect();
        let ports = if list(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
        vec![
            meta(o, "name").into(),
            or(&spec["ingressClassName"], "<none>").into(),
            few(&hosts, "*").into(),
            balancer(&o["status"]).join(",").into(),
            ports.into(),
            age_of(o, now),
        ]
    },
};

static INGRESS_CLASSES: Printer = Printer {
    columns: &[NAME, text("Controller"), text("Parameters"), AGE],
    cells: |o, now| {
        let parameters = &o["spec"]["parameters"];
        let shown = if parameters.is_null() {
            "<none>".to_owned()
        } else {
            let kind = or(&parameters["kind"], "");
            let kind = crate::status::qualified(or(&parameters["apiGroup"], ""), kind);
            format!("{kind}/{}", or(&parameters["name"], ""))
        };
        vec![meta(o, "name").into(), or(&o["spec"]["controller"], "").into(), shown.into(), age_of(o, now)]
    },
};

static POLICIES: Printer = Printer {
    columns: &[NAME, text("Pod-Selector"), AGE],
    cells: |o, now| vec![meta(o, "name").into(), selector(&o["spec"]["podSelector"]).into(), age_of(o, now)],
};

static ADDRESSES: Printer = Printer {
    columns: &[NAME, text("ParentRef"), AGE],
    cells: |o, now| {
        let parent = &o["spec"]["parentRef"];
        let parts = [&parent["group"], &parent["resource"], &parent["namespace"], &parent["name"]];
        let shown: Vec<&str> = parts.iter().map(|p| or(p, "")).filter(|p| !p.is_empty()).collect();
        vec![meta(o, "name").into(), shown.join("/").into(), age_of(o, now)]
    },
};

static CIDRS: Printer = Printer {
    columns: &[NAME, text("CIDRs"), AGE],
    cells: |o, now| vec![meta(o, "name").into(), texts(&o["spec"]["cidrs"]).join(",").into(), age_of(o, now)],
};
