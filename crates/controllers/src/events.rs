//! The recorder: core/v1 Events as `kubectl describe` shows them, written in the background.
//!
//! A repetition (same object, type, reason and message) raises `count` and `lastTimestamp` of the Event that is
//! already there; one object may not flood the store (a burst of 25, then one per five minutes and source), both as
//! upstream's client does. Recording never waits and never fails its caller: Events are best effort.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::api::{Api, ObjectMeta, Patch};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::kit::{is_not_found, patch, post};
use crate::meta;

/// Distinct Events remembered for counting, and objects remembered for limiting, before both are forgotten.
const REMEMBERED: usize = 4096;
/// Waiting Events beyond which new ones are dropped.
const BACKLOG: usize = 10_000;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// What an Event says, apart from how often and when.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Fact {
    component: &'static str,
    regarding: Regarding,
    type_: &'static str,
    reason: String,
    message: String,
}

/// The object that an Event is about; the hashable half of an `ObjectReference`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Regarding {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
}

impl Regarding {
    /// A reference to `object`.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: meta::namespace(meta).into(),
            name: meta::name(meta).into(),
            uid: meta::uid(meta).into(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }

    /// A Node by its name. Upstream's node controllers give the name as uid, which `kubectl describe node` asks for.
    pub fn node(name: &str) -> Self {
        Self {
            api_version: "v1".into(),
            kind: "Node".into(),
            namespace: String::new(),
            name: name.into(),
            uid: name.into(),
            resource_version: String::new(),
        }
    }

    fn reference(&self) -> ObjectReference {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        ObjectReference {
            api_version: some(&self.api_version),
            kind: some(&self.kind),
            namespace: some(&self.namespace),
            name: some(&self.name),
            uid: some(&self.uid),
            resource_version: some(&self.resource_version),
            field_path: None,
        }
    }
}

/// Records Events; cloning shares the background writer.
#[derive(Clone)]
pub(crate) struct Recorder(mpsc::Sender<(Fact, Timestamp)>);

impl Recorder {
    /// A recorder and the future that writes what it records, until `stop`.
    pub fn new(client: Client, stop: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (tx, rx) = mpsc::channel(BACKLOG);
        (Self(tx), write(client, rx, stop))
    }

    /// A `Normal` Event.
    pub fn normal(&self, component: &'static str, regarding: Regarding, reason: &str, message: String) {
        self.record(component, regarding, "Normal", reason, message);
    }

    /// A `Warning` Event.
    pub fn warning(&self, component: &'static str, regarding: Regarding, reason: &str, message: String) {
        self.record(component, regarding, "Warning", reason, message);
    }

    fn record(
        &self,
        component: &'static str,
        mut regarding: Regarding,
        type_: &'static str,
        reason: &str,
        message: String,
    ) {
        // The version is informative only and would make every repetition a new Event.
        regarding.resource_version.clear();
        let fact = Fact { component, regarding, type_, reason: reason.into(), message };
        if self.0.try_send((fact, Timestamp::now())).is_err() {
            tracing::debug!("an event was dropped: the backlog is full");
        }
    }
}

async fn write(client: Client, mut facts: mpsc::Receiver<(Fact, Timestamp)>, stop: CancellationToken) {
    let mut book = Book::default();
    loop {
        let (fact, now) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            fact = facts.recv() => match fact { Some(fact) => fact, None => return },
        };
        let Some(entry) = book.enter(&fact, now) else { continue };
        if let Err(error) = send(&client, &fact, &entry, now).await {
            tracing::debug!(reason = fact.reason, %error, "an event was not written");
        }
    }
}

/// An Event on the server: its name, how often it happened and since when.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    name: String,
    count: i32,
    first: Timestamp,
}

#[derive(Default)]
struct Book {
    entries: HashMap<Fact, Entry>,
    /// Tokens left per source and object, and when they were counted.
    budgets: HashMap<(&'static str, Regarding), (f64, Option<Instant>)>,
}

impl Book {
    /// The Event to write for this fact; `None` when its object has used up its budget.
    fn enter(&mut self, fact: &Fact, now: Timestamp) -> Option<Entry> {
        if self.entries.len() >= REMEMBERED {
            self.entries.clear();
        }
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        if !self.spend((fact.component, fact.regarding.clone())) {
            return None;
        }
        let fresh = || Entry {
            name: format!("{}.{:x}", fact.regarding.name, now.as_nanosecond()),
            count: 0,
            first: now,
        };
        let entry = self.entries.entry(fact.clone()).or_insert_with(fresh);
        entry.count += 1;
        Some(entry.clone())
    }

    fn spend(&mut self, who: (&'static str, Regarding)) -> bool {
        let now = Instant::now();
        let (tokens, counted) = self.budgets.entry(who).or_insert((BURST, None));
        let since = counted.map_or(Duration::ZERO, |c| now - c);
        *tokens = (*tokens + since.as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *counted = Some(now);
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    }
}

async fn send(client: &Client, fact: &Fact, entry: &Entry, now: Timestamp) -> Result<(), kube::Error> {
    let namespace = if fact.regarding.namespace.is_empty() { "default" } else { &fact.regarding.namespace };
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    if entry.count > 1 {
        let again = json!({"count": entry.count, "lastTimestamp": meta::time(now)});
        match api.patch(&entry.name, &patch(), &Patch::Merge(again)).await {
            Err(error) if is_not_found(&error) => {} // Expired: write it anew.
            other => return other.map(|_| ()),
        }
    }
    api.create(&post(), &event(fact, entry, namespace, now)).await.map(|_| ())
}

fn event(fact: &Fact, entry: &Entry, namespace: &str, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(entry.name.clone()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        involved_object: fact.regarding.reference(),
        reason: Some(fact.reason.clone()),
        message: Some(fact.message.clone()),
        type_: Some(fact.type_.into()),
        count: Some(entry.count),
        first_timestamp: Some(meta::time(entry.first)),
        last_timestamp: Some(meta::time(now)),
        source: Some(EventSource { component: Some(fact.component.into()), host: None }),
        reporting_component: Some(fact.component.into()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn fact(message: &str) -> Fact {
        Fact {
            component: "c",
            regarding: Regarding::node("n"),
            type_: "Normal",
            reason: "R".into(),
            message: message.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repetitions_count_and_floods_end() {
        let mut book = Book::default();
        let now = Timestamp::UNIX_EPOCH;
        let first = book.enter(&fact("a"), now).unwrap();
        assert_eq!((first.count, first.name.as_str()), (1, "n.0"));
        assert_eq!(book.enter(&fact("a"), now).unwrap().count, 2);
        let written = (0..100).filter(|i| book.enter(&fact(&i.to_string()), now).is_some()).count();
        assert_eq!(written, 23);
        tokio::time::advance(REFILL).await;
        assert!(book.enter(&fact("a"), now).is_some());
        assert!(book.enter(&fact("a"), now).is_none());
    }
}
