//! When an order's personal data is due to be destroyed: pure, from what is known of the order (DESIGN section 5).
//!
//! The deadline is the earliest of the rules below, less the life of key backups and a margin. A time known only as an interval
//! counts from its lower end. Invariants: never past the cap; later only before the first sign of delivery, never after it.
//! It does not know keys, stores or clocks; the caller stores [`Facts`] and asks again at each version and each sweep.

use std::fmt;

use serde::{Deserialize, Serialize};
use sunder_schemas::time::{Period, Timestamp};

const DAY_MS: i64 = 86_400_000;
/// Shipment counts this much longer than delivery: 45 d beside 30 d (DESIGN section 5; controls H-5).
const SHIPMENT_EXTRA_MS: i64 = 15 * DAY_MS;
/// An order without a promise counts this much longer from its creation than from delivery: 60 d beside 30 d (same source).
const CREATED_EXTRA_MS: i64 = 30 * DAY_MS;

/// How long personal data may stay: from the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `retention.personal_after_delivery`, 30 d.
    pub after_delivery: Period,
    /// `keys.backup_days`: how long a backup of the key database lives; every deadline is that much earlier.
    pub backup: Period,
    /// `retention.margin`, 2 d: so that destruction, removal and proof are done in time.
    pub margin: Period,
    /// `retention.non_personal`, 18 months: how long business data may stay, by event time.
    pub business: Period,
}

impl Default for Policy {
    fn default() -> Self {
        Self { after_delivery: Period::days(30), backup: Period::days(7), margin: Period::days(2), business: Period::Months(18) }
    }
}

impl Policy {
    /// What happened before this instant may be kept no longer at `now`. The margin leaves the daily sweep and its case their time.
    #[must_use]
    pub fn business_cutoff(&self, now: Timestamp) -> Timestamp {
        now.minus(self.business).plus(self.margin)
    }

    fn from(&self, start: Timestamp, extra_ms: i64) -> Timestamp {
        start.plus(self.after_delivery).plus(Period::Millis(extra_ms))
    }
}

/// The rule that decided a deadline; stored and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Cancelled: at once.
    Cancelled,
    /// Delivered, or the last look that was not yet delivered, + 30 d.
    Delivery,
    /// The last look that proves it not yet delivered + 30 d; only where a delivered status can be seen.
    NotYetDeliveredLook,
    /// Last shipment + 45 d.
    LastShipment,
    /// First-seen latest delivery promise + 30 d.
    CapPromise,
    /// `createdTime` + 60 d, where no promise was seen.
    CapCreated,
}

impl Rule {
    /// As it is stored, e.g. `not_yet_delivered_look`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Delivery => "delivery",
            Self::NotYetDeliveredLook => "not_yet_delivered_look",
            Self::LastShipment => "last_shipment",
            Self::CapPromise => "cap_promise",
            Self::CapCreated => "cap_created",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far the order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Pending, unshipped, partially shipped or unfulfillable: no last shipment yet.
    Open,
    /// `SHIPPED`: everything has left.
    Shipped,
    /// `CANCELLED`.
    Cancelled,
}

/// What one version of an order shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// `createdTime`.
    pub created: Timestamp,
    /// `lastUpdatedTime` of this version.
    pub last_updated: Timestamp,
    /// The seller's order watermark before this answer: an order that was known then had not changed up to it. `None` before the
    /// first complete poll.
    pub previous_look: Option<Timestamp>,
    /// When this version was asked for, by the policy clock: it was the current one then, so an order that it shows undelivered was
    /// not delivered yet. `None` where that is not known.
    pub asked_at: Option<Timestamp>,
    /// From the fulfilment status.
    pub progress: Progress,
    /// Whether a delivered status can be seen: merchant-fulfilled.
    pub delivery_visible: bool,
    /// End of `deliverByWindow`.
    pub latest_promise: Option<Timestamp>,
    /// The latest `shipTime` of its packages.
    pub last_ship_time: Option<Timestamp>,
    /// Packages that count: not cancelled.
    pub packages: u32,
    /// Of these, delivered.
    pub packages_delivered: u32,
    /// When it was delivered, where a milestone says so.
    pub delivered_at: Option<Timestamp>,
}

/// What is stored of an order's clock. Times and states only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `createdTime` as first seen; never moved.
    pub created: Timestamp,
    /// The first latest delivery promise that was seen; never moved.
    pub promise: Option<Timestamp>,
    /// Whether a delivered status can be seen.
    pub delivery_visible: bool,
    /// Latest instant at which it is known to be not wholly delivered.
    pub look: Timestamp,
    /// When it was cancelled, at the latest.
    pub cancelled: Option<Timestamp>,
    /// Last shipment: exact, or the lower end of its interval.
    pub shipped: Option<Timestamp>,
    /// Delivery of the last package: exact, or the lower end of its interval.
    pub delivered: Option<Timestamp>,
    /// Set at the first sign of delivery: from then on the deadline may only come closer. Before backup and margin are taken off.
    pub ceiling: Option<Decision>,
}

/// A deadline with its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub rule: Rule,
}

/// What is known after `observed`, given what was `stored` from versions before it.
#[must_use]
pub fn observe(stored: Option<&Facts>, observed: &Observed, policy: &Policy) -> Facts {
    // What was known before proves the state up to the watermark; a late change shows that the watermark missed it, so never past this version.
    let known_until = stored.map(|s| observed.previous_look.map_or(s.look, |w| s.look.max(w)).min(observed.last_updated));
    let lower_end = known_until.unwrap_or(observed.created).max(stored.map_or(observed.created, |s| s.created));
    let all_delivered = observed.delivered_at.is_some()
        || (observed.packages > 0 && observed.packages_delivered >= observed.packages && observed.progress == Progress::Shipped);
    let sign = all_delivered || observed.packages_delivered > 0;

    let mut facts = stored.copied().unwrap_or(Facts {
        created: observed.created,
        promise: None,
        delivery_visible: observed.delivery_visible,
        look: observed.created,
        cancelled: None,
        shipped: None,
        delivered: None,
        ceiling: None,
    });
    facts.delivery_visible = observed.delivery_visible;
    if facts.ceiling.is_none() {
        facts.promise = facts.promise.or(observed.latest_promise);
    }
    if observed.progress == Progress::Cancelled {
        facts.cancelled = facts.cancelled.or(Some(observed.last_updated));
    }
    if observed.progress == Progress::Shipped || all_delivered {
        // The seller states the ship time; it cannot lie after the version that tells it.
        let exact = observed.last_ship_time.map(|t| t.min(observed.last_updated));
        facts.shipped = exact.or(facts.shipped).or(Some(lower_end));
    }
    if all_delivered {
        let exact = observed.delivered_at.map(|t| t.min(observed.last_updated));
        let earliest = exact.unwrap_or(lower_end);
        facts.delivered = Some(facts.delivered.map_or(earliest, |d| d.min(earliest)));
    }
    // The look that proves it not yet delivered: up to here where all is delivered now; where nothing is, the moment this version was
    // asked for. A part that was delivered is a sign: from then on nothing moves the deadline later, so this very version counts.
    let seen = observed.asked_at.filter(|_| !sign).map_or(observed.last_updated, |asked| asked.max(observed.last_updated));
    facts.look = facts.look.max(if all_delivered { lower_end } else { seen });
    if sign || facts.ceiling.is_some() {
        let now = earliest(&facts, None, policy);
        facts.ceiling = Some(facts.ceiling.map_or(now, |c| if now.at < c.at { now } else { c }));
    }
    facts
}

/// The deadline by `facts`. `watermark` is the seller's order watermark now: while nothing was heard of delivery up to it, the order
/// was not delivered.
#[must_use]
pub fn deadline(facts: &Facts, watermark: Option<Timestamp>, policy: &Policy) -> Decision {
    let mut decision = earliest(facts, watermark, policy);
    if let Some(ceiling) = facts.ceiling
        && ceiling.at < decision.at
    {
        decision = ceiling;
    }
    Decision { at: decision.at.minus(policy.backup).minus(policy.margin), rule: decision.rule }
}

/// The cap by `facts`, less backup and margin: no deadline is later.
#[must_use]
pub fn cap(facts: &Facts, policy: &Policy) -> Timestamp {
    raw_cap(facts, policy).at.minus(policy.backup).minus(policy.margin)
}

fn raw_cap(facts: &Facts, policy: &Policy) -> Decision {
    match facts.promise {
        Some(promise) => Decision { at: policy.from(promise, 0), rule: Rule::CapPromise },
        None => Decision { at: policy.from(facts.created, CREATED_EXTRA_MS), rule: Rule::CapCreated },
    }
}

fn earliest(facts: &Facts, watermark: Option<Timestamp>, policy: &Policy) -> Decision {
    let mut decision = raw_cap(facts, policy);
    let mut consider = |at: Timestamp, rule: Rule| {
        if (at, rule) < (decision.at, decision.rule) {
            decision = Decision { at, rule };
        }
    };
    if let Some(at) = facts.cancelled {
        consider(at, Rule::Cancelled);
    }
    if let Some(at) = facts.delivered {
        consider(policy.from(at, 0), Rule::Delivery);
    } else if facts.delivery_visible {
        let look = if facts.ceiling.is_none() { watermark.map_or(facts.look, |w| facts.look.max(w)) } else { facts.look };
        consider(policy.from(look, 0), Rule::NotYetDeliveredLook);
    }
    if let Some(at) = facts.shipped {
        consider(policy.from(at, SHIPMENT_EXTRA_MS), Rule::LastShipment);
    }
    decision
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn day(n: i64) -> Timestamp {
        Timestamp(n * DAY_MS)
    }

    const PLAIN: Policy =
        Policy { after_delivery: Period::days(30), backup: Period::Millis(0), margin: Period::Millis(0), business: Period::Months(18) };

    const fn unshipped(created: i64, updated: i64) -> Observed {
        Observed {
            created: day(created),
            last_updated: day(updated),
            previous_look: None,
            asked_at: None,
            progress: Progress::Open,
            delivery_visible: true,
            latest_promise: None,
            last_ship_time: None,
            packages: 0,
            packages_delivered: 0,
            delivered_at: None,
        }
    }

    fn after(versions: &[Observed], watermark: Option<Timestamp>) -> (i64, Rule) {
        let mut facts = None;
        for version in versions {
            facts = Some(observe(facts.as_ref(), version, &PLAIN));
        }
        let decision = deadline(&facts.unwrap(), watermark, &PLAIN);
        (decision.at.0 / DAY_MS, decision.rule)
    }

    #[test]
    fn every_rule_decides_where_it_is_the_earliest() {
        let open = unshipped(0, 1);
        let fba = Observed { delivery_visible: false, ..open };
        let promised = Observed { latest_promise: Some(day(5)), ..fba };
        let shipped = Observed { progress: Progress::Shipped, packages: 1, last_updated: day(3), ..fba };
        let delivered =
            Observed { packages_delivered: 1, delivery_visible: true, last_updated: day(9), previous_look: Some(day(8)), ..shipped };
        type Case = (&'static str, Vec<Observed>, Option<Timestamp>, (i64, Rule));
        let cases: &[Case] = &[
            ("no promise: created + 60", vec![fba], None, (60, Rule::CapCreated)),
            ("promise + 30", vec![promised], None, (35, Rule::CapPromise)),
            (
                "the first promise stays",
                vec![promised, Observed { latest_promise: Some(day(50)), ..promised }],
                None,
                (35, Rule::CapPromise),
            ),
            ("a first promise may come late", vec![fba, Observed { latest_promise: Some(day(50)), ..fba }], None, (80, Rule::CapPromise)),
            ("merchant: this version + 30", vec![open], None, (31, Rule::NotYetDeliveredLook)),
            (
                "merchant: seen so at a later time + 30",
                vec![Observed { asked_at: Some(day(15)), ..open }],
                None,
                (45, Rule::NotYetDeliveredLook),
            ),
            (
                "delivered after it was asked for: + 30 from there",
                vec![Observed { asked_at: Some(day(5)), ..open }, Observed { previous_look: None, asked_at: Some(day(20)), ..delivered }],
                None,
                (35, Rule::Delivery),
            ),
            ("asked for after delivery: created + 30", vec![Observed { asked_at: Some(day(20)), ..delivered }], None, (30, Rule::Delivery)),
            ("merchant: the watermark moves it", vec![open], Some(day(12)), (42, Rule::NotYetDeliveredLook)),
            ("never past the cap", vec![open], Some(day(300)), (60, Rule::CapCreated)),
            ("the watermark says nothing where delivery is not seen", vec![promised], Some(day(2)), (35, Rule::CapPromise)),
            ("first seen shipped: created + 45", vec![shipped], None, (45, Rule::LastShipment)),
            (
                "shipped since the last look + 45",
                vec![fba, Observed { previous_look: Some(day(2)), ..shipped }],
                None,
                (47, Rule::LastShipment),
            ),
            ("exact ship time + 45", vec![fba, Observed { last_ship_time: Some(day(3)), ..shipped }], None, (48, Rule::LastShipment)),
            (
                "a ship time in the future is not believed",
                vec![Observed { last_ship_time: Some(day(13)), ..shipped }],
                None,
                (48, Rule::LastShipment),
            ),
            (
                "partially shipped is no last shipment",
                vec![Observed { packages: 1, last_ship_time: Some(day(1)), ..fba }],
                None,
                (60, Rule::CapCreated),
            ),
            (
                "cancelled: at once",
                vec![open, Observed { progress: Progress::Cancelled, last_updated: day(4), ..open }],
                None,
                (4, Rule::Cancelled),
            ),
            ("first seen delivered: created + 30", vec![delivered], None, (30, Rule::Delivery)),
            ("delivered since the last look + 30", vec![open, delivered], None, (38, Rule::Delivery)),
            ("a milestone is exact", vec![open, Observed { delivered_at: Some(day(6)), ..delivered }], None, (36, Rule::Delivery)),
            ("after delivery the watermark moves nothing", vec![open, delivered], Some(day(40)), (38, Rule::Delivery)),
            (
                "a late change: the watermark had missed it",
                vec![open, Observed { last_updated: day(6), ..delivered }],
                None,
                (36, Rule::Delivery),
            ),
            (
                "one of two delivered: from then on it only comes closer",
                vec![
                    open,
                    Observed { packages: 2, packages_delivered: 1, last_updated: day(9), progress: Progress::Shipped, ..open },
                    Observed {
                        packages: 2,
                        packages_delivered: 2,
                        last_updated: day(20),
                        previous_look: Some(day(19)),
                        progress: Progress::Shipped,
                        ..open
                    },
                ],
                None,
                (39, Rule::NotYetDeliveredLook),
            ),
        ];
        for (name, versions, watermark, expected) in cases {
            assert_eq!(after(versions, *watermark), *expected, "{name}");
        }
    }

    #[test]
    fn backup_and_margin_come_off() {
        let policy = Policy::default();
        let facts = observe(None, &Observed { delivery_visible: false, ..unshipped(0, 1) }, &policy);
        assert_eq!(deadline(&facts, None, &policy), Decision { at: day(60 - 9), rule: Rule::CapCreated });
        let short = Policy { after_delivery: Period::days(10), ..PLAIN };
        assert_eq!(deadline(&facts, None, &short).at, day(40));
    }

    prop_compose! {
        fn any_version()(
            step in 0i64..10, asked in proptest::option::of(0i64..120), look in proptest::option::of(0i64..120), progress in 0usize..3, visible: bool, promise in proptest::option::of(0i64..90),
            ship in proptest::option::of(0i64..120), packages in 0u32..3, delivered in 0u32..3, milestone in proptest::option::weighted(0.1, 0i64..120)
        ) -> (i64, Observed) {
            let progress = [Progress::Open, Progress::Shipped, Progress::Cancelled][progress];
            (step, Observed {
                previous_look: look.map(day), asked_at: asked.map(day), progress, delivery_visible: visible, latest_promise: promise.map(day), last_ship_time: ship.map(day),
                packages, packages_delivered: delivered.min(packages), delivered_at: milestone.map(day), ..unshipped(0, 0)
            })
        }
    }

    proptest! {
        #[test]
        fn never_past_the_cap_and_never_later_after_a_sign_of_delivery(
            versions in proptest::collection::vec(any_version(), 1..12), watermark in proptest::option::of(0i64..200)
        ) {
            let (mut facts, mut now) = (None::<Facts>, 0);
            let mut last = None::<Timestamp>;
            for (step, mut version) in versions {
                now += step;
                version.last_updated = day(now);
                let signed = facts.is_some_and(|f| f.ceiling.is_some());
                let next = observe(facts.as_ref(), &version, &PLAIN);
                let at = deadline(&next, watermark.map(day), &PLAIN).at;
                prop_assert!(at <= cap(&next, &PLAIN));
                if let (true, Some(last)) = (signed, last) {
                    prop_assert!(at <= last, "{:?} after {:?}", at, last);
                    prop_assert_eq!(cap(&next, &PLAIN), cap(&facts.unwrap(), &PLAIN));
                }
                // A version seen twice changes nothing.
                let again = observe(Some(&next), &version, &PLAIN);
                prop_assert!(deadline(&again, watermark.map(day), &PLAIN).at <= at.max(day(now + 30)));
                last = Some(at);
                facts = Some(next);
            }
        }
    }
}
