//! What is added to a new Pod after looking at other objects: its ServiceAccount with the token volume, its
//! priority, default tolerations.

use serde_json::{Value, json};

use super::super::value::{append, child, elements, flag, list, name, set, text, unset};
use super::defaults;
use crate::resource::GroupResource;
use crate::status::Status;
use crate::strategy::Context;

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Marks Pods that mirror a static one; they get nothing added.
const MIRROR: &str = "kubernetes.io/config.mirror";

fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

fn forbidden(pod: &Value, why: &str) -> Status {
    Status::forbidden("", "pods", name(pod), why)
}

/// All of it, for a new Pod.
pub async fn admit(cx: &Context, pod: &mut Value) -> Result<(), Status> {
    if !is_mirror(pod) {
        service_account(cx, pod).await?;
    }
    priority(cx, pod).await?;
    if let Some(spec) = child(pod, "spec") {
        defaults::tolerate_lost_node(spec);
    }
    Ok(())
}

async fn service_account(cx: &Context, pod: &mut Value) -> Result<(), Status> {
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    if text(spec, "serviceAccountName").is_empty() {
        set(spec, "serviceAccountName", "default");
        set(spec, "serviceAccount", "default");
    }
    let wanted = text(spec, "serviceAccountName").to_owned();
    let resource = GroupResource::new("", "serviceaccounts");
    let Some(account) = cx.objects.get(&resource, &cx.namespace, &wanted).await? else {
        let why = format!(
            "error looking up service account {}/{wanted}: serviceaccount {} not found",
            cx.namespace,
            crate::status::quote(&wanted)
        );
        return Err(forbidden(pod, &why));
    };
    let mount = match &pod["spec"]["automountServiceAccountToken"] {
        Value::Bool(wish) => *wish,
        _ => account["automountServiceAccountToken"].as_bool().unwrap_or(true),
    };
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    if mount {
        mount_token(spec);
    }
    if unset(&spec["imagePullSecrets"]) && !unset(&account["imagePullSecrets"]) {
        set(spec, "imagePullSecrets", account["imagePullSecrets"].clone());
    }
    Ok(())
}

fn mounts_token(container: &Value) -> bool {
    list(container, "volumeMounts").iter().any(|m| text(m, "mountPath") == TOKEN_PATH)
}

/// Adds the projected volume with token, CA and namespace to the containers that mount nothing there themselves.
fn mount_token(spec: &mut Value) {
    let lists = &defaults::CONTAINER_LISTS[..2];
    if lists.iter().flat_map(|key| list(spec, key)).all(mounts_token) {
        return;
    }
    let volume = format!("kube-api-access-{}", random_suffix());
    let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH});
    for key in lists {
        for container in elements(spec, key).filter(|c| !mounts_token(c)) {
            append(container, "volumeMounts", mount.clone());
        }
    }
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]);
    append(spec, "volumes", json!({"name": volume, "projected": {"sources": sources, "defaultMode": 0o644}}));
}

/// Five characters that read unambiguously, as in generated names.
fn random_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes = uuid::Uuid::new_v4().into_bytes();
    bytes[..5].iter().map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

async fn priority(cx: &Context, pod: &mut Value) -> Result<(), Status> {
    let resource = GroupResource::new("scheduling.k8s.io", "priorityclasses");
    let wanted = text(&pod["spec"], "priorityClassName").to_owned();
    let class = if wanted.is_empty() {
        let (all, _) = cx.objects.list(&resource, None).await?;
        all.into_iter().filter(|c| flag(c, "globalDefault")).min_by_key(|c| c["value"].as_i64())
    } else {
        let found = cx.objects.get(&resource, "", &wanted).await?;
        if found.is_none() {
            return Err(forbidden(pod, &format!("no PriorityClass with name {wanted} was found")));
        }
        found
    };
    let value = class.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
    let given = pod["spec"]["priority"].as_i64();
    if given.is_some_and(|given| given != value) {
        let why = "the integer value of priority (".to_owned()
            + &given.unwrap_or_default().to_string()
            + ") must not be provided in pod spec; priority admission controller computed "
            + &value.to_string()
            + " from the given PriorityClass name";
        return Err(forbidden(pod, &why));
    }
    let Some(spec) = child(pod, "spec") else { return Ok(()) };
    set(spec, "priority", value);
    if let Some(class) = class {
        set(spec, "priorityClassName", name(&class));
        super::super::value::default(spec, "preemptionPolicy", text(&class, "preemptionPolicy"));
    }
    super::super::value::default(spec, "preemptionPolicy", "PreemptLowerPriority");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::kinds::fake::{Fake, context};
    use crate::resource::Resource;

    fn pod() -> Value {
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}})
    }

    #[tokio::test]
    async fn token_volume_and_account() {
        let account = json!({"metadata": {"name": "default", "namespace": "shop"}, "imagePullSecrets": [{"name": "s"}]});
        let objects = Fake::with(&[("", "serviceaccounts", account)]);
        let cx = context(Resource::new("", "v1", "Pod", "pods"), "shop", objects);
        let mut object = pod();
        admit(&cx, &mut object).await.unwrap();
        let spec = &object["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["serviceAccount"], "default");
        assert_eq!(spec["imagePullSecrets"][0]["name"], "s");
        assert_eq!(spec["priority"], 0);
        assert_eq!(spec["preemptionPolicy"], "PreemptLowerPriority");
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
        let volume = text(&spec["volumes"][0], "name");
        assert!(volume.starts_with("kube-api-access-") && volume.len() == 21, "{volume}");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_PATH);

        let mut without = pod();
        without["spec"]["automountServiceAccountToken"] = json!(false);
        admit(&cx, &mut without).await.unwrap();
        assert!(without["spec"].get("volumes").is_none());
    }

    #[tokio::test]
    async fn missing_account_and_class() {
        let cx = context(Resource::new("", "v1", "Pod", "pods"), "shop", Fake::with(&[]));
        let refused = admit(&cx, &mut pod()).await.unwrap_err();
        assert_eq!(
            refused.message(),
            r#"pods "web" is forbidden: error looking up service account shop/default: serviceaccount "default" not found"#
        );
        let account = json!({"metadata": {"name": "default", "namespace": "shop"}});
        let cx = context(
            Resource::new("", "v1", "Pod", "pods"),
            "shop",
            Fake::with(&[("", "serviceaccounts", account)]),
        );
        let mut object = pod();
        object["spec"]["priorityClassName"] = json!("high");
        let refused = admit(&cx, &mut object).await.unwrap_err();
        assert_eq!(
            refused.message(),
            r#"pods "web" is forbidden: no PriorityClass with name high was found"#
        );
    }
}
