//! Discovery: which groups, versions and resources are served, plain and aggregated
//! (<https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>).

use http::HeaderMap;
use serde_json::{Map, Value, json};

use crate::negotiate;
use crate::registry::{GroupVersion, Registry};
use crate::resource::{Resource, Subresource};

/// Version of apidiscovery.k8s.io that a client wants, if it wants aggregated discovery before the plain one.
pub fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    for clause in negotiate::clauses(headers) {
        if !clause.covers("application/json") {
            continue;
        }
        match (clause.param("as"), clause.param("g"), clause.param("v")) {
            ("", ..) => return None,
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Some("v2"),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Some("v2beta1"),
            _ => {}
        }
    }
    None
}

/// `/api`, plain.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`, plain.
pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        registry.groups().iter().map(|(name, versions)| group_value(name, versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_value(name: &str, versions: &[&GroupVersion]) -> Value {
    let entry =
        |v: &GroupVersion| json!({"groupVersion": format!("{name}/{}", v.version), "version": v.version});
    let list: Vec<Value> = versions.iter().map(|v| entry(v)).collect();
    json!({"name": name, "versions": list, "preferredVersion": list.first()})
}

/// `/apis/GROUP`.
pub fn group(registry: &Registry, name: &str) -> Option<Value> {
    let groups = registry.groups();
    let (name, versions) = groups.iter().find(|(group, _)| *group == name)?;
    let mut out = json!({"kind": "APIGroup", "apiVersion": "v1"});
    if let (Some(out), Value::Object(more)) = (out.as_object_mut(), group_value(name, versions)) {
        out.extend(more);
    }
    Some(out)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list(version: &GroupVersion) -> Value {
    let mut resources = Vec::new();
    let mut rows: Vec<_> = version.resources.iter().collect();
    rows.sort_by(|a, b| a.plural.cmp(&b.plural));
    for row in rows {
        resources.push(resource_value(row));
        let mut subs: Vec<_> = row.subresources.iter().collect();
        subs.sort_by(|a, b| a.name.cmp(&b.name));
        resources.extend(subs.into_iter().map(|sub| subresource_value(row, sub)));
    }
    let name = group_version(&version.group, &version.version);
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources})
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

fn resource_value(row: &Resource) -> Value {
    let mut out = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
        "kind": row.kind, "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        out["shortNames"] = row.short_names.clone().into();
    }
    if !row.categories.is_empty() {
        out["categories"] = row.categories.clone().into();
    }
    out
}

fn subresource_value(row: &Resource, sub: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", row.plural, sub.name), "singularName": "", "namespaced": row.namespaced,
    });
    if (&sub.group, &sub.version) != (&row.group, &row.version) {
        out["group"] = sub.group.as_str().into();
        out["version"] = sub.version.as_str().into();
    }
    out["kind"] = sub.kind.as_str().into();
    out["verbs"] = sub.verbs.clone().into();
    out
}

/// `/api` or `/apis`, aggregated.
pub fn aggregated(registry: &Registry, version: &str, core: bool) -> Value {
    let groups: Vec<(&str, Vec<&GroupVersion>)> = if core {
        vec![("", registry.versions.iter().filter(|v| v.group.is_empty()).collect())]
    } else {
        registry.groups()
    };
    let items: Vec<Value> = groups.iter().map(|(name, versions)| aggregated_group(name, versions)).collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregated_group(name: &str, versions: &[&GroupVersion]) -> Value {
    let version = |v: &GroupVersion| {
        let mut rows: Vec<_> = v.resources.iter().collect();
        rows.sort_by(|a, b| a.plural.cmp(&b.plural));
        let resources: Vec<Value> = rows.into_iter().map(|row| aggregated_resource(row)).collect();
        json!({"version": v.version, "resources": resources, "freshness": "Current"})
    };
    let mut meta = Map::new();
    if !name.is_empty() {
        meta.insert("name".into(), name.into());
    }
    meta.insert("creationTimestamp".into(), Value::Null);
    json!({"metadata": meta, "versions": versions.iter().map(|v| version(v)).collect::<Vec<_>>()})
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(row: &Resource) -> Value {
    let mut out = json!({
        "resource": row.plural, "responseKind": response_kind(&row.group, &row.version, &row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        out["shortNames"] = row.short_names.clone().into();
    }
    if !row.categories.is_empty() {
        out["categories"] = row.categories.clone().into();
    }
    if !row.subresources.is_empty() {
        let mut subs: Vec<_> = row.subresources.iter().collect();
        subs.sort_by(|a, b| a.name.cmp(&b.name));
        let one = |s: &Subresource| {
            json!({
                "subresource": s.name, "responseKind": response_kind(&s.group, &s.version, &s.kind),
                "verbs": s.verbs,
            })
        };
        out["subresources"] = subs.into_iter().map(one).collect();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http::header::ACCEPT;

    use super::*;

    #[test]
    fn the_version_a_client_names_first_and_we_know() {
        let ask = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, text.parse().unwrap());
            aggregated_version(&headers)
        };
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        assert_eq!(ask(&format!("{v2},{beta},application/json")), Some("v2"));
        assert_eq!(ask(&format!("{beta},application/json")), Some("v2beta1"));
        assert_eq!(ask("application/json"), None);
    }

    #[test]
    fn pods_are_listed_with_what_kubectl_needs() {
        let registry = Registry::new(crate::builtin::resources());
        let list = resource_list(registry.group_version("", "v1").unwrap());
        let find =
            |name: &str| list["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).cloned();
        assert_eq!(find("pods").unwrap()["shortNames"], json!(["po"]));
        assert_eq!(find("pods/eviction").unwrap()["group"], "policy");
        let apps = aggregated(&registry, "v2", false)["items"][0].clone();
        assert_eq!(apps["metadata"]["name"], "apps");
    }
}
