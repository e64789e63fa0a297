//! Configurations of admission webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use serde_json::{Value, json};

use super::checks;
use super::policy::match_conditions;
use super::rules::Rules;
use super::selector;
use super::value::{child, default, elements, int, list, text};
use crate::field::{FieldError, FieldErrors};

/// MutatingWebhookConfigurations.
pub const MUTATING_WEBHOOKS: Rules = Rules {
    default: |object| {
        webhook_defaults(object);
        elements(object, "webhooks").for_each(|hook| default(hook, "reinvocationPolicy", "Never"));
    },
    validate: |object, errors| {
        webhooks(object, errors);
        for (i, hook) in list(object, "webhooks").iter().enumerate() {
            let path = format!("webhooks[{i}]");
            errors.optional_one_of(hook, &path, "reinvocationPolicy", &["IfNeeded", "Never"]);
        }
    },
    ..Rules::NONE
};

/// ValidatingWebhookConfigurations.
pub const VALIDATING_WEBHOOKS: Rules = Rules { default: webhook_defaults, validate: webhooks, ..Rules::NONE };

fn webhook_defaults(object: &mut Value) {
    for hook in elements(object, "webhooks") {
        default(hook, "failurePolicy", "Fail");
        default(hook, "matchPolicy", "Equivalent");
        default(hook, "namespaceSelector", json!({}));
        default(hook, "objectSelector", json!({}));
        default(hook, "timeoutSeconds", 10);
        if let Some(service) = child(hook, "clientConfig").and_then(|config| child(config, "service")) {
            default(service, "port", 443);
        }
        rule_defaults(hook, "rules");
    }
}

/// Rules without a scope are about objects of both.
pub fn rule_defaults(object: &mut Value, key: &str) {
    elements(object, key).for_each(|rule| default(rule, "scope", "*"));
}

fn webhooks(object: &Value, errors: &mut FieldErrors) {
    errors.distinct(object, "", "webhooks", "name");
    for (i, hook) in list(object, "webhooks").iter().enumerate() {
        webhook(hook, &format!("webhooks[{i}]"), errors);
    }
}

fn webhook(hook: &Value, path: &str, errors: &mut FieldErrors) {
    let name = text(hook, "name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        errors.messages(&format!("{path}.name"), name, checks::dns1123_subdomain(name));
        if name.split('.').count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            errors.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
    }
    for (r, rule) in list(hook, "rules").iter().enumerate() {
        rule_with_operations(rule, &format!("{path}.rules[{r}]"), errors);
    }
    errors.optional_one_of(hook, path, "failurePolicy", &["Fail", "Ignore"]);
    errors.optional_one_of(hook, path, "matchPolicy", &["Equivalent", "Exact"]);
    match text(hook, "sideEffects") {
        "" => {
            let why = "must specify one of None, NoneOnDryRun";
            errors.push(FieldError::required(format!("{path}.sideEffects"), why));
        }
        _ => errors.one_of(hook, path, "sideEffects", &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = int(hook, "timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(format!("{path}.timeoutSeconds"), seconds, why));
    }
    for key in ["namespaceSelector", "objectSelector"] {
        selector::validate(&hook[key], &format!("{path}.{key}"), errors);
    }
    review_versions(hook, path, errors);
    client_config(&hook["clientConfig"], &format!("{path}.clientConfig"), errors);
    match_conditions(hook, path, errors);
}

fn review_versions(hook: &Value, path: &str, errors: &mut FieldErrors) {
    let versions = list(hook, "admissionReviewVersions");
    let path = format!("{path}.admissionReviewVersions");
    if versions.is_empty() {
        errors.push(FieldError::required(path, "must specify one of v1, v1beta1"));
    } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(path, hook["admissionReviewVersions"].clone(), why));
    }
}

/// Where a webhook is.
pub fn client_config(config: &Value, path: &str, errors: &mut FieldErrors) {
    let (url, service) = (&config["url"], &config["service"]);
    if url.is_null() == service.is_null() {
        let why = "exactly one of url or service is required";
        errors.push(FieldError::required(path, why));
    }
    if let Some(text) = url.as_str() {
        let at = format!("{path}.url");
        match text.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() != Some("https") => {
                let why = "'https' is the only allowed URL scheme";
                errors.push(FieldError::invalid(&at, uri.scheme_str().unwrap_or_default(), why));
            }
            Ok(_) => {}
            Err(e) => errors.push(FieldError::required(&at, format!("url must be a valid URL: {e}"))),
        }
    }
    if service.is_object() {
        let at = format!("{path}.service");
        errors.present(service, &at, "name");
        errors.present(service, &at, "namespace");
        if let Some(port) = int(service, "port").filter(|p| !(1..=65535).contains(p)) {
            let why = format!("port is not valid: {}", checks::port_number(port).join(", "));
            errors.push(FieldError::invalid(format!("{at}.port"), port, why));
        }
        let rest = text(service, "path");
        if !rest.is_empty() && !rest.starts_with('/') {
            let why = "must start with a '/'";
            errors.push(FieldError::invalid(format!("{at}.path"), rest, why));
        }
    }
    let bundle = text(config, "caBundle");
    if !bundle.is_empty() && STANDARD.decode(bundle).is_err() {
        errors.push(FieldError::invalid(format!("{path}.caBundle"), bundle, "must be base64 of PEM"));
    }
}

/// A rule that names operations, groups, versions and resources.
pub fn rule_with_operations(rule: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["operations", "apiGroups", "apiVersions", "resources"] {
        let (entries, at) = (list(rule, key), format!("{path}.{key}"));
        if entries.is_empty() {
            errors.push(FieldError::required(&at, ""));
        }
        if entries.len() > 1 && entries.iter().any(|e| e == "*") {
            let why = "if '*' is present, must not specify other ".to_owned()
                + match key {
                    "operations" => "operations",
                    "apiGroups" => "API groups",
                    "apiVersions" => "API versions",
                    _ => continue,
                };
            errors.push(FieldError::invalid(&at, rule[key].clone(), why));
        }
    }
    for (i, version) in list(rule, "apiVersions").iter().enumerate() {
        if version == "" {
            errors.push(FieldError::required(format!("{path}.apiVersions[{i}]"), ""));
        }
    }
    let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (i, operation) in list(rule, "operations").iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        if !known.contains(&operation) {
            errors.push(FieldError::not_supported(format!("{path}.operations[{i}]"), operation, &known));
        }
    }
    errors.optional_one_of(rule, path, "scope", &["*", "Cluster", "Namespaced"]);
}

#[cfg(test)]
mod tests {
    use super::super::fake::offences;
    use super::*;

    fn configuration(change: impl Fn(&mut Value)) -> Value {
        let mut hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"namespace": "ns", "name": "hook"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
        change(&mut hook);
        json!({"metadata": {"name": "x"}, "webhooks": [hook]})
    }

    #[test]
    fn offence_table() {
        assert_eq!(offences(VALIDATING_WEBHOOKS, configuration(|_| {})), "[]");
        type Change = fn(&mut Value);
        let table: [(Change, &str); 7] = [
            (
                |h| h["name"] = json!("a.b"),
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ),
            (
                |h| h["sideEffects"] = json!(null),
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            (
                |h| h["timeoutSeconds"] = json!(31),
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                |h| h["clientConfig"] = json!({}),
                "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            ),
            (
                |h| h["admissionReviewVersions"] = json!(["v9"]),
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1",
            ),
            (
                |h| h["rules"][0]["operations"] = json!(["PAINT"]),
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"PAINT\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            ),
            (
                |h| h["clientConfig"] = json!({"url": "http://a/"}),
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme",
            ),
        ];
        for (change, expected) in table {
            assert_eq!(offences(VALIDATING_WEBHOOKS, configuration(change)), expected);
        }
    }

    #[test]
    fn what_is_left_out() {
        let mut object = configuration(|_| {});
        (MUTATING_WEBHOOKS.default)(&mut object);
        let hook = &object["webhooks"][0];
        assert_eq!((&hook["failurePolicy"], &hook["timeoutSeconds"]), (&json!("Fail"), &json!(10)));
        assert_eq!((&hook["reinvocationPolicy"], &hook["rules"][0]["scope"]), (&json!("Never"), &json!("*")));
        assert_eq!(hook["clientConfig"]["service"]["port"], 443);
    }
}
