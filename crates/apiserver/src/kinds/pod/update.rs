//! What may change in a Pod that exists: images, the deadline (downwards), tolerations (more of them), gates (fewer).

use serde_json::Value;

use super::super::value::{int, keep, list, remove, same, set, text};
use super::defaults::CONTAINER_LISTS;
use crate::field::{FieldError, FieldErrors};

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Offences of an update of the Pod itself.
pub fn validate(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    for key in &CONTAINER_LISTS[..2] {
        let (n, o) = (list(new_spec, key).len(), list(old_spec, key).len());
        if n != o {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{key}"), why));
            return;
        }
        for (i, container) in list(new_spec, key).iter().enumerate() {
            if text(container, "image").is_empty() {
                errors.push(FieldError::required(format!("spec.{key}[{i}].image"), ""));
            }
        }
    }
    deadline(new_spec, old_spec, errors);
    for (i, toleration) in list(old_spec, "tolerations").iter().enumerate() {
        let kept = list(new_spec, "tolerations").iter().any(|t| {
            ["key", "operator", "value", "effect"].iter().all(|k| text(t, k) == text(toleration, k))
        });
        if !kept {
            let why = "existing toleration can not be modified except its tolerationSeconds";
            let _ = i;
            errors.push(FieldError::forbidden("spec.tolerations", why));
        }
    }
    let gates = list(old_spec, "schedulingGates");
    for (i, gate) in list(new_spec, "schedulingGates").iter().enumerate() {
        if !gates.contains(gate) {
            let why = "only deletion is allowed, but found new scheduling gate ".to_owned()
                + &crate::status::quote(text(gate, "name"));
            errors.push(FieldError::forbidden(format!("spec.schedulingGates[{i}]"), why));
        }
    }
    let masked = mask(new_spec, old_spec);
    if !same(&masked, old_spec) {
        let changed: Vec<String> = differences(&masked, old_spec);
        errors.push(FieldError::forbidden("spec", format!("{ONLY}\n{}", changed.join("\n"))));
    }
}

fn deadline(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = "spec.activeDeadlineSeconds";
    match (int(new, "activeDeadlineSeconds"), int(old, "activeDeadlineSeconds")) {
        (Some(n), Some(o)) if n > o => {
            let why = format!("must be less than or equal to previous value {o}");
            errors.push(FieldError::invalid(path, n, why));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

/// The new spec with everything that may change set back.
fn mask(new: &Value, old: &Value) -> Value {
    let mut masked = new.clone();
    for key in &CONTAINER_LISTS[..2] {
        let olds = list(old, key);
        for (i, container) in super::super::value::elements(&mut masked, key).enumerate() {
            if let Some(old) = olds.get(i) {
                keep(container, old, "image");
            }
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers"] {
        keep(&mut masked, old, key);
    }
    if !list(old, "schedulingGates").is_empty() {
        // A gated Pod may still be narrowed down.
        keep(&mut masked, old, "nodeSelector");
        keep(&mut masked, old, "affinity");
    }
    let grace = "terminationGracePeriodSeconds";
    if int(old, grace).is_some_and(|g| g < 0) && int(new, grace) == Some(1) {
        keep(&mut masked, old, grace);
    }
    masked
}

/// Top-level fields that differ, for people.
fn differences(a: &Value, b: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter_map(|key| {
            let null = Value::Null;
            let (x, y) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
            (!same(x, y)).then(|| format!("- {key}: {y}\n+ {key}: {x}"))
        })
        .collect()
}

/// `/ephemeralcontainers`: only that list, and only additions.
pub fn ephemeral(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (news, olds) = (list(&new["spec"], "ephemeralContainers"), list(&old["spec"], "ephemeralContainers"));
    for container in olds {
        let name = text(container, "name");
        match news.iter().find(|c| text(c, "name") == name) {
            None => {
                let why = format!(
                    "existing ephemeral containers {} may not be removed\n",
                    crate::status::quote(name)
                );
                errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
            }
            Some(kept) if !same(kept, container) => {
                let why = format!(
                    "existing ephemeral containers {} may not be changed\n",
                    crate::status::quote(name)
                );
                errors.push(FieldError::forbidden("spec.ephemeralContainers", why));
            }
            Some(_) => {}
        }
    }
}

/// Sets back what an update through the main resource never changes.
pub fn keep_server_fields(new: &mut Value, old: &Value) {
    // An update without the server's own fields keeps them (clients of older versions drop what they do not know).
    if let Some(spec) = new.get_mut("spec") {
        for key in ["nodeName", "priority", "preemptionPolicy", "serviceAccountName", "serviceAccount"] {
            if super::super::value::unset(&spec[key]) && old["spec"].get(key).is_some() {
                set(spec, key, old["spec"][key].clone());
            }
        }
        if old["spec"].get("ephemeralContainers").is_none() {
            remove(spec, "ephemeralContainers");
        } else {
            keep(spec, &old["spec"], "ephemeralContainers");
        }
    }
}
