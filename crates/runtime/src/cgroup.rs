//! cgroups of v1, hybrid and v2 hosts: where they are, ending everything in one, figures.
//!
//! `libcontainer` makes a container's cgroups and writes its limits. What it leaves out is here: the hierarchies that it
//! does not know (`name=systemd` and, on a hybrid host, the unified one), killing all of a cgroup, removing its folders,
//! the OOM killer's count. Paths are relative to each hierarchy's root, such as `/skiff/minikube/pod<uid>`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::Stats;

/// v1 controllers whose hierarchies `libcontainer` attaches a container to.
const LIBRARY_CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Controllers of a v1 hierarchy; `None` for the unified one.
    controllers: Option<Vec<String>>,
}

/// The cgroup hierarchies of this host.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Finds the hierarchies in this process' mount table.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// proc(5): `36 35 98:0 /root /mount options optional... - type source super-options`
    fn parse(mountinfo: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
            let (typ, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            let controllers = match typ {
                "cgroup2" => None,
                "cgroup" => Some(
                    options
                        .split(',')
                        .filter(|option| {
                            LIBRARY_CONTROLLERS.contains(option)
                                || option.starts_with("name=")
                                || matches!(*option, "misc" | "rdma")
                        })
                        .map(str::to_owned)
                        .collect(),
                ),
                _ => continue,
            };
            let found = Hierarchy { mount: PathBuf::from(mount), controllers };
            // The same hierarchy may be mounted in several places; the first is as good as any.
            if !hierarchies.iter().any(|known| known.controllers == found.controllers) {
                hierarchies.push(found);
            }
        }
        Self { hierarchies }
    }

    /// Where the hierarchies are mounted.
    pub fn mounts(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path())
    }

    /// All controllers that limits can be kept with.
    pub fn controllers(&self) -> Vec<String> {
        let of = |hierarchy: &Hierarchy| match &hierarchy.controllers {
            Some(v1) => v1.clone(),
            None => {
                let text = fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap_or_default();
                text.split_whitespace().map(str::to_owned).collect()
            }
        };
        self.hierarchies.iter().flat_map(of).collect()
    }

    fn existing(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(move |hierarchy| join(&hierarchy.mount, path)).filter(|dir| dir.is_dir())
    }

    /// The cgroup's folder in the hierarchy of a v1 `controller`, or in the unified one where v1 does not have it.
    fn controller(&self, controller: &str, path: &str) -> Option<(PathBuf, bool)> {
        let v1 = self.hierarchies.iter().find(|hierarchy| {
            hierarchy.controllers.as_ref().is_some_and(|list| list.iter().any(|item| item == controller))
        });
        match v1 {
            Some(hierarchy) => Some((join(&hierarchy.mount, path), true)),
            None => self.unified(path).map(|dir| (dir, false)),
        }
    }

    /// The cgroup's folder in the unified hierarchy, if the host has one.
    pub fn unified(&self, path: &str) -> Option<PathBuf> {
        let unified = self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.is_none())?;
        Some(join(&unified.mount, path))
    }

    /// True when the unified hierarchy is the only one.
    pub fn is_unified(&self) -> bool {
        self.hierarchies.len() == 1 && self.hierarchies[0].controllers.is_none()
    }

    /// Moves `pid` in the hierarchies that `libcontainer` leaves alone.
    pub fn attach_remaining(&self, path: &str, pid: i32) -> io::Result<()> {
        let v2_only = self.is_unified();
        for hierarchy in &self.hierarchies {
            let by_library = match &hierarchy.controllers {
                Some(list) => list.iter().any(|item| LIBRARY_CONTROLLERS.contains(&item.as_str())),
                None => v2_only,
            };
            if !by_library {
                attach(&join(&hierarchy.mount, path), pid)?;
            }
        }
        Ok(())
    }

    /// Moves `pid` in those hierarchies by which a service manager finds a service's processes.
    ///
    /// A unit that is stopped takes its whole cgroup down; the shim must not be in the agent's.
    pub fn attach_identity(&self, path: &str, pid: i32) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let identity = hierarchy
                .controllers
                .as_ref()
                .is_none_or(|list| list.iter().any(|item| item.starts_with("name=")));
            if identity {
                attach(&join(&hierarchy.mount, path), pid)?;
            }
        }
        Ok(())
    }

    /// Kills every process in the cgroup and below. Processes are gone once they are reaped, not on return.
    pub fn kill(&self, path: &str) {
        for dir in self.existing(path) {
            // Since Linux 5.14 the kernel does it at once, without racing against forks.
            if fs::write(dir.join("cgroup.kill"), "1").is_err() {
                for pid in processes(&dir) {
                    kill(pid);
                }
            }
        }
    }

    /// Processes in the cgroup and below, in any hierarchy.
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let mut all: Vec<i32> = self.existing(path).flat_map(|dir| processes(&dir)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Removes the cgroup and those below in every hierarchy; fails with EBUSY while processes are left.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        if path.split('/').all(str::is_empty) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "refusing to remove the root cgroup"));
        }
        let mut first_error = None;
        for dir in self.existing(path) {
            if let Err(error) = remove_tree(&dir) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// How often the OOM killer struck in the cgroup (`memory.events`, `memory.oom_control`: `oom_kill N`).
    pub fn oom_kills(&self, path: &str) -> u64 {
        let Some((dir, v1)) = self.controller("memory", path) else { return 0 };
        let file = dir.join(if v1 { "memory.oom_control" } else { "memory.events" });
        fs::read_to_string(file).ok().and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0)
    }

    /// CPU time and memory of the cgroup.
    pub fn stats(&self, path: &str) -> Stats {
        let mut stats = Stats::default();
        if let Some((dir, v1)) = self.controller("cpuacct", path) {
            stats.cpu_nanos = if v1 {
                number(&dir.join("cpuacct.usage"))
            } else {
                text(&dir.join("cpu.stat")).and_then(|text| keyed(&text, "usage_usec")).unwrap_or(0) * 1000
            };
        }
        if let Some((dir, v1)) = self.controller("memory", path) {
            let (usage, inactive) = if v1 {
                ("memory.usage_in_bytes", "total_inactive_file")
            } else {
                ("memory.current", "inactive_file")
            };
            stats.memory_usage_bytes = number(&dir.join(usage));
            let inactive =
                text(&dir.join("memory.stat")).and_then(|text| keyed(&text, inactive)).unwrap_or(0);
            stats.memory_bytes = stats.memory_usage_bytes.saturating_sub(inactive);
        }
        stats
    }
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn attach(dir: &Path, pid: i32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("cgroup.procs"), pid.to_string())
}

fn processes(dir: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = text(&dir.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.trim().parse().ok()).collect())
        .unwrap_or_default();
    for child in children(dir) {
        found.extend(processes(&child));
    }
    found
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn kill(pid: i32) {
    if pid > 1 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

fn text(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok()
}

fn number(file: &Path) -> u64 {
    text(file).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The value of `key` in a flat keyed file.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const HYBRID: &str = "\
25 30 0:23 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:24 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
27 25 0:25 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,name=systemd
28 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
29 25 0:27 / /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory
";

    #[test]
    fn hierarchies_are_found() {
        let hybrid = Cgroups::parse(HYBRID);
        assert!(!hybrid.is_unified());
        assert_eq!(hybrid.hierarchies.len(), 4);
        assert_eq!(
            hybrid.controller("memory", "/a/b"),
            Some((PathBuf::from("/sys/fs/cgroup/memory/a/b"), true))
        );
        assert_eq!(hybrid.unified("/a"), Some(PathBuf::from("/sys/fs/cgroup/unified/a")));
        let v2 = Cgroups::parse("31 30 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(v2.is_unified());
        assert_eq!(v2.controller("memory", "/a"), Some((PathBuf::from("/sys/fs/cgroup/a"), false)));
    }

    #[test]
    fn flat_keys_are_read() {
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed(control, "oom_kill"), Some(3));
        assert_eq!(keyed("low 0\noom 1\noom_kill 1\noom_group_kill 0\n", "oom_kill"), Some(1));
        assert_eq!(keyed("", "oom_kill"), None);
    }

    #[test]
    fn the_root_is_never_removed() {
        for path in ["", "/", "//"] {
            assert!(Cgroups::parse(HYBRID).remove(path).is_err());
        }
    }
}
