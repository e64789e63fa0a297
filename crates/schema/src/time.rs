//! `metav1.Time` and `metav1.MicroTime` as text: UTC, whole seconds or microseconds.

use jiff::Timestamp;

/// `2024-05-06T07:08:09Z`.
pub(crate) fn seconds(seconds: i64) -> Option<String> {
    let at = Timestamp::from_second(seconds).ok()?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `2024-05-06T07:08:09.000123Z`.
pub(crate) fn micros(seconds: i64, nanos: i32) -> Option<String> {
    let at = Timestamp::new(seconds, nanos).ok()?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

/// Seconds and nanoseconds of an RFC 3339 time.
pub(crate) fn parse(text: &str) -> Option<(i64, i32)> {
    let at: Timestamp = text.parse().ok()?;
    Some((at.as_second(), at.subsec_nanosecond()))
}
