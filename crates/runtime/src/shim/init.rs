//! The last steps of a container's process before `exec`, in the order that lets each still have its rights.
//!
//! `libcontainer` calls this in the new process when namespaces, mounts, root, user and groups are in place. Capabilities
//! and the seccomp filter are kept from it and applied here: a filter must be installed while CAP_SYS_ADMIN is there
//! (unless `no_new_privs`), and only here is there a place after which nothing of ours runs. What else is undone here:
//! ignored and blocked signals of the shim (an ignored SIGPIPE survives `exec` and breaks shell pipelines).

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxCapabilities, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use seccompiler::BpfProgram;

use super::caps;
use super::job::Report;

/// Exit code when `exec` itself fails after start, as container engines have it.
const EXEC_FAILED: i32 = 255;

/// What the process does right before it becomes the container's.
#[derive(Clone)]
pub struct Init {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub capabilities: Option<LinuxCapabilities>,
    pub filters: Vec<BpfProgram>,
    pub no_new_privileges: bool,
    /// Where to say why the command cannot run; `None` once nobody listens.
    pub report: RawFd,
    /// True for a further process: its failure to `exec` is the caller's to hear, not the log's.
    pub further: bool,
    /// `HOME`, which `libcontainer` looks up in the container's `/etc/passwd`.
    pub home: RefCell<Option<String>>,
}

impl Init {
    fn tell(&self, code: i32, message: &str) {
        // SAFETY: the descriptor was open in the process that we were forked from and is closed by `exec` only.
        let socket = unsafe { BorrowedFd::borrow_raw(self.report) };
        let _ = crate::proto::send(socket, &Report::Exec { code, message: message.to_owned() }, &[]);
    }

    fn path_variable(&self) -> &str {
        self.env
            .iter()
            .rev()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or_else(|| crate::defaults::PATH.strip_prefix("PATH=").unwrap_or_default())
    }

    fn environment(&self) -> Vec<CString> {
        let mut env: Vec<CString> =
            self.env.iter().filter_map(|entry| CString::new(entry.as_bytes()).ok()).collect();
        if !self.env.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5)
            && let Some(home) =
                self.home.borrow().as_ref().and_then(|home| CString::new(format!("HOME={home}")).ok())
        {
            env.retain(|entry| entry.as_bytes() != b"HOME=");
            env.push(home);
        }
        env
    }

    fn prepare(&self) -> Result<(), String> {
        for fd in 0..3 {
            own_stream(fd, self.uid);
        }
        let install = || {
            crate::seccomp::install(&self.filters).map_err(|error| format!("install seccomp filter: {error}"))
        };
        if !self.no_new_privileges {
            install()?;
        }
        if let Some(sets) = &self.capabilities {
            caps::apply(sets).map_err(|error| format!("apply capabilities: {error}"))?;
        }
        reset_signals();
        if self.no_new_privileges {
            install()?;
        }
        Ok(())
    }
}

impl Executor for Init {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        let checked = enter_directory(&self.cwd)
            .map_err(|error| {
                (126, format!("chdir to cwd ({:?}) set in config.json failed: {error}", self.cwd))
            })
            .and_then(|()| find(&self.args, self.path_variable()).map(drop));
        checked.map_err(|(code, message)| {
            self.tell(code, &message);
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is handed to `execve` as a list, in the order given; nothing is set in this process.
        *self.home.borrow_mut() = envs.get("HOME").cloned();
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let message = match (find(&self.args, self.path_variable()), self.prepare()) {
            (Err((_, message)), _) | (_, Err(message)) => message,
            (Ok(path), Ok(())) => {
                let args: Vec<CString> =
                    self.args.iter().filter_map(|arg| CString::new(arg.as_bytes()).ok()).collect();
                let error = execve(&path, &args, &self.environment());
                format!("exec {}: {}", path.display(), describe(error))
            }
        };
        if self.further {
            self.tell(126, &message);
            return Err(ExecutorError::Other(message));
        }
        // The container was started: its log is where people look.
        eprintln!("{message}");
        std::process::exit(EXEC_FAILED)
    }
}

fn execve(path: &Path, args: &[CString], env: &[CString]) -> Errno {
    match CString::new(path.as_os_str().as_bytes()) {
        Ok(path) => match nix::unistd::execve(&path, args, env) {
            Ok(never) => match never {},
            Err(error) => error,
        },
        Err(_) => Errno::EINVAL,
    }
}

/// Errors in the words that users know (Go's, which is strerror in lower case).
fn describe(error: Errno) -> String {
    error.desc().to_lowercase()
}

/// Finds the executable as shells and container engines do; the texts are upstream's.
pub fn find(args: &[String], path_variable: &str) -> Result<PathBuf, (i32, String)> {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err((126, "exec: no command specified".to_owned()));
    };
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::ENOENT) => {
                Err((127, format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(error) => Err((126, format!("exec: {name:?}: {}", describe(error)))),
        };
    }
    let mut denied = false;
    for folder in path_variable.split(':') {
        // An empty element means the working directory.
        let path = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(Errno::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err((126, format!("exec: {name:?}: permission denied")));
    }
    Err((127, format!("exec: {name:?}: executable file not found in $PATH")))
}

fn executable(path: &Path) -> Result<(), Errno> {
    let about =
        std::fs::metadata(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    if about.is_dir() {
        return Err(Errno::EISDIR);
    }
    if about.mode() & 0o111 == 0 { Err(Errno::EACCES) } else { Ok(()) }
}

/// Enters the working directory, making it where the image has none, as upstream's runtimes do.
fn enter_directory(path: &Path) -> std::io::Result<()> {
    let path = if path.as_os_str() == OsStr::new("") { Path::new("/") } else { path };
    match std::env::set_current_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path)?;
            std::env::set_current_dir(path)
        }
        other => other,
    }
}

/// Gives a pipe or terminal to the container's user, or `/dev/stdout` could not be opened by anybody but root.
fn own_stream(fd: RawFd, uid: u32) {
    // SAFETY: 0, 1 and 2 are open in every container process.
    let stream = unsafe { BorrowedFd::borrow_raw(fd) };
    let Ok(about) = nix::sys::stat::fstat(stream) else { return };
    let is_null = about.st_mode & libc::S_IFMT == libc::S_IFCHR && about.st_rdev == libc::makedev(1, 3);
    if !is_null && about.st_uid != uid {
        let _ = nix::unistd::fchown(stream, Some(nix::unistd::Uid::from_raw(uid)), None);
    }
}

/// Signals as a fresh process has them: none blocked, none ignored.
///
/// By system call, for the C library keeps two real-time signals to itself, and they too are inherited ignored.
fn reset_signals() {
    /// The kernel's `struct sigaction`: handler, flags, restorer, mask.
    #[repr(C)]
    struct KernelAction([usize; 3], u64);
    let default = KernelAction([libc::SIG_DFL, 0, 0], 0);
    for signal in 1..=64 {
        // SAFETY: `default` has the layout that the call reads; it fails for KILL and STOP, which nobody can ignore.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null::<u8>(),
                size_of::<u64>(),
            )
        };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn commands_are_found_and_refused_in_upstream_words() {
        let dir = tempfile::tempdir().unwrap();
        let (tool, data) = (dir.path().join("tool"), dir.path().join("data"));
        std::fs::write(&tool, "").unwrap();
        std::fs::write(&data, "").unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("/nonexistent:{}", dir.path().display());
        let look = |name: &str| find(&[name.to_owned()], &path);
        assert_eq!(look("tool").unwrap(), tool);
        assert_eq!(look(tool.to_str().unwrap()).unwrap(), tool);
        assert_eq!(look("nope"), Err((127, r#"exec: "nope": executable file not found in $PATH"#.into())));
        assert_eq!(look("data"), Err((126, r#"exec: "data": permission denied"#.into())));
        assert_eq!(
            look("/nope"),
            Err((127, r#"exec: "/nope": stat /nope: no such file or directory"#.into()))
        );
        assert_eq!(look("/"), Err((126, r#"exec: "/": is a directory"#.into())));
        assert_eq!(find(&[], &path), Err((126, "exec: no command specified".into())));
    }
}
