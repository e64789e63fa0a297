//! Watchers by what they watch: a write looks up its key and the prefixes that the key has, never the list of all
//! watchers. Thousands that watch one object each cost a write nothing.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

use crate::store::{Event, Revision, Watch, WatchSource};
use crate::{Error, Result};

/// Below so many watches nobody looks for those whose readers are gone.
const FEW: usize = 64;

/// Everyone who watches, by prefix or key.
#[derive(Debug, Default)]
pub struct Watchers {
    by_prefix: HashMap<String, Vec<Slot>>,
    /// Watches at the last look for readers that are gone, and those opened since.
    live: usize,
    opened: usize,
    /// The newest revision told, shared with every watch for bookmarks.
    told: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Slot {
    queue: mpsc::Sender<Arc<Event>>,
}

impl Watchers {
    /// Hands the event to each watcher of its key or a prefix of it. One that is full or gone is dropped: its queue
    /// then ends, which its reader sees as [`Error::Compacted`].
    pub fn tell(&mut self, event: &Arc<Event>) {
        let key: &str = event.key();
        let mut emptied = Vec::new();
        // Watches are registered at the empty prefix, one that ends at a slash, or a whole key.
        let slashes = key.match_indices('/').map(|(at, _)| at + 1).filter(|end| *end < key.len());
        let ends = std::iter::once(0).chain(slashes).chain((!key.is_empty()).then_some(key.len()));
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

    fn add(&mut self, prefix: &str, slot: Slot) {
        // Nothing may ever be written where a reader is gone: such watches must not gather.
        if self.opened >= self.live.max(FEW) {
            self.by_prefix.retain(|_, slots| {
                slots.retain(|slot| !slot.queue.is_closed());
                !slots.is_empty()
            });
            self.live = self.by_prefix.values().map(Vec::len).sum();
            self.opened = 0;
        }
        self.opened += 1;
        self.by_prefix.entry(prefix.to_owned()).or_default().push(slot);
    }
}

/// Whether a watch of `prefix` is about `key`: a prefix that ends at a slash has all below it, any other is one key.
pub fn covers(prefix: &str, key: &str) -> bool {
    if prefix.is_empty() || prefix.ends_with('/') { key.starts_with(prefix) } else { key == prefix }
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
    watchers.add(prefix, Slot { queue });
    watchers.told.store(revision, Ordering::Release);
    Box::pin(EmbeddedWatch { replay, events, told: watchers.told.clone(), last: revision, ended: false })
}

struct EmbeddedWatch {
    replay: VecDeque<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
    told: Arc<AtomicU64>,
    last: Revision,
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
        match std::task::ready!(this.events.poll_recv(cx)) {
            Some(event) => {
                this.last = event.revision;
                Poll::Ready(Some(Ok(event)))
            }
            None => {
                this.ended = true;
                let oldest = this.told.load(Ordering::Acquire);
                Poll::Ready(Some(Err(Error::Compacted { requested: this.last, oldest })))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::store::KeyValue;

    fn event(key: &str, revision: Revision) -> Arc<Event> {
        let kv = KeyValue {
            key: key.into(),
            value: Default::default(),
            create_revision: revision,
            mod_revision: revision,
        };
        let memo = std::sync::OnceLock::new();
        Arc::new(Event { revision, current: Some(kv), previous: None, memo })
    }

    fn seen(watch: &mut Watch) -> Vec<Revision> {
        std::iter::from_fn(|| watch.next().now_or_never().flatten().map(|e| e.unwrap().revision)).collect()
    }

    #[test]
    fn a_write_reaches_those_of_its_key_and_its_prefixes_alone() {
        let mut watchers = Watchers::default();
        let prefixes = ["", "/a/", "/a/b", "/a/b/", "/a/bc", "/c/"];
        let mut watches = prefixes.map(|p| open_watch(&mut watchers, p, VecDeque::new(), 0, 8));
        let keys = ["/a/b", "/a/bc", "/a/b/d", "/c/"];
        for (revision, key) in (1..).zip(keys) {
            watchers.tell(&event(key, revision));
        }
        for (prefix, watch) in prefixes.iter().zip(&mut watches) {
            let due: Vec<Revision> =
                (1..).zip(keys).filter(|(_, key)| covers(prefix, key)).map(|(r, _)| r).collect();
            assert_eq!(seen(watch), due, "{prefix:?}");
            assert_eq!(watch.progress(), Some(4));
        }
    }

    #[test]
    fn watches_of_readers_that_are_gone_do_not_gather() {
        let mut watchers = Watchers::default();
        let mut kept = open_watch(&mut watchers, "/a/kept", VecDeque::new(), 0, 1);
        for i in 0..10 * FEW {
            drop(open_watch(&mut watchers, &format!("/a/{i}"), VecDeque::new(), 0, 1));
        }
        assert!(watchers.by_prefix.len() <= FEW + 1, "{}", watchers.by_prefix.len());
        watchers.tell(&event("/a/kept", 1));
        assert_eq!(seen(&mut kept), [1]);
    }
}
