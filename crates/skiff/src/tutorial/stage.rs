//! Where the course is typed: a home of its own with a kubeconfig, skiff under both of its names, an editor that does
//! what it is told, and a copy of `/etc/hosts` that only the course's commands see. Nothing of the user's is touched.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

const POLICY: &str = include_str!("nwpolicy-complete-example.yaml");
/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    /// Whether it said so.
    pub succeeded: bool,
    /// All that it printed, as a terminal shows it.
    pub output: String,
}

/// The place.
#[derive(Debug)]
pub struct Stage {
    home: tempfile::TempDir,
    profile: String,
    interrupted: Arc<AtomicBool>,
}

impl Stage {
    /// A new one for the cluster of that name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(profile: &str, interrupted: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new()
            .prefix("skiff-tutorial.")
            .tempdir()
            .context("make a home for the course")?;
        let stage = Self { home, profile: profile.to_owned(), interrupted };
        let bin = stage.path("bin");
        std::fs::create_dir(&bin).context("make a home for the course")?;
        let own = std::env::current_exe().context("find skiff's own file")?;
        for name in ["skiff", "minikube"] {
            std::os::unix::fs::symlink(&own, bin.join(name)).context("make a link to skiff")?;
        }
        std::fs::create_dir(stage.path("ckad")).context("make a home for the course")?;
        std::fs::write(stage.path("ckad/nwpolicy-complete-example.yaml"), POLICY)
            .context("write the example")?;
        let hosts = std::fs::read("/etc/hosts").unwrap_or_default();
        std::fs::write(stage.path("hosts"), hosts).context("copy /etc/hosts")?;
        Ok(stage)
    }

    /// A file of the course's home.
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The course's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Has the next editor do this, in sed's words.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set_editor(&self, script: &str) -> anyhow::Result<()> {
        let editor = self.path("editor");
        let written = std::fs::write(&editor, format!("#!/bin/sh\nexec sed -i -e '{script}' \"$1\"\n"));
        written.context("write the editor's script")?;
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755))
            .context("write the editor's script")
    }

    /// Types a line. What is said to skiff shows its progress on standard error; the rest runs on a terminal of its own.
    ///
    /// # Errors
    /// When it cannot be run, or takes too long.
    pub fn types(&self, line: &str) -> anyhow::Result<Ran> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(line).current_dir(self.home.path());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("HOME", self.home.path()).env("KUBECONFIG", self.kubeconfig());
        command.env("SKIFF_PROFILE", &self.profile).env("KUBE_EDITOR", self.path("editor"));
        for name in ["SUDO_USER", "XDG_CONFIG_HOME", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        if ["skiff ", "minikube "].iter().any(|name| line.starts_with(name)) {
            // A cluster that starts must not live in a namespace of the course's.
            let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
            let output = output.with_context(|| format!("run {line}"))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            return Ok(Ran { succeeded: output.status.success(), output: text });
        }
        let ran = with_hosts(&self.path("hosts"), || self.on_terminal(command));
        ran.with_context(|| format!("run {line}"))
    }

    fn on_terminal(&self, mut command: Command) -> anyhow::Result<Ran> {
        let size = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).context("open a terminal")?;
        let slave = || pty.slave.try_clone().map(Stdio::from);
        command.stdin(slave()?).stdout(slave()?).stderr(slave()?).process_group(0);
        let mut child = command.spawn()?;
        // The terminal closes with the last program on it, which must not be ourselves.
        drop((command, pty.slave));
        let bytes = self.read_all(File::from(pty.master), &child);
        if bytes.is_err() {
            end(&child);
        }
        let status = child.wait().context("wait for it")?;
        let output = String::from_utf8_lossy(&bytes?).replace('\r', "");
        Ok(Ran { succeeded: status.success(), output })
    }

    fn read_all(&self, mut terminal: File, child: &Child) -> anyhow::Result<Vec<u8>> {
        let (began, mut bytes, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
        loop {
            let mut ready = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(100_u8)).context("read from the terminal")? > 0 {
                match terminal.read(&mut buffer) {
                    // Linux says EIO when nobody has the other side open any more.
                    Ok(0) | Err(_) => return Ok(bytes),
                    Ok(len) => bytes.extend_from_slice(&buffer[..len]),
                }
            } else if self.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            } else if began.elapsed() > LIMIT {
                bail!("process {} does not end after {LIMIT:?}", child.id());
            }
        }
    }
}

/// Ends a command with all that it has started.
fn end(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Does `work` where `/etc/hosts` is another file: in a mount namespace that belongs to one thread and its children.
fn with_hosts<T: Send>(hosts: &Path, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let none = None::<&str>;
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).context("make the mounts private")?;
            mount(Some(hosts), "/etc/hosts", none, MsFlags::MS_BIND, none)
                .context("mount over /etc/hosts")?;
            work()
        });
        there.join().map_err(|_| anyhow!("its thread broke off"))?
    })
}
