//! Read your own writes: a controller that has just written must not decide again from a cache that has not seen it.
//!
//! Upstream counts expected watch events; revisions make it simpler. After a run the controller notes the newest
//! `resourceVersion` that its creations answered with and the uids that it deleted. The key is held back until the
//! cache has seen that revision and shows none of those objects as alive. Pod events wake the key, so nothing polls;
//! a note expires after five minutes in case the events never come (the cache was relisted in between).

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use client::{Informer, ObjectKey};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

const EXPIRY: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Expected {
    revisions: Vec<String>,
    deleted: Vec<(ObjectKey, String)>,
    since: Option<Instant>,
}

/// What each key of one controller still waits to see in its cache.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

impl Expectations {
    /// `key` has written an object, which now has this version.
    pub fn wrote(&self, key: &ObjectKey, resource_version: Option<String>) {
        self.note(key, |expected| expected.revisions.extend(resource_version));
    }

    /// `key` has deleted this object.
    pub fn deleted(&self, key: &ObjectKey, object: ObjectKey, uid: &str) {
        self.note(key, |expected| expected.deleted.push((object, uid.to_owned())));
    }

    fn note(&self, key: &ObjectKey, add: impl FnOnce(&mut Expected)) {
        let mut all = self.0.lock();
        let expected = all.entry(key.clone()).or_default();
        expected.since.get_or_insert_with(Instant::now);
        add(expected);
    }

    /// The key is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }

    /// `None` if the cache shows all that `key` has done; otherwise the time after which to stop waiting.
    pub fn pending<K>(&self, key: &ObjectKey, cache: &Informer<K>) -> Option<Duration>
    where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut all = self.0.lock();
        let expected = all.get_mut(key)?;
        expected.revisions.retain(|version| !cache.has_seen(version));
        expected.deleted.retain(|(object, uid)| {
            cache.get_key(object).is_some_and(|o| {
                o.meta().uid.as_deref() == Some(uid) && o.meta().deletion_timestamp.is_none()
            })
        });
        let left = EXPIRY.checked_sub(expected.since.map_or(EXPIRY, |s| s.elapsed())).unwrap_or_default();
        if (expected.revisions.is_empty() && expected.deleted.is_empty()) || left.is_zero() {
            all.remove(key);
            return None;
        }
        Some(left)
    }
}
