//! Which endpoint of a Service port a request goes to.
//!
//! Endpoints that failed are left alone for a while, those that have just joined get less at first. Keys (of a cookie,
//! of `upstream-hash-by`) go by rendezvous hashing: each endpoint has a score for a key and the highest wins, so that
//! an endpoint that comes or goes moves no more keys than are its own.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::endpoint::{Address, Endpoint};
use crate::annotations::balancing::Algorithm;

/// How long an endpoint that joins others gets less than they do.
const SLOW_START: Duration = Duration::from_secs(5);

/// Where requests of one Service port go.
#[derive(Debug, Default)]
pub struct Backend {
    /// `namespace/name`'s name; empty for none.
    pub service: String,
    pub(crate) port: String,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    next: AtomicUsize,
}

/// A hash that is the same in every process, so that replicas and restarts agree.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(0x0073_6b69_6666).build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

impl Backend {
    pub(crate) fn new(service: &str, port: &str, endpoints: Vec<Arc<Endpoint>>) -> Self {
        let next = AtomicUsize::new(rand::random_range(0..1024));
        Self { service: service.to_owned(), port: port.to_owned(), endpoints, next }
    }

    /// The addresses of the endpoints that serve; none is answered with 503.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.endpoints.iter().map(|endpoint| &endpoint.address)
    }

    /// Goes on where another one was.
    pub(crate) fn continues(&self, turn: usize) {
        self.next.store(turn, Ordering::Relaxed);
    }

    pub(crate) fn turn(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// An endpoint that was not tried yet; one of those that rest only when there is no other.
    pub(crate) fn pick(&self, algorithm: Algorithm, tried: &[Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
        if let [only] = &self.endpoints[..] {
            return Some(only);
        }
        let fresh = |e: &Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
        let well = self.choose(algorithm, |e| e.is_well() && fresh(e));
        well.or_else(|| self.choose(algorithm, fresh)).or_else(|| self.choose(algorithm, |_| true))
    }

    fn choose(&self, algorithm: Algorithm, may: impl Fn(&Arc<Endpoint>) -> bool) -> Option<&Arc<Endpoint>> {
        match algorithm {
            Algorithm::RoundRobin => self.in_turn(may),
            Algorithm::LeastConnections => {
                // Equal ones take turns.
                let start = self.next.fetch_add(1, Ordering::Relaxed);
                let count = self.endpoints.len();
                let all = (0..count).filter_map(|i| self.endpoints.get((start + i) % count));
                all.filter(|e| may(e)).min_by_key(|e| e.active.load(Ordering::Relaxed))
            }
            Algorithm::Ewma => {
                let one = self.in_turn(&may)?;
                let skip = rand::random_range(0..self.endpoints.len());
                let other =
                    self.endpoints.iter().cycle().skip(skip).take(self.endpoints.len()).find(|e| may(e))?;
                Some(if other.cost() < one.cost() { other } else { one })
            }
        }
    }

    fn in_turn(&self, may: impl Fn(&Arc<Endpoint>) -> bool) -> Option<&Arc<Endpoint>> {
        let count = self.endpoints.len();
        let mut passed = None;
        for _ in 0..count {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let endpoint = self.endpoints.get(turn % count)?;
            if !may(endpoint) {
                continue;
            }
            if self.is_warm(endpoint) {
                return Some(endpoint);
            }
            passed.get_or_insert(endpoint);
        }
        passed
    }

    /// Whether an endpoint takes its turn: always, but for one that has just joined older ones.
    fn is_warm(&self, endpoint: &Endpoint) -> bool {
        let age = endpoint.born.elapsed();
        if age >= SLOW_START || !self.endpoints.iter().any(|e| e.born.elapsed() >= SLOW_START) {
            return true;
        }
        rand::random_range(0.0..1.0) < age.as_secs_f64() / SLOW_START.as_secs_f64() + 0.1
    }

    /// The endpoint of a key; the next best where that was tried or rests.
    pub(crate) fn of_key(&self, key: u64, tried: &[Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
        let fresh = |e: &Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
        let well = self.best(key, |e| fresh(e) && e.is_well());
        well.or_else(|| self.best(key, fresh)).or_else(|| self.owner(key))
    }

    /// The endpoint of a key, whether it rests or not.
    pub(crate) fn owner(&self, key: u64) -> Option<&Arc<Endpoint>> {
        self.best(key, |_| true)
    }

    fn best(&self, key: u64, may: impl Fn(&Arc<Endpoint>) -> bool) -> Option<&Arc<Endpoint>> {
        let all = self.endpoints.iter().filter(|e| may(e));
        all.max_by(|a, b| score(key, &a.text).cmp(&score(key, &b.text)).then_with(|| a.text.cmp(&b.text)))
    }

    /// One of the `size` endpoints of a key.
    pub(crate) fn of_subset(&self, key: u64, size: usize, tried: &[Arc<Endpoint>]) -> Option<&Arc<Endpoint>> {
        let mut scored: Vec<_> = self.endpoints.iter().map(|e| (score(key, &e.text), e)).collect();
        scored.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.text.cmp(&b.1.text)));
        scored.truncate(size.max(1));
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let count = scored.len();
        let all = (0..count).filter_map(|i| scored.get((turn + i) % count));
        let fresh = |e: &Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, e));
        let mut all = all.map(|(_, endpoint)| *endpoint);
        all.clone()
            .find(|e| fresh(e) && e.is_well())
            .or_else(|| all.clone().find(|e| fresh(e)))
            .or_else(|| all.next())
    }

    /// The endpoint of this name, as a cookie holds it.
    pub(crate) fn named(&self, name: u64) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| hash(endpoint.text.as_bytes()) == name)
    }
}

fn score(key: u64, endpoint: &str) -> u64 {
    hash(&[&key.to_le_bytes(), endpoint.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::HashMap;

    use super::super::endpoint::Transport;
    use super::*;
    use crate::annotations::upstream::Protocol;
    use proptest::prelude::*;

    fn endpoint(number: u8) -> Arc<Endpoint> {
        let transport = Transport { protocol: Protocol::Http, greeting: None };
        let address = Address::Socket(([10, 0, 0, number], 80).into());
        Arc::new(Endpoint::new(address, transport))
    }

    fn backend(count: u8) -> Backend {
        Backend::new("a", "80", (0..count).map(endpoint).collect())
    }

    #[test]
    fn round_robin_touches_each_as_often() {
        let backend = backend(10);
        let mut hits: HashMap<Box<str>, u32> = HashMap::new();
        for _ in 0..100 {
            *hits.entry(backend.pick(Algorithm::RoundRobin, &[]).unwrap().text.clone()).or_default() += 1;
        }
        assert_eq!(hits.len(), 10);
        assert!(hits.values().all(|n| *n == 10), "{hits:?}");
    }

    /// An endpoint that was first seen so long ago.
    fn aged(mut endpoint: Arc<Endpoint>, age: Duration) -> Arc<Endpoint> {
        let this = Arc::get_mut(&mut endpoint).unwrap();
        this.born = this.born.checked_sub(age).unwrap();
        endpoint
    }

    #[test]
    fn one_that_failed_rests_and_comes_back() {
        let sick = endpoint(1);
        sick.failed();
        let backend = Backend::new("a", "80", vec![endpoint(0), sick.clone(), endpoint(2)]);
        for algorithm in [Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::Ewma] {
            assert!((0..50).all(|_| !Arc::ptr_eq(backend.pick(algorithm, &[]).unwrap(), &sick)));
        }
        // When all are sick, better a sick one than none.
        backend.endpoints.iter().for_each(|e| e.failed());
        assert!(backend.pick(Algorithm::RoundRobin, &[]).is_some());
        assert!(backend.of_key(7, &[]).is_some());
        drop(backend);
        assert!(aged(sick, Duration::from_secs(20)).is_well());
    }

    #[test]
    fn one_that_joins_starts_slowly() {
        let share = |young: Arc<Endpoint>| {
            let backend = Backend::new("a", "80", vec![aged(endpoint(1), 2 * SLOW_START), young.clone()]);
            (0..1000)
                .filter(|_| Arc::ptr_eq(backend.pick(Algorithm::RoundRobin, &[]).unwrap(), &young))
                .count()
        };
        assert!(share(endpoint(2)) < 250);
        assert_eq!(share(aged(endpoint(2), SLOW_START)), 500);
    }

    #[test]
    fn the_faster_and_the_idler_are_preferred() {
        let backend = backend(2);
        backend.endpoints[0].active.store(5, Ordering::Relaxed);
        let picked = |algorithm| backend.pick(algorithm, &[]).unwrap().clone();
        assert!((0..20).all(|_| Arc::ptr_eq(&picked(Algorithm::LeastConnections), &backend.endpoints[1])));
        backend.endpoints[0].latency.store(50_000, Ordering::Relaxed);
        let fast = (0..200).filter(|_| Arc::ptr_eq(&picked(Algorithm::Ewma), &backend.endpoints[1])).count();
        assert!(fast > 100, "{fast}");
    }

    proptest! {
        #[test]
        fn keys_move_only_with_their_endpoint(keys: Vec<u64>, gone in 0u8..8) {
            let all = backend(8);
            let rest = Backend::new("a", "80", all.endpoints.iter().enumerate()
                .filter(|(i, _)| *i != usize::from(gone)).map(|(_, e)| e.clone()).collect());
            for key in keys {
                let (before, after) = (all.of_key(key, &[]).unwrap(), rest.of_key(key, &[]).unwrap());
                if !Arc::ptr_eq(before, &all.endpoints[usize::from(gone)]) {
                    prop_assert!(Arc::ptr_eq(before, after));
                }
            }
        }
    }
}
