//! The cron format: minute, hour, day of month, month, day of week, in the calendar of a time zone.
//!
//! Lists, ranges, steps, names of months and days, and the `@daily` family, as crontab(5) and upstream have them. When
//! both day fields are restricted, either may match.

use std::str::FromStr;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParseError {
    #[error("expected exactly 5 fields, found {found}: {text:?}")]
    Fields { found: usize, text: String },
    #[error("cannot read {part:?} as a value from {min} to {max}")]
    Value { part: String, min: u8, max: u8 },
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

/// A parsed schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Bits per field.
    Calendar { minutes: u64, hours: u64, days: u64, months: u64, weekdays: u64, any_day: bool },
    /// `@every 90m`: so many seconds after the last time.
    Every(i64),
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl FromStr for Schedule {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            let wrong = || ParseError::Descriptor(text.to_owned());
            let duration: SignedDuration = every.trim().parse().map_err(|_| wrong())?;
            return if duration.as_secs() >= 1 { Ok(Self::Every(duration.as_secs())) } else { Err(wrong()) };
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => return Err(ParseError::Descriptor(other.to_owned())),
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(ParseError::Fields { found: fields.len(), text: text.to_owned() });
        };
        let any = |field: &str| field.starts_with('*') || field.starts_with('?');
        Ok(Self::Calendar {
            minutes: bits(minute, 0, 59, &[])?,
            hours: bits(hour, 0, 23, &[])?,
            days: bits(day, 1, 31, &[])?,
            months: bits(month, 1, 12, &MONTHS)?,
            weekdays: bits(weekday, 0, 6, &WEEKDAYS)?,
            any_day: any(day) || any(weekday),
        })
    }
}

fn bits(field: &str, min: u8, max: u8, names: &[&str]) -> Result<u64, ParseError> {
    let mut set = 0;
    for part in field.split(',') {
        let wrong = || ParseError::Value { part: part.to_owned(), min, max };
        let value = |text: &str| -> Result<u8, ParseError> {
            let named = names.iter().position(|n| n.eq_ignore_ascii_case(text));
            let named = named.and_then(|n| u8::try_from(n).ok()).map(|n| n + min);
            let number = named.or_else(|| text.parse().ok()).filter(|n| (min..=max).contains(n));
            number.ok_or_else(wrong)
        };
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse().ok().filter(|s: &u8| *s > 0).ok_or_else(wrong)?),
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (min, max),
            Some((from, to)) => (value(from)?, value(to)?),
            // `5/15` means from 5 to the end.
            None if part.contains('/') => (value(range)?, max),
            None => (value(range)?, value(range)?),
        };
        if from > to {
            return Err(wrong());
        }
        (from..=to).step_by(step.into()).for_each(|n| set |= 1 << n);
    }
    Ok(set)
}

fn has(set: u64, n: i8) -> bool {
    u8::try_from(n).is_ok_and(|n| set & (1 << n) != 0)
}

impl Schedule {
    /// The first time after `after`; `None` if there is none in the next five years (30 February).
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(seconds) => after.checked_add(SignedDuration::from_secs(*seconds)).ok(),
            Self::Calendar { .. } => self.next_in_calendar(after, zone),
        }
    }

    fn next_in_calendar(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = zone.to_datetime(after);
        let mut at = start.with().second(0).subsec_nanosecond(0).build().ok()?;
        let end = start.checked_add(Span::new().years(5)).ok()?;
        while at <= end {
            at = self.step(at)?;
            if !self.matches(at) {
                continue;
            }
            // A local time that a clock change leaves out does not exist and is passed over.
            let instant = zone.to_ambiguous_timestamp(at).compatible().ok()?;
            if instant > after && zone.to_datetime(instant) == at {
                return Some(instant);
            }
        }
        None
    }

    /// The next minute that may match: over months, days and hours that cannot, in one stride.
    fn step(&self, at: DateTime) -> Option<DateTime> {
        let next = at.checked_add(Span::new().minutes(1)).ok()?;
        let Self::Calendar { hours, months, .. } = self else { return Some(next) };
        if !has(*months, next.month()) {
            let first = next.date().first_of_month().to_datetime(Time::midnight());
            return before(first.checked_add(Span::new().months(1)).ok()?);
        }
        if !self.day_matches(next) {
            return before(next.date().tomorrow().ok()?.to_datetime(Time::midnight()));
        }
        if !has(*hours, next.hour()) {
            let hour = next.with().minute(0).build().ok()?;
            return before(hour.checked_add(Span::new().hours(1)).ok()?);
        }
        Some(next)
    }

    fn day_matches(&self, at: DateTime) -> bool {
        let Self::Calendar { days, weekdays, any_day, .. } = self else { return false };
        let day = has(*days, at.day());
        let weekday = has(*weekdays, at.weekday().to_sunday_zero_offset());
        if *any_day { day && weekday } else { day || weekday }
    }

    fn matches(&self, at: DateTime) -> bool {
        let Self::Calendar { minutes, hours, months, .. } = self else { return false };
        has(*minutes, at.minute())
            && has(*hours, at.hour())
            && has(*months, at.month())
            && self.day_matches(at)
    }
}

/// The minute before, because the next step adds one.
fn before(at: DateTime) -> Option<DateTime> {
    at.checked_sub(Span::new().minutes(1)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn next(schedule: &str, after: &str, zone: &TimeZone) -> Option<String> {
        let schedule: Schedule = schedule.parse().unwrap();
        schedule.next(after.parse().unwrap(), zone).map(|t| t.to_string())
    }

    #[test]
    fn times_in_utc() {
        let utc = |s: &str, after: &str| next(s, after, &TimeZone::UTC).unwrap_or_else(|| "never".into());
        let after = "2024-02-28T23:59:30Z";
        assert_eq!(utc("* * * * *", after), "2024-02-29T00:00:00Z");
        assert_eq!(utc("*/15 9-17 * * mon-fri", after), "2024-02-29T09:00:00Z");
        assert_eq!(utc("5/20 * * * *", after), "2024-02-29T00:05:00Z");
        assert_eq!(utc("0 0 29 2 *", "2024-03-01T00:00:00Z"), "2028-02-29T00:00:00Z");
        assert_eq!(utc("0 0 30 2 *", after), "never");
        // Both day fields: either.
        assert_eq!(utc("0 0 13 * fri", "2024-03-01T00:00:00Z"), "2024-03-08T00:00:00Z");
        assert_eq!(utc("0 12 1,15 jan,JUL *", after), "2024-07-01T12:00:00Z");
        assert_eq!(utc("@weekly", after), "2024-03-03T00:00:00Z");
        assert_eq!(utc("@every 90m", after), "2024-02-29T01:29:30Z");
        assert_eq!(utc("30 10 * * *", "2024-02-29T10:30:00Z"), "2024-03-01T10:30:00Z");
    }

    #[test]
    fn clock_changes() {
        // Central European time: forward on 2024-03-31 at 02:00, back on 2024-10-27 at 03:00.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(next("30 2 * * *", "2024-03-30T12:00:00Z", &zone).unwrap(), "2024-04-01T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2024-10-26T12:00:00Z", &zone).unwrap(), "2024-10-27T00:30:00Z");
        assert_eq!(next("0 12 * * *", "2024-07-01T00:00:00Z", &zone).unwrap(), "2024-07-01T10:00:00Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "@never",
            "* * * * 7",
            "@every x",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text:?}");
        }
    }
}
