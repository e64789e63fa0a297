//! Growing delays between attempts: 10 s doubled up to 5 minutes, forgotten after 10 quiet minutes.
//!
//! The rule is upstream's: the first failure is retried at once and opens the window; each later attempt must wait
//! until the window since the last failure has passed, and doubles it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const MAX: SignedDuration = SignedDuration::from_secs(300);

/// The memory of one container's (or image's) failures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    window: Option<(SignedDuration, Timestamp)>,
}

impl Backoff {
    /// Until when the next attempt must wait, given when the last one failed; `None` when it may begin now.
    pub fn wait(&self, failed_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let (window, updated) = self.window?;
        if failed_at.duration_since(updated) > MAX * 2 {
            return None;
        }
        let until = failed_at + window;
        (until > now).then_some(until)
    }

    /// The current delay, as messages name it.
    pub fn delay(&self) -> SignedDuration {
        self.window.map_or(FIRST, |(window, _)| window)
    }

    /// Counts an attempt after a failure: opens the window, or doubles it, or starts afresh after a quiet time.
    pub fn next(&mut self, failed_at: Timestamp, now: Timestamp) {
        let window = match self.window {
            Some((window, updated)) if failed_at.duration_since(updated) <= MAX * 2 => (window * 2).min(MAX),
            _ => FIRST,
        };
        self.window = Some((window, now));
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.window = None;
    }
}

/// A duration as Go prints whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_then_10_to_300_seconds() {
        let mut backoff = Backoff::default();
        let mut now = Timestamp::UNIX_EPOCH;
        let mut waits = Vec::new();
        for _ in 0..9 {
            // The container fails at once each time.
            let failed = now;
            let until = backoff.wait(failed, now).unwrap_or(now);
            waits.push(until.duration_since(now).as_secs());
            now = until;
            backoff.next(failed, now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
        now += SignedDuration::from_secs(601);
        assert_eq!(backoff.wait(now, now), None);
        backoff.next(now, now);
        assert_eq!(backoff.delay().as_secs(), 10);
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(SignedDuration::from_secs(seconds)), text);
        }
    }
}
