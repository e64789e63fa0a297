//! HorizontalPodAutoscalers, PodDisruptionBudgets, CustomResourceDefinitions.

use serde_json::{Value, json};

use super::checks;
use super::rules::Rules;
use super::selector;
use super::value::{child, default, int, set, unset};
use crate::field::FieldError;

/// HorizontalPodAutoscalers, in the form of autoscaling/v2.
pub const AUTOSCALER: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "minReplicas", 1);
        if unset(&spec["metrics"]) {
            let cpu = json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}]);
            set(spec, "metrics", cpu);
        }
    },
    status: |_| json!({"desiredReplicas": 0}),
    validate: |object, errors| {
        let spec = &object["spec"];
        let least = int(spec, "minReplicas").unwrap_or(1);
        let most = int(spec, "maxReplicas").unwrap_or(0);
        if least < 1 {
            let why = "must be greater than or equal to 1";
            errors.push(FieldError::invalid("spec.minReplicas", least, why));
        }
        if most < 1 {
            errors.push(FieldError::invalid("spec.maxReplicas", most, "must be greater than 0"));
        } else if most < least {
            let why = "must be greater than or equal to `minReplicas`";
            errors.push(FieldError::invalid("spec.maxReplicas", most, why));
        }
        for key in ["kind", "name"] {
            errors.form(&spec["scaleTargetRef"], "spec.scaleTargetRef", key, checks::path_segment);
        }
    },
    ..Rules::NONE
};

/// PodDisruptionBudgets.
pub const DISRUPTION_BUDGET: Rules = Rules {
    versioned_update: true,
    status: |_| json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
    validate: |object, errors| {
        let spec = &object["spec"];
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.push(FieldError::invalid("spec", spec.clone(), why));
        }
        for key in ["minAvailable", "maxUnavailable"] {
            errors.not_negative(spec, "spec", key);
            if let Value::String(share) = &spec[key] {
                errors.messages(&format!("spec.{key}"), share.as_str(), checks::percent(share));
            }
        }
        selector::validate(&spec["selector"], "spec.selector", errors);
        errors.optional_one_of(
            spec,
            "spec",
            "unhealthyPodEvictionPolicy",
            &["AlwaysAllow", "IfHealthyBudget"],
        );
    },
    ..Rules::NONE
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::fake::offences;
    use super::*;

    #[test]
    fn budgets_and_autoscalers() {
        assert_eq!(offences(DISRUPTION_BUDGET, json!({"spec": {"minAvailable": "50%"}})), "[]");
        assert!(
            offences(DISRUPTION_BUDGET, json!({"spec": {"minAvailable": 1, "maxUnavailable": 1}}))
                .ends_with("minAvailable and maxUnavailable cannot be both set")
        );
        let hpa = |max: i64| json!({"spec": {"minReplicas": 2, "maxReplicas": max, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}});
        assert_eq!(offences(AUTOSCALER, hpa(3)), "[]");
        assert_eq!(
            offences(AUTOSCALER, hpa(1)),
            "spec.maxReplicas: Invalid value: 1: must be greater than or equal to `minReplicas`"
        );
    }
}
