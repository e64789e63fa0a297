//! What a Pod asks for and what a node has, by resource name, in thousandths.
//!
//! A Pod's request is the larger of its containers together and its init containers one by one, restartable init
//! containers (sidecars, KEP-753) counted with all that start after them, plus the overhead.

use std::collections::BTreeMap;

use client::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name, in thousandths of its unit.
pub type Amounts = BTreeMap<String, i128>;

/// Reads a quantity map; what does not parse was refused by the API server and counts as nothing.
pub fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let known = list.into_iter().flatten();
    known.filter_map(|(name, quantity)| Some((name.clone(), quantity::millis(quantity)?))).collect()
}

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|r| r.requests.as_ref()))
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

fn raise_to(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = most.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

fn restarts_always(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the Pod asks of its node, with one `pods`.
pub fn of_pod(pod: &Pod) -> Amounts {
    let mut total = Amounts::new();
    let Some(spec) = &pod.spec else { return total };
    for container in &spec.containers {
        add(&mut total, &requests(container.resources.as_ref()));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container.resources.as_ref());
        let mut beside = sidecars.clone();
        add(&mut beside, &own);
        raise_to(&mut starting, &beside);
        if restarts_always(container) {
            add(&mut sidecars, &own);
        }
    }
    add(&mut total, &sidecars);
    raise_to(&mut total, &starting);
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.insert("pods".into(), 1000);
    total
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_count_one_by_one_and_sidecars_with_the_rest() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": cpu("100m")}, {"name": "b", "resources": cpu("200m")}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": cpu("50m")},
                {"name": "i", "resources": cpu("320m")},
            ],
            "overhead": {"cpu": "10m"},
        }}))
        .unwrap();
        // containers 300 + sidecar 50 = 350; starting i beside s = 370; overhead 10.
        assert_eq!(of_pod(&pod)["cpu"], 380);
        assert_eq!(of_pod(&pod)["pods"], 1000);
    }
}
