//! The node around the daemon: its lock, the runtime whose threads live in it, and taking it all away.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cluster::Member;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// How long a daemon that was killed may take to be gone, and whoever looks at the lock to let go of it.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Takes the profile's lock, which holds our pid and ends with this process however it ends.
///
/// # Errors
/// When another daemon holds it.
pub fn lock(member: &Member) -> anyhow::Result<Flock<File>> {
    let path = member.lock();
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let mut file = file.with_context(|| format!("open {}", path.display()))?;
    let began = Instant::now();
    let mut lock = loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((unlocked, _)) if began.elapsed() < LOCK_PATIENCE => file = unlocked,
            Err(_) => {
                bail!("the node {:?} is being started or runs already; see: skiff status", member.name())
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    lock.set_len(0).context("write the lock")?;
    writeln!(lock, "{}", std::process::id()).context("write the lock")?;
    Ok(lock)
}

/// A runtime; with a network namespace given, all of its threads are in there.
///
/// # Errors
/// When threads cannot be made.
pub fn runtime(
    name: &str,
    threads: usize,
    netns: Option<OwnedFd>,
) -> anyhow::Result<tokio::runtime::Runtime> {
    let netns = netns.map(Arc::new);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .on_thread_start(move || {
            if let Some(netns) = &netns
                && let Err(error) = setns(netns.as_ref(), CloneFlags::CLONE_NEWNET)
            {
                // A thread in the wrong network would answer for the wrong node.
                tracing::error!(%error, "entering the node's network namespace failed");
                std::process::exit(1);
            }
        })
        .build()
        .with_context(|| format!("start the {name} runtime"))
}

/// Waits until the daemon that was told to stop has ended.
///
/// # Errors
/// When it has not within a minute.
pub fn wait_for_daemon(member: &Member) -> anyhow::Result<()> {
    let began = Instant::now();
    while is_locked(&member.lock()) {
        if began.elapsed() > Duration::from_secs(60) {
            bail!("the daemon does not end; see: sudo skiff logs -n 20");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Tells a daemon that does not listen yet to end, until it has. The lock is its own as long as it lives, and holds its
/// pid.
fn end_daemon(member: &Member) -> anyhow::Result<()> {
    let path = member.lock();
    let mut told = None;
    while is_locked(&path) && told.is_none() {
        let pid = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        told = pid.map(|pid| nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM));
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_for_daemon(member)
}

/// Whether the node's daemon lives.
pub fn has_daemon(member: &Member) -> bool {
    is_locked(&member.lock())
}

fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
}

/// Removes what runs and what the kernel holds of a cluster whose daemon is gone, or does not listen yet: shim, containers,
/// cgroups, links and rules. What is not there is fine.
///
/// # Errors
/// All that could not be removed.
pub fn tear_down(member: &Member) -> anyhow::Result<()> {
    end_daemon(member)?;
    let runtime = runtime("teardown", 1, None)?;
    runtime.block_on(remove(member, None))
}

/// Ends the shim, or what a dead one has left, and removes the host's side of the network.
///
/// # Errors
/// All that could not be removed.
pub async fn remove(member: &Member, shim: Option<runtime::Runtime>) -> anyhow::Result<()> {
    let options = super::components::shim_options(member);
    let shim = match shim {
        Some(shim) => Some(shim),
        None => runtime::Runtime::connect(options.clone()).await.ok().map(|(shim, _)| shim),
    };
    let ended = match shim {
        Some(shim) => shim.shutdown().await,
        None => Ok(()),
    };
    // A shim that died with the answer on its lips has left its containers.
    let swept = runtime::Runtime::remove_leftovers(options).await;
    // The host's part is the whole cluster's and goes with the first node, which goes last.
    let unlinked = match member.is_control_plane() {
        true => super::network::remove_from_host(&member.profile).await,
        false => Ok(()),
    };
    let failures: Vec<String> = [
        ended.and(swept).err().map(|e| format!("end the node: {e}")),
        unlinked.err().map(|e| format!("{e:#}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("; "))
}
