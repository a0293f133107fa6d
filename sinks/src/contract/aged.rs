//! Business rows leave by age: orders as a whole, inventory levels row by row.

use sunder_retention::store::{Aged, ScanReport};
use sunder_schemas::class::Family;
use sunder_schemas::records::{InventoryLevelRow, OrderRow};

use super::*;

const CUTOFF: Timestamp = Timestamp(1_750_000_000_000);

fn order(entity: u8, created: Timestamp) -> StateRecord {
    StateRecord::Order(OrderRow {
        attribution: attribution(1),
        source_version: 1,
        order_token: token(entity),
        status: Some(format!("MARKER-ORDER-{entity}").into()),
        created_at: created,
        updated_at: Timestamp(CUTOFF.0 + 1),
        sales_channel: None,
        marketplace_name: None,
        fulfilled_by: None,
        service_level: None,
        ship_by_earliest_at: None,
        ship_by_latest_at: None,
        deliver_by_earliest_at: None,
        deliver_by_latest_at: None,
        label_printing_earliest_at: None,
        label_printing_latest_at: None,
        total_amount: None,
        total_currency: None,
        programs: Vec::new(),
        ship_state_or_region: None,
        ship_country_code: None,
        address_type: None,
        alias_types: Vec::new(),
        associated_order_tokens: Vec::new(),
        association_types: Vec::new(),
        proceeds_types: Vec::new(),
        proceeds_statuses: Vec::new(),
        proceeds_amounts: Vec::new(),
        proceeds_currencies: Vec::new(),
        payment_methods: Vec::new(),
        payment_amounts: Vec::new(),
        payment_currencies: Vec::new(),
        payment_acquirer_ids: Vec::new(),
        tax_entity_types: Vec::new(),
        tax_registration_types: Vec::new(),
        buyer_invoice_preference: None,
        invoice_status: None,
        item_count: 0,
        item_tokens: Vec::new(),
        package_tokens: Vec::new(),
    })
}

fn level(entity: u8, seen: Timestamp) -> StateRecord {
    let mut from = (*attribution(1)).clone();
    from.collected_at = seen;
    StateRecord::InventoryLevel(InventoryLevelRow {
        attribution: Arc::new(from),
        source_version: 1,
        level_token: token(entity),
        sku: Some(format!("MARKER-SKU-{entity}").into()),
        fnsku: None,
        asin: None,
        condition: None,
        product_name: None,
        total_quantity: Some(1),
        fulfillable_quantity: None,
        inbound_working_quantity: None,
        inbound_shipped_quantity: None,
        inbound_receiving_quantity: None,
        reserved_total_quantity: None,
        reserved_customer_order_quantity: None,
        reserved_transshipment_quantity: None,
        reserved_processing_quantity: None,
        researching_total_quantity: None,
        researching_short_term_quantity: None,
        researching_mid_term_quantity: None,
        researching_long_term_quantity: None,
        unfulfillable_total_quantity: None,
        customer_damaged_quantity: None,
        warehouse_damaged_quantity: None,
        distributor_damaged_quantity: None,
        carrier_damaged_quantity: None,
        defective_quantity: None,
        expired_quantity: None,
        updated_at: None,
        stores: Vec::new(),
    })
}

/// Whether `marker` lies in any byte of the database's own files of `table`.
async fn holds(bench: &Bench<OfWarehouse>, table: &str, marker: &str) -> bool {
    if let Some(path) = bench.options.url.strip_prefix("sqlite://") {
        return ["", "-wal"].iter().any(|suffix| {
            let bytes = std::fs::read(format!("{path}{suffix}")).unwrap_or_default();
            bytes.windows(marker.len()).any(|window| window == marker.as_bytes())
        });
    }
    sqlx::query("CHECKPOINT").execute(&bench.sql).await.unwrap();
    let sql = format!(
        "SELECT CASE WHEN position('{marker}'::bytea IN pg_read_binary_file(pg_relation_filepath('{table}'))) > 0 THEN 1 ELSE 0 END"
    );
    let (held,): (i32,) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&bench.sql).await.unwrap();
    held == 1
}

#[tokio::test]
async fn rows_from_before_the_cutoff_are_found_deleted_and_wiped() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfWarehouse>::on(database).await else { continue };
        let (old, young) = (Timestamp(CUTOFF.0 - 1), CUTOFF);
        for (topic, records) in [
            ("sp.state.orders.v1", vec![order(1, old), order(2, young)]),
            ("sp.state.inventory_levels.v1", vec![level(11, old), level(12, young)]),
            ("sp.state.packages.v1", vec![OfWarehouse::record(1, 1, "MARKER-PACKAGE-1"), OfWarehouse::record(2, 1, "MARKER-PACKAGE-2")]),
        ] {
            let source = Source { topic: topic.to_owned(), incarnation: "one".to_owned(), partition: Partition(0) };
            let changes = (0..).zip(records).map(|(n, record)| Change::Upsert { offset: Offset(n), record }).collect();
            bench.store.apply(&source, None, Offset(2), changes).await.unwrap();
        }
        let aged = |family, entity| Aged { seller: seller(), family, token: token(entity) };
        assert_eq!(bench.store.aged(CUTOFF).await.unwrap(), [aged(Family::Orders, 1), aged(Family::Inventory, 11)], "{database}");

        // A level that is still listed is named too, for its old history: its row stays.
        let subjects = [subject(1), subject(11), subject(12)];
        let needles = Needles { gone: subjects.to_vec(), older_than: Some(CUTOFF), ..Needles::default() };
        let left = |report: ScanReport| report.found.into_iter().map(|found| found.place).collect::<Vec<_>>();
        let places = left(bench.store.scan(&needles).await.unwrap());
        assert_eq!(places, ["warehouse.orders: 1 rows", "warehouse.packages: 1 rows", "warehouse.inventory_levels: 1 rows"], "{database}");
        assert!(holds(&bench, "orders", "MARKER-ORDER-1").await, "the search finds what is there, on {database}");

        assert_eq!(bench.store.forget(&subjects, Extent::OlderThan(CUTOFF)).await.unwrap(), 3, "{database}");
        assert!(bench.store.aged(CUTOFF).await.unwrap().is_empty(), "{database}");
        assert!(left(bench.store.scan(&needles).await.unwrap()).is_empty(), "{database}");
        for (table, marker, stays) in [
            ("orders", "MARKER-ORDER-1", false),
            ("packages", "MARKER-PACKAGE-1", false),
            ("inventory_levels", "MARKER-SKU-11", false),
            ("orders", "MARKER-ORDER-2", true),
            ("packages", "MARKER-PACKAGE-2", true),
            ("inventory_levels", "MARKER-SKU-12", true),
        ] {
            assert_eq!(holds(&bench, table, marker).await, stays, "{marker} on {database}");
        }
    }
}
