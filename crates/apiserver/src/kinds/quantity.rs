//! Resource quantities of JSON objects: compared and added up. [`schema::quantity`] reads them.

use std::cmp::Ordering;
use std::fmt;

pub use schema::quantity::MALFORMED;
use serde_json::Value;

/// A parsed quantity, in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

impl Quantity {
    /// None.
    pub const ZERO: Self = Self(0);
    /// One.
    pub const ONE: Self = Self(1_000_000_000);

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

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// This many times.
    #[must_use]
    pub fn times(self, n: usize) -> Self {
        Self(self.0.saturating_mul(i128::try_from(n).unwrap_or(i128::MAX)))
    }

    /// Without the other one, not below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// How many times the other one this is.
    pub fn ratio(self, of: Self) -> f64 {
        self.0 as f64 / of.0 as f64
    }

    /// Without a fraction.
    pub fn is_whole(self) -> bool {
        self.0 % 1_000_000_000 == 0
    }
}

impl Quantity {
    /// As people write it, in powers of two (`1Gi`) or of ten (`500m`).
    pub fn text(self, binary: bool) -> String {
        let whole = self.0 / Self::ONE.0;
        let text = match self.0 % (1024 * Self::ONE.0) {
            0 if binary && self.0 != 0 => format!("{}Ki", whole / 1024),
            _ => format!("{}n", self.0),
        };
        schema::quantity::canonical(&text).unwrap_or(text)
    }
}

/// In powers of two where it is a whole number of kibibytes, else in powers of ten.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(true))
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
