//! Answers of upstreams, kept for at most half a minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use parking_lot::Mutex;

/// Longest time an answer is kept, as kubeadm configures CoreDNS.
const LONGEST: u32 = 30;
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

/// A bounded cache.
#[derive(Debug, Default)]
pub struct Cache(Mutex<HashMap<Key, Entry>>);

impl Cache {
    /// An answer that is still good, with what is left of its records' lives.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Message> {
        let entries = self.0.lock();
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
        let Some(ttl) = life(message).filter(|ttl| *ttl > 0) else { return };
        let mut entries = self.0.lock();
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
fn life(message: &Message) -> Option<u32> {
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
    let ttl = match (message.metadata.response_code, positive) {
        (ResponseCode::NoError, Some(ttl)) => ttl,
        (ResponseCode::NoError | ResponseCode::NXDomain, _) => negative()?,
        _ => return None,
    };
    Some(ttl.min(LONGEST))
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
        let (cache, now) = (Cache::default(), Instant::now());
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
        assert_eq!(life(&negative), None, "no authority, no life");
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 7);
        negative.authorities = vec![Record::from_rdata(root, 300, RData::SOA(soa))];
        assert_eq!(life(&negative), Some(7));
        negative.metadata.response_code = ResponseCode::ServFail;
        assert_eq!(life(&negative), None);
        let mut cut = reply(Some(20));
        cut.metadata.truncation = true;
        assert_eq!(life(&cut), None);
    }

    #[test]
    fn the_cache_stays_bounded() {
        let (cache, now) = (Cache::default(), Instant::now());
        for i in 0..MOST + 500 {
            cache.put(key(&format!("n{i}.example.")), &reply(Some(30)), now);
        }
        assert!(cache.0.lock().len() <= MOST);
    }
}
