//! Quality of service class of a Pod, from its cpu and memory requests and limits.

use serde_json::Value;

use super::super::quantity::{Quantity, compare};
use super::super::value::list;

/// `Guaranteed`: every container has both limits, and requests equal to them. `BestEffort`: none asks for anything.
pub fn class(pod_spec: &Value) -> &'static str {
    let mut guaranteed = true;
    let mut best_effort = true;
    let containers = list(pod_spec, "initContainers").iter().chain(list(pod_spec, "containers"));
    for container in containers {
        let resources = &container["resources"];
        for name in ["cpu", "memory"] {
            let positive = |v: &Value| Quantity::of(v).is_some_and(|q| !q.is_zero());
            let (request, limit) = (&resources["requests"][name], &resources["limits"][name]);
            best_effort &= !positive(request) && !positive(limit);
            guaranteed &= positive(limit) && compare(request, limit).is_some_and(|o| o.is_eq());
        }
    }
    match (best_effort, guaranteed) {
        (true, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let table = [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": both, "limits": both}), "Guaranteed"),
            (json!({"requests": {"cpu": "1000m", "memory": "1Gi"}, "limits": both}), "Guaranteed"),
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
        ];
        for (resources, expected) in table {
            let spec = json!({"containers": [{"resources": resources}]});
            assert_eq!(class(&spec), expected, "{resources}");
        }
    }
}
