//! Running a plugin: found by its name, told by environment and standard input, in the node's network namespace, with
//! an end to patience.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::Error;
use super::answer::Refusal;
use crate::error::Error as NetworkError;
use crate::netns::within;

/// More than any plugin has to say.
const MOST: u64 = 1 << 20;
/// What the specification passes by environment; nothing of the caller's may stand in for it.
const PARAMETERS: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// How plugins are run on a node.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    /// Where they are looked for.
    pub dirs: Vec<PathBuf>,
    /// Where they work.
    pub node: Arc<OwnedFd>,
    /// After it a plugin is ended.
    pub patience: Duration,
}

impl Runner {
    /// Runs a plugin; gives what it printed.
    pub async fn run(
        &self,
        plugin: &str,
        verb: &'static str,
        parameters: &[(&'static str, String)],
        told: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let failed = |reason: String| Error::Run { plugin: plugin.to_owned(), verb, reason };
        let path = find(plugin, &self.dirs)?;
        let input = input(told).map_err(|e| failed(format!("its input: {e}")))?;
        let mut command = Command::new(path);
        for name in PARAMETERS {
            command.env_remove(name);
        }
        command.env("CNI_COMMAND", verb).env("CNI_PATH", self.search_path());
        command.envs(parameters.iter().map(|(name, value)| (name, value)));
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir("/").process_group(0).kill_on_drop(true);
        let child = self.spawn(command).await.map_err(|e| failed(e.to_string()))?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok());
        let done = tokio::time::timeout(self.patience, finish(child)).await;
        let Ok(done) = done else {
            // With all that it has started.
            if let Some(group) = group {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            return Err(failed(format!("it has not ended after {:?}", self.patience)));
        };
        let (status, out, err) = done.map_err(|e| failed(e.to_string()))?;
        let said = String::from_utf8_lossy(&err);
        if !said.trim().is_empty() {
            tracing::debug!(plugin, verb, "{}", said.trim());
        }
        if status.success() {
            return Ok(out);
        }
        Err(match Refusal::parse(&out) {
            Some(refusal) => Error::Plugin { plugin: plugin.to_owned(), verb, refusal },
            None => failed(format!("{status}: {}", last_line(&[&err, &out]))),
        })
    }

    /// The child of a thread in the node's namespace is there as well.
    async fn spawn(&self, mut command: Command) -> Result<Child, NetworkError> {
        let (node, tokio) = (self.node.clone(), tokio::runtime::Handle::current());
        let spawn = move || {
            within(node.as_fd(), || {
                let _context = tokio.enter();
                command.spawn().map_err(|e| NetworkError::system("start it", e))
            })
        };
        let spawned = tokio::task::spawn_blocking(spawn).await;
        spawned.unwrap_or(Err(NetworkError::Thread("starting a plugin")))
    }

    fn search_path(&self) -> OsString {
        // Only a directory with a colon in its name cannot be joined, and such a one cannot be meant.
        std::env::join_paths(&self.dirs).unwrap_or_default()
    }
}

/// The executable of a plugin.
pub(super) fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, Error> {
    let is_executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = dirs.iter().map(|dir| dir.join(plugin)).find(is_executable);
    found.ok_or_else(|| Error::Missing { plugin: plugin.to_owned(), dirs: dirs.to_owned() })
}

/// Standard input with this content: memory, so that nobody waits for a plugin that does not read.
fn input(told: &[u8]) -> std::io::Result<std::fs::File> {
    let mut file = std::fs::File::from(memfd_create(c"cni", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(told)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}

async fn finish(mut child: Child) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err) = tokio::try_join!(read(out), read(err))?;
    Ok((child.wait().await?, out, err))
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(MOST).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The last words of a plugin that does not speak as the specification says.
fn last_line(outputs: &[&[u8]]) -> String {
    let texts = outputs.iter().map(|bytes| String::from_utf8_lossy(bytes));
    let last = |text: std::borrow::Cow<'_, str>| {
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    };
    texts.filter_map(last).next().unwrap_or_else(|| "it said nothing".to_owned())
}
