//! The security context: capabilities, seccomp, privileges, and what must be refused because it cannot be kept.

use std::collections::HashSet;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxSeccomp};

use super::SpecError;
use crate::pod;

/// The container's own security context, or an empty one.
pub fn context(container: &Container) -> SecurityContext {
    container.security_context.clone().unwrap_or_default()
}

/// `privileged: true`.
pub fn privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
}

/// Every capability that this kernel and the OCI specification know.
pub fn all_capabilities() -> HashSet<Capability> {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
    let last = last.and_then(|t| t.trim().parse::<usize>().ok()).unwrap_or(CAPABILITIES.len() - 1);
    CAPABILITIES.iter().take(last + 1).copied().collect()
}

/// In the kernel's numbering (`linux/capability.h`).
const CAPABILITIES: [Capability; 41] = {
    use Capability::*;
    [
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        Kill,
        Setgid,
        Setuid,
        Setpcap,
        LinuxImmutable,
        NetBindService,
        NetBroadcast,
        NetAdmin,
        NetRaw,
        IpcLock,
        IpcOwner,
        SysModule,
        SysRawio,
        SysChroot,
        SysPtrace,
        SysPacct,
        SysAdmin,
        SysBoot,
        SysNice,
        SysResource,
        SysTime,
        SysTtyConfig,
        Mknod,
        Lease,
        AuditWrite,
        AuditControl,
        Setfcap,
        MacOverride,
        MacAdmin,
        Syslog,
        WakeAlarm,
        BlockSuspend,
        AuditRead,
        Perfmon,
        Bpf,
        CheckpointRestore,
    ]
};

/// The capability sets of a container: the default set changed by `add` and `drop`, or everything when privileged.
///
/// # Errors
/// For an unknown capability name.
pub fn capabilities(
    container: &Container,
    default: &HashSet<Capability>,
) -> Result<LinuxCapabilities, SpecError> {
    let mut set = default.clone();
    if privileged(container) {
        set = all_capabilities();
    } else if let Some(change) = context(container).capabilities {
        let names = |list: Option<Vec<String>>| list.unwrap_or_default();
        let (add, drop) = (names(change.add), names(change.drop));
        if drop.iter().any(|n| n.eq_ignore_ascii_case("all")) {
            set.clear();
        }
        if add.iter().any(|n| n.eq_ignore_ascii_case("all")) {
            set = all_capabilities();
        }
        for name in drop.iter().filter(|n| !n.eq_ignore_ascii_case("all")) {
            set.remove(&parse(name)?);
        }
        for name in add.iter().filter(|n| !n.eq_ignore_ascii_case("all")) {
            set.insert(parse(name)?);
        }
    }
    // No inheritable and no ambient set: a process that is not root gains nothing by exec, as in Docker.
    let none = HashSet::new;
    let sets =
        LinuxCapabilitiesBuilder::default().bounding(set.clone()).effective(set.clone()).permitted(set);
    sets.inheritable(none()).ambient(none()).build().map_err(SpecError::from)
}

fn parse(name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    Capability::from_str(bare).map_err(|_| SpecError::Invalid(format!("unknown capability \"CAP_{bare}\"")))
}

/// The seccomp filter of a container: none when unconfined or privileged.
///
/// # Errors
/// For `Localhost` profiles, which this node does not have.
pub fn seccomp(
    pod: &Pod,
    container: &Container,
    default: impl FnOnce() -> LinuxSeccomp,
) -> Result<Option<LinuxSeccomp>, SpecError> {
    if privileged(container) {
        return Ok(None);
    }
    let own = context(container).seccomp_profile;
    let of_pod = || pod::spec(pod).security_context.as_ref().and_then(|c| c.seccomp_profile.clone());
    let Some(profile) = own.or_else(of_pod) else { return Ok(None) };
    match profile.type_.as_str() {
        "Unconfined" => Ok(None),
        "RuntimeDefault" => Ok(Some(default())),
        "Localhost" => Err(SpecError::Invalid(format!(
            "cannot load seccomp profile \"{}\": Localhost profiles are not supported by this node",
            profile.localhost_profile.unwrap_or_default()
        ))),
        other => Err(SpecError::Invalid(format!("unknown seccomp profile type \"{other}\""))),
    }
}

/// Refuses what is asked for and cannot be honoured here.
///
/// # Errors
/// With the reason, in the words that a Pod's event should show.
pub fn check(pod: &Pod, container: &Container) -> Result<(), SpecError> {
    let context = context(container);
    let of_pod = pod::spec(pod).security_context.as_ref();
    let apparmor = context.app_armor_profile.or_else(|| of_pod.and_then(|c| c.app_armor_profile.clone()));
    if apparmor.is_some_and(|p| p.type_ != "Unconfined") {
        return Err(SpecError::Invalid(
            "Cannot enforce AppArmor: AppArmor is not enabled on the host".into(),
        ));
    }
    if context.allow_privilege_escalation == Some(false) && context.privileged == Some(true) {
        return Err(SpecError::Invalid(
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true".into(),
        ));
    }
    if pod::spec(pod).host_users == Some(false) {
        return Err(SpecError::Invalid(
            "user namespaces (hostUsers: false) are not supported by this node".into(),
        ));
    }
    if pod::spec(pod).resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return Err(SpecError::Invalid("resource claims are not supported by this node".into()));
    }
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err(SpecError::Invalid(
            "block volumes (volumeDevices) are not supported by this node".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn default() -> HashSet<Capability> {
        [Capability::Chown, Capability::NetRaw, Capability::Kill].into()
    }

    fn effective(context: serde_json::Value) -> Result<HashSet<Capability>, String> {
        let container = serde_json::from_value(json!({"name": "c", "securityContext": context})).unwrap();
        let sets = capabilities(&container, &default()).map_err(|e| e.to_string())?;
        assert_eq!(sets.effective(), sets.bounding());
        Ok(sets.effective().clone().unwrap())
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        assert_eq!(effective(json!({})).unwrap(), default());
        let caps =
            effective(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}})).unwrap();
        assert_eq!(caps, [Capability::NetBindService].into());
        let caps = effective(json!({"capabilities": {"drop": ["CAP_NET_RAW"]}})).unwrap();
        assert_eq!(caps, [Capability::Chown, Capability::Kill].into());
        let caps = effective(json!({"capabilities": {"add": ["all"], "drop": ["kill"]}})).unwrap();
        assert!(caps.contains(&Capability::SysAdmin) && !caps.contains(&Capability::Kill));
        assert!(effective(json!({"privileged": true})).unwrap().contains(&Capability::SysAdmin));
        assert_eq!(
            effective(json!({"capabilities": {"add": ["FLY"]}})).unwrap_err(),
            "unknown capability \"CAP_FLY\""
        );
    }

    #[test]
    fn profiles_that_cannot_be_kept_are_refused() {
        let pod = crate::pod::tests::pod(json!({"metadata": {}, "spec": {"containers": [{"name": "c"}],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}}));
        let container = |context: serde_json::Value| -> Container {
            serde_json::from_value(json!({"name": "c", "securityContext": context})).unwrap()
        };
        let profile = LinuxSeccomp::default;
        assert!(seccomp(&pod, &container(json!({})), profile).unwrap().is_some());
        let unconfined = json!({"seccompProfile": {"type": "Unconfined"}});
        assert!(seccomp(&pod, &container(unconfined), profile).unwrap().is_none());
        assert!(seccomp(&pod, &container(json!({"privileged": true})), profile).unwrap().is_none());
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}});
        assert!(seccomp(&pod, &container(local), profile).is_err());
        assert!(check(&pod, &container(json!({"appArmorProfile": {"type": "RuntimeDefault"}}))).is_err());
        assert!(check(&pod, &container(json!({"appArmorProfile": {"type": "Unconfined"}}))).is_ok());
    }
}
