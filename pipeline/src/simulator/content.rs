//! An order as JSON, shaped as Amazon's model of Orders 2026-01-01, for one caller at one instant.

use serde_json::{Map, Value, json};

use super::draw::{Draw, Stream};
use super::iso;
use super::items::{Item, draw_items};
use super::market::Market;
use super::personal::{Person, PersonalValue, Secret};
use super::timeline::{ParcelEnd, Seen, Status, Timeline};
use super::world::{Seller, World};

/// The names that `includedData` takes, in the model's order; a set of them is a bit mask.
const DATA_SETS: [&str; 11] = [
    "BUYER",
    "RECIPIENT",
    "PROCEEDS",
    "EXPENSE",
    "PROMOTION",
    "CANCELLATION",
    "FULFILLMENT",
    "PACKAGES",
    "TAX",
    "PAYMENT",
    "FULFILLMENT_ORDERS",
];

/// The data sets a caller asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Included(u16);

impl Included {
    /// Every data set.
    pub(super) const ALL: Self = Self(u16::MAX);

    /// Adds the data set `name`; false if there is none.
    pub(super) fn add(&mut self, name: &str) -> bool {
        let place = DATA_SETS.iter().position(|known| *known == name);
        self.0 |= place.map_or(0, |bit| 1 << bit);
        place.is_some()
    }

    /// Whether `name` is among them.
    pub(super) fn has(self, name: &str) -> bool {
        DATA_SETS.iter().position(|known| *known == name).is_some_and(|bit| self.0 >> bit & 1 == 1)
    }

    /// Whether any of them holds the buyer or the recipient.
    pub(super) fn needs_role(self) -> bool {
        self.has("BUYER") || self.has("RECIPIENT") || self.has("TAX")
    }
}

/// Writes one order; on the way it notes each personal value, if asked to.
pub(super) struct Painter<'a> {
    pub(super) world: &'a World,
    pub(super) seller: &'a Seller,
    pub(super) order: u32,
    pub(super) timeline: &'a Timeline,
    pub(super) seen: &'a Seen,
    pub(super) included: Included,
    pub(super) market: &'a Market,
    pub(super) person: Person<'a>,
    id: String,
    b2b: bool,
    noted: Option<Vec<PersonalValue>>,
}

/// The order as the seller's application sees it, with the data sets of `included`.
pub(super) fn order(world: &World, seller: &Seller, order: u32, seen: &Seen, included: Included) -> Option<Value> {
    Painter::new(world, seller, order, seen, included, false).map(|mut painter| painter.paint())
}

/// Every personal value the order has, allowed or not.
pub(super) fn personal(world: &World, seller: &Seller, order: u32, seen: &Seen) -> Vec<PersonalValue> {
    let Some(mut painter) = Painter::new(world, seller, order, seen, Included::ALL, true) else { return Vec::new() };
    painter.paint();
    painter.noted.unwrap_or_default()
}

impl<'a> Painter<'a> {
    fn new(world: &'a World, seller: &'a Seller, order: u32, seen: &'a Seen, included: Included, note: bool) -> Option<Self> {
        let timeline = world.timeline(order)?;
        let market = seller.markets.get(timeline.market).copied()?;
        let b2b = Draw::new(world.size.seed, Stream::Content, u64::from(order), 2).chance(80);
        let person = Person::of(world.size.seed, order, market);
        let id = world.order_id(order);
        Some(Self { world, seller, order, timeline, seen, included, market, person, id, b2b, noted: note.then(Vec::new) })
    }

    /// Draws for the part `part` of this order's business content.
    pub(super) fn draw(&self, part: u64) -> Draw {
        Draw::new(self.world.size.seed, Stream::Content, u64::from(self.order), part)
    }

    /// Puts a personal value at `key` if it is allowed, and notes it either way.
    pub(super) fn put(&mut self, map: &mut Map<String, Value>, at: (&str, &str), group: &'static str, secret: Secret, allowed: bool) {
        let (parent, key) = at;
        if let Some(noted) = &mut self.noted {
            noted.push(PersonalValue {
                seller: self.seller.id.clone(),
                order: self.id.clone(),
                group,
                path: if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") },
                value: secret.value.clone(),
                needle: secret.needle,
                allowed,
            });
        }
        if allowed {
            map.insert(key.to_owned(), Value::String(secret.value));
        }
    }

    /// Money of `minor` units.
    pub(super) fn money(&self, minor: i64) -> Value {
        json!({ "amount": self.market.amount(minor), "currencyCode": self.market.currency })
    }

    fn paint(&mut self) -> Value {
        let items = draw_items(self.world, self.seller, self.order);
        let mut order = Map::new();
        let id = Secret { value: self.id.clone(), needle: Some(self.id.clone()) };
        self.put(&mut order, ("", "orderId"), "identifiers", id, true);
        order.insert("createdTime".into(), json!(iso(self.timeline.created)));
        order.insert("lastUpdatedTime".into(), json!(iso(self.seen.updated)));
        order.insert(
            "salesChannel".into(),
            json!({ "channelName": "AMAZON", "marketplaceId": self.market.id, "marketplaceName": self.market.name }),
        );
        self.paint_relations(&mut order);
        self.paint_buyer(&mut order);
        self.paint_recipient(&mut order);
        let painted: Vec<Value> = items.iter().map(|item| self.paint_item(item, items.len())).collect();
        order.insert("orderItems".into(), Value::Array(painted));
        self.paint_totals(&mut order, &items);
        self.paint_fulfillment(&mut order);
        self.paint_packages(&mut order, &items);
        self.paint_tax(&mut order);
        self.paint_payment(&mut order, &items);
        self.paint_unknown(&mut order);
        Value::Object(order)
    }

    fn paint_relations(&mut self, order: &mut Map<String, Value>) {
        let mut draw = self.draw(3);
        let mut programs = Vec::new();
        if self.b2b {
            programs.push("AMAZON_BUSINESS");
        }
        if draw.chance(400) {
            programs.push("PRIME");
        }
        if !programs.is_empty() {
            order.insert("programs".into(), json!(programs));
        }
        if draw.chance(120) {
            let mut alias = Map::new();
            let value = self.person.alias();
            self.put(&mut alias, ("orderAliases[0]", "aliasId"), "identifiers", value, true);
            alias.insert("aliasType".into(), json!("SELLER_ORDER_ID"));
            order.insert("orderAliases".into(), json!([alias]));
        }
        // A replacement names the order it replaces: another of the same seller.
        let step = self.world.size.sellers;
        if self.order >= step && draw.chance(25) {
            let original = self.world.order_id(self.order - step);
            order.insert("associatedOrders".into(), json!([{ "orderId": original, "associationType": "REPLACEMENT_ORIGINAL_ID" }]));
        }
    }

    /// Whether the buyer is known at all now: once released, and while the order is not cancelled.
    fn buyer_open(&self) -> bool {
        self.seller.has_role && matches!(self.seen.status, Status::Unshipped | Status::PartiallyShipped | Status::Shipped)
    }

    fn paint_buyer(&mut self, order: &mut Map<String, Value>) {
        if !self.included.has("BUYER") {
            return;
        }
        let open = self.buyer_open();
        // In US, JP and SG the tax roles do not open the name of an Amazon-fulfilled order (FACTS section 5).
        let name = open && (self.timeline.merchant || !matches!(self.market.country, "US" | "JP" | "SG"));
        let mut buyer = Map::new();
        let value = self.person.buyer_name();
        self.put(&mut buyer, ("buyer", "buyerName"), "buyer_name", value, name);
        let value = self.person.email();
        self.put(&mut buyer, ("buyer", "buyerEmail"), "buyer_contact", value, open && self.timeline.merchant);
        if self.b2b {
            let value = self.person.company();
            self.put(&mut buyer, ("buyer", "buyerCompanyName"), "buyer_name", value, open);
            let value = self.person.purchase_order();
            self.put(&mut buyer, ("buyer", "buyerPurchaseOrderNumber"), "tax_identity", value, open);
        }
        if !buyer.is_empty() {
            order.insert("buyer".into(), Value::Object(buyer));
        }
    }

    fn paint_recipient(&mut self, order: &mut Map<String, Value>) {
        if !self.included.has("RECIPIENT") {
            return;
        }
        // A cancelled order keeps its address if it was ever released; a pending one has none.
        let known = self.seen.released;
        let open = known && self.seller.has_role;
        let mut address = Map::new();
        self.paint_address(&mut address, open);
        if known {
            address.insert("stateOrRegion".into(), json!(format!("Region {}", self.order % 16)));
            address.insert("countryCode".into(), json!(self.market.country));
            address.insert("addressType".into(), json!(if self.b2b { "COMMERCIAL" } else { "RESIDENTIAL" }));
        }
        let mut recipient = Map::new();
        if !address.is_empty() {
            recipient.insert("deliveryAddress".into(), Value::Object(address));
        }
        self.paint_preference(&mut recipient, open && self.timeline.merchant);
        if !recipient.is_empty() {
            order.insert("recipient".into(), Value::Object(recipient));
        }
    }

    fn paint_address(&mut self, address: &mut Map<String, Value>, open: bool) {
        const AT: &str = "recipient.deliveryAddress";
        const GROUP: &str = "recipient_address";
        let mut draw = self.draw(4);
        let (second, third, district) = (draw.chance(400), draw.chance(100), draw.chance(150));
        let mut fields = vec![("name", self.person.recipient_name()), ("addressLine1", self.person.line(0))];
        if self.b2b {
            fields.push(("companyName", self.person.recipient_company()));
        }
        if second {
            fields.push(("addressLine2", self.person.line(1)));
        }
        if third {
            fields.push(("addressLine3", self.person.line(2)));
        }
        fields.push(("city", self.person.city()));
        fields.push(("postalCode", self.person.postal_code()));
        if district {
            fields.push(("districtOrCounty", self.person.district()));
        }
        if self.market.country == "TR" {
            fields.push(("municipality", self.person.municipality()));
        }
        for (key, value) in fields {
            self.put(address, (AT, key), GROUP, value, open);
        }
        if self.market.country == "BR" {
            let mut extended = Map::new();
            for (key, value) in [("streetName", self.person.street()), ("neighborhood", self.person.neighbourhood())] {
                self.put(&mut extended, ("recipient.deliveryAddress.extendedFields", key), GROUP, value, open);
            }
            if !extended.is_empty() {
                address.insert("extendedFields".into(), Value::Object(extended));
            }
        }
        // No phone for Amazon's own deliveries, nor after the latest promise of a shipped order (the model's note).
        let late = self.seen.status == Status::Shipped && self.seen.as_of > self.timeline.deliver_by;
        let value = self.person.phone();
        self.put(address, (AT, "phone"), "buyer_contact", value, open && self.timeline.merchant && !late);
    }

    fn paint_preference(&mut self, recipient: &mut Map<String, Value>, open: bool) {
        const AT: &str = "recipient.deliveryPreference";
        const GROUP: &str = "delivery_instructions";
        let mut draw = self.draw(5);
        if !draw.chance(200) {
            return;
        }
        let mut preference = Map::new();
        let value = self.person.instruction();
        self.put(&mut preference, (AT, "addressInstruction"), GROUP, value, open);
        let value = self.person.drop_off();
        self.put(&mut preference, (AT, "dropOffLocation"), GROUP, value, open);
        if open && self.b2b {
            let hours = json!([{ "startTime": { "hour": 9, "minute": 30 }, "endTime": { "hour": 17, "minute": 0 } }]);
            preference.insert(
                "deliveryTime".into(),
                json!({
                    "businessHours": [{ "dayOfWeek": "MON", "timeWindows": hours }],
                    "exceptionDates": [{ "exceptionDate": iso(self.timeline.deliver_by).get(..10), "exceptionDateType": "CLOSED" }],
                }),
            );
            preference.insert("deliveryCapabilities".into(), json!(["HAS_ACCESS_POINT"]));
        }
        if !preference.is_empty() {
            recipient.insert("deliveryPreference".into(), Value::Object(preference));
        }
    }

    fn paint_totals(&self, order: &mut Map<String, Value>, items: &[Item]) {
        // Pending orders have no prices (FACTS section 7).
        if !self.included.has("PROCEEDS") || self.seen.status == Status::Pending {
            return;
        }
        let total: i64 = items.iter().map(Item::total).sum();
        let goods: i64 = items.iter().map(|item| item.unit * item.quantity).sum();
        let tax: i64 = items.iter().map(|item| item.tax).sum();
        order.insert(
            "proceeds".into(),
            json!({
                "grandTotal": self.money(total),
                "breakdowns": [
                    { "type": "ITEM", "subtotal": self.money(goods) },
                    { "type": "TAX", "subtotal": self.money(tax) },
                    { "type": "OTHER", "subtotal": self.money(total - goods - tax) },
                ],
            }),
        );
    }

    fn paint_fulfillment(&self, order: &mut Map<String, Value>) {
        if !self.included.has("FULFILLMENT") {
            return;
        }
        let mut draw = self.draw(6);
        let mut fulfillment = Map::new();
        fulfillment.insert("fulfillmentStatus".into(), json!(self.seen.status.as_str()));
        fulfillment.insert("fulfilledBy".into(), json!(if self.timeline.merchant { "MERCHANT" } else { "AMAZON" }));
        fulfillment.insert("fulfillmentServiceLevel".into(), json!(draw.pick(&["STANDARD", "EXPEDITED", "SECOND_DAY", "FREE_ECONOMY"])));
        let window = |from: i64, to: i64| json!({ "earliestDateTime": iso(from), "latestDateTime": iso(to) });
        fulfillment.insert("shipByWindow".into(), window(self.timeline.created, self.timeline.ship_by));
        // The delivery promise is given for merchant-fulfilled orders alone (FACTS section 10).
        if self.timeline.merchant {
            fulfillment.insert("deliverByWindow".into(), window(self.timeline.ship_by, self.timeline.deliver_by));
        }
        order.insert("fulfillment".into(), Value::Object(fulfillment));
    }

    fn paint_packages(&mut self, order: &mut Map<String, Value>, items: &[Item]) {
        if !self.included.has("PACKAGES") || !self.timeline.merchant {
            return;
        }
        let count = self.seen.parcels.len();
        let mut packages = Vec::new();
        for (number, parcel) in self.seen.parcels.clone().into_iter().enumerate() {
            let (status, detail) = match parcel.end {
                Some(ParcelEnd::Delivered) => ("DELIVERED", "DELIVERED"),
                Some(ParcelEnd::Undeliverable) => ("UNDELIVERABLE", "RETURNED_TO_SELLER"),
                None => ("IN_TRANSIT", "PICKED_UP"),
            };
            let mut package = Map::new();
            // Half of the merchants count parcels from 1, which is unique within the order alone.
            let reference = if self.order.is_multiple_of(2) { format!("{}", number + 1) } else { format!("PKG-{}-{number}", self.order) };
            package.insert("packageReferenceId".into(), json!(reference));
            package.insert("createdTime".into(), json!(iso(parcel.shipped - 3_600_000)));
            package.insert("packageStatus".into(), json!({ "status": status, "detailedStatus": detail }));
            package.insert("carrier".into(), json!("DHL"));
            package.insert("shipTime".into(), json!(iso(parcel.shipped)));
            package.insert("shippingService".into(), json!("DHL Paket"));
            let value = self.person.tracking(number as u64);
            self.put(&mut package, (&format!("packages[{number}]"), "trackingNumber"), "tracking", value, true);
            package.insert(
                "shipFromAddress".into(),
                json!({ "name": "Warehouse North", "addressLine1": "Dock 7", "city": "Hamburg", "postalCode": "20457", "countryCode": "DE" }),
            );
            package.insert("packageItems".into(), self.package_items(items, number, count.max(usize::from(self.timeline.parcels))));
            packages.push(Value::Object(package));
        }
        if !packages.is_empty() {
            order.insert("packages".into(), Value::Array(packages));
        }
    }

    /// Items take turns over the parcels; a parcel that gets none holds one unit of the first item.
    fn package_items(&self, items: &[Item], number: usize, parcels: usize) -> Value {
        let mut held: Vec<Value> = items
            .iter()
            .enumerate()
            .filter(|(place, _)| place % parcels.max(1) == number)
            .map(|(_, item)| json!({ "orderItemId": item.id, "quantity": item.quantity }))
            .collect();
        if held.is_empty() {
            held.extend(items.first().map(|item| json!({ "orderItemId": item.id, "quantity": 1 })));
        }
        Value::Array(held)
    }

    fn paint_tax(&mut self, order: &mut Map<String, Value>) {
        if !self.included.has("TAX") || !self.b2b {
            return;
        }
        const AT: &str = "tax.taxRegistrations[0]";
        const GROUP: &str = "tax_identity";
        let open = self.buyer_open();
        let mut buyer = Map::new();
        let value = self.person.tax_name();
        self.put(&mut buyer, (AT, "legalName"), GROUP, value, open);
        let value = self.person.tax_number();
        self.put(&mut buyer, (AT, "taxRegistrationNumber"), GROUP, value, open);
        let mut address = Map::new();
        let value = self.person.tax_line();
        self.put(&mut address, ("tax.taxRegistrations[0].taxRegistrationAddress", "addressLine1"), GROUP, value, open);
        let mut attribute = Map::new();
        let value = self.person.tax_office();
        self.put(&mut attribute, ("tax.taxRegistrations[0].taxRegistrationAttributes[0]", "value"), GROUP, value, open);
        let mut registrations = Vec::new();
        if open {
            attribute.insert("key".into(), json!("TAX_OFFICE"));
            buyer.insert("entityType".into(), json!("BUYER"));
            buyer.insert("taxRegistrationType".into(), json!("VAT"));
            buyer.insert("taxRegistrationAddress".into(), Value::Object(address));
            buyer.insert("taxRegistrationAttributes".into(), json!([attribute]));
            registrations.push(Value::Object(buyer));
        }
        registrations.push(json!({
            "entityType": "MERCHANT", "legalName": "Simulated Merchant Ltd", "taxRegistrationType": "VAT", "taxRegistrationNumber": "GB000000000",
        }));
        let mut tax = Map::new();
        tax.insert("taxRegistrations".into(), Value::Array(registrations));
        if self.market.country == "TR" {
            tax.insert("taxInvoicing".into(), json!({ "buyerInvoicePreference": "BUSINESS" }));
        }
        order.insert("tax".into(), Value::Object(tax));
    }

    fn paint_payment(&mut self, order: &mut Map<String, Value>, items: &[Item]) {
        if !self.included.has("PAYMENT") || self.seen.status == Status::Pending || !self.draw(7).chance(300) {
            return;
        }
        const AT: &str = "payment.paymentExecutions[0]";
        let mut execution = Map::new();
        execution.insert("paymentMethod".into(), json!("CreditCard"));
        execution.insert("paymentAmount".into(), self.money(items.iter().map(Item::total).sum()));
        execution.insert("acquirerId".into(), json!("SIMULATED-ACQUIRER"));
        let value = self.person.card();
        self.put(&mut execution, (AT, "cardBrand"), "payment", value, true);
        let value = self.person.authorisation();
        self.put(&mut execution, (AT, "authorizationCode"), "payment", value, true);
        order.insert("payment".into(), json!({ "paymentExecutions": [execution] }));
    }

    /// Fields that no model knows, as Amazon adds them every month, with values a careless reader would pass on.
    fn paint_unknown(&mut self, order: &mut Map<String, Value>) {
        let mut draw = self.draw(8);
        if !draw.chance(u64::from(self.world.size.unknown_per_mille)) {
            return;
        }
        let (value, name) = (self.person.unknown(0), self.person.unknown(1));
        let mut hidden = Map::new();
        match draw.below(4) {
            0 => self.put(&mut hidden, ("loyaltyProfile", "memberName"), "unclassified", value, true),
            1 => {
                // The property's name is itself personal.
                let key = name.value.clone();
                self.put(&mut hidden, ("loyaltyProfile", &key), "unclassified", value, true);
            }
            2 => {
                let mut inner = Map::new();
                self.put(&mut inner, ("loyaltyProfile.history[0][1]", "deliveredTo"), "unclassified", value, true);
                hidden.insert("history".into(), json!([[null, inner]]));
            }
            _ => {
                let mut inner = Map::new();
                self.put(&mut inner, ("orderItems[0].product.engraving", "text"), "unclassified", value, true);
                let item = order.get_mut("orderItems").and_then(|items| items.get_mut(0));
                let product = item.and_then(|item| item.get_mut("product")).and_then(Value::as_object_mut);
                if let Some(product) = product {
                    product.insert("engraving".into(), Value::Object(inner));
                }
                return;
            }
        }
        order.insert("loyaltyProfile".into(), Value::Object(hidden));
    }
}
