//! Answers of upstreams, kept for as long as they and the Corefile allow.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use parking_lot::Mutex;

/// Most answers kept.
const MOST: usize = 10_000;

/// What makes two questions the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name, without regard to case.
    pub name: Name,
    /// Type.
    pub kind: RecordType,
    /// Class.
    pub class: DNSClass,
    /// The client wants signatures.
    pub dnssec: bool,
    /// The client checks signatures itself.
    pub checking_disabled: bool,
}

#[derive(Debug)]
struct Entry {
    message: Message,
    since: Instant,
    until: Instant,
}

/// The longest that answers are kept, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lives {
    /// Records; 0 keeps none.
    pub success: u32,
    /// That there are none.
    pub denial: u32,
    /// Zones whose records are not kept.
    pub no_success: Vec<Name>,
    /// Zones of which it is not kept that there are none.
    pub no_denial: Vec<Name>,
}

impl Lives {
    /// The same for everything.
    pub fn all(seconds: u32) -> Self {
        Self { success: seconds, denial: seconds, no_success: Vec::new(), no_denial: Vec::new() }
    }
}

/// A bounded cache.
#[derive(Debug)]
pub struct Cache {
    lives: Lives,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Cache {
    /// An empty cache.
    pub fn new(lives: Lives) -> Self {
        Self { lives, entries: Mutex::default() }
    }

    /// An answer that is still good, with what is left of its records' lives.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let entries = self.entries.lock();
        let entry = entries.get(key).filter(|e| e.until > now)?;
        let age = now.saturating_duration_since(entry.since).as_secs() as u32;
        let mut message = entry.message.clone();
        for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
            section.iter_mut().for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        }
        Some(message)
    }

    /// Keeps an answer as long as its records, or its negative life, allow.
    pub fn put(&self, key: Key, message: &Message, now: Instant) {
        let zones = if message.answers.is_empty() { &self.lives.no_denial } else { &self.lives.no_success };
        if zones.iter().any(|zone| zone.zone_of(&key.name)) {
            return;
        }
        let Some(ttl) = life(message, &self.lives).filter(|ttl| *ttl > 0) else { return };
        let mut entries = self.entries.lock();
        if entries.len() >= MOST && !entries.contains_key(&key) {
            entries.retain(|_, entry| entry.until > now);
            if entries.len() >= MOST {
                // Full of fresh answers: make room at random, which is what hashing gives.
                let victims: Vec<Key> = entries.keys().take(MOST / 10).cloned().collect();
                victims.iter().for_each(|victim| {
                    entries.remove(victim);
                });
            }
        }
        let until = now + Duration::from_secs(u64::from(ttl));
        entries.insert(key, Entry { message: message.clone(), since: now, until });
    }
}

/// Seconds for which an answer may be kept; `None` for answers that say nothing lasting (RFC 2308).
fn life(message: &Message, lives: &Lives) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let positive = message.answers.iter().map(|r| r.ttl).min();
    let negative = || {
        message.authorities.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
            _ => None,
        })
    };
    match (message.metadata.response_code, positive) {
        (ResponseCode::NoError, Some(ttl)) => Some(ttl.min(lives.success)),
        (ResponseCode::NoError | ResponseCode::NXDomain, _) => Some(negative()?.min(lives.denial)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn key(name: &str) -> Key {
        Key {
            name: Name::from_ascii(name).unwrap(),
            kind: RecordType::A,
            class: DNSClass::IN,
            dnssec: false,
            checking_disabled: false,
        }
    }

    fn reply(ttl: Option<u32>) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let name = Name::from_ascii("example.org.").unwrap();
        if let Some(ttl) = ttl {
            message.answers = vec![Record::from_rdata(name, ttl, RData::A(A::new(1, 2, 3, 4)))];
        }
        message
    }

    #[test]
    fn lives_shrink_and_end() {
        let (cache, now) = (Cache::new(Lives::all(30)), Instant::now());
        cache.put(key("Example.ORG."), &reply(Some(20)), now);
        let later = |s| now + Duration::from_secs(s);
        assert_eq!(cache.get(&key("example.org."), later(5)).unwrap().answers[0].ttl, 15);
        assert!(cache.get(&key("example.org."), later(20)).is_none());
        cache.put(key("long."), &reply(Some(9999)), now);
        assert!(cache.get(&key("long."), later(29)).is_some());
        assert!(cache.get(&key("long."), later(30)).is_none(), "capped");
    }

    #[test]
    fn negative_answers_live_as_their_authority_says_and_errors_do_not() {
        let mut negative = reply(None);
        negative.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(life(&negative, &Lives::all(30)), None, "no authority, no life");
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 7);
        negative.authorities = vec![Record::from_rdata(root, 300, RData::SOA(soa))];
        assert_eq!(life(&negative, &Lives::all(30)), Some(7));
        assert_eq!(life(&negative, &Lives::all(5)), Some(5), "capped");
        assert_eq!(life(&reply(Some(9)), &Lives::all(0)), Some(0), "kept by nobody");
        negative.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(life(&negative, &Lives::all(30)), None);
        let mut cut = reply(Some(20));
        cut.metadata.truncation = true;
        assert_eq!(life(&cut, &Lives::all(30)), None);
    }

    #[test]
    fn zones_may_be_left_out() {
        let lives = Lives { no_success: vec![Name::from_ascii("Example.org.").unwrap()], ..Lives::all(30) };
        let (cache, now) = (Cache::new(lives), Instant::now());
        for (name, kept) in [("www.example.org.", false), ("example.com.", true)] {
            cache.put(key(name), &reply(Some(20)), now);
            assert_eq!(cache.get(&key(name), now).is_some(), kept, "{name}");
        }
    }

    #[test]
    fn the_cache_stays_bounded() {
        let (cache, now) = (Cache::new(Lives::all(30)), Instant::now());
        for i in 0..MOST + 500 {
            cache.put(key(&format!("n{i}.example.")), &reply(Some(30)), now);
        }
        assert!(cache.entries.lock().len() <= MOST);
    }
}
