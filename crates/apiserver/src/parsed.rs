//! Objects that rules read with every request (its Namespace, a Pod's ServiceAccount, the PriorityClasses), parsed once
//! for as long as nobody writes them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use storage::{KeyValue, Revision};

use crate::object;

/// How many are kept. What is read with every request is few; the rest comes and goes.
const MOST: usize = 256;
/// Larger ones are parsed each time: a cache of them would be worth more memory than time.
const LARGEST: usize = 16 << 10;

/// The parsed form of what was read last.
#[derive(Default)]
pub struct Parsed {
    kept: Mutex<HashMap<Arc<str>, Kept>>,
}

struct Kept {
    revision: Revision,
    value: Arc<Value>,
}

impl Parsed {
    /// The object with its version, which names the bytes: a write gives another one.
    ///
    /// # Errors
    /// Bytes that are no JSON.
    pub fn decode(&self, kv: &KeyValue) -> Result<Arc<Value>, serde_json::Error> {
        if kv.value.len() > LARGEST {
            return object::decode(&kv.value, kv.mod_revision).map(Arc::new);
        }
        if let Some(known) = self.kept.lock().get(&kv.key)
            && known.revision == kv.mod_revision
        {
            return Ok(known.value.clone());
        }
        let value = Arc::new(object::decode(&kv.value, kv.mod_revision)?);
        let mut kept = self.kept.lock();
        if kept.len() >= MOST {
            kept.clear();
        }
        kept.insert(kv.key.clone(), Kept { revision: kv.mod_revision, value: value.clone() });
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stored(key: &str, value: String, revision: u64) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), create_revision: 1, mod_revision: revision }
    }

    #[test]
    fn what_was_not_written_is_parsed_once() {
        let parsed = Parsed::default();
        let object = |label: &str| format!(r#"{{"metadata":{{"name":"a","labels":{{"l":"{label}"}}}}}}"#);
        let first = parsed.decode(&stored("/a", object("1"), 5)).unwrap();
        assert!(Arc::ptr_eq(&first, &parsed.decode(&stored("/a", object("1"), 5)).unwrap()));
        let second = parsed.decode(&stored("/a", object("2"), 6)).unwrap();
        assert_eq!(
            (&second["metadata"]["labels"]["l"], &second["metadata"]["resourceVersion"]),
            (&"2".into(), &"6".into())
        );
        assert!(parsed.decode(&stored("/b", "{".into(), 7)).is_err());
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let parsed = Parsed::default();
        for i in 0..2000 {
            parsed.decode(&stored(&format!("/{i}"), "{}".into(), 1)).unwrap();
        }
        parsed.decode(&stored("/large", format!("{{\"a\":\"{}\"}}", "x".repeat(LARGEST)), 1)).unwrap();
        let kept = parsed.kept.lock();
        assert!(kept.len() <= MOST && !kept.contains_key("/large"));
    }
}
