//! Processes held to a core each, so that none takes from another and no two runs differ by where the scheduler put them.

use std::ffi::OsStr;
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
pub fn on(core: usize, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

fn taskset(pid: u32, cores: &str) -> bool {
    let command = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", cores, &pid.to_string()])
        .stdout(Stdio::null())
        .status();
    command.is_ok_and(|status| status.success())
}
