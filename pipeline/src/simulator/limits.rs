//! Published usage plans as token buckets, one per seller and operation.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

/// The operations served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Operation {
    SearchOrders,
    GetOrder,
    GetInventorySummaries,
}

impl Operation {
    /// The model's name.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::SearchOrders => "searchOrders",
            Self::GetOrder => "getOrder",
            Self::GetInventorySummaries => "getInventorySummaries",
        }
    }

    /// Published rate in millionths of a request per second, and burst (`orders_2026-01-01.json`, `fbaInventory.json`).
    const fn plan(self) -> (u64, u64) {
        match self {
            Self::SearchOrders => (5_600, 20),
            Self::GetOrder => (500_000, 30),
            Self::GetInventorySummaries => (2_000_000, 2),
        }
    }
}

/// Multiplies the published rates, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateScale(u64);

impl RateScale {
    /// The published rates.
    pub const PUBLISHED: Self = Self(1000);

    /// `factor` times the published rates.
    #[must_use]
    pub const fn times(factor: u32) -> Self {
        Self(factor as u64 * 1000)
    }
}

impl FromStr for RateScale {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "a number from 0.001 to 1000000, e.g. 100";
        let scale = text.parse::<Decimal>().map_err(|_| RULE)?;
        let thousandths = (scale * Decimal::from(1000)).to_u64().ok_or(RULE)?;
        if (1..=1_000_000_000).contains(&thousandths) { Ok(Self(thousandths)) } else { Err(RULE) }
    }
}

impl std::fmt::Display for RateScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", (Decimal::from(self.0) / Decimal::from(1000)).normalize())
    }
}

/// Millionths of a request per second times microseconds: a request is 10^12 of these.
const REQUEST: u128 = 1_000_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: u128,
    filled: Duration,
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Limits {
    scale: RateScale,
    buckets: HashMap<(u32, Operation), Bucket>,
}

impl Limits {
    pub(super) fn new(scale: RateScale) -> Self {
        Self { scale, buckets: HashMap::new() }
    }

    /// Rate of an operation in millionths of a request per second.
    fn rate(&self, operation: Operation) -> u64 {
        operation.plan().0 * self.scale.0 / 1000
    }

    /// The rate as the header `x-amzn-RateLimit-Limit` says it: requests per second as decimal text.
    pub(super) fn header(&self, operation: Operation) -> String {
        (Decimal::from(self.rate(operation)) / Decimal::from(1_000_000)).normalize().to_string()
    }

    /// Takes one request of `seller` at `now` (time since start, by a clock that never goes back); false where there is none left.
    pub(super) fn take(&mut self, seller: u32, operation: Operation, now: Duration) -> bool {
        let rate = u128::from(self.rate(operation));
        // A scale above one raises the burst as well: a raised plan has both.
        let room = u128::from(operation.plan().1) * REQUEST * u128::from(self.scale.0.max(1000)) / 1000;
        let bucket = self.buckets.entry((seller, operation)).or_insert(Bucket { level: room, filled: now });
        let gained = now.saturating_sub(bucket.filled).as_micros() * rate;
        bucket.level = room.min(bucket.level + gained);
        bucket.filled = now;
        let Some(rest) = bucket.level.checked_sub(REQUEST) else { return false };
        bucket.level = rest;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut limits = Limits::new(RateScale::PUBLISHED);
        let at = Duration::from_secs;
        assert_eq!((0..30).filter(|_| limits.take(1, Operation::SearchOrders, at(0))).count(), 20);
        assert!(limits.take(2, Operation::SearchOrders, at(0)), "another seller has its own bucket");
        assert!(limits.take(1, Operation::GetOrder, at(0)), "another operation too");
        assert!(!limits.take(1, Operation::SearchOrders, at(178)));
        assert!(limits.take(1, Operation::SearchOrders, at(179)), "one request in 1 / 0.0056 s");
        assert!(!limits.take(1, Operation::SearchOrders, at(179)));
    }

    #[test]
    fn the_scale_shows_in_the_header() {
        assert_eq!(Limits::new(RateScale::PUBLISHED).header(Operation::SearchOrders), "0.0056");
        assert_eq!(Limits::new("2.5".parse().unwrap()).header(Operation::GetOrder), "1.25");
        assert_eq!(RateScale::times(1000).to_string(), "1000");
        assert!("0".parse::<RateScale>().is_err() && "x".parse::<RateScale>().is_err() && "-1".parse::<RateScale>().is_err());
    }
}
