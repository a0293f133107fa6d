//! Instants, periods and the injected clock.
//!
//! There are two clocks (DESIGN section 2, rule 10): the *policy* clock is a [`Clock`] and drives deadlines, sweeps and case dates;
//! the broker's clock stamps appends. No decision reads the system clock by itself.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Months, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::IdError;

/// An instant in UTC, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Reads ISO 8601 with an offset or `Z`, as SP-API sends it (seconds or milliseconds).
    ///
    /// # Errors
    /// [`IdError`] without the text.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if let Some(at) = seconds_utc(text.as_bytes()) {
            return Ok(at);
        }
        DateTime::parse_from_rfc3339(text)
            .map(|t| Self(t.timestamp_millis()))
            .map_err(|_| IdError { what: "time", rule: "ISO 8601 with an offset, e.g. 2026-11-21T12:00:00Z" })
    }

    /// The instant as chrono's type; the epoch where it lies outside chrono's range.
    #[must_use]
    pub fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0).unwrap_or_default()
    }

    /// ISO 8601 in UTC with milliseconds, e.g. `2026-11-21T12:00:00.000Z`.
    #[must_use]
    pub fn to_iso(self) -> String {
        self.to_utc().to_rfc3339_opts(SecondsFormat::Millis, true)
    }

    /// This instant moved later by `period`; calendar months are calendar months.
    #[must_use]
    pub fn plus(self, period: Period) -> Self {
        match period {
            Period::Millis(ms) => Self(self.0.saturating_add(ms)),
            Period::Months(n) => self.to_utc().checked_add_months(Months::new(n)).map_or(Self(i64::MAX), |t| Self(t.timestamp_millis())),
        }
    }

    /// This instant moved earlier by `period`.
    #[must_use]
    pub fn minus(self, period: Period) -> Self {
        match period {
            Period::Millis(ms) => Self(self.0.saturating_sub(ms)),
            Period::Months(n) => self.to_utc().checked_sub_months(Months::new(n)).map_or(Self(i64::MIN), |t| Self(t.timestamp_millis())),
        }
    }
}

/// The form nearly every time of SP-API has, `2026-11-21T12:00:00Z`, without the general parser; `None` for any
/// other, also for what is no time.
fn seconds_utc(text: &[u8]) -> Option<Timestamp> {
    let text: &[u8; 20] = text.try_into().ok()?;
    let [y0, y1, y2, y3, b'-', o0, o1, b'-', d0, d1, b'T', h0, h1, b':', m0, m1, b':', s0, s1, b'Z'] = *text else { return None };
    let two =
        |tens: u8, ones: u8| (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'));
    let (year, month, day) = (two(y0, y1)? * 100 + two(y2, y3)?, two(o0, o1)?, two(d0, d1)?);
    let (hour, minute, second) = (two(h0, h1)?, two(m0, m1)?, two(s0, s1)?);
    // Days 29 to 31, leap seconds and years before the epoch are rare or need more rules: the general parser knows them.
    if year < 1970 || !(1..=12).contains(&month) || !(1..=28).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days from 1970-01-01 in the proleptic Gregorian calendar, years counted from March (Hinnant, `days_from_civil`).
    let from_march = year - i64::from(month <= 2);
    let (era, of_era) = (from_march / 400, from_march % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(Timestamp(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000))
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_iso())
    }
}

/// A length of time as the config writes it: `500ms`, `90s`, `30m`, `6h`, `30d`, `18 months`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Fixed length in milliseconds, never negative.
    Millis(i64),
    /// Calendar months.
    Months(u32),
}

impl Period {
    /// `n` days of 24 hours.
    #[must_use]
    pub const fn days(n: i64) -> Self {
        Self::Millis(n * 86_400_000)
    }

    /// `n` hours.
    #[must_use]
    pub const fn hours(n: i64) -> Self {
        Self::Millis(n * 3_600_000)
    }

    /// The fixed length in milliseconds; a month counts 31 days, so the result is never shorter than the period.
    #[must_use]
    pub const fn millis_max(self) -> i64 {
        match self {
            Self::Millis(ms) => ms,
            Self::Months(n) => n as i64 * 31 * 86_400_000,
        }
    }

    /// As a [`std::time::Duration`], months of 31 days.
    #[must_use]
    pub const fn to_std(self) -> Duration {
        Duration::from_millis(self.millis_max().unsigned_abs())
    }
}

impl FromStr for Period {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = IdError { what: "period", rule: "a number with ms, s, m, h, d or months, e.g. \"30d\" or \"18 months\"" };
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(|| error.clone())?;
        let (digits, unit) = text.split_at(split);
        let n: i64 = digits.parse().map_err(|_| error.clone())?;
        let unit_ms = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "month" | "months" => return u32::try_from(n).map(Self::Months).map_err(|_| error),
            _ => return Err(error),
        };
        n.checked_mul(unit_ms).map(Self::Millis).ok_or(error)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Months(n) => write!(f, "{n} months"),
            Self::Millis(ms) => {
                for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
                    if ms != 0 && ms % unit == 0 {
                        return write!(f, "{}{name}", ms / unit);
                    }
                }
                write!(f, "{ms}ms")
            }
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The policy clock.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present instant by this clock.
    fn now(&self) -> Timestamp;

    /// Time since an instant of this clock's own, which no correction of the clock moves: for waits.
    fn elapsed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// The system clock moved by a fixed offset (`clock.offset`, test only; zero in production).
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock {
    /// Added to the system's time, in milliseconds.
    pub offset_ms: i64,
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
    fn now(&self) -> Timestamp {
        Timestamp(Utc::now().timestamp_millis().saturating_add(self.offset_ms))
    }
}

/// A clock that stands still until it is moved: for tests, simulations and the demo.
#[derive(Debug)]
pub struct ManualClock {
    shown_ms: AtomicI64,
    elapsed_ms: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub const fn at(start: Timestamp) -> Self {
        Self { shown_ms: AtomicI64::new(start.0), elapsed_ms: AtomicU64::new(0) }
    }

    /// Lets `period` pass.
    pub fn advance(&self, period: Period) {
        let (before, after) = (self.now(), self.now().plus(period));
        self.shown_ms.store(after.0, Ordering::SeqCst);
        self.elapsed_ms.fetch_add(after.0.saturating_sub(before.0).unsigned_abs(), Ordering::SeqCst);
    }

    /// Sets the clock to `to`, as a correction does: no time passes.
    pub fn set(&self, to: Timestamp) {
        self.shown_ms.store(to.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.shown_ms.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }
}

/// The system clock moved by an offset that can grow: time passes by itself, and by leaps where a demonstration wants it.
#[derive(Debug, Default)]
pub struct LeapingClock(AtomicI64);

impl LeapingClock {
    /// Leaps ahead by `period`.
    pub fn advance(&self, period: Period) {
        self.0.fetch_add(period.millis_max(), Ordering::SeqCst);
    }
}

impl Clock for LeapingClock {
    fn now(&self) -> Timestamp {
        SystemClock { offset_ms: self.0.load(Ordering::SeqCst) }.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_short_way_reads_as_the_general_parser(seconds in 0i64..253_402_300_800) {
            let at = Timestamp(seconds * 1_000);
            let text = at.to_utc().to_rfc3339_opts(SecondsFormat::Secs, true);
            proptest::prop_assert_eq!(Timestamp::parse(&text).unwrap(), at);
            proptest::prop_assert!(seconds_utc(text.as_bytes()).is_none_or(|short| short == at));
        }

        #[test]
        fn what_is_no_time_is_none_by_the_short_way_either(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z") {
            let general = DateTime::parse_from_rfc3339(&text).ok().map(|t| Timestamp(t.timestamp_millis()));
            proptest::prop_assert_eq!(Timestamp::parse(&text).ok(), general);
        }
    }

    #[test]
    fn periods_read_and_print() {
        for text in ["30d", "90s", "6h", "1500ms", "18 months"] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
        assert!("thirty days".parse::<Period>().is_err());
        assert!("30".parse::<Period>().is_err());
        assert!("-5d".parse::<Period>().is_err());
    }

    #[test]
    fn months_are_calendar_months() {
        let t = Timestamp::parse("2026-08-31T00:00:00Z").unwrap();
        assert_eq!(t.plus(Period::Months(18)).to_iso(), "2028-02-29T00:00:00.000Z");
    }
}
