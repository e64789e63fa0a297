//! ResourceQuotas: what may be limited, and for which Pods.

use serde_json::Value;

use super::checks;
use super::quantity::{MALFORMED, Quantity};
use super::rules::Rules;
use super::value::{entries, list, text, unset};
use crate::field::{FieldError, FieldErrors};

/// Counted by number: whole numbers only.
const WHOLE: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Added up over Pods; scopes may be about these and about their number.
const COMPUTED: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
/// Added up, but not by scope.
const OTHERS: [&str; 4] =
    ["ephemeral-storage", "limits.ephemeral-storage", "requests.ephemeral-storage", "requests.storage"];
const SCOPES: [&str; 6] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];

/// ResourceQuotas.
pub const RESOURCE_QUOTA: Rules = Rules {
    validate: |object, errors| {
        let spec = &object["spec"];
        for (name, amount) in entries(spec, "hard") {
            hard(name, amount, errors);
        }
        scopes(spec, errors);
        for (i, expression) in list(&spec["scopeSelector"], "matchExpressions").iter().enumerate() {
            selector(expression, &format!("spec.scopeSelector.matchExpressions[{i}]"), errors);
        }
    },
    validate_update: |new, old, errors| {
        errors.immutable(&new["spec"]["scopes"], &old["spec"]["scopes"], "spec.scopes");
    },
    ..Rules::NONE
};

fn is_standard(name: &str) -> bool {
    WHOLE.contains(&name)
        || COMPUTED.contains(&name)
        || OTHERS.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

fn hard(name: &str, amount: &Value, errors: &mut FieldErrors) {
    let path = format!("spec.hard[{name}]");
    errors.messages(&path, name, checks::qualified_name(name));
    if !name.contains('/') && !is_standard(name) {
        for why in
            ["must be a standard resource type or fully qualified", "must be a standard resource for quotas"]
        {
            errors.push(FieldError::invalid(&path, name, why));
        }
    }
    match Quantity::of(amount) {
        None => errors.push(FieldError::invalid(path, amount.clone(), MALFORMED)),
        Some(q) if q.is_negative() => {
            errors.push(FieldError::invalid(path, amount.clone(), "must be greater than or equal to 0"));
        }
        Some(q) if WHOLE.contains(&name) && !q.is_whole() => {
            errors.push(FieldError::invalid(path, amount.clone(), "must be an integer"));
        }
        Some(_) => {}
    }
}

fn scopes(spec: &Value, errors: &mut FieldErrors) {
    let given: Vec<&str> = list(spec, "scopes").iter().filter_map(Value::as_str).collect();
    let mut refuse = |why| errors.push(FieldError::invalid("spec.scopes", spec["scopes"].clone(), why));
    for scope in &given {
        if !SCOPES.contains(scope) {
            refuse("unsupported scope");
        }
        let allowed = |name: &str| name == "pods" || (*scope != "BestEffort" && COMPUTED.contains(&name));
        if entries(spec, "hard").any(|(name, _)| is_standard(name) && !allowed(name)) {
            refuse("unsupported scope applied to resource");
        }
    }
    let both = |a: &str, b: &str| given.contains(&a) && given.contains(&b);
    if both("BestEffort", "NotBestEffort") || both("Terminating", "NotTerminating") {
        refuse("conflicting scopes");
    }
}

fn selector(expression: &Value, path: &str, errors: &mut FieldErrors) {
    let (scope, operator, values) =
        (text(expression, "scopeName"), text(expression, "operator"), &expression["values"]);
    if !SCOPES.contains(&scope) {
        errors.push(FieldError::invalid(format!("{path}.scopeName"), scope, "unsupported scope"));
    } else if scope != "PriorityClass" && operator != "Exists" {
        let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.push(FieldError::invalid(format!("{path}.operator"), operator, why));
    }
    match operator {
        "In" | "NotIn" if unset(values) => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errors.push(FieldError::required(format!("{path}.values"), why));
        }
        "Exists" | "DoesNotExist" if !unset(values) => {
            let why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
            errors.push(FieldError::invalid(format!("{path}.values"), values.clone(), why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => {
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::offences;
    use super::*;

    #[test]
    fn offence_table() {
        let scoped = |expression: Value| json!({"spec": {"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [expression]}}});
        for (quota, expected) in [
            (json!({"spec": {"hard": {"count/widgets.x.example": "1", "pods": "2"}}}), "[]"),
            (
                json!({"spec": {"hard": {"requests.memory": "-1"}}}),
                "spec.hard[requests.memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (scoped(json!({"scopeName": "PriorityClass", "operator": "In", "values": ["high"]})), "[]"),
            (
                scoped(json!({"scopeName": "PriorityClass", "operator": "In"})),
                "spec.scopeSelector.matchExpressions[0].values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            (
                scoped(json!({"scopeName": "PriorityClass", "operator": "Is"})),
                "spec.scopeSelector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator",
            ),
        ] {
            assert_eq!(offences(RESOURCE_QUOTA, quota), expected);
        }
    }
}
