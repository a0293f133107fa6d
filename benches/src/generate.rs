//! Orders as Amazon's `getOrder` (Orders 2026-01-01) answers them, the same from the same seed on every machine.
//!
//! An order is 1.9 KB of JSON: one item, proceeds, fulfilment and the recipient's address, as an application gets it that asks for the
//! recipient and nothing else personal. No value is of a real person.

use std::fmt::Write as _;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sunder_schemas::time::Timestamp;

/// 2026-11-02T00:00:00Z: the first version of the first order.
const FIRST_DAY: Timestamp = Timestamp(1_793_577_600_000);

const FIRST: [&str; 8] = ["Jana", "Ole", "Mira", "Tomas", "Ines", "Piet", "Lena", "Yusuf"];
const LAST: [&str; 8] = ["Beispiel", "Muster", "Example", "Ejemplo", "Esempio", "Voorbeeld", "Exemple", "Probe"];
const STREETS: [&str; 4] = ["Musterweg", "Beispielallee", "Probestrasse", "Am Testfeld"];
const CITIES: [&str; 4] = ["Musterstadt", "Beispielhausen", "Probeheim", "Testdorf"];

/// Draws orders from a seed.
#[derive(Debug, Clone)]
pub struct Generator {
    random: ChaCha8Rng,
}

impl Generator {
    /// A generator; equal seeds give equal orders.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed) }
    }

    fn pick(&mut self, list: &[&'static str]) -> &'static str {
        let index = self.random.random_range(0..list.len());
        list.get(index).copied().unwrap_or_default()
    }

    /// Which order the `nth` of a stream of updates is about: a new one each `every` updates, else one of the `recent` last.
    pub fn order_of(&mut self, nth: u64, every: u64, recent: u64) -> u64 {
        let newest = nth / every.max(1);
        if nth.is_multiple_of(every.max(1)) { newest } else { newest - self.random.random_range(0..=newest.min(recent)) }
    }

    /// The answer of `getOrder` for order `number` in its version `version` (seconds after the first day of the stream).
    pub fn get_order(&mut self, number: u64, version: u64, out: &mut String) {
        out.push_str("{\"order\":");
        self.order(number, version, out);
        out.push('}');
    }

    /// A page of `searchOrders` with the orders `numbers`.
    pub fn search_orders(&mut self, numbers: std::ops::Range<u64>, version: u64, out: &mut String) {
        out.push_str("{\"orders\":[");
        let first = numbers.start;
        for number in numbers {
            if number > first {
                out.push(',');
            }
            self.order(number, version, out);
        }
        out.push_str("],\"lastUpdatedBefore\":\"2026-11-22T00:00:00Z\",\"pagination\":{}}");
    }

    /// The order itself.
    pub fn order(&mut self, number: u64, version: u64, out: &mut String) {
        let (first, last) = (self.pick(&FIRST), self.pick(&LAST));
        let (street, city) = (self.pick(&STREETS), self.pick(&CITIES));
        let house: u32 = self.random.random_range(1..200);
        let postal: u32 = self.random.random_range(10_000..99_999);
        let quantity: u32 = self.random.random_range(1..4);
        let cents: u32 = self.random.random_range(500..20_000);
        let (unit, total, tax) = (euros(cents), euros(cents * quantity), euros(cents * quantity * 19 / 119));
        let updated = stamp(version);
        let (id, asin) = (order_id(number), asin(number));
        // Writing to a String cannot fail.
        _ = write!(out, r#"{{"orderId":"{id}","createdTime":"2026-11-01T08:15:30Z","lastUpdatedTime":"{updated}","programs":["PRIME"],"#);
        out.push_str(r#""salesChannel":{"channelName":"AMAZON","marketplaceId":"A1PA6795UKMFR9","marketplaceName":"Amazon.de"},"#);
        _ = write!(
            out,
            r#""recipient":{{"deliveryAddress":{{"name":"{first} {last}","addressLine1":"{street} {house}","addressLine2":"Hinterhaus, {first} {last}","city":"{city}","stateOrRegion":"Bayern","postalCode":"{postal}","countryCode":"DE","addressType":"RESIDENTIAL"}}}},"#
        );
        _ = write!(
            out,
            r#""orderItems":[{{"orderItemId":"{item:014}","quantityOrdered":{quantity},"product":{{"asin":"B0{asin:08}","title":"Simulated kitchen scale \"{asin}\", up to 5 kg, stainless steel, batteries included","sellerSku":"SKU-{asin}","condition":{{"conditionType":"NEW","conditionSubtype":"NEW"}},"price":{{"unitPrice":{{"amount":"{unit}","currencyCode":"EUR"}}}}}},"proceeds":{{"proceedsTotal":{{"amount":"{total}","currencyCode":"EUR"}},"breakdowns":[{{"type":"ITEM","subtotal":{{"amount":"{total}","currencyCode":"EUR"}}}},{{"type":"TAX","subtotal":{{"amount":"{tax}","currencyCode":"EUR"}}}}]}},"fulfillment":{{"quantityFulfilled":0,"quantityUnfulfilled":{quantity}}},"tax":{{"taxCollections":[{{"model":"MARKETPLACE_FACILITATOR","responsibleParty":"Amazon Services"}}]}}}}],"#,
            item = 50_000_000_000_000 + number,
        );
        _ = write!(
            out,
            r#""proceeds":{{"grandTotal":{{"amount":"{total}","currencyCode":"EUR"}},"breakdowns":[{{"type":"ITEM","status":"ESTIMATED","subtotal":{{"amount":"{total}","currencyCode":"EUR"}}}}]}},"#
        );
        out.push_str(r#""payment":{"paymentExecutions":[{"paymentMethod":"Standard"}]},"tax":{"taxInvoicing":{"buyerInvoicePreference":"INDIVIDUAL","invoiceStatus":"Pending"}},"#);
        out.push_str(r#""fulfillment":{"fulfillmentStatus":"UNSHIPPED","fulfilledBy":"MERCHANT","fulfillmentServiceLevel":"STANDARD","shipByWindow":{"earliestDateTime":"2026-11-02T00:00:00Z","latestDateTime":"2026-11-03T22:59:59Z"},"deliverByWindow":{"earliestDateTime":"2026-11-04T00:00:00Z","latestDateTime":"2026-11-09T22:59:59Z"}}}"#);
    }
}

/// The id of order `number`.
#[must_use]
pub fn order_id(number: u64) -> String {
    format!("302-{number:07}-{:07}", asin(number))
}

/// Number of the one product of order `number`.
const fn asin(number: u64) -> u64 {
    1_000_000 + number % 5_000
}

fn euros(cents: u32) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// `seconds` after 2026-11-02T00:00:00Z, as SP-API writes it.
fn stamp(seconds: u64) -> String {
    let since = i64::try_from(seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
    Timestamp(FIRST_DAY.0.saturating_add(since)).to_iso()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_of_the_size_the_benches_speak_of() {
        let mut generator = Generator::new(1);
        for number in [0, 7, 1_999_999] {
            let mut order = String::new();
            generator.order(number, number, &mut order);
            assert!((1_800..2_000).contains(&order.len()), "{}", order.len());
        }
    }

    #[test]
    fn one_of_ten_updates_is_of_a_new_order_and_none_of_one_to_come() {
        let mut generator = Generator::new(1);
        let mut seen = std::collections::HashSet::new();
        let new = (0..10_000).filter(|nth| seen.insert(generator.order_of(*nth, 10, 500))).count();
        assert_eq!(new, 1_000);
    }

    #[test]
    fn equal_seeds_give_equal_orders() {
        let order = |seed| {
            let mut out = String::new();
            Generator::new(seed).get_order(3, 4, &mut out);
            out
        };
        assert_eq!(order(5), order(5));
        assert_ne!(order(5), order(6));
    }
}
