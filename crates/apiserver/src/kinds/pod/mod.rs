//! Pods: defaults, admission, validation, what may change, quality of service.

pub mod admission;
pub mod container;
pub mod defaults;
pub mod qos;
pub mod resources;
pub mod update;
pub mod validate;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::value::{child_or_new, set};
use crate::field::FieldErrors;
use crate::status::Status;
use crate::strategy::{Context, Strategy};

/// Rules of Pods.
pub struct Pods;

#[async_trait]
impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, _cx: &Context, object: &mut Value) {
        let class = qos::class(&object["spec"]);
        set(object, "status", json!({"phase": "Pending", "qosClass": class}));
    }

    fn prepare_update(&self, cx: &Context, new: &mut Value, old: &Value) {
        if cx.subresource != "ephemeralcontainers" {
            update::keep_server_fields(new, old);
        }
    }

    fn prepare_status_update(&self, _cx: &Context, new: &mut Value, old: &Value) {
        // The class never changes; a kubelet that leaves it out does not take it away.
        if let Some(status) = child_or_new(new, "status")
            && old["status"].get("qosClass").is_some()
        {
            set(status, "qosClass", old["status"]["qosClass"].clone());
        }
    }

    async fn admit(&self, cx: &Context, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if old.is_none() {
            admission::admit(cx, new).await?;
            defaults::pod(new);
        }
        Ok(())
    }

    fn validate(&self, _cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate::spec(&object["spec"], "spec", true, &mut errors);
        errors
    }

    fn validate_update(&self, cx: &Context, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if cx.subresource == "ephemeralcontainers" {
            validate::spec(&new["spec"], "spec", true, &mut errors);
            update::ephemeral(new, old, &mut errors);
        } else {
            update::validate(new, old, &mut errors);
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::kinds::fake::{Fake, context};
    use crate::resource::Resource;

    fn offences(patch: Value) -> Vec<String> {
        let mut pod =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
        for (key, value) in patch.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        defaults::pod(&mut pod);
        let cx = context(Resource::new("", "v1", "Pod", "pods"), "shop", Fake::with(&[]));
        Pods.validate(&cx, &pod).iter().map(ToString::to_string).collect()
    }

    fn container(extra: Value) -> Value {
        let mut c = json!({"name": "c", "image": "nginx"});
        for (key, value) in extra.as_object().unwrap() {
            c[key] = value.clone();
        }
        json!({"containers": [c]})
    }

    #[test]
    fn offence_table() {
        let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        let table: Vec<(Value, String)> = vec![
            (json!({"containers": []}), "spec.containers: Required value".into()),
            (container(json!({"name": "C"})), format!("spec.containers[0].name: Invalid value: \"C\": {label}")),
            (container(json!({"image": ""})), "spec.containers[0].image: Required value".into()),
            (container(json!({"image": " a"})), "spec.containers[0].image: Invalid value: \" a\": must not have leading or trailing whitespace".into()),
            (container(json!({"imagePullPolicy": "Sometimes"})), "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"".into()),
            (container(json!({"ports": [{"containerPort": 70000}]})), "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive".into()),
            (container(json!({"ports": [{}]})), "spec.containers[0].ports[0].containerPort: Required value".into()),
            (container(json!({"ports": [{"containerPort": 1, "protocol": "tcp"}]})), "spec.containers[0].ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"".into()),
            (container(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})), "spec.containers[0].volumeMounts[0].name: Not found: \"v\"".into()),
            (container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})), "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1".into()),
            (container(json!({"readinessProbe": {}})), "spec.containers[0].readinessProbe: Required value: must specify a handler type".into()),
            (container(json!({"livenessProbe": {"successThreshold": 2, "tcpSocket": {"port": 1}}})), "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1".into()),
            (container(json!({"env": [{"name": "a=b"}]})), "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='".into()),
            (json!({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}), "spec.containers[1].name: Duplicate value: \"a\"".into()),
            (json!({"restartPolicy": "Sure"}), "spec.restartPolicy: Unsupported value: \"Sure\": supported values: \"Always\", \"Never\", \"OnFailure\"".into()),
            (json!({"dnsPolicy": "None"}), "spec.dnsConfig: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None".into()),
            (json!({"volumes": [{"name": "v", "secret": {}}]}), "spec.volumes[0].secret.secretName: Required value".into()),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]}), "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'".into()),
            (json!({"volumes": [{"name": "v"}, {"name": "v"}]}), "spec.volumes[1].name: Duplicate value: \"v\"".into()),
            (json!({"tolerations": [{"operator": "Equal"}]}), "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"".into()),
            (json!({"hostname": "a.b"}), "spec.hostname: Invalid value: \"a.b\": must not contain dots".into()),
        ];
        for (patch, expected) in table {
            assert_eq!(offences(patch.clone()), [expected], "{patch}");
        }
        assert_eq!(offences(json!({})), Vec::<String>::new());
    }

    #[test]
    fn updates() {
        let mut old = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a:1"}],
            "tolerations": [{"key": "k", "operator": "Exists"}]}});
        defaults::pod(&mut old);
        let check = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            let mut errors = FieldErrors::new();
            update::validate(&new, &old, &mut errors);
            errors.to_string()
        };
        assert_eq!(check(|_| {}), "[]");
        assert_eq!(check(|s| s["containers"][0]["image"] = json!("a:2")), "[]");
        assert_eq!(check(|s| s["activeDeadlineSeconds"] = json!(5)), "[]");
        assert!(
            check(|s| s["nodeSelector"] = json!({"a": "b"}))
                .starts_with("spec: Forbidden: pod updates may not")
        );
        assert!(check(|s| s["tolerations"] = json!([])).contains("existing toleration can not be modified"));
        let added =
            check(|s| s["containers"] = json!([{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]));
        assert_eq!(added, "spec.containers: Forbidden: pod updates may not add or remove containers");
    }
}
