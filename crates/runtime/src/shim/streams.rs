//! Containers' output: read once, written to the log, copied to whoever is attached; and their input.
//!
//! A reader that is slow holds the container back, as upstream's do: an attached client's queue over its limit stops the
//! reading of that stream until the queue is shorter. A reader that is gone is dropped.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::EpollFlags;

use super::agent::Caller;
use super::console::Console;
use super::log::Stream;
use super::oci::Streams;
use super::server::{Poll, Server, Source, duplicate};
use crate::api::*;
use crate::proto::Reply;

/// Read per stream and turn of the loop.
const CHUNK: usize = 64 * 1024;
/// Bytes waiting for an attached client at which its stream is no longer read.
const QUEUE_MAX: usize = 256 * 1024;

/// The streams of a new process, both ends.
pub struct Plumbing {
    theirs: Streams,
    console: Option<Console>,
    ours: OurEnds,
}

/// The ends that stay in the shim.
pub struct OurEnds {
    pub stdin: Option<OwnedFd>,
    pub outputs: Vec<(Stream, OwnedFd)>,
}

impl Plumbing {
    /// Pipes, or a console socket for a terminal.
    pub fn lay(tty: bool, stdin: bool, run_dir: &Path, number: u64) -> io::Result<Self> {
        if tty {
            let console = Console::listen(&run_dir.join("tty"), number)?;
            let theirs = Streams::Console(console.path().to_owned());
            let ours = OurEnds { stdin: None, outputs: Vec::new() };
            return Ok(Self { theirs, console: Some(console), ours });
        }
        let (input, stdin) = if stdin { pipe_to_them()? } else { (null()?, None) };
        let (stdout, output) = pipe_to_us()?;
        let (stderr, errors) = pipe_to_us()?;
        let outputs = vec![(Stream::Stdout, output), (Stream::Stderr, errors)];
        let theirs = Streams::Pipes([input, stdout, stderr]);
        Ok(Self { theirs, console: None, ours: OurEnds { stdin, outputs } })
    }

    pub fn split(self) -> (Streams, Option<Console>, OurEnds) {
        (self.theirs, self.console, self.ours)
    }
}

/// `/dev/null` for reading and writing.
pub fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open("/dev/null")?.into())
}

/// A pipe whose write end is ours and non-blocking: (read end, write end).
pub fn pipe_to_them() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nonblocking(&write)?;
    Ok((read, Some(write)))
}

/// A pipe whose read end is ours and non-blocking: (write end, read end).
pub fn pipe_to_us() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nonblocking(&read)?;
    Ok((write, read))
}

pub fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// An output stream of a container.
#[derive(Debug)]
pub struct Output {
    fd: OwnedFd,
    token: u64,
    stream: Stream,
}

impl Output {
    pub fn watch(fd: OwnedFd, container: &str, stream: Stream, poll: &mut Poll) -> io::Result<Self> {
        nonblocking(&fd)?;
        let source = Source::Output { container: container.to_owned(), stream };
        let token = poll.add(&fd, EpollFlags::EPOLLIN, source)?;
        Ok(Self { fd, token, stream })
    }

    fn close(self, poll: &mut Poll) {
        poll.remove(&self.fd, self.token);
    }
}

/// An attached client's copy of a stream.
#[derive(Debug)]
pub struct Sink {
    container: String,
    stream: Stream,
    fd: OwnedFd,
    queue: Vec<u8>,
    /// The container has ended: what is queued is the last of it.
    closing: bool,
}

impl Sink {
    /// Writes what the pipe takes; false when the reader is gone.
    fn flush(&mut self) -> bool {
        let mut done = 0;
        while done < self.queue.len() {
            match nix::unistd::write(&self.fd, &self.queue[done..]) {
                Ok(count) => done += count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        self.queue.drain(..done);
        true
    }
}

enum Read {
    Some(usize),
    Nothing,
    End,
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> Read {
    match nix::unistd::read(fd, buffer) {
        Ok(0) => Read::End,
        Ok(count) => Read::Some(count),
        Err(Errno::EAGAIN | Errno::EINTR) => Read::Nothing,
        // EIO: the last process of a terminal is gone.
        Err(_) => Read::End,
    }
}

impl Server {
    /// Output of a container is there: one chunk of it is moved on.
    pub fn pump(&mut self, id: &str, stream: Stream) {
        let mut buffer = vec![0u8; CHUNK];
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(at) = container.outputs.iter().position(|output| output.stream == stream) else { return };
        match read(&container.outputs[at].fd, &mut buffer) {
            Read::Some(count) => {
                container.log.write(stream, &buffer[..count]);
                self.copy_to_sinks(id, stream, &buffer[..count]);
            }
            Read::Nothing => {}
            Read::End => container.outputs.remove(at).close(&mut self.poll),
        }
    }

    /// Reads all that is there now, after the container's process has ended.
    pub fn pump_all(&mut self, id: &str) {
        let mut buffer = vec![0u8; CHUNK];
        for stream in [Stream::Stdout, Stream::Stderr] {
            while let Some(container) = self.containers.get_mut(id) {
                let Some(at) = container.outputs.iter().position(|output| output.stream == stream) else {
                    break;
                };
                match read(&container.outputs[at].fd, &mut buffer) {
                    Read::Some(count) => {
                        container.log.write(stream, &buffer[..count]);
                        self.copy_to_sinks(id, stream, &buffer[..count]);
                    }
                    Read::Nothing => break,
                    Read::End => container.outputs.remove(at).close(&mut self.poll),
                }
            }
        }
    }

    fn copy_to_sinks(&mut self, id: &str, stream: Stream, data: &[u8]) {
        let tokens: Vec<u64> = self
            .sinks
            .iter()
            .filter(|(_, sink)| sink.container == id && sink.stream == stream)
            .map(|(&token, _)| token)
            .collect();
        for token in tokens {
            if let Some(sink) = self.sinks.get_mut(&token) {
                sink.queue.extend_from_slice(data);
            }
            self.flush_sink(token);
        }
    }

    /// An attached client's pipe has room, or nobody reads it any more.
    pub fn drain_sink(&mut self, token: u64, events: EpollFlags) {
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return self.drop_sink(token);
        }
        self.flush_sink(token);
    }

    fn flush_sink(&mut self, token: u64) {
        let Some(sink) = self.sinks.get_mut(&token) else { return };
        if !sink.flush() || (sink.closing && sink.queue.is_empty()) {
            return self.drop_sink(token);
        }
        let events = if sink.queue.is_empty() { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
        self.poll.modify(&sink.fd, token, events);
        let (container, stream) = (sink.container.clone(), sink.stream);
        self.hold_or_release(&container, stream);
    }

    fn drop_sink(&mut self, token: u64) {
        if let Some(sink) = self.sinks.remove(&token) {
            self.poll.remove(&sink.fd, token);
            self.hold_or_release(&sink.container, sink.stream);
        }
    }

    /// Reads a stream unless a client that is attached to it is behind.
    fn hold_or_release(&self, id: &str, stream: Stream) {
        let behind = self
            .sinks
            .values()
            .any(|sink| sink.container == id && sink.stream == stream && sink.queue.len() > QUEUE_MAX);
        if let Some(container) = self.containers.get(id) {
            for output in container.outputs.iter().filter(|output| output.stream == stream) {
                let events = if behind { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
                self.poll.modify(&output.fd, output.token, events);
            }
        }
    }

    /// The container is over: attached clients get what is queued, then the end.
    pub fn close_streams(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            for output in container.outputs.drain(..) {
                output.close(&mut self.poll);
            }
            container.log.finish();
            container.stdin = None;
            container.pty = None;
        }
        let tokens: Vec<u64> =
            self.sinks.iter().filter(|(_, sink)| sink.container == id).map(|(&token, _)| token).collect();
        for token in tokens {
            if let Some(sink) = self.sinks.get_mut(&token) {
                sink.closing = true;
            }
            self.flush_sink(token);
        }
    }

    /// Hands out the streams of a container's first process.
    pub fn attach(&mut self, caller: Caller, id: &str) {
        match self.attach_streams(id) {
            Ok((reply, fds)) => self.answer(caller, Ok(reply), fds),
            Err(error) => self.answer(caller, Err(error), Vec::new()),
        };
    }

    fn attach_streams(&mut self, id: &str) -> Result<(Reply, Vec<OwnedFd>)> {
        let container = self.containers.get_mut(id).ok_or_else(|| Error::not_found("container", id))?;
        if !container.is_alive() || container.state.is_none() {
            return Err(Error::WrongState { id: id.to_owned(), wanted: "running".to_owned() });
        }
        let mut fds = Vec::new();
        let stdin = match (&container.pty, &container.stdin) {
            (Some(pty), _) => Some(duplicate(pty.as_fd())?),
            (None, Some(_)) if container.stdin_once => container.stdin.take(),
            (None, Some(stdin)) => Some(duplicate(stdin.as_fd())?),
            (None, None) => None,
        };
        let pty = container.pty.as_ref().map(|pty| duplicate(pty.as_fd())).transpose()?;
        let reply = Reply::Streams {
            exec: 0,
            stdin: stdin.is_some(),
            stdout: true,
            stderr: !container.tty,
            pty: pty.is_some(),
        };
        let streams: &[Stream] =
            if container.tty { &[Stream::Stdout] } else { &[Stream::Stdout, Stream::Stderr] };
        fds.extend(stdin);
        for &stream in streams {
            fds.push(
                self.add_sink(id, stream).map_err(|error| Error::failed("attach to container", id, error))?,
            );
        }
        fds.extend(pty);
        Ok((reply, fds))
    }

    /// Makes a client's pipe; returns its read end.
    fn add_sink(&mut self, id: &str, stream: Stream) -> io::Result<OwnedFd> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let token = self.poll.add(&write, EpollFlags::empty(), Source::Sink)?;
        let sink = Sink { container: id.to_owned(), stream, fd: write, queue: Vec::new(), closing: false };
        self.sinks.insert(token, sink);
        Ok(read)
    }
}
