//! Nobody may grant what they do not hold: the check on writes of roles and bindings.
//!
//! A role may be written by whom holds all its rules or the verb `escalate` on it; a binding by whom holds all rules
//! of the role it names or the verb `bind` on that role. Members of `system:masters` hold everything.

use serde_json::Value;

use super::authorizer::{GROUP, fresh_index, fresh_sources};
use super::index::{Index, aggregated, rules_of};
use super::rule::{PolicyRule, missing, quoted};
use crate::identity::{Attributes, UserInfo};
use crate::kinds::value::{name, same, text};
use crate::status::Status;
use crate::strategy::Context;

async fn may(cx: &Context, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let question = Attributes {
        verb: verb.into(),
        is_resource: true,
        group: GROUP.into(),
        version: "v1".into(),
        resource: resource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Default::default()
    };
    cx.authorizer.authorize(&cx.user, &question).await.allowed
}

fn is_root(user: &UserInfo) -> bool {
    user.groups.iter().any(|g| g == "system:masters")
}

fn refuse(cx: &Context, name: &str, lacking: &[PolicyRule]) -> Status {
    let lines: Vec<String> = lacking.iter().map(ToString::to_string).collect();
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        cx.user.name,
        quoted(&cx.user.groups),
        lines.join("\n")
    );
    Status::forbidden(GROUP, &cx.resource.plural, name, &why)
}

fn lacking(index: &Index, cx: &Context, wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    missing(&index.rules(&cx.user, &cx.namespace), wanted)
}

/// Before a Role or ClusterRole is stored.
pub async fn check_role(cx: &Context, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let unchanged = old.is_some_and(|old| {
        same(&new["rules"], &old["rules"]) && same(&new["aggregationRule"], &old["aggregationRule"])
    });
    if is_root(&cx.user)
        || unchanged
        || may(cx, "escalate", &cx.resource.plural, &cx.namespace, name(new)).await
    {
        return Ok(());
    }
    let mut wanted = rules_of(new);
    if new["aggregationRule"].is_object() {
        // Aggregation can pull in anything later: only who holds all may ask for it.
        let all = vec!["*".to_owned()];
        wanted.push(PolicyRule {
            verbs: all.clone(),
            api_groups: all.clone(),
            resources: all.clone(),
            ..Default::default()
        });
        wanted.push(PolicyRule { verbs: all.clone(), non_resource_urls: all, ..Default::default() });
    }
    let lacking = lacking(&fresh_index(cx.objects.as_ref()).await?, cx, &wanted);
    if lacking.is_empty() { Ok(()) } else { Err(refuse(cx, name(new), &lacking)) }
}

/// Before a RoleBinding or ClusterRoleBinding is stored.
pub async fn check_binding(cx: &Context, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let unchanged = old.is_some_and(|old| {
        same(&new["subjects"], &old["subjects"]) && same(&new["roleRef"], &old["roleRef"])
    });
    if is_root(&cx.user) || unchanged {
        return Ok(());
    }
    let (kind, role) = (text(&new["roleRef"], "kind"), text(&new["roleRef"], "name"));
    let plural = if kind == "Role" { "roles" } else { "clusterroles" };
    if may(cx, "bind", plural, &cx.namespace, role).await {
        return Ok(());
    }
    let sources = fresh_sources(cx.objects.as_ref()).await?;
    let role_namespace = if kind == "Role" { cx.namespace.as_str() } else { "" };
    let Some(role_object) = sources.roles.get(&format!("{role_namespace}/{role}")) else {
        return Err(Status::not_found(GROUP, plural, role));
    };
    let wanted = aggregated(role_object, &sources.roles).unwrap_or_else(|| rules_of(role_object));
    let lacking = lacking(&Index::build(&sources), cx, &wanted);
    if lacking.is_empty() { Ok(()) } else { Err(refuse(cx, name(new), &lacking)) }
}
