//! JSON text to a value, noting keys that an object has twice.
//!
//! Kubernetes takes the last of two equal keys and, with strict field validation, reports the others. Whether a key
//! counts as duplicate depends on the type (nothing is reported inside unknown fields or embedded raw objects), so the
//! parser only notes them; [`crate::validate`] reports. Nesting is bounded by serde_json (128 levels).

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt::Write as _;

/// Nobody reads more; upstream stops here, too.
const MAX_DUPLICATES: usize = 100;

/// A key that its object had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Path of the object, empty for the outermost.
    pub object: String,
    /// The key.
    pub key: String,
    /// How many different keys the object had when this one came again.
    pub position: usize,
}

impl Duplicate {
    /// `spec.replicas`.
    pub fn path(&self) -> String {
        if self.object.is_empty() { self.key.clone() } else { format!("{}.{}", self.object, self.key) }
    }
}

/// What [`parse`] gives.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The document; of equal keys the last one counts.
    pub value: Value,
    /// Keys that came again, in the order of the text.
    pub duplicates: Vec<Duplicate>,
}

/// Parses one JSON document.
pub fn parse(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let state = RefCell::new(State::default());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&state).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Parsed { value, duplicates: state.into_inner().duplicates })
}

#[derive(Default)]
struct State {
    path: String,
    duplicates: Vec<Duplicate>,
}

#[derive(Clone, Copy)]
struct Seed<'s>(&'s RefCell<State>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let outer = self.0.borrow().path.len();
        loop {
            // Writing to a String cannot fail.
            let _ = write!(self.0.borrow_mut().path, "[{}]", list.len());
            let item = items.next_element_seed(self)?;
            self.0.borrow_mut().path.truncate(outer);
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let outer = self.0.borrow().path.len();
        while let Some(key) = entries.next_key::<String>()? {
            {
                let mut state = self.0.borrow_mut();
                if object.contains_key(&key) && state.duplicates.len() < MAX_DUPLICATES {
                    let duplicate =
                        Duplicate { object: state.path.clone(), key: key.clone(), position: object.len() };
                    state.duplicates.push(duplicate);
                }
                if outer != 0 {
                    state.path.push('.');
                }
                state.path.push_str(&key);
            }
            let value = entries.next_value_seed(self)?;
            self.0.borrow_mut().path.truncate(outer);
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn duplicates_are_noted_and_the_last_counts() {
        let text = br#"{"a":1,"b":{"c":[{"d":1,"e":2,"d":3}],"c":4},"a":5,"a":6}"#;
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.value, serde_json::json!({"a": 6, "b": {"c": 4}}));
        let paths: Vec<String> = parsed.duplicates.iter().map(Duplicate::path).collect();
        assert_eq!(paths, ["b.c[0].d", "b.c", "a", "a"]);
        assert_eq!(parsed.duplicates[0].position, 2);
    }

    #[test]
    fn what_is_no_single_document_is_refused() {
        for text in [&b"{\"a\":1} {"[..], b"", b"{", b"{'a':1}", b"[1,]", b"\xff", b"{\"a\":1e999}"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err(), "bounded depth");
    }
}
