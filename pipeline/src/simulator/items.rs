//! The items of an order.

use serde_json::{Map, Value, json};

use super::content::Painter;
use super::draw::{Draw, Stream};
use super::inventory::{asin, sku};
use super::personal::Secret;
use super::timeline::{Status, Timeline};
use super::world::{Seller, World};

/// Most items of an order (chosen; small enough for the tags of item fields).
const ITEMS_MAX: u64 = 5;

/// One item of an order, money in minor units of the order's currency.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// `orderItemId`.
    pub(super) id: String,
    /// Units ordered.
    pub(super) quantity: i64,
    /// Price of one unit.
    pub(super) unit: i64,
    /// Tax on all units.
    pub(super) tax: i64,
    place: u64,
    sku: String,
    asin: String,
    shipping: i64,
    discount: i64,
}

impl Item {
    /// What the seller gets for it, in minor units.
    pub(super) const fn total(&self) -> i64 {
        self.unit * self.quantity + self.tax + self.shipping - self.discount
    }
}

/// Number of items of an order: most have one, orders of two parcels at least two.
pub(super) fn count(world: &World, order: u32, timeline: &Timeline) -> u64 {
    let mut draw = Draw::new(world.size.seed, Stream::Content, u64::from(order), 9);
    let more = if draw.chance(300) { draw.below(ITEMS_MAX - 1) } else { 0 };
    u64::from(timeline.parcels).max(1 + more)
}

/// The items of `order`.
pub(super) fn draw_items(world: &World, seller: &Seller, order: u32) -> Vec<Item> {
    let Some(timeline) = world.timeline(order) else { return Vec::new() };
    let seed = world.size.seed;
    (0..count(world, order, timeline))
        .map(|place| {
            let mut draw = Draw::new(seed, Stream::Content, u64::from(order), 16 + place);
            let product = draw.below(u64::from(world.size.inventory_rows.max(1)));
            let (quantity, unit) = (if draw.chance(850) { 1 } else { draw.between(2, 6) }, draw.between(199, 29_999));
            Item {
                id: format!("{:05}{:09}", place * 7 + 10_000 + draw.below(7), order),
                quantity,
                unit,
                tax: unit * quantity * 19 / 100,
                place,
                sku: sku(seed, seller.number, product),
                asin: asin(seed, seller.number, product),
                shipping: if draw.chance(300) { 499 } else { 0 },
                discount: if draw.chance(100) { 100 } else { 0 },
            }
        })
        .collect()
}

impl Painter<'_> {
    /// One item as Amazon's `OrderItem`; `items` is how many the order has.
    pub(super) fn paint_item(&mut self, item: &Item, items: usize) -> Value {
        let at = format!("orderItems[{}]", item.place);
        let mut painted = Map::new();
        let id = Secret { value: item.id.clone(), needle: Some(item.id.clone()) };
        self.put(&mut painted, (&at, "orderItemId"), "identifiers", id, true);
        painted.insert("quantityOrdered".into(), json!(item.quantity));
        let product = self.paint_product(item, &at);
        painted.insert("product".into(), product);
        let priced = self.seen.status != Status::Pending;
        if self.included.has("PROCEEDS") && priced {
            painted.insert("proceeds".into(), self.item_proceeds(item));
        }
        if self.included.has("EXPENSE") && self.market.country == "JP" && priced {
            let points = json!({ "pointsNumber": item.unit / 100, "pointsMonetaryValue": self.money(item.unit / 100) });
            painted.insert("expense".into(), json!({ "pointsCost": { "pointsGranted": points } }));
        }
        if self.included.has("PROMOTION") && item.discount > 0 {
            painted.insert("promotion".into(), json!({ "breakdowns": [{ "promotionId": "SIM-PROMOTION-1" }] }));
        }
        self.paint_cancellation(item, &at, &mut painted);
        self.paint_item_fulfillment(item, &at, items, &mut painted);
        if self.included.has("TAX") {
            let collections = json!([{ "model": "MARKETPLACE_FACILITATOR", "responsibleParty": "Amazon Services" }]);
            painted.insert("tax".into(), json!({ "taxCollections": collections }));
        }
        Value::Object(painted)
    }

    fn paint_product(&mut self, item: &Item, at: &str) -> Value {
        let mut draw = self.draw(32 + item.place);
        let mut product = Map::new();
        product.insert("asin".into(), json!(item.asin));
        product.insert("title".into(), json!(format!("Simulated product \"{}\" – {}", item.sku, self.market.country)));
        product.insert("sellerSku".into(), json!(item.sku));
        product.insert("condition".into(), json!({ "conditionType": "NEW", "conditionSubtype": "NEW" }));
        if self.seen.status != Status::Pending {
            product.insert("price".into(), json!({ "unitPrice": self.money(item.unit) }));
        }
        if draw.chance(60) {
            let mut customization = Map::new();
            let value = self.person.customised_url(item.place);
            self.put(&mut customization, (&format!("{at}.product.customization"), "customizedUrl"), "customization", value, true);
            product.insert("customization".into(), Value::Object(customization));
        }
        if !self.timeline.merchant && draw.chance(40) {
            let mut holder = Map::new();
            let value = self.person.serial(item.place);
            self.put(&mut holder, (&format!("{at}.product"), "serialNumbers[0]"), "customization", value, true);
            product.insert("serialNumbers".into(), holder.into_iter().map(|(_, serial)| serial).collect());
        }
        Value::Object(product)
    }

    fn item_proceeds(&self, item: &Item) -> Value {
        let mut breakdowns = vec![
            json!({ "type": "ITEM", "subtotal": self.money(item.unit * item.quantity) }),
            json!({ "type": "TAX", "subtotal": self.money(item.tax), "detailedBreakdowns": [{ "subtype": "ITEM", "value": self.money(item.tax) }] }),
        ];
        if item.shipping > 0 {
            breakdowns.push(json!({ "type": "SHIPPING", "subtotal": self.money(item.shipping) }));
        }
        if item.discount > 0 {
            breakdowns.push(json!({ "type": "DISCOUNT", "subtotal": self.money(-item.discount) }));
        }
        json!({ "proceedsTotal": self.money(item.total()), "breakdowns": breakdowns })
    }

    fn paint_cancellation(&mut self, item: &Item, at: &str, painted: &mut Map<String, Value>) {
        if !self.included.has("CANCELLATION") {
            return;
        }
        let mut cancellation = Map::new();
        // Some buyers ask for it in vain: the request then stands beside an order that ships.
        let cancelled = self.seen.status == Status::Cancelled;
        if self.seen.released && (cancelled || self.draw(48 + item.place).chance(15)) {
            let mut request = Map::new();
            request.insert("requester".into(), json!("BUYER"));
            let value = self.person.cancel_reason(item.place);
            self.put(&mut request, (&format!("{at}.cancellation.cancellationRequest"), "cancelReason"), "free_text", value, true);
            cancellation.insert("cancellationRequest".into(), Value::Object(request));
        }
        if cancelled {
            cancellation.insert("cancellationExecution".into(), json!({ "cancelledBy": "BUYER", "cancelReason": "BUYER_REQUESTED" }));
        }
        if !cancellation.is_empty() {
            painted.insert("cancellation".into(), Value::Object(cancellation));
        }
    }

    fn paint_item_fulfillment(&mut self, item: &Item, at: &str, items: usize, painted: &mut Map<String, Value>) {
        if !self.included.has("FULFILLMENT") {
            return;
        }
        let fulfilled = match self.seen.status {
            Status::Shipped => item.quantity,
            Status::PartiallyShipped if items > 1 && item.place.is_multiple_of(2) => item.quantity,
            Status::PartiallyShipped | Status::Pending | Status::Unshipped | Status::Cancelled | Status::Unfulfillable => 0,
        };
        let mut fulfillment = Map::new();
        fulfillment.insert("quantityFulfilled".into(), json!(fulfilled));
        fulfillment.insert("quantityUnfulfilled".into(), json!(item.quantity - fulfilled));
        if self.draw(64 + item.place).chance(80) {
            let mut gift = Map::new();
            let value = self.person.gift_message(item.place);
            self.put(&mut gift, (&format!("{at}.fulfillment.packing.giftOption"), "giftMessage"), "gift", value, self.seen.released);
            gift.insert("giftWrapLevel".into(), json!("Classic"));
            fulfillment.insert("packing".into(), json!({ "giftOption": gift }));
        }
        painted.insert("fulfillment".into(), Value::Object(fulfillment));
    }
}
