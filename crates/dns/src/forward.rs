//! Names of the outside world, asked of servers that are given by address or stand in a `resolv.conf`.
//!
//! Every question by UDP goes out from a socket of its own, with an id and a spelling of its own, so that whoever would
//! forge an answer must guess all three (RFC 5452; draft-vixie-dnsext-dns0x20). Identical questions are asked once. A server
//! that fails is probed until it answers again, and passed over meanwhile.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::cache::{Answered, Ask, Cache, Hit, Reply};
use crate::metrics::Metrics;
use crate::wire::code;

mod exchange;
mod servers;

pub(crate) use servers::searched;
pub use servers::{Health, Target, Tls};
use servers::{Server, Servers};

/// Rounds through the servers.
const ROUNDS: usize = 2;
/// No client waits longer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Questions that may be on their way at once, unless told otherwise.
const IN_FLIGHT: usize = 1000;

/// Why a question has no answer from outside.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The files name no server, or are not there.
    #[error("no upstream servers in {0:?}; name some in directive forward or in the host's resolv.conf")]
    NoServers(Arc<[Target]>),
    /// More questions than we keep track of.
    #[error("as many questions as max_concurrent allows are on their way already")]
    Busy,
    /// What is sent upstream comes back.
    #[error("the upstream servers ask this server")]
    Loop,
    /// No server gave an answer.
    #[error("no answer from {0:?}")]
    Silent(Arc<[SocketAddr]>),
}

/// Which server is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Any of them.
    Random,
    /// Each in turn.
    RoundRobin,
    /// Always the first that answers, as resolvers do.
    Sequential,
}

/// Whom to ask, and how.
#[derive(Debug, Clone)]
pub struct Upstreams {
    /// In order.
    pub targets: Arc<[Target]>,
    /// Who is asked first.
    pub policy: Policy,
    /// Ask by TCP alone.
    pub force_tcp: bool,
    /// Questions that may be on their way at once.
    pub in_flight: usize,
    /// How servers are found to be down, and up again.
    pub health: Health,
    /// For servers that are asked by TLS.
    pub tls: Tls,
    /// How long a connection without a question is kept.
    pub expire: Duration,
}

impl Upstreams {
    /// These servers, with what else is usual.
    pub fn new(targets: Vec<Target>) -> Self {
        Self {
            targets: targets.into(),
            policy: Policy::Random,
            force_tcp: false,
            in_flight: IN_FLIGHT,
            health: Health::default(),
            tls: Tls::default(),
            expire: Duration::from_secs(10),
        }
    }
}

type Outcome = Result<Answered, Error>;
/// A question on its way, and what came of it.
type Flight = watch::Receiver<Option<Outcome>>;

/// Asks upstream servers and remembers what they say.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Upstreams,
    servers: Mutex<Servers>,
    turn: AtomicUsize,
    cache: Option<Cache>,
    room: Arc<Semaphore>,
    /// Questions on their way, and who waits for them.
    flights: Mutex<HashMap<Box<[u8]>, Flight>>,
    metrics: OnceLock<Arc<Metrics>>,
}

impl Forwarder {
    /// Asks these servers; without a cache, each time.
    pub fn new(upstreams: Upstreams, cache: Option<Cache>) -> Self {
        let room = Arc::new(Semaphore::new(upstreams.in_flight.min(Semaphore::MAX_PERMITS)));
        Self {
            upstreams,
            servers: Mutex::default(),
            turn: AtomicUsize::new(0),
            cache,
            room,
            flights: Mutex::default(),
            metrics: OnceLock::new(),
        }
    }

    /// From now on what happens is counted here.
    pub(crate) fn count_in(&self, metrics: &Arc<Metrics>) {
        let _ = self.metrics.set(metrics.clone());
    }

    fn count(&self, what: impl FnOnce(&Metrics)) {
        if let Some(metrics) = self.metrics.get() {
            what(metrics);
        }
    }

    /// How many positive and negative answers are kept.
    pub(crate) fn kept(&self) -> Option<(usize, usize)> {
        self.cache.as_ref().map(Cache::len)
    }

    /// How many positive and negative answers had to make room for others.
    pub(crate) fn evicted(&self) -> Option<(u64, u64)> {
        self.cache.as_ref().map(Cache::evicted)
    }

    /// Of each server by connection: its label, whether it is asked by TLS, how often a connection was there and how often
    /// one was opened.
    pub(crate) fn connections(&self) -> Vec<(String, bool, u64, u64)> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let all = self.list();
        all.iter().map(|s| (s.label.clone(), s.by_tls, count(&s.reused), count(&s.opened))).collect()
    }

    /// The servers as they are named now.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.list().iter().map(|server| server.addr).collect()
    }

    fn list(&self) -> Arc<[Arc<Server>]> {
        self.servers.lock().list(&self.upstreams.targets)
    }

    /// The servers in the order in which they are to be asked this time: those that are down last.
    fn in_order(&self) -> Vec<Arc<Server>> {
        let mut servers = self.list().to_vec();
        if servers.len() > 1 {
            let first = match self.upstreams.policy {
                Policy::Sequential => 0,
                Policy::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed) % servers.len(),
                Policy::Random => rand::random_range(0..servers.len()),
            };
            servers.rotate_left(first);
            servers.sort_by_key(|server| server.is_down(&self.upstreams.health));
        }
        servers
    }

    /// The answer from memory, if there is one.
    pub fn remembered(self: &Arc<Self>, ask: &Ask) -> Option<Answered> {
        let hit = self.cache.as_ref()?.get(ask.key().bytes(), Instant::now());
        match hit {
            Some(Hit::Fresh { answer, refresh }) => {
                if refresh {
                    self.count(|m| m.cache.prefetch());
                    self.refresh(ask);
                }
                self.count(|m| m.cache.hit(answer.reply.code));
                Some(answer)
            }
            Some(Hit::Stale { answer, verify: false, refresh }) => {
                if refresh {
                    self.refresh(ask);
                }
                self.count(|m| m.cache.stale());
                Some(answer)
            }
            Some(Hit::Stale { .. }) | None => None,
        }
    }

    /// Fetches an answer anew while the old one is given.
    fn refresh(self: &Arc<Self>, ask: &Ask) {
        if self.fly(ask).is_err()
            && let Some(cache) = &self.cache
        {
            cache.give_up(ask.key().bytes());
        }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// When there is nobody to ask or nobody answers.
    pub async fn ask(self: &Arc<Self>, ask: &Ask) -> Outcome {
        if let Some(answer) = self.remembered(ask) {
            return Ok(answer);
        }
        if self.cache.is_some() {
            self.count(|m| m.cache.miss());
        }
        let outcome = match self.fly(ask) {
            Ok(mut flight) => match flight.wait_for(Option::is_some).await {
                Ok(landed) => landed.clone().unwrap_or(Err(Error::Busy)),
                Err(_) => Err(Error::Busy),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok(answer) if answer.reply.code != code::SERVFAIL => Ok(answer),
            failed => match self.cache.as_ref().and_then(|c| c.get(ask.key().bytes(), Instant::now())) {
                Some(Hit::Stale { answer, .. }) => {
                    self.count(|m| m.cache.stale());
                    Ok(answer)
                }
                _ => failed,
            },
        }
    }

    /// Asks, unless somebody does already.
    fn fly(self: &Arc<Self>, ask: &Ask) -> Result<Flight, Error> {
        let key: Box<[u8]> = ask.key().bytes().into();
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&key) {
            return Ok(flight.clone());
        }
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            self.count(|m| m.forward.rejected());
            return Err(Error::Busy);
        };
        let (landing, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let (forwarder, ask) = (self.clone(), ask.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let outcome = match forwarder.fetch(&ask).await {
                Ok(reply) => Ok(match &forwarder.cache {
                    Some(cache) => cache.put(&ask, reply, Instant::now()),
                    None => Answered { reply, life: None, cached: false },
                }),
                Err(error) => Err(error),
            };
            if let Some(cache) = forwarder.cache.as_ref().filter(|_| outcome.is_err()) {
                cache.give_up(&key);
            }
            forwarder.flights.lock().remove(&key);
            landing.send_replace(Some(outcome));
        });
        Ok(flight)
    }

    async fn fetch(self: &Arc<Self>, ask: &Ask) -> Result<Arc<Reply>, Error> {
        let servers = self.in_order();
        if servers.is_empty() {
            return Err(Error::NoServers(self.upstreams.targets.clone()));
        }
        if servers.iter().all(|server| server.is_down(&self.upstreams.health)) {
            self.count(|m| m.forward.all_down());
        }
        let started = Instant::now();
        let mut second_best = None;
        for _ in 0..ROUNDS {
            for server in &servers {
                let Some(left) = DEADLINE.checked_sub(started.elapsed()) else { break };
                let sent = Instant::now();
                match exchange::exchange(server, &self.upstreams, ask, left).await {
                    Ok(reply) => {
                        server.answered();
                        self.count(|m| m.forward.answered(&server.label, reply.code, sent.elapsed()));
                        if matches!(reply.code, code::NOERROR | code::NXDOMAIN) {
                            return Ok(Arc::new(reply));
                        }
                        second_best = Some(reply);
                    }
                    Err(error) => {
                        tracing::debug!(server = server.label, %error, name = %ask.name, "upstream");
                        self.failed(server);
                    }
                }
            }
            // An error that a server tells is an answer; asking it again gives the same.
            if let Some(reply) = second_best {
                return Ok(Arc::new(reply));
            }
        }
        Err(Error::Silent(servers.iter().map(|server| server.addr).collect()))
    }

    /// Counts a failure and probes the server until it answers, or nobody wants to know any more.
    fn failed(self: &Arc<Self>, server: &Arc<Server>) {
        if !server.failed(&self.upstreams.health) {
            return;
        }
        let (forwarder, server) = (Arc::downgrade(self), server.clone());
        let (upstreams, interval) = (self.upstreams.clone(), self.upstreams.health.interval);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(forwarder) = forwarder.upgrade() else { return };
                if exchange::probe(&server, &upstreams).await {
                    return server.answered();
                }
                forwarder.count(|m| m.forward.unhealthy(&server.label));
                if !forwarder.list().iter().any(|known| Arc::ptr_eq(known, &server)) {
                    return;
                }
            }
        });
    }
}
