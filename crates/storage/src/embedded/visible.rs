//! The visible state: all live keys in order, the history, and who watches.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Options;
use super::history::History;
use super::log::Contents;
use super::watch::{Watchers, covers, open_watch};
use crate::store::{Event, KeyValue, ListOptions, ListResult, Revision, Watch};
use crate::{Error, Result};

/// What readers see: exactly what is durable.
#[derive(Debug)]
pub struct Visible {
    inner: RwLock<Inner>,
    options: Options,
}

#[derive(Debug)]
struct Inner {
    keys: BTreeMap<Arc<str>, KeyValue>,
    history: History,
    watchers: Watchers,
    revision: Revision,
}

impl Visible {
    /// The state read from disk; history begins here.
    pub fn new(contents: Contents, options: Options) -> Self {
        let history = History::new(contents.revision, options.history_events, options.history_bytes);
        let keys = contents.items.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        let inner = Inner { keys, history, watchers: Watchers::default(), revision: contents.revision };
        Self { inner: RwLock::new(inner), options }
    }

    pub fn revision(&self) -> Revision {
        self.inner.read().revision
    }

    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.inner.read().keys.get(key).cloned()
    }

    pub fn compact(&self, revision: Revision) {
        self.inner.write().history.compact(revision);
    }

    /// Enters durable events, in order, and tells the watchers.
    pub fn apply(&self, events: impl IntoIterator<Item = Arc<Event>>) {
        let mut inner = self.inner.write();
        for event in events {
            match &event.current {
                Some(kv) => inner.keys.insert(kv.key.clone(), kv.clone()),
                None => inner.keys.remove(event.key()),
            };
            inner.revision = event.revision;
            inner.history.push(event.bare());
            inner.watchers.tell(&event);
        }
    }

    pub fn list(&self, prefix: &str, options: &ListOptions) -> Result<ListResult> {
        let inner = self.inner.read();
        let newest = inner.revision;
        match options.revision {
            Some(requested) if requested > newest => Err(Error::Future { requested, newest }),
            Some(revision) if revision < newest => inner.list_at(prefix, options, revision),
            _ => Ok(inner.list_now(prefix, options)),
        }
    }

    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let mut inner = self.inner.write();
        let after = if after == 0 { inner.revision } else { after };
        if after > inner.revision {
            return Err(Error::Future { requested: after, newest: inner.revision });
        }
        let replay = inner.history.after(after)?.filter(|e| covers(prefix, e.key()));
        let replay = replay.map(|event| Arc::new(event.bare())).collect();
        let progress = inner.revision;
        Ok(open_watch(&mut inner.watchers, prefix, replay, progress, self.options.watch_buffer))
    }
}

impl Inner {
    fn list_now(&self, prefix: &str, options: &ListOptions) -> ListResult {
        let range = range(&self.keys, prefix, options).map(|(_, kv)| kv);
        page(range, options.limit, self.revision)
    }

    /// The state at an older revision: today's keys with the history undone.
    fn list_at(&self, prefix: &str, options: &ListOptions, revision: Revision) -> Result<ListResult> {
        let undo: HashMap<Arc<str>, Option<KeyValue>> = self.history.undo(prefix, revision)?;
        let mut then: BTreeMap<Arc<str>, KeyValue> = range(&self.keys, prefix, options)
            .filter(|(key, _)| !undo.contains_key(*key))
            .map(|(key, kv)| (key.clone(), kv.clone()))
            .collect();
        let after = options.after.as_deref().unwrap_or("");
        then.extend(
            undo.into_iter().filter(|(key, _)| &**key > after).filter_map(|(key, kv)| Some((key, kv?))),
        );
        Ok(page(then.values(), options.limit, revision))
    }
}

fn range<'a>(
    keys: &'a BTreeMap<Arc<str>, KeyValue>,
    prefix: &'a str,
    options: &ListOptions,
) -> impl Iterator<Item = (&'a Arc<str>, &'a KeyValue)> + use<'a> {
    let start: Bound<&str> = match options.after.as_deref() {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    keys.range::<str, _>((start, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
}

fn page<'a>(mut keys: impl Iterator<Item = &'a KeyValue>, limit: usize, revision: Revision) -> ListResult {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let items = keys.by_ref().take(limit).cloned().collect();
    ListResult { items, remaining: keys.count() as u64, revision }
}
