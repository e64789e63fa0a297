//! Events of kinds that a webhook converts, in the version of a watcher. What the webhook made of an event stays on the
//! event, for all watchers of that version.

use std::sync::Arc;

use parking_lot::Mutex;
use storage::{Event, KeyValue};

use super::watch;
use crate::core::Call;
use crate::object;
use crate::status::Status;

/// How many events one question to a webhook may be about.
pub const BATCH: usize = 256;

/// What is on an event: per version, and whether the state before was needed.
#[derive(Default)]
pub struct Converted(Mutex<Vec<(String, bool, Arc<Event>)>>);

impl Converted {
    /// One that has all that is needed.
    fn get(&self, head: &str, both: bool) -> Option<Arc<Event>> {
        let known = self.0.lock();
        known.iter().find(|(h, b, _)| h == head && (*b || !both)).map(|(_, _, event)| event.clone())
    }
}

/// The events in the form of the call's version. The state before an event is left as it is where there is one after
/// it, unless `both` are needed.
///
/// # Errors
/// 500 when the webhook fails.
pub async fn events(call: &Call, events: Vec<Arc<Event>>, both: bool) -> Result<Vec<Arc<Event>>, Status> {
    let Some(webhook) = &call.row.conversion else { return Ok(events) };
    let head = object::head(&call.row);
    // Of all watchers that were woken by the same events the first one asks, the others find its answers.
    let _turn = webhook.turn.lock().await;
    let mut out: Vec<Option<Arc<Event>>> = events.iter().map(|event| known(event, &head, both)).collect();
    let missing: Vec<&Arc<Event>> =
        events.iter().zip(&out).filter(|(_, o)| o.is_none()).map(|(e, _)| e).collect();
    let sent = missing.iter().flat_map(|event| needed(event, both)).cloned().collect();
    let mut converted = call.all_shown(sent).await?.into_iter();
    let mut new = missing.into_iter().map(|event| {
        let mut bare = event.bare();
        if bare.current.is_some() {
            bare.current = converted.next();
        }
        if bare.previous.is_some() && (both || bare.current.is_none()) {
            bare.previous = converted.next();
        }
        let bare = Arc::new(bare);
        if let Some(memo) = watch::memo(event) {
            memo.converted.0.lock().push((head.clone(), both, bare.clone()));
        }
        bare
    });
    for slot in out.iter_mut().filter(|slot| slot.is_none()) {
        *slot = new.next();
    }
    Ok(out.into_iter().flatten().collect())
}

/// The states of an event that a watcher is to see.
fn needed(event: &Event, both: bool) -> impl Iterator<Item = &KeyValue> {
    let previous = event.previous.as_ref().filter(|_| both || event.current.is_none());
    event.current.iter().chain(previous)
}

/// The event in the wanted version, if nobody has to be asked for it.
fn known(event: &Arc<Event>, head: &str, both: bool) -> Option<Arc<Event>> {
    if needed(event, both).all(|kv| kv.value.starts_with(head.as_bytes())) {
        return Some(event.clone());
    }
    watch::memo(event)?.converted.get(head, both)
}
