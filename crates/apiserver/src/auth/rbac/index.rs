//! Who may do what, computed from the stored Roles, ClusterRoles and their bindings.
//!
//! One entry per subject, so that a decision touches only the rules of the asking user and its groups. Rules of
//! an aggregated ClusterRole are the union of the ClusterRoles its selectors match, worked out here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::rule::{PolicyRule, or_empty};
use crate::identity::{Attributes, UserInfo};
use crate::kinds::selector;

/// The stored objects the index is made of, by `namespace/name` (`/name` for those of the cluster).
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Roles and ClusterRoles.
    pub roles: BTreeMap<String, Arc<Value>>,
    /// RoleBindings and ClusterRoleBindings.
    pub bindings: BTreeMap<String, Arc<Value>>,
}

/// Rules granted to a subject.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Namespace the grant is limited to; `None`: the whole cluster.
    pub namespace: Option<String>,
    /// The rules of the role.
    pub rules: Arc<[PolicyRule]>,
    /// The sentence for people: which binding of which role.
    pub via: String,
}

/// Rules per subject.
#[derive(Debug, Default)]
pub struct Index {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Deserialize, Default)]
struct RoleRef {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    #[serde(deserialize_with = "or_empty")]
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

/// The rules written in a role object; malformed ones grant nothing.
pub fn rules_of(role: &Value) -> Vec<PolicyRule> {
    let rules = role["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    rules.iter().filter_map(|r| PolicyRule::deserialize(r).ok()).collect()
}

/// The rules an aggregated ClusterRole should have; `None` for one without `aggregationRule`.
pub fn aggregated(role: &Value, roles: &BTreeMap<String, Arc<Value>>) -> Option<Vec<PolicyRule>> {
    aggregate(role, roles, 4)
}

/// Aggregates of aggregates (view into edit into admin) are followed, `depth` bounds circles.
fn aggregate(role: &Value, roles: &BTreeMap<String, Arc<Value>>, depth: usize) -> Option<Vec<PolicyRule>> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    let others = roles.iter().filter(|(key, other)| {
        key.starts_with('/')
            && other["metadata"]["name"] != role["metadata"]["name"]
            && selectors.iter().any(|s| selector::matches(s, &other["metadata"]["labels"]))
    });
    for (_, other) in others.filter(|_| depth > 0) {
        for rule in aggregate(other, roles, depth - 1).unwrap_or_else(|| rules_of(other)) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    Some(rules)
}

impl Index {
    /// Computes the index.
    pub fn build(sources: &Sources) -> Self {
        let mut resolved: HashMap<&str, Arc<[PolicyRule]>> = HashMap::new();
        for (key, role) in &sources.roles {
            let rules = aggregated(role, &sources.roles).unwrap_or_else(|| rules_of(role));
            resolved.insert(key, rules.into());
        }
        let mut index = Index::default();
        for (key, binding) in &sources.bindings {
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            index.add(namespace, name, binding, &resolved);
        }
        index
    }

    fn add(
        &mut self,
        namespace: &str,
        name: &str,
        binding: &Value,
        roles: &HashMap<&str, Arc<[PolicyRule]>>,
    ) {
        let Ok(parsed) = Binding::deserialize(binding) else { return };
        let role = &parsed.role_ref;
        let role_namespace = if role.kind == "Role" { namespace } else { "" };
        let Some(rules) = roles.get(format!("{role_namespace}/{}", role.name).as_str()) else { return };
        let (kind, full) = if namespace.is_empty() {
            ("ClusterRoleBinding", format!("{name:?}"))
        } else {
            ("RoleBinding", format!("{:?}", format!("{name}/{namespace}")))
        };
        for subject in &parsed.subjects {
            let sa_namespace = if subject.namespace.is_empty() { namespace } else { &subject.namespace };
            let (table, key, shown) = match subject.kind.as_str() {
                "Group" => (&mut self.groups, subject.name.clone(), format!("{:?}", subject.name)),
                "ServiceAccount" => (
                    &mut self.users,
                    format!("system:serviceaccount:{sa_namespace}:{}", subject.name),
                    format!("{:?}", format!("{}/{sa_namespace}", subject.name)),
                ),
                "User" => (&mut self.users, subject.name.clone(), format!("{:?}", subject.name)),
                _ => continue,
            };
            table.entry(key).or_default().push(Grant {
                namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                rules: rules.clone(),
                via: format!(
                    "RBAC: allowed by {kind} {full} of {} {:?} to {} {shown}",
                    role.kind, role.name, subject.kind
                ),
            });
        }
    }

    /// Every grant of the user that counts in `namespace`; cluster-wide ones always do.
    pub fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name).into_iter().flatten();
        let groups = user.groups.iter().filter_map(|g| self.groups.get(g)).flatten();
        own.chain(groups).filter(move |g| match &g.namespace {
            None => true,
            Some(ns) => !namespace.is_empty() && ns == namespace,
        })
    }

    /// The grant that allows the request, if any.
    pub fn allows<'a>(&'a self, user: &'a UserInfo, request: &'a Attributes) -> Option<&'a Grant> {
        let namespace = if request.is_resource { request.namespace.as_str() } else { "" };
        self.grants(user, namespace).find(|g| g.rules.iter().any(|r| r.allows(request)))
    }

    /// All rules the user holds in a namespace (empty: cluster-wide only).
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        self.grants(user, namespace).flat_map(|g| g.rules.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::auth::rbac::policy;
    use serde_json::json;

    pub(crate) fn default_sources() -> Sources {
        let mut sources = Sources::default();
        for object in policy::defaults().unwrap() {
            let meta = &object["metadata"];
            let key =
                format!("{}/{}", meta["namespace"].as_str().unwrap_or(""), meta["name"].as_str().unwrap());
            if object["roleRef"].is_object() {
                sources.bindings.insert(key, Arc::new(object));
            } else {
                sources.roles.insert(key, Arc::new(object));
            }
        }
        sources
    }

    fn request(verb: &str, group: &str, resource: &str, namespace: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            is_resource: true,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..Default::default()
        }
    }

    #[test]
    fn default_policy_decides() {
        let mut sources = default_sources();
        for (name, role) in [("dev", "edit"), ("boss", "admin"), ("guest", "view")] {
            let binding = json!({"metadata": {"name": name, "namespace": "shop"},
                "subjects": [{"kind": "User", "name": name}], "roleRef": {"kind": "ClusterRole", "name": role}});
            sources.bindings.insert(format!("shop/{name}"), Arc::new(binding));
        }
        let index = Index::build(&sources);
        let table = "
            dev create apps deployments shop yes
            dev create apps deployments other no
            dev get core pods/log shop yes
            dev create core pods/exec shop yes
            dev create rbac.authorization.k8s.io roles shop no
            boss create rbac.authorization.k8s.io roles shop yes
            boss get core secrets shop yes
            guest get core secrets shop no
            guest list core pods shop yes
            guest delete core pods shop no
            system:serviceaccount:kube-system:coredns watch discovery.k8s.io endpointslices - yes
            system:serviceaccount:kube-system:coredns delete core pods - no
            system:kube-scheduler create core pods/binding shop yes";
        for line in table.trim().lines() {
            let c: Vec<&str> = line.split_whitespace().collect();
            let user = UserInfo::new(c[0], &["system:authenticated"]);
            let attributes = request(c[1], &c[2].replace("core", ""), c[3], c[4].trim_start_matches('-'));
            assert_eq!(index.allows(&user, &attributes).is_some(), c[5] == "yes", "{line}");
        }
        let root = UserInfo::new("root", &["system:masters"]);
        let request = request("delete", "x.example", "things", "");
        let grant = index.allows(&root, &request).unwrap();
        assert_eq!(
            grant.via,
            r#"RBAC: allowed by ClusterRoleBinding "cluster-admin" of ClusterRole "cluster-admin" to Group "system:masters""#
        );
    }

    #[test]
    fn aggregation_follows_labels() {
        let mut sources = default_sources();
        let extra = json!({"metadata": {"name": "crd-view",
            "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
            "rules": [{"apiGroups": ["x.example"], "resources": ["things"], "verbs": ["get"]}]});
        sources.roles.insert("/crd-view".into(), Arc::new(extra));
        for role in ["view", "edit", "admin"] {
            let rules = aggregated(&sources.roles[&format!("/{role}")], &sources.roles).unwrap();
            assert!(rules.iter().any(|r| r.resources == ["things"]), "{role}");
        }
    }
}
