//! exec and attach, whatever carries them: a [`Session`] of channels between a transport and a process.
//!
//! A transport ([`websocket`], [`spdy`]) turns its frames into [`Session`]'s channels and back; [`run`] connects them
//! with the process and says at the end how it went, as a `v1.Status`. [`port_forward`] has no process: it connects
//! SPDY streams, bare or through a [`tunnel`], with ports of the Pod ([`dial`]);
//! [`port_channels`] does so for WebSocket channels. [`upgrade`] is the way in.

pub mod dial;
pub mod port_channels;
pub mod port_forward;
pub mod spdy;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use runtime::{Attach, Exec, ExecSpec};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::edge::Containers;
use crate::fd::Fd;

/// Which streams the client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Client to process.
    pub stdin: bool,
    /// Process to client.
    pub stdout: bool,
    /// Process to client; never with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// A terminal's size, as clients send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What goes to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// From the process.
    Stdout(Bytes),
    /// From the process.
    Stderr(Bytes),
    /// The last word: a `v1.Status`.
    Status(Value),
}

/// The process' side of a connection. The transport ends when `output` does; when the transport goes first, `output`
/// closes and the process is ended.
#[derive(Debug)]
pub struct Session {
    /// What the client sends; it ends when the client closes its stdin.
    pub stdin: mpsc::Receiver<Bytes>,
    /// Sizes of the client's terminal.
    pub resize: mpsc::Receiver<Size>,
    /// To the client.
    pub output: mpsc::Sender<Output>,
}

/// What is to be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A new process.
    Exec(Vec<String>),
    /// The container's first one.
    Attach,
}

/// How long output of a process that has ended may still come (from children that hold its pipes).
const DRAIN: Duration = Duration::from_secs(2);

/// Runs the target in container `id` to its end, connected to `session`.
pub async fn run(
    containers: Arc<dyn Containers>,
    id: &str,
    target: Target,
    wanted: Wanted,
    session: Session,
) {
    let output = session.output.clone();
    let status = match target {
        Target::Exec(args) => {
            let Wanted { stdin, stdout, stderr, tty } = wanted;
            let spec = ExecSpec { args, tty, stdin, stdout: stdout || tty, stderr: stderr && !tty };
            match containers.exec(id, spec).await {
                Ok(process) => exec(&*containers, process, session).await,
                Err(error) => Some(failure(&format!("error executing command in container: {error}"))),
            }
        }
        Target::Attach => match containers.attach(id).await {
            Ok(streams) => attach(streams, wanted, session).await,
            Err(error) => Some(failure(&format!("error attaching to container: {error}"))),
        },
    };
    if let Some(status) = status {
        // A client that has gone needs no status.
        let _ = output.send(Output::Status(status)).await;
    }
}

async fn exec(containers: &dyn Containers, process: Exec, session: Session) -> Option<Value> {
    let number = process.id;
    let client = session.output.clone();
    let streams =
        Attach { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr, pty: process.pty };
    let mut pumping = std::pin::pin!(pump(streams, session));
    let mut exit = process.exit;
    let mut drained = false;
    let ended = loop {
        tokio::select! {
            ended = &mut exit => break ended,
            // All output is closed: the end is near.
            () = &mut pumping, if !drained => drained = true,
            () = client.closed() => {
                end(containers, number).await;
                return None;
            }
        }
    };
    if !drained {
        let _ = tokio::time::timeout(DRAIN, pumping).await;
    }
    match ended {
        Ok(exit) if exit.code == 0 => Some(success()),
        Ok(exit) => Some(exit_code(exit.code)),
        Err(_) => Some(failure("the connection to the container runtime was lost")),
    }
}

async fn end(containers: &dyn Containers, exec: u64) {
    if let Err(error) = containers.kill_exec(exec, libc::SIGKILL).await {
        tracing::debug!(exec, %error, "ending a command whose client has gone");
    }
}

async fn attach(streams: Attach, wanted: Wanted, session: Session) -> Option<Value> {
    let client = session.output.clone();
    let streams = Attach {
        stdin: streams.stdin.filter(|_| wanted.stdin),
        stdout: streams.stdout.filter(|_| wanted.stdout || wanted.tty),
        stderr: streams.stderr.filter(|_| wanted.stderr),
        pty: streams.pty,
    };
    tokio::select! {
        () = pump(streams, session) => Some(success()),
        () = client.closed() => None,
    }
}

/// Moves bytes until the process' output has ended.
async fn pump(streams: Attach, session: Session) {
    let open =
        |fd: Option<_>| fd.and_then(|fd| Fd::new(fd).inspect_err(|e| tracing::warn!(%e, "a stream")).ok());
    let (stdin, stdout, stderr) = (open(streams.stdin), open(streams.stdout), open(streams.stderr));
    let pty = open(streams.pty);
    let Session { stdin: mut input, resize: mut sizes, output } = session;
    let feed = async {
        if let Some(stdin) = stdin {
            while let Some(bytes) = input.recv().await {
                if stdin.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        }
        // A process that reads no more must not stop the client: take and forget.
        while input.recv().await.is_some() {}
    };
    let size = async {
        while let Some(size) = sizes.recv().await {
            if let Some(pty) = &pty {
                pty.resize(size.width, size.height);
            }
        }
    };
    let out = async {
        tokio::join!(forward(stdout, &output, Output::Stdout), forward(stderr, &output, Output::Stderr));
    };
    let mut out = std::pin::pin!(out);
    let rest = async { tokio::join!(feed, size) };
    tokio::select! {
        () = &mut out => {}
        _ = rest => out.await,
    }
}

async fn forward(from: Option<Fd>, to: &mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) {
    let Some(from) = from else { return };
    let mut buffer = vec![0u8; 32 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if to.send(wrap(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

/// How the end is told: from version 4 of the protocol on as JSON, before as a text and only on failure.
fn last_word(version: u8, status: &Value) -> Option<String> {
    if version >= 4 {
        return Some(status.to_string());
    }
    let failed = status["status"] != "Success";
    failed.then(|| status["message"].as_str().unwrap_or("unknown error").to_string())
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn failure(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError", "details": {"causes": [{"message": message}]}, "code": 500})
}

fn exit_code(code: i32) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}
