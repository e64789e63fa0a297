//! Port-forward: pairs of SPDY streams, each pair one TCP connection to a port of the Pod's localhost.
//!
//! The client opens an `error` and a `data` stream with the same `requestID` per connection that it took. A connection
//! that cannot be made is told on the error stream, in upstream's words, and kubectl gives up then; one that the Pod
//! resets is only ended, so that the next one is served.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use spdy::frame::reset;
use spdy::{Incoming, Pending, Stream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::spdy::CREATION;

/// The protocol's name, as negotiated by SPDY clients.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// The same for SPDY inside WebSocket.
pub const TUNNELED: &str = "SPDY/3.1+portforward.k8s.io";

/// Connects to a port of the Pod's localhost; the error is upstream's text.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Opens a connection.
    async fn dial(&self, port: u16) -> Result<TcpStream, String>;
}

/// Whose ports they are, for the texts.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Name with namespace, as upstream shows it.
    pub pod: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl Owner {
    /// What a client is told when a connection cannot be made.
    pub(super) fn failure(&self, port: u16, reason: &str) -> String {
        let Owner { pod, uid } = self;
        format!("error forwarding port {port} to pod {pod}, uid {uid}: {reason}")
    }
}

/// Serves a client until it goes.
pub async fn serve<T>(io: T, dial: Arc<dyn Dial>, owner: Owner)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (session, mut incoming) = spdy::Session::server(io);
    let mut pairs = Pairs::default();
    // Ends, with all that it carries, when this function does.
    let mut running = JoinSet::new();
    let owner = Arc::new(owner);
    loop {
        tokio::select! {
            pending = next(&mut incoming) => {
                if let Some((port, data, error)) = pairs.add(pending) {
                    running.spawn(forward(port, data, error, dial.clone(), owner.clone()));
                }
            }
            () = pairs.expire() => {}
            Some(_) = running.join_next() => {}
            () = session.closed() => return,
        }
    }
}

/// The next stream. When no more come the session still lasts until the client closes it.
async fn next(incoming: &mut Incoming) -> Pending {
    match incoming.next().await {
        Some(pending) => pending,
        None => std::future::pending().await,
    }
}

/// Streams that wait for their other half.
#[derive(Default)]
struct Pairs(HashMap<String, Half>);

struct Half {
    error: Option<Stream>,
    data: Option<Stream>,
    deadline: Instant,
}

impl Pairs {
    /// Takes a stream in; a port with both its streams once they are complete.
    fn add(&mut self, pending: Pending) -> Option<(u16, Stream, Stream)> {
        let (id, is_error, port) = match describe(&pending) {
            Ok(described) => described,
            Err(error) => {
                tracing::debug!(error, "a stream for port-forward");
                pending.reject(reset::CANCEL);
                return None;
            }
        };
        let deadline = Instant::now() + CREATION;
        let half = self.0.entry(id.clone()).or_insert(Half { error: None, data: None, deadline });
        let place = if is_error { &mut half.error } else { &mut half.data };
        if place.is_some() {
            tracing::debug!(request = id, "a stream was already assigned");
            pending.reject(reset::CANCEL);
            return None;
        }
        *place = Some(pending.accept());
        if half.error.is_none() || half.data.is_none() {
            return None;
        }
        let half = self.0.remove(&id)?;
        Some((port, half.data?, half.error?))
    }

    /// Waits until some half is too old, and drops it, which resets its stream.
    async fn expire(&mut self) {
        let Some(first) = self.0.values().map(|half| half.deadline).min() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(first).await;
        self.0.retain(|id, half| {
            let late = half.deadline <= first;
            if late {
                tracing::debug!(request = id, "timed out waiting for streams");
            }
            !late
        });
    }
}

/// Request, whether it is the error stream, and port.
fn describe(pending: &Pending) -> Result<(String, bool, u16), String> {
    let required = |name: &str| match pending.headers().get(name) {
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(format!("{name:?} header is required")),
    };
    let port = required("port")?;
    let port = match port.parse::<u16>() {
        Ok(0) => return Err(format!("port {port:?} must be > 0")),
        Ok(port) => port,
        Err(error) => return Err(format!("unable to parse {port:?} as a port: {error}")),
    };
    let is_error = match required("streamType")? {
        "error" => true,
        "data" => false,
        other => return Err(format!("invalid stream type {other:?}")),
    };
    // Clients of old send no request: their data stream follows the error stream.
    let id = match pending.headers().get("requestID") {
        Some(id) if !id.is_empty() => id.to_string(),
        _ if is_error => pending.id().to_string(),
        _ => pending.id().wrapping_sub(2).to_string(),
    };
    Ok((id, is_error, port))
}

async fn forward(port: u16, mut data: Stream, mut error: Stream, dial: Arc<dyn Dial>, owner: Arc<Owner>) {
    match dial.dial(port).await {
        Ok(connection) => exchange(&mut data, connection).await,
        Err(reason) => {
            let message = owner.failure(port, &reason);
            tracing::debug!(message, "port-forward");
            // A client that has gone needs no message.
            let _ = error.write_all(message.as_bytes()).await;
        }
    }
    let _ = data.shutdown().await;
    let _ = error.shutdown().await;
}

/// Moves bytes until the Pod's side has ended, or the client has reset its stream. A client that closed its half may
/// still wait for an answer; one whose Pod has ended waits for nothing more.
async fn exchange<S: AsyncRead + AsyncWrite>(client: S, connection: TcpStream) {
    let _ = connection.set_nodelay(true);
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_pod, mut to_pod) = connection.into_split();
    let up = async {
        let ended = copy(&mut from_client, &mut to_pod).await;
        match ended {
            Ok(()) => {
                // A Pod that has closed already shows in the other direction.
                let _ = to_pod.shutdown().await;
            }
            // The client's own end.
            Err(Ended::Reading(_)) => return,
            // The Pod takes no more; what it has said before still comes.
            Err(Ended::Writing) => {}
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = up => {}
        ended = copy(&mut from_pod, &mut to_client) => if let Err(Ended::Reading(error)) = ended {
            tracing::debug!(%error, "reading from a Pod's port");
        },
    }
}

/// Which side ended a copy.
enum Ended {
    Reading(io::Error),
    Writing,
}

async fn copy<R, W>(from: &mut R, to: &mut W) -> Result<(), Ended>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    use tokio::io::AsyncReadExt;
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer).await.map_err(Ended::Reading)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n]).await.map_err(|_| Ended::Writing)?,
        }
    }
}
