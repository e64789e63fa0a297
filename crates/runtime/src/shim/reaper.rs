//! Ends: of jobs, of containers, of further processes; and removing what has ended.
//!
//! A removal is a small state machine that is stepped after every turn of the loop until there is nothing left of the
//! container: process, open output, cgroup, mount, state. It goes on when its agent is gone.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::agent::Caller;
use super::console::Console;
use super::containers::{now, send_signal};
use super::exec::{AgentEnds, Further};
use super::log::Stream;
use super::sandbox::Sandbox;
use super::server::Server;
use crate::api::*;
use crate::proto::{Notice, Reply};

/// How long output is awaited of descriptors that outlive the container's process (a daemon in the host's pid namespace).
const LINGER: Duration = Duration::from_millis(250);
/// After this a removal gives up; the object stays and may be removed again.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a job was for.
#[derive(Debug)]
pub enum Task {
    Sandbox { caller: Caller, spec: SandboxSpec },
    Create { caller: Caller, id: String, console: Option<Console>, outputs: Vec<(Stream, OwnedFd)> },
    Exec { caller: Caller, exec: u64, container: String, ends: AgentEnds },
}

impl Task {
    /// The sandbox it makes.
    pub fn sandbox(&self) -> Option<&str> {
        match self {
            Self::Sandbox { spec, .. } => Some(&spec.id),
            _ => None,
        }
    }

    /// The container it works on.
    fn container(&self) -> Option<&str> {
        match self {
            Self::Sandbox { .. } => None,
            Self::Create { id, .. } => Some(id),
            Self::Exec { container, .. } => Some(container),
        }
    }
}

#[derive(Debug)]
enum What {
    Container(String),
    Sandbox(String),
    Everything,
}

/// A removal under way.
#[derive(Debug)]
pub struct Removal {
    caller: Option<Caller>,
    what: What,
    deadline: Instant,
}

impl Removal {
    fn new(caller: Option<Caller>, what: What) -> Self {
        Self { caller, what, deadline: Instant::now() + PATIENCE }
    }

    pub fn container(caller: Caller, id: String) -> Self {
        Self::new(Some(caller), What::Container(id))
    }

    pub fn sandbox(caller: Caller, id: String) -> Self {
        Self::new(Some(caller), What::Sandbox(id))
    }

    pub fn everything(caller: Option<Caller>) -> Self {
        Self::new(caller, What::Everything)
    }
}

/// `None`: not yet.
type Step = Option<Result<()>>;

impl Server {
    /// Collects every child that has ended.
    pub fn reap(&mut self) {
        while let Some((pid, status)) = next_ended() {
            self.child_ended(pid, status);
        }
        if self.jobs.is_empty() {
            self.early.clear();
        }
    }

    fn child_ended(&mut self, pid: i32, status: i32) {
        if let Some((job, task)) = self.jobs.remove(&pid) {
            return self.job_ended(job.result(), task);
        }
        let container = self.containers.values().find(|container| container.pid == pid);
        if let Some(id) = container.map(|container| container.id.clone()) {
            return self.container_ended(&id, status);
        }
        let exec = self.furthers.iter().find(|(_, further)| further.pid == pid).map(|(&exec, _)| exec);
        match exec {
            Some(exec) => self.further_ended(exec, status),
            None => drop(self.early.insert(pid, status)),
        }
    }

    fn job_ended(&mut self, result: Result<(i32, Vec<OwnedFd>)>, task: Task) {
        match task {
            Task::Sandbox { caller, spec } => {
                let folder = self.options.run_dir.join("shm");
                let adopted = result
                    .map_err(|error| of_job(error, "create sandbox", &spec.id))
                    .and_then(|(_, fds)| Sandbox::adopt(spec, fds, &folder));
                let answer = adopted.map(|sandbox| {
                    self.sandboxes.insert(sandbox.spec.id.clone(), sandbox);
                    Reply::Done
                });
                self.answer(caller, answer, Vec::new());
            }
            Task::Create { caller, id, console, outputs } => {
                let created = result
                    .map_err(|error| of_job(error, "create container", &id))
                    .and_then(|(pid, _)| self.created(&id, pid, console, outputs).map(|()| pid));
                match created {
                    Ok(pid) => {
                        self.answer(caller, Ok(Reply::Done), Vec::new());
                        if let Some(status) = self.ended_early(pid) {
                            self.container_ended(&id, status);
                        }
                    }
                    Err(error) => self.abandon(caller, id, error),
                }
            }
            Task::Exec { caller, exec, container, ends } => {
                let started = result
                    .map_err(|error| of_job(error, "execute in container", &container))
                    .and_then(|(pid, _)| ends.reply(exec).map(|reply| (pid, reply)));
                match started {
                    Ok((pid, (reply, fds))) => self.further_started(caller, exec, pid, reply, fds),
                    Err(error) => drop(self.answer(caller, Err(error), Vec::new())),
                }
            }
        }
    }

    /// The status of a process that ended before its job was heard. One that is there has a number used before.
    fn ended_early(&mut self, pid: i32) -> Option<i32> {
        let status = self.early.remove(&pid)?;
        send_signal(pid, 0).is_err().then_some(status)
    }

    /// A container that could not be created: its remains go, then the caller hears why.
    fn abandon(&mut self, caller: Caller, id: String, error: Error) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.state.get_or_insert(State::Exited);
            if container.pid > 0 {
                let _ = send_signal(container.pid, libc::SIGKILL);
            }
        }
        self.answer(caller, Err(error), Vec::new());
        self.removals.push(Removal::new(None, What::Container(id)));
    }

    fn further_started(&mut self, caller: Caller, exec: u64, pid: i32, reply: Reply, fds: Vec<OwnedFd>) {
        self.furthers.insert(exec, Further { pid });
        if !self.answer(caller, Ok(reply), fds) {
            // Nobody waits for it any more.
            let _ = send_signal(pid, libc::SIGKILL);
        }
        if let Some(status) = self.ended_early(pid) {
            self.further_ended(exec, status);
        }
    }

    fn further_ended(&mut self, exec: u64, status: i32) {
        self.furthers.remove(&exec);
        self.tell(Notice::ExecExited { exec, exit: exit_of(status, false) });
    }

    /// The first process has ended: what others left in the cgroup is killed, output is read to its end.
    fn container_ended(&mut self, id: &str, status: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.pid = 0;
        let oom_killed = self.cgroups.oom_kills(&container.cgroup) > 0;
        container.ending = Some((Instant::now() + LINGER, exit_of(status, oom_killed)));
        self.cgroups.kill(&container.cgroup);
        self.finish(id);
    }

    /// Declares the container ended if its output has been read, or has been waited for long enough.
    fn finish(&mut self, id: &str) {
        self.pump_all(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((deadline, exit)) = &container.ending else { return };
        if !container.outputs.is_empty() && Instant::now() < *deadline {
            return;
        }
        let exit = exit.clone();
        container.ending = None;
        container.state = Some(State::Exited);
        container.exit = Some(exit.clone());
        self.close_streams(id);
        self.tell(Notice::Event(Event::Exited { id: id.to_owned(), exit }));
    }

    /// Whether something waits for time to pass.
    pub fn is_impatient(&self) -> bool {
        !self.removals.is_empty() || self.containers.values().any(|container| container.ending.is_some())
    }

    /// Tries what could not be done before.
    pub fn retry(&mut self) {
        let ending: Vec<String> = self
            .containers
            .values()
            .filter(|container| container.ending.is_some())
            .map(|container| container.id.clone())
            .collect();
        ending.iter().for_each(|id| self.finish(id));
        for removal in std::mem::take(&mut self.removals) {
            let late = Instant::now() > removal.deadline;
            let step = match &removal.what {
                What::Container(id) => self.remove_container(id),
                What::Sandbox(id) => self.remove_sandbox(id),
                What::Everything => self.remove_everything(),
            };
            let result = match step {
                Some(result) => result,
                None if late => {
                    Err(Error::failed("remove", format!("{:?}", removal.what), "its processes do not end"))
                }
                None => {
                    self.removals.push(removal);
                    continue;
                }
            };
            let over = matches!(removal.what, What::Everything);
            if let Err(error) = &result {
                super::report(&error.to_string());
            }
            if let Some(caller) = removal.caller {
                self.answer(caller, result.map(|()| Reply::Done), Vec::new());
            }
            self.ended |= over;
        }
    }

    fn remove_container(&mut self, id: &str) -> Step {
        for (job, task) in self.jobs.values() {
            if task.container() == Some(id) {
                // What it has made so far is in the container's cgroup and at its mount point, and goes with them.
                job.kill();
                return None;
            }
        }
        let Some(container) = self.containers.get(id) else { return Some(Ok(())) };
        let cgroup = container.cgroup.clone();
        if container.is_alive() {
            let _ = send_signal(container.pid, libc::SIGKILL);
            self.cgroups.kill(&cgroup);
            return None;
        }
        if container.ending.is_some() {
            return None;
        }
        if let Err(error) = self.cgroups.remove(&cgroup) {
            self.cgroups.kill(&cgroup);
            if !is_busy(&error) {
                return Some(Err(Error::failed("remove cgroup", cgroup, error)));
            }
            return None;
        }
        self.close_streams(id);
        let container = self.containers.remove(id)?;
        self.oci.forget(id);
        Some(
            super::rootfs::unmount(&container.root)
                .map_err(|error| Error::failed("unmount", container.root.display().to_string(), error)),
        )
    }

    fn remove_sandbox(&mut self, id: &str) -> Step {
        if self.jobs.values().any(|(_, task)| task.sandbox() == Some(id)) {
            return None;
        }
        let inside: Vec<String> = self
            .containers
            .values()
            .filter(|container| container.sandbox == id)
            .map(|container| container.id.clone())
            .collect();
        let mut waiting = false;
        for container in inside {
            match self.remove_container(&container) {
                None => waiting = true,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(())) => {}
            }
        }
        if waiting {
            return None;
        }
        let Some(cgroup) = self.sandboxes.get(id).map(|sandbox| sandbox.spec.cgroup.clone()) else {
            return Some(Ok(()));
        };
        match self.cgroups.remove(&cgroup) {
            Err(error) if is_busy(&error) => {
                self.cgroups.kill(&cgroup);
                return None;
            }
            Err(error) => return Some(Err(Error::failed("remove cgroup", cgroup, error))),
            Ok(()) => {}
        }
        if let Some(sandbox) = self.sandboxes.remove(id) {
            sandbox.dismantle();
        }
        Some(Ok(()))
    }

    /// Ends the node: every container at once, then the cgroups, the shim's own among them.
    fn remove_everything(&mut self) -> Step {
        let all: Vec<String> = self.containers.keys().cloned().collect();
        all.iter().for_each(|id| drop(self.remove_container(id)));
        let sandboxes: Vec<String> = self.sandboxes.keys().cloned().collect();
        sandboxes.iter().for_each(|id| drop(self.remove_sandbox(id)));
        if !self.jobs.is_empty() || !self.containers.is_empty() || !self.sandboxes.is_empty() {
            return None;
        }
        let me = std::process::id() as i32;
        let left = self
            .cgroups
            .attach_identity("/", me)
            .and_then(|()| self.cgroups.remove(&self.options.cgroup))
            .map_err(|error| Error::failed("remove cgroup", &self.options.cgroup, error));
        Some(left)
    }
}

fn is_busy(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Gives a job's failure the name of what it was for.
fn of_job(error: Error, operation: &str, object: &str) -> Error {
    match error {
        Error::Failed { message, .. } => Error::failed(operation, object, message),
        other => other,
    }
}

/// A child that has ended and its wait status, as a number: the typed form loses those killed by a real-time signal.
fn next_ended() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the answer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

fn exit_of(status: i32, oom_killed: bool) -> Exit {
    let (code, signal) = if libc::WIFSIGNALED(status) {
        (128 + libc::WTERMSIG(status), Some(libc::WTERMSIG(status)))
    } else {
        (libc::WEXITSTATUS(status), None)
    };
    Exit { code, signal, oom_killed, finished_at: now() }
}
