//! Pod sandboxes: net, ipc and uts namespaces made by a short-lived child and held open as descriptors by the shim.
//!
//! No pause process and no bind-mounted file: when the shim closes the descriptors, or dies, the kernel takes the
//! namespaces away. Containers join them by `/proc/self/fd/N`.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};

use super::rootfs;
use crate::api::{Error, Result, SandboxSpec};

/// What engines give a container's `/dev/shm`.
const SHM_SIZE: u64 = 64 << 20;

/// A Pod's namespaces and shared memory.
#[derive(Debug)]
pub struct Sandbox {
    pub spec: SandboxSpec,
    pub net: OwnedFd,
    pub ipc: OwnedFd,
    pub uts: OwnedFd,
    /// The Pod's `/dev/shm`; the host's for `hostIPC`.
    pub shm: PathBuf,
}

/// Refuses what would reach beyond the Pod.
pub fn check(spec: &SandboxSpec, parent: &str) -> Result<()> {
    let invalid = |reason: String| Err(Error::Invalid(reason));
    if spec.id.is_empty() || spec.id.contains(['/', '\0']) || spec.id.starts_with('.') {
        return invalid(format!("sandbox id {:?}", spec.id));
    }
    let below = spec.cgroup.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/'));
    if below.is_none_or(|rest| rest.split('/').any(|part| matches!(part, "" | "." | ".." | "shim"))) {
        return invalid(format!("cgroup {:?} of sandbox {:?} is not below {parent:?}", spec.cgroup, spec.id));
    }
    for name in spec.sysctls.keys() {
        let private = match name.split(['.', '/']).next() {
            Some("net") => !spec.host_network,
            Some("kernel") => {
                !spec.host_ipc
                    && ["shm", "msg", "sem"]
                        .iter()
                        .any(|kind| name.get(7..).is_some_and(|rest| rest.starts_with(kind)))
            }
            Some("fs") => !spec.host_ipc && name.get(3..).is_some_and(|rest| rest.starts_with("mqueue")),
            _ => false,
        };
        if !private || name.contains("..") {
            return invalid(format!("sysctl {name:?} is not private to sandbox {:?}", spec.id));
        }
    }
    Ok(())
}

/// In a child: makes the namespaces and returns descriptors of net, ipc and uts.
pub fn make(spec: &SandboxSpec) -> std::result::Result<Vec<OwnedFd>, String> {
    let mut flags = CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWNET, !spec.host_network);
    flags.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    unshare(flags).map_err(|error| format!("unshare namespaces: {error}"))?;
    nix::unistd::sethostname(&spec.hostname).map_err(|error| format!("set host name: {error}"))?;
    for (name, value) in &spec.sysctls {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&file, value).map_err(|error| format!("set sysctl {name}={value}: {error}"))?;
    }
    ["net", "ipc", "uts"]
        .into_iter()
        .map(|kind| {
            let path = format!("/proc/self/ns/{kind}");
            File::open(&path).map(OwnedFd::from).map_err(|error| format!("open {path}: {error}"))
        })
        .collect()
}

impl Sandbox {
    /// Takes over the namespaces that the child made and mounts the Pod's shared memory below `folder`.
    pub fn adopt(spec: SandboxSpec, fds: Vec<OwnedFd>, folder: &Path) -> Result<Self> {
        let [net, ipc, uts]: [OwnedFd; 3] = fds
            .try_into()
            .map_err(|_| Error::failed("create sandbox", &spec.id, "namespaces did not arrive"))?;
        let shm = if spec.host_ipc { PathBuf::from("/dev/shm") } else { folder.join(&spec.id) };
        if !spec.host_ipc {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            rootfs::mount_tmpfs(&shm, Some(spec.shm_size.unwrap_or(SHM_SIZE)), 0o1777, flags)
                .map_err(|error| Error::failed("mount shared memory of sandbox", &spec.id, error))?;
        }
        Ok(Self { spec, net, ipc, uts, shm })
    }

    /// The descriptors by kind, for a container's spec.
    pub fn descriptors(&self) -> [RawFd; 3] {
        [self.net.as_raw_fd(), self.ipc.as_raw_fd(), self.uts.as_raw_fd()]
    }

    /// Unmounts what [`Sandbox::adopt`] mounted; the namespaces go with the descriptors.
    pub fn dismantle(&self) {
        if !self.spec.host_ipc {
            if let Err(error) = rootfs::unmount(&self.shm) {
                super::report(&format!("unmount {}: {error}", self.shm.display()));
            }
            let _ = fs::remove_dir(&self.shm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cgroup: &str, sysctl: &str) -> SandboxSpec {
        SandboxSpec {
            id: "pod".into(),
            hostname: "pod".into(),
            host_network: false,
            host_ipc: false,
            sysctls: [(sysctl.to_owned(), "1".to_owned())].into(),
            cgroup: cgroup.into(),
            shm_size: None,
        }
    }

    #[test]
    fn a_pod_cannot_reach_beyond_itself() {
        let good = "net.ipv4.ip_unprivileged_port_start";
        assert!(check(&spec("/skiff/p/pod1", good), "/skiff/p").is_ok());
        for cgroup in
            ["/skiff/p", "/skiff/p/", "/skiff/p/..", "/skiff/q/pod1", "/", "", "/skiff/p/shim", "/skiff/pod"]
        {
            assert!(check(&spec(cgroup, good), "/skiff/p").is_err(), "{cgroup}");
        }
        for sysctl in ["kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max", "net.core.somaxconn"] {
            assert!(check(&spec("/skiff/p/pod1", sysctl), "/skiff/p").is_ok(), "{sysctl}");
        }
        for sysctl in ["vm.swappiness", "kernel.panic", "fs.file-max", "net/../kernel/panic", "kernel"] {
            assert!(check(&spec("/skiff/p/pod1", sysctl), "/skiff/p").is_err(), "{sysctl}");
        }
        let mut host = spec("/skiff/p/pod1", good);
        host.host_network = true;
        assert!(check(&host, "/skiff/p").is_err());
    }
}
