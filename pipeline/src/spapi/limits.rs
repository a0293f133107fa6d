//! Usage plans: one token bucket per seller and operation, fed by the answers' `x-amzn-RateLimit-Limit`.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::{Clock as _, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive as _;
use sunder_schemas::ids::SellerId;

use super::request::Operation;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;
/// Slowest rate that is taken from an answer: one request in ten hours (chosen; the slowest published one is one in 3 minutes).
const PERIOD_NS_MAX: u64 = 36_000 * SECOND_NS;
/// Fastest rate that is taken from an answer: a million a second (chosen, so that the period is never zero).
const PERIOD_NS_MIN: u64 = 1_000;
/// A process begins with this part of the published burst: another run may just have spent the rest, and Amazon says not to spend the
/// whole burst at the start (chosen: half).
const START_BURST_DIVISOR: u32 = 2;

/// How often an operation may be called: kept as the time between two calls, so that no float is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    period_ns: u64,
}

/// A rate that is not a positive decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a positive rate")]
pub struct RateError;

impl Rate {
    /// `n` calls in 10,000 seconds: the published rates have four decimals.
    #[must_use]
    pub const fn per_10000_seconds(n: u64) -> Self {
        let n = if n == 0 { 1 } else { n };
        Self { period_ns: 10_000 * SECOND_NS / n }
    }

    /// Reads calls per second as decimal text, as the header has it.
    ///
    /// # Errors
    /// [`RateError`] where it is not a positive decimal.
    pub fn parse(text: &str) -> Result<Self, RateError> {
        Self::from_decimal(text.trim().parse().map_err(|_| RateError)?)
    }

    fn from_decimal(per_second: Decimal) -> Result<Self, RateError> {
        if per_second <= Decimal::ZERO {
            return Err(RateError);
        }
        let period = Decimal::from(SECOND_NS).checked_div(per_second).and_then(|ns| ns.to_u64()).unwrap_or(PERIOD_NS_MAX);
        Ok(Self { period_ns: period.clamp(PERIOD_NS_MIN, PERIOD_NS_MAX) })
    }

    /// This rate times `scale` (config `rate_scale`, test only).
    ///
    /// # Errors
    /// [`RateError`] where `scale` is not positive.
    pub fn scaled(self, scale: Decimal) -> Result<Self, RateError> {
        if scale <= Decimal::ZERO {
            return Err(RateError);
        }
        let period = Decimal::from(self.period_ns).checked_div(scale).and_then(|ns| ns.to_u64()).unwrap_or(PERIOD_NS_MAX);
        Ok(Self { period_ns: period.clamp(PERIOD_NS_MIN, PERIOD_NS_MAX) })
    }

    /// The time between two calls.
    #[must_use]
    pub const fn period(self) -> Duration {
        Duration::from_nanos(self.period_ns)
    }

    /// Whether the two are the same but for rounding: the header has four decimals at most, so 1 % apart is the same.
    fn is_near(self, other: Self) -> bool {
        self.period_ns.abs_diff(other.period_ns) <= self.period_ns / 100
    }
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, MonotonicClock>;

struct Limiter {
    rate: Rate,
    bucket: Bucket,
}

impl Limiter {
    fn new(rate: Rate, burst: NonZeroU32) -> Option<Self> {
        let quota = Quota::with_period(rate.period())?.allow_burst(burst);
        Some(Self { rate, bucket: RateLimiter::direct_with_clock(quota, MonotonicClock) })
    }
}

/// Replaced as a whole when a rate changes, so that a waiting caller never holds a lock.
type Shared = Arc<ArcSwap<Limiter>>;

/// The buckets of all sellers of this process.
pub(super) struct Limits {
    scale: Decimal,
    buckets: Mutex<HashMap<(SellerId, Operation), Shared>>,
}

impl Limits {
    /// Published rates times `scale`.
    ///
    /// # Errors
    /// [`RateError`] where `scale` is not positive.
    pub(super) fn new(scale: Decimal) -> Result<Self, RateError> {
        if scale <= Decimal::ZERO {
            return Err(RateError);
        }
        Ok(Self { scale, buckets: Mutex::new(HashMap::new()) })
    }

    /// Waits until `seller` may call `operation`; `waits` is told where that is not now.
    pub(super) async fn wait(&self, seller: &SellerId, operation: Operation, waits: &(dyn Fn() + Send + Sync)) -> Result<(), RateError> {
        let limiter = self.limiter(seller, operation)?;
        loop {
            let current = limiter.load_full();
            let Err(not_until) = current.bucket.check() else { return Ok(()) };
            waits();
            tokio::time::sleep(not_until.wait_time_from(MonotonicClock.now())).await;
        }
    }

    /// Takes over the rate an answer told. A rebuilt bucket holds one call: how much of the burst is left is unknown.
    pub(super) fn adopt(&self, seller: &SellerId, operation: Operation, header: &str) {
        // A header that is no rate says nothing; the present rate stays.
        let (Ok(rate), Ok(limiter)) = (Rate::parse(header), self.limiter(seller, operation)) else { return };
        if limiter.load().rate.is_near(rate) {
            return;
        }
        if let Some(rebuilt) = Limiter::new(rate, NonZeroU32::MIN) {
            limiter.store(Arc::new(rebuilt));
        }
    }

    /// The time between two calls of `operation` for `seller`: how long to wait after a throttled call.
    pub(super) fn period(&self, seller: &SellerId, operation: Operation) -> Duration {
        self.limiter(seller, operation).map_or(operation.published().0.period(), |l| l.load().rate.period())
    }

    fn limiter(&self, seller: &SellerId, operation: Operation) -> Result<Shared, RateError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limiter) = buckets.get(&(seller.clone(), operation)) {
            return Ok(Arc::clone(limiter));
        }
        let (rate, burst) = operation.published();
        let burst = NonZeroU32::new(burst / START_BURST_DIVISOR).unwrap_or(NonZeroU32::MIN);
        let limiter = Arc::new(ArcSwap::from_pointee(Limiter::new(rate.scaled(self.scale)?, burst).ok_or(RateError)?));
        buckets.insert((seller.clone(), operation), Arc::clone(&limiter));
        Ok(limiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_without_floats() {
        assert_eq!(Rate::parse("0.0056").unwrap().period().as_secs(), 178);
        assert_eq!(Rate::parse("2").unwrap().period(), Duration::from_millis(500));
        assert_eq!(Rate::parse("0.5"), Ok(Rate::per_10000_seconds(5_000)));
        for bad in ["", "0", "-1", "fast", "NaN"] {
            assert_eq!(Rate::parse(bad), Err(RateError), "{bad}");
        }
        assert!(Rate::parse("100000000000000000000").unwrap().period() >= Duration::from_nanos(PERIOD_NS_MIN));
    }

    #[test]
    fn an_adopted_rate_starts_with_one_call() {
        let limits = Limits::new(Decimal::ONE).unwrap();
        let seller = SellerId::parse("A1").unwrap();
        limits.adopt(&seller, Operation::SearchOrders, "0.1");
        assert_eq!(limits.period(&seller, Operation::SearchOrders), Duration::from_secs(10));
        let limiter = limits.limiter(&seller, Operation::SearchOrders).unwrap().load_full();
        assert!(limiter.bucket.check().is_ok());
        assert!(limiter.bucket.check().is_err());
        // The same rate again does not refill the bucket.
        limits.adopt(&seller, Operation::SearchOrders, "0.1000");
        assert!(limits.limiter(&seller, Operation::SearchOrders).unwrap().load_full().bucket.check().is_err());
    }

    #[test]
    fn a_start_spends_half_the_burst_and_sellers_do_not_share() {
        let limits = Limits::new(Decimal::ONE).unwrap();
        for seller in ["A1", "A2"] {
            let limiter = limits.limiter(&SellerId::parse(seller).unwrap(), Operation::SearchOrders).unwrap().load_full();
            assert_eq!((0..20).filter(|_| limiter.bucket.check().is_ok()).count(), 10);
        }
    }
}
