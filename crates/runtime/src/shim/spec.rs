//! From the caller's OCI spec to the one that `libcontainer` gets: filled in, checked, and without what we do ourselves.
//!
//! Fields that the library ignores or trips over are taken out and honoured elsewhere (seccomp, capabilities, OOM score,
//! working directory), clamped (resource limits), or refused; nothing asked for is dropped silently.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    LinuxCapabilities, LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount,
    PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};
use seccompiler::BpfProgram;

use crate::api::{Error, Result};

/// What the shim adds to a spec.
pub struct Surroundings<'a> {
    pub rootfs: &'a Path,
    pub cgroup: &'a str,
    /// Descriptors of the sandbox's net, ipc and uts namespaces.
    pub namespaces: [RawFd; 3],
    pub shm: &'a Path,
    /// True on a host with the unified hierarchy only.
    pub unified: bool,
}

/// What the container's processes get from us rather than from the library.
#[derive(Debug, Clone)]
pub struct Guard {
    pub capabilities: Option<LinuxCapabilities>,
    pub filters: Vec<BpfProgram>,
    pub oom_score_adj: i32,
    /// The process as the caller described it: the model of further ones.
    pub process: Process,
    /// Device rules, for the unified hierarchy.
    pub devices: Vec<LinuxDeviceCgroup>,
    /// The container has its own pid namespace, so its processes end with the first one.
    pub own_pid_namespace: bool,
}

/// Completes `spec` in place.
pub fn complete(spec: &mut Spec, with: &Surroundings<'_>) -> Result<Guard> {
    refuse(spec, with)?;
    fill_root(spec, with);
    let mut process = spec.process().clone().ok_or_else(|| invalid("no process"))?;
    clamp_rlimits(&mut process);
    let mut linux = spec.linux().clone().ok_or_else(|| invalid("no linux section"))?;
    let own_pid_namespace = fill_namespaces(linux.namespaces_mut().get_or_insert_default(), with);
    linux.set_cgroups_path(Some(PathBuf::from(with.cgroup)));
    let resources = linux.resources_mut().get_or_insert_default();
    let devices = deny_first(resources)?;
    let filters = match linux.seccomp() {
        Some(profile) => {
            crate::seccomp::compile(profile).map_err(|error| Error::Invalid(error.to_string()))?
        }
        None => Vec::new(),
    };
    linux.set_seccomp(None);
    let guard = Guard {
        capabilities: process.capabilities().clone(),
        filters,
        oom_score_adj: process.oom_score_adj().unwrap_or(0),
        process: process.clone(),
        devices,
        own_pid_namespace,
    };
    for mount in spec.mounts_mut().iter_mut().flatten() {
        share_memory(mount, with.shm);
    }
    spec.set_process(Some(library_process(process)))
        .set_linux(Some(linux))
        .set_hostname(None)
        .set_domainname(None);
    Ok(guard)
}

/// The part of a process that the library sees: capabilities, OOM score and working directory are ours.
pub fn library_process(mut process: Process) -> Process {
    process.set_capabilities(None).set_oom_score_adj(None).set_cwd(PathBuf::new());
    process
}

fn invalid(what: &str) -> Error {
    Error::Invalid(what.to_owned())
}

fn refuse(spec: &Spec, with: &Surroundings<'_>) -> Result<()> {
    let process = spec.process().as_ref().ok_or_else(|| invalid("no process"))?;
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return Err(invalid("SELinux labels are not supported"));
    }
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Exec { code: 126, message: "exec: no command specified".to_owned() });
    }
    for mount in spec.mounts().iter().flatten() {
        let has = |wanted: &str| mount.options().iter().flatten().any(|option| option == wanted);
        if has("shared") || has("rshared") {
            return Err(invalid("bidirectional mount propagation is not supported"));
        }
        if mount.typ().as_deref() == Some("cgroup") && !with.unified && (has("ro") || has("rro")) {
            return Err(invalid("a read-only cgroup mount is not possible on a v1 or hybrid host"));
        }
    }
    Ok(())
}

fn fill_root(spec: &mut Spec, with: &Surroundings<'_>) {
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(with.rootfs.to_owned());
    spec.set_root(Some(root));
}

/// Puts the sandbox's namespaces in; returns whether the container has a pid namespace of its own.
fn fill_namespaces(list: &mut Vec<LinuxNamespace>, with: &Surroundings<'_>) -> bool {
    use LinuxNamespaceType as Ns;
    let shared = [Ns::Network, Ns::Ipc, Ns::Uts];
    list.retain(|namespace| !shared.contains(&namespace.typ()));
    for (kind, fd) in shared.into_iter().zip(with.namespaces) {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(Some(PathBuf::from(format!("/proc/self/fd/{fd}"))));
        list.push(namespace);
    }
    if !list.iter().any(|namespace| namespace.typ() == Ns::Mount) {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(Ns::Mount);
        list.push(namespace);
    }
    list.iter().any(|namespace| namespace.typ() == Ns::Pid && namespace.path().is_none())
}

/// Without CAP_SYS_RESOURCE a hard limit can only be lowered: ask for what there is rather than fail.
fn clamp_rlimits(process: &mut Process) {
    if super::caps::effective(super::caps::SYS_RESOURCE) {
        return;
    }
    let clamped = process.rlimits().iter().flatten().map(|limit| {
        let hard = hard_limit(limit.typ()).unwrap_or(limit.hard()).min(limit.hard());
        let builder = PosixRlimitBuilder::default().typ(limit.typ());
        builder.hard(hard).soft(limit.soft().min(hard)).build().unwrap_or(*limit)
    });
    process.set_rlimits(Some(clamped.collect()));
}

fn hard_limit(kind: PosixRlimitType) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer; the enumeration has the kernel's own numbers.
    let done = unsafe { libc::getrlimit(kind as libc::__rlimit_resource_t, &raw mut limit) };
    (done == 0).then_some(limit.rlim_max)
}

/// Makes "everything denied" the first device rule, unless the caller starts with an all-device rule of his own.
fn deny_first(resources: &mut LinuxResources) -> Result<Vec<LinuxDeviceCgroup>> {
    let rules = resources.devices().clone().unwrap_or_default();
    let is_all = |rule: &LinuxDeviceCgroup| {
        rule.major().is_none() && rule.minor().is_none() && rule.typ().is_none_or(|typ| typ.as_str() == "a")
    };
    if rules.first().is_some_and(is_all) {
        return Ok(rules);
    }
    let defaults = crate::defaults::devices().map_err(|error| Error::Invalid(error.to_string()))?;
    let all: Vec<LinuxDeviceCgroup> = defaults.into_iter().chain(rules).collect();
    resources.set_devices(Some(all.clone()));
    Ok(all)
}

/// All containers of a Pod see one `/dev/shm`.
fn share_memory(mount: &mut Mount, shm: &Path) {
    if mount.destination() == Path::new("/dev/shm") && mount.typ().as_deref() == Some("tmpfs") {
        let readonly = mount.options().iter().flatten().any(|option| option == "ro");
        let mut options =
            vec!["rbind".to_owned(), "nosuid".to_owned(), "nodev".to_owned(), "noexec".to_owned()];
        if readonly {
            options.push("ro".to_owned());
        }
        mount.set_typ(Some("bind".to_owned())).set_source(Some(shm.to_owned())).set_options(Some(options));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use libcontainer::oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

    use super::*;

    fn with() -> Surroundings<'static> {
        Surroundings {
            rootfs: Path::new("/scratch/rootfs"),
            cgroup: "/skiff/p/pod1/c1",
            namespaces: [10, 11, 12],
            shm: Path::new("/run/shm/pod1"),
            unified: false,
        }
    }

    fn spec() -> Spec {
        let mut spec = crate::defaults::spec().unwrap();
        spec.set_hostname(Some("pod".into()));
        spec.process_mut().as_mut().unwrap().set_args(Some(vec!["true".into()]));
        spec.mounts_mut().as_mut().unwrap().retain(|mount| mount.typ().as_deref() != Some("cgroup"));
        spec
    }

    #[test]
    fn the_sandbox_is_filled_in_and_our_part_taken_out() {
        let mut spec = spec();
        let caps = crate::defaults::capabilities();
        spec.linux_mut().as_mut().unwrap().set_seccomp(Some(crate::defaults::seccomp(&caps)));
        let guard = complete(&mut spec, &with()).unwrap();
        assert!(!guard.filters.is_empty() && guard.own_pid_namespace);
        assert_eq!(guard.capabilities.unwrap().bounding().as_ref().unwrap().len(), 14);
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        assert_eq!(linux.cgroups_path().as_ref().unwrap(), Path::new("/skiff/p/pod1/c1"));
        let net: Vec<_> = linux
            .namespaces()
            .iter()
            .flatten()
            .filter(|ns| ns.typ() == LinuxNamespaceType::Network)
            .collect();
        assert_eq!(net.len(), 1);
        assert_eq!(net[0].path().as_ref().unwrap(), Path::new("/proc/self/fd/10"));
        assert!(spec.process().as_ref().unwrap().capabilities().is_none());
        assert!(spec.hostname().is_none());
        let shm = spec
            .mounts()
            .iter()
            .flatten()
            .find(|mount| mount.destination() == Path::new("/dev/shm"))
            .unwrap();
        assert_eq!(shm.source().as_deref(), Some(Path::new("/run/shm/pod1")));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let mut notify = spec();
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActNotify);
        notify.linux_mut().as_mut().unwrap().set_seccomp(Some(profile));
        assert!(matches!(complete(&mut notify, &with()), Err(Error::Invalid(_))));
        let mut shared = spec();
        let mount = crate::defaults::mount("/x", "bind", "/y", &["rbind", "rshared"]).unwrap();
        shared.mounts_mut().as_mut().unwrap().push(mount);
        assert!(matches!(complete(&mut shared, &with()), Err(Error::Invalid(_))));
        let mut cgroup = spec();
        let mount = crate::defaults::mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro"]).unwrap();
        cgroup.mounts_mut().as_mut().unwrap().push(mount);
        assert!(matches!(complete(&mut cgroup, &with()), Err(Error::Invalid(_))));
        let mut empty = spec();
        empty.process_mut().as_mut().unwrap().set_args(Some(vec![]));
        assert!(matches!(complete(&mut empty, &with()), Err(Error::Exec { .. })));
    }

    #[test]
    fn devices_are_denied_first() {
        let mut resources = LinuxResources::default();
        resources.set_devices(None);
        let rules = deny_first(&mut resources).unwrap();
        assert!(!rules[0].allow());
        assert_eq!(resources.devices().as_ref().unwrap().len(), rules.len());
        let mut all = LinuxDeviceCgroup::default();
        all.set_allow(true).set_access(Some("rwm".into()));
        resources.set_devices(Some(vec![all]));
        assert_eq!(deny_first(&mut resources).unwrap().len(), 1);
    }
}
