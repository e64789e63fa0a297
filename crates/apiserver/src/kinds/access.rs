//! Roles and bindings: form, and that nobody grants what they do not hold.

use async_trait::async_trait;
use serde_json::Value;

use super::selector;
use super::value::{child, default, elements, list, text, unset};
use crate::auth::rbac::authorizer::GROUP;
use crate::auth::rbac::escalation;
use crate::field::{FieldError, FieldErrors};
use crate::status::Status;
use crate::strategy::{Context, NameRule, Strategy};

/// Roles and ClusterRoles.
pub struct Roles;

#[async_trait]
impl Strategy for Roles {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    async fn admit(&self, cx: &Context, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        escalation::check_role(cx, new, old).await
    }

    fn validate(&self, cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        for (i, rule) in list(object, "rules").iter().enumerate() {
            let path = format!("rules[{i}]");
            if list(rule, "verbs").is_empty() {
                let why = "verbs must contain at least one value";
                errors.push(FieldError::required(format!("{path}.verbs"), why));
            }
            if !list(rule, "nonResourceURLs").is_empty() {
                urls(cx, rule, &path, &mut errors);
                continue;
            }
            if list(rule, "apiGroups").is_empty() {
                let why = "resource rules must supply at least one api group";
                errors.push(FieldError::required(format!("{path}.apiGroups"), why));
            }
            if list(rule, "resources").is_empty() {
                let why = "resource rules must supply at least one resource";
                errors.push(FieldError::required(format!("{path}.resources"), why));
            }
        }
        let selectors = &object["aggregationRule"]["clusterRoleSelectors"];
        if object["aggregationRule"].is_object() && unset(selectors) {
            let path = "aggregationRule.clusterRoleSelectors";
            errors.push(FieldError::required(
                path,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            ));
        }
        for (i, wanted) in selectors.as_array().into_iter().flatten().enumerate() {
            let path = format!("aggregationRule.clusterRoleSelectors[{i}]");
            selector::validate(wanted, &path, &mut errors);
        }
        errors
    }
}

fn urls(cx: &Context, rule: &Value, path: &str, errors: &mut FieldErrors) {
    if cx.resource.namespaced {
        let why = "namespaced rules cannot apply to non-resource URLs";
        let at = format!("{path}.nonResourceURLs");
        errors.push(FieldError::invalid(at, rule["nonResourceURLs"].clone(), why));
    }
    let mixed = ["apiGroups", "resources", "resourceNames"].iter().any(|key| !unset(&rule[*key]));
    if mixed {
        let why = "rules cannot apply to both regular resources and non-resource URLs";
        let at = format!("{path}.nonResourceURLs");
        errors.push(FieldError::invalid(at, rule["nonResourceURLs"].clone(), why));
    }
}

/// RoleBindings and ClusterRoleBindings.
pub struct Bindings;

#[async_trait]
impl Strategy for Bindings {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        if let Some(role) = child(object, "roleRef") {
            default(role, "apiGroup", GROUP);
        }
        for subject in elements(object, "subjects") {
            if matches!(text(subject, "kind"), "User" | "Group") {
                default(subject, "apiGroup", GROUP);
            }
        }
    }

    async fn admit(&self, cx: &Context, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        escalation::check_binding(cx, new, old).await
    }

    fn validate(&self, cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        let role = &object["roleRef"];
        errors.one_of(role, "roleRef", "apiGroup", &[GROUP]);
        let kinds: &[&str] = if cx.resource.namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
        errors.one_of(role, "roleRef", "kind", kinds);
        errors.present(role, "roleRef", "name");
        for (i, subject) in list(object, "subjects").iter().enumerate() {
            let path = format!("subjects[{i}]");
            errors.present(subject, &path, "name");
            match text(subject, "kind") {
                "ServiceAccount" => {
                    if !unset(&subject["apiGroup"]) {
                        errors.one_of(subject, &path, "apiGroup", &[""]);
                    }
                    if !cx.resource.namespaced {
                        errors.present(subject, &path, "namespace");
                    }
                }
                "User" | "Group" => errors.one_of(subject, &path, "apiGroup", &[GROUP]),
                _ => errors.one_of(subject, &path, "kind", &["Group", "ServiceAccount", "User"]),
            }
        }
        errors
    }

    fn validate_update(&self, cx: &Context, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate(cx, new);
        if new["roleRef"] != old["roleRef"] {
            let why = "cannot change roleRef";
            errors.push(FieldError::invalid("roleRef", new["roleRef"].clone(), why));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::{Attributes, Authorizer, Decision, UserInfo};
    use crate::kinds::fake::{Fake, context};
    use crate::resource::Resource;
    use serde_json::json;
    use std::sync::Arc;

    struct Nothing;
    #[async_trait]
    impl Authorizer for Nothing {
        async fn authorize(&self, _: &UserInfo, _: &Attributes) -> Decision {
            Decision { allowed: false, reason: String::new() }
        }
    }

    /// User `tester` holds pods get/list in namespace `shop` and nothing else.
    fn cx(kind: &str, plural: &str) -> Context {
        let objects = Fake::with(&[
            (
                GROUP,
                "roles",
                json!({"metadata": {"name": "reader", "namespace": "shop"},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]}),
            ),
            (
                GROUP,
                "clusterroles",
                json!({"metadata": {"name": "admin"},
                "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
            ),
            (
                GROUP,
                "rolebindings",
                json!({"metadata": {"name": "reader", "namespace": "shop"},
                "subjects": [{"kind": "User", "name": "tester"}], "roleRef": {"kind": "Role", "name": "reader"}}),
            ),
        ]);
        Context {
            authorizer: Arc::new(Nothing),
            ..context(Resource::new(GROUP, "v1", kind, plural), "shop", objects)
        }
    }

    #[tokio::test]
    async fn nobody_grants_what_they_do_not_hold() {
        let cx = cx("Role", "roles");
        let role = |verb: &str| json!({"metadata": {"name": "x"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]});
        Roles.admit(&cx, &mut role("get"), None).await.unwrap();
        let refused = Roles.admit(&cx, &mut role("delete"), None).await.unwrap_err();
        assert_eq!(
            refused.message(),
            "roles.rbac.authorization.k8s.io \"x\" is forbidden: user \"tester\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        );
        let mut root = cx.clone();
        root.user.groups.push("system:masters".into());
        Roles.admit(&root, &mut role("delete"), None).await.unwrap();
    }

    #[tokio::test]
    async fn bindings_are_held_to_the_rules_of_their_role() {
        let cx = self::cx("RoleBinding", "rolebindings");
        let binding = |kind: &str, name: &str| json!({"metadata": {"name": "b"}, "roleRef": {"kind": kind, "name": name}});
        Bindings.admit(&cx, &mut binding("Role", "reader"), None).await.unwrap();
        assert_eq!(
            Bindings.admit(&cx, &mut binding("ClusterRole", "admin"), None).await.unwrap_err().code(),
            403
        );
        assert_eq!(Bindings.admit(&cx, &mut binding("Role", "none"), None).await.unwrap_err().code(), 404);
    }

    #[test]
    fn form() {
        let cx = self::cx("RoleBinding", "rolebindings");
        let mut binding = json!({"subjects": [{"kind": "User", "name": "a"}, {"kind": "Robot", "name": "b"}],
            "roleRef": {"kind": "Thing", "name": "c"}});
        Bindings.default(&mut binding);
        assert_eq!(binding["subjects"][0]["apiGroup"], GROUP);
        let text = Bindings.validate(&cx, &binding).to_string();
        assert!(text.contains("roleRef.kind: Unsupported value: \"Thing\""), "{text}");
        assert!(text.contains("subjects[1].kind: Unsupported value: \"Robot\""), "{text}");
    }
}
