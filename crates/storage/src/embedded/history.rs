//! The ring of recent events: what watches resume from and lists page through.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::store::{Event, KeyValue, Revision};
use crate::{Error, Result};

/// Consecutive events, oldest first, bounded in number and bytes.
#[derive(Debug)]
pub struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// The revision before the oldest event: states from here on can be shown.
    floor: Revision,
    max_events: usize,
    max_bytes: usize,
}

fn weight(event: &Event) -> usize {
    let value = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.value.len());
    // The previous value is kept alive by this event alone; the current one by the live state as well.
    value(&event.previous) + value(&event.current) + event.key().len() + 160
}

impl History {
    /// An empty history that begins at `floor`.
    pub fn new(floor: Revision, max_events: usize, max_bytes: usize) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor, max_events, max_bytes }
    }

    /// Appends the next event and forgets what no longer fits.
    pub fn push(&mut self, event: Event) {
        self.bytes += weight(&event);
        self.events.push_back(event);
        while self.events.len() > self.max_events || (self.bytes > self.max_bytes && self.events.len() > 1) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= weight(&event);
            self.floor = event.revision;
        }
    }

    /// Forgets events up to and including `revision`.
    pub fn compact(&mut self, revision: Revision) {
        while self.events.front().is_some_and(|e| e.revision <= revision) {
            self.pop();
        }
    }

    /// The events after `revision`, oldest first.
    pub fn after(&self, revision: Revision) -> Result<impl Iterator<Item = &Event>> {
        if revision < self.floor {
            return Err(Error::Compacted { requested: revision, oldest: self.floor });
        }
        let skip = usize::try_from(revision - self.floor).unwrap_or(usize::MAX).min(self.events.len());
        Ok(self.events.range(skip..))
    }

    /// What differed at `revision` from now, below `prefix`: the state of each key written since, `None` for absent.
    pub fn undo(&self, prefix: &str, revision: Revision) -> Result<HashMap<Arc<str>, Option<KeyValue>>> {
        let mut then = HashMap::new();
        for event in self.after(revision)?.filter(|e| e.key().starts_with(prefix)) {
            then.entry(event.key().clone()).or_insert_with(|| event.previous.clone());
        }
        Ok(then)
    }
}
