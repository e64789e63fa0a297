//! Sandboxes and containers: create, start, signal, figures.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::agent::Caller;
use super::console::Console;
use super::init::Init;
use super::job;
use super::log::{Log, Rotation};
use super::reaper::Task;
use super::sandbox;
use super::server::Server;
use super::spec::{Guard, Surroundings, complete};
use super::streams::{Output, Plumbing};
use crate::api::*;
use crate::cgroup::Cgroups;

/// A container, from the first request until it is removed.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub sandbox: String,
    pub cgroup: String,
    pub root: PathBuf,
    pub guard: Guard,
    pub tty: bool,
    pub stdin_once: bool,
    pub log: Log,
    /// `None` while its job is at work.
    pub state: Option<State>,
    pub pid: i32,
    pub started_at: i128,
    pub exit: Option<Exit>,
    pub outputs: Vec<Output>,
    /// Our write end of its stdin.
    pub stdin: Option<OwnedFd>,
    pub pty: Option<OwnedFd>,
    /// Its process has ended but its output may not have been read to the end.
    pub ending: Option<(std::time::Instant, Exit)>,
}

impl Container {
    /// What the agent may know; nothing before it has been created.
    pub fn status(&self) -> Option<ContainerStatus> {
        Some(ContainerStatus {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            state: self.state?,
            pid: self.pid,
            started_at: self.started_at,
            exit: self.exit.clone(),
        })
    }

    /// True while its first process is there.
    pub fn is_alive(&self) -> bool {
        self.pid > 0
    }
}

/// Nanoseconds since the epoch.
pub fn now() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}

impl Server {
    pub fn create_sandbox(&mut self, caller: Caller, spec: SandboxSpec) {
        let busy = self.sandboxes.contains_key(&spec.id)
            || self.jobs.values().any(|(_, task)| task.sandbox() == Some(&spec.id));
        let started = if busy {
            Err(Error::AlreadyExists { what: "sandbox".into(), id: spec.id.clone() })
        } else {
            sandbox::check(&spec, &self.options.cgroup).and_then(|()| {
                job::spawn(&[], |_| sandbox::make(&spec).map(|fds| (0, fds)))
                    .map_err(|error| Error::failed("create sandbox", &spec.id, error))
            })
        };
        match started {
            Ok(job) => {
                self.jobs.insert(job.pid, (job, Task::Sandbox { caller, spec }));
                self.wake_cgroups();
            }
            Err(error) => drop(self.answer(caller, Err(error), Vec::new())),
        }
    }

    /// The kernel's first move of a process between cgroups after a rest waits for a grace period, some 15 ms. A Pod's
    /// first container comes right after its network: a child that moves to where it is already makes the wait begin now.
    fn wake_cgroups(&self) {
        let (cgroups, own) = (&self.cgroups, format!("{}/shim", self.options.cgroup));
        let woken = job::spawn(&[], |_| {
            let _ = cgroups.attach_identity(&own, std::process::id() as i32);
            Ok((0, Vec::new()))
        });
        if let Err(error) = woken {
            super::report(&format!("wake cgroups: {error}"));
        }
    }

    pub fn create(&mut self, caller: Caller, request: ContainerSpec) {
        if let Err(error) = self.begin_create(caller, request) {
            self.answer(caller, Err(error), Vec::new());
        }
    }

    fn begin_create(&mut self, caller: Caller, request: ContainerSpec) -> Result<()> {
        let ContainerSpec { id, sandbox, mut spec, rootfs, log_path, stdin, stdin_once } = request;
        check_id(&id)?;
        if self.containers.contains_key(&id) {
            return Err(Error::AlreadyExists { what: "container".into(), id });
        }
        let sandbox = self.sandboxes.get(&sandbox).ok_or_else(|| Error::not_found("sandbox", &sandbox))?;
        let Rootfs::Overlay { lower, scratch } = rootfs;
        let root = super::rootfs::merged(&scratch);
        let cgroup = format!("{}/{id}", sandbox.spec.cgroup);
        let tty = spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false));
        let surroundings = Surroundings {
            rootfs: &root,
            cgroup: &cgroup,
            namespaces: sandbox.descriptors(),
            shm: &sandbox.shm,
            unified: self.cgroups.is_unified(),
        };
        let guard = complete(&mut spec, &surroundings)?;
        let failed = |what: &str, error: std::io::Error| Error::failed(what, &id, error);
        let log = Log::open(&log_path, Rotation::default())
            .map_err(|error| failed("open log of container", error))?;
        self.counter += 1;
        let (theirs, console, ours) = Plumbing::lay(tty, stdin, &self.options.run_dir, self.counter)
            .map_err(|error| failed("make streams of container", error))?
            .split();
        let mut keep: Vec<RawFd> = sandbox.descriptors().to_vec();
        keep.extend(theirs.descriptors());
        let (oci, cgroups, model) = (&self.oci, &self.cgroups, &guard);
        let job = job::spawn(&keep, |report| {
            super::rootfs::mount_overlay(&lower, &scratch)
                .map_err(|error| format!("mount overlay at {}: {error}", scratch.display()))?;
            prepare_job(cgroups, &cgroup, model)?;
            let init = process_init(model, &model.process, report, false);
            let pid = oci.create(&id, &spec, theirs, init)?;
            restrict_devices(cgroups, &cgroup, model)
                .inspect_err(|_| drop(send_signal(pid, libc::SIGKILL)))?;
            Ok((pid, Vec::new()))
        })
        .map_err(|error| failed("create container", error))?;
        let container = Container {
            id: id.clone(),
            sandbox: sandbox.spec.id.clone(),
            cgroup,
            root,
            guard,
            tty,
            stdin_once,
            log,
            state: None,
            pid: 0,
            started_at: 0,
            exit: None,
            outputs: Vec::new(),
            stdin: ours.stdin,
            pty: None,
            ending: None,
        };
        self.containers.insert(id.clone(), container);
        self.jobs.insert(job.pid, (job, Task::Create { caller, id, console, outputs: ours.outputs }));
        Ok(())
    }

    /// The job of `id` has ended well: its process waits to be started.
    pub fn created(
        &mut self,
        id: &str,
        pid: i32,
        console: Option<Console>,
        outputs: Vec<(super::log::Stream, OwnedFd)>,
    ) -> Result<()> {
        let failed = |error: std::io::Error| Error::failed("watch output of container", id, error);
        let container = self.containers.get_mut(id).ok_or_else(|| Error::not_found("container", id))?;
        container.pid = pid;
        container.state = Some(State::Created);
        for (stream, fd) in outputs {
            container.outputs.push(Output::watch(fd, id, stream, &mut self.poll).map_err(failed)?);
        }
        if let Some(console) = console {
            let master = console
                .master()
                .map_err(|error| Error::failed("receive terminal of container", id, error))?;
            let copy = super::server::duplicate(master.as_fd())?;
            let stream = super::log::Stream::Stdout;
            container.outputs.push(Output::watch(copy, id, stream, &mut self.poll).map_err(failed)?);
            container.pty = Some(master);
        }
        Ok(())
    }

    pub fn start(&mut self, id: &str) -> Result<ContainerStatus> {
        let container = self.containers.get_mut(id).ok_or_else(|| Error::not_found("container", id))?;
        if container.state != Some(State::Created) || !container.is_alive() {
            return Err(Error::WrongState { id: id.to_owned(), wanted: "created".to_owned() });
        }
        self.oci.start(id).map_err(|message| Error::failed("start container", id, message))?;
        container.state = Some(State::Running);
        container.started_at = now();
        container.status().ok_or_else(|| Error::not_found("container", id))
    }

    pub fn kill(&mut self, id: &str, signal: i32) -> Result<()> {
        let container = self.containers.get(id).ok_or_else(|| Error::not_found("container", id))?;
        if !container.is_alive() {
            // Killing what has ended is done already; what it left in its cgroup goes too.
            if signal == libc::SIGKILL {
                self.cgroups.kill(&container.cgroup);
            }
            return Ok(());
        }
        send_signal(container.pid, signal).map_err(|error| Error::failed("signal container", id, error))?;
        if signal == libc::SIGKILL && !container.guard.own_pid_namespace {
            self.cgroups.kill(&container.cgroup);
        }
        Ok(())
    }

    pub fn stats(&self, id: &str) -> Result<Stats> {
        let container = self.containers.get(id).ok_or_else(|| Error::not_found("container", id))?;
        Ok(self.cgroups.stats(&container.cgroup))
    }
}

/// Sends a signal by number: images name real-time signals too (`STOPSIGNAL SIGRTMIN+3`).
pub fn send_signal(pid: i32, signal: i32) -> std::io::Result<()> {
    if pid <= 0 {
        return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: sending a signal touches no memory; `pid` is one process, never a group.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn check_id(id: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+');
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.bytes().all(good) {
        return Err(Error::Invalid(format!("container id {id:?}")));
    }
    Ok(())
}

/// The last steps of a process of a container with this guard.
pub fn process_init(
    guard: &Guard,
    process: &libcontainer::oci_spec::runtime::Process,
    report: BorrowedFd<'_>,
    further: bool,
) -> Init {
    Init {
        args: process.args().clone().unwrap_or_default(),
        env: process.env().clone().unwrap_or_default(),
        cwd: process.cwd().clone(),
        uid: process.user().uid(),
        capabilities: guard.capabilities.clone(),
        filters: guard.filters.clone(),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        report: report.as_raw_fd(),
        further,
        home: Default::default(),
    }
}

/// In the job, which the container's process is a copy of: what the library leaves undone.
pub fn prepare_job(cgroups: &Cgroups, cgroup: &str, guard: &Guard) -> std::result::Result<(), String> {
    let me = std::process::id() as i32;
    cgroups.attach_remaining(cgroup, me).map_err(|error| format!("attach to cgroup {cgroup}: {error}"))?;
    set_oom_score(me, guard.oom_score_adj).map_err(|error| format!("set OOM score: {error}"))
}

/// The library writes device rules where v1 has files for them; the unified hierarchy takes a program.
fn restrict_devices(cgroups: &Cgroups, cgroup: &str, guard: &Guard) -> std::result::Result<(), String> {
    match cgroups.unified(cgroup) {
        Some(folder) if cgroups.is_unified() => super::devices::restrict(&folder, &guard.devices)
            .map_err(|error| format!("restrict devices of {cgroup}: {error}")),
        _ => Ok(()),
    }
}

/// Lowering below what it was takes CAP_SYS_RESOURCE: without it the score stays as near as permitted.
fn set_oom_score(pid: i32, score: i32) -> std::io::Result<()> {
    let file = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
    match fs::write(&file, score.to_string()) {
        Err(error) if score < 0 && error.kind() == std::io::ErrorKind::PermissionDenied => {
            lower_to_zero(&file)
        }
        other => other,
    }
}

fn lower_to_zero(file: &Path) -> std::io::Result<()> {
    match fs::write(file, "0") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}
