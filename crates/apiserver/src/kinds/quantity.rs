//! Resource quantities: `500m`, `1Gi`, `2e3`.
//!
//! Kept as a count of 10⁻⁹ units, which holds every quantity the API allows (at most 9 digits after the point) up to
//! about 1.7·10²⁹; compared, never computed with further.

use std::cmp::Ordering;

use serde_json::Value;

/// A parsed quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

/// The sentence for what is no quantity.
pub const MALFORMED: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

impl Quantity {
    /// Reads text such as `1.5Gi`.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let digits: i128 = format!("0{whole}{fraction}").parse().ok()?;
        let (base, exponent): (i128, i32) = scale(suffix)?;
        let power = exponent + 9 - i32::try_from(fraction.len()).ok()?;
        let scaled = digits.checked_mul(base)?;
        let nanos = if power >= 0 {
            scaled.checked_mul(10i128.checked_pow(u32::try_from(power).ok()?)?)?
        } else {
            // Finer than a nano: rounded up, as upstream does.
            let divisor = 10i128.checked_pow(u32::try_from(-power).ok()?)?;
            scaled.checked_add(divisor - 1)? / divisor
        };
        Some(Quantity(if negative { -nanos } else { nanos }))
    }

    /// Reads a JSON value: text, or a bare number as YAML writers leave it.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(s) => Self::parse(s),
            Value::Number(n) => Self::parse(&n.to_string()),
            _ => None,
        }
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

fn scale(suffix: &str) -> Option<(i128, i32)> {
    let decimal = |e| Some((1, e));
    let binary = |n: u32| Some((1i128 << (10 * n), 0));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            Some((1, exponent.parse().ok().filter(|e: &i32| e.abs() <= 24)?))
        }
    }
}

/// Compares two JSON quantities; `None` when one is malformed.
pub fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    Some(Quantity::of(a)?.cmp(&Quantity::of(b)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn forms() {
        let table = [
            ("1", 1_000_000_000i128),
            ("0", 0),
            ("500m", 500_000_000),
            ("1.5", 1_500_000_000),
            (".5", 500_000_000),
            ("1Ki", 1024 * 1_000_000_000),
            ("1.5Ki", 1536 * 1_000_000_000),
            ("2e3", 2000 * 1_000_000_000),
            ("-1", -1_000_000_000),
            ("1n", 1),
            ("0.0000000001", 1),
        ];
        for (text, nanos) in table {
            assert_eq!(Quantity::parse(text), Some(Quantity(nanos)), "{text}");
        }
        for bad in ["", "x", "1x", "1.2.3", "-", "1 Gi", "1e", "Gi", "1e99"] {
            assert_eq!(Quantity::parse(bad), None, "{bad}");
        }
        assert!(Quantity::parse("1Gi") > Quantity::parse("1G"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = Quantity::parse(&text);
        }
    }
}
