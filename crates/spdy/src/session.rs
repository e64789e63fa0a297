//! The server's side of a session over any byte stream: one task that reads frames, writes frames and ends with the
//! connection.
//!
//! **Flow control.** The draft gives each stream, and version 3.1 the session, a window of 64 KiB that the receiver
//! reopens with WINDOW_UPDATE. Go's spdystream, which kubectl is built on, neither obeys windows nor reopens them: a
//! server that waited for it would stop after 64 KiB. So we always reopen the peer's windows, but obey ours only once
//! the peer has shown that it counts (SETTINGS with a window, or a WINDOW_UPDATE). Against a peer that does not count,
//! the connection itself is the brake: when too much waits for slow readers, nothing more is read, and a PING every few
//! seconds notices a client that is gone.
//!
//! **The end.** spdystream forgets frames that it has received and not yet handed out when the connection ends. So
//! [`Session::close`] says GOAWAY and lets the client hang up first, within [`LINGER`].

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::codec::{Decoder, Encoder};
use crate::frame::{Frame, goaway};
use crate::state::{Opened, Shared};
use crate::stream::Pending;

/// How long a closed session waits for the client to take what was sent and hang up.
pub const LINGER: Duration = Duration::from_secs(300);
/// How often a client is probed while nothing is read from it.
const PROBE: Duration = Duration::from_secs(5);
/// How long the last words to a client that broke the protocol may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much is written at a time.
const BATCH: usize = 64 * 1024;

/// A running session. Dropping it ends the connection at once.
pub struct Session {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

/// The streams that the client opens. None come after its GOAWAY or the end of the connection.
pub struct Incoming(mpsc::UnboundedReceiver<Pending>);

impl Incoming {
    /// The next stream.
    pub async fn next(&mut self) -> Option<Pending> {
        self.0.recv().await
    }
}

impl Session {
    /// Serves a connection on which the upgrade is done. Must be called within a tokio runtime.
    pub fn server<T>(io: T) -> (Session, Incoming)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let shared = Arc::new(Shared::new());
        // Bounded by the number of streams that may be open.
        let (opened, incoming) = mpsc::unbounded_channel();
        let task = tokio::spawn(drive(io, shared.clone(), opened));
        (Session { shared, task: Some(task) }, Incoming(incoming))
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) {
        self.shared.dead.cancelled().await;
    }

    /// Sends what is queued and a GOAWAY, then waits until the client hangs up or [`LINGER`] is over. Streams should be
    /// finished before.
    pub async fn close(mut self) {
        self.shared.control(Frame::GoAway { last_good: self.shared.last_peer_id(), status: goaway::OK });
        if let Some(task) = &mut self.task {
            // A panic of the task has ended the session as well.
            let _ = task.await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Ends the session's state however the task ends.
struct Dying(Arc<Shared>);

impl Drop for Dying {
    fn drop(&mut self) {
        self.0.die();
    }
}

async fn drive<T: AsyncRead + AsyncWrite>(
    io: T,
    shared: Arc<Shared>,
    opened: mpsc::UnboundedSender<Pending>,
) {
    let dying = Dying(shared.clone());
    let (reader, mut writer) = tokio::io::split(io);
    let said_goodbye = tokio::sync::Notify::new();
    {
        let mut read = pin!(read(reader, &shared, opened));
        let mut write = pin!(write(&mut writer, &shared, &said_goodbye));
        let linger = async {
            said_goodbye.notified().await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! {
            broken = &mut read => if let Err(error) = broken {
                tracing::debug!(%error, "spdy session ends");
                let last_good = shared.last_peer_id();
                shared.control(Frame::GoAway { last_good, status: goaway::PROTOCOL_ERROR });
                let last_words = async {
                    tokio::select! { _ = &mut write => {}, () = said_goodbye.notified() => {} }
                };
                let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
            },
            error = &mut write => tracing::debug!(?error, "spdy session ends"),
            () = linger => tracing::debug!("spdy client did not hang up"),
        }
    }
    drop(dying);
    let _ = tokio::time::timeout(LAST_WORDS, writer.shutdown()).await;
}

/// Reads until the client hangs up; an error is a broken protocol or connection.
async fn read<T: AsyncRead>(
    mut reader: ReadHalf<T>,
    shared: &Arc<Shared>,
    opened: mpsc::UnboundedSender<Pending>,
) -> io::Result<()> {
    let mut opened = Some(opened);
    let mut decoder = Decoder::default();
    let mut input = BytesMut::with_capacity(16 * 1024);
    loop {
        while let Some(frame) = next(&mut decoder, &mut input)? {
            wait_for_room(shared).await;
            handle(frame, shared, &mut opened);
        }
        input.reserve(16 * 1024);
        if reader.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

fn next(decoder: &mut Decoder, input: &mut BytesMut) -> io::Result<Option<Frame>> {
    decoder.decode(input).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

async fn wait_for_room(shared: &Shared) {
    while !shared.may_read() {
        if tokio::time::timeout(PROBE, shared.to_read.notified()).await.is_err() && !shared.may_read() {
            // Even numbers are the server's.
            shared.control(Frame::Ping(2));
        }
    }
}

fn handle(frame: Frame, shared: &Arc<Shared>, opened: &mut Option<mpsc::UnboundedSender<Pending>>) {
    match frame {
        Frame::SynStream { id, fin, unidirectional, headers, .. } => {
            if let Opened::Accepted = shared.open(id, fin, unidirectional) {
                let pending = Pending::new(id, headers, shared.clone());
                // What cannot be handed on is dropped, and so refused.
                if let Some(opened) = opened {
                    let _ = opened.send(pending);
                }
            }
        }
        Frame::Data { id, fin, data } => shared.data(id, fin, data),
        Frame::RstStream { id, .. } => shared.remote_reset(id),
        Frame::Headers { id, fin: true, .. } => shared.remote_fin(id),
        Frame::WindowUpdate { id, delta } => shared.window_update(id, delta),
        Frame::Settings(pairs) => shared.settings(&pairs),
        Frame::Ping(id) if id % 2 == 1 => shared.control(Frame::Ping(id)),
        Frame::GoAway { .. } => *opened = None,
        // Later headers mean nothing to Kubernetes; we open no streams, and an answer to our PING needs none.
        Frame::Headers { .. } | Frame::SynReply { .. } | Frame::Ping(_) => {}
    }
}

/// Writes what is queued, for ever; returns when the connection breaks.
async fn write<T: AsyncWrite>(
    writer: &mut WriteHalf<T>,
    shared: &Shared,
    said_goodbye: &tokio::sync::Notify,
) -> io::Result<std::convert::Infallible> {
    let mut encoder = Encoder::default();
    let mut frames = Vec::new();
    let mut out = BytesMut::with_capacity(8 * 1024);
    loop {
        shared.take_frames(BATCH, &mut frames);
        if frames.is_empty() {
            writer.flush().await?;
            shared.to_write.notified().await;
            continue;
        }
        let goodbye = frames.iter().any(|frame| matches!(frame, Frame::GoAway { .. }));
        for frame in frames.drain(..) {
            encoder
                .encode(&frame, &mut out)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        }
        writer.write_all_buf(&mut out).await?;
        if goodbye {
            writer.flush().await?;
            said_goodbye.notify_one();
        }
    }
}
