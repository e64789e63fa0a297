//! The event loop: one epoll over the listener, the agent, SIGCHLD and every container's output.
//!
//! Nothing in a turn of the loop waits: work that may block is a [`super::job`], and what cannot be done yet (removing a
//! cgroup whose last process is just dying) is tried again at the end of each turn, every few milliseconds.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{Backlog, SockFlag, accept4, bind, listen};

use super::agent::{Agent, Caller, Incoming};
use super::containers::Container;
use super::exec::Further;
use super::job::Job;
use super::log::Stream;
use super::oci::{Libcontainer, OciRuntime};
use super::reaper::{Removal, Task};
use super::sandbox::Sandbox;
use super::streams::Sink;
use crate::api::*;
use crate::cgroup::Cgroups;
use crate::client::ShimOptions;
use crate::proto::{self, Notice, Reply, Request};

/// How long the loop sleeps while something waits for a process to be gone.
const RETRY_MS: u16 = 2;

/// Where an event comes from.
#[derive(Debug, Clone)]
pub enum Source {
    Listener,
    Signals,
    Agent,
    Output { container: String, stream: Stream },
    Sink,
}

/// The descriptors the loop watches.
#[derive(Debug)]
pub struct Poll {
    epoll: Epoll,
    sources: HashMap<u64, Source>,
    next: u64,
}

impl Poll {
    fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, sources: HashMap::new(), next: 1 })
    }

    pub fn add(&mut self, fd: impl AsFd, events: EpollFlags, source: Source) -> io::Result<u64> {
        let token = self.next;
        self.next += 1;
        self.epoll.add(fd, EpollEvent::new(events, token))?;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub fn modify(&self, fd: impl AsFd, token: u64, events: EpollFlags) {
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(events, token));
    }

    pub fn remove(&mut self, fd: impl AsFd, token: u64) {
        let _ = self.epoll.delete(fd);
        self.sources.remove(&token);
    }
}

/// Everything the shim holds.
pub struct Server {
    pub options: ShimOptions,
    pub cgroups: Cgroups,
    pub oci: Box<dyn OciRuntime>,
    pub poll: Poll,
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub containers: BTreeMap<String, Container>,
    pub furthers: HashMap<u64, Further>,
    pub sinks: HashMap<u64, Sink>,
    pub jobs: HashMap<i32, (Job, Task)>,
    /// Children that ended before the job that made them was heard.
    pub early: HashMap<i32, i32>,
    pub removals: Vec<Removal>,
    pub counter: u64,
    pub ended: bool,
    agent: Option<Agent>,
    listener: OwnedFd,
    signals: SignalFd,
    node_netns: OwnedFd,
    _lock: OwnedFd,
}

impl Server {
    pub fn new(options: ShimOptions, cgroups: Cgroups, lock: OwnedFd) -> io::Result<Self> {
        let signals = catch_signals()?;
        let listener = listen_at(&options)?;
        let mut poll = Poll::new()?;
        poll.add(&listener, EpollFlags::EPOLLIN, Source::Listener)?;
        poll.add(&signals, EpollFlags::EPOLLIN, Source::Signals)?;
        Ok(Self {
            oci: Box::new(Libcontainer::new(&options.run_dir)?),
            options,
            cgroups,
            poll,
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            furthers: HashMap::new(),
            sinks: HashMap::new(),
            jobs: HashMap::new(),
            early: HashMap::new(),
            removals: Vec::new(),
            counter: 0,
            ended: false,
            agent: None,
            listener,
            signals,
            node_netns: std::fs::File::open("/proc/self/ns/net")?.into(),
            _lock: lock,
        })
    }

    /// Serves until told to end.
    pub fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        while !self.ended {
            let timeout = if self.is_impatient() { EpollTimeout::from(RETRY_MS) } else { EpollTimeout::NONE };
            let count = match self.poll.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    super::report(&format!("epoll: {error}"));
                    return;
                }
            };
            for event in &events[..count] {
                self.handle(event.data(), event.events());
            }
            self.retry();
        }
        let _ = std::fs::remove_file(&self.options.socket);
    }

    fn handle(&mut self, token: u64, events: EpollFlags) {
        let Some(source) = self.poll.sources.get(&token).cloned() else { return };
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.read_signals(),
            Source::Agent => self.serve_agent(token, events),
            Source::Output { container, stream } => self.pump(&container, stream),
            Source::Sink => self.drain_sink(token, events),
        }
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) else { return };
        // SAFETY: accept4 has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        self.drop_agent();
        match self.poll.add(&socket, EpollFlags::EPOLLIN, Source::Agent) {
            Ok(token) => self.agent = Some(Agent::new(socket, token)),
            Err(error) => super::report(&format!("watch agent: {error}")),
        }
    }

    fn drop_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            self.poll.remove(agent.as_fd(), agent.token);
        }
    }

    fn serve_agent(&mut self, token: u64, events: EpollFlags) {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.token == token) else { return };
        if events.contains(EpollFlags::EPOLLOUT) && !agent.flush() {
            return self.drop_agent();
        }
        self.watch_agent();
        // One packet a turn: output of containers is not kept waiting by a burst of calls.
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP) {
            match self.agent.as_ref().map(Agent::read) {
                Some(Incoming::Call(call)) => {
                    let caller = Caller { connection: token, call: call.id };
                    self.dispatch(caller, call.request);
                }
                Some(Incoming::Gone) => self.drop_agent(),
                Some(Incoming::Nothing) | None => {}
            }
        }
    }

    fn watch_agent(&self) {
        if let Some(agent) = &self.agent {
            let mut events = EpollFlags::EPOLLIN;
            events.set(EpollFlags::EPOLLOUT, agent.is_waiting());
            self.poll.modify(agent.as_fd(), agent.token, events);
        }
    }

    fn read_signals(&mut self) {
        let mut terminate = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            terminate |= info.ssi_signo == Signal::SIGTERM as u32;
        }
        self.reap();
        if terminate {
            self.removals.push(Removal::everything(None));
        }
    }

    /// Answers `caller` if it is still there; false when the answer went nowhere.
    pub fn answer(&mut self, caller: Caller, result: Result<Reply>, fds: Vec<OwnedFd>) -> bool {
        let Some(agent) = self.agent.as_mut().filter(|agent| agent.token == caller.connection) else {
            return false;
        };
        let sent = agent.reply(caller.call, result, fds);
        self.after_send(sent)
    }

    /// Tells the agent something unasked.
    pub fn tell(&mut self, notice: Notice) {
        if let Some(agent) = self.agent.as_mut() {
            let sent = agent.send(notice, Vec::new());
            self.after_send(sent);
        }
    }

    fn after_send(&mut self, sent: bool) -> bool {
        if sent {
            self.watch_agent()
        } else {
            self.drop_agent()
        }
        sent
    }

    fn dispatch(&mut self, caller: Caller, request: Request) {
        let done = |result: Result<()>| result.map(|()| Reply::Done);
        let answer = match request {
            Request::Hello { .. } => {
                let (version, pid) = (proto::VERSION, std::process::id() as i32);
                Ok(Reply::Hello { version, pid })
            }
            Request::CreateSandbox(spec) => return self.create_sandbox(caller, spec),
            Request::Create(spec) => return self.create(caller, *spec),
            Request::Exec { id, spec } => return self.exec(caller, &id, spec),
            Request::Attach(id) => return self.attach(caller, &id),
            Request::Remove(id) => return self.removals.push(Removal::container(caller, id)),
            Request::RemoveSandbox(id) => return self.removals.push(Removal::sandbox(caller, id)),
            Request::Shutdown => return self.removals.push(Removal::everything(Some(caller))),
            Request::SandboxNetns(id) => {
                let found = self.sandboxes.get(&id).ok_or_else(|| Error::not_found("sandbox", &id));
                let netns = found.and_then(|sandbox| duplicate(sandbox.net.as_fd()));
                return self.answer_fd(caller, netns);
            }
            Request::NodeNetns => {
                let netns = duplicate(self.node_netns.as_fd());
                return self.answer_fd(caller, netns);
            }
            Request::Start(id) => self.start(&id).map(Reply::Status),
            Request::Kill { id, signal } => done(self.kill(&id, signal)),
            Request::KillExec { exec, signal } => done(self.kill_exec(exec, signal)),
            Request::List => Ok(Reply::Snapshot(self.snapshot())),
            Request::Stats(id) => self.stats(&id).map(Reply::Stats),
            Request::MountTmpfs { path, size, mode } => done(mount_volume(path, size, mode)),
            Request::Unmount(path) => done(
                super::rootfs::unmount(&path)
                    .map_err(|error| Error::failed("unmount", path.display().to_string(), error)),
            ),
        };
        self.answer(caller, answer, Vec::new());
    }

    fn answer_fd(&mut self, caller: Caller, fd: Result<OwnedFd>) {
        match fd {
            Ok(fd) => self.answer(caller, Ok(Reply::Done), vec![fd]),
            Err(error) => self.answer(caller, Err(error), Vec::new()),
        };
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            sandboxes: self.sandboxes.keys().cloned().collect(),
            containers: self.containers.values().filter_map(Container::status).collect(),
        }
    }
}

fn mount_volume(path: PathBuf, size: Option<u64>, mode: u32) -> Result<()> {
    use nix::mount::MsFlags;
    super::rootfs::mount_tmpfs(&path, size, mode, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
        .map_err(|error| Error::failed("mount tmpfs", path.display().to_string(), error))
}

/// A copy of a descriptor, closed on `exec`.
pub fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().map_err(|error| Error::failed("duplicate", "descriptor", error))
}

fn listen_at(options: &ShimOptions) -> io::Result<OwnedFd> {
    if let Some(folder) = options.socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // The lock says that nobody listens there.
    let _ = std::fs::remove_file(&options.socket);
    let listener = proto::socket()?;
    let (address, _folder) = proto::address(&options.socket)?;
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &address);
    nix::sys::stat::umask(before);
    bound?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

fn catch_signals() -> io::Result<SignalFd> {
    let mut caught = SigSet::empty();
    caught.add(Signal::SIGCHLD);
    caught.add(Signal::SIGTERM);
    caught.thread_block()?;
    for ignored in [Signal::SIGPIPE, Signal::SIGHUP, Signal::SIGINT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { nix::sys::signal::signal(ignored, SigHandler::SigIgn) }?;
    }
    Ok(SignalFd::with_flags(&caught, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}
