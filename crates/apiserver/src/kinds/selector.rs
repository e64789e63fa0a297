//! Label selectors: matching and validation.

use serde_json::Value;

use super::checks;
use super::value::{entries, list, text};
use crate::field::{FieldError, FieldErrors};

/// Whether a `LabelSelector` matches labels. An empty selector matches everything, an absent one nothing.
pub fn matches(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    matches_map(&selector["matchLabels"], labels)
        && list(selector, "matchExpressions").iter().all(|e| matches_expression(e, labels))
}

/// Whether all pairs of a map are among the labels.
pub fn matches_map(wanted: &Value, labels: &Value) -> bool {
    wanted.as_object().into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn matches_expression(expression: &Value, labels: &Value) -> bool {
    let value = labels.get(text(expression, "key"));
    let listed = value.is_some_and(|v| list(expression, "values").contains(v));
    match text(expression, "operator") {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// Offences of a `LabelSelector`.
pub fn validate(selector: &Value, path: &str, errors: &mut FieldErrors) {
    for (key, value) in entries(selector, "matchLabels") {
        let map = format!("{path}.matchLabels");
        for message in checks::qualified_name(key) {
            errors.push(FieldError::invalid(&map, key.as_str(), message));
        }
        for message in checks::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("{map}[{key}]"), value.clone(), message));
        }
    }
    for (i, expression) in list(selector, "matchExpressions").iter().enumerate() {
        validate_expression(expression, &format!("{path}.matchExpressions[{i}]"), errors);
    }
}

fn validate_expression(expression: &Value, path: &str, errors: &mut FieldErrors) {
    let values = list(expression, "values");
    validate_operator(expression, path, &["In", "NotIn", "Exists", "DoesNotExist"], errors);
    let key = text(expression, "key");
    for message in checks::qualified_name(key) {
        errors.push(FieldError::invalid(format!("{path}.key"), key, message));
    }
    for (i, value) in values.iter().enumerate() {
        for message in checks::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("{path}.values[{i}]"), value.clone(), message));
        }
    }
}

/// The operator of an expression is one of `known`, and has as many values as it needs.
pub fn validate_operator(expression: &Value, path: &str, known: &[&str], errors: &mut FieldErrors) {
    let values = list(expression, "values");
    let operator = text(expression, "operator");
    if !known.contains(&operator) {
        let why = "not a valid selector operator";
        return errors.push(FieldError::invalid(format!("{path}.operator"), operator, why));
    }
    let at = format!("{path}.values");
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(at, why));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required(at, why));
        }
        _ => {}
    }
}

/// Whether a selector selects everything because it says nothing.
pub fn is_empty(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && list(selector, "matchExpressions").is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn matching() {
        let labels = json!({"app": "web", "tier": "front"});
        let table = [
            (json!({}), true),
            (json!(null), false),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}), true),
        ];
        for (selector, expected) in table {
            assert_eq!(matches(&selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn offences() {
        let mut errors = FieldErrors::new();
        let selector =
            json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Is"}]});
        validate(&selector, "spec.selector", &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                r#"spec.selector.matchExpressions[1].operator: Invalid value: "Is": not a valid selector operator"#
            ]
        );
    }
}
