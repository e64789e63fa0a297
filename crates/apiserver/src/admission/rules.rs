//! Which requests a hook or a policy is about: its rules, its selectors and the versions that count as the same
//! object (`matchPolicy: Equivalent`).

use std::sync::Arc;

use serde_json::Value;

use super::Write;
use crate::core::Call;
use crate::kinds::value::{list, text};
use crate::resource::{GroupResource, Resource};
use crate::selector::LabelSelector;
use crate::status::Status;

/// Kinds that decide about admission are not subject to it: a bad hook could never be removed again.
pub fn is_exempt(row: &Resource) -> bool {
    row.group == "admissionregistration.k8s.io"
}

fn one_of(rule: &Value, key: &str, wanted: &str) -> bool {
    list(rule, key).iter().any(|v| v == "*" || v == wanted)
}

/// Whether one rule is about an operation on a resource.
pub fn covers(rule: &Value, operation: &str, row: &Resource, subresource: &str) -> bool {
    let scope = match text(rule, "scope") {
        "Cluster" => !row.namespaced,
        "Namespaced" => row.namespaced,
        _ => true,
    };
    let resource = list(rule, "resources").iter().filter_map(Value::as_str).any(|pattern| {
        let (plural, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
        let sub_fits = match sub {
            "*" => true,
            sub => sub == subresource,
        };
        (plural == "*" || plural == row.plural) && sub_fits
    });
    scope
        && resource
        && one_of(rule, "operations", operation)
        && one_of(rule, "apiGroups", &row.group)
        && one_of(rule, "apiVersions", &row.version)
}

/// The row in whose form a list of rules wants to see the object: the request's own if a rule names it, else another
/// version of the same objects if those count too.
pub fn matching_row(
    call: &Call,
    rules: &[Value],
    operation: &str,
    equivalent: bool,
) -> Option<Arc<Resource>> {
    let sub = call.cx.subresource.as_str();
    let fits = |row: &Arc<Resource>| rules.iter().any(|rule| covers(rule, operation, row, sub));
    if fits(&call.row) {
        return Some(call.row.clone());
    }
    if !equivalent {
        return None;
    }
    let (registry, prefix) = (call.core.registry.load(), call.row.prefix());
    let all = registry.versions.iter().flat_map(|v| &v.resources);
    all.filter(|row| row.prefix() == prefix).find(|row| fits(row)).cloned()
}

/// Whether the namespace and the object are among those chosen. Objects of the cluster have no namespace to choose
/// by; a Namespace counts with its own labels.
///
/// # Errors
/// An unreadable store.
pub async fn selected(call: &Call, owner: &Value, write: Write<'_>) -> Result<bool, Status> {
    let labels = |object: Option<&Value>| object.map(|o| o["metadata"]["labels"].clone());
    if let Some(selector) = chooser(&owner["objectSelector"]) {
        let sides = [labels(write.new), labels(write.old)];
        if !sides.iter().flatten().any(|labels| selector.matches(labels)) {
            return Ok(false);
        }
    }
    let Some(selector) = chooser(&owner["namespaceSelector"]) else { return Ok(true) };
    if call.row.is_namespaces() {
        let own = labels(write.new).or_else(|| labels(write.old)).unwrap_or_default();
        return Ok(selector.matches(&own));
    }
    if !call.row.namespaced {
        return Ok(true);
    }
    let found = call.cx.objects.get(&GroupResource::new("", "namespaces"), "", call.namespace()).await?;
    Ok(selector.matches(&labels(found.as_deref()).unwrap_or_default()))
}

/// A selector that leaves something out; one that cannot be read chooses nothing of its kind, so it is none.
fn chooser(selector: &Value) -> Option<LabelSelector> {
    LabelSelector::from_object(selector).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_name_operation_group_version_resource_and_scope() {
        let pods = Resource::new("", "v1", "Pod", "pods");
        let deployments = Resource::new("apps", "v1", "Deployment", "deployments");
        let nodes = Resource::new("", "v1", "Node", "nodes").cluster();
        let rule = |resources: &[&str], scope: &str| {
            json!({"operations": ["CREATE", "CONNECT"], "apiGroups": [""], "apiVersions": ["*"],
                "resources": resources, "scope": scope})
        };
        for (rule, row, sub, operation, expected) in [
            (rule(&["pods"], "*"), &pods, "", "CREATE", true),
            (rule(&["pods"], "*"), &pods, "", "UPDATE", false),
            (rule(&["pods"], "*"), &pods, "exec", "CONNECT", false),
            (rule(&["pods/exec"], "*"), &pods, "exec", "CONNECT", true),
            (rule(&["pods/*"], "*"), &pods, "exec", "CONNECT", true),
            (rule(&["*"], "*"), &pods, "", "CREATE", true),
            (rule(&["*"], "*"), &pods, "status", "CREATE", false),
            (rule(&["*/*"], "*"), &pods, "status", "CREATE", true),
            (rule(&["*/status"], "*"), &pods, "status", "CREATE", true),
            (rule(&["*"], "*"), &deployments, "", "CREATE", false),
            (rule(&["*"], "Namespaced"), &nodes, "", "CREATE", false),
            (rule(&["*"], "Cluster"), &nodes, "", "CREATE", true),
        ] {
            assert_eq!(covers(&rule, operation, row, sub), expected, "{rule} {} {sub}", row.plural);
        }
    }
}
