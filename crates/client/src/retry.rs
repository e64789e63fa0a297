//! When a loop whose write was refused may try again: after 100 ms, then twice as long each time, at most 30 s.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(30);

/// The failures in a row of one loop, and when it may try again.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// Whether it may try now.
    pub fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at <= Instant::now())
    }

    /// Resolves when it may try again; never while nothing has failed.
    pub fn due(&self) -> impl Future<Output = ()> + use<> {
        let at = self.at;
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Notes a failure; gives how long to wait.
    pub fn failed(&mut self) -> Duration {
        let delay = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        self.at = Some(Instant::now() + delay);
        delay
    }

    /// Notes a success.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_doubles_up_to_half_a_minute_and_ends_with_a_success() {
        let mut retry = Retry::default();
        assert!(retry.is_due());
        let waits: Vec<u64> = (0..11).map(|_| retry.failed().as_millis() as u64).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[9..], [30_000, 30_000]);
        assert!(!retry.is_due());
        let began = Instant::now();
        retry.due().await;
        assert_eq!(began.elapsed(), LAST);
        assert!(retry.is_due());
        retry.succeeded();
        assert_eq!(retry.failed(), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_failure_nothing_is_due_by_itself() {
        let never = Retry::default().due();
        assert!(tokio::time::timeout(LAST * 2, never).await.is_err());
    }
}
