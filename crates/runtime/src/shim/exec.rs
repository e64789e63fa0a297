//! Further processes in a running container: `kubectl exec`, exec probes, hooks.
//!
//! Their streams go straight to the agent and never through the shim; when the agent is gone they break, as upstream's do.

use std::os::fd::{AsFd, OwnedFd};

use super::agent::Caller;
use super::console::Console;
use super::containers::{prepare_job, process_init, send_signal};
use super::job;
use super::oci::Streams;
use super::reaper::Task;
use super::server::{Server, duplicate};
use super::spec::library_process;
use super::streams::{null, pipe_to_them, pipe_to_us};
use crate::api::*;
use crate::proto::Reply;

/// A running further process.
#[derive(Debug)]
pub struct Further {
    pub pid: i32,
}

/// The agent's ends of its streams.
#[derive(Debug, Default)]
pub struct AgentEnds {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub console: Option<Console>,
}

impl AgentEnds {
    /// The reply that describes them, and them.
    pub fn reply(mut self, exec: u64) -> Result<(Reply, Vec<OwnedFd>)> {
        let mut pty = None;
        if let Some(console) = self.console.take() {
            let master = console
                .master()
                .map_err(|error| Error::failed("receive terminal of process", "exec", error))?;
            super::streams::nonblocking(&master)
                .map_err(|error| Error::failed("prepare terminal of process", "exec", error))?;
            self.stdin = Some(duplicate(master.as_fd())?);
            self.stdout = Some(duplicate(master.as_fd())?);
            pty = Some(master);
        }
        let reply = Reply::Streams {
            exec,
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
            pty: pty.is_some(),
        };
        Ok((reply, [self.stdin, self.stdout, self.stderr, pty].into_iter().flatten().collect()))
    }
}

impl Server {
    pub fn exec(&mut self, caller: Caller, id: &str, request: ExecSpec) {
        if let Err(error) = self.begin_exec(caller, id, request) {
            self.answer(caller, Err(error), Vec::new());
        }
    }

    fn begin_exec(&mut self, caller: Caller, id: &str, request: ExecSpec) -> Result<()> {
        let container = self.containers.get(id).ok_or_else(|| Error::not_found("container", id))?;
        if container.state != Some(State::Running) || !container.is_alive() {
            return Err(Error::WrongState { id: id.to_owned(), wanted: "running".to_owned() });
        }
        if request.args.is_empty() {
            return Err(Error::Exec { code: 126, message: "exec: no command specified".to_owned() });
        }
        let guard = container.guard.clone();
        let mut process = guard.process.clone();
        process.set_args(Some(request.args.clone())).set_terminal(Some(request.tty)).set_console_size(None);
        self.counter += 1;
        let exec = self.counter;
        let (theirs, ends) = lay(&request, &self.options.run_dir, exec)
            .map_err(|error| Error::failed("make streams of process in container", id, error))?;
        let keep = theirs.descriptors();
        let (oci, cgroups) = (&self.oci, &self.cgroups);
        let cgroup = container.cgroup.clone();
        let job = job::spawn(&keep, |report| {
            prepare_job(cgroups, &cgroup, &guard)?;
            let init = process_init(&guard, &process, report, true);
            Ok((oci.exec(id, &library_process(process), theirs, init)?, Vec::new()))
        })
        .map_err(|error| Error::failed("execute in container", id, error))?;
        let task = Task::Exec { caller, exec, container: id.to_owned(), ends };
        self.jobs.insert(job.pid, (job, task));
        Ok(())
    }

    pub fn kill_exec(&mut self, exec: u64, signal: i32) -> Result<()> {
        // One that has ended needs no signal.
        let Some(further) = self.furthers.get(&exec) else { return Ok(()) };
        send_signal(further.pid, signal)
            .map_err(|error| Error::failed("signal process", exec.to_string(), error))
    }
}

fn lay(request: &ExecSpec, run_dir: &std::path::Path, number: u64) -> std::io::Result<(Streams, AgentEnds)> {
    if request.tty {
        let console = Console::listen(&run_dir.join("tty"), number)?;
        let theirs = Streams::Console(console.path().to_owned());
        return Ok((theirs, AgentEnds { console: Some(console), ..AgentEnds::default() }));
    }
    let (input, stdin) = if request.stdin { pipe_to_them()? } else { (null()?, None) };
    let output = |wanted: bool| -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
        if !wanted {
            return Ok((null()?, None));
        }
        pipe_to_us().map(|(theirs, ours)| (theirs, Some(ours)))
    };
    let (out, stdout) = output(request.stdout)?;
    let (err, stderr) = output(request.stderr)?;
    Ok((Streams::Pipes([input, out, err]), AgentEnds { stdin, stdout, stderr, console: None }))
}
