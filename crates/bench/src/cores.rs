//! Processes held to a core each, so that none takes from another and no two runs differ by where the scheduler put them.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// Each process on a core of its own, until dropped.
pub struct Pinned {
    processes: Vec<u32>,
    /// All cores, as a list of ranges.
    online: String,
}

impl Pinned {
    /// The first process is held to the first core, the second to the second, and so on.
    ///
    /// # Errors
    /// When a process has ended, or there are fewer cores.
    pub fn each(processes: &[u32]) -> anyhow::Result<Self> {
        let path = "/sys/devices/system/cpu/online";
        let online = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let pinned = Self { processes: processes.to_vec(), online: online.trim().to_owned() };
        for (core, pid) in processes.iter().enumerate() {
            ensure!(taskset(*pid, &core.to_string()), "hold process {pid} to core {core}: taskset failed");
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // One that has ended needs no cores.
        for pid in &self.processes {
            taskset(*pid, &self.online);
        }
    }
}

/// A command that is to run on one core only, from its start.
///
/// # Errors
/// When there is no such program, with how to get it, or no such core: `taskset` itself would say so to nobody.
pub fn on(core: usize, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
    let program = Path::new(program.as_ref());
    let name = program.display();
    if program.components().count() > 1 {
        ensure!(program.is_file(), "no {name}");
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        ensure!(found, "no {name} on the PATH; install it: apt-get install {name}");
    }
    // This process may be held to one core itself, so how many it has says nothing.
    let there = Path::new(&format!("/sys/devices/system/cpu/cpu{core}")).is_dir();
    ensure!(there, "{name} is to run on core {core}, and this machine has none");
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    Ok(command)
}

fn taskset(pid: u32, cores: &str) -> bool {
    let command = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", cores, &pid.to_string()])
        .stdout(Stdio::null())
        .status();
    command.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let missing = on(0, "no-such-program").unwrap_err().to_string();
        assert!(missing.contains("apt-get install no-such-program"), "{missing}");
        let far = on(100_000, "sh").unwrap_err().to_string();
        assert!(far.contains("core 100000"), "{far}");
        // With a path, too.
        assert!(on(0, "/bin/sh").unwrap().args(["-c", "exit 0"]).status().unwrap().success());
    }
}
