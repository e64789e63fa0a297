//! A person at a keyboard: a home of their own, a kubeconfig in it, and skiff under both of its names.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::command::{Ran, run};

/// A user with an empty home, for whom skiff is also called minikube.
#[derive(Debug)]
pub struct User {
    skiff: PathBuf,
    home: tempfile::TempDir,
}

impl User {
    /// A new one, with that skiff binary.
    ///
    /// # Panics
    /// When there is no room for a home.
    pub fn new(skiff: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        std::os::unix::fs::symlink(skiff, home.path().join("minikube")).expect("a link");
        Self { skiff: skiff.into(), home }
    }

    /// A file of the home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// A program in this user's environment, with arguments split at blanks.
    pub fn command(&self, program: impl Into<PathBuf>, line: &str) -> Command {
        let mut command = Command::new(program.into());
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command.env("HOME", self.home.path()).env("KUBECONFIG", self.kubeconfig());
        for name in ["SUDO_USER", "XDG_CONFIG_HOME", "SKIFF_PROFILE"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs skiff.
    #[track_caller]
    pub fn skiff(&self, line: &str) -> Ran {
        run(&mut self.command(self.skiff.clone(), line))
    }

    /// Runs skiff as minikube.
    #[track_caller]
    pub fn minikube(&self, line: &str) -> Ran {
        run(&mut self.command(self.path("minikube"), line))
    }

    /// What kubectl prints about one of the clusters.
    #[track_caller]
    pub fn kubectl(&self, context: &str, line: &str) -> String {
        run(&mut self.command("kubectl", &format!("--context {context} {line}"))).out()
    }

    /// The JSON that `skiff LINE -o json` prints.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let ran = self.skiff(&format!("{line} -o json"));
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
    }

    /// Deletes clusters of these names when dropped, whatever has happened to them.
    pub fn clusters<'a>(&'a self, profiles: &'a [&'a str]) -> Clusters<'a> {
        Clusters { user: self, profiles }
    }
}

/// See [`User::clusters`].
#[derive(Debug)]
pub struct Clusters<'a> {
    user: &'a User,
    profiles: &'a [&'a str],
}

impl Drop for Clusters<'_> {
    fn drop(&mut self) {
        for profile in self.profiles {
            if std::thread::panicking() {
                let words = self.user.skiff(&format!("-p {profile} logs -n 40"));
                eprintln!("{profile}, the daemon's last words:\n{}", words.stdout);
                // The test may have left one that does not parse.
                let _ = std::fs::remove_file(self.user.kubeconfig());
            }
            let deleted = self.user.skiff(&format!("-p {profile} delete"));
            if !deleted.ok {
                eprintln!("skiff delete failed: {}", deleted.stderr);
            }
        }
    }
}
