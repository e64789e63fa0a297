//! The default roles and bindings of a cluster, read from the table in `policy.txt`.
//!
//! Names, rules and subjects are upstream's (the RBAC reference documents them); people and charts bind to them by
//! name. The table is compiled in and parsed once at start, so a mistake in it is found by the test below.

use serde_json::{Value, json};

const TABLE: &str = include_str!("policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// Every default object, ready to be created: ClusterRoles, Roles, ClusterRoleBindings, RoleBindings.
pub fn defaults() -> Result<Vec<Value>, String> {
    let mut objects: Vec<Value> = Vec::new();
    for (number, line) in TABLE.lines().enumerate() {
        let text = line.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        let fault = || format!("default policy, line {}: {text}", number + 1);
        if line.starts_with(' ') {
            let rules = objects.last_mut().and_then(|o| o["rules"].as_array_mut()).ok_or_else(fault)?;
            rules.push(rule(&words).ok_or_else(fault)?);
        } else {
            objects.push(object(&words).ok_or_else(fault)?);
        }
    }
    for object in &mut objects {
        if object["aggregationRule"].is_object()
            && let Some(map) = object.as_object_mut()
        {
            map.insert("rules".into(), Value::Null);
        }
    }
    Ok(objects)
}

fn verbs(word: &str) -> Vec<&str> {
    match word {
        "R" => vec!["get", "list", "watch"],
        "W" => vec!["create", "delete", "deletecollection", "patch", "update"],
        "RW" => vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "E" => vec!["create", "patch", "update"],
        other => other.split(',').collect(),
    }
}

fn rule(words: &[&str]) -> Option<Value> {
    let list = |word: &str| word.split(',').map(str::to_owned).collect::<Vec<_>>();
    match words {
        [v, "url", paths] => Some(json!({"nonResourceURLs": list(paths), "verbs": verbs(v)})),
        [v, groups, resources, rest @ ..] => {
            let groups: Vec<_> = groups.split(',').map(|g| if g == "core" { "" } else { g }).collect();
            let mut out = json!({"apiGroups": groups, "resources": list(resources), "verbs": verbs(v)});
            match rest {
                [] => {}
                [names] => out["resourceNames"] = json!(list(names.strip_prefix("names=")?)),
                _ => return None,
            }
            Some(out)
        }
        _ => None,
    }
}

fn object(words: &[&str]) -> Option<Value> {
    match words {
        ["role", name, plus @ ..] => Some(header(role_kind(name, "Role"), name, plus, json!({"rules": []}))),
        ["aggregate", name, from, plus @ ..] => {
            let label = format!("{GROUP}/aggregate-to-{from}");
            let body =
                json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}});
            Some(header("ClusterRole".into(), name, plus, body))
        }
        ["bind", name, role, subjects @ ..] => {
            let (kind, role) = role.split_once('/').unwrap_or(("ClusterRole", role));
            let subjects: Option<Vec<Value>> = subjects.iter().map(|s| subject(s)).collect();
            let body = json!({
                "subjects": subjects?,
                "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role}
            });
            Some(header(role_kind(name, "RoleBinding"), name, &[], body))
        }
        _ => None,
    }
}

fn role_kind(name: &str, kind: &str) -> String {
    if name.contains('/') { kind.into() } else { format!("Cluster{kind}") }
}

fn subject(word: &str) -> Option<Value> {
    match word.split_once('=')? {
        ("user", name) => Some(json!({"apiGroup": GROUP, "kind": "User", "name": name})),
        ("group", name) => Some(json!({"apiGroup": GROUP, "kind": "Group", "name": name})),
        ("sa", who) => {
            let (namespace, name) = who.split_once(':')?;
            Some(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        _ => None,
    }
}

fn header(kind: String, name: &str, plus: &[&str], body: Value) -> Value {
    let mut labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    for label in plus {
        labels[format!("{GROUP}/aggregate-to-{}", label.trim_start_matches('+'))] = json!("true");
    }
    let mut metadata = json!({
        "name": name,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
        "labels": labels
    });
    if let Some((namespace, name)) = name.split_once('/') {
        metadata["namespace"] = json!(namespace);
        metadata["name"] = json!(name);
    }
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    if let (Some(map), Value::Object(body)) = (object.as_object_mut(), body) {
        map.extend(body);
    }
    object
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn table_parses_and_reads_as_documented() {
        let all = defaults().unwrap();
        let find = |kind: &str, name: &str| {
            all.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).cloned().unwrap()
        };
        let edit = find("ClusterRole", "edit");
        assert_eq!(edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
        assert!(edit["rules"].is_null());
        assert_eq!(
            find("ClusterRole", "system:basic-user")["rules"][1],
            json!({"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]})
        );
        let reader = find("Role", "extension-apiserver-authentication-reader");
        assert_eq!(reader["metadata"]["namespace"], "kube-system");
        assert_eq!(reader["rules"][0]["resourceNames"], json!(["extension-apiserver-authentication"]));
        let dns = find("ClusterRoleBinding", "system:coredns");
        assert_eq!(
            dns["subjects"],
            json!([{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}])
        );
        // Every binding names a role of the table.
        for binding in all.iter().filter(|o| o["roleRef"].is_object()) {
            let (kind, name) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
            assert!(all.iter().any(|o| o["kind"] == *kind && o["metadata"]["name"] == *name), "{name}");
        }
    }
}
