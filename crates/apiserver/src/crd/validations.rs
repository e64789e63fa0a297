//! `x-kubernetes-validations`: the rules in CEL of a structural schema
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>).
//!
//! What an update leaves as it was is not held against it: its rules may be newer than the object.

use cel::objects::OptionalValue;
use serde_json::Value;

use crate::cel::convert::typed;
use crate::cel::{self as engine, Budget};
use crate::field::{FieldError, FieldErrors};
use crate::kinds::value::{list, text};

/// Schemas and objects nested deeper than this are not looked into.
const DEPTH: usize = 64;
/// Longer messages are not shown.
const MESSAGE: usize = 5 << 10;

/// Whether a schema has rules anywhere.
pub fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(items) => items.iter().any(has_rules),
        _ => false,
    }
}

/// Offences of an object against the rules; `old` is what an update replaces.
pub fn check(schema: &Value, new: &Value, old: Option<&Value>) -> FieldErrors {
    let mut judge = Judge { errors: FieldErrors::new(), budget: Budget::default() };
    judge.walk(schema, new, old, "", 0);
    judge.errors
}

struct Judge {
    errors: FieldErrors,
    budget: Budget,
}

impl Judge {
    fn walk(&mut self, schema: &Value, new: &Value, old: Option<&Value>, path: &str, depth: usize) {
        if depth > DEPTH || new.is_null() || self.budget.is_spent() {
            return;
        }
        let rules = list(schema, "x-kubernetes-validations");
        if !rules.is_empty() {
            self.judge(rules, schema, new, old, path);
        }
        match new {
            Value::Object(map) => {
                for (key, child) in map {
                    let property = &schema["properties"][key.as_str()];
                    let (property, path) = if property.is_null() {
                        (&schema["additionalProperties"], format!("{path}[{key}]"))
                    } else {
                        (property, join(path, key))
                    };
                    if property.is_object() {
                        self.walk(property, child, old.and_then(|o| o.get(key)), &path, depth + 1);
                    }
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let before = correlated(schema, old, item);
                    self.walk(&schema["items"], item, before, &format!("{path}[{i}]"), depth + 1);
                }
            }
            _ => {}
        }
    }

    fn judge(&mut self, rules: &[Value], schema: &Value, new: &Value, old: Option<&Value>, path: &str) {
        let root = path.is_empty();
        let this = typed(schema, new, root);
        let before = old.map(|old| typed(schema, old, root));
        let unchanged = old == Some(new);
        for rule in rules {
            if self.budget.is_spent() {
                let why = "validation failed due to running out of cost budget, no further validation rules will be run";
                self.offend(path, schema, "", why.to_owned());
                return;
            }
            let program = match engine::compile(text(rule, "rule")) {
                Ok(program) => program,
                Err(why) => {
                    self.offend(path, schema, "", format!("rule compile error: {why}"));
                    continue;
                }
            };
            let optional = rule["optionalOldSelf"] == true;
            let old_self = match (&before, optional) {
                (Some(value), true) => {
                    Some(engine::Value::Opaque(std::sync::Arc::new(OptionalValue::of(value.clone()))))
                }
                (None, true) => Some(engine::Value::Opaque(std::sync::Arc::new(OptionalValue::none()))),
                (before, false) => before.clone(),
            };
            let mut variables = vec![("self", &this)];
            match &old_self {
                Some(value) if program.names("oldSelf") => variables.push(("oldSelf", value)),
                // A rule of transitions, and nothing to come from.
                None if program.names("oldSelf") => continue,
                _ if unchanged => continue,
                _ => {}
            }
            match program.holds(&variables, &mut self.budget) {
                Ok(true) => {}
                Ok(false) => {
                    let why = self.message(rule, &variables);
                    self.offend(&place(path, text(rule, "fieldPath")), schema, text(rule, "reason"), why);
                }
                Err(why) => {
                    let rule = self.message(rule, &variables);
                    self.offend(path, schema, "", format!("{why} evaluating rule: {rule}"));
                }
            }
        }
    }

    fn message(&mut self, rule: &Value, variables: &[(&str, &engine::Value)]) -> String {
        let expression = text(rule, "messageExpression");
        if !expression.is_empty()
            && let Ok(program) = engine::compile(expression)
            && let Ok(said) = program.text(variables, &mut self.budget)
            && !said.trim().is_empty()
            && said.len() <= MESSAGE
            && !said.contains('\n')
        {
            return said.trim().to_owned();
        }
        match text(rule, "message").trim() {
            "" => format!("failed rule: {}", text(rule, "rule").trim()),
            message => message.to_owned(),
        }
    }

    fn offend(&mut self, path: &str, schema: &Value, reason: &str, why: String) {
        let path = if path.is_empty() { "<nil>" } else { path };
        let value = text(schema, "type");
        self.errors.push(match reason {
            "FieldValueForbidden" => FieldError::forbidden(path, why),
            "FieldValueRequired" => FieldError::required(path, why),
            "FieldValueDuplicate" => FieldError { detail: why, ..FieldError::duplicate(path, value) },
            _ => FieldError::invalid(path, value, why),
        });
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Where a rule says that the offence is: `.spec.x['a.b']` below the place of the rule.
fn place(path: &str, field: &str) -> String {
    let field = field.replace("['", "[").replace("']", "]");
    if path.is_empty() { field.trim_start_matches('.').to_owned() } else { format!("{path}{field}") }
}

/// The element that one of a list was before: by its keys, where the list has some.
pub fn correlated<'a>(schema: &Value, old: Option<&'a Value>, item: &Value) -> Option<&'a Value> {
    if schema["x-kubernetes-list-type"] != "map" {
        return None;
    }
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let same = |other: &&Value| {
        keys.iter().filter_map(Value::as_str).all(|key| {
            let default = &schema["items"]["properties"][key]["default"];
            let of = |v: &Value| v.get(key).cloned().unwrap_or_else(|| default.clone());
            of(other) == of(item)
        })
    };
    old?.as_array()?.iter().find(same)
}

/// Offences of the rules themselves: what cannot be compiled, or says nothing.
pub fn check_rules(schema: &Value, path: &str, depth: usize, errors: &mut FieldErrors) {
    if depth > DEPTH {
        return;
    }
    for (i, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let at = format!("{path}.x-kubernetes-validations[{i}]");
        if text(rule, "rule").trim().is_empty() {
            errors.push(FieldError::required(format!("{at}.rule"), "rule is not specified"));
        }
        for (key, wanted) in [("rule", true), ("messageExpression", false)] {
            let source = text(rule, key);
            if source.is_empty() {
                continue;
            }
            let known = |program: &engine::Program| {
                program.variables().iter().find(|v| !matches!(v.as_str(), "self" | "oldSelf")).cloned()
            };
            let wrong = match engine::compile(source) {
                Err(why) => Some(why),
                Ok(program) => known(&program).map(|name| format!("undeclared reference to '{name}'")),
            };
            if let Some(why) = wrong {
                let what = if wanted { "compilation failed" } else { "messageExpression compilation failed" };
                errors.push(FieldError::invalid(
                    format!("{at}.{key}"),
                    source,
                    format!("{what}: ERROR: {why}"),
                ));
            }
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        check_rules(property, &format!("{path}.properties[{name}]"), depth + 1, errors);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            check_rules(&schema[key], &format!("{path}.{key}"), depth + 1, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "message": "min is more than max", "fieldPath": ".min"},
            {"rule": "self.kind == oldSelf.kind", "message": "kind is immutable"},
            {"rule": "oldSelf.hasValue() || self.kind != 'late'", "optionalOldSelf": true},
        ],
        "properties": {
            "min": {"type": "integer"}, "max": {"type": "integer"}, "kind": {"type": "string"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "port": {"type": "integer",
                    "x-kubernetes-validations": [
                        {"rule": "self >= oldSelf", "reason": "FieldValueForbidden",
                            "messageExpression": "'port shrinks below ' + string(oldSelf)"}]}}}},
        }}}})
    }

    fn told(new: Value, old: Option<Value>) -> String {
        let (new, old) = (json!({"spec": new}), old.map(|old| json!({"spec": old})));
        let errors = check(&schema(), &new, old.as_ref());
        if errors.is_empty() { String::new() } else { errors.to_string() }
    }

    #[test]
    fn rules_messages_and_transitions() {
        let good = json!({"min": 1, "max": 2, "kind": "a", "ports": [{"name": "x", "port": 80}]});
        assert_eq!(told(good.clone(), None), "");
        let with = |key: &str, value: Value| {
            let mut out = good.clone();
            out[key] = value;
            out
        };
        assert_eq!(
            told(with("min", json!(3)), None),
            "spec.min: Invalid value: \"object\": min is more than max"
        );
        assert_eq!(
            told(with("kind", json!("b")), Some(good.clone())),
            "spec: Invalid value: \"object\": kind is immutable"
        );
        assert_eq!(
            told(with("kind", json!("late")), None),
            "spec: Invalid value: \"object\": failed rule: oldSelf.hasValue() || self.kind != 'late'"
        );
        let smaller = with("ports", json!([{"name": "y", "port": 1}, {"name": "x", "port": 79}]));
        assert_eq!(told(smaller, Some(good.clone())), "spec.ports[1].port: Forbidden: port shrinks below 80");
        // What was wrong before and stays so is not held against the update.
        let bad = with("min", json!(3));
        assert_eq!(told(bad.clone(), Some(bad)), "");
        assert!(
            told(json!({"max": 1}), None).contains("no such key: min evaluating rule: min is more than max")
        );
    }

    #[test]
    fn rules_that_are_none() {
        let mut errors = FieldErrors::new();
        let schema = json!({"properties": {"spec": {"x-kubernetes-validations": [
            {"rule": "self.a =="}, {"rule": "other > 1"}, {"rule": " "}]}}});
        check_rules(&schema, "schema", 0, &mut errors);
        let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths[0], "schema.properties[spec].x-kubernetes-validations[0].rule");
        assert!(errors.to_string().contains("undeclared reference to 'other'"), "{errors}");
        assert!(errors.to_string().contains("rule is not specified"), "{errors}");
    }
}
