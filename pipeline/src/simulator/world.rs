//! Sellers, their orders and the indexes that listings read.
//!
//! Only timelines and two sorted lists per seller are held in memory; an order's content is drawn again whenever it is asked for, so
//! that hundreds of thousands of orders start in seconds.

use std::collections::HashMap;

use super::draw::{Draw, Stream, number_of};
use super::market::{Market, REGIONS, of_region};
use super::timeline::{PUBLISH_MS, Plan, Seen, Timeline};

/// Orders of one run, at most: their last seven digits are a permutation of their numbers.
pub(super) const ORDERS_MAX: u32 = 9_999_999;
/// The factor of that permutation: coprime to ten million.
const SCRAMBLE: u64 = 7_654_321;
/// Room of seven digits.
const SEVEN_DIGITS: u64 = 10_000_000;
/// The bulk change touches about this many finished orders of each seller within one second, so that more than a page of 100 shares
/// it (chosen).
const BULK_ORDERS: u64 = 260;
/// One seller in this many has an application without the role that opens buyers and recipients (chosen).
const ROLELESS_EVERY: u32 = 5;

/// One simulated seller.
#[derive(Debug, Clone)]
pub(super) struct Seller {
    /// Its place among the sellers.
    pub(super) number: u32,
    /// `selling_partner_id`.
    pub(super) id: String,
    /// `eu`, `na` or `fe`.
    pub(super) region: &'static str,
    /// Where it sells; at least one.
    pub(super) markets: Vec<&'static Market>,
    /// Its LWA refresh token.
    pub(super) refresh_token: String,
    /// Whether the application may see buyers and recipients.
    pub(super) has_role: bool,
    /// Its orders by time of change: every change of every order, future ones too.
    by_change: Vec<(i64, u32)>,
    /// Its orders by time of creation.
    by_creation: Vec<(i64, u32)>,
}

/// Which time a listing goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Change,
    Creation,
}

/// How many of what, and from which seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) seed: u64,
    pub(super) anchor: i64,
    pub(super) sellers: u32,
    /// Orders that exist when the simulator starts, and those that arrive later.
    pub(super) orders: u32,
    pub(super) later: u32,
    /// Inventory rows per seller and marketplace.
    pub(super) inventory_rows: u32,
    /// Per mille of the orders that carry fields no model knows.
    pub(super) unknown_per_mille: u16,
}

/// Everything that exists.
#[derive(Debug)]
pub(super) struct World {
    /// What it was made from.
    pub(super) size: Size,
    /// All sellers.
    pub(super) sellers: Vec<Seller>,
    by_refresh_token: HashMap<String, u32>,
    timelines: Vec<Timeline>,
}

impl World {
    /// Draws the world of `size`.
    pub(super) fn draw(size: Size) -> Self {
        let mut sellers: Vec<Seller> = (0..size.sellers).map(|number| draw_seller(size.seed, number)).collect();
        let total = size.orders.saturating_add(size.later).min(ORDERS_MAX);
        let per_seller = u64::from(total / size.sellers.max(1)).max(1);
        let mut timelines = Vec::with_capacity(total as usize);
        for order in 0..total {
            let Some(seller) = sellers.get_mut(owner(size, order)) else { break };
            let plan = Plan {
                seed: size.seed,
                anchor: size.anchor,
                markets: seller.markets.len(),
                bulk_per_mille: (BULK_ORDERS * 1000 / per_seller).min(400),
            };
            let timeline = Timeline::draw(plan, u64::from(order), order >= size.orders);
            seller.by_creation.push((timeline.created, order));
            seller.by_change.extend(timeline.changes.iter().map(|change| (change.at, order)));
            timelines.push(timeline);
        }
        for seller in &mut sellers {
            seller.by_change.sort_unstable();
            seller.by_creation.sort_unstable();
        }
        let by_refresh_token = sellers.iter().map(|s| (s.refresh_token.clone(), s.number)).collect();
        Self { size, sellers, by_refresh_token, timelines }
    }

    /// The seller number `number`.
    pub(super) fn seller(&self, number: u32) -> Option<&Seller> {
        self.sellers.get(number as usize)
    }

    /// The seller with this id.
    pub(super) fn seller_by_id(&self, id: &str) -> Option<&Seller> {
        self.sellers.iter().find(|seller| seller.id == id)
    }

    /// The seller that a refresh token belongs to.
    pub(super) fn seller_by_refresh_token(&self, token: &str) -> Option<&Seller> {
        self.seller(*self.by_refresh_token.get(token)?)
    }

    /// The timeline of an order.
    pub(super) fn timeline(&self, order: u32) -> Option<&Timeline> {
        self.timelines.get(order as usize)
    }

    /// The clear id of an order, in Amazon's form of 3, 7 and 7 digits.
    pub(super) fn order_id(&self, order: u32) -> String {
        let seller = self.sellers.get(owner(self.size, order));
        let market = seller.zip(self.timeline(order)).and_then(|(s, t)| s.markets.get(t.market));
        let prefix = market.map_or(100, |market| market.prefix);
        let middle = Draw::new(self.size.seed, Stream::Content, u64::from(order), 1).below(SEVEN_DIGITS);
        format!("{prefix:03}-{middle:07}-{:07}", self.scramble(order))
    }

    fn scramble(&self, order: u32) -> u64 {
        (u64::from(order) * SCRAMBLE + self.size.seed % SEVEN_DIGITS) % SEVEN_DIGITS
    }

    /// The order of `seller` with this clear id.
    pub(super) fn order_by_id(&self, seller: &Seller, id: &str) -> Option<u32> {
        let last = id.rsplit('-').next()?.parse::<u64>().ok().filter(|n| *n < SEVEN_DIGITS)?;
        let shifted = (last + SEVEN_DIGITS - self.size.seed % SEVEN_DIGITS) % SEVEN_DIGITS;
        let order = u32::try_from(shifted * inverse(SCRAMBLE, SEVEN_DIGITS) % SEVEN_DIGITS).ok()?;
        let is_its = owner(self.size, order) == seller.number as usize;
        (is_its && self.timeline(order).is_some() && self.order_id(order) == id).then_some(order)
    }

    /// The orders of `seller` that are visible at `as_of`, by number.
    pub(super) fn visible<'a>(&'a self, seller: &'a Seller, as_of: i64) -> impl Iterator<Item = (u32, Seen)> + 'a {
        seller.by_creation.iter().filter_map(move |(_, order)| Some((*order, self.timeline(*order)?.seen_at(as_of)?)))
    }

    /// The orders of `seller` with their time (of their visible version, or of creation) in `from..=to`, after the place `after`, as
    /// callers see them at `as_of`: oldest first, each once.
    pub(super) fn listing<'a>(
        &'a self,
        seller: &'a Seller,
        by: By,
        (from, to): (i64, i64),
        after: Option<(i64, u32)>,
        as_of: i64,
    ) -> impl Iterator<Item = ((i64, u32), Seen)> + 'a {
        let index = match by {
            By::Change => &seller.by_change,
            By::Creation => &seller.by_creation,
        };
        let start = match after {
            Some(place) => index.partition_point(|entry| *entry <= place),
            None => index.partition_point(|entry| entry.0 < from),
        };
        let rest = index.get(start..).unwrap_or_default();
        rest.iter().take_while(move |(at, _)| *at <= to).filter_map(move |place| {
            let seen = self.timeline(place.1)?.seen_at(as_of)?;
            (by == By::Creation || seen.updated == place.0).then_some((*place, seen))
        })
    }

    /// Changes an order at `now`: callers see a new version with a later `lastUpdatedTime` at once. Returns that time.
    pub(super) fn touch(&mut self, order: u32, now: i64) -> Option<i64> {
        let owner = owner(self.size, order);
        let timeline = self.timelines.get_mut(order as usize)?;
        let at = timeline.touch(now - PUBLISH_MS);
        let index = &mut self.sellers.get_mut(owner)?.by_change;
        let place = index.partition_point(|entry| *entry < (at, order));
        index.insert(place, (at, order));
        Some(at)
    }
}

impl Seller {
    /// The seller without its lists of orders, cheap to copy.
    pub(super) fn without_indexes(&self) -> Self {
        let markets = self.markets.clone();
        let (id, refresh_token) = (self.id.clone(), self.refresh_token.clone());
        Self { id, refresh_token, markets, by_change: Vec::new(), by_creation: Vec::new(), ..*self }
    }
}

/// The seller of an order: they take turns, so that all have as many.
fn owner(size: Size, order: u32) -> usize {
    (order % size.sellers.max(1)) as usize
}

fn draw_seller(seed: u64, number: u32) -> Seller {
    let mut draw = Draw::new(seed, Stream::Seller, u64::from(number), 0);
    let region = REGIONS.get(number as usize % REGIONS.len()).copied().unwrap_or("eu");
    let mut markets = of_region(region);
    let keep = 1 + draw.index(markets.len());
    let first = draw.index(markets.len());
    markets.rotate_left(first);
    markets.truncate(keep);
    Seller {
        number,
        id: format!("A{}", draw.word(13)),
        region,
        markets,
        refresh_token: format!("Atzr|SIM{number:05}{}", draw.word(120)),
        has_role: number % ROLELESS_EVERY != ROLELESS_EVERY - 1,
        by_change: Vec::new(),
        by_creation: Vec::new(),
    }
}

/// The inverse of `a` modulo `n` by Euclid's algorithm; `a` and `n` share no factor.
fn inverse(a: u64, n: u64) -> u64 {
    let (mut r, mut next_r) = (i128::from(n), i128::from(a));
    let (mut t, mut next_t) = (0i128, 1i128);
    while next_r != 0 {
        let q = r / next_r;
        (r, next_r) = (next_r, r - q * next_r);
        (t, next_t) = (next_t, t - q * next_t);
    }
    u64::try_from(t.rem_euclid(i128::from(n))).unwrap_or(0)
}

/// A number for the filters of a listing, so that a page token is refused with others.
pub(super) fn fingerprint(parts: &[(&str, String)]) -> u64 {
    let text: Vec<String> = parts.iter().map(|(name, value)| format!("{name}={value}")).collect();
    number_of(&text.join("&"))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    const DAY: i64 = 86_400_000;

    fn size(orders: u32) -> Size {
        Size { seed: 11, anchor: 1_795_000_000_000, sellers: 3, orders, later: 0, inventory_rows: 10, unknown_per_mille: 0 }
    }

    #[test]
    fn ids_are_unique_and_lead_back_to_their_order() {
        let world = World::draw(size(900));
        let ids: HashSet<String> = (0..900).map(|order| world.order_id(order)).collect();
        assert_eq!(ids.len(), 900);
        for order in [0u32, 1, 2, 450, 899] {
            let id = world.order_id(order);
            let seller = &world.sellers[order as usize % 3];
            assert_eq!(world.order_by_id(seller, &id), Some(order));
            assert_eq!(world.order_by_id(&world.sellers[(order as usize + 1) % 3], &id), None);
        }
    }

    #[test]
    fn a_listing_holds_each_visible_order_once() {
        let world = World::draw(size(900));
        let now = world.size.anchor + DAY;
        for seller in &world.sellers {
            for by in [By::Change, By::Creation] {
                let listed: Vec<u32> = world.listing(seller, by, (0, now), None, now).map(|((_, order), _)| order).collect();
                let once: HashSet<u32> = listed.iter().copied().collect();
                assert_eq!(once.len(), listed.len());
                assert_eq!(listed.len(), world.visible(seller, now).count());
            }
        }
    }

    #[test]
    fn more_than_a_page_of_orders_shares_one_second() {
        let world = World::draw(size(6000));
        let now = world.size.anchor;
        let mut seconds: HashMap<i64, usize> = HashMap::new();
        for ((at, _), _) in world.listing(&world.sellers[0], By::Change, (0, now), None, now) {
            *seconds.entry(at / 1000).or_default() += 1;
        }
        assert!(seconds.values().max().unwrap() > &100);
    }

    #[test]
    fn a_touched_order_is_listed_at_its_new_time() {
        let mut world = World::draw(size(30));
        let now = world.size.anchor + DAY;
        let at = world.touch(4, now).unwrap();
        let seller = &world.sellers[1];
        let found: Vec<u32> = world.listing(seller, By::Change, (at, at), None, now).map(|((_, order), _)| order).collect();
        assert_eq!(found, [4]);
    }
}
