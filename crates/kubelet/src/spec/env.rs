//! The environment of a container: service variables, `envFrom`, `env` with references, in upstream's precedence.
//!
//! Pure over fetched objects ([`Sources`]); the image's own variables and `PATH` are merged in by the spec builder.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use indexmap::IndexMap;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};

use super::fields::{self, Facts};
use super::{SpecError, expand::expand};
use crate::pod;

/// ConfigMaps and Secrets that a container refers to; `None` for one that does not exist.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// By name, in the Pod's namespace.
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    /// By name, in the Pod's namespace.
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
}

/// Names of the objects that a container's environment needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// ConfigMaps.
    pub config_maps: Vec<String>,
    /// Secrets.
    pub secrets: Vec<String>,
}

/// What a container's environment refers to.
pub fn needs(container: &Container) -> Needs {
    let mut needs = Needs::default();
    for from in container.env_from.iter().flatten() {
        needs.config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        needs.secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        needs.config_maps.extend(from.config_map_key_ref.iter().map(|r| r.name.clone()));
        needs.secrets.extend(from.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    needs
}

impl Sources {
    /// The ConfigMap; `None` where it may be missing and is.
    pub(crate) fn config_map(&self, name: &str, optional: bool) -> Result<Option<&ConfigMap>, SpecError> {
        known(&self.config_maps, "configmap", name, optional)
    }

    /// The Secret; `None` where it may be missing and is.
    pub(crate) fn secret(&self, name: &str, optional: bool) -> Result<Option<&Secret>, SpecError> {
        known(&self.secrets, "secret", name, optional)
    }
}

fn known<'a, K>(
    objects: &'a HashMap<String, Option<Arc<K>>>,
    kind: &str,
    name: &str,
    optional: bool,
) -> Result<Option<&'a K>, SpecError> {
    match objects.get(name) {
        Some(Some(object)) => Ok(Some(object)),
        _ if optional => Ok(None),
        _ => Err(SpecError::Config(format!("{kind} \"{name}\" not found"))),
    }
}

/// Service variables: those of the namespace when links are wanted, and always those of `default/kubernetes`.
pub fn of_services(pod: &Pod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let links = pod::spec(pod).enable_service_links != Some(false);
    let mut vars = BTreeMap::new();
    let namespace = pod::namespace(pod);
    let is_master = |s: &Service| {
        s.metadata.namespace.as_deref() == Some("default") && s.metadata.name.as_deref() == Some("kubernetes")
    };
    // The namespace's own Service of that name wins over the master's, so it comes last.
    let (masters, others): (Vec<_>, Vec<_>) = services.iter().partition(|s| is_master(s));
    let own = others.into_iter().filter(|s| links && s.metadata.namespace.as_deref() == Some(namespace));
    for service in masters.into_iter().chain(own) {
        add_service(&mut vars, service);
    }
    vars
}

fn add_service(vars: &mut BTreeMap<String, String>, service: &Service) {
    let (Some(name), Some(spec)) = (&service.metadata.name, &service.spec) else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let Some(ports) = spec.ports.as_ref().filter(|p| !p.is_empty()) else { return };
    let screaming = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = screaming(name);
    let host = match ip.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => ip.to_string(),
    };
    vars.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
    vars.insert(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
    for (i, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            vars.insert(format!("{prefix}_SERVICE_PORT_{}", screaming(name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if i == 0 {
            vars.insert(format!("{prefix}_PORT"), url.clone());
        }
        let base = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        vars.insert(format!("{base}_PROTO"), protocol.to_lowercase());
        vars.insert(format!("{base}_PORT"), port.port.to_string());
        vars.insert(format!("{base}_ADDR"), ip.to_string());
        vars.insert(base, url);
    }
}

/// The container's variables as the Pod asks for them, references resolved.
///
/// # Errors
/// When a ConfigMap, Secret or key that is not optional is missing, or a field path is unknown.
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &[Arc<Service>],
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<IndexMap<String, String>, SpecError> {
    let service_vars = of_services(pod, services);
    let mut vars: IndexMap<String, String> = IndexMap::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut add = |key: &str, value: String| {
            let name = format!("{prefix}{key}");
            if !name.is_empty() && !name.contains('=') {
                vars.insert(name, value);
            }
        };
        if let Some(r) = &from.config_map_ref {
            let map = sources.config_map(&r.name, r.optional == Some(true))?;
            map.and_then(|m| m.data.as_ref()).into_iter().flatten().for_each(|(k, v)| add(k, v.clone()));
        }
        if let Some(r) = &from.secret_ref {
            let secret = sources.secret(&r.name, r.optional == Some(true))?;
            let data = secret.and_then(|s| s.data.as_ref()).into_iter().flatten();
            data.for_each(|(k, v)| add(k, String::from_utf8_lossy(&v.0).into_owned()));
        }
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            None => {
                let text = var.value.as_deref().unwrap_or_default();
                Some(expand(text, |name| vars.get(name).or_else(|| service_vars.get(name)).cloned()))
            }
            Some(_) => referenced(pod, container, var, sources, facts)?,
        };
        if let Some(value) = value {
            vars.insert(var.name.clone(), value);
        }
    }
    for (name, value) in service_vars {
        vars.entry(name).or_insert(value);
    }
    Ok(vars)
}

fn referenced(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Option<String>, SpecError> {
    let Some(from) = &var.value_from else { return Ok(None) };
    if let Some(field) = &from.field_ref {
        return fields::field(pod, &field.field_path, facts).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        let name = resource.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(&container.name);
        return fields::resource(pod, name, resource, facts).map(Some);
    }
    let namespace = pod::namespace(pod);
    if let Some(r) = &from.config_map_key_ref {
        let optional = r.optional == Some(true);
        let map = sources.config_map(&r.name, optional)?;
        let value = map.and_then(|m| {
            let text = m.data.as_ref().and_then(|d| d.get(&r.key)).cloned();
            let bytes = m.binary_data.as_ref().and_then(|d| d.get(&r.key));
            text.or_else(|| bytes.map(|b| String::from_utf8_lossy(&b.0).into_owned()))
        });
        return match value {
            None if !optional => Err(SpecError::Config(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                r.key, r.name
            ))),
            value => Ok(value),
        };
    }
    if let Some(r) = &from.secret_key_ref {
        let optional = r.optional == Some(true);
        let value =
            sources.secret(&r.name, optional)?.and_then(|s| s.data.as_ref()).and_then(|d| d.get(&r.key));
        return match value {
            None if !optional => Err(SpecError::Config(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                r.key, r.name
            ))),
            value => Ok(value.map(|v| String::from_utf8_lossy(&v.0).into_owned())),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    fn facts() -> Facts<'static> {
        Facts { ips: &[], host_ips: &[], cpu_millis: 2000, memory_bytes: 4 << 30, ephemeral_bytes: 1 << 30 }
    }

    fn service(value: serde_json::Value) -> Arc<Service> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn services() -> Vec<Arc<Service>> {
        vec![
            service(json!({"metadata": {"namespace": "default", "name": "kubernetes"}, "spec": {
                "clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}})),
            service(json!({"metadata": {"namespace": "n", "name": "foo-svc"}, "spec": {
                "clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP"}]}})),
            service(json!({"metadata": {"namespace": "n", "name": "headless"}, "spec": {
                "clusterIP": "None", "ports": [{"port": 53}]}})),
            service(json!({"metadata": {"namespace": "other", "name": "bar"}, "spec": {
                "clusterIP": "10.96.0.8", "ports": [{"port": 1}]}})),
        ]
    }

    fn env_of(container: serde_json::Value, sources: &Sources) -> Result<IndexMap<String, String>, String> {
        let pod =
            pod(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}}));
        environment(&pod, &pod.spec.as_ref().unwrap().containers[0], &services(), sources, &facts())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn service_variables() {
        let p = pod(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": []}}));
        let text: Vec<String> =
            of_services(&p, &services()).iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            text,
            [
                "FOO_SVC_PORT=udp://10.96.0.9:53",
                "FOO_SVC_PORT_53_UDP=udp://10.96.0.9:53",
                "FOO_SVC_PORT_53_UDP_ADDR=10.96.0.9",
                "FOO_SVC_PORT_53_UDP_PORT=53",
                "FOO_SVC_PORT_53_UDP_PROTO=udp",
                "FOO_SVC_SERVICE_HOST=10.96.0.9",
                "FOO_SVC_SERVICE_PORT=53",
                "KUBERNETES_PORT=tcp://10.96.0.1:443",
                "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
                "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
                "KUBERNETES_PORT_443_TCP_PORT=443",
                "KUBERNETES_PORT_443_TCP_PROTO=tcp",
                "KUBERNETES_SERVICE_HOST=10.96.0.1",
                "KUBERNETES_SERVICE_PORT=443",
                "KUBERNETES_SERVICE_PORT_HTTPS=443",
            ]
        );
        let p = pod(json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"enableServiceLinks": false, "containers": []}}));
        assert!(of_services(&p, &services()).keys().all(|k| k.starts_with("KUBERNETES_")));
    }

    #[test]
    fn later_wins_and_references_see_what_came_before() {
        let mut sources = Sources::default();
        let map = json!({"data": {"A": "map", "B": "$(A)"}, "binaryData": {"BIN": "eHg="}});
        sources.config_maps.insert("m".into(), Some(Arc::new(serde_json::from_value(map).unwrap())));
        let secret = json!({"data": {"A": "c2VjcmV0"}});
        sources.secrets.insert("s".into(), Some(Arc::new(serde_json::from_value(secret).unwrap())));
        let env = env_of(
            json!({"name": "c",
                "envFrom": [{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}, "prefix": "P_"}],
                "env": [
                    {"name": "A", "value": "own"},
                    {"name": "REF", "value": "$(A)-$(P_A)-$(FOO_SVC_SERVICE_PORT)-$(LATER)-$$(A)"},
                    {"name": "LATER", "value": "x"},
                    {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "BIN"}}},
                    {"name": "SKEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "A"}}},
                    {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "A", "optional": true}}},
                    {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "FOO_SVC_SERVICE_HOST", "value": "mine"}]}),
            &sources,
        )
        .unwrap();
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(get("A"), Some("own"));
        assert_eq!(get("B"), Some("$(A)"));
        assert_eq!(get("P_A"), Some("secret"));
        assert_eq!(get("REF"), Some("own-secret-53-$(LATER)-$(A)"));
        assert_eq!((get("KEY"), get("SKEY"), get("GONE")), (Some("xx"), Some("secret"), None));
        assert_eq!((get("LIMIT"), get("ME")), (Some("2"), Some("p")));
        assert_eq!(get("FOO_SVC_SERVICE_HOST"), Some("mine"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let sources = Sources::default();
        let env = |from| {
            env_of(json!({"name": "c", "env": [{"name": "A", "valueFrom": from}]}), &sources).unwrap_err()
        };
        assert_eq!(env(json!({"configMapKeyRef": {"name": "m", "key": "k"}})), "configmap \"m\" not found");
        assert_eq!(env(json!({"secretKeyRef": {"name": "s", "key": "k"}})), "secret \"s\" not found");
        let mut sources = Sources::default();
        sources.secrets.insert("s".into(), Some(Arc::default()));
        let container = json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        assert_eq!(env_of(container, &sources).unwrap_err(), "couldn't find key k in Secret n/s");
    }
}
