//! CustomResourceDefinitions: names, versions, structural schemas with their rules, conversion.

use serde_json::{Value, json};

use super::admission::client_config;
use super::checks;
use super::rules::Rules;
use super::value::{child, default, list, name, text, unset};
use crate::crd::convert::REVIEWS;
use crate::crd::validations;
use crate::field::{FieldError, FieldErrors};

/// Schemas nested deeper than this are not looked into.
const DEPTH: usize = 64;

/// CustomResourceDefinitions.
pub const DEFINITION: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "conversion", json!({"strategy": "None"}));
        let config = child(spec, "conversion").and_then(|c| child(c, "webhook"));
        if let Some(service) = config.and_then(|w| child(w, "clientConfig")).and_then(|c| child(c, "service"))
        {
            default(service, "port", 443);
        }
        if let Some(names) = child(spec, "names") {
            let kind = text(names, "kind").to_owned();
            default(names, "singular", kind.to_lowercase());
            default(names, "listKind", format!("{kind}List"));
        }
    },
    status: |object| {
        let versions = list(&object["spec"], "versions").iter();
        let stored: Vec<&Value> = versions.filter(|v| v["storage"] == true).map(|v| &v["name"]).collect();
        json!({"acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored})
    },
    validate: |object, errors| {
        let spec = &object["spec"];
        let (own, wanted) =
            (name(object), format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group")));
        if own != wanted {
            let why = "must be spec.names.plural+\".\"+spec.group";
            errors.push(FieldError::invalid("metadata.name", own, why));
        }
        errors.form(spec, "spec", "group", checks::dns1123_subdomain);
        errors.form(&spec["names"], "spec.names", "plural", checks::dns1035_label);
        errors.present(&spec["names"], "spec.names", "kind");
        if text(spec, "scope").is_empty() {
            errors.push(FieldError::required("spec.scope", ""));
        } else {
            errors.one_of(spec, "spec", "scope", &["Cluster", "Namespaced"]);
        }
        versions(spec, errors);
        conversion(&spec["conversion"], errors);
        stored_versions(object, errors);
    },
    validate_update: |new, old, errors| {
        errors.immutable(&new["spec"]["scope"], &old["spec"]["scope"], "spec.scope");
        errors.immutable(&new["spec"]["names"]["kind"], &old["spec"]["names"]["kind"], "spec.names.kind");
    },
    ..Rules::NONE
};

fn versions(spec: &Value, errors: &mut FieldErrors) {
    let versions = list(spec, "versions");
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", spec["versions"].clone(), why));
    }
    errors.distinct(spec, "spec", "versions", "name");
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        errors.form(version, &path, "name", checks::dns1035_label);
        let (schema, path) =
            (&version["schema"]["openAPIV3Schema"], format!("{path}.schema.openAPIV3Schema"));
        if unset(schema) {
            errors.push(FieldError::required(path, "schemas are required"));
            continue;
        }
        if schema["type"] != "object" {
            let why = "must be object at the root";
            errors.push(FieldError::invalid(format!("{path}.type"), schema["type"].clone(), why));
        }
        structural(schema, &path, 0, errors);
        validations::check_rules(schema, &path, 0, errors);
    }
}

/// Every value has a type, unless it may be anything.
fn structural(schema: &Value, path: &str, depth: usize, errors: &mut FieldErrors) {
    if depth > DEPTH {
        return;
    }
    let kind = text(schema, "type");
    let open = schema["x-kubernetes-int-or-string"] == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    if kind.is_empty() && !open {
        let what = if depth == 0 { "at the root" } else { "for specified object fields" };
        errors.push(FieldError::required(format!("{path}.type"), format!("must not be empty {what}")));
    }
    if kind == "array" && !schema["items"].is_object() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if schema["properties"].is_object() && schema["additionalProperties"].is_object() {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
    }
    if schema["uniqueItems"] == true {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), why));
    }
    if schema["x-kubernetes-list-type"] == "map" && list(schema, "x-kubernetes-list-map-keys").is_empty() {
        let why = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.x-kubernetes-list-map-keys"), why));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        // Checked by upstream as metadata of the API, whatever the schema says.
        if depth == 0 && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            continue;
        }
        structural(property, &format!("{path}.properties[{name}]"), depth + 1, errors);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            structural(&schema[key], &format!("{path}.{key}"), depth + 1, errors);
        }
    }
}

/// Paths are those of upstream's internal type, which its messages name.
fn conversion(conversion: &Value, errors: &mut FieldErrors) {
    let path = "spec.conversion";
    errors.one_of(conversion, path, "strategy", &["None", "Webhook"]);
    let webhook = &conversion["webhook"];
    let client_path = format!("{path}.webhookClientConfig");
    if text(conversion, "strategy") != "Webhook" {
        if !webhook.is_null() {
            let why = "should not be set when strategy is not set to Webhook";
            errors.push(FieldError::forbidden(client_path, why));
        }
        return;
    }
    if webhook["clientConfig"].is_object() {
        client_config(&webhook["clientConfig"], &client_path, errors);
    } else {
        errors.push(FieldError::required(client_path, "required when strategy is set to Webhook"));
    }
    let path = format!("{path}.conversionReviewVersions");
    let wanted = list(webhook, "conversionReviewVersions");
    if wanted.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    for (i, version) in wanted.iter().enumerate() {
        let (at, name) = (format!("{path}[{i}]"), version.as_str().unwrap_or_default());
        if wanted[..i].contains(version) {
            errors.push(FieldError::invalid(at, name, "duplicate version"));
            continue;
        }
        for why in checks::dns1035_label(name) {
            errors.push(FieldError::invalid(&at, name, why));
        }
    }
    if !wanted.iter().filter_map(Value::as_str).any(|v| REVIEWS.contains(&v)) {
        let known = REVIEWS.join(", ");
        let why = format!("none of the versions accepted by this server. accepted version(s) are {known}");
        errors.push(FieldError::invalid(path, webhook["conversionReviewVersions"].clone(), why));
    }
}

/// A version that objects may still be stored in has to stay.
fn stored_versions(object: &Value, errors: &mut FieldErrors) {
    let versions = list(&object["spec"], "versions");
    for (i, stored) in list(&object["status"], "storedVersions").iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *stored) {
            let path = format!("status.storedVersions[{i}]");
            errors.push(FieldError::invalid(path, stored.clone(), "must appear in spec.versions"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::fake::offences;
    use super::*;

    fn definition(name: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"group": "x.example", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "storage": true, "served": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    #[test]
    fn definitions() {
        assert_eq!(offences(DEFINITION, definition("things.x.example")), "[]");
        assert!(
            offences(DEFINITION, definition("things"))
                .starts_with("metadata.name: Invalid value: \"things\"")
        );
        let mut object = definition("things.x.example");
        (DEFINITION.default)(&mut object);
        assert_eq!(object["spec"]["names"]["listKind"], "ThingList");
    }

    #[test]
    fn schemas_are_structural() {
        let at = "spec.versions[0].schema.openAPIV3Schema";
        for (property, expected) in [
            (json!({"type": "string"}), "[]".to_owned()),
            (json!({"x-kubernetes-int-or-string": true}), "[]".to_owned()),
            (
                json!({}),
                format!(
                    "{at}.properties[p].type: Required value: must not be empty for specified object fields"
                ),
            ),
            (
                json!({"type": "array"}),
                format!("{at}.properties[p].items: Required value: must be specified"),
            ),
        ] {
            let mut object = definition("things.x.example");
            object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"] = json!({"p": property});
            assert_eq!(offences(DEFINITION, object), expected);
        }
    }

    #[test]
    fn conversions() {
        let of = |conversion: Value| {
            let mut object = definition("things.x.example");
            object["spec"]["conversion"] = conversion;
            offences(DEFINITION, object)
        };
        let webhook = |client: Value, versions: Value| {
            of(
                json!({"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": versions}}),
            )
        };
        let url = json!({"url": "https://a/"});
        assert_eq!(webhook(url.clone(), json!(["v1", "v1beta1", "v9"])), "[]");
        let (client, versions) =
            ("spec.conversion.webhookClientConfig", "spec.conversion.conversionReviewVersions");
        for (got, expected) in [
            (
                of(json!({"strategy": "None", "webhook": {}})),
                format!("{client}: Forbidden: should not be set when strategy is not set to Webhook"),
            ),
            (
                webhook(json!(null), json!(["v1"])),
                format!("{client}: Required value: required when strategy is set to Webhook"),
            ),
            (
                webhook(json!({}), json!(["v1"])),
                format!("{client}: Required value: exactly one of url or service is required"),
            ),
            (webhook(url.clone(), json!([])), format!("{versions}: Required value")),
            (
                webhook(url.clone(), json!(["v1", "v1"])),
                format!("{versions}[1]: Invalid value: \"v1\": duplicate version"),
            ),
            (
                webhook(url, json!(["v2"])),
                format!(
                    "{versions}: Invalid value: [\"v2\"]: none of the versions accepted by this server. accepted version(s) are v1, v1beta1"
                ),
            ),
        ] {
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn stored_versions_stay() {
        let mut object = definition("things.x.example");
        object["status"] = json!({"storedVersions": ["v1", "v0"]});
        let why = "status.storedVersions[1]: Invalid value: \"v0\": must appear in spec.versions";
        assert_eq!(offences(DEFINITION, object), why);
    }
}
