//! Events of custom kinds as a watcher reads them: pruned, with defaults, in its version. What was made of an event stays
//! on the event, for all watchers of that version.

use std::sync::Arc;

use parking_lot::Mutex;
use storage::{Event, KeyValue};

use super::watch;
use crate::core::Call;
use crate::resource::Resource;
use crate::status::Status;

/// How many events one question to a webhook may be about.
pub const BATCH: usize = 256;

/// What is on an event: per row how it is read.
#[derive(Default)]
pub struct Converted(Mutex<Vec<Seen>>);

struct Seen {
    row: Arc<Resource>,
    /// Whether the state before was needed.
    both: bool,
    /// Nothing where the event is read as it is: one that holds itself would never go.
    event: Option<Arc<Event>>,
}

impl Converted {
    /// One that has all that is needed.
    fn get(&self, event: &Arc<Event>, row: &Arc<Resource>, both: bool) -> Option<Arc<Event>> {
        let known = self.0.lock();
        let found = known.iter().find(|seen| Arc::ptr_eq(&seen.row, row) && (seen.both || !both))?;
        Some(found.event.as_ref().unwrap_or(event).clone())
    }
}

/// The events in the form of the call's version. The state before an event is left as it is where there is one after
/// it, unless `both` are needed.
///
/// # Errors
/// 500 when the webhook fails.
pub async fn events(call: &Call, events: Vec<Arc<Event>>, both: bool) -> Result<Vec<Arc<Event>>, Status> {
    // Of all watchers that were woken by the same events the first one asks, the others find its answers.
    let _turn = match &call.row.conversion {
        Some(webhook) => Some(webhook.turn.lock().await),
        None => None,
    };
    let known = |event: &Arc<Event>| watch::memo(event)?.converted.get(event, &call.row, both);
    let mut out: Vec<Option<Arc<Event>>> = events.iter().map(known).collect();
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
        let same = bare.current == event.current && bare.previous == event.previous;
        let seen = if same { event.clone() } else { Arc::new(bare) };
        if let Some(memo) = watch::memo(event) {
            let event = if same { None } else { Some(seen.clone()) };
            memo.converted.0.lock().push(Seen { row: call.row.clone(), both, event });
        }
        seen
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
