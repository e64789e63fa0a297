//! Requests and limits of a whole Pod: what LimitRanges bound and ResourceQuotas add up.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::quantity::Quantity;
use super::super::value::{entries, list};

type ByResource = BTreeMap<String, Quantity>;

/// Requests and limits by resource.
#[derive(Debug, Default, PartialEq)]
pub struct Amounts {
    /// What is reserved.
    pub requests: ByResource,
    /// What may be used at most.
    pub limits: ByResource,
}

impl Amounts {
    /// Of a container's or a claim's `resources`.
    pub fn of(resources: &Value) -> Self {
        let read = |key: &str| {
            entries(resources, key).filter_map(|(name, v)| Some((name.clone(), Quantity::of(v)?))).collect()
        };
        Amounts { requests: read("requests"), limits: read("limits") }
    }

    /// A Pod's, its overhead aside: those of its containers and sidecars together, or what one of the init containers
    /// needs beside the sidecars that started before it.
    pub fn of_pod(spec: &Value) -> Self {
        let total = |pick: fn(Amounts) -> ByResource| {
            let of = |container: &Value| pick(Amounts::of(&container["resources"]));
            let (mut running, mut sidecars, mut peak) =
                (ByResource::new(), ByResource::new(), ByResource::new());
            list(spec, "containers").iter().for_each(|c| add(&mut running, &of(c)));
            for init in list(spec, "initContainers") {
                let mut own = of(init);
                if init["restartPolicy"] == "Always" {
                    add(&mut running, &own);
                    add(&mut sidecars, &own);
                    own = sidecars.clone();
                } else {
                    add(&mut own, &sidecars);
                }
                raise(&mut peak, &own);
            }
            raise(&mut running, &peak);
            running
        };
        Amounts { requests: total(|a| a.requests), limits: total(|a| a.limits) }
    }

    /// With `spec.overhead`; a limit that is not set stays so.
    #[must_use]
    pub fn with_overhead(mut self, spec: &Value) -> Self {
        for (resource, amount) in entries(spec, "overhead") {
            let Some(amount) = Quantity::of(amount) else { continue };
            let request = self.requests.entry(resource.clone()).or_insert(Quantity::ZERO);
            *request = request.plus(amount);
            if let Some(limit) = self.limits.get_mut(resource) {
                *limit = limit.plus(amount);
            }
        }
        self
    }
}

fn add(sum: &mut ByResource, more: &ByResource) {
    for (resource, amount) in more {
        let slot = sum.entry(resource.clone()).or_insert(Quantity::ZERO);
        *slot = slot.plus(*amount);
    }
}

fn raise(most: &mut ByResource, other: &ByResource) {
    for (resource, amount) in other {
        let slot = most.entry(resource.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sidecars_run_on_and_init_containers_peak() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let spec = json!({
            "containers": [{"resources": cpu("1")}, {"resources": cpu("500m")}],
            "initContainers": [
                {"resources": cpu("100m"), "restartPolicy": "Always"},
                {"resources": cpu("2")},
            ],
            "overhead": {"cpu": "1"},
        });
        let amounts = Amounts::of_pod(&spec);
        assert_eq!(amounts.requests["cpu"].text(false), "2100m");
        let whole = amounts.with_overhead(&spec);
        assert_eq!((whole.requests["cpu"].text(false), whole.limits.len()), ("3100m".into(), 0));
    }
}
