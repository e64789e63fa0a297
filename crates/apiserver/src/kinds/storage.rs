//! PersistentVolumes, claims and storage classes.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::quantity::Quantity;
use super::rules::Rules;
use super::value::{child, default, keep, list, name, same, set, text, unset};
use crate::field::{FieldError, FieldErrors};
use crate::resource::GroupResource;
use crate::status::Status;
use crate::strategy::{Context, Strategy};

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

fn access_modes(spec: &Value, errors: &mut FieldErrors) {
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        let why = "at least 1 access mode is required";
        errors.push(FieldError::required("spec.accessModes", why));
    }
    for (i, mode) in modes.iter().enumerate() {
        if !mode.as_str().is_some_and(|m| MODES.contains(&m)) {
            let path = format!("spec.accessModes[{i}]");
            errors.push(FieldError::not_supported(path, mode.clone(), MODES));
        }
    }
}

fn storage(amount: &Value, path: &str, errors: &mut FieldErrors) {
    match Quantity::of(amount) {
        None if amount.is_null() => errors.push(FieldError::required(path, "")),
        None => errors.push(FieldError::invalid(path, amount.clone(), super::quantity::MALFORMED)),
        Some(q) if q.is_negative() || q.is_zero() => {
            errors.push(FieldError::invalid(path, amount.clone(), "must be greater than zero"));
        }
        Some(_) => {}
    }
}

/// PersistentVolumeClaims.
pub struct Claims;

#[async_trait]
impl Strategy for Claims {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            default(spec, "volumeMode", "Filesystem");
        }
    }

    fn prepare_create(&self, _cx: &Context, object: &mut Value) {
        set(object, "status", json!({"phase": "Pending"}));
    }

    async fn admit(&self, cx: &Context, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if old.is_none() && new["spec"]["storageClassName"].is_null() {
            let resource = GroupResource::new("storage.k8s.io", "storageclasses");
            let (classes, _) = cx.objects.list(&resource, None).await?;
            let newest = classes
                .iter()
                .filter(|c| c["metadata"]["annotations"][DEFAULT_CLASS] == "true")
                .max_by_key(|c| (text(&c["metadata"], "creationTimestamp"), std::cmp::Reverse(name(c))));
            if let Some(class) = newest
                && let Some(spec) = child(new, "spec")
            {
                set(spec, "storageClassName", name(class));
            }
        }
        Ok(())
    }

    fn validate(&self, _cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let spec = &object["spec"];
        access_modes(spec, &mut errors);
        storage(&spec["resources"]["requests"]["storage"], "spec.resources[storage]", &mut errors);
        errors.optional_one_of(spec, "spec", "volumeMode", &["Block", "Filesystem"]);
        errors
    }

    fn validate_update(&self, cx: &Context, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate(cx, new);
        let mut masked = new["spec"].clone();
        if text(&old["status"], "phase") == "Bound" {
            keep(&mut masked, &old["spec"], "resources");
        }
        for key in ["volumeName", "storageClassName"] {
            if unset(&old["spec"][key]) {
                keep(&mut masked, &old["spec"], key);
            }
        }
        if !same(&masked, &old["spec"]) {
            let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
            errors.push(FieldError::forbidden("spec", why));
        }
        errors
    }
}

/// PersistentVolumes.
pub const VOLUME: Rules = Rules {
    default: |object| {
        let Some(spec) = child(object, "spec") else { return };
        default(spec, "persistentVolumeReclaimPolicy", "Retain");
        default(spec, "volumeMode", "Filesystem");
        if let Some(path) = child(spec, "hostPath")
            && path["type"].is_null()
        {
            set(path, "type", "");
        }
    },
    status: |_| json!({"phase": "Pending"}),
    validate: |object, errors| {
        let spec = &object["spec"];
        access_modes(spec, errors);
        storage(&spec["capacity"]["storage"], "spec.capacity[storage]", errors);
        let policies = ["Delete", "Recycle", "Retain"];
        errors.one_of(spec, "spec", "persistentVolumeReclaimPolicy", &policies);
        const SOURCES: [&str; 7] = ["hostPath", "local", "nfs", "csi", "iscsi", "fc", "rbd"];
        if SOURCES.iter().all(|s| spec[*s].is_null()) {
            errors.push(FieldError::required("spec", "must specify a volume type"));
        }
        if !spec["local"].is_null() && spec["nodeAffinity"].is_null() {
            let why = "Local volume requires node affinity";
            errors.push(FieldError::required("spec.nodeAffinity", why));
        }
    },
    ..Rules::NONE
};

/// StorageClasses.
pub const STORAGE_CLASS: Rules = Rules {
    create_on_update: true,
    default: |object| {
        default(object, "reclaimPolicy", "Delete");
        default(object, "volumeBindingMode", "Immediate");
    },
    validate: |object, errors| {
        if unset(&object["provisioner"]) {
            errors.push(FieldError::required("provisioner", ""));
        }
    },
    validate_update: |new, old, errors| {
        for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if !same(&new[key], &old[key]) {
                let why = format!("updates to {key} are forbidden.");
                errors.push(FieldError::forbidden(key, why));
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

    #[tokio::test]
    async fn claims() {
        let class = json!({"metadata": {"name": "standard", "annotations": {DEFAULT_CLASS: "true"}}});
        let row = Resource::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims");
        let cx = context(row, "a", Fake::with(&[("storage.k8s.io", "storageclasses", class)]));
        let mut claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        Claims.default(&mut claim);
        Claims.admit(&cx, &mut claim, None).await.unwrap();
        assert_eq!(claim["spec"]["storageClassName"], "standard");
        assert!(Claims.validate(&cx, &claim).is_empty());
        let empty = Claims.validate(&cx, &json!({"spec": {}})).to_string();
        assert_eq!(
            empty,
            "[spec.accessModes: Required value: at least 1 access mode is required, spec.resources[storage]: Required value]"
        );
        let mut bound = claim.clone();
        bound["spec"]["volumeName"] = json!("pv-1");
        assert!(Claims.validate_update(&cx, &bound, &claim).is_empty());
        let mut other = bound.clone();
        other["spec"]["volumeName"] = json!("pv-2");
        assert!(Claims.validate_update(&cx, &other, &bound).to_string().starts_with("spec: Forbidden"));
    }
}
