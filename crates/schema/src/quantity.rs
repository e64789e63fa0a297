//! `resource.Quantity`: numbers with a suffix (`500m`, `1Gi`, `2e3`), in their canonical form.
//!
//! The form that upstream writes: no fraction, the largest suffix of the family that was used (binary `Ki..Ei`, decimal
//! `n..E`, or an exponent that is a multiple of three) for which the mantissa is whole; less than nano is rounded up.

/// The sentence for what is no number at all.
pub const MALFORMED: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Why a text is no quantity; the texts are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number.
    #[error("{MALFORMED}")]
    Format,
    /// A number, but no suffix that exists.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Not in the range that this implementation holds (about 10^29).
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Decimal,
    Exponent,
    Binary,
}

/// The value in billionths, and the family of its suffix.
fn parse(text: &str) -> Result<(i128, Family), QuantityError> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let split = unsigned.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = whole.len() + fraction.len();
    if digits == 0 || fraction.contains('.') {
        return Err(QuantityError::Format);
    }
    let (mut exponent, mut shift, family) = suffix_of(suffix)?;
    let mut value: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let next = value.checked_mul(10).and_then(|value| value.checked_add(i128::from(digit - b'0')));
        value = next.ok_or(QuantityError::Numeric)?;
    }
    exponent += 9 - i32::try_from(fraction.len()).map_err(|_| QuantityError::Numeric)?;
    while shift > 0 {
        value = value.checked_mul(1024).ok_or(QuantityError::Numeric)?;
        shift -= 10;
    }
    while exponent > 0 && value != 0 {
        value = value.checked_mul(10).ok_or(QuantityError::Numeric)?;
        exponent -= 1;
    }
    let mut rounded = false;
    while exponent < 0 && value != 0 {
        rounded |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    value += i128::from(rounded);
    Ok((if text.starts_with('-') { -value } else { value }, family))
}

/// Power of ten, power of two, family.
fn suffix_of(suffix: &str) -> Result<(i32, u32, Family), QuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((*power, 0, Family::Decimal));
    }
    if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((0, *bits, Family::Binary));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let power: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    if power.abs() > 60 { Err(QuantityError::Numeric) } else { Ok((power, 0, Family::Exponent)) }
}

/// The canonical text of a quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    const BILLION: i128 = 1_000_000_000;
    let (value, family) = parse(text)?;
    if value == 0 {
        return Ok("0".to_owned());
    }
    if family == Family::Binary && value.abs() >= 1024 * BILLION && value % BILLION == 0 {
        let (mut number, mut suffix) = (value / BILLION, "");
        for (name, _) in BINARY {
            if number % 1024 != 0 {
                break;
            }
            (number, suffix) = (number / 1024, name);
        }
        return Ok(format!("{number}{suffix}"));
    }
    let (mut number, mut power) = (value, -9);
    while number % 1000 == 0 && power < 18 {
        (number, power) = (number / 1000, power + 3);
    }
    if family == Family::Exponent {
        return Ok(if power == 0 { number.to_string() } else { format!("{number}e{power}") });
    }
    let suffix = DECIMAL.iter().find(|(_, exponent)| *exponent == power).map_or("", |(name, _)| name);
    Ok(format!("{number}{suffix}"))
}

/// The value in billionths, rounded up: exact for all that the API allows.
///
/// # Errors
/// For what is no quantity.
pub fn nanos(text: &str) -> Result<i128, QuantityError> {
    Ok(parse(text)?.0)
}

/// The value in thousandths, rounded up: what limits and requests of CPU are counted in.
pub fn milli(text: &str) -> Result<i128, QuantityError> {
    const MILLION: i128 = 1_000_000;
    let (value, _) = parse(text)?;
    Ok(value.div_euclid(MILLION) + i128::from(value.rem_euclid(MILLION) != 0))
}

/// The value in whole units, rounded up.
pub fn units(text: &str) -> Result<i128, QuantityError> {
    const BILLION: i128 = 1_000_000_000;
    let (value, _) = parse(text)?;
    Ok(value.div_euclid(BILLION) + i128::from(value.rem_euclid(BILLION) != 0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms_are_those_of_upstream() {
        for (given, expected) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1", "1"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1500", "1500"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("100Ki", "100Ki"),
            ("-5", "-5"),
            ("+5", "5"),
            (".5", "500m"),
            ("1.", "1"),
            ("0.0000000001", "1n"),
            ("0Ki", "0"),
            ("5E", "5E"),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in ["", "abc", ".", "1..2", "--1", "true", "{}", " "] {
            assert_eq!(canonical(text), Err(QuantityError::Format), "{text:?}");
        }
        for text in ["1gb", "1 ", "1Kii", "1e", "1ki", "1x", "1mi", "1.5e2.5"] {
            assert_eq!(canonical(text), Err(QuantityError::Suffix), "{text:?}");
        }
        assert_eq!(canonical(&"9".repeat(60)), Err(QuantityError::Numeric));
    }

    #[test]
    fn counted() {
        assert_eq!((milli("1.5").unwrap(), milli("100u").unwrap(), milli("2").unwrap()), (1500, 1, 2000));
        assert_eq!((milli("1E-2").unwrap(), milli("2E").unwrap()), (10, 2_000_000_000_000_000_000_000));
        assert_eq!((nanos("1.5Ki").unwrap(), nanos("0.0000000001").unwrap()), (1_536_000_000_000, 1));
        assert_eq!(
            (units("1Gi").unwrap(), units("100m").unwrap(), units("-1500m").unwrap()),
            (1 << 30, 1, -1)
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-+]?[0-9.]{0,40}([eEinumkKMGTP]{0,2}[-+]?[0-9]{0,4})|.*") {
            let _ = (canonical(&text), milli(&text), units(&text));
        }

        #[test]
        fn canonical_is_a_fixed_point_of_the_same_value(mantissa in 0u64..1_000_000_000, fraction in 0u32..1000, suffix in 0usize..17) {
            let names: Vec<&str> = DECIMAL.iter().map(|(name, _)| *name).chain(BINARY.iter().map(|(name, _)| *name)).chain(["e3"]).collect();
            let text = format!("{mantissa}.{fraction:03}{}", names[suffix]);
            if let Ok(form) = canonical(&text) {
                prop_assert_eq!(parse(&form).unwrap().0, parse(&text).unwrap().0);
                prop_assert_eq!(canonical(&form).unwrap(), form);
            }
        }
    }
}
