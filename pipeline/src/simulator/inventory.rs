//! FBA inventory rows: quantities as a pure function of seed and time.

use serde_json::{Map, Value, json};

use super::draw::{Draw, Stream};
use super::world::{Seller, World};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// SKUs as sellers really write them: everything that must be percent-encoded, and more.
const ODD_SKUS: &[&str] = &[
    "A/B+C",
    "50% off & more",
    "trailing space ",
    "Größe-ÄÖÜß",
    "日本語-商品",
    "quote\"back\\slash",
    "emoji-📦",
    "a,b;c=d?e#f",
    "tab\tinside",
];

/// One row: a SKU in a condition in one marketplace.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The seller's SKU.
    pub(super) sku: String,
    /// When a quantity last changed; none where Amazon does not say.
    pub(super) updated: Option<i64>,
    number: u64,
    version: u64,
    asin: String,
    fn_sku: String,
}

/// SKU number `number` of a seller; one in six is odd.
pub(super) fn sku(seed: u64, seller: u32, number: u64) -> String {
    let mut draw = Draw::new(seed, Stream::Inventory, u64::from(seller), number);
    let plain = format!("SKU-{number:04}-{}", draw.word(5));
    match number % 6 {
        3 => format!("{}-{number}{}", draw.word(2), draw.pick(ODD_SKUS)),
        _ => plain,
    }
}

/// ASIN of SKU number `number` of a seller.
pub(super) fn asin(seed: u64, seller: u32, number: u64) -> String {
    format!("B0{}", Draw::new(seed, Stream::Inventory, u64::from(seller) + (1 << 32), number).word(8))
}

/// The rows of `seller` in the marketplace number `market` as of `as_of`, by SKU number; vanished SKUs are missing.
pub(super) fn rows(world: &World, seller: &Seller, market: usize, as_of: i64) -> Vec<Row> {
    (0..u64::from(world.size.inventory_rows)).filter_map(|number| row(world, seller, market, number, as_of)).collect()
}

fn row(world: &World, seller: &Seller, market: usize, number: u64, as_of: i64) -> Option<Row> {
    let (seed, anchor) = (world.size.seed, world.size.anchor);
    let mut draw = Draw::new(seed, Stream::Inventory, u64::from(seller.number) + (2 << 32), number << 8 | market as u64);
    // Three in a hundred SKUs are deleted some time after the anchor: they just stop appearing.
    let vanishes = draw.chance(30).then(|| anchor + draw.between(DAY, 20 * DAY));
    if vanishes.is_some_and(|at| at <= as_of) {
        return None;
    }
    let period = draw.between(2 * HOUR, 5 * DAY);
    let start = anchor - 60 * DAY - draw.between(0, period);
    let version = (as_of - start).max(0) / period;
    // One in forty never had a quantity change that Amazon reports.
    let updated = (!draw.chance(25)).then_some((start + version * period) / 1000 * 1000);
    Some(Row {
        sku: sku(seed, seller.number, number),
        updated,
        number,
        version: version.unsigned_abs(),
        asin: asin(seed, seller.number, number),
        fn_sku: format!("X00{}", draw.word(7)),
    })
}

impl Row {
    /// The row as Amazon's `InventorySummary`, with quantities if `details`.
    pub(super) fn render(&self, world: &World, seller: &Seller, details: bool, as_of: i64) -> Value {
        let mut draw = Draw::new(
            world.size.seed,
            Stream::Inventory,
            u64::from(seller.number) + (3 << 32),
            self.number << 24 | self.version & 0xFF_FFFF,
        );
        let mut quantity = |limit: u64| draw.below(limit);
        let (fulfillable, pending, transit, processing) = (quantity(900), quantity(40), quantity(20), quantity(5));
        let (damaged, defective) = (quantity(4), quantity(3));
        // Inbound quantities move without a new lastUpdatedTime, as the model warns.
        let day = (as_of / DAY).unsigned_abs();
        let mut inbound =
            Draw::new(world.size.seed, Stream::Inventory, u64::from(seller.number) + (4 << 32), self.number << 24 | day & 0xFF_FFFF);
        let (working, shipped, receiving) = (inbound.below(30), inbound.below(60), inbound.below(10));
        let reserved = pending + transit + processing;
        let mut summary = Map::new();
        summary.insert("asin".into(), json!(self.asin));
        summary.insert("fnSku".into(), json!(self.fn_sku));
        summary.insert("sellerSku".into(), json!(self.sku));
        summary.insert("condition".into(), json!(if self.number % 17 == 5 { "UsedGood" } else { "NewItem" }));
        summary.insert("productName".into(), json!(format!("Simulated product {}", self.number)));
        summary.insert("totalQuantity".into(), json!(fulfillable + reserved + damaged + defective + working + shipped + receiving));
        if let Some(at) = self.updated {
            summary.insert("lastUpdatedTime".into(), json!(super::seconds(at)));
        }
        if details {
            summary.insert(
                "inventoryDetails".into(),
                json!({
                    "fulfillableQuantity": fulfillable,
                    "inboundWorkingQuantity": working,
                    "inboundShippedQuantity": shipped,
                    "inboundReceivingQuantity": receiving,
                    "reservedQuantity": {
                        "totalReservedQuantity": reserved,
                        "pendingCustomerOrderQuantity": pending,
                        "pendingTransshipmentQuantity": transit,
                        "fcProcessingQuantity": processing,
                    },
                    "researchingQuantity": { "totalResearchingQuantity": 0, "researchingQuantityBreakdown": [
                        { "name": "researchingQuantityInShortTerm", "quantity": 0 },
                        { "name": "researchingQuantityInMidTerm", "quantity": 0 },
                        { "name": "researchingQuantityInLongTerm", "quantity": 0 },
                    ] },
                    "unfulfillableQuantity": {
                        "totalUnfulfillableQuantity": damaged + defective,
                        "customerDamagedQuantity": damaged,
                        "warehouseDamagedQuantity": 0,
                        "distributorDamagedQuantity": 0,
                        "carrierDamagedQuantity": 0,
                        "defectiveQuantity": defective,
                        "expiredQuantity": 0,
                    },
                }),
            );
        }
        Value::Object(summary)
    }
}
