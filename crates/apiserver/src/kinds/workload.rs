//! Deployment, ReplicaSet, DaemonSet, StatefulSet, ReplicationController: a selector, a template, a count.

use serde_json::{Value, json};

use super::checks;
use super::pod::{defaults, validate};
use super::rules::Rules;
use super::selector;
use super::value::{child, child_or_new, default, elements, int, set, text, unset};
use crate::field::{FieldError, FieldErrors};
use crate::meta;

fn template_defaults(object: &mut Value) {
    if let Some(spec) = child(object, "spec")
        && let Some(template) = child(spec, "template")
    {
        defaults::template(template);
    }
}

/// Selector and template of a workload of the apps group.
fn selected_template(object: &Value, kind: &str, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    let wanted = &spec["selector"];
    if wanted.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        selector::validate(wanted, "spec.selector", errors);
        if selector::is_empty(wanted) {
            let why = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid("spec.selector", wanted.clone(), why));
        }
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !wanted.is_null() && !selector::is_empty(wanted) && !selector::matches(wanted, labels) {
        let why = "`selector` does not match template `labels`";
        let shown = if labels.is_null() { json!({}) } else { labels.clone() };
        errors.push(FieldError::invalid("spec.template.metadata.labels", shown, why));
    }
    template(&spec["template"], "spec.template", errors);
}

/// A Pod template, restart policy aside.
pub fn template(template: &Value, path: &str, errors: &mut FieldErrors) {
    let metadata = &template["metadata"];
    meta::validate_labels(&metadata["labels"], &format!("{path}.metadata.labels"), errors);
    meta::validate_annotations(&metadata["annotations"], &format!("{path}.metadata.annotations"), errors);
    validate::spec(&template["spec"], &format!("{path}.spec"), false, errors);
}

fn always_restarts(object: &Value, kind: &str, errors: &mut FieldErrors) {
    let spec = &object["spec"]["template"]["spec"];
    if matches!(text(spec, "restartPolicy"), "Never" | "OnFailure") {
        errors.one_of(spec, "spec.template.spec", "restartPolicy", &["Always"]);
    }
    if !spec["activeDeadlineSeconds"].is_null() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

fn counts(object: &Value, errors: &mut FieldErrors) {
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        errors.not_negative(&object["spec"], "spec", key);
    }
}

fn fixed_selector(new: &Value, old: &Value, errors: &mut FieldErrors) {
    errors.immutable(&new["spec"]["selector"], &old["spec"]["selector"], "spec.selector");
}

/// A count or a percentage.
fn amount(value: &Value, path: &str, errors: &mut FieldErrors) {
    match value {
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => {
            let why = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(path, value.clone(), why));
        }
        Value::String(s) => errors.messages(path, s.as_str(), checks::percent(s)),
        _ => {}
    }
}

fn is_none(value: &Value) -> bool {
    value == 0 || value == "0%"
}

/// `rollingUpdate` of Deployments and DaemonSets.
fn rolling(update: &Value, path: &str, errors: &mut FieldErrors) {
    let (unavailable, surge) = (&update["maxUnavailable"], &update["maxSurge"]);
    amount(unavailable, &format!("{path}.maxUnavailable"), errors);
    amount(surge, &format!("{path}.maxSurge"), errors);
    if is_none(unavailable) && is_none(surge) {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(format!("{path}.maxUnavailable"), unavailable.clone(), why));
    }
    let percent = unavailable.as_str().and_then(|s| s.strip_suffix('%')?.parse::<i64>().ok());
    if percent.is_some_and(|p| p > 100) {
        let why = "must not be greater than 100%";
        errors.push(FieldError::invalid(format!("{path}.maxUnavailable"), unavailable.clone(), why));
    }
}

/// Deployments.
pub const DEPLOYMENT: Rules = Rules {
    default: |object| {
        template_defaults(object);
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        default(spec, "progressDeadlineSeconds", 600);
        let Some(strategy) = child_or_new(spec, "strategy") else { return };
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child_or_new(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", "25%");
            default(rolling, "maxSurge", "25%");
        }
    },
    validate: |object, errors| {
        let spec = &object["spec"];
        selected_template(object, "deployment", errors);
        always_restarts(object, "Deployment", errors);
        counts(object, errors);
        let (strategy, path) = (&spec["strategy"], "spec.strategy");
        errors.one_of(strategy, path, "type", &["Recreate", "RollingUpdate"]);
        match text(strategy, "type") {
            "Recreate" if !strategy["rollingUpdate"].is_null() => errors.push(FieldError::forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            )),
            "RollingUpdate" => rolling(&strategy["rollingUpdate"], "spec.strategy.rollingUpdate", errors),
            _ => {}
        }
        errors.not_negative(spec, "spec", "progressDeadlineSeconds");
        if let Some(deadline) = int(spec, "progressDeadlineSeconds")
            && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
        {
            let why = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, why));
        }
    },
    validate_update: fixed_selector,
    ..Rules::NONE
};

/// ReplicaSets.
pub const REPLICA_SET: Rules = Rules {
    default: |object| {
        template_defaults(object);
        if let Some(spec) = child(object, "spec") {
            default(spec, "replicas", 1);
        }
    },
    status: |_| json!({"replicas": 0}),
    validate: |object, errors| {
        selected_template(object, "deployment", errors);
        always_restarts(object, "ReplicaSet", errors);
        counts(object, errors);
    },
    validate_update: fixed_selector,
    ..Rules::NONE
};

/// DaemonSets.
pub const DAEMON_SET: Rules = Rules {
    default: |object| {
        template_defaults(object);
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "revisionHistoryLimit", 10);
        let Some(strategy) = child_or_new(spec, "updateStrategy") else { return };
        default(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child_or_new(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", 1);
            default(rolling, "maxSurge", 0);
        }
    },
    status: |_| json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}),
    validate: |object, errors| {
        selected_template(object, "daemonset", errors);
        always_restarts(object, "DaemonSet", errors);
        counts(object, errors);
        let strategy = &object["spec"]["updateStrategy"];
        errors.one_of(strategy, "spec.updateStrategy", "type", &["OnDelete", "RollingUpdate"]);
        if text(strategy, "type") == "RollingUpdate" {
            rolling(&strategy["rollingUpdate"], "spec.updateStrategy.rollingUpdate", errors);
        }
    },
    validate_update: fixed_selector,
    ..Rules::NONE
};

const STATEFUL_ONLY: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// StatefulSets.
pub const STATEFUL_SET: Rules = Rules {
    default: |object| {
        template_defaults(object);
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "podManagementPolicy", "OrderedReady");
        default(spec, "replicas", 1);
        default(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = child_or_new(spec, "updateStrategy") {
            default(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = child_or_new(strategy, "rollingUpdate")
            {
                default(rolling, "partition", 0);
            }
        }
        if let Some(retention) = child_or_new(spec, "persistentVolumeClaimRetentionPolicy") {
            default(retention, "whenDeleted", "Retain");
            default(retention, "whenScaled", "Retain");
        }
        for claim in elements(spec, "volumeClaimTemplates") {
            set(claim, "apiVersion", "v1");
            set(claim, "kind", "PersistentVolumeClaim");
            if let Some(spec) = child(claim, "spec") {
                default(spec, "volumeMode", "Filesystem");
            }
            set(claim, "status", json!({"phase": "Pending"}));
        }
    },
    status: |_| json!({"replicas": 0, "availableReplicas": 0}),
    validate: |object, errors| {
        let spec = &object["spec"];
        let policies = ["OrderedReady", "Parallel"];
        errors.one_of(spec, "spec", "podManagementPolicy", &policies);
        errors.one_of(&spec["updateStrategy"], "spec.updateStrategy", "type", &["OnDelete", "RollingUpdate"]);
        errors.not_negative(
            &spec["updateStrategy"]["rollingUpdate"],
            "spec.updateStrategy.rollingUpdate",
            "partition",
        );
        // Claims become volumes of each Pod under their own names.
        let mut object = object.clone();
        let claims: Vec<Value> = super::value::list(spec, "volumeClaimTemplates")
            .iter()
            .map(|c| json!({"name": super::value::name(c), "persistentVolumeClaim": {"claimName": super::value::name(c)}}))
            .collect();
        if let Some(pod_spec) =
            object.pointer_mut("/spec/template/spec").filter(|s| s.is_object() && !claims.is_empty())
        {
            for claim in claims {
                super::value::append(pod_spec, "volumes", claim);
            }
        }
        selected_template(&object, "statefulset", errors);
        always_restarts(&object, "StatefulSet", errors);
        counts(&object, errors);
    },
    validate_update: |new, old, errors| {
        const MAY_CHANGE: [&str; 7] = [
            "replicas",
            "ordinals",
            "template",
            "updateStrategy",
            "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy",
            "minReadySeconds",
        ];
        let mut masked = new["spec"].clone();
        for key in MAY_CHANGE {
            super::value::keep(&mut masked, &old["spec"], key);
        }
        if !super::value::same(&masked, &old["spec"]) {
            errors.push(FieldError::forbidden("spec", STATEFUL_ONLY));
        }
    },
    ..Rules::NONE
};

/// ReplicationControllers; labels and selector come from the template when left out.
pub const REPLICATION_CONTROLLER: Rules = Rules {
    default: |object| {
        template_defaults(object);
        let labels = defaults::template_labels(&object["spec"]["template"]).cloned();
        if let Some(labels) = labels {
            if let Some(spec) = child(object, "spec")
                && unset(&spec["selector"])
            {
                set(spec, "selector", labels.clone());
            }
            if let Some(metadata) = child(object, "metadata")
                && unset(&metadata["labels"])
            {
                set(metadata, "labels", labels);
            }
        }
        if let Some(spec) = child(object, "spec") {
            default(spec, "replicas", 1);
        }
    },
    status: |_| json!({"replicas": 0}),
    validate: |object, errors| {
        let spec = &object["spec"];
        let labels = &spec["template"]["metadata"]["labels"];
        if unset(&spec["selector"]) {
            errors.push(FieldError::required("spec.selector", ""));
        } else if !selector::matches_map(&spec["selector"], labels) {
            let why = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), why));
        }
        template(&spec["template"], "spec.template", errors);
        always_restarts(object, "ReplicationController", errors);
        counts(object, errors);
    },
    ..Rules::NONE
};

/// PodTemplates.
pub const POD_TEMPLATE: Rules = Rules {
    default: |object| {
        if let Some(template) = child(object, "template") {
            defaults::template(template);
        }
    },
    validate: |object, errors| template(&object["template"], "template", errors),
    ..Rules::NONE
};

/// ControllerRevisions never change but in number.
pub const CONTROLLER_REVISION: Rules = Rules {
    validate: |object, errors| errors.not_negative(object, "", "revision"),
    validate_update: |new, old, errors| errors.immutable(&new["data"], &old["data"], "data"),
    ..Rules::NONE
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn deployment() -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}})
    }

    #[test]
    fn deployment_defaults() {
        let mut object = deployment();
        (DEPLOYMENT.default)(&mut object);
        let spec = &object["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
        assert!(spec["template"]["spec"].get("enableServiceLinks").is_none());
    }

    #[test]
    fn deployment_offences() {
        let offences = |change: fn(&mut Value)| {
            let mut object = deployment();
            change(&mut object["spec"]);
            (DEPLOYMENT.default)(&mut object);
            let mut errors = FieldErrors::new();
            (DEPLOYMENT.validate)(&object, &mut errors);
            errors.to_string()
        };
        type Change = fn(&mut Value);
        let table: [(Change, &str); 8] = [
            (|_| {}, "[]"),
            (|s| s["selector"] = Value::Null, "spec.selector: Required value"),
            (
                |s| s["selector"] = json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                |s| s["selector"] = json!({"matchLabels": {"app": "x"}}),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ),
            (
                |s| s["replicas"] = json!(-1),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                |s| s["template"]["spec"]["restartPolicy"] = json!("Never"),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                |s| s["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                |s| s["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
        ];
        for (change, expected) in table {
            assert_eq!(offences(change), expected);
        }
    }

    #[test]
    fn selectors_and_stateful_specs_are_fixed() {
        let (old, mut new) = (deployment(), deployment());
        new["spec"]["selector"]["matchLabels"]["app"] = json!("x");
        let mut errors = FieldErrors::new();
        (DEPLOYMENT.validate_update)(&new, &old, &mut errors);
        assert_eq!(
            errors.to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"
        );
        let mut errors = FieldErrors::new();
        (STATEFUL_SET.validate_update)(&new, &old, &mut errors);
        assert_eq!(errors.to_string(), format!("spec: Forbidden: {STATEFUL_ONLY}"));
        let mut scaled = deployment();
        scaled["spec"]["replicas"] = json!(3);
        let mut errors = FieldErrors::new();
        (STATEFUL_SET.validate_update)(&scaled, &old, &mut errors);
        assert!(errors.is_empty());
    }

    #[test]
    fn a_claim_template_is_a_volume_to_mount() {
        let mut object = deployment();
        object["spec"]["serviceName"] = json!("web");
        object["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {}}]);
        object["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        (STATEFUL_SET.default)(&mut object);
        let mut errors = FieldErrors::new();
        (STATEFUL_SET.validate)(&object, &mut errors);
        assert_eq!(errors.to_string(), "[]");
    }
}
