//! Resource quantities of JSON objects: compared, never computed with further. [`schema::quantity`] reads them.

use std::cmp::Ordering;

pub use schema::quantity::MALFORMED;
use serde_json::Value;

/// A parsed quantity, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

impl Quantity {
    /// Reads a JSON value: text, or a bare number as YAML writers leave it.
    pub fn of(value: &Value) -> Option<Self> {
        let nanos = match value {
            Value::String(text) => schema::quantity::nanos(text),
            Value::Number(number) => schema::quantity::nanos(&number.to_string()),
            _ => return None,
        };
        nanos.ok().map(Self)
    }

    /// Zero.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Without a fraction.
    pub fn is_whole(self) -> bool {
        self.0 % 1_000_000_000 == 0
    }
}

/// Compares two JSON quantities; `None` when one is malformed.
pub fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    Some(Quantity::of(a)?.cmp(&Quantity::of(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_and_bare_numbers() {
        assert_eq!(compare(&json!("1Gi"), &json!("1G")), Some(Ordering::Greater));
        assert_eq!(compare(&json!(1.5), &json!("1500m")), Some(Ordering::Equal));
        assert_eq!(compare(&json!(-1), &json!("0")), Some(Ordering::Less));
        for bad in [json!(""), json!("1 Gi"), json!("1e99"), json!(true), json!(null)] {
            assert_eq!(Quantity::of(&bad), None, "{bad}");
        }
        let traits = |value| Quantity::of(&value).map(|q| (q.is_zero(), q.is_negative(), q.is_whole()));
        assert_eq!(traits(json!("0")), Some((true, false, true)));
        assert_eq!(traits(json!("-500m")), Some((false, true, false)));
    }
}
