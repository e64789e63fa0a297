//! Descriptors of containers' streams (pipes and terminals) as something to await.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// A pipe's end or a terminal's master.
#[derive(Debug)]
pub struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Takes the descriptor over and makes it non-blocking.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays open and the same until it is dropped.
        let registered = unsafe { AsyncFd::register(fd) };
        Ok(Self(registered.map_err(|e| io::Error::other(e.to_string()))?))
    }

    /// Reads what is there; 0 at the end. A terminal whose other side is closed is at its end.
    ///
    /// # Errors
    /// When reading fails.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let result = ready.try_io(|fd| nix::unistd::read(fd.get_ref(), buffer).map_err(io::Error::from));
            match result {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_) => {}
            }
        }
    }

    /// Writes all.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), data).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => data = &data[result?..],
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Sets a terminal's window size.
    pub fn resize(&self, width: u16, height: u16) {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and TIOCSWINSZ reads one winsize, which lives across the call.
        let result = unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &size) };
        if result != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "setting a window size");
        }
    }
}
