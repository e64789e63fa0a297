//! What a session knows about its streams: one value behind a lock, changed by the frames that come in and by the
//! handles of the streams. No IO and no task; whoever changes something wakes whom it concerns.
//!
//! Always holds: a slot lives exactly as long as its [`Stream`](crate::Stream) or [`Pending`](crate::Pending) handle;
//! `buffered` is the sum of the slots' `rx_bytes`, `queued` that of the data frames in `queue`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::frame::{Frame, SETTING_INITIAL_WINDOW, StreamId, reset};

/// The window that streams and the session start with (draft 3, section 2.6.8).
pub(crate) const INITIAL_WINDOW: i64 = 64 * 1024;
/// Open streams beyond which new ones are refused.
pub(crate) const MAX_STREAMS: usize = 1024;
/// Received bytes that wait for their readers; beyond it nothing more is read off the connection.
pub(crate) const MAX_BUFFERED: usize = 1024 * 1024;
/// Bytes that wait to be written, per stream and in all.
const MAX_QUEUED_STREAM: usize = 64 * 1024;
const MAX_QUEUED: usize = 1024 * 1024;
/// Answers that wait to be written; beyond it nothing more is read off the connection.
const MAX_CONTROL_QUEUED: usize = 512;
/// The longest data frame sent: short enough that streams share a connection fairly.
const MAX_SENT_DATA: usize = 32 * 1024;
/// Consumed bytes are given back to the peer's window in steps of this size.
const WINDOW_STEP: u32 = 32 * 1024;

/// One stream.
pub(crate) struct Slot {
    rx: VecDeque<Bytes>,
    rx_bytes: usize,
    rx_fin: bool,
    /// The stream ended early, by either side.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    tx_queued: usize,
    tx_window: i64,
    tx_fin: bool,
    /// Consumed bytes that the peer's window does not have back yet.
    owed: u32,
}

impl Slot {
    fn wake(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The whole session.
pub(crate) struct State {
    streams: HashMap<StreamId, Slot>,
    /// The last stream that the peer opened.
    pub(crate) last_peer_id: StreamId,
    queue: VecDeque<Frame>,
    queued: usize,
    control_queued: usize,
    buffered: usize,
    /// The peer counts windows: it sent SETTINGS with a window, or a WINDOW_UPDATE.
    counts_windows: bool,
    counts_session_window: bool,
    peer_initial_window: i64,
    session_window: i64,
    session_owed: u32,
    dead: bool,
}

/// The state with its lock and the signals to the two loops that read and write the connection.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something to write.
    pub(crate) to_write: Notify,
    /// Room to read on.
    pub(crate) to_read: Notify,
    /// The session is over.
    pub(crate) dead: CancellationToken,
}

/// What a new stream from the peer becomes.
pub(crate) enum Opened {
    /// A slot was made.
    Accepted,
    /// An answer was queued instead.
    Refused,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Shared {
            state: Mutex::new(State {
                streams: HashMap::new(),
                last_peer_id: 0,
                queue: VecDeque::new(),
                queued: 0,
                control_queued: 0,
                buffered: 0,
                counts_windows: false,
                counts_session_window: false,
                peer_initial_window: INITIAL_WINDOW,
                session_window: INITIAL_WINDOW,
                session_owed: 0,
                dead: false,
            }),
            to_write: Notify::new(),
            to_read: Notify::new(),
            dead: CancellationToken::new(),
        }
    }

    /// Queues a frame that is no data.
    pub(crate) fn control(&self, frame: Frame) {
        self.state.lock().control(frame);
        self.to_write.notify_one();
    }

    /// The last stream that the peer opened.
    pub(crate) fn last_peer_id(&self) -> StreamId {
        self.state.lock().last_peer_id
    }

    /// Whether the connection may be read on: readers and the writer keep up.
    pub(crate) fn may_read(&self) -> bool {
        let state = self.state.lock();
        state.buffered <= MAX_BUFFERED && state.control_queued <= MAX_CONTROL_QUEUED
    }

    /// Takes frames to write, about `most` bytes of data of them.
    pub(crate) fn take_frames(&self, most: usize, into: &mut Vec<Frame>) {
        let mut state = self.state.lock();
        let was_full = state.queued >= MAX_QUEUED;
        let mut taken = 0;
        while taken < most {
            let Some(frame) = state.queue.pop_front() else { break };
            if let Frame::Data { id, data, .. } = &frame {
                let length = data.len();
                taken += length;
                state.queued -= length;
                if let Some(slot) = state.streams.get_mut(id) {
                    slot.tx_queued -= length;
                    wake(&mut slot.writer);
                }
            } else {
                taken += 64;
                state.control_queued -= 1;
            }
            into.push(frame);
        }
        if was_full && state.queued < MAX_QUEUED {
            state.streams.values_mut().for_each(|slot| wake(&mut slot.writer));
        }
        drop(state);
        if !into.is_empty() {
            self.to_read.notify_one();
        }
    }

    /// The peer opens a stream.
    pub(crate) fn open(&self, id: StreamId, fin: bool, unidirectional: bool) -> Opened {
        let mut state = self.state.lock();
        let status = if id.is_multiple_of(2) || id <= state.last_peer_id {
            Some(reset::PROTOCOL_ERROR)
        } else {
            state.last_peer_id = id;
            (state.streams.len() >= MAX_STREAMS).then_some(reset::REFUSED_STREAM)
        };
        if let Some(status) = status {
            state.control(Frame::RstStream { id, status });
            drop(state);
            self.to_write.notify_one();
            return Opened::Refused;
        }
        let slot = Slot {
            rx: VecDeque::new(),
            rx_bytes: 0,
            rx_fin: fin,
            reset: false,
            reader: None,
            writer: None,
            tx_queued: 0,
            tx_window: state.peer_initial_window,
            tx_fin: unidirectional,
            owed: 0,
        };
        state.streams.insert(id, slot);
        Opened::Accepted
    }

    /// Bytes from the peer. Those of a stream whose handle is gone are dropped silently: the peer may not know yet.
    pub(crate) fn data(&self, id: StreamId, fin: bool, data: Bytes) {
        let mut state = self.state.lock();
        let length = data.len();
        let last = state.last_peer_id;
        match state.streams.get_mut(&id) {
            Some(slot) if slot.reset => state.give_back(None, length),
            Some(slot) if slot.rx_fin => {
                slot.reset = true;
                slot.wake();
                state.give_back(None, length);
                state.control(Frame::RstStream { id, status: reset::STREAM_ALREADY_CLOSED });
            }
            Some(slot) => {
                slot.rx_fin = fin;
                slot.rx_bytes += length;
                if length > 0 {
                    slot.rx.push_back(data);
                }
                wake(&mut slot.reader);
                state.buffered += length;
            }
            None => {
                state.give_back(None, length);
                if id > last || id.is_multiple_of(2) {
                    state.control(Frame::RstStream { id, status: reset::INVALID_STREAM });
                }
            }
        }
        drop(state);
        self.to_write.notify_one();
    }

    /// The peer closed its half by a frame that holds no bytes.
    pub(crate) fn remote_fin(&self, id: StreamId) {
        if let Some(slot) = self.state.lock().streams.get_mut(&id) {
            slot.rx_fin = true;
            wake(&mut slot.reader);
        }
    }

    /// The peer ended a stream.
    pub(crate) fn remote_reset(&self, id: StreamId) {
        if let Some(slot) = self.state.lock().streams.get_mut(&id) {
            slot.reset = true;
            slot.wake();
        }
    }

    /// The peer's window grew.
    pub(crate) fn window_update(&self, id: StreamId, delta: u32) {
        let mut state = self.state.lock();
        if id == 0 {
            state.counts_session_window = true;
            state.session_window = (state.session_window + i64::from(delta)).min(i64::from(u32::MAX));
            state.streams.values_mut().for_each(Slot::wake);
            return;
        }
        state.counts_windows = true;
        let Some(slot) = state.streams.get_mut(&id) else { return };
        slot.tx_window += i64::from(delta);
        let too_large = slot.tx_window > i64::from(i32::MAX);
        slot.reset |= too_large;
        slot.wake();
        if too_large {
            state.control(Frame::RstStream { id, status: reset::FLOW_CONTROL_ERROR });
            drop(state);
            self.to_write.notify_one();
        }
    }

    /// The peer's settings; only the window that streams start with matters here.
    pub(crate) fn settings(&self, pairs: &[(u32, u32)]) {
        let Some(&(_, window)) = pairs.iter().rev().find(|(id, _)| *id == SETTING_INITIAL_WINDOW) else {
            return;
        };
        let mut state = self.state.lock();
        let window = i64::from(window.min(i32::MAX as u32));
        let change = window - state.peer_initial_window;
        state.peer_initial_window = window;
        state.counts_windows = true;
        for slot in state.streams.values_mut() {
            slot.tx_window += change;
            slot.wake();
        }
    }

    /// Ends everything: readers see an error unless their stream was complete, writers always do.
    pub(crate) fn die(&self) {
        let mut state = self.state.lock();
        state.dead = true;
        state.queue.clear();
        state.queued = 0;
        state.control_queued = 0;
        state.streams.values_mut().for_each(Slot::wake);
        drop(state);
        self.dead.cancel();
    }

    /// A stream's handle is dropped: what it held is released, and the peer is told when the stream was not complete.
    pub(crate) fn release(&self, id: StreamId, status: u32) {
        let mut state = self.state.lock();
        let Some(slot) = state.streams.remove(&id) else { return };
        state.buffered -= slot.rx_bytes;
        state.give_back(None, slot.rx_bytes);
        let complete = slot.rx_fin && slot.tx_fin;
        if !slot.reset && !complete {
            state.control(Frame::RstStream { id, status });
        }
        drop(state);
        self.to_write.notify_one();
        self.to_read.notify_one();
    }

    /// Bytes for the stream's reader; empty at the end of the peer's half.
    pub(crate) fn poll_read(&self, id: StreamId, most: usize, cx: &Context<'_>) -> Poll<io::Result<Bytes>> {
        let mut state = self.state.lock();
        let dead = state.dead;
        let Some(slot) = state.streams.get_mut(&id) else { return Poll::Ready(Ok(Bytes::new())) };
        let Some(front) = slot.rx.front_mut() else {
            if slot.rx_fin {
                return Poll::Ready(Ok(Bytes::new()));
            }
            if slot.reset || dead {
                return Poll::Ready(Err(lost(slot.reset)));
            }
            slot.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let bytes = front.split_to(most.min(front.len()));
        if front.is_empty() {
            slot.rx.pop_front();
        }
        slot.rx_bytes -= bytes.len();
        state.buffered -= bytes.len();
        state.give_back(Some(id), bytes.len());
        drop(state);
        self.to_write.notify_one();
        self.to_read.notify_one();
        Poll::Ready(Ok(bytes))
    }

    /// Queues bytes of the stream's writer, as many as there is room for.
    pub(crate) fn poll_write(&self, id: StreamId, bytes: &[u8], cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(slot) = state.streams.get_mut(&id).filter(|s| !s.tx_fin) else {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "write to a closed half of a stream",
            )));
        };
        if slot.reset || state.dead {
            return Poll::Ready(Err(lost(slot.reset)));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut room = MAX_QUEUED_STREAM.saturating_sub(slot.tx_queued) as i64;
        if state.queued >= MAX_QUEUED {
            room = 0;
        }
        if state.counts_windows {
            room = room.min(slot.tx_window);
        }
        if state.counts_session_window {
            room = room.min(state.session_window);
        }
        if room <= 0 {
            slot.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = bytes.len().min(MAX_SENT_DATA).min(room as usize);
        slot.tx_queued += length;
        slot.tx_window -= length as i64;
        state.session_window -= length as i64;
        state.queued += length;
        state.queue.push_back(Frame::Data { id, fin: false, data: Bytes::copy_from_slice(&bytes[..length]) });
        drop(guard);
        self.to_write.notify_one();
        Poll::Ready(Ok(length))
    }

    /// Closes our half of a stream.
    pub(crate) fn finish(&self, id: StreamId) {
        let mut state = self.state.lock();
        let dead = state.dead;
        let Some(slot) = state.streams.get_mut(&id) else { return };
        if slot.tx_fin || slot.reset || dead {
            return;
        }
        slot.tx_fin = true;
        state.queue.push_back(Frame::Data { id, fin: true, data: Bytes::new() });
        drop(state);
        self.to_write.notify_one();
    }
}

impl State {
    fn control(&mut self, frame: Frame) {
        if !self.dead {
            self.control_queued += 1;
            self.queue.push_back(frame);
        }
    }

    /// Bytes were consumed: the peer's windows get them back, in steps.
    fn give_back(&mut self, stream: Option<StreamId>, length: usize) {
        let length = length as u32;
        if let Some((id, slot)) = stream.and_then(|id| self.streams.get_mut(&id).map(|slot| (id, slot))) {
            slot.owed += length;
            if slot.owed >= WINDOW_STEP && !slot.rx_fin && !slot.reset {
                let delta = std::mem::take(&mut slot.owed);
                self.control(Frame::WindowUpdate { id, delta });
            }
        }
        self.session_owed += length;
        if self.session_owed >= WINDOW_STEP {
            let delta = std::mem::take(&mut self.session_owed);
            self.control(Frame::WindowUpdate { id: 0, delta });
        }
    }
}

fn lost(reset: bool) -> io::Error {
    if reset {
        io::Error::new(io::ErrorKind::ConnectionReset, "stream was reset")
    } else {
        io::Error::new(io::ErrorKind::ConnectionAborted, "session of the stream is over")
    }
}
