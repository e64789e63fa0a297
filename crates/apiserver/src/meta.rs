//! Rules of `metadata` that hold for every kind: names, labels, annotations, owners, finalizers, and what an update
//! must leave alone.

use serde_json::Value;

use crate::field::{FieldError, FieldErrors};
use crate::names;
use crate::strategy::NameRule;

/// All annotations of an object together may take so many bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// Offences of the metadata of a new or changed object.
pub fn validate(object: &Value, namespaced: bool, rule: NameRule) -> FieldErrors {
    let meta = &object["metadata"];
    let mut errors = FieldErrors::new();
    validate_names(meta, namespaced, rule, &mut errors);
    validate_labels(&meta["labels"], "metadata.labels", &mut errors);
    validate_annotations(&meta["annotations"], "metadata.annotations", &mut errors);
    validate_owners(&meta["ownerReferences"], &mut errors);
    validate_finalizers(&meta["finalizers"], &mut errors);
    errors
}

fn validate_names(meta: &Value, namespaced: bool, rule: NameRule, errors: &mut FieldErrors) {
    let generate = meta["generateName"].as_str().unwrap_or_default();
    if !generate.is_empty() {
        // A trailing dash is what the random suffix follows; mask it before checking.
        let masked = generate.strip_suffix('-').map_or_else(|| generate.to_owned(), |g| format!("{g}a"));
        for detail in check_name(&masked, rule) {
            errors.push(FieldError::invalid("metadata.generateName", generate, detail));
        }
    }
    match meta["name"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        name => {
            for detail in check_name(name, rule) {
                errors.push(FieldError::invalid("metadata.name", name, detail));
            }
        }
    }
    let namespace = meta["namespace"].as_str().unwrap_or_default();
    match (namespaced, namespace) {
        (true, "") => errors.push(FieldError::required("metadata.namespace", "")),
        (true, namespace) => {
            for detail in names::dns1123_label(namespace).err().unwrap_or_default() {
                errors.push(FieldError::invalid("metadata.namespace", namespace, detail));
            }
        }
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
    }
}

fn check_name(name: &str, rule: NameRule) -> Vec<String> {
    let result = match rule {
        NameRule::Subdomain => names::dns1123_subdomain(name),
        NameRule::Label => names::dns1123_label(name),
        NameRule::Dns1035 => names::dns1035_label(name),
        NameRule::PathSegment => names::path_segment(name),
        NameRule::Own => Ok(()),
    };
    result.err().unwrap_or_default()
}

/// Keys and values of labels.
pub fn validate_labels(labels: &Value, path: &str, errors: &mut FieldErrors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for detail in names::qualified_name(key).err().unwrap_or_default() {
            errors.push(FieldError::invalid(path, key.as_str(), detail));
        }
        let value = value.as_str().unwrap_or_default();
        for detail in names::label_value(value).err().unwrap_or_default() {
            errors.push(FieldError::invalid(path, value, detail));
        }
    }
}

/// Keys and total size of annotations.
pub fn validate_annotations(annotations: &Value, path: &str, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for detail in names::qualified_name(&key.to_lowercase()).err().unwrap_or_default() {
            errors.push(FieldError::invalid(path, key.as_str(), detail));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long(path, ANNOTATIONS_LIMIT));
    }
}

fn validate_owners(owners: &Value, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for (i, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let path = format!("metadata.ownerReferences[{i}]");
        for (key, what) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner[key].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{key}"), "", what));
            }
        }
        if owner["controller"] == true {
            let name =
                format!("{}/{}", owner["kind"].as_str().unwrap_or(""), owner["name"].as_str().unwrap_or(""));
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                );
                errors.push(FieldError::invalid("metadata.ownerReferences", owners.clone(), detail));
            }
            controller = Some(name);
        }
    }
}

fn validate_finalizers(finalizers: &Value, errors: &mut FieldErrors) {
    const STANDARD: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
    for finalizer in finalizers.as_array().into_iter().flatten() {
        let text = finalizer.as_str().unwrap_or_default();
        for detail in names::qualified_name(text).err().unwrap_or_default() {
            errors.push(FieldError::invalid("metadata.finalizers", text, detail));
        }
        // Definitions of custom resources are held by a bare domain name.
        if !text.contains(['/', '.']) && !STANDARD.contains(&text) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid("metadata.finalizers", text, detail));
        }
    }
}

/// Offences of what an update did to the metadata.
pub fn validate_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let (new, old) = (&new["metadata"][key], &old["metadata"][key]);
        if new != old {
            errors.push(FieldError::invalid(format!("metadata.{key}"), new.clone(), "field is immutable"));
        }
    }
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let list = |v: &Value| v["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let before = list(old);
        let added: Vec<Value> = list(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let names: Vec<String> = added.iter().map(Value::to_string).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                names.join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bad_name_gives_upstreams_text() {
        let object = json!({"metadata": {"name": "My_pod", "namespace": "default"}});
        let text = validate(&object, true, NameRule::Subdomain).to_string();
        assert!(
            text.starts_with("metadata.name: Invalid value: \"My_pod\": a lowercase RFC 1123 subdomain must"),
            "{text}"
        );
    }

    #[test]
    fn no_name_at_all() {
        let text = validate(&json!({"metadata": {}}), false, NameRule::Subdomain).to_string();
        assert_eq!(text, "metadata.name: Required value: name or generateName is required");
    }

    #[test]
    fn labels_owners_and_finalizers() {
        let object = json!({"metadata": {
            "name": "a", "labels": {"k": "a b"}, "finalizers": ["mine"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}],
        }});
        let errors = validate(&object, false, NameRule::Subdomain);
        let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["metadata.labels", "metadata.ownerReferences[0].uid", "metadata.finalizers"]);
    }

    #[test]
    fn a_deleted_object_takes_no_new_finalizer() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "2025-01-01T00:00:00Z"}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["a.b/c"]);
        assert!(validate_update(&new, &old).to_string().contains("no new finalizers can be added"));
        assert!(validate_update(&old, &old).is_empty());
    }
}
