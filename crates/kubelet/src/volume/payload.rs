//! What is in the files of configMap, secret, downwardAPI and projected volumes: pure over fetched objects.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection,
    Volume,
};

use super::atomic::{File, Payload};
use crate::pod;
use crate::spec::env::Sources;
use crate::spec::fields::{self, Facts};

/// Tokens by what was asked for: audience and lifetime.
pub type Tokens = HashMap<TokenKey, String>;

/// What makes one token differ from another of the same Pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TokenKey {
    /// Empty for the API server's own.
    pub audience: String,
    /// Seconds.
    pub lifetime: i64,
}

impl TokenKey {
    /// The key of a projection.
    pub fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            lifetime: source.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// The projections of a Pod's volumes that need tokens.
pub fn token_needs(pod: &Pod) -> Vec<TokenKey> {
    let projected = pod::spec(pod).volumes.iter().flatten().filter_map(|v| v.projected.as_ref());
    let sources = projected.flat_map(|p| p.sources.iter().flatten());
    sources.filter_map(|s| s.service_account_token.as_ref()).map(TokenKey::of).collect()
}

/// The ConfigMaps and Secrets that a Pod's volumes need, by name.
pub fn needs(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for volume in pod::spec(pod).volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|c| c.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|c| c.name.clone()));
            secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        }
    }
    (maps, secrets)
}

/// Everything that payloads are made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Fetched objects.
    pub sources: &'a Sources,
    /// Fetched tokens.
    pub tokens: &'a Tokens,
    /// For the downward API.
    pub facts: &'a Facts<'a>,
}

/// The files of a volume, or `None` for a volume that is not made of API objects.
///
/// # Errors
/// With upstream's words for what is missing.
pub fn of(pod: &Pod, volume: &Volume, inputs: &Inputs<'_>) -> Result<Option<Payload>, String> {
    let mut payload = Payload::new();
    if let Some(source) = &volume.config_map {
        let mode = mode(source.default_mode);
        let optional = source.optional == Some(true);
        config_map(&mut payload, &source.name, source.items.as_deref(), optional, mode, pod, inputs)?;
    } else if let Some(source) = &volume.secret {
        let mode = mode(source.default_mode);
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(
            &mut payload,
            name,
            source.items.as_deref(),
            source.optional == Some(true),
            mode,
            pod,
            inputs,
        )?;
    } else if let Some(source) = &volume.downward_api {
        let mode = mode(source.default_mode);
        downward(&mut payload, source.items.as_deref().unwrap_or_default(), mode, pod, inputs.facts)?;
    } else if let Some(source) = &volume.projected {
        projected(&mut payload, source, pod, inputs)?;
    } else {
        return Ok(None);
    }
    Ok(Some(payload))
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644)
}

fn projected(
    payload: &mut Payload,
    source: &ProjectedVolumeSource,
    pod: &Pod,
    inputs: &Inputs<'_>,
) -> Result<(), String> {
    let mode = mode(source.default_mode);
    for projection in source.sources.iter().flatten() {
        if let Some(s) = &projection.config_map {
            let optional = s.optional == Some(true);
            config_map(payload, &s.name, s.items.as_deref(), optional, mode, pod, inputs)?;
        }
        if let Some(s) = &projection.secret {
            secret(payload, &s.name, s.items.as_deref(), s.optional == Some(true), mode, pod, inputs)?;
        }
        if let Some(s) = &projection.downward_api {
            downward(payload, s.items.as_deref().unwrap_or_default(), mode, pod, inputs.facts)?;
        }
        if let Some(s) = &projection.service_account_token {
            let token = inputs.tokens.get(&TokenKey::of(s)).ok_or("service account token was not issued")?;
            let context = pod::spec(pod).security_context.as_ref();
            let uid = common_user(pod);
            let private = uid.is_some() || context.and_then(|c| c.fs_group).is_some();
            let mode = if private { 0o600 } else { mode };
            payload.insert(s.path.clone(), File { data: token.clone().into_bytes(), mode, uid });
        }
        if projection.cluster_trust_bundle.is_some() {
            return Err("clusterTrustBundle projections are not supported by this node".into());
        }
    }
    Ok(())
}

/// The user that all containers run as by their security contexts, if it is one.
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = pod::spec(pod).security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users =
        pod::containers(pod).map(|(_, c)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok())?
}

fn config_map(
    payload: &mut Payload,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    pod: &Pod,
    inputs: &Inputs<'_>,
) -> Result<(), String> {
    let map = inputs.sources.config_map(name, optional).map_err(|e| e.to_string())?;
    let Some(map) = map else { return Ok(()) };
    let data = keys_of_map(map);
    select(payload, data, items, optional, mode, &format!("configmap {}/{name}", pod::namespace(pod)))
}

fn keys_of_map(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    text.chain(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()))).collect()
}

fn secret(
    payload: &mut Payload,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    pod: &Pod,
    inputs: &Inputs<'_>,
) -> Result<(), String> {
    let secret = inputs.sources.secret(name, optional).map_err(|e| e.to_string())?;
    let Some(secret) = secret else { return Ok(()) };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    select(payload, data, items, optional, mode, &format!("secret {}/{name}", pod::namespace(pod)))
}

fn select(
    payload: &mut Payload,
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    what: &str,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        payload.extend(data.into_iter().map(|(path, data)| (path, File { data, mode, uid: None })));
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(data) => {
                let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
                payload.insert(item.path.clone(), File { data, mode, uid: None });
            }
            None if optional => {}
            None => return Err(format!("{what} references non-existent key: {}", item.key)),
        }
    }
    Ok(())
}

fn downward(
    payload: &mut Payload,
    items: &[DownwardAPIVolumeFile],
    mode: u32,
    pod: &Pod,
    facts: &Facts<'_>,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(pod, &field.field_path, facts).map_err(|e| e.to_string())?
        } else if let Some(resource) = &item.resource_field_ref {
            let container = resource.container_name.as_deref().unwrap_or_default();
            fields::resource(pod, container, resource, facts).map_err(|e| e.to_string())?
        } else {
            continue;
        };
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        payload.insert(item.path.clone(), File { data: text.into_bytes(), mode, uid: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    type Row = (String, String, u32, Option<u32>);

    fn run(volume: Value, context: Value) -> Result<Vec<Row>, String> {
        let pod =
            crate::pod::tests::pod(json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}},
            "spec": {"securityContext": context, "containers": [{"name": "c"}]}}));
        let mut sources = Sources::default();
        let map = json!({"data": {"k": "v", "other": "o"}, "binaryData": {"bin": "AP8="}});
        sources.config_maps.insert("m".into(), Some(Arc::new(serde_json::from_value(map).unwrap())));
        let secret = json!({"data": {"pw": "c2VjcmV0"}});
        sources.secrets.insert("s".into(), Some(Arc::new(serde_json::from_value(secret).unwrap())));
        let tokens =
            Tokens::from([(TokenKey { audience: String::new(), lifetime: 3607 }, "jwt".to_string())]);
        let facts = Facts { ips: &[], host_ips: &[], cpu_millis: 1, memory_bytes: 1, ephemeral_bytes: 1 };
        let inputs = Inputs { sources: &sources, tokens: &tokens, facts: &facts };
        let volume = serde_json::from_value(volume).unwrap();
        let payload = of(&pod, &volume, &inputs)?.unwrap_or_default();
        let row =
            |(path, f): (String, File)| (path, String::from_utf8_lossy(&f.data).into_owned(), f.mode, f.uid);
        Ok(payload.into_iter().map(row).collect())
    }

    fn row(path: &str, data: &str, mode: u32) -> Row {
        (path.into(), data.into(), mode, None)
    }

    #[test]
    fn config_maps_and_secrets() {
        let rows = run(json!({"name": "v", "configMap": {"name": "m"}}), json!({})).unwrap();
        assert_eq!(rows, [row("bin", "\0\u{fffd}", 0o644), row("k", "v", 0o644), row("other", "o", 0o644)]);
        let items = json!({"name": "v", "configMap": {"name": "m", "defaultMode": 0o600, "items": [
            {"key": "k", "path": "d/x"}, {"key": "other", "path": "y", "mode": 0o444}]}});
        assert_eq!(run(items, json!({})).unwrap(), [row("d/x", "v", 0o600), row("y", "o", 0o444)]);
        let gone = json!({"name": "v", "configMap": {"name": "gone"}});
        assert_eq!(run(gone, json!({})).unwrap_err(), "configmap \"gone\" not found");
        let gone = json!({"name": "v", "secret": {"secretName": "gone", "optional": true}});
        assert_eq!(run(gone, json!({})).unwrap(), []);
        let key =
            json!({"name": "v", "secret": {"secretName": "s", "items": [{"key": "none", "path": "x"}]}});
        assert_eq!(run(key, json!({})).unwrap_err(), "secret n/s references non-existent key: none");
    }

    #[test]
    fn the_service_account_volume() {
        let volume = json!({"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "m", "items": [{"key": "k", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}});
        let rows = run(volume.clone(), json!({})).unwrap();
        assert_eq!(
            rows,
            [row("ca.crt", "v", 0o644), row("namespace", "n", 0o644), row("token", "jwt", 0o644)]
        );
        let rows = run(volume.clone(), json!({"fsGroup": 7})).unwrap();
        assert_eq!(rows[2], row("token", "jwt", 0o600));
        let rows = run(volume, json!({"runAsUser": 1000})).unwrap();
        assert_eq!(rows[2], ("token".into(), "jwt".into(), 0o600, Some(1000)));
    }
}
