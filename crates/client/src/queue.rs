//! A queue of keys to reconcile: each key at most once in the queue, never twice at work, delayed and backed off.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a reconciliation asks of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; forget earlier failures.
    Done,
    /// Done; look again after this time even if nothing changes.
    After(Duration),
    /// Failed (already logged): try again with growing delays.
    Retry,
}

struct State<K> {
    ready: VecDeque<K>,
    /// In `ready`, or to be put there once its run ends.
    dirty: HashSet<K>,
    running: HashSet<K>,
    failures: HashMap<K, u32>,
    /// The earliest delayed addition per key; later ones are absorbed by it.
    delayed: HashMap<K, Instant>,
}

/// A queue of keys; cloning shares it.
pub struct WorkQueue<K> {
    state: Arc<Mutex<State<K>>>,
    wake: Arc<Notify>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), wake: self.wake.clone() }
    }
}

impl<K> fmt::Debug for WorkQueue<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkQueue").field("ready", &self.state.lock().ready.len()).finish()
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> WorkQueue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            running: HashSet::new(),
            failures: HashMap::new(),
            delayed: HashMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), wake: Arc::new(Notify::new()) }
    }

    /// Asks for a run of `key` now; a key at work runs again afterwards.
    pub fn add(&self, key: K) {
        let mut state = self.state.lock();
        if state.dirty.insert(key.clone()) && !state.running.contains(&key) {
            state.ready.push_back(key);
            self.wake.notify_one();
        }
    }

    /// Asks for a run of `key` after `delay`; an earlier delayed run absorbs it.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        {
            let mut state = self.state.lock();
            if state.delayed.get(&key).is_some_and(|known| *known <= due) {
                return;
            }
            state.delayed.insert(key.clone(), due);
        }
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            let mine = {
                let mut state = queue.state.lock();
                let mine = state.delayed.get(&key) == Some(&due);
                if mine {
                    state.delayed.remove(&key);
                }
                mine
            };
            if mine {
                queue.add(key);
            }
        });
    }

    async fn next(&self) -> K {
        loop {
            let woken = self.wake.notified();
            if let Some(key) = self.take() {
                return key;
            }
            woken.await;
        }
    }

    fn take(&self) -> Option<K> {
        let mut state = self.state.lock();
        let key = state.ready.pop_front()?;
        state.dirty.remove(&key);
        state.running.insert(key.clone());
        if !state.ready.is_empty() {
            self.wake.notify_one();
        }
        Some(key)
    }

    fn finish(&self, key: K, outcome: Outcome) {
        let delay = {
            let mut state = self.state.lock();
            state.running.remove(&key);
            if state.dirty.contains(&key) {
                state.ready.push_back(key.clone());
                self.wake.notify_one();
            }
            match outcome {
                Outcome::Done | Outcome::After(_) => {
                    state.failures.remove(&key);
                }
                Outcome::Retry => *state.failures.entry(key.clone()).or_default() += 1,
            }
            match outcome {
                Outcome::Done => None,
                Outcome::After(delay) => Some(delay),
                Outcome::Retry => Some(backoff(state.failures.get(&key).copied().unwrap_or(1))),
            }
        };
        if let Some(delay) = delay {
            self.add_after(key, delay);
        }
    }

    /// Works the queue with `workers` runs side by side, never two of one key, until `stop`; running ones finish.
    pub async fn run<F, Fut>(&self, workers: usize, stop: CancellationToken, reconcile: F)
    where
        F: Fn(K) -> Fut,
        Fut: Future<Output = Outcome>,
    {
        let worker = || async {
            loop {
                let key = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    key = self.next() => key,
                };
                let outcome = reconcile(key.clone()).await;
                self.finish(key, outcome);
            }
        };
        futures::future::join_all((0..workers.max(1)).map(|_| worker())).await;
    }
}

/// 5 ms doubled per failure, up to 30 s.
fn backoff(failures: u32) -> Duration {
    Duration::from_millis(5u64 << failures.saturating_sub(1).min(13)).min(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_it_runs_runs_once_more_and_never_beside_itself() {
        let queue = WorkQueue::new();
        let stop = CancellationToken::new();
        let running = Mutex::new(0);
        let runs = Mutex::new(0);
        queue.add("a");
        let work = queue.run(4, stop.clone(), |key| {
            let (queue, running, runs, stop) = (queue.clone(), &running, &runs, stop.clone());
            async move {
                *running.lock() += 1;
                assert_eq!(*running.lock(), 1);
                queue.add(key);
                queue.add(key);
                tokio::time::sleep(Duration::from_secs(1)).await;
                *running.lock() -= 1;
                *runs.lock() += 1;
                if *runs.lock() == 3 {
                    stop.cancel();
                }
                Outcome::Done
            }
        });
        work.await;
        assert_eq!(*runs.lock(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_forgets_them() {
        let queue = WorkQueue::new();
        let stop = CancellationToken::new();
        let start = Instant::now();
        let times = Mutex::new(Vec::new());
        queue.add(1);
        queue
            .run(1, stop.clone(), |_| async {
                times.lock().push(start.elapsed().as_millis());
                match times.lock().len() {
                    1..=3 => Outcome::Retry,
                    4 => Outcome::After(Duration::from_secs(60)),
                    _ => {
                        stop.cancel();
                        Outcome::Done
                    }
                }
            })
            .await;
        let gaps: Vec<u128> = times.lock().windows(2).map(|w| w[1] - w[0]).collect();
        // Timers of the test clock have a granularity of one millisecond.
        assert!(
            (5..=6).contains(&gaps[0]) && (10..=11).contains(&gaps[1]) && (20..=21).contains(&gaps[2]),
            "{gaps:?}"
        );
        assert!((60_000..=60_001).contains(&gaps[3]), "{gaps:?}");
    }
}
