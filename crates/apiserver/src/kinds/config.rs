//! ConfigMaps, Secrets and ServiceAccounts.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::checks;
use super::rules::Rules;
use super::value::{child_or_new, default, entries, flag, remove, same, set, text};
use crate::auth::reviews::token_request;
use crate::auth::token::Tokens;
use crate::field::{FieldError, FieldErrors};
use crate::status::Status;
use crate::strategy::{Context, Strategy};

/// Most data of one ConfigMap or Secret, in bytes.
const MOST: usize = 1024 * 1024;

fn keys(object: &Value, field: &str, errors: &mut FieldErrors) {
    for (key, _) in entries(object, field) {
        errors.messages(&format!("{field}[{key}]"), key.as_str(), checks::config_map_key(key));
    }
}

fn decoded_size(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(text.len() / 4 * 3)
}

/// What `immutable: true` forbids.
fn sealed(new: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    if !flag(old, "immutable") {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if !flag(new, "immutable") {
        errors.push(FieldError::forbidden("immutable", why));
    }
    for field in fields {
        if !same(&new[*field], &old[*field]) {
            errors.push(FieldError::forbidden(*field, why));
        }
    }
}

/// ConfigMaps.
pub const CONFIG_MAP: Rules = Rules {
    validate: |object, errors| {
        keys(object, "data", errors);
        keys(object, "binaryData", errors);
        for (key, _) in entries(object, "data") {
            if object["binaryData"].get(key).is_some() {
                let why = "duplicate of key present in binaryData";
                errors.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), why));
            }
        }
        let text: usize = entries(object, "data").map(|(_, v)| v.as_str().map_or(0, str::len)).sum();
        let binary: usize = entries(object, "binaryData").map(|(_, v)| decoded_size(v)).sum();
        if text + binary > MOST {
            errors.push(FieldError::too_long("", MOST));
        }
    },
    validate_update: |new, old, errors| sealed(new, old, &["data", "binaryData"], errors),
    ..Rules::NONE
};

/// Secrets; `stringData` is written into `data` and forgotten.
pub const SECRET: Rules = Rules {
    default: |object| {
        if let Some(Value::Object(plain)) = remove(object, "stringData")
            && !plain.is_empty()
            && let Some(data) = child_or_new(object, "data")
        {
            for (key, value) in plain {
                set(data, &key, STANDARD.encode(value.as_str().unwrap_or_default()));
            }
        }
        default(object, "type", "Opaque");
    },
    validate: |object, errors| {
        keys(object, "data", errors);
        for (key, value) in entries(object, "data") {
            if STANDARD.decode(value.as_str().unwrap_or_default()).is_err() {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    "<secret contents redacted>",
                    "must be base64",
                ));
            }
        }
        let size: usize = entries(object, "data").map(|(_, v)| decoded_size(v)).sum();
        if size > MOST {
            errors.push(FieldError::too_long("data", MOST));
        }
        secret_type(object, errors);
    },
    validate_update: |new, old, errors| {
        errors.immutable(&new["type"], &old["type"], "type");
        sealed(new, old, &["data"], errors);
    },
    ..Rules::NONE
};

fn secret_type(object: &Value, errors: &mut FieldErrors) {
    let mut need = |key: &str| {
        if object["data"].get(key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "type") {
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(&mut need),
        "kubernetes.io/dockerconfigjson" => need(".dockerconfigjson"),
        "kubernetes.io/dockercfg" => need(".dockercfg"),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" => {
            let data = &object["data"];
            if data.get("username").is_none() && data.get("password").is_none() {
                need("username");
                need("password");
            }
        }
        "kubernetes.io/service-account-token" => {
            const OWNER: &str = "kubernetes.io/service-account.name";
            if text(&object["metadata"]["annotations"], OWNER).is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{OWNER}]"), ""));
            }
        }
        _ => {}
    }
}

/// ServiceAccounts, with the subresource that issues tokens.
pub struct ServiceAccounts {
    /// Issuer.
    pub tokens: Arc<Tokens>,
}

#[async_trait]
impl Strategy for ServiceAccounts {
    async fn respond(&self, cx: &Context, body: &Value) -> Option<Result<Value, Status>> {
        if cx.subresource != "token" {
            return None;
        }
        Some(token_request(&self.tokens, cx, body).await)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn check(rules: Rules, object: &Value) -> String {
        let mut errors = FieldErrors::new();
        (rules.validate)(object, &mut errors);
        errors.to_string()
    }

    #[test]
    fn secrets() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"b": "y"}});
        (SECRET.default)(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eA==", "b": "eQ=="}, "type": "Opaque"}));
        assert_eq!(check(SECRET, &secret), "[]");
        let tls = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
        assert_eq!(check(SECRET, &tls), "data[tls.key]: Required value");
        let mut errors = FieldErrors::new();
        (SECRET.validate_update)(&tls, &secret, &mut errors);
        assert_eq!(errors.to_string(), "type: Invalid value: \"kubernetes.io/tls\": field is immutable");
    }

    #[test]
    fn config_maps() {
        let bad = json!({"data": {"a/b": "", "x": ""}, "binaryData": {"x": ""}});
        let text = check(CONFIG_MAP, &bad);
        assert!(
            text.contains("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"),
            "{text}"
        );
        assert!(
            text.contains("data[x]: Invalid value: \"x\": duplicate of key present in binaryData"),
            "{text}"
        );
        let big = json!({"data": {"a": "x".repeat(MOST + 1)}});
        assert!(check(CONFIG_MAP, &big).contains("may not be more than 1048576 bytes"));

        let sealed = json!({"immutable": true, "data": {"a": "1"}});
        let mut errors = FieldErrors::new();
        (CONFIG_MAP.validate_update)(&json!({"immutable": true, "data": {"a": "2"}}), &sealed, &mut errors);
        assert_eq!(errors.to_string(), "data: Forbidden: field is immutable when `immutable` is set");
    }

    #[test]
    fn sizes_of_base64() {
        for text in ["", "eA==", "eHg=", "eHh4"] {
            let bytes = STANDARD.decode(text).unwrap().len();
            assert_eq!(decoded_size(&json!(text)), bytes, "{text}");
        }
        assert_eq!(decoded_size(&json!("=")), 0);
    }
}
