//! The write path: order and conflicts decided at submit, durability in batches on a thread of its own.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::log::Log;
use super::visible::Visible;
use crate::store::{Event, KeyValue, Revision};
use crate::{Error, Result};

/// What must be true of a key for a write to happen.
#[derive(Debug, Clone, Copy)]
pub enum Expectation {
    /// Not there (create).
    Absent,
    /// There, at whatever revision (delete).
    Present,
    /// There, last written at this revision.
    At(Revision),
}

struct Submitted {
    event: Arc<Event>,
    answer: oneshot::Sender<Result<Arc<Event>>>,
}

#[derive(Default)]
struct Queue {
    /// Newest state of keys that are submitted but not yet visible; `None` for deleted.
    ahead: HashMap<Arc<str>, (Revision, Option<KeyValue>)>,
    waiting: Vec<Submitted>,
    last_revision: Revision,
    closed: bool,
}

/// Why a write was not taken.
enum Refused {
    /// Because of what readers see as well, or for good.
    Final(Error),
    /// Because of a write that is not durable yet.
    Ahead { revision: Revision, error: Error },
}

struct Shared {
    queue: Mutex<Queue>,
    /// Changes whenever submitted writes have become visible or were taken back.
    settled: watch::Sender<()>,
    wake: Condvar,
    visible: Arc<Visible>,
}

/// The write path's handle; dropping it lets the thread finish what was submitted and close the file.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the logging thread.
    pub fn start(log: Log, visible: Arc<Visible>) -> Result<Self> {
        let queue = Queue { last_revision: visible.revision(), ..Queue::default() };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            settled: watch::Sender::new(()),
            wake: Condvar::new(),
            visible,
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("store-log".into())
            .spawn(move || Logger { shared: of_thread, log, uncertain: None }.run())
            .map_err(|e| Error::Io(e.to_string().into()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Submits one write and waits until it is durable and visible. Once submitted it happens, even if the caller
    /// stops waiting.
    pub async fn submit(&self, key: &str, value: Option<Bytes>, expected: Expectation) -> Result<Arc<Event>> {
        let mut settled = self.shared.settled.subscribe();
        loop {
            match self.shared.enqueue(key, value.clone(), expected) {
                Ok(answer) => return answer.await.map_err(|_| Error::Closed)?,
                Err(Refused::Final(error)) => return Err(error),
                // What stands in the way is not visible yet: who is told of it would read the older state and meet
                // the same refusal again. It is either shown or taken back soon.
                Err(Refused::Ahead { revision, error }) => {
                    let shown = settled.wait_for(|_| !self.shared.is_ahead(key, revision)).await.is_ok();
                    if !shown || self.shared.visible.revision() >= revision {
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's log thread panicked");
        }
    }
}

impl Shared {
    fn enqueue(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Expectation,
    ) -> std::result::Result<oneshot::Receiver<Result<Arc<Event>>>, Refused> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Refused::Final(Error::Closed));
        }
        let ahead = queue.ahead.get(key).cloned();
        let previous = match &ahead {
            Some((_, state)) => state.clone(),
            None => self.visible.get(key),
        };
        if let Err(error) = check(key, previous.as_ref(), expected) {
            return Err(match ahead {
                Some((revision, _)) => Refused::Ahead { revision, error },
                None => Refused::Final(error),
            });
        }
        let revision = queue.last_revision + 1;
        let event = Arc::new(next_event(key, value, previous, revision));
        queue.last_revision = revision;
        queue.ahead.insert(event.key().clone(), (revision, event.current.clone()));
        let (answer, waiting) = oneshot::channel();
        queue.waiting.push(Submitted { event, answer });
        self.wake.notify_one();
        Ok(waiting)
    }

    fn is_ahead(&self, key: &str, revision: Revision) -> bool {
        self.queue.lock().ahead.get(key).is_some_and(|(newest, _)| *newest == revision)
    }

    /// Waits for submissions; `None` once closed and empty.
    fn take(&self) -> Option<Vec<Submitted>> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.waiting))
    }

    /// Makes a durable batch visible.
    fn show(&self, events: &[Arc<Event>]) {
        self.visible.apply(events.iter().cloned());
        let mut queue = self.queue.lock();
        for event in events {
            if queue.ahead.get(event.key()).is_some_and(|(revision, _)| *revision == event.revision) {
                queue.ahead.remove(event.key());
            }
        }
        drop(queue);
        self.settled.send_replace(());
    }

    /// Takes back all that is not durable and tells its writers.
    fn fail(&self, batch: Vec<Submitted>, error: &Error) {
        let later = {
            let mut queue = self.queue.lock();
            queue.ahead.clear();
            queue.last_revision = self.visible.revision();
            std::mem::take(&mut queue.waiting)
        };
        self.settled.send_replace(());
        for submitted in batch.into_iter().chain(later) {
            // A writer that stopped waiting needs no answer.
            let _ = submitted.answer.send(Err(error.clone()));
        }
    }
}

fn check(key: &str, previous: Option<&KeyValue>, expected: Expectation) -> Result<()> {
    match (previous, expected) {
        (Some(kv), Expectation::Absent) => Err(Error::Exists(kv.key.clone())),
        (None, Expectation::Present | Expectation::At(_)) => Err(Error::NotFound(Arc::from(key))),
        (Some(kv), Expectation::At(expected)) if kv.mod_revision != expected => {
            Err(Error::Conflict { expected, current: kv.clone() })
        }
        _ => Ok(()),
    }
}

fn next_event(key: &str, value: Option<Bytes>, previous: Option<KeyValue>, revision: Revision) -> Event {
    let current = value.map(|value| KeyValue {
        key: previous.as_ref().map_or_else(|| Arc::from(key), |kv| kv.key.clone()),
        value,
        create_revision: previous.as_ref().map_or(revision, |kv| kv.create_revision),
        mod_revision: revision,
    });
    Event { revision, current, previous, memo: OnceLock::new() }
}

struct Logger {
    shared: Arc<Shared>,
    log: Log,
    /// A batch whose sync failed: it may or may not be on the disk. Nothing is written before this is known.
    uncertain: Option<Vec<Arc<Event>>>,
}

impl Logger {
    fn run(mut self) {
        while let Some(batch) = self.shared.take() {
            if let Err(error) = self.settle() {
                self.shared.fail(batch, &error);
                continue;
            }
            // A settled batch may have entered the visible state; what was checked before it is checked again.
            let events: Vec<Arc<Event>> = batch.iter().map(|s| s.event.clone()).collect();
            if events.first().is_some_and(|e| e.revision != self.shared.visible.revision() + 1) {
                self.shared.fail(batch, &Error::Io("the store recovered from a failed sync, retry".into()));
                continue;
            }
            match self.log.commit(&events) {
                Ok(()) => {
                    self.shared.show(&events);
                    for submitted in batch {
                        let _ = submitted.answer.send(Ok(submitted.event));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, writes = events.len(), "store sync failed");
                    self.uncertain = Some(events);
                    let settled = self.settle();
                    let durable = settled.is_ok()
                        && batch.last().is_some_and(|s| s.event.revision == self.shared.visible.revision());
                    if durable {
                        batch.into_iter().for_each(|s| {
                            let _ = s.answer.send(Ok(s.event));
                        });
                    } else {
                        self.shared.fail(batch, &error);
                    }
                }
            }
        }
    }

    /// Finds out whether the uncertain batch reached the disk, and shows it if so.
    fn settle(&mut self) -> Result<()> {
        let Some(events) = &self.uncertain else { return Ok(()) };
        let durable = self.log.durable_revision()?;
        if events.last().is_some_and(|e| e.revision == durable) {
            self.shared.show(events);
        }
        self.uncertain = None;
        Ok(())
    }
}
