//! Terminals: the socket over which a container's process hands its pty master to the shim (OCI runtime: console socket).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// A listener that one process will send one terminal to.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens in `folder` under a name made of `number`.
    pub fn listen(folder: &Path, number: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{number}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }

    /// Where the process connects.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The master; the process has sent it when it reports that it is ready.
    pub fn master(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let mut name = [0u8; 64];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut control = nix::cmsg_space!([i32; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = item
                && let Some(&fd) = fds.first()
            {
                // SAFETY: the kernel has just installed this descriptor for us.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no terminal was sent"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
