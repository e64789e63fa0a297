//! Events live for an hour after they were last seen, as upstream's do; then they go, or the store would fill up.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use storage::ListOptions;

use crate::core::Core;

const LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// How late an Event may go.
const SWEEP: Duration = Duration::from_secs(300);
const PREFIX: &str = "/registry/core/events/";

/// Runs until the server stops.
pub async fn run(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => sweep(&core, Timestamp::now()).await,
        }
    }
}

/// Removes what is older than an hour at `now`; an Event that somebody writes to meanwhile stays.
pub async fn sweep(core: &Core, now: Timestamp) {
    let Ok(events) = core.store.list(PREFIX, ListOptions::default()).await else { return };
    for kv in events.items {
        let old = serde_json::from_slice(&kv.value).is_ok_and(|event| last_seen(&event) < now - LIFETIME);
        if old && let Err(error) = core.store.delete(&kv.key, Some(kv.mod_revision)).await {
            tracing::debug!(%error, key = &*kv.key, "removing an old event");
        }
    }
}

/// The latest of the moments an Event names.
fn last_seen(event: &Value) -> Timestamp {
    let moments = ["/metadata/creationTimestamp", "/eventTime", "/lastTimestamp", "/series/lastObservedTime"];
    let parse = |pointer: &&str| event.pointer(pointer)?.as_str()?.parse::<Timestamp>().ok();
    moments.iter().filter_map(parse).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_latest_moment_counts() {
        let event = json!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"},
            "series": {"lastObservedTime": "2025-01-01T05:00:00.000000Z"}, "lastTimestamp": null});
        assert_eq!(last_seen(&event).to_string(), "2025-01-01T05:00:00Z");
        assert_eq!(last_seen(&json!({})), Timestamp::UNIX_EPOCH);
    }
}
