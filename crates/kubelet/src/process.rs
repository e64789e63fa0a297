//! Runs a command in a container to its end and keeps the start of its output: exec probes and hooks.

use std::os::fd::OwnedFd;
use std::time::Duration;

use runtime::ExecSpec;

use crate::edge::{Containers, EdgeError};
use crate::fd::Fd;

/// Output kept, as upstream keeps it.
const KEPT: usize = 10 * 1024;

/// How the command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended by itself.
    Exited {
        /// Exit code.
        code: i32,
        /// The first of its output, stdout and stderr.
        output: String,
    },
    /// It did not end in time.
    TimedOut,
}

/// Runs `args` in container `id`.
///
/// # Errors
/// When the command cannot be started.
pub async fn run(
    containers: &dyn Containers,
    id: &str,
    args: &[String],
    timeout: Option<Duration>,
) -> Result<Outcome, EdgeError> {
    let spec = ExecSpec { args: args.to_vec(), tty: false, stdin: false, stdout: true, stderr: true };
    let started = containers.exec(id, spec).await?;
    let exec = started.id;
    let work = async {
        let (out, err) = tokio::join!(collect(started.stdout), collect(started.stderr));
        let code = started.exit.await.map_or(-1, |exit| exit.code);
        let mut output = out;
        output.extend(err);
        output.truncate(KEPT);
        Outcome::Exited { code, output: String::from_utf8_lossy(&output).into_owned() }
    };
    match timeout {
        None => Ok(work.await),
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(outcome) => Ok(outcome),
            Err(_) => {
                if let Err(error) = containers.kill_exec(exec, libc::SIGKILL).await {
                    tracing::debug!(id, %error, "ending a command that took too long");
                }
                Ok(Outcome::TimedOut)
            }
        },
    }
}

async fn collect(fd: Option<OwnedFd>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(Ok(pipe)) = fd.map(Fd::new) else { return kept };
    let mut buffer = [0u8; 4096];
    // Read on after the limit, so that the command does not block on a full pipe.
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let room = KEPT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    kept
}
