//! The real kubectl, all versions that the machine has, pointed at one kubeconfig.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command::{Ran, run};

/// A kubectl binary and the kubeconfig it uses.
#[derive(Debug, Clone)]
pub struct Kubectl {
    binary: PathBuf,
    config: PathBuf,
}

/// Every kubectl binary of the machine: the one on the PATH, and versions beside it (`kubectl.1.27`, ...).
///
/// # Panics
/// When there is none.
pub fn binaries() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|p| p.is_file());
    let main = found.expect("no kubectl on the PATH; install it: make deps");
    let real = main.canonicalize().unwrap_or_else(|_| main.clone());
    let beside = real.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten();
    let is_version =
        |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("kubectl.1."));
    let mut all: Vec<PathBuf> = beside.filter_map(|e| Some(e.ok()?.path())).filter(is_version).collect();
    all.sort();
    all.insert(0, main);
    all
}

impl Kubectl {
    /// The kubectl of the PATH.
    pub fn new(config: &Path) -> Self {
        Self { binary: binaries().swap_remove(0), config: config.to_owned() }
    }

    /// The same kubeconfig with another binary.
    pub fn with_binary(&self, binary: PathBuf) -> Self {
        Self { binary, config: self.config.clone() }
    }

    /// A command to run, with arguments split at blanks (no quoting; use [`Kubectl::args`] for words with blanks).
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env("KUBECONFIG", &self.config).env("KUBECACHEDIR", self.config.with_extension("cache"));
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs kubectl with a line of arguments, split at blanks.
    #[track_caller]
    pub fn run(&self, line: &str) -> Ran {
        self.args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs kubectl with arguments.
    #[track_caller]
    pub fn args(&self, args: &[&str]) -> Ran {
        run(self.command().args(args))
    }

    /// Standard output of a run that must succeed.
    #[track_caller]
    pub fn out(&self, line: &str) -> String {
        self.run(line).out()
    }

    /// The JSON that `kubectl LINE -o json` prints.
    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        let text = self.out(&format!("{line} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("kubectl {line} -o json: {e}\n{text}"))
    }

    /// Creates or changes what a manifest says.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), manifest).expect("a temporary file");
        self.args(&["apply", "-f", &file.path().display().to_string()]).out()
    }
}
