//! ValidatingAdmissionPolicies and their bindings.

use serde_json::{Value, json};

use super::admission::{rule_defaults, rule_with_operations};
use super::rules::Rules;
use super::selector;
use super::value::{child, default, list, text, unset};
use crate::cel;
use crate::field::{FieldError, FieldErrors};

/// Variables that every expression of a policy may use.
const VARIABLES: [&str; 8] = [
    "object",
    "oldObject",
    "request",
    "params",
    "namespaceObject",
    "authorizer",
    "variables",
    "authorizer.requestResource",
];

/// ValidatingAdmissionPolicies.
pub const POLICY: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "failurePolicy", "Fail");
        if let Some(constraints) = child(spec, "matchConstraints") {
            match_defaults(constraints);
        }
    },
    validate: |object, errors| {
        let spec = &object["spec"];
        errors.optional_one_of(spec, "spec", "failurePolicy", &["Fail", "Ignore"]);
        if spec["matchConstraints"].is_object() {
            match_resources(&spec["matchConstraints"], "spec.matchConstraints", errors);
        } else {
            errors.push(FieldError::required("spec.matchConstraints", ""));
        }
        if unset(&spec["matchConstraints"]["resourceRules"]) {
            errors.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
        }
        if spec["paramKind"].is_object() {
            errors.present(&spec["paramKind"], "spec.paramKind", "apiVersion");
            errors.present(&spec["paramKind"], "spec.paramKind", "kind");
        }
        match_conditions(spec, "spec", errors);
        if unset(&spec["validations"]) && unset(&spec["auditAnnotations"]) {
            let why = "validations or auditAnnotations must contain at least one item";
            errors.push(FieldError::required("spec.validations", why));
        }
        expressions(spec, "variables", &["expression"], errors);
        expressions(spec, "validations", &["expression", "messageExpression"], errors);
        expressions(spec, "auditAnnotations", &["valueExpression"], errors);
        for (i, validation) in list(spec, "validations").iter().enumerate() {
            let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
            errors.optional_one_of(validation, &format!("spec.validations[{i}]"), "reason", &reasons);
        }
    },
    ..Rules::NONE
};

/// ValidatingAdmissionPolicyBindings.
pub const BINDING: Rules = Rules {
    default: |object| {
        if let Some(resources) = child(object, "spec").and_then(|spec| child(spec, "matchResources")) {
            match_defaults(resources);
        }
    },
    validate: |object, errors| {
        let spec = &object["spec"];
        errors.present(spec, "spec", "policyName");
        let actions = list(spec, "validationActions");
        let at = "spec.validationActions";
        if actions.is_empty() {
            errors.push(FieldError::required(at, "at least one validation action is required"));
        }
        for (i, action) in actions.iter().enumerate() {
            if !matches!(action.as_str(), Some("Deny" | "Warn" | "Audit")) {
                let known = ["Audit", "Deny", "Warn"];
                errors.push(FieldError::not_supported(format!("{at}[{i}]"), action.clone(), &known));
            }
        }
        if actions.iter().any(|a| a == "Deny") && actions.iter().any(|a| a == "Warn") {
            let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
            errors.push(FieldError::invalid(at, spec["validationActions"].clone(), why));
        }
        param_ref(&spec["paramRef"], errors);
        if spec["matchResources"].is_object() {
            match_resources(&spec["matchResources"], "spec.matchResources", errors);
        }
    },
    ..Rules::NONE
};

fn match_defaults(constraints: &mut Value) {
    default(constraints, "matchPolicy", "Equivalent");
    default(constraints, "namespaceSelector", json!({}));
    default(constraints, "objectSelector", json!({}));
    for key in ["resourceRules", "excludeResourceRules"] {
        rule_defaults(constraints, key);
    }
}

fn match_resources(constraints: &Value, path: &str, errors: &mut FieldErrors) {
    errors.optional_one_of(constraints, path, "matchPolicy", &["Equivalent", "Exact"]);
    for key in ["namespaceSelector", "objectSelector"] {
        selector::validate(&constraints[key], &format!("{path}.{key}"), errors);
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in list(constraints, key).iter().enumerate() {
            rule_with_operations(rule, &format!("{path}.{key}[{i}]"), errors);
        }
    }
}

fn param_ref(reference: &Value, errors: &mut FieldErrors) {
    if !reference.is_object() {
        return;
    }
    let (named, selected) = (!text(reference, "name").is_empty(), reference["selector"].is_object());
    if named == selected {
        let why = "one of name or selector must be specified";
        errors.push(FieldError::required("spec.paramRef", why));
    }
    let actions = ["Allow", "Deny"];
    match text(reference, "parameterNotFoundAction") {
        "" => errors.push(FieldError::required("spec.paramRef.parameterNotFoundAction", "")),
        _ => errors.one_of(reference, "spec.paramRef", "parameterNotFoundAction", &actions),
    }
}

/// Match conditions, of policies and webhooks alike.
pub fn match_conditions(owner: &Value, path: &str, errors: &mut FieldErrors) {
    const MOST: usize = 64;
    let path = if path.is_empty() { String::new() } else { format!("{path}.") };
    let conditions = list(owner, "matchConditions");
    if conditions.len() > MOST {
        errors.push(FieldError::too_many(format!("{path}matchConditions"), conditions.len(), MOST));
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = format!("{path}matchConditions[{i}]");
        errors.form(condition, &at, "name", super::checks::qualified_name);
        expression(condition, "expression", &at, errors);
    }
}

fn expressions(spec: &Value, list_key: &str, keys: &[&str], errors: &mut FieldErrors) {
    for (i, entry) in list(spec, list_key).iter().enumerate() {
        for key in keys {
            if *key != "messageExpression" || !text(entry, key).is_empty() {
                expression(entry, key, &format!("spec.{list_key}[{i}]"), errors);
            }
        }
    }
}

fn expression(entry: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    let (source, at) = (text(entry, key), format!("{path}.{key}"));
    if source.trim().is_empty() {
        errors.push(FieldError::required(at, format!("{key} is not specified")));
        return;
    }
    let wrong = match cel::compile(source) {
        Err(why) => Some(why),
        Ok(program) => {
            let unknown = program.variables().iter().find(|v| !VARIABLES.contains(&v.as_str()));
            unknown.map(|name| format!("undeclared reference to '{name}' (in container '')"))
        }
    };
    if let Some(why) = wrong {
        errors.push(FieldError::invalid(at, source, format!("compilation failed: ERROR: {why}")));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::offences;
    use super::*;

    fn policy(validation: Value) -> Value {
        json!({"spec": {"validations": [validation], "matchConstraints": {"resourceRules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}}})
    }

    #[test]
    fn offence_table() {
        for (validation, expected) in [
            (json!({"expression": "object.metadata.name != 'x'"}), "[]"),
            (
                json!({"expression": "objekt.a"}),
                "spec.validations[0].expression: Invalid value: \"objekt.a\": compilation failed: ERROR: undeclared reference to 'objekt' (in container '')",
            ),
            (
                json!({"expression": ""}),
                "spec.validations[0].expression: Required value: expression is not specified",
            ),
        ] {
            assert_eq!(offences(POLICY, policy(validation)), expected);
        }
        let binding = json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Warn"]}});
        assert!(offences(BINDING, binding).contains("must not contain both Deny and Warn"));
    }
}
