//! What a cluster could leave behind on a machine, as text that can be compared before and after.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::command::program;

/// Links, addresses, routes, rules, mounts, cgroups, namespaces and processes of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    parts: Vec<(&'static str, BTreeSet<String>)>,
}

impl Machine {
    /// Looks at the machine.
    pub fn now() -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let parts = vec![
            ("links", lines(program("ip", &["-o", "link"]).out()).iter().map(|l| name_of(l)).collect()),
            ("addresses", lines(program("ip", &["-o", "-br", "address"]).out())),
            ("routes", lines(program("ip", &["route", "show", "table", "all"]).out())),
            ("routes6", lasting(&program("ip", &["-6", "route", "show", "table", "all"]).out())),
            ("rules", lines(program("nft", &["list", "ruleset"]).out())),
            ("mounts", lines(read("/proc/self/mounts"))),
            ("namespaces", lines(program("ip", &["netns", "list"]).out())),
            ("forwarding", lines(read("/proc/sys/net/ipv4/ip_forward"))),
            ("forwarding6", lines(read("/proc/sys/net/ipv6/conf/all/forwarding"))),
            ("cgroups", cgroups()),
            ("processes", processes()),
            ("files", files()),
        ];
        Self { parts }
    }

    /// Waits until the machine is as it was when this was taken.
    ///
    /// # Panics
    /// When it still differs after `limit`.
    #[track_caller]
    pub fn is_again(&self, limit: Duration) {
        let mut difference = String::new();
        let began = Instant::now();
        while began.elapsed() < limit {
            difference = Self::now().difference(self);
            if difference.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the machine is not as before:\n{difference}");
    }

    /// What is there now and was not before, and the other way round; empty when the machine is as it was. A process that
    /// has ended since is no difference: another test's command may have been running when the machine was looked at.
    pub fn difference(&self, before: &Self) -> String {
        let mut text = String::new();
        for ((name, now), (_, then)) in self.parts.iter().zip(&before.parts) {
            let more = now.difference(then).map(|line| format!("{name}: + {line}\n"));
            let less = then.difference(now).filter(|_| *name != "processes");
            text.extend(more.chain(less.map(|line| format!("{name}: - {line}\n"))));
        }
        text
    }
}

/// Routes without the time that the router gave them.
fn lasting(routes: &str) -> BTreeSet<String> {
    let without = |line: &str| line.split(" expires ").next().unwrap_or(line).to_owned();
    routes.lines().map(without).collect()
}

/// Counters and flags of a link change by themselves; its name does not.
fn name_of(line: &str) -> String {
    line.split(':').nth(1).unwrap_or_default().trim().to_owned()
}

fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(Path::new("/sys/fs/cgroup"), 4, &mut |path| {
        if path.to_string_lossy().contains("skiff") {
            found.insert(path.display().to_string());
        }
    });
    found
}

fn collect(dir: &Path, depth: usize, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        see(&entry.path());
        if depth > 0 {
            collect(&entry.path(), depth - 1, see);
        }
    }
}

/// Processes of ours: the daemon, the shim, and whatever runs in a skiff cgroup.
fn processes() -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
    let dirs =
        entries.flatten().filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()));
    let ours = dirs.filter_map(|e| {
        let comm = std::fs::read_to_string(e.path().join("comm")).ok()?;
        let cgroup = std::fs::read_to_string(e.path().join("cgroup")).unwrap_or_default();
        // A dead process that its parent has not yet waited for is nothing that was left.
        let stat = std::fs::read_to_string(e.path().join("stat")).unwrap_or_default();
        if stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z')) {
            return None;
        }
        let is_ours = comm.trim() == "skiff" || comm.starts_with("skiff-shim") || cgroup.contains("/skiff/");
        is_ours.then(|| format!("{} {}", e.file_name().to_string_lossy(), comm.trim()))
    });
    ours.collect()
}

fn files() -> BTreeSet<String> {
    let dirs = ["/var/lib/skiff", "/run/skiff"];
    dirs.iter().filter(|d| Path::new(d).exists()).map(|d| (*d).to_owned()).collect()
}
