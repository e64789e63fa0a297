//! Kubernetes quantities (`100m`, `1Gi`, `1e3`) as exact integers of thousandths.
//!
//! The grammar is that of `apimachinery/pkg/api/resource`: a decimal number and a binary suffix (Ki..Ei), a decimal
//! suffix (n, u, m, k..E) or an exponent. Fractions below a thousandth are rounded up, as upstream does.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` when the text is no quantity or too large.
pub fn millis(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    // value = digits * multiplier / 10^(fraction digits) * 1000
    let (multiplier, mut divisor) = scale(suffix)?;
    divisor = divisor.checked_mul(10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.checked_mul(multiplier)?.checked_mul(1000)?;
    let rounded = scaled.checked_add(divisor - 1)? / divisor;
    Some(if negative { -(scaled / divisor) } else { rounded })
}

/// The value in whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<i64> {
    i64::try_from(millis(quantity)?.checked_add(999)?.div_euclid(1000)).ok()
}

fn scale(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("0", Some(0)),
            ("100m", Some(100)),
            ("1.5", Some(1500)),
            (".5", Some(500)),
            ("1Gi", Some((1i128 << 30) * 1000)),
            ("1.5Ki", Some(1_536_000)),
            ("1e3", Some(1_000_000)),
            ("1E-2", Some(10)),
            ("2E", Some(2_000_000_000_000_000_000_000)),
            ("1n", Some(1)),
            ("-5", Some(-5000)),
            ("", None),
            ("1.2.3", None),
            ("1Zi", None),
            ("Gi", None),
            ("99999999999999999999999999999Ei", None),
        ] {
            assert_eq!(millis(&Quantity(text.into())), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = units(&Quantity(text));
        }

        #[test]
        fn whole_numbers_are_themselves(n in -1_000_000_000i64..1_000_000_000) {
            proptest::prop_assert_eq!(units(&Quantity(n.to_string())), Some(n));
        }
    }
}
