//! Endpoints, EndpointSlice, NetworkPolicy, IngressClass, IPAddress, ServiceCIDR.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::checks;
use super::pod::container::port as port_or_name;
use super::rules::Rules;
use super::selector;
use super::value::{child, default, elements, int, list, set, text, unset};
use crate::alloc::Allocators;
use crate::field::{FieldError, FieldErrors};
use crate::strategy::{Context, NameRule, Strategy};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// An address traffic may be sent to, or that a Service may have from outside.
pub fn no_special_address(ip: &str, path: &str, errors: &mut FieldErrors) {
    let Ok(address) = ip.parse::<std::net::IpAddr>() else {
        errors.messages(path, ip, checks::ip(ip));
        return;
    };
    let link_local = match address {
        std::net::IpAddr::V4(a) => a.is_link_local(),
        std::net::IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let why = if address.is_unspecified() {
        format!("may not be unspecified ({ip})")
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".into()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into()
    } else if address.is_multicast() {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into()
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, ip, why));
}

/// Endpoints.
pub const ENDPOINTS: Rules = Rules {
    create_on_update: true,
    default: |object| {
        for subset in elements(object, "subsets") {
            for port in elements(subset, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    },
    validate: |object, errors| {
        for (i, subset) in list(object, "subsets").iter().enumerate() {
            let path = format!("subsets[{i}]");
            if unset(&subset["addresses"]) && unset(&subset["notReadyAddresses"]) {
                let why = "must specify `addresses` or `notReadyAddresses`";
                errors.push(FieldError::required(&path, why));
            }
            for key in ["addresses", "notReadyAddresses"] {
                for (a, address) in list(subset, key).iter().enumerate() {
                    let path = format!("{path}.{key}[{a}]");
                    no_special_address(text(address, "ip"), &format!("{path}.ip"), errors);
                    errors.optional_form(address, &path, "hostname", checks::dns1123_label);
                }
            }
            let ports = list(subset, "ports");
            for (p, port) in ports.iter().enumerate() {
                let path = format!("{path}.ports[{p}]");
                if ports.len() > 1 {
                    errors.present(port, &path, "name");
                }
                errors.optional_form(port, &path, "name", checks::dns1123_label);
                let number = int(port, "port").unwrap_or(0);
                errors.messages(&format!("{path}.port"), number, checks::port_number(number));
                errors.one_of(port, &path, "protocol", PROTOCOLS);
            }
        }
    },
    ..Rules::NONE
};

/// EndpointSlices.
pub const ENDPOINT_SLICE: Rules = Rules {
    default: |object| {
        for port in elements(object, "ports") {
            if port["name"].is_null() {
                set(port, "name", "");
            }
            default(port, "protocol", "TCP");
        }
    },
    validate: |object, errors| {
        if unset(&object["addressType"]) {
            errors.push(FieldError::required("addressType", ""));
        } else if !["FQDN", "IPv4", "IPv6"].contains(&text(object, "addressType")) {
            let supported = ["FQDN", "IPv4", "IPv6"];
            errors.push(FieldError::not_supported("addressType", text(object, "addressType"), &supported));
        }
        let endpoints = list(object, "endpoints");
        if endpoints.len() > 1000 {
            errors.push(FieldError::too_many("endpoints", endpoints.len(), 1000));
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            slice_endpoint(object, endpoint, &format!("endpoints[{i}]"), errors);
        }
        slice_ports(object, errors);
    },
    validate_update: |new, old, errors| {
        errors.immutable(&new["addressType"], &old["addressType"], "addressType");
    },
    ..Rules::NONE
};

fn slice_endpoint(slice: &Value, endpoint: &Value, path: &str, errors: &mut FieldErrors) {
    let addresses = list(endpoint, "addresses");
    let at = format!("{path}.addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(&at, "must contain at least 1 address"));
    }
    if addresses.len() > 100 {
        errors.push(FieldError::too_many(&at, addresses.len(), 100));
    }
    for (a, address) in addresses.iter().enumerate() {
        let (at, address) = (format!("{at}[{a}]"), address.as_str().unwrap_or_default());
        match (text(slice, "addressType"), address.parse::<std::net::IpAddr>()) {
            ("IPv4", Ok(ip)) if ip.is_ipv4() => no_special_address(address, &at, errors),
            ("IPv4", _) => errors.push(FieldError::invalid(&at, address, "must be a valid IPv4 address")),
            ("IPv6", Ok(ip)) if ip.is_ipv6() => no_special_address(address, &at, errors),
            ("IPv6", _) => errors.push(FieldError::invalid(&at, address, "must be a valid IPv6 address")),
            ("FQDN", _) => errors.messages(&at, address, checks::dns1123_subdomain(address)),
            _ => {}
        }
    }
    errors.optional_form(endpoint, path, "hostname", checks::dns1123_label);
    errors.optional_form(endpoint, path, "nodeName", checks::dns1123_subdomain);
}

fn slice_ports(slice: &Value, errors: &mut FieldErrors) {
    let ports = list(slice, "ports");
    if ports.len() > 20_000 {
        errors.push(FieldError::too_many("ports", ports.len(), 20_000));
    }
    let mut names: Vec<&str> = Vec::new();
    for (p, port) in ports.iter().enumerate() {
        let path = format!("ports[{p}]");
        let name = text(port, "name");
        errors.optional_form(port, &path, "name", checks::dns1123_label);
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        names.push(name);
        errors.one_of(port, &path, "protocol", PROTOCOLS);
    }
}

/// NetworkPolicies.
pub const NETWORK_POLICY: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        for rules in ["ingress", "egress"] {
            for rule in elements(spec, rules) {
                for port in elements(rule, "ports") {
                    default(port, "protocol", "TCP");
                }
            }
        }
        if unset(&spec["policyTypes"]) {
            let types =
                if unset(&spec["egress"]) { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
            set(spec, "policyTypes", types);
        }
    },
    validate: |object, errors| {
        let spec = &object["spec"];
        selector::validate(&spec["podSelector"], "spec.podSelector", errors);
        for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in list(spec, rules).iter().enumerate() {
                let path = format!("spec.{rules}[{i}]");
                for (p, port) in list(rule, "ports").iter().enumerate() {
                    policy_port(port, &format!("{path}.ports[{p}]"), errors);
                }
                for (p, peer) in list(rule, peers).iter().enumerate() {
                    policy_peer(peer, &format!("{path}.{peers}[{p}]"), errors);
                }
            }
        }
        let types = list(spec, "policyTypes");
        if types.len() > 2 {
            let why = "may not specify more than two policyTypes";
            errors.push(FieldError::invalid("spec.policyTypes", spec["policyTypes"].clone(), why));
        }
        for (i, kind) in types.iter().enumerate() {
            if kind != "Ingress" && kind != "Egress" {
                let path = format!("spec.policyTypes[{i}]");
                errors.push(FieldError::not_supported(path, kind.clone(), &["Egress", "Ingress"]));
            }
        }
    },
    ..Rules::NONE
};

/// NetworkPolicies where nobody enforces them.
pub const IDLE_NETWORK_POLICY: Rules = Rules {
    create: |cx, _| {
        cx.warn(
            "this cluster does not enforce NetworkPolicies (--cni=kubenet): the policy is kept and has no effect",
        );
    },
    ..NETWORK_POLICY
};

/// NetworkPolicies where packets may go around who enforces them.
pub const DOUBTFUL_NETWORK_POLICY: Rules = Rules {
    create: |cx, _| {
        cx.warn(
            "this cluster's CNI plugin may lead packets around the node: NetworkPolicies are enforced only on those that pass it",
        );
    },
    ..NETWORK_POLICY
};

fn policy_port(port: &Value, path: &str, errors: &mut FieldErrors) {
    errors.one_of(port, path, "protocol", PROTOCOLS);
    let end = int(port, "endPort");
    match &port["port"] {
        Value::Null if end.is_some() => {
            let why = "may not be specified when `port` is not specified";
            errors.push(FieldError::invalid(format!("{path}.endPort"), port["endPort"].clone(), why));
        }
        Value::Null => {}
        Value::String(_) if end.is_some() => {
            let why = "may not be specified when `port` is non-numeric";
            errors.push(FieldError::invalid(format!("{path}.endPort"), port["endPort"].clone(), why));
        }
        number => {
            port_or_name(number, &format!("{path}.port"), errors);
            if let (Some(end), Some(first)) = (end, number.as_i64()) {
                if end < first {
                    let why = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(format!("{path}.endPort"), end, why));
                }
                errors.messages(&format!("{path}.endPort"), end, checks::port_number(end));
            }
        }
    }
}

fn policy_peer(peer: &Value, path: &str, errors: &mut FieldErrors) {
    let mut kinds = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if !peer[key].is_null() {
            kinds += 1;
            selector::validate(&peer[key], &format!("{path}.{key}"), errors);
        }
    }
    let block = &peer["ipBlock"];
    if !block.is_null() {
        kinds += 1;
        ip_block(block, &format!("{path}.ipBlock"), errors);
    }
    if kinds == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if kinds > 1 && !block.is_null() {
        let why = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(path, why));
    }
}

fn ip_block(block: &Value, path: &str, errors: &mut FieldErrors) {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        errors.push(FieldError::required(format!("{path}.cidr"), ""));
        return;
    }
    let Ok(net) = cidr.parse::<ipnet::IpNet>() else {
        errors.messages(&format!("{path}.cidr"), cidr, checks::cidr(cidr));
        return;
    };
    for (i, except) in list(block, "except").iter().enumerate() {
        let path = format!("{path}.except[{i}]");
        let text = except.as_str().unwrap_or_default();
        match text.parse::<ipnet::IpNet>() {
            Err(_) => errors.messages(&path, text, checks::cidr(text)),
            Ok(inner) if !net.contains(&inner.trunc()) || inner.prefix_len() <= net.prefix_len() => {
                let why = format!("must be a strict subset of `{cidr}`");
                errors.push(FieldError::invalid(&path, text, why));
            }
            Ok(_) => {}
        }
    }
}

/// IngressClasses.
pub const INGRESS_CLASS: Rules = Rules {
    create_on_update: true,
    default: |object| {
        if let Some(spec) = child(object, "spec")
            && let Some(parameters) = child(spec, "parameters")
        {
            default(parameters, "scope", "Cluster");
        }
    },
    validate: |object, errors| {
        let controller = text(&object["spec"], "controller");
        if controller.is_empty() {
            errors.push(FieldError::required("spec.controller", ""));
        } else if !controller.contains('/') {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid("spec.controller", controller, why));
        }
    },
    validate_update: |new, old, errors| {
        let path = "spec.controller";
        errors.immutable(&new["spec"]["controller"], &old["spec"]["controller"], path);
    },
    ..Rules::NONE
};

/// IPAddresses: the name is the address.
pub const IP_ADDRESS: Rules = Rules {
    names: NameRule::Own,
    validate: |object, errors| {
        let name = super::value::name(object);
        let canonical = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_string() == name);
        if !canonical {
            let why = "must be a valid address in canonical form";
            errors.push(FieldError::invalid("metadata.name", name, why));
        }
        let parent = &object["spec"]["parentRef"];
        if parent.is_null() {
            errors.push(FieldError::required("spec.parentRef", ""));
        } else {
            errors.present(parent, "spec.parentRef", "resource");
            errors.present(parent, "spec.parentRef", "name");
        }
    },
    validate_update: |new, old, errors| {
        errors.immutable(&new["spec"]["parentRef"], &old["spec"]["parentRef"], "spec.parentRef");
    },
    ..Rules::NONE
};

/// ServiceCIDRs, which the allocators follow.
pub struct ServiceCidrs {
    /// Addresses and ports.
    pub allocators: Arc<Allocators>,
}

#[async_trait]
impl Strategy for ServiceCidrs {
    fn prepare_create(&self, cx: &Context, object: &mut Value) {
        SERVICE_CIDR.prepare_create(cx, object);
    }

    fn validate(&self, cx: &Context, object: &Value) -> FieldErrors {
        SERVICE_CIDR.validate(cx, object)
    }

    fn validate_update(&self, cx: &Context, new: &Value, old: &Value) -> FieldErrors {
        SERVICE_CIDR.validate_update(cx, new, old)
    }

    async fn created(&self, _cx: &Context, object: &Value) {
        self.allocators.set_cidr(object);
    }

    async fn updated(&self, _cx: &Context, new: &Value, _old: &Value) {
        self.allocators.set_cidr(new);
    }

    async fn deleted(&self, _cx: &Context, object: &Value) {
        self.allocators.remove_cidr(object);
    }
}

const SERVICE_CIDR: Rules = Rules {
    validate: |object, errors| {
        let cidrs = list(&object["spec"], "cidrs");
        if cidrs.is_empty() {
            errors.push(FieldError::required("spec.cidrs", "at least one CIDR required"));
        }
        if cidrs.len() > 2 {
            let why = "may only hold up to 2 values";
            errors.push(FieldError::invalid("spec", object["spec"].clone(), why));
        }
        for (i, cidr) in cidrs.iter().enumerate() {
            let cidr = cidr.as_str().unwrap_or_default();
            errors.messages(&format!("spec.cidrs[{i}]"), cidr, checks::cidr(cidr));
        }
    },
    validate_update: |new, old, errors| {
        errors.immutable(&new["spec"]["cidrs"], &old["spec"]["cidrs"], "spec.cidrs");
    },
    ..Rules::NONE
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::fake::offences;
    use super::*;

    #[test]
    fn policies() {
        let mut open = json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}});
        (NETWORK_POLICY.default)(&mut open);
        assert_eq!(open["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(open["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        let table = [
            (json!({"from": [{}]}), "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.1.0.0/24"]}}]}),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.1.0.0/24\": must be a strict subset of `10.0.0.0/16`",
            ),
            (
                json!({"ports": [{"port": 10, "endPort": 5}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 5: must be greater than or equal to `port`",
            ),
            (
                json!({"ports": [{"port": "http", "endPort": 5}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 5: may not be specified when `port` is non-numeric",
            ),
            (json!({"from": [{"podSelector": {}, "namespaceSelector": {}}]}), "[]"),
        ];
        for (rule, expected) in table {
            let object = json!({"spec": {"podSelector": {}, "ingress": [rule]}});
            assert_eq!(offences(NETWORK_POLICY, object), expected);
        }
    }

    #[test]
    fn endpoints_and_slices() {
        let subset = |ip: &str| json!({"subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]});
        assert_eq!(offences(ENDPOINTS, subset("10.0.0.1")), "[]");
        assert!(offences(ENDPOINTS, subset("127.0.0.1")).contains("may not be in the loopback range"));
        assert!(offences(ENDPOINTS, subset("169.254.1.1")).contains("link-local range"));
        let at = |family: &str, ip: &str| json!({"addressType": family, "endpoints": [{"addresses": [ip]}]});
        for (family, ip, why) in [
            ("IPv4", "127.0.0.1", "may not be in the loopback range"),
            ("IPv4", "169.254.1.1", "link-local range"),
            ("IPv4", "0.0.0.0", "may not be unspecified"),
            ("IPv4", "224.0.0.1", "link-local multicast range"),
            ("IPv6", "::1", "may not be in the loopback range"),
            ("IPv6", "fe80::1", "link-local range"),
        ] {
            let said = offences(ENDPOINT_SLICE, at(family, ip));
            assert!(said.starts_with("endpoints[0].addresses[0]: ") && said.contains(why), "{ip}: {said}");
        }
        assert_eq!(
            offences(ENDPOINT_SLICE, at("IPv4", "10.96.0.7")),
            "[]",
            "a Service's address, as upstream"
        );
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}], "ports": [{"port": 1}, {"port": 2}]});
        assert_eq!(
            offences(ENDPOINT_SLICE, slice),
            "[endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address, ports[1].name: Duplicate value: \"\"]"
        );
    }

    #[test]
    fn addresses_are_named_by_themselves() {
        let object = |name: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": "a"}}});
        assert_eq!(offences(IP_ADDRESS, object("10.96.0.1")), "[]");
        assert_eq!(offences(IP_ADDRESS, object("fd00::1")), "[]");
        assert!(offences(IP_ADDRESS, object("fd00:0::1")).contains("canonical form"));
    }
}
