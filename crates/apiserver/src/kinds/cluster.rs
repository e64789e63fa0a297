//! Namespaces, Nodes, Events, Leases, priority and runtime classes, limits.

use serde_json::{Value, json};

use super::checks;
use super::quantity::{MALFORMED, Quantity};
use super::rules::Rules;
use super::value::{
    child, child_or_new, default, elements, entries, int, keep, list, name, set, text, unset,
};
use crate::field::{FieldError, FieldErrors};
use crate::strategy::NameRule;

/// Namespaces: held until the namespace controller has emptied them.
pub const NAMESPACE: Rules = Rules {
    names: NameRule::Label,
    default: |object| {
        let own = name(object).to_owned();
        // A generated name is not known yet when it is empty.
        if !own.is_empty()
            && let Some(metadata) = child(object, "metadata")
            && let Some(labels) = child_or_new(metadata, "labels")
        {
            set(labels, "kubernetes.io/metadata.name", own);
        }
    },
    status: |_| json!({"phase": "Active"}),
    create: |_, object| {
        if let Some(spec) = child_or_new(object, "spec") {
            let mut finalizers = list(spec, "finalizers").to_vec();
            if !finalizers.iter().any(|f| f == "kubernetes") {
                finalizers.push(json!("kubernetes"));
            }
            set(spec, "finalizers", finalizers);
        }
    },
    update: |new, old| keep(new, old, "spec"),
    ..Rules::NONE
};

/// Nodes; a kubelet registers with its status.
pub const NODE: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        let (one, all) = (text(spec, "podCIDR").to_owned(), list(spec, "podCIDRs").first().cloned());
        match (one.is_empty(), all) {
            (false, None) => set(spec, "podCIDRs", json!([one])),
            (true, Some(first)) => set(spec, "podCIDR", first),
            _ => {}
        }
    },
    status: |_| Value::Null,
    validate: |object, errors| {
        let spec = &object["spec"];
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for (i, taint) in list(spec, "taints").iter().enumerate() {
            let path = format!("spec.taints[{i}]");
            errors.form(taint, &path, "key", checks::qualified_name);
            errors.optional_form(taint, &path, "value", checks::label_value);
            if text(taint, "effect").is_empty() {
                errors.push(FieldError::required(format!("{path}.effect"), ""));
            } else {
                let effects = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
                errors.one_of(taint, &path, "effect", &effects);
            }
            let id = (text(taint, "key"), text(taint, "effect"));
            if seen.contains(&id) {
                let why = "taints must be unique by key and effect pair";
                errors.push(FieldError { detail: why.into(), ..FieldError::duplicate(&path, taint.clone()) });
            }
            seen.push(id);
        }
        for (i, cidr) in list(spec, "podCIDRs").iter().enumerate() {
            let cidr = cidr.as_str().unwrap_or_default();
            errors.messages(&format!("spec.podCIDRs[{i}]"), cidr, checks::cidr(cidr));
        }
    },
    validate_update: |new, old, errors| {
        let (cidrs, before) = (&new["spec"]["podCIDRs"], &old["spec"]["podCIDRs"]);
        if !unset(before) && cidrs != before {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.podCIDRs", why));
        }
        let (id, before) = (&new["spec"]["providerID"], &old["spec"]["providerID"]);
        if !unset(before) && id != before {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.providerID", why));
        }
    },
    ..Rules::NONE
};

/// Events.
pub const EVENT: Rules = Rules {
    create_on_update: true,
    validate: |object, errors| {
        let involved = &object["involvedObject"];
        let (own, theirs) = (super::value::namespace(object), text(involved, "namespace"));
        // Events about objects of the cluster live in namespace default (or kube-system, as old components write).
        let fine =
            if theirs.is_empty() { matches!(own, "default" | "kube-system" | "") } else { theirs == own };
        if !fine {
            let path = "involvedObject.namespace";
            errors.push(FieldError::invalid(path, theirs, "does not match event.namespace"));
        }
    },
    ..Rules::NONE
};

/// Leases.
pub const LEASE: Rules = Rules {
    create_on_update: true,
    versioned_update: true,
    validate: |object, errors| {
        let spec = &object["spec"];
        errors.positive(spec, "spec", "leaseDurationSeconds");
        errors.not_negative(spec, "spec", "leaseTransitions");
    },
    ..Rules::NONE
};

/// Highest value of a class that people make.
const HIGHEST: i64 = 1_000_000_000;

/// PriorityClasses.
pub const PRIORITY_CLASS: Rules = Rules {
    create_on_update: true,
    default: |object| {
        default(object, "value", 0);
        default(object, "preemptionPolicy", "PreemptLowerPriority");
    },
    validate: |object, errors| {
        let (own, value) = (name(object), int(object, "value").unwrap_or(0));
        let known = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
        if own.starts_with("system-") {
            if !known.contains(&(own, value)) {
                let why = "priority class names with 'system-' prefix are reserved for system use only";
                errors.push(FieldError::forbidden("metadata.name", why));
            }
        } else if value > HIGHEST {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.push(FieldError::forbidden("value", why));
        }
        errors.one_of(object, "", "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    },
    validate_update: |new, old, errors| {
        if new["value"] != old["value"] {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        errors.immutable(&new["preemptionPolicy"], &old["preemptionPolicy"], "preemptionPolicy");
    },
    ..Rules::NONE
};

/// RuntimeClasses.
pub const RUNTIME_CLASS: Rules = Rules {
    create_on_update: true,
    validate: |object, errors| errors.form(object, "", "handler", checks::dns1123_label),
    validate_update: |new, old, errors| errors.immutable(&new["handler"], &old["handler"], "handler"),
    ..Rules::NONE
};

fn quantities(map: &Value, path: &str, errors: &mut FieldErrors) {
    for (key, amount) in map.as_object().into_iter().flatten() {
        let path = format!("{path}[{key}]");
        match Quantity::of(amount) {
            None => errors.push(FieldError::invalid(path, amount.clone(), MALFORMED)),
            Some(q) if q.is_negative() => {
                let why = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(path, amount.clone(), why));
            }
            Some(_) => {}
        }
    }
}

/// LimitRanges.
pub const LIMIT_RANGE: Rules = Rules {
    create_on_update: true,
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        for limit in elements(spec, "limits").filter(|l| text(l, "type") == "Container") {
            for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
                let amounts: Vec<(String, Value)> =
                    entries(limit, from).map(|(k, v)| (k.clone(), v.clone())).collect();
                if amounts.is_empty() {
                    continue;
                }
                if let Some(slot) = child_or_new(limit, to) {
                    amounts.into_iter().for_each(|(key, amount)| default(slot, &key, amount));
                }
            }
        }
    },
    validate: |object, errors| {
        for (i, limit) in list(&object["spec"], "limits").iter().enumerate() {
            let path = format!("spec.limits[{i}]");
            for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                quantities(&limit[key], &format!("{path}.{key}"), errors);
            }
            for (name, min) in entries(limit, "min") {
                if let (Some(min), Some(max)) =
                    (Quantity::of(min), Quantity::of(&limit["max"][name.as_str()]))
                    && min > max
                {
                    let shown = |key: &str| text(&limit[key], name).to_owned();
                    let why =
                        format!("min value {} is greater than max value {}", shown("min"), shown("max"));
                    let at = format!("{path}.min[{name}]");
                    errors.push(FieldError::invalid(at, limit["min"][name.as_str()].clone(), why));
                }
            }
        }
    },
    ..Rules::NONE
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::kinds::fake::{Fake, context};
    use crate::resource::Resource;
    use crate::strategy::Strategy;

    #[test]
    fn namespaces_are_born_active_and_held() {
        let cx = context(Resource::new("", "v1", "Namespace", "namespaces").status(), "", Fake::with(&[]));
        let mut object = json!({"metadata": {"name": "shop"}});
        NAMESPACE.default(&mut object);
        NAMESPACE.prepare_create(&cx, &mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "shop", "labels": {"kubernetes.io/metadata.name": "shop"}},
                "status": {"phase": "Active"}, "spec": {"finalizers": ["kubernetes"]}})
        );
    }

    #[test]
    fn a_node_keeps_its_status_and_its_addresses() {
        let cx = context(Resource::new("", "v1", "Node", "nodes").status(), "", Fake::with(&[]));
        let mut node = json!({"spec": {"podCIDR": "10.244.0.0/24"}, "status": {"capacity": {"cpu": "2"}}});
        NODE.default(&mut node);
        NODE.prepare_create(&cx, &mut node);
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.0.0/24"]));
        assert_eq!(node["status"]["capacity"]["cpu"], "2");
        let mut moved = node.clone();
        moved["spec"]["podCIDRs"] = json!(["10.244.1.0/24"]);
        let errors = NODE.validate_update(&cx, &moved, &node);
        assert_eq!(
            errors.to_string(),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
        let tainted = json!({"spec": {"taints": [{"key": "a", "effect": "Never"}]}});
        assert!(NODE.validate(&cx, &tainted).to_string().contains("supported values: \"NoExecute\""));
    }

    #[test]
    fn priority_classes() {
        let cx = context(
            Resource::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses"),
            "",
            Fake::with(&[]),
        );
        let check = |name: &str, value: i64| {
            let mut object = json!({"metadata": {"name": name}, "value": value});
            PRIORITY_CLASS.default(&mut object);
            PRIORITY_CLASS.validate(&cx, &object).to_string()
        };
        assert_eq!(check("high", 1000), "[]");
        assert_eq!(check("system-node-critical", 2_000_001_000), "[]");
        assert!(check("system-mine", 1).starts_with("metadata.name: Forbidden"));
        assert_eq!(
            check("high", HIGHEST + 1),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"
        );
    }

    #[test]
    fn limits_fill_each_other() {
        let mut object = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}});
        LIMIT_RANGE.default(&mut object);
        let limit = &object["spec"]["limits"][0];
        assert_eq!(limit["default"]["cpu"], "2");
        assert_eq!(limit["defaultRequest"]["cpu"], "2");
    }

    #[test]
    fn events_live_with_their_object() {
        let cx = context(Resource::new("", "v1", "Event", "events"), "a", Fake::with(&[]));
        let event =
            |ns: &str, of: &str| json!({"metadata": {"namespace": ns}, "involvedObject": {"namespace": of}});
        assert!(EVENT.validate(&cx, &event("a", "a")).is_empty());
        assert!(EVENT.validate(&cx, &event("default", "")).is_empty());
        assert!(!EVENT.validate(&cx, &event("a", "b")).is_empty());
    }
}
