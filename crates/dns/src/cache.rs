//! Answers of upstreams, kept for as long as they and the Corefile allow.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::name::{Domain, Qname};
use crate::wire::{Records, Section, code, kind};

/// Octets that each half of the cache may hold, whatever the number of answers.
const MOST_OCTETS: usize = 8 << 20;

/// What is asked of others.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The name.
    pub name: Qname,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// The client wants signatures.
    pub dnssec: bool,
    /// The client checks signatures itself.
    pub checking_disabled: bool,
    /// Options of EDNS, as they are sent.
    pub options: Box<[u8]>,
}

impl Ask {
    /// A question of this class: no signatures wanted.
    pub fn plain(name: &Qname, kind: u16, class: u16) -> Self {
        let name = name.clone();
        Self { name, kind, class, dnssec: false, checking_disabled: false, options: Box::default() }
    }

    /// What makes two questions the same.
    pub(crate) fn key(&self) -> Key {
        let mut key = Key { bytes: [0; 255 + 5], len: 0, long: None };
        let flags = u8::from(self.dnssec) | u8::from(self.checking_disabled) << 1;
        let ([k1, k2], [c1, c2]) = (self.kind.to_be_bytes(), self.class.to_be_bytes());
        let name = self.name.wire();
        key.bytes[..name.len()].copy_from_slice(name);
        key.bytes[name.len()..name.len() + 5].copy_from_slice(&[k1, k2, c1, c2, flags]);
        key.len = name.len() + 5;
        if !self.options.is_empty() {
            key.long = Some([&key.bytes[..key.len], &self.options].concat());
        }
        key
    }
}

/// A question as a key, on the stack.
pub(crate) struct Key {
    bytes: [u8; 255 + 5],
    len: usize,
    /// With options, which few questions have.
    long: Option<Vec<u8>>,
}

impl Key {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.long.as_deref().unwrap_or(&self.bytes[..self.len])
    }
}

/// What an upstream said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Code.
    pub code: u16,
    /// Whether it has checked signatures.
    pub authentic: bool,
    /// All records.
    pub records: Records,
}

impl Reply {
    fn denies(&self) -> bool {
        self.code != code::NOERROR || self.records.none_in(Section::Answer)
    }
}

/// What is said to a client.
#[derive(Debug, Clone)]
pub struct Answered {
    /// What an upstream said.
    pub reply: Arc<Reply>,
    /// What is left of it, in seconds; without, records live as long as they say.
    pub life: Option<u32>,
    /// It came from memory.
    pub cached: bool,
}

impl Answered {
    /// The life of a record.
    pub fn life_of(&self, own: u32) -> u32 {
        self.life.unwrap_or(own)
    }
}

/// The limits of one half of the cache: positive answers, or negative ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Most answers.
    pub most: usize,
    /// Longest life in seconds; 0 keeps none.
    pub longest: u32,
    /// Shortest life in seconds.
    pub shortest: u32,
    /// Zones of which nothing is kept.
    pub not_of: Vec<Domain>,
}

/// Refreshes what is asked for often before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// After so many questions,
    pub amount: u32,
    /// none later than this after the one before,
    pub within: Duration,
    /// once no more of the life is left, in percent.
    pub percentage: u32,
}

/// What becomes of answers whose life has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    /// They are given so much longer.
    pub extra: Duration,
    /// Only once upstreams have been asked and have not answered.
    pub verify: bool,
}

/// What the cache is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lives {
    /// Records.
    pub success: Half,
    /// That there are none.
    pub denial: Half,
    /// Seconds for which an upstream's failure is kept.
    pub failure: u32,
    /// Records are told with the lives that they came with.
    pub keep_ttl: bool,
    /// Refresh before the end.
    pub prefetch: Option<Prefetch>,
    /// Answers after the end.
    pub stale: Option<Stale>,
}

impl Default for Lives {
    /// CoreDNS's limits.
    fn default() -> Self {
        let half = |longest| Half { most: 9984, longest, shortest: 5, not_of: Vec::new() };
        Self {
            success: half(3600),
            denial: half(1800),
            failure: 5,
            keep_ttl: false,
            prefetch: None,
            stale: None,
        }
    }
}

impl Lives {
    /// Nothing longer than this.
    pub fn at_most(seconds: u32) -> Self {
        let mut lives = Self::default();
        lives.success.longest = seconds;
        lives.denial.longest = lives.denial.longest.min(seconds);
        lives
    }
}

#[derive(Debug)]
struct Entry {
    reply: Arc<Reply>,
    life: u32,
    until: Instant,
    asked: u32,
    last: Instant,
    /// Somebody is fetching it anew.
    refreshing: bool,
}

#[derive(Debug, Default)]
struct Store {
    entries: HashMap<Box<[u8]>, Entry>,
    octets: usize,
    /// Answers that had to make room for others.
    evicted: u64,
}

impl Store {
    fn remove(&mut self, key: &[u8]) {
        if let Some(old) = self.entries.remove(key) {
            self.octets -= size(key, &old);
        }
    }

    fn make_room(&mut self, most: usize, now: Instant) {
        let full = |store: &Self| store.entries.len() >= most || store.octets >= MOST_OCTETS;
        if !full(self) {
            return;
        }
        let mut victims: Vec<Box<[u8]>> =
            self.entries.iter().filter(|(_, e)| e.until <= now).map(|(key, _)| key.clone()).collect();
        if victims.len() < most / 10 {
            // Full of fresh answers: room is made at random, which is what hashing gives.
            let fresh = self.entries.iter().filter(|(_, e)| e.until > now).take(most / 10 + 1);
            let before = victims.len();
            victims.extend(fresh.map(|(key, _)| key.clone()));
            self.evicted += (victims.len() - before) as u64;
        }
        victims.iter().for_each(|victim| self.remove(victim));
    }
}

fn size(key: &[u8], entry: &Entry) -> usize {
    key.len() + entry.reply.records.size() + size_of::<Entry>()
}

/// What the cache knows.
#[derive(Debug)]
pub enum Hit {
    /// An answer; `refresh` once the caller is to fetch it anew.
    Fresh {
        /// The answer.
        answer: Answered,
        /// Fetch it anew meanwhile.
        refresh: bool,
    },
    /// An answer whose life has ended, for want of a better one.
    Stale {
        /// The answer.
        answer: Answered,
        /// Upstreams must be asked first.
        verify: bool,
        /// Fetch it anew meanwhile.
        refresh: bool,
    },
}

/// A bounded cache.
#[derive(Debug)]
pub struct Cache {
    lives: Lives,
    success: Mutex<Store>,
    denial: Mutex<Store>,
}

impl Cache {
    /// An empty cache.
    pub fn new(lives: Lives) -> Self {
        Self { lives, success: Mutex::default(), denial: Mutex::default() }
    }

    /// What is known about a question, by [`Ask::key`].
    pub fn get(&self, key: &[u8], now: Instant) -> Option<Hit> {
        self.get_from(&self.success, key, now).or_else(|| self.get_from(&self.denial, key, now))
    }

    fn get_from(&self, store: &Mutex<Store>, key: &[u8], now: Instant) -> Option<Hit> {
        let mut store = store.lock();
        let entry = store.entries.get_mut(key)?;
        let left = entry.until.saturating_duration_since(now);
        let told = |life| Answered {
            reply: entry.reply.clone(),
            life: Some(life).filter(|_| !self.lives.keep_ttl),
            cached: true,
        };
        if left > Duration::ZERO {
            let answer = told(left.as_secs() as u32 + u32::from(left.subsec_nanos() > 0));
            let mut refresh = false;
            if let Some(prefetch) = self.lives.prefetch {
                let soon = now.duration_since(entry.last) <= prefetch.within;
                entry.asked = if soon { entry.asked.saturating_add(1) } else { 1 };
                entry.last = now;
                let late =
                    left.as_millis() * 100 <= u128::from(entry.life) * 1000 * u128::from(prefetch.percentage);
                refresh = late && entry.asked >= prefetch.amount && !entry.refreshing;
                entry.refreshing |= refresh;
            }
            return Some(Hit::Fresh { answer, refresh });
        }
        let stale = self.lives.stale.filter(|stale| now < entry.until + stale.extra)?;
        // A failure is not worth keeping past its end.
        let answer = Some(told(0)).filter(|a| matches!(a.reply.code, code::NOERROR | code::NXDOMAIN))?;
        let refresh = !stale.verify && !entry.refreshing;
        entry.refreshing |= refresh;
        Some(Hit::Stale { answer, verify: stale.verify, refresh })
    }

    /// Keeps an answer as long as its records, or its negative life, allow; gives what is to be told.
    pub fn put(&self, ask: &Ask, reply: Arc<Reply>, now: Instant) -> Answered {
        let denies = reply.denies();
        let half = if denies { &self.lives.denial } else { &self.lives.success };
        let life = life(&reply, &self.lives)
            .filter(|life| *life > 0 && !half.not_of.iter().any(|zone| zone.holds(&ask.name)));
        let Some(life) = life else { return Answered { reply, life: None, cached: false } };
        let (store, other) =
            if denies { (&self.denial, &self.success) } else { (&self.success, &self.denial) };
        let key = ask.key();
        // A failure does not take the place of what may still be told.
        if reply.code == code::NOERROR || reply.code == code::NXDOMAIN {
            other.lock().remove(key.bytes());
        } else if self.lives.stale.is_some() {
            return Answered { reply, life: None, cached: false };
        }
        let mut store = store.lock();
        let old = store.entries.get(key.bytes()).map_or((0, now), |entry| (entry.asked, entry.last));
        store.remove(key.bytes());
        store.make_room(half.most, now);
        let until = now + Duration::from_secs(u64::from(life));
        let entry = Entry { reply: reply.clone(), life, until, asked: old.0, last: old.1, refreshing: false };
        store.octets += size(key.bytes(), &entry);
        store.entries.insert(key.bytes().into(), entry);
        Answered { reply, life: Some(life).filter(|_| !self.lives.keep_ttl), cached: false }
    }

    /// A fetch has failed: the next question may try again.
    pub fn give_up(&self, key: &[u8]) {
        for store in [&self.success, &self.denial] {
            if let Some(entry) = store.lock().entries.get_mut(key) {
                entry.refreshing = false;
            }
        }
    }

    /// How many positive and negative answers had to make room for others.
    pub(crate) fn evicted(&self) -> (u64, u64) {
        (self.success.lock().evicted, self.denial.lock().evicted)
    }

    /// How many positive and negative answers are kept.
    pub fn len(&self) -> (usize, usize) {
        (self.success.lock().entries.len(), self.denial.lock().entries.len())
    }
}

/// Seconds for which an answer may be kept; `None` for answers that say nothing lasting (RFC 2308).
fn life(reply: &Reply, lives: &Lives) -> Option<u32> {
    let clamped = |ttl: u32, half: &Half| ttl.max(half.shortest).min(half.longest);
    let positive = reply.records.lives(Section::Answer).map(|(_, ttl, _)| ttl).min();
    let soa = || {
        let mut all = reply.records.lives(Section::Authority);
        all.find(|(kind, ..)| *kind == kind::SOA).map(|(_, ttl, minimum)| ttl.min(minimum.unwrap_or(ttl)))
    };
    match (reply.code, positive) {
        (code::NOERROR, Some(ttl)) => Some(clamped(ttl, &lives.success)),
        (code::NOERROR | code::NXDOMAIN, _) => Some(clamped(soa()?, &lives.denial)),
        (code::SERVFAIL, _) => Some(lives.failure),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record};

    use super::*;
    use crate::wire::IN;

    fn ask(name: &str) -> Ask {
        Ask::plain(&Qname::parse(name).unwrap(), kind::A, IN)
    }

    fn reply(ttl: u32) -> Arc<Reply> {
        let mut reply = Reply::default();
        let name = Name::from_ascii("example.org.").unwrap();
        reply.records.add(Section::Answer, &Record::from_rdata(name, ttl, RData::A(A::new(1, 2, 3, 4))));
        Arc::new(reply)
    }

    fn denial(ttl: u32, minimum: u32) -> Arc<Reply> {
        let mut reply = Reply { code: code::NXDOMAIN, ..Reply::default() };
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, minimum);
        reply.records.add(Section::Authority, &Record::from_rdata(root, ttl, RData::SOA(soa)));
        Arc::new(reply)
    }

    fn left(cache: &Cache, name: &str, now: Instant) -> Option<u32> {
        match cache.get(ask(name).key().bytes(), now) {
            Some(Hit::Fresh { answer, .. }) => answer.life,
            _ => None,
        }
    }

    fn later(now: Instant, seconds: u64) -> Instant {
        now + Duration::from_secs(seconds)
    }

    #[test]
    fn lives_shrink_and_end() {
        let (cache, now) = (Cache::new(Lives::at_most(30)), Instant::now());
        cache.put(&ask("Example.ORG."), reply(20), now);
        assert_eq!(left(&cache, "example.org.", later(now, 5)), Some(15));
        assert_eq!(left(&cache, "example.org.", later(now, 20)), None);
        assert_eq!(cache.put(&ask("long."), reply(9999), now).life, Some(30), "capped, the first time too");
        assert_eq!(left(&cache, "long.", later(now, 29)), Some(1));
        assert_eq!(left(&cache, "long.", later(now, 30)), None);
        cache.put(&ask("short."), reply(1), now);
        assert_eq!(left(&cache, "short.", now), Some(5), "nothing shorter than CoreDNS keeps");
    }

    #[test]
    fn negative_answers_live_as_their_authority_says_and_failures_shortly() {
        let lives = Lives::default();
        let none = Reply { code: code::NXDOMAIN, ..Reply::default() };
        assert_eq!(life(&none, &lives), None, "no authority, no life");
        assert_eq!(life(&denial(300, 7), &lives), Some(7));
        assert_eq!(life(&denial(99_999, 99_999), &lives), Some(1800), "capped");
        assert_eq!(life(&reply(99_999), &lives), Some(3600), "capped");
        assert_eq!(life(&Reply { code: code::SERVFAIL, ..Reply::default() }, &lives), Some(5));
        assert_eq!(life(&Reply { code: code::REFUSED, ..Reply::default() }, &lives), None);
    }

    #[test]
    fn zones_may_be_left_out() {
        let mut lives = Lives::default();
        lives.success.not_of = vec![Domain::parse("Example.org.").unwrap()];
        let (cache, now) = (Cache::new(lives), Instant::now());
        for (name, kept) in [("www.example.org.", false), ("example.com.", true)] {
            cache.put(&ask(name), reply(20), now);
            assert_eq!(left(&cache, name, now).is_some(), kept, "{name}");
        }
    }

    #[test]
    fn what_is_asked_often_is_fetched_before_it_ends_once() {
        let prefetch = Prefetch { amount: 2, within: Duration::from_secs(60), percentage: 10 };
        let lives = Lives { prefetch: Some(prefetch), ..Lives::default() };
        let (cache, now) = (Cache::new(lives), Instant::now());
        cache.put(&ask("a."), reply(100), now);
        let key = ask("a.").key();
        let refreshes =
            |at| matches!(cache.get(key.bytes(), later(now, at)), Some(Hit::Fresh { refresh: true, .. }));
        assert!(!refreshes(50) && !refreshes(60), "not yet");
        assert!(refreshes(95) && !refreshes(96), "once");
        cache.give_up(key.bytes());
        assert!(refreshes(97), "again after a failure");
    }

    #[test]
    fn stale_answers_are_given_as_long_as_asked_for() {
        let stale = |verify| Some(Stale { extra: Duration::from_secs(100), verify });
        let (cache, now) = (Cache::new(Lives { stale: stale(false), ..Lives::default() }), Instant::now());
        cache.put(&ask("a."), reply(10), now);
        let key = ask("a.").key();
        let hit = |at| cache.get(key.bytes(), later(now, at));
        assert!(
            matches!(hit(20), Some(Hit::Stale { verify: false, refresh: true, answer }) if answer.life == Some(0))
        );
        assert!(matches!(hit(21), Some(Hit::Stale { refresh: false, .. })));
        cache.put(&ask("a."), Arc::new(Reply { code: code::SERVFAIL, ..Reply::default() }), later(now, 22));
        assert!(matches!(hit(23), Some(Hit::Stale { .. })), "a failure does not replace it");
        assert!(hit(111).is_none());
    }

    #[test]
    fn the_cache_stays_bounded() {
        let (cache, now) = (Cache::new(Lives::default()), Instant::now());
        for i in 0..12_000 {
            cache.put(&ask(&format!("n{i}.example.")), reply(30), now);
            cache.put(&ask(&format!("d{i}.example.")), denial(30, 30), now);
        }
        let (success, denial) = cache.len();
        assert!(success <= 9984 && denial <= 9984, "{success} {denial}");
        let octets = |store: &Mutex<Store>| {
            let store = store.lock();
            (store.octets, store.entries.iter().map(|(key, e)| size(key, e)).sum::<usize>())
        };
        let (counted, summed) = octets(&cache.success);
        assert_eq!(counted, summed);
    }
}
