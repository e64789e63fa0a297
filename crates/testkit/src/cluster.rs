//! A cluster for one test file: started by the real binary, deleted at the end, the machine compared before and after.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::command::{Ran, run};
use crate::eventually;
use crate::kubectl::Kubectl;

/// A running cluster; deleted when dropped.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    profile: String,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster of that name with the given skiff binary and a kubeconfig of its own.
    ///
    /// # Panics
    /// When it does not start; the daemon's last words are part of the message.
    #[track_caller]
    pub fn start(binary: &str, profile: &str) -> Self {
        Self::start_with(binary, profile, "")
    }

    /// The same with flags for `skiff start`, split at blanks.
    ///
    /// # Panics
    /// As [`Cluster::start`].
    #[track_caller]
    pub fn start_with(binary: &str, profile: &str, flags: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "end-to-end tests need root: sudo make test");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster = Self { binary: binary.into(), profile: profile.to_owned(), dir };
        cluster.skiff("delete").out();
        let started = cluster.skiff(&format!("start {flags}"));
        assert!(started.ok, "{}\n{}", started.stderr, cluster.skiff("logs -n 40").stdout);
        cluster
    }

    /// Runs skiff on this cluster with a line of arguments, split at blanks.
    #[track_caller]
    pub fn skiff(&self, line: &str) -> Ran {
        let mut command = Command::new(&self.binary);
        command
            .args(["-p", &self.profile])
            .args(line.split_whitespace())
            .env("KUBECONFIG", self.kubeconfig());
        run(&mut command)
    }

    /// The kubeconfig of this cluster alone.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    /// kubectl on this cluster.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.kubeconfig())
    }

    /// The daemon's process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn daemon_pid(&self) -> i32 {
        let lock = self.lock();
        std::fs::read_to_string(&lock).expect(&lock).trim().parse().expect("a pid")
    }

    fn lock(&self) -> String {
        format!("/run/skiff/{}/daemon.lock", self.profile)
    }

    /// Ends the daemon as a crash would. It has ended once its lock is free: the kernel closes a process' files some time
    /// after the signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_daemon(&self) {
        let pid = nix::unistd::Pid::from_raw(self.daemon_pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the daemon runs");
        let lock = std::fs::File::open(self.lock()).expect("the daemon's lock");
        eventually("the daemon has ended", Duration::from_secs(30), || lock.try_lock_shared().ok());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's last words:\n{}", self.skiff("logs -n 60").stdout);
        }
        let deleted = self.skiff("delete");
        if !deleted.ok {
            eprintln!("skiff delete failed: {}", deleted.stderr);
        }
    }
}
