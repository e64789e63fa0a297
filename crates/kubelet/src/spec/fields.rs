//! Downward API: fields of the Pod and resources of its containers as text, for variables and for files.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use super::SpecError;
use crate::pod;
use client::quantity;

/// What the Pod object itself does not say.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The Pod's addresses.
    pub ips: &'a [IpAddr],
    /// The node's addresses.
    pub host_ips: &'a [IpAddr],
    /// Allocatable CPU of the node, thousandths of a core.
    pub cpu_millis: i64,
    /// Allocatable memory of the node.
    pub memory_bytes: i64,
    /// Allocatable local storage of the node.
    pub ephemeral_bytes: i64,
}

/// The value of a field path such as `metadata.labels['app']` or `status.podIP`.
///
/// # Errors
/// For a path that the downward API does not offer.
pub fn field(pod: &Pod, path: &str, facts: &Facts<'_>) -> Result<String, SpecError> {
    let meta = &pod.metadata;
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(SpecError::Config(format!("unsupported fieldPath: {path}"))),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let spec = pod::spec(pod);
    Ok(match path {
        "metadata.name" => pod::name(pod).to_string(),
        "metadata.namespace" => pod::namespace(pod).to_string(),
        "metadata.uid" => pod::uid(pod).to_string(),
        "metadata.labels" => lines(meta.labels.iter().flatten()),
        "metadata.annotations" => lines(meta.annotations.iter().flatten()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(facts.host_ips),
        "status.hostIPs" => join(facts.host_ips),
        "status.podIP" => first(facts.ips),
        "status.podIPs" => join(facts.ips),
        _ => return Err(SpecError::Config(format!("unsupported fieldPath: {path}"))),
    })
}

/// `key="value"` lines, values quoted as Go quotes strings.
fn lines<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    map.map(|(k, v)| format!("{k}={}", quote(v))).collect::<Vec<_>>().join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() && (c as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's request or limit divided by the divisor, rounded up; the node's allocatable stands in for no limit.
///
/// # Errors
/// For an unknown container or resource.
pub fn resource(
    pod: &Pod,
    container: &str,
    selector: &ResourceFieldSelector,
    facts: &Facts<'_>,
) -> Result<String, SpecError> {
    let Some((_, found)) = pod::container(pod, container) else {
        return Err(SpecError::Config(format!("container {container} not found")));
    };
    let unsupported = || SpecError::Config(format!("unsupported container resource : {}", selector.resource));
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let allocatable = match name {
        "cpu" => i128::from(facts.cpu_millis),
        "memory" => i128::from(facts.memory_bytes) * 1000,
        "ephemeral-storage" => i128::from(facts.ephemeral_bytes) * 1000,
        _ if name.starts_with("hugepages-") => 0,
        _ => return Err(unsupported()),
    };
    let given = pod::resource(found.resources.as_ref(), kind, name).filter(|n| *n != 0);
    let amount = match (kind, given) {
        ("limits", given) => given.unwrap_or(allocatable),
        ("requests", given) => given.unwrap_or(0),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref().and_then(quantity::millis).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((amount + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_of_the_downward_api() {
        let pod = crate::pod::tests::pod(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1", "b": "x\"y\n"},
                "annotations": {"example.com/k": "v"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}}));
        let ips = ["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let host = ["192.168.49.2".parse().unwrap()];
        let facts =
            Facts { ips: &ips, host_ips: &host, cpu_millis: 2500, memory_bytes: 1 << 30, ephemeral_bytes: 0 };
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "n"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"1\"\nb=\"x\\\"y\\n\""),
            ("metadata.labels['a']", "1"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['example.com/k']", "v"),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.168.49.2"),
            ("status.podIP", "10.244.0.5"),
            ("status.podIPs", "10.244.0.5,fd00::5"),
        ] {
            assert_eq!(field(&pod, path, &facts).unwrap(), value, "{path}");
        }
        assert!(field(&pod, "spec.tolerations", &facts).is_err());
        for (name, divisor, value) in [
            ("limits.memory", "1Mi", "64"),
            ("limits.memory", "0", "67108864"),
            ("requests.cpu", "1m", "250"),
            ("requests.cpu", "1", "1"),
            ("limits.cpu", "1", "3"),
            ("limits.cpu", "1m", "2500"),
            ("requests.memory", "1", "0"),
        ] {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": name, "divisor": divisor})).unwrap();
            assert_eq!(resource(&pod, "c", &selector, &facts).unwrap(), value, "{name} / {divisor}");
        }
    }
}
