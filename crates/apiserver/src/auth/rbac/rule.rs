//! One RBAC policy rule: what it allows, whether it covers another, how it reads in a message.
//!
//! Pure. Semantics follow the Kubernetes RBAC reference: `*` in verbs, groups and resources; `*/sub` matches one
//! subresource of every resource; an empty `resourceNames` means any name, a filled one never matches a request
//! without a name; a non-resource URL ending in `*` is a prefix.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::identity::Attributes;

/// A rule of a Role or ClusterRole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Verbs allowed; `*` is every verb.
    #[serde(deserialize_with = "or_empty")]
    pub verbs: Vec<String>,
    /// API groups; the empty string is the core group.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*` or `*/subresource`.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names the rule is limited to; empty means all.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths outside the resource tree.
    #[serde(
        rename = "nonResourceURLs",
        deserialize_with = "or_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub non_resource_urls: Vec<String>,
}

/// Stored objects may carry `null` where a list is meant.
pub(crate) fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(d)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl PolicyRule {
    /// Whether this rule alone allows the request.
    pub fn allows(&self, request: &Attributes) -> bool {
        if !has(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.non_resource_urls.iter().any(|url| url_matches(url, &request.path));
        }
        has(&self.api_groups, &request.group)
            && self.resources.iter().any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.resource_names.is_empty()
                || (!request.name.is_empty() && self.resource_names.contains(&request.name)))
    }

    /// Splits into rules with one verb, group, resource and name each: the unit of the escalation check.
    pub fn atoms(&self) -> Vec<PolicyRule> {
        let mut atoms = Vec::new();
        let any_name = [String::new()];
        let names: &[String] = if self.resource_names.is_empty() { &any_name } else { &self.resource_names };
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                atoms.push(PolicyRule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Default::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    for name in names {
                        atoms.push(PolicyRule {
                            verbs: vec![verb.clone()],
                            api_groups: vec![group.clone()],
                            resources: vec![resource.clone()],
                            resource_names: if name.is_empty() { vec![] } else { vec![name.clone()] },
                            ..Default::default()
                        });
                    }
                }
            }
        }
        atoms
    }

    /// Whether everything the atom allows is allowed by this rule.
    fn covers_atom(&self, atom: &PolicyRule) -> bool {
        let verbs = atom.verbs.iter().all(|v| has(&self.verbs, v));
        if let Some(url) = atom.non_resource_urls.first() {
            return verbs && self.non_resource_urls.iter().any(|own| own == url || url_matches(own, url));
        }
        let resources = atom.resources.iter().all(|wanted| {
            let (resource, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources.iter().any(|own| own == wanted || resource_matches(own, resource, sub))
        });
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|n| self.resource_names.contains(n)));
        verbs && resources && names && atom.api_groups.iter().all(|g| has(&self.api_groups, g))
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((r, s)) => s == subresource && !s.is_empty() && (r == "*" || r == resource),
    }
}

/// What of `wanted` is not held by `owned`, merged for reading; empty when all of it is.
pub fn missing(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut merged: Vec<PolicyRule> = Vec::new();
    for atom in wanted.iter().flat_map(PolicyRule::atoms) {
        if owned.iter().any(|rule| rule.covers_atom(&atom)) {
            continue;
        }
        let same = merged.iter_mut().find(|m| {
            m.api_groups == atom.api_groups
                && m.resources == atom.resources
                && m.resource_names == atom.resource_names
                && m.non_resource_urls == atom.non_resource_urls
        });
        match same {
            Some(m) if !m.verbs.contains(&atom.verbs[0]) => m.verbs.push(atom.verbs[0].clone()),
            Some(_) => {}
            None => merged.push(atom),
        }
    }
    merged
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = [
            ("NonResourceURLs", &self.non_resource_urls),
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(label, list)| format!("{label}:{}", quoted(list)))
        .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// A list the way upstream's messages print it: `["a" "b"]`.
pub(crate) fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> PolicyRule {
        let list = |s: &str| s.split(',').filter(|p| !p.is_empty()).map(|p| p.replace("core", "")).collect();
        PolicyRule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            ..Default::default()
        }
    }

    #[test]
    fn resource_rules() {
        // verbs groups resources names | verb group resource subresource name | allowed
        let table = "
            get core pods - | get core pods - x | yes
            get core pods - | list core pods - - | no
            get core pods - | get apps pods - x | no
            get core pods - | get core pods log x | no
            get core pods/log - | get core pods log x | yes
            get core */scale - | get core pods scale x | yes
            get core */scale - | get core pods - x | no
            * * * - | delete batch jobs status x | yes
            get core pods a,b | get core pods - b | yes
            get core pods a,b | get core pods - c | no
            list core pods a | list core pods - - | no";
        for line in table.trim().lines() {
            let cols: Vec<Vec<&str>> = line.split('|').map(|c| c.split_whitespace().collect()).collect();
            let dash = |s: &str| s.replace('-', "");
            let r = rule(cols[0][0], cols[0][1], cols[0][2], &dash(cols[0][3]));
            let q = &cols[1];
            let request = Attributes {
                verb: q[0].into(),
                is_resource: true,
                group: q[1].replace("core", ""),
                resource: q[2].into(),
                subresource: dash(q[3]),
                name: dash(q[4]),
                ..Default::default()
            };
            assert_eq!(r.allows(&request), cols[2][0] == "yes", "{line}");
        }
    }

    #[test]
    fn urls() {
        let r = PolicyRule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/api/*".into(), "/version".into()],
            ..Default::default()
        };
        for (path, ok) in [("/api/v1", true), ("/api", false), ("/version", true), ("/versions", false)] {
            let request = Attributes { verb: "get".into(), path: path.into(), ..Default::default() };
            assert_eq!(r.allows(&request), ok, "{path}");
        }
    }

    #[test]
    fn escalation_names_only_what_is_missing() {
        let owned = [rule("get,list", "core", "pods", ""), rule("*", "apps", "*", "")];
        let wanted =
            [rule("get,delete,watch", "core", "pods", ""), rule("create", "apps", "deployments", "")];
        let got: Vec<String> = missing(&owned, &wanted).iter().map(ToString::to_string).collect();
        assert_eq!(got, [r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#]);
        assert!(missing(&[rule("*", "*", "*", "")], &wanted).is_empty());
        assert!(!missing(&[rule("get", "core", "pods", "a")], &[rule("get", "core", "pods", "")]).is_empty());
    }
}
