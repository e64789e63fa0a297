//! Watchers by prefix: a write looks up only the prefixes that its key can have, never the list of all watchers.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use crate::store::{Event, Revision, Watch, WatchSource};
use crate::{Error, Result};

/// Everyone who watches, by prefix.
#[derive(Debug, Default)]
pub struct Watchers {
    by_prefix: HashMap<String, Vec<Slot>>,
    /// The newest revision told, shared with every watch for bookmarks.
    told: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Slot {
    queue: mpsc::Sender<Arc<Event>>,
}

impl Watchers {
    /// Hands the event to each watcher of a prefix of its key. One that is full or gone is dropped: its queue then
    /// ends, which its reader sees as [`Error::Compacted`].
    pub fn tell(&mut self, event: &Arc<Event>) {
        let key: &str = event.key();
        let mut emptied = Vec::new();
        // Watches are registered at a prefix that ends at a slash, or at the empty one.
        let ends = std::iter::once(0).chain(key.match_indices('/').map(|(at, _)| at + 1));
        for prefix in ends.map(|end| &key[..end]) {
            if let Some(slots) = self.by_prefix.get_mut(prefix) {
                slots.retain(|slot| slot.queue.try_send(event.clone()).is_ok());
                if slots.is_empty() {
                    emptied.push(prefix.to_owned());
                }
            }
        }
        emptied.iter().for_each(|prefix| {
            self.by_prefix.remove(prefix);
        });
        self.told.store(event.revision, Ordering::Release);
    }
}

/// Registers a watch; called under the state's write lock, so that nothing falls between `replay` and the queue.
pub fn open_watch(
    watchers: &mut Watchers,
    prefix: &str,
    replay: VecDeque<Arc<Event>>,
    revision: Revision,
    buffer: usize,
) -> Watch {
    let (queue, events) = mpsc::channel(buffer.max(1));
    let slots = watchers.by_prefix.entry(watch_prefix(prefix)).or_default();
    slots.retain(|slot| !slot.queue.is_closed());
    slots.push(Slot { queue });
    watchers.told.store(revision, Ordering::Release);
    let exact = (watch_prefix(prefix) != prefix).then(|| prefix.to_owned());
    Box::pin(EmbeddedWatch {
        replay,
        events,
        told: watchers.told.clone(),
        last: revision,
        exact,
        ended: false,
    })
}

/// The registered prefix: up to the last slash. A watch of `/a/b` is registered at `/a/` and filters for itself.
fn watch_prefix(prefix: &str) -> String {
    prefix.rfind('/').map_or("", |at| &prefix[..=at]).to_owned()
}

struct EmbeddedWatch {
    replay: VecDeque<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
    told: Arc<AtomicU64>,
    last: Revision,
    exact: Option<String>,
    ended: bool,
}

impl Stream for EmbeddedWatch {
    type Item = Result<Arc<Event>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(event) = this.replay.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            match std::task::ready!(this.events.poll_recv(cx)) {
                Some(event) => {
                    this.last = event.revision;
                    if this.exact.as_ref().is_none_or(|prefix| event.key().starts_with(prefix.as_str())) {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
                None => {
                    this.ended = true;
                    let oldest = this.told.load(Ordering::Acquire);
                    return Poll::Ready(Some(Err(Error::Compacted { requested: this.last, oldest })));
                }
            }
        }
    }
}

impl WatchSource for EmbeddedWatch {
    fn progress(&self) -> Option<Revision> {
        // `told` is read first: what was told up to there is either read already or still in the queue.
        let told = self.told.load(Ordering::Acquire);
        (self.replay.is_empty() && self.events.is_empty() && !self.events.is_closed()).then_some(told)
    }
}
