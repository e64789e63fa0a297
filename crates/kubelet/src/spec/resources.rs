//! Requests and limits as cgroup values, and the score by which the kernel's OOM killer chooses.

use k8s_openapi::api::core::v1::{Container, Pod};
use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxMemory, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};

use super::SpecError;
use crate::pod::{self, Role};

const PERIOD_MICROS: i128 = 100_000;

/// Shares, quota and memory limit of a container.
///
/// # Errors
/// For resources that this node cannot give, such as huge pages.
pub fn limits(container: &Container) -> Result<LinuxResources, SpecError> {
    let resources = container.resources.as_ref();
    let names = resources.into_iter().flat_map(|r| r.limits.iter().chain(r.requests.iter()).flatten());
    for (name, amount) in names {
        let supported = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if !supported && client::quantity::millis(amount) != Some(0) {
            return Err(SpecError::Invalid(format!("resource {name} is not supported by this node")));
        }
    }
    let cpu_limit = pod::resource(resources, "limits", "cpu").filter(|n| *n > 0);
    let cpu_request = pod::resource(resources, "requests", "cpu").or(cpu_limit).unwrap_or(0);
    let memory = pod::resource(resources, "limits", "memory").filter(|n| *n > 0).map(|m| m / 1000);
    let mut builder = LinuxResourcesBuilder::default().cpu(cpu(cpu_request, cpu_limit)?);
    if let Some(memory) = memory {
        builder = builder.memory(memory_limit(memory)?);
    }
    builder.build().map_err(SpecError::from)
}

fn cpu(request: i128, limit: Option<i128>) -> Result<LinuxCpu, SpecError> {
    // 1024 shares a core, never below the kernel's minimum of 2 nor above its maximum.
    let shares = (request * 1024 / 1000).clamp(2, 262_144);
    let mut builder = LinuxCpuBuilder::default().shares(u64::try_from(shares).unwrap_or(2));
    if let Some(limit) = limit {
        let quota = (limit * PERIOD_MICROS / 1000).clamp(1000, i128::from(i64::MAX));
        builder = builder.quota(i64::try_from(quota).unwrap_or(i64::MAX)).period(PERIOD_MICROS as u64);
    }
    builder.build().map_err(SpecError::from)
}

fn memory_limit(bytes: i128) -> Result<LinuxMemory, SpecError> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    LinuxMemoryBuilder::default().limit(bytes).build().map_err(SpecError::from)
}

/// `oom_score_adj` by quality of service: Guaranteed last, BestEffort first, Burstable by its memory request.
pub fn oom_score_adj(pod: &Pod, role: Role, container: &Container, node_memory: i64) -> i32 {
    if pod::spec(pod).priority_class_name.as_deref() == Some("system-node-critical") {
        return -997;
    }
    match pod::qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = match role {
                // A sidecar must not be killed before the containers it serves.
                Role::Sidecar => {
                    let mains = pod::spec(pod).containers.iter();
                    let least = mains.map(memory_request).min().unwrap_or(0);
                    memory_request(container).max(least)
                }
                _ => memory_request(container),
            };
            let share = 1000 * request / i128::from(node_memory.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

fn memory_request(container: &Container) -> i128 {
    pod::resource(container.resources.as_ref(), "requests", "memory").unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn container(resources: serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "resources": resources})).unwrap()
    }

    #[test]
    fn cgroup_values() {
        for (resources, shares, quota, memory) in [
            (json!({}), 2, None, None),
            (json!({"requests": {"cpu": "500m"}}), 512, None, None),
            (json!({"limits": {"cpu": "200m", "memory": "64Mi"}}), 204, Some(20_000), Some(64 << 20)),
            (json!({"limits": {"cpu": "1m"}, "requests": {"cpu": "1m"}}), 2, Some(1000), None),
        ] {
            let limits = limits(&container(resources)).unwrap();
            let cpu = limits.cpu().as_ref().unwrap();
            assert_eq!((cpu.shares(), cpu.quota()), (Some(shares), quota));
            assert_eq!(limits.memory().as_ref().and_then(|m| m.limit()), memory);
        }
        let error = limits(&container(json!({"limits": {"hugepages-2Mi": "4Mi"}}))).unwrap_err();
        assert_eq!(error.to_string(), "resource hugepages-2Mi is not supported by this node");
    }

    #[test]
    fn oom_scores() {
        let pod = |resources| {
            crate::pod::tests::pod(
                json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": resources}]}}),
            )
        };
        let score = |p: &Pod| oom_score_adj(p, Role::Main, &p.spec.as_ref().unwrap().containers[0], 1 << 30);
        assert_eq!(score(&pod(json!({}))), 1000);
        assert_eq!(
            score(&pod(
                json!({"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "1", "memory": "1Mi"}})
            )),
            -997
        );
        assert_eq!(score(&pod(json!({"requests": {"memory": "512Mi"}}))), 500);
        assert_eq!(score(&pod(json!({"requests": {"memory": "2Gi"}}))), 3);
        assert_eq!(score(&pod(json!({"requests": {"cpu": "1"}}))), 999);
    }
}
