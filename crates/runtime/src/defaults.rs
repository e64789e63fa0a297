//! The OCI runtime spec that a container starts from, as Docker and containerd make it; the kubelet fills in the rest.
//!
//! No `/sys/fs/cgroup` mount on a v1 or hybrid host: read-only cannot be had there, and a writable one is an escape.

use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResourcesBuilder, LinuxSeccomp, Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder,
};

/// `PATH` of a container whose image sets none.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Paths that show or steer the host and are covered in every container that is not privileged.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that are read-only in every container that is not privileged.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// An unprivileged container: own pid, mount, ipc, uts and network namespaces, Docker's capabilities, everything else
/// shut. `args`, `user`, `cwd`, resources and volumes are for the caller; `root`, the cgroup and the paths of the
/// shared namespaces are filled in by the shim.
pub fn spec() -> Result<Spec, OciSpecError> {
    let process = ProcessBuilder::default()
        .terminal(false)
        .cwd("/")
        .args(Vec::<String>::new())
        .env(vec![PATH.to_owned()])
        .capabilities(capability_sets(&capabilities())?)
        .rlimits(vec![
            PosixRlimitBuilder::default()
                .typ(PosixRlimitType::RlimitNofile)
                .soft(1_048_576u64)
                .hard(1_048_576u64)
                .build()?,
        ])
        .no_new_privileges(false)
        .build()?;
    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(RootBuilder::default().path("rootfs").readonly(false).build()?)
        .process(process)
        .mounts(mounts()?)
        .linux(linux()?)
        .build()?;
    spec.set_hostname(None);
    Ok(spec)
}

fn linux() -> Result<oci_spec::runtime::Linux, OciSpecError> {
    use LinuxNamespaceType as Ns;
    let mut kinds = vec![Ns::Pid, Ns::Mount, Ns::Ipc, Ns::Uts, Ns::Network];
    if is_unified() {
        kinds.push(Ns::Cgroup);
    }
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(LinuxResourcesBuilder::default().devices(devices()?).build()?)
        .masked_paths(strings(MASKED_PATHS))
        .readonly_paths(strings(READONLY_PATHS))
        .build()
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&item| item.to_owned()).collect()
}

/// True on a host with nothing but the unified (v2) hierarchy.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The capabilities that a container has unless told otherwise: Docker's fourteen.
pub fn capabilities() -> Capabilities {
    use Capability as Cap;
    Capabilities::from([
        Cap::AuditWrite,
        Cap::Chown,
        Cap::DacOverride,
        Cap::Fowner,
        Cap::Fsetid,
        Cap::Kill,
        Cap::Mknod,
        Cap::NetBindService,
        Cap::NetRaw,
        Cap::Setfcap,
        Cap::Setgid,
        Cap::Setpcap,
        Cap::Setuid,
        Cap::SysChroot,
    ])
}

/// Every capability, for a privileged container. The shim leaves out those that it does not have itself.
pub fn all_capabilities() -> Capabilities {
    use Capability as Cap;
    let mut all = capabilities();
    all.extend([
        Cap::AuditControl,
        Cap::AuditRead,
        Cap::BlockSuspend,
        Cap::Bpf,
        Cap::CheckpointRestore,
        Cap::DacReadSearch,
        Cap::IpcLock,
        Cap::IpcOwner,
        Cap::Lease,
        Cap::LinuxImmutable,
        Cap::MacAdmin,
        Cap::MacOverride,
        Cap::NetAdmin,
        Cap::NetBroadcast,
        Cap::Perfmon,
        Cap::SysAdmin,
        Cap::SysBoot,
        Cap::SysModule,
        Cap::SysNice,
        Cap::SysPacct,
        Cap::SysPtrace,
        Cap::SysRawio,
        Cap::SysResource,
        Cap::SysTime,
        Cap::SysTtyConfig,
        Cap::Syslog,
        Cap::WakeAlarm,
    ]);
    all
}

/// The OCI form of one set: bounding, effective and permitted; nothing inheritable or ambient (CVE-2022-24769).
pub fn capability_sets(set: &Capabilities) -> Result<LinuxCapabilities, OciSpecError> {
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set.clone())
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
}

/// The seccomp profile of `RuntimeDefault` for a container with `capabilities` in its bounding set.
pub fn seccomp(capabilities: &Capabilities) -> LinuxSeccomp {
    crate::seccomp::runtime_default(capabilities)
}

/// The file systems of every container. `/dev/shm` is replaced by the Pod's own by the shim.
pub fn mounts() -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
    ];
    if is_unified() {
        mounts.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        )?);
    }
    Ok(mounts)
}

/// One mount of the spec.
pub fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(PathBuf::from(destination))
        .typ(typ)
        .source(PathBuf::from(source))
        .options(strings(options))
        .build()
}

/// A bind mount of a host path; `readonly` goes down into everything mounted below it.
pub fn bind(source: &Path, destination: &Path, readonly: bool) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(strings(if readonly { &["rbind", "rprivate", "rro"] } else { &["rbind", "rprivate", "rw"] }))
        .build()
}

/// Device rules: everything denied but making nodes, the harmless character devices and terminals.
pub fn devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let deny = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let mut rules = vec![deny];
    for typ in [LinuxDeviceType::C, LinuxDeviceType::B] {
        rules.push(LinuxDeviceCgroupBuilder::default().allow(true).typ(typ).access("m").build()?);
    }
    // null, zero, full, random, urandom; tty, console, ptmx; every pts.
    let harmless = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    for (major, minor) in harmless {
        rules.push(allow_device(major).minor(minor).build()?);
    }
    rules.push(allow_device(136).build()?);
    Ok(rules)
}

fn allow_device(major: i64) -> LinuxDeviceCgroupBuilder {
    LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::C).major(major).access("rwm")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_default_spec_is_shut() {
        let spec = spec().unwrap();
        let caps = spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().clone();
        assert_eq!(caps.bounding().as_ref().unwrap().len(), 14);
        assert!(caps.ambient().as_ref().unwrap().is_empty());
        assert!(!caps.bounding().as_ref().unwrap().contains(&Capability::SysAdmin));
        assert!(all_capabilities().len() == 41, "one for every capability of CAP_LAST_CAP 40");
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".to_owned()));
        let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
        assert!(!rules[0].allow() && rules[0].typ().is_none());
        assert_eq!(spec.hostname(), &None);
    }
}
