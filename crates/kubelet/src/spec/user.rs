//! Who a container's process is: user, group and further groups, from the security context and the image.
//!
//! Names are looked up in the image's own `/etc/passwd` and `/etc/group` (given as text, so that this stays pure).

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod;
use crate::spec::SpecError;

/// The numbers of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, sorted, without duplicates.
    pub groups: Vec<u32>,
    /// Home directory, if the image's passwd knows the user.
    pub home: Option<String>,
}

/// The image's account files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accounts<'a> {
    /// `/etc/passwd`.
    pub passwd: &'a str,
    /// `/etc/group`.
    pub group: &'a str,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Accounts<'a> {
    fn users(&self) -> impl Iterator<Item = Account<'a>> {
        self.passwd.lines().filter_map(|line| {
            let mut f = line.split(':');
            let (name, _, uid, gid, _, home) =
                (f.next()?, f.next()?, f.next()?, f.next()?, f.next(), f.next().unwrap_or(""));
            Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
        })
    }

    fn group_id(&self, name: &str) -> Option<u32> {
        self.groups().find(|(group, ..)| *group == name).map(|(_, gid, _)| gid)
    }

    fn groups(&self) -> impl Iterator<Item = (&'a str, u32, &'a str)> {
        self.group.lines().filter_map(|line| {
            let mut f = line.split(':');
            let (name, _, gid, members) = (f.next()?, f.next()?, f.next()?, f.next().unwrap_or(""));
            Some((name, gid.parse().ok()?, members))
        })
    }

    fn groups_of(&self, user: &'a str) -> impl Iterator<Item = u32> {
        self.groups()
            .filter(move |(.., members)| members.split(',').any(|m| m == user))
            .map(|(_, gid, _)| gid)
    }
}

fn field<T: Copy>(
    pod: &Pod,
    container: &Container,
    of_container: impl Fn(&k8s_openapi::api::core::v1::SecurityContext) -> Option<T>,
    of_pod: impl Fn(&k8s_openapi::api::core::v1::PodSecurityContext) -> Option<T>,
) -> Option<T> {
    let own = container.security_context.as_ref().and_then(of_container);
    own.or_else(|| pod::spec(pod).security_context.as_ref().and_then(of_pod))
}

/// Resolves the identity of a container's process.
///
/// # Errors
/// When the image's user is unknown, or `runAsNonRoot` forbids it; the texts are upstream's.
pub fn identity(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    accounts: Accounts<'_>,
) -> Result<Identity, SpecError> {
    let as_user = field(pod, container, |c| c.run_as_user, |p| p.run_as_user);
    let as_group = field(pod, container, |c| c.run_as_group, |p| p.run_as_group);
    if field(pod, container, |c| c.run_as_non_root, |p| p.run_as_non_root) == Some(true) {
        check_non_root(pod, container, as_user, image_user)?;
    }
    let number = |n: i64| {
        u32::try_from(n).map_err(|_| SpecError::Invalid(format!("user or group id {n} is out of range")))
    };
    let (user_text, group_text) = match as_user {
        Some(uid) => (number(uid)?.to_string(), None),
        None => match image_user.split_once(':') {
            Some((user, group)) => (user.to_string(), Some(group)),
            None => (image_user.to_string(), None),
        },
    };
    let user_text = if user_text.is_empty() { "0" } else { &user_text };
    let account = find_account(accounts, user_text);
    let uid = match (&account, user_text.parse::<u32>()) {
        (Some(account), _) => account.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => {
            return Err(SpecError::Invalid(format!(
                "unable to find user {user_text}: no matching entries in passwd file"
            )));
        }
    };
    let gid = match (as_group, group_text) {
        (Some(gid), _) => number(gid)?,
        (None, Some(group)) => accounts.group_id(group).or_else(|| group.parse().ok()).ok_or_else(|| {
            SpecError::Invalid(format!("unable to find group {group}: no matching entries in group file"))
        })?,
        (None, None) => account.as_ref().map_or(0, |a| a.gid),
    };
    let mut groups = vec![gid];
    let context = pod::spec(pod).security_context.as_ref();
    let merge = context.and_then(|c| c.supplemental_groups_policy.as_deref()) != Some("Strict");
    if let Some(account) = account.as_ref().filter(|_| merge && group_text.is_none()) {
        groups.extend(accounts.groups_of(account.name));
    }
    if let Some(context) = context {
        for group in context.supplemental_groups.iter().flatten().chain(context.fs_group.iter()) {
            groups.push(number(*group)?);
        }
    }
    groups.sort_unstable();
    groups.dedup();
    let home = account.map(|a| a.home.to_string()).filter(|h| !h.is_empty());
    Ok(Identity { uid, gid, groups, home })
}

fn find_account<'a>(accounts: Accounts<'a>, user: &str) -> Option<Account<'a>> {
    let number = user.parse::<u32>().ok();
    accounts.users().find(|a| a.name == user).or_else(|| accounts.users().find(|a| Some(a.uid) == number))
}

fn check_non_root(
    pod: &Pod,
    container: &Container,
    as_user: Option<i64>,
    image_user: &str,
) -> Result<(), SpecError> {
    let at = format!("(pod: \"{}\", container: {})", pod::full_name(pod), container.name);
    let user = image_user.split(':').next().unwrap_or_default();
    match (as_user, user.parse::<u32>()) {
        (Some(0), _) => Err(SpecError::Invalid(format!("container's runAsUser breaks non-root policy {at}"))),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => {
            Err(SpecError::Invalid(format!("container has runAsNonRoot and image will run as root {at}")))
        }
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if user.is_empty() => {
            Err(SpecError::Invalid(format!("container has runAsNonRoot and image will run as root {at}")))
        }
        (None, Err(_)) => Err(SpecError::Invalid(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {at}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::pod::tests::pod;
    use serde_json::json;

    const ACCOUNTS: Accounts<'static> = Accounts {
        passwd: "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/false\nbroken\n",
        group: "root:x:0:\nwww:x:34:\nadm:x:4:www,other\ntape:x:26:www\n",
    };

    fn resolve(
        pod_context: serde_json::Value,
        context: serde_json::Value,
        image_user: &str,
    ) -> Result<Identity, String> {
        let pod = pod(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "securityContext": pod_context, "containers": [{"name": "c", "securityContext": context}]}}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        identity(&pod, container, image_user, ACCOUNTS).map_err(|e| e.to_string())
    }

    fn ids(uid: u32, gid: u32, groups: &[u32], home: Option<&str>) -> Result<Identity, String> {
        Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.map(Into::into) })
    }

    #[test]
    fn the_image_decides_unless_the_pod_does() {
        assert_eq!(resolve(json!({}), json!({}), ""), ids(0, 0, &[0], Some("/root")));
        assert_eq!(resolve(json!({}), json!({}), "www"), ids(33, 34, &[4, 26, 34], Some("/var/www")));
        assert_eq!(resolve(json!({}), json!({}), "33"), ids(33, 34, &[4, 26, 34], Some("/var/www")));
        assert_eq!(resolve(json!({}), json!({}), "33:4"), ids(33, 4, &[4], Some("/var/www")));
        assert_eq!(resolve(json!({}), json!({}), "www:adm"), ids(33, 4, &[4], Some("/var/www")));
        assert_eq!(resolve(json!({"runAsUser": 1000}), json!({}), "www"), ids(1000, 0, &[0], None));
        assert_eq!(
            resolve(json!({"runAsUser": 1}), json!({"runAsUser": 33}), ""),
            ids(33, 34, &[4, 26, 34], Some("/var/www"))
        );
        assert_eq!(
            resolve(json!({"runAsGroup": 7, "supplementalGroups": [9, 8], "fsGroup": 9}), json!({}), "5"),
            ids(5, 7, &[7, 8, 9], None)
        );
        assert_eq!(
            resolve(json!({"supplementalGroupsPolicy": "Strict"}), json!({}), "www"),
            ids(33, 34, &[34], Some("/var/www"))
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(resolve(json!({}), json!({}), "nobody").unwrap_err().contains("unable to find user nobody"));
        assert!(
            resolve(json!({"runAsNonRoot": true}), json!({}), "")
                .unwrap_err()
                .contains("image will run as root")
        );
        assert!(
            resolve(json!({"runAsNonRoot": true}), json!({}), "www")
                .unwrap_err()
                .contains("non-numeric user (www)")
        );
        assert!(
            resolve(json!({"runAsNonRoot": true}), json!({"runAsUser": 0}), "")
                .unwrap_err()
                .contains("breaks non-root policy")
        );
        assert!(resolve(json!({"runAsNonRoot": true}), json!({}), "33").is_ok());
        assert!(resolve(json!({}), json!({"runAsUser": 5_000_000_000i64}), "").is_err());
    }
}
