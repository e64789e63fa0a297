//! Ending what a shim left behind that did not end in order (killed, or the machine lost power).

use std::fs;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroups;
use crate::client::ShimOptions;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the shim keeps in its run folder, beside the socket.
const FOLDERS: [&str; 5] = ["state", "bundles", "exec", "tty", "shm"];
const FILES: [&str; 3] = ["skiff", "shim.log", "shim.lock"];

/// Removes the files of a shim that has ended; the run folder too, if nobody else keeps something there.
pub fn remove_files(options: &ShimOptions) {
    for folder in FOLDERS {
        let _ = fs::remove_dir_all(options.run_dir.join(folder));
    }
    for file in FILES {
        let _ = fs::remove_file(options.run_dir.join(file));
    }
    let _ = fs::remove_file(&options.socket);
    let _ = fs::remove_dir(&options.run_dir);
}

/// Kills every process in the cluster's cgroup, removes it, and empties the run folder of container state.
pub fn end_leftovers(cgroups: &Cgroups, options: &ShimOptions) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if !cgroups.processes(&options.cgroup).is_empty() {
            cgroups.kill(&options.cgroup);
        }
        // Busy until the last process has not only been killed but is gone.
        match cgroups.remove(&options.cgroup) {
            Ok(()) => break,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(format!("remove cgroup {}: {error}", options.cgroup)),
        }
    }
    for folder in FOLDERS {
        let folder = options.run_dir.join(folder);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("remove {}: {error}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
