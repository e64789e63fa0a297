//! LimitRanger: what a namespace's LimitRanges give to containers that ask for nothing, and what they refuse.
//!
//! <https://kubernetes.io/docs/concepts/policy/limit-range/>

use std::sync::Arc;

use serde_json::Value;

use crate::core::Call;
use crate::kinds::pod::resources::Amounts;
use crate::kinds::quantity::Quantity;
use crate::kinds::value::{child_or_new, default, elements, entries, list, name, text};
use crate::object::meta;
use crate::resource::GroupResource;
use crate::status::Status;

/// Says on a Pod what was filled in.
const NOTE: &str = "kubernetes.io/limit-ranger";
/// Containers that limits are about.
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// The limits of the request's namespace, if it is about an object that they concern.
async fn limits(call: &Call) -> Result<Vec<Value>, Status> {
    let concerned = call.row.group.is_empty()
        && matches!(call.row.plural.as_str(), "pods" | "persistentvolumeclaims")
        && call.cx.subresource.is_empty();
    if !concerned {
        return Ok(Vec::new());
    }
    let resource = GroupResource::new("", "limitranges");
    let (mut ranges, _): (Vec<Arc<Value>>, u64) =
        call.cx.objects.list(&resource, Some(call.namespace())).await?;
    ranges.sort_by(|a, b| name(a).cmp(name(b)));
    Ok(ranges.iter().flat_map(|range| list(&range["spec"], "limits").to_vec()).collect())
}

/// Gives containers the defaults; whether there were any.
///
/// # Errors
/// An unreadable store.
pub async fn fill_in(call: &Call, pod: &mut Value) -> Result<bool, Status> {
    if call.row.plural != "pods" {
        return Ok(false);
    }
    let mut notes = Vec::new();
    for limit in limits(call).await?.iter().filter(|limit| text(limit, "type") == "Container") {
        for key in CONTAINERS {
            for container in elements(&mut pod["spec"], key) {
                notes.extend(fill_container(container, key == CONTAINERS[0], limit));
            }
        }
    }
    if notes.is_empty() {
        return Ok(false);
    }
    if let Some(annotations) = child_or_new(&mut pod["metadata"], "annotations") {
        annotations[NOTE] = format!("LimitRanger plugin set: {}", notes.join("; ")).into();
    }
    Ok(true)
}

/// What was set, as the note says it.
fn fill_container(container: &mut Value, init: bool, limit: &Value) -> Vec<String> {
    let whose = format!("{} {}", if init { "init container" } else { "container" }, name_of(container));
    let mut notes = Vec::new();
    for (to, from, what) in [("limits", "default", "limit"), ("requests", "defaultRequest", "request")] {
        let mut set = Vec::new();
        for (resource, amount) in entries(limit, from) {
            let Some(slot) = child_or_new(container, "resources").and_then(|r| child_or_new(r, to)) else {
                continue;
            };
            if slot.get(resource).is_none() {
                default(slot, resource, amount.clone());
                set.push(resource.clone());
            }
        }
        if !set.is_empty() {
            notes.push(format!("{} {what} for {whose}", set.join(", ")));
        }
    }
    notes.sort_by_key(|note| !note.contains(" request for "));
    notes
}

fn name_of(container: &Value) -> &str {
    text(container, "name")
}

/// Refuses what is outside of the limits.
///
/// # Errors
/// 403 with each offence.
pub async fn check(call: &Call, object: &Value) -> Result<(), Status> {
    let mut offences = Vec::new();
    for limit in limits(call).await? {
        match (text(&limit, "type"), call.row.plural.as_str()) {
            ("Container", "pods") => {
                for container in CONTAINERS.iter().flat_map(|key| list(&object["spec"], key)) {
                    within(&limit, &Amounts::of(&container["resources"]), &mut offences);
                }
            }
            ("Pod", "pods") => within(&limit, &Amounts::of_pod(&object["spec"]), &mut offences),
            ("PersistentVolumeClaim", "persistentvolumeclaims") => {
                within(&limit, &Amounts::of(&object["spec"]["resources"]), &mut offences);
            }
            _ => {}
        }
    }
    match offences.as_slice() {
        [] => Ok(()),
        [one] => Err(call.forbidden(meta(object, "name"), one)),
        many => Err(call.forbidden(meta(object, "name"), &format!("[{}]", many.join(", ")))),
    }
}

fn within(limit: &Value, asked: &Amounts, offences: &mut Vec<String>) {
    let of = text(limit, "type");
    for (resource, shown, bound) in bounds(limit, "min") {
        let (request, limit) = (asked.requests.get(resource), asked.limits.get(resource));
        let head = format!("minimum {resource} usage per {of} is {shown}");
        match (request, limit) {
            (None, _) => offences.push(format!("{head}.  No request is specified")),
            (Some(r), _) if *r < bound => offences.push(format!("{head}, but request is {r}")),
            (_, Some(l)) if *l < bound => offences.push(format!("{head}, but limit is {l}")),
            _ => {}
        }
    }
    for (resource, shown, bound) in bounds(limit, "max") {
        let (request, limit) = (asked.requests.get(resource), asked.limits.get(resource));
        let head = format!("maximum {resource} usage per {of} is {shown}");
        // A claim has no limit: what it asks for is what it gets.
        let limit = limit.or(request.filter(|_| of == "PersistentVolumeClaim"));
        match (request, limit) {
            (_, None) => offences.push(format!("{head}.  No limit is specified")),
            (_, Some(l)) if *l > bound => offences.push(format!("{head}, but limit is {l}")),
            (Some(r), _) if *r > bound => offences.push(format!("{head}, but request is {r}")),
            _ => {}
        }
    }
    for (resource, shown, bound) in bounds(limit, "maxLimitRequestRatio") {
        let head = format!("{resource} max limit to request ratio per {of} is {shown}");
        let positive = |q: Option<&Quantity>| q.copied().filter(|q| !q.is_zero());
        match (positive(asked.requests.get(resource)), positive(asked.limits.get(resource))) {
            (None, _) => offences.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => offences.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) => {
                let ratio = l.ratio(r);
                if ratio > bound.ratio(Quantity::ONE) {
                    offences.push(format!("{head}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

/// The bounds of one sort: resource, as written, as a number.
fn bounds<'a>(limit: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a str, Quantity)> {
    entries(limit, key).filter_map(|(name, v)| Some((name, v.as_str()?, Quantity::of(v)?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn offences(limit: Value, spec: &Value) -> Vec<String> {
        let mut out = Vec::new();
        let asked = match text(&limit, "type") {
            "Pod" => Amounts::of_pod(spec),
            _ => Amounts::of(&spec["containers"][0]["resources"]),
        };
        within(&limit, &asked, &mut out);
        out
    }

    #[test]
    fn bounds_and_ratios() {
        let container =
            |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
        let one = |requests, limits| json!({"containers": [container(requests, limits)]});
        let none: [&str; 0] = [];
        let max = json!({"type": "Container", "max": {"cpu": "1"}});
        assert_eq!(offences(max.clone(), &one(json!({"cpu": "1"}), json!({"cpu": "1"}))), none);
        let over = offences(max.clone(), &one(json!({}), json!({"cpu": "1500m"})));
        assert_eq!(over, ["maximum cpu usage per Container is 1, but limit is 1500m"]);
        let unlimited = offences(max, &one(json!({}), json!({})));
        assert_eq!(unlimited, ["maximum cpu usage per Container is 1.  No limit is specified"]);
        let min = json!({"type": "Container", "min": {"memory": "1Gi"}});
        let under = offences(min, &one(json!({"memory": "512Mi"}), json!({})));
        assert_eq!(under, ["minimum memory usage per Container is 1Gi, but request is 512Mi"]);
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        let wide = offences(ratio.clone(), &one(json!({"cpu": "1"}), json!({"cpu": "3"})));
        assert_eq!(
            wide,
            ["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"]
        );
        assert_eq!(offences(ratio, &one(json!({"cpu": "1"}), json!({"cpu": "2"}))), none);

        let pod = json!({"containers": [container(json!({}), json!({"cpu": "600m"})), container(json!({}), json!({"cpu": "600m"}))],
            "initContainers": [container(json!({}), json!({"cpu": "2"}))]});
        let sum = offences(json!({"type": "Pod", "max": {"cpu": "1"}}), &pod);
        assert_eq!(sum, ["maximum cpu usage per Pod is 1, but limit is 2"]);
    }

    #[test]
    fn defaults_fill_only_gaps() {
        let limit = json!({"default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}});
        let mut container =
            json!({"name": "c", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}});
        assert_eq!(fill_container(&mut container, false, &limit), ["memory limit for container c"]);
        assert_eq!(container["resources"]["limits"], json!({"cpu": "2", "memory": "1Gi"}));
        let mut bare = json!({"name": "d"});
        let notes = fill_container(&mut bare, true, &limit);
        assert_eq!(notes, ["cpu request for init container d", "cpu, memory limit for init container d"]);
    }
}
