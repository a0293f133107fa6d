//! What happens to one order and when: a pure function of the seed.
//!
//! Invariants: times within one order strictly rise; a change is visible to callers only [`PUBLISH_MS`] after it happened, some changes
//! a few seconds later still, and until then callers see the version before it.

use super::draw::{Draw, Stream};

/// How long after a change callers can see it: the API reports updates up to two minutes before now (FACTS section 4).
pub(super) const PUBLISH_MS: i64 = 120_000;
/// The longest further delay of a change that is replicated late (chosen: some seconds, so that a reader needs an overlap).
pub(super) const LATE_MS_MAX: i64 = 20_000;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Most orders are younger than this at the anchor (chosen).
const RECENT_MS: i64 = 20 * DAY;
/// All are younger than this (chosen: past every personal deadline, within a first read of 90 days).
const HISTORY_MS: i64 = 75 * DAY;
/// The youngest order's age at the anchor, so that every order is visible when the simulator starts.
const YOUNGEST_MS: i64 = HOUR;
/// Orders that arrive after the anchor do so within this time (chosen).
const ARRIVALS_MS: i64 = 30 * DAY;
/// How long before the anchor the bulk change falls (chosen).
const BULK_BEFORE_MS: i64 = 2 * DAY;

/// One change of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// When it happened; the order's `lastUpdatedTime` from then on.
    pub(super) at: i64,
    /// From when callers see it.
    pub(super) seen: i64,
    /// What changed.
    pub(super) step: Step,
}

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Placed; pending until payment is checked.
    Created,
    /// Released for shipping.
    Released,
    /// The first of two parcels was handed over.
    PartShipped,
    /// All was handed over.
    Shipped,
    /// Parcel number n (from 0) was delivered.
    Delivered(u8),
    /// Parcel number n could not be delivered.
    Undeliverable(u8),
    /// Cancelled by the buyer or the merchant.
    Cancelled,
    /// Cannot be fulfilled.
    Unfulfillable,
    /// Something else changed.
    Touched,
}

/// The fixed facts of an order and its changes.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    /// When it was placed.
    pub(super) created: i64,
    /// Shipped by the merchant; otherwise by Amazon.
    pub(super) merchant: bool,
    /// Index into the seller's marketplaces.
    pub(super) market: usize,
    /// Number of parcels, 1 or 2; Amazon's own parcels are never shown.
    pub(super) parcels: u8,
    /// Latest promised handover.
    pub(super) ship_by: i64,
    /// Latest promised delivery.
    pub(super) deliver_by: i64,
    /// All changes, oldest first, future ones too.
    pub(super) changes: Vec<Change>,
}

/// Fulfilment status in Amazon's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Unshipped,
    PartiallyShipped,
    Shipped,
    Cancelled,
    Unfulfillable,
}

impl Status {
    /// Amazon's word.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Unshipped => "UNSHIPPED",
            Self::PartiallyShipped => "PARTIALLY_SHIPPED",
            Self::Shipped => "SHIPPED",
            Self::Cancelled => "CANCELLED",
            Self::Unfulfillable => "UNFULFILLABLE",
        }
    }
}

/// Where a parcel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parcel {
    /// When it was handed over.
    pub(super) shipped: i64,
    /// How its way ended, if it did.
    pub(super) end: Option<ParcelEnd>,
}

/// How a parcel's way ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParcelEnd {
    Delivered,
    Undeliverable,
}

/// An order as callers see it at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// The instant.
    pub(super) as_of: i64,
    /// `lastUpdatedTime`.
    pub(super) updated: i64,
    /// Its status.
    pub(super) status: Status,
    /// Whether it was ever released: from then on the buyer is known.
    pub(super) released: bool,
    /// Parcels handed over, in order.
    pub(super) parcels: Vec<Parcel>,
}

/// What a timeline is drawn from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// The run's seed.
    pub(super) seed: u64,
    /// The instant around which orders lie.
    pub(super) anchor: i64,
    /// Number of marketplaces of the seller.
    pub(super) markets: usize,
    /// Per mille of the seller's finished orders that the bulk change touches.
    pub(super) bulk_per_mille: u64,
}

impl Timeline {
    /// The timeline of order number `order` (over all sellers); one that arrives after the anchor if `later`.
    pub(super) fn draw(plan: Plan, order: u64, later: bool) -> Self {
        let mut draw = Draw::new(plan.seed, Stream::Timeline, order, 0);
        let created = match (later, draw.chance(700)) {
            (true, _) => plan.anchor + draw.between(HOUR, ARRIVALS_MS),
            (false, true) => plan.anchor - draw.between(YOUNGEST_MS, RECENT_MS),
            (false, false) => plan.anchor - draw.between(RECENT_MS, HISTORY_MS),
        };
        let merchant = draw.chance(600);
        let market = draw.index(plan.markets);
        let parcels = if draw.chance(200) { 2 } else { 1 };
        let mut steps = vec![(created, Step::Created)];
        fate(&mut draw, &mut steps, merchant, parcels);
        let last = steps.iter().map(|(at, _)| *at).max().unwrap_or(created);
        if draw.chance(100) {
            steps.push((last + draw.between(HOUR, 5 * DAY), Step::Touched));
        }
        let bulk = plan.anchor - BULK_BEFORE_MS + draw.between(0, 10) * 100;
        if last + 5 * DAY < bulk && draw.chance(plan.bulk_per_mille) {
            steps.push((bulk, Step::Touched));
        }
        Self {
            created,
            merchant,
            market,
            parcels,
            ship_by: created + draw.between(DAY, 3 * DAY),
            deliver_by: created + draw.between(5 * DAY, 9 * DAY),
            changes: publish(&mut draw, steps),
        }
    }

    /// The number of the latest change that callers see at `as_of`.
    pub(super) fn version_at(&self, as_of: i64) -> Option<usize> {
        self.changes.iter().rposition(|change| change.seen <= as_of)
    }

    /// The order as callers see it at `as_of`, if it is visible by then.
    pub(super) fn seen_at(&self, as_of: i64) -> Option<Seen> {
        let version = self.version_at(as_of)?;
        let changes = self.changes.get(..=version)?;
        let updated = changes.last()?.at;
        let mut seen = Seen { as_of, updated, status: Status::Pending, released: false, parcels: Vec::new() };
        for change in changes {
            seen.apply(change, self.parcels);
        }
        Some(seen)
    }

    /// Adds a change at `at` (moved later where the order has one at that time). Returns its time.
    pub(super) fn touch(&mut self, at: i64) -> i64 {
        let mut at = at;
        while self.changes.iter().any(|change| change.at == at) {
            at += 1;
        }
        let place = self.changes.partition_point(|change| change.at < at);
        self.changes.insert(place, Change { at, seen: at + PUBLISH_MS, step: Step::Touched });
        at
    }
}

impl Seen {
    fn apply(&mut self, change: &Change, parcels: u8) {
        match change.step {
            Step::Created | Step::Touched => {}
            Step::Released => {
                self.released = true;
                self.status = Status::Unshipped;
            }
            Step::PartShipped => {
                self.status = Status::PartiallyShipped;
                self.parcels.push(Parcel { shipped: change.at, end: None });
            }
            Step::Shipped => {
                self.status = Status::Shipped;
                while self.parcels.len() < usize::from(parcels) {
                    self.parcels.push(Parcel { shipped: change.at, end: None });
                }
            }
            Step::Delivered(number) => self.end(number, ParcelEnd::Delivered),
            Step::Undeliverable(number) => self.end(number, ParcelEnd::Undeliverable),
            Step::Cancelled => self.status = Status::Cancelled,
            Step::Unfulfillable => self.status = Status::Unfulfillable,
        }
    }

    fn end(&mut self, number: u8, end: ParcelEnd) {
        if let Some(parcel) = self.parcels.get_mut(usize::from(number)) {
            parcel.end = Some(end);
        }
    }
}

/// Draws how the order ends: of 1000, 20 stay pending, 70 are cancelled, some of Amazon's cannot be fulfilled, the rest ships.
fn fate(draw: &mut Draw, steps: &mut Vec<(i64, Step)>, merchant: bool, parcels: u8) {
    let created = steps.first().map_or(0, |(at, _)| *at);
    let released = created + draw.between(5 * MINUTE, 6 * HOUR);
    match draw.below(1000) {
        0..20 => return,
        20..60 => {
            steps.push((created + draw.between(10 * MINUTE, DAY), Step::Cancelled));
            return;
        }
        60..90 => {
            steps.push((released, Step::Released));
            steps.push((released + draw.between(10 * MINUTE, DAY), Step::Cancelled));
            return;
        }
        90..95 if !merchant => {
            steps.push((released, Step::Released));
            steps.push((released + draw.between(HOUR, DAY), Step::Unfulfillable));
            return;
        }
        _ => steps.push((released, Step::Released)),
    }
    let first = released + draw.between(4 * HOUR, 60 * HOUR);
    let last = if parcels > 1 { first + draw.between(2 * HOUR, 36 * HOUR) } else { first };
    if parcels > 1 {
        steps.push((first, Step::PartShipped));
    }
    steps.push((last, Step::Shipped));
    if !merchant {
        return;
    }
    for (number, shipped) in [first, last].into_iter().take(usize::from(parcels)).enumerate() {
        let number = u8::try_from(number).unwrap_or(u8::MAX);
        let end = shipped + draw.between(20 * HOUR, 6 * DAY);
        match draw.below(1000) {
            0..10 => steps.push((end, Step::Undeliverable(number))),
            // Never scanned: the parcel stays in transit for ever.
            10..30 => {}
            _ => steps.push((end, Step::Delivered(number))),
        }
    }
}

/// Sorts the steps, makes their times differ, and says from when each is seen.
fn publish(draw: &mut Draw, mut steps: Vec<(i64, Step)>) -> Vec<Change> {
    steps.sort_by_key(|(at, _)| *at);
    let mut changes: Vec<Change> = Vec::with_capacity(steps.len());
    for (at, step) in steps {
        let at = changes.last().map_or(at, |before| at.max(before.at + 1));
        let late = if draw.chance(40) { draw.between(1_000, LATE_MS_MAX) } else { 0 };
        changes.push(Change { at, seen: at + PUBLISH_MS + late, step });
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 3, anchor: 1_795_000_000_000, markets: 2, bulk_per_mille: 300 };

    #[test]
    fn a_timeline_is_a_function_of_the_seed() {
        for order in 0..200 {
            let [a, b] = [0, 1].map(|_| Timeline::draw(PLAN, order, false));
            assert_eq!(a.changes, b.changes);
            assert!(a.changes.windows(2).all(|pair| pair[0].at < pair[1].at), "times rise");
        }
    }

    #[test]
    fn orders_are_visible_at_the_anchor_and_most_end_delivered() {
        let (mut delivered, mut merchant) = (0, 0);
        for order in 0..2000 {
            let timeline = Timeline::draw(PLAN, order, false);
            assert!(timeline.seen_at(PLAN.anchor).is_some());
            let end = timeline.seen_at(PLAN.anchor + 40 * DAY).unwrap();
            if timeline.merchant {
                merchant += 1;
                delivered += usize::from(end.parcels.iter().any(|p| p.end == Some(ParcelEnd::Delivered)));
            } else {
                assert!(end.parcels.iter().all(|p| p.end.is_none()), "the API does not tell when Amazon delivers");
            }
        }
        assert!(delivered * 10 > merchant * 8, "{delivered} of {merchant}");
    }

    #[test]
    fn some_changes_are_seen_late() {
        let late = (0..500).flat_map(|order| Timeline::draw(PLAN, order, false).changes).filter(|c| c.seen > c.at + PUBLISH_MS).count();
        assert!(late > 10);
    }

    #[test]
    fn a_touch_makes_a_new_version_that_is_seen() {
        let mut timeline = Timeline::draw(PLAN, 1, false);
        let now = PLAN.anchor + 60 * DAY;
        let before = timeline.seen_at(now).unwrap();
        let at = timeline.touch(now - PUBLISH_MS);
        let after = timeline.seen_at(now).unwrap();
        assert!(after.updated == at && after.updated > before.updated && after.status == before.status);
    }
}
