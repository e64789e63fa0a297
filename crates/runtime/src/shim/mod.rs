//! The shim: one single-threaded process per node that is the node's network and mount namespace and forks every
//! container.
//!
//! Why a process of its own: creating containers from a process with threads deadlocks (locks held across clone) and
//! goes wrong (the working folder is the process'). It owns `waitpid`, terminals, pipes and logs, sits in a session and
//! cgroup of its own, and outlives the agent; the next agent finds everything in place.
//!
//! ```text
//! entry (fork) ─ parent: waits for "ready", exits 0 / prints why not, exits 1
//!              └ child:  setsid, own cgroup, unshare(net, mount), listen, event loop ([`server`])
//!                          └ job per create/exec/sandbox ([`job`]) ─ clones container processes as the shim's children
//! ```
//! Invariants: nothing here starts a thread; nothing that can block for long runs outside a job; whatever is found under
//! the cluster's cgroup at start is a leftover of a dead shim and is ended.

mod agent;
mod caps;
mod cleanup;
mod console;
mod containers;
mod devices;
mod exec;
mod init;
mod job;
mod log;
mod oci;
mod reaper;
mod rootfs;
mod sandbox;
mod server;
mod spec;
mod streams;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, fork};

use crate::cgroup::Cgroups;
use crate::client::ShimOptions;

pub(crate) use cleanup::remove_files;
pub use log::rotated;

/// `argv[0]` of a shim, and its name in `ps`.
pub const NAME: &str = "skiff-shim";

/// If this process was started to be a shim, becomes it and never returns. To be called first thing in `main`.
pub fn enter_if_asked() {
    // Not `std::env::args`: a test calls this before the standard library has looked at them.
    let Ok(line) = std::fs::read("/proc/self/cmdline") else { return };
    let mut args = line.split(|&byte| byte == 0).filter(|arg| !arg.is_empty());
    let is_shim = args.next().is_some_and(|name| name == NAME.as_bytes());
    if is_shim {
        use std::os::unix::ffi::OsStringExt;
        main(args.map(|arg| OsString::from_vec(arg.to_vec())).collect());
    }
}

/// The shim's life: `args` is its options in JSON ([`ShimOptions`]).
pub fn main(args: Vec<OsString>) -> ! {
    let options = args.first().and_then(|arg| arg.to_str()).and_then(|arg| serde_json::from_str(arg).ok());
    let Some(options) = options else {
        eprintln!("skiff-shim is started by the node agent");
        std::process::exit(2);
    };
    let code = match daemonize(options) {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("{message}");
            1
        }
    };
    std::process::exit(code)
}

/// Forks the shim proper and waits until it listens.
fn daemonize(options: ShimOptions) -> Result<(), String> {
    let (mut ready, tell) = std::io::pipe().map_err(|error| format!("make pipe: {error}"))?;
    // SAFETY: this process has a single thread.
    match unsafe { fork() }.map_err(|error| format!("fork: {error}"))? {
        ForkResult::Parent { .. } => {
            drop(tell);
            let mut message = String::new();
            ready.read_to_string(&mut message).map_err(|error| format!("wait for shim: {error}"))?;
            if message == "ready" { Ok(()) } else { Err(format!("start shim: {message}")) }
        }
        ForkResult::Child => {
            drop(ready);
            let code = match set_up(options) {
                Ok(server) => {
                    let mut tell = tell;
                    let _ = tell.write_all(b"ready");
                    drop(tell);
                    server.run();
                    0
                }
                Err(message) => {
                    let mut tell = tell;
                    let _ = tell.write_all(message.as_bytes());
                    1
                }
            };
            std::process::exit(code)
        }
    }
}

/// Everything before the event loop, in the order that makes a failure leave nothing behind.
fn set_up(options: ShimOptions) -> Result<server::Server, String> {
    let context = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    std::fs::create_dir_all(&options.run_dir).map_err(context("create run folder"))?;
    let lock = lock(&options.run_dir)?;
    become_daemon(&options.run_dir).map_err(context("leave the caller's session"))?;
    let cgroups = Cgroups::detect().map_err(context("find cgroups"))?;
    cleanup::end_leftovers(&cgroups, &options)?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|error| format!("unshare network and mount namespaces: {error}"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|error| format!("make mounts private to the node: {error}"))?;
    keep_binary(&options.run_dir).map_err(context("keep the running binary"))?;
    let (own, cgroups_again) = (format!("{}/shim", options.cgroup), cgroups.clone());
    let server = server::Server::new(options, cgroups, lock).map_err(context("listen"))?;
    if let Err(error) = cgroups_again.attach_identity(&own, std::process::id() as i32) {
        report(&format!("join cgroup {own}: {error}"));
    }
    Ok(server)
}

const WHOLE: libc::flock = libc::flock {
    l_type: libc::F_WRLCK as i16,
    l_whence: libc::SEEK_SET as i16,
    l_start: 0,
    l_len: 0,
    l_pid: 0,
};

/// The process id of the shim that lives in that folder, asked of the kernel: who holds the lock. Needs no connection,
/// so an agent keeps its own.
pub fn holder(run_dir: &Path) -> Option<i32> {
    let file = std::fs::File::open(run_dir.join("shim.lock")).ok()?;
    let mut found = WHOLE;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETLK(&mut found)).ok()?;
    (found.l_type != libc::F_UNLCK as i16).then_some(found.l_pid)
}

/// A record lock on the run folder: not inherited by children, gone with the process.
///
/// A shim that is just dying is waited for; one that lives keeps its lock.
fn lock(run_dir: &Path) -> Result<OwnedFd, String> {
    let path = run_dir.join("shim.lock");
    let file = std::fs::OpenOptions::new().create(true).write(true).truncate(false).open(&path);
    let file = file.map_err(|error| format!("open {}: {error}", path.display()))?;
    for _ in 0..100 {
        if nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&WHOLE)).is_ok() {
            return Ok(file.into());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err(format!("another shim holds {}", path.display()))
}

/// Ends and removes what a shim left behind; refuses while one lives.
pub(crate) fn remove_leftovers(options: &ShimOptions) -> Result<(), String> {
    let lock = match options.run_dir.is_dir() {
        true => Some(lock(&options.run_dir)?),
        false => None,
    };
    let cgroups = Cgroups::detect().map_err(|error| format!("find cgroups: {error}"))?;
    cleanup::end_leftovers(&cgroups, options)?;
    cleanup::remove_files(options);
    drop(lock);
    Ok(())
}

/// Own session, no terminal, log file for errors, empty environment, no signal or limit of the caller.
fn become_daemon(run_dir: &Path) -> std::io::Result<()> {
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(run_dir.join("shim.log"))?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for (from, to) in [(null.as_raw_fd(), 0), (log.as_raw_fd(), 1), (log.as_raw_fd(), 2)] {
        // SAFETY: 0, 1 and 2 are this process' own standard streams.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    #[expect(clippy::disallowed_methods, reason = "what the daemon read must not reach containers")]
    for (name, _) in std::env::vars_os() {
        // SAFETY: this process has a single thread.
        unsafe { std::env::remove_var(name) };
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // The library leaves a container without supplementary groups those of its creator.
    nix::unistd::setgroups(&[])?;
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::sys::prctl::set_name(c"skiff-shim")?;
    raise_file_limit();
    protect_from_oom();
    Ok(())
}

fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// The node must be the last to go; where that is not permitted the score stays as it is.
fn protect_from_oom() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
}

/// Binds the binary that runs here to `<run_dir>/skiff` in the node's mount namespace: a built-in image mounts it, also
/// after an upgrade has replaced the file on the host. One that is replaced already is copied.
fn keep_binary(run_dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let target = run_dir.join("skiff");
    let (running, path) = (std::fs::metadata("/proc/self/exe")?, std::fs::read_link("/proc/self/exe")?);
    let same =
        std::fs::metadata(&path).is_ok_and(|file| (file.dev(), file.ino()) == (running.dev(), running.ino()));
    let _ = std::fs::remove_file(&target);
    if !same {
        std::fs::copy("/proc/self/exe", &target)?;
        return Ok(());
    }
    std::fs::File::create(&target)?;
    mount(Some(&path), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Says something in the shim's own log.
fn report(message: &str) {
    eprintln!("{:.3} {message}", jiff::Timestamp::now());
}
