//! Acting as somebody else: the `Impersonate-*` headers and the check that the real user may.
//!
//! Every part (user, each group, uid, each extra value) is one question to the authorizer with verb `impersonate`.

use std::collections::BTreeMap;

use http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::{forbidden, token};
use crate::identity::{Attributes, Authorizer, UserInfo};
use crate::status::Status;

const EXTRA: &str = "impersonate-extra-";

/// Who the request wants to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
}

/// Reads the headers; `None` without any. Groups, uid or extra without a user are an error.
pub fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    let mut wanted = Wanted {
        name: texts(headers, "impersonate-user").into_iter().next().unwrap_or_default(),
        uid: texts(headers, "impersonate-uid").into_iter().next().unwrap_or_default(),
        groups: texts(headers, "impersonate-group"),
        extra: BTreeMap::new(),
    };
    for key in headers.keys() {
        if let Some(name) = key.as_str().strip_prefix(EXTRA) {
            let decoded = percent_decode_str(name).decode_utf8_lossy().to_lowercase();
            wanted.extra.entry(decoded).or_default().extend(texts(headers, key.as_str()));
        }
    }
    if wanted.name.is_empty() {
        let nothing = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        return if nothing {
            Ok(None)
        } else {
            Err(Status::internal("impersonation of groups, uid or extra without impersonating a user"))
        };
    }
    Ok(Some(wanted))
}

impl Wanted {
    fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    fn questions(&self) -> Vec<Attributes> {
        let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
            verb: "impersonate".into(),
            is_resource: true,
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            path: String::new(),
        };
        let mut all = vec![match self.service_account() {
            Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name),
            None => ask("", "users", "", "", &self.name),
        }];
        all.extend(self.groups.iter().map(|g| ask("", "groups", "", "", g)));
        if !self.uid.is_empty() {
            all.push(ask("authentication.k8s.io", "uids", "", "", &self.uid));
        }
        for (key, values) in &self.extra {
            all.extend(values.iter().map(|v| ask("authentication.k8s.io", "userextras", key, "", v)));
        }
        all
    }

    /// The user acted as, with the groups everybody has.
    pub fn user(self) -> UserInfo {
        let mut groups = self.groups.clone();
        if groups.is_empty()
            && let Some((namespace, _)) = self.service_account()
        {
            groups = token::groups(namespace);
        }
        let implied =
            if self.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
        let known = ["system:authenticated", "system:unauthenticated"];
        if !groups.iter().any(|g| known.contains(&g.as_str())) {
            groups.push(implied.into());
        }
        UserInfo { name: self.name, uid: self.uid, groups, extra: self.extra }
    }
}

/// The user that a request acts as by its headers, if the real one may; `None` without such headers.
///
/// # Errors
/// 403, and 500 for headers that name no user.
pub async fn acting(
    headers: &HeaderMap,
    real: &UserInfo,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    check(real, &wanted, authorizer).await?;
    Ok(Some(wanted.user()))
}

/// Whether the real user may be that one.
pub async fn check(real: &UserInfo, wanted: &Wanted, authorizer: &dyn Authorizer) -> Result<(), Status> {
    for question in wanted.questions() {
        let decision = authorizer.authorize(real, &question).await;
        if !decision.allowed {
            return Err(forbidden(real, &question, &decision.reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::identity::Decision;

    struct OnlyJane;
    #[async_trait::async_trait]
    impl Authorizer for OnlyJane {
        async fn authorize(&self, _: &UserInfo, a: &Attributes) -> Decision {
            Decision { allowed: a.name == "jane" || a.resource == "userextras", reason: String::new() }
        }
    }

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (k, v) in list {
            map.append(http::HeaderName::from_bytes(k.as_bytes()).unwrap(), v.parse().unwrap());
        }
        map
    }

    #[tokio::test]
    async fn parts_are_checked_one_by_one() {
        let real = UserInfo::new("bob", &["system:authenticated"]);
        let ok =
            wanted(&headers(&[("Impersonate-User", "jane"), ("Impersonate-Extra-Acme%2Fx", "1")])).unwrap();
        let ok = ok.unwrap();
        check(&real, &ok, &OnlyJane).await.unwrap();
        let user = ok.user();
        assert_eq!(user.groups, ["system:authenticated"]);
        assert_eq!(user.extra["acme/x"], ["1"]);

        let bad = wanted(&headers(&[("Impersonate-User", "jane"), ("Impersonate-Group", "system:masters")]));
        let refused = check(&real, &bad.unwrap().unwrap(), &OnlyJane).await.unwrap_err();
        assert_eq!(
            refused.message(),
            r#"groups "system:masters" is forbidden: User "bob" cannot impersonate resource "groups" in API group "" at the cluster scope"#
        );
        assert_eq!(wanted(&headers(&[])).unwrap(), None);
        assert!(wanted(&headers(&[("Impersonate-Group", "x")])).is_err());
    }

    #[test]
    fn service_accounts_get_their_groups() {
        let w = wanted(&headers(&[("Impersonate-User", "system:serviceaccount:ns:sa")])).unwrap().unwrap();
        assert_eq!(w.questions()[0].resource, "serviceaccounts");
        assert_eq!(
            w.user().groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
    }
}
