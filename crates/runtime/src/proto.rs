//! The wire between agent and shim: JSON packets on a SOCK_SEQPACKET socket, descriptors beside them (SCM_RIGHTS).
//!
//! ```text
//! packet:  u8 kind | body           kind 0: body is the JSON; kind 1: the JSON is in a memfd, the first descriptor
//! agent -> shim   Call   { id, request }
//! shim  -> agent  Notice Reply { id, result } | Event | ExecExited
//! ```
//! A packet must fit the socket's buffer, a container spec with a large environment may not: those go by memfd.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::*;

/// Raised when a packet changes its meaning: an agent of another version must not talk past a shim that outlived it.
pub const VERSION: u32 = 1;
const INLINE_MAX: usize = 60 * 1024;
const FDS_MAX: usize = 8;

/// A request and the number its reply will carry.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub id: u64,
    pub request: Request,
}

/// What an agent may ask.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Hello { version: u32 },
    CreateSandbox(SandboxSpec),
    SandboxNetns(String),
    NodeNetns,
    RemoveSandbox(String),
    Create(Box<ContainerSpec>),
    Start(String),
    Kill { id: String, signal: i32 },
    Remove(String),
    List,
    Exec { id: String, spec: ExecSpec },
    KillExec { exec: u64, signal: i32 },
    Attach(String),
    Stats(String),
    MountTmpfs { path: std::path::PathBuf, size: Option<u64>, mode: u32 },
    Unmount(std::path::PathBuf),
    Shutdown,
}

/// What the shim says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    Reply { id: u64, result: Result<Reply> },
    Event(Event),
    ExecExited { exec: u64, exit: Exit },
}

/// The answer to a call that went well.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Hello {
        version: u32,
        pid: i32,
    },
    Status(ContainerStatus),
    Snapshot(Snapshot),
    Stats(Stats),
    /// Descriptors come along in the order of the fields that are true.
    Streams {
        exec: u64,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        pty: bool,
    },
}

/// Sends one packet; `WouldBlock` when the socket is non-blocking and full.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let mut all: Vec<RawFd> = Vec::with_capacity(fds.len() + 1);
    let spilled;
    let (kind, body): (u8, &[u8]) = if json.len() <= INLINE_MAX {
        (0, &json)
    } else {
        spilled = spill(&json)?;
        all.push(spilled.as_raw_fd());
        (1, &[])
    };
    all.extend(fds.iter().map(|fd| fd.as_raw_fd()));
    let rights = [ControlMessage::ScmRights(&all)];
    let control: &[ControlMessage<'_>] = if all.is_empty() { &[] } else { &rights };
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(body)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn spill(json: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"skiff-message", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(json)?;
    file.rewind()?;
    Ok(file)
}

/// Receives one packet; `None` when the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0u8; INLINE_MAX + 1];
    let mut control = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let packet = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let (length, truncated) =
        (packet.bytes, packet.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
    let mut fds = Vec::new();
    for message in packet.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if length == 0 {
        return Ok(None);
    }
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet truncated"));
    }
    let message = match buffer[0] {
        0 => serde_json::from_slice(&buffer[1..length])?,
        1 if !fds.is_empty() => {
            let mut json = Vec::new();
            File::from(fds.remove(0)).read_to_end(&mut json)?;
            serde_json::from_slice(&json)?
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown packet")),
    };
    Ok(Some((message, fds)))
}

/// A non-blocking, close-on-exec SEQPACKET socket.
pub fn socket() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

/// The address of `path`, through the descriptor of its folder where it is longer than the kernel's 107 bytes.
///
/// The second value keeps the folder open until the address has been used.
pub fn address(path: &std::path::Path) -> io::Result<(UnixAddr, Option<File>)> {
    if let Ok(address) = UnixAddr::new(path) {
        return Ok((address, None));
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "socket path has no folder or name");
    let folder = File::open(path.parent().ok_or_else(invalid)?)?;
    let name = path.file_name().ok_or_else(invalid)?.to_string_lossy().into_owned();
    let short = format!("/proc/self/fd/{}/{name}", folder.as_fd().as_raw_fd());
    Ok((UnixAddr::new(short.as_str())?, Some(folder)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn packets_of_every_size_and_their_descriptors_arrive() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        for length in [0, 1, INLINE_MAX - 2, INLINE_MAX - 1, INLINE_MAX, 3_000_000] {
            let (read, write) = nix::unistd::pipe().unwrap();
            send(a.as_fd(), &"x".repeat(length), &[read.as_fd()]).unwrap();
            let (text, fds): (String, Vec<OwnedFd>) = receive(b.as_fd()).unwrap().unwrap();
            assert_eq!(text.len(), length);
            assert_eq!(fds.len(), 1);
            File::from(write).write_all(b"hi").unwrap();
            let mut got = String::new();
            drop(read);
            File::from(fds.into_iter().next().unwrap()).read_to_string(&mut got).unwrap();
            assert_eq!(got, "hi");
        }
        drop(a);
        assert!(receive::<String>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn times_survive_the_wire() {
        let exit =
            Exit { code: 137, signal: Some(9), oom_killed: true, finished_at: 1_753_000_000_123_456_789 };
        let json = serde_json::to_string(&exit).unwrap();
        assert_eq!(serde_json::from_str::<Exit>(&json).unwrap(), exit);
    }

    #[test]
    fn long_socket_paths_get_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let (address, folder) = address(&deep.join("s.sock")).unwrap();
        assert!(folder.is_some());
        let listener = socket().unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &address).unwrap();
        assert!(deep.join("s.sock").exists());
    }
}
