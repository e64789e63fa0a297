//! Watch: what changes in a collection, as a stream of JSON events.
//!
//! A watcher with a selector sees objects come and go as they begin and cease to match. What an event looks like is
//! worked out once and kept on the event itself, whatever the number of watchers.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use rand::RngExt as _;
use serde_json::{Value, json};
use storage::{Event, KeyValue, Watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::answer::{self, Answer, Include, JSON, Payload};
use super::converted::{self, Converted};
use super::list::{self, Filter};
use crate::core::{Call, store_error};
use crate::field::{FieldError, FieldErrors};
use crate::negotiate::Shape;
use crate::object;
use crate::status::Status;
use crate::table;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Events that are ready together travel together, up to about so many bytes.
const CHUNK: usize = 256 << 10;

/// What happened, from the watcher's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Added => "ADDED",
            Kind::Modified => "MODIFIED",
            Kind::Deleted => "DELETED",
        }
    }
}

/// What is derived from an event once for all its watchers.
#[derive(Default)]
pub(super) struct Memo {
    frames: [OnceLock<Bytes>; 3],
    current: OnceLock<Value>,
    previous: OnceLock<Value>,
    /// The same event in other versions, and as it is read, of custom kinds.
    pub(super) converted: Converted,
}

pub(super) fn memo(event: &Event) -> Option<&Memo> {
    event.memo.get_or_init(|| Box::new(Memo::default())).downcast_ref()
}

/// The verb.
///
/// # Errors
/// 400, 406, 422 before the stream begins; later failures are ERROR events.
pub async fn watch(call: Call) -> Result<Answer, Status> {
    let shape = answer::negotiate(&call)?.shape;
    let initial = wants_initial(&call)?;
    let filter = Filter::of(&call)?;
    let since = list::parse_version(call.query.get("resourceVersion"))?;
    let seconds = match call.query.number("timeoutSeconds")?.unwrap_or(0) {
        given if given > 0 => given.unsigned_abs(),
        _ => rand::rng().random_range(1800..3600),
    };
    let mut writer = Writer::new(call, filter, shape);
    let (mut first, since) = match since {
        Some(since) if !initial => (Vec::new(), since),
        _ => writer.initial_events(initial).await?,
    };
    let call = &writer.call;
    let prefix = writer.filter.single_key(call).unwrap_or_else(|| call.prefix());
    let source = match call.core.store.watch(&prefix, since).await {
        Ok(source) => Some(source),
        Err(error) => {
            write_error(&mut first, &store_error(error));
            None
        }
    };
    let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = Box::pin(tokio::time::sleep(Duration::from_secs(seconds)));
    let first = Some(Bytes::from(first)).filter(|b| !b.is_empty());
    let stop = Box::pin(writer.call.core.stop.clone().cancelled_owned());
    let run = Run { writer, source, first, deadline, bookmarks, stop };
    let stream = stream::unfold(run, |mut run| async move { run.next().await.map(|chunk| (chunk, run)) });
    Ok(Answer { code: 200, content_type: JSON, payload: Payload::Stream(stream.boxed()) })
}

/// Whether the watch begins with what is there and a bookmark that says so.
fn wants_initial(call: &Call) -> Result<bool, Status> {
    let (given, rule) = (call.query.has("sendInitialEvents"), call.query.get("resourceVersionMatch"));
    let refuse = |path: &str, why: &str| {
        let mut errors = FieldErrors::new();
        errors.push(FieldError::forbidden(path, why));
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors))
    };
    match (given, rule) {
        (false, "") => Ok(false),
        (false, _) => refuse(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (true, "NotOlderThan") => Ok(call.query.flag("sendInitialEvents")),
        (true, _) => refuse(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
    }
}

struct Run {
    writer: Writer,
    source: Option<Watch>,
    first: Option<Bytes>,
    deadline: Pin<Box<Sleep>>,
    bookmarks: Interval,
    /// Registered once per watch: a new registration per event is a lock that all watches share.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Bytes on their way to one watcher. An event that travels alone is the memo's own bytes, not a copy of them.
#[derive(Default)]
struct Chunk {
    alone: Option<Bytes>,
    several: Vec<u8>,
}

impl Chunk {
    fn share(&mut self, frame: &Bytes) {
        if self.is_empty() {
            self.alone = Some(frame.clone());
        } else {
            self.several().extend_from_slice(frame);
        }
    }

    /// Where more is written to.
    fn several(&mut self) -> &mut Vec<u8> {
        if let Some(alone) = self.alone.take() {
            self.several.extend_from_slice(&alone);
        }
        &mut self.several
    }

    fn len(&self) -> usize {
        self.alone.as_ref().map_or(self.several.len(), Bytes::len)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn into_bytes(self) -> Bytes {
        self.alone.unwrap_or_else(|| self.several.into())
    }
}

impl Run {
    /// The next chunk; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let source = self.source.as_mut()?;
            tokio::select! {
                biased;
                event = source.next() => {
                    let mut out = Chunk::default();
                    if self.writer.converts() {
                        self.drain_converted(event, &mut out).await;
                    } else {
                        self.drain(event, &mut out);
                    }
                    if !out.is_empty() {
                        return Some(out.into_bytes());
                    }
                }
                () = &mut self.deadline => {
                    let last = self.bookmark();
                    self.source = None;
                    return last;
                }
                _ = self.bookmarks.tick(), if self.writer.bookmarks => {
                    if let Some(bookmark) = self.bookmark() {
                        return Some(bookmark);
                    }
                }
                () = &mut self.stop => return None,
            }
        }
    }

    /// Writes one item and whatever else is ready.
    fn drain(&mut self, mut item: Option<storage::Result<Arc<Event>>>, out: &mut Chunk) {
        loop {
            match item {
                Some(Ok(event)) => self.writer.event(&event, out),
                Some(Err(error)) => {
                    write_error(out.several(), &store_error(error));
                    self.source = None;
                    return;
                }
                None => {
                    self.source = None;
                    return;
                }
            }
            let Some(source) = self.source.as_mut().filter(|_| out.len() < CHUNK) else { return };
            match source.next().now_or_never() {
                Some(next) => item = next,
                None => return,
            }
        }
    }

    /// The same of a custom kind; a webhook that converts is asked once about all that are ready.
    async fn drain_converted(&mut self, mut item: Option<storage::Result<Arc<Event>>>, out: &mut Chunk) {
        let (mut events, mut error) = (Vec::new(), None);
        loop {
            match item {
                Some(Ok(event)) => events.push(event),
                end => {
                    error = end.and_then(Result::err).map(store_error);
                    self.source = None;
                }
            }
            let Some(source) = self.source.as_mut().filter(|_| events.len() < converted::BATCH) else {
                break;
            };
            match source.next().now_or_never() {
                Some(next) => item = next,
                None => break,
            }
        }
        let both = self.writer.filter.needs_object();
        match converted::events(&self.writer.call, events, both).await {
            Ok(events) => events.iter().for_each(|event| self.writer.event(event, out)),
            Err(status) => error = Some(status),
        }
        if let Some(status) = error {
            write_error(out.several(), &status);
            self.source = None;
        }
    }

    fn bookmark(&self) -> Option<Bytes> {
        let revision = self.source.as_ref()?.progress().filter(|_| self.writer.bookmarks)?;
        Some(self.writer.bookmark(revision, false).into())
    }
}

fn write_error(out: &mut Vec<u8>, status: &Status) {
    let event = json!({"type": "ERROR", "object": status.to_value()});
    out.extend_from_slice(event.to_string().as_bytes());
    out.push(b'\n');
}

/// Turns events into bytes for one watcher.
struct Writer {
    call: Call,
    filter: Filter,
    shape: Shape,
    head: String,
    include: Include,
    bookmarks: bool,
    /// The next table carries its column definitions.
    columns_due: bool,
    /// Stored bytes are what this watcher wants to see.
    plain: bool,
    /// Events come in the form of this watcher's version, so that what is derived from them serves others, too.
    shares: bool,
}

impl Writer {
    fn new(call: Call, filter: Filter, shape: Shape) -> Self {
        Writer {
            head: object::head(&call.row),
            include: Include::of(&call),
            bookmarks: call.query.flag("allowWatchBookmarks"),
            columns_due: true,
            plain: shape == Shape::Object && Arc::ptr_eq(&call.row, &call.stored),
            shares: Arc::ptr_eq(&call.row, &call.written) || call.row.read.is_some(),
            call,
            filter,
            shape,
        }
    }

    /// Whether this watcher sees events otherwise than they were written.
    fn converts(&self) -> bool {
        self.call.row.read.is_some()
    }

    /// ADDED for all there is; the revision to go on from.
    async fn initial_events(&mut self, announce_end: bool) -> Result<(Vec<u8>, u64), Status> {
        let mut listing = self.call.clone();
        // The version asked for is a lower bound here, never a page of the past.
        let wanted = list::parse_version(listing.query.get("resourceVersion"))?;
        listing.query =
            listing.query.without(&["resourceVersion", "resourceVersionMatch", "limit", "continue"]);
        let page = list::page(&listing, &self.filter).await?;
        if let Some(wanted) = wanted.filter(|w| *w > page.revision) {
            return Err(crate::core::too_large_version(wanted, page.revision));
        }
        let mut out = Vec::new();
        for kv in &page.items {
            self.frame(Kind::Added, kv, kv.mod_revision, &mut out);
        }
        if announce_end && self.bookmarks {
            out.extend(self.bookmark(page.revision, true));
        }
        Ok((out, page.revision))
    }

    /// Writes an event if it concerns this watcher.
    fn event(&mut self, event: &Event, out: &mut Chunk) {
        if !self.filter.matches_key(&self.call, event.key()) {
            return;
        }
        let now = event.current.as_ref().filter(|kv| self.matches(kv, event, false));
        let before = event.previous.as_ref().filter(|kv| self.matches(kv, event, true));
        let (kind, kv) = match (now, before) {
            (Some(now), None) => (Kind::Added, now),
            (Some(now), Some(_)) => (Kind::Modified, now),
            (None, Some(before)) => (Kind::Deleted, before),
            (None, None) => return,
        };
        match memo(event).filter(|_| self.plain && self.shares) {
            Some(memo) => out.share(memo.frames[kind as usize].get_or_init(|| {
                let mut frame = Vec::with_capacity(kv.value.len() + 80);
                self.plain_frame(kind, kv, event.revision, &mut frame);
                frame.into()
            })),
            None => self.frame(kind, kv, event.revision, out.several()),
        }
    }

    fn matches(&self, kv: &KeyValue, event: &Event, previous: bool) -> bool {
        if !self.filter.needs_object() {
            return true;
        }
        let parse = || serde_json::from_slice(&kv.value).unwrap_or_default();
        match memo(event) {
            Some(memo) => {
                let cell = if previous { &memo.previous } else { &memo.current };
                self.filter.matches_object(cell.get_or_init(parse))
            }
            None => self.filter.matches_object(&parse()),
        }
    }

    fn plain_frame(&self, kind: Kind, kv: &KeyValue, revision: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{{\"type\":\"{}\",\"object\":", kind.name()).as_bytes());
        object::splice(&self.head, &kv.value, revision, out);
        out.extend_from_slice(b"}\n");
    }

    fn frame(&mut self, kind: Kind, kv: &KeyValue, revision: u64, out: &mut Vec<u8>) {
        if self.plain {
            return self.plain_frame(kind, kv, revision, out);
        }
        let Ok(value) = self.call.parse_at(kv, revision) else { return };
        let shown = match self.shape {
            Shape::Object => self.call.outward(value),
            Shape::Partial(version) => answer::partial(&value, version),
            Shape::Table(version) => {
                let meta = json!({"resourceVersion": revision.to_string()});
                let rows = vec![answer::table_row(&self.call, version, self.include, value)];
                let columns = std::mem::take(&mut self.columns_due);
                table::document(&self.call.row, version, meta, rows, columns)
            }
        };
        out.extend_from_slice(json!({"type": kind.name(), "object": shown}).to_string().as_bytes());
        out.push(b'\n');
    }

    /// Says up to where everything has been sent.
    fn bookmark(&self, revision: u64, initial_end: bool) -> Vec<u8> {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let row = &self.call.row;
        let object: Value = match self.shape {
            Shape::Object => json!({"kind": row.kind, "apiVersion": row.api_version(), "metadata": meta}),
            Shape::Partial(version) => answer::partial(&json!({"metadata": meta}), version),
            Shape::Table(version) => table::document(row, version, meta, Vec::new(), false),
        };
        let mut out = json!({"type": "BOOKMARK", "object": object}).to_string().into_bytes();
        out.push(b'\n');
        out
    }
}
