//! Business rows leave by age: orders as a whole, inventory levels row by row.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _, PgConnection};
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

/// What was deleted past the store, so that nothing cleaned up behind it, lies in free space and in the planner's samples: the pseudonym
/// finds it there.
#[tokio::test]
async fn remnants_of_business_rows_are_found_by_pseudonym_and_go() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfWarehouse>::on(database).await else { continue };
        let source = Source { topic: "sp.state.orders.v1".to_owned(), incarnation: "one".to_owned(), partition: Partition(0) };
        let records = (1..=3).map(|entity| order(entity, Timestamp(CUTOFF.0 - 1)));
        let changes = (0..).zip(records).map(|(n, record)| Change::Upsert { offset: Offset(n), record }).collect();
        bench.store.apply(&source, None, Offset(3), changes).await.unwrap();
        let is_postgres = database == "postgres";
        let leave = if is_postgres { "ANALYZE orders" } else { "PRAGMA secure_delete = OFF" };
        sqlx::raw_sql(leave).execute(&bench.sql).await.unwrap();
        sqlx::raw_sql("DELETE FROM orders").execute(&bench.sql).await.unwrap();

        let subjects = [subject(1), subject(2), subject(3)];
        let needles = Needles { gone: subjects.to_vec(), older_than: Some(CUTOFF), ..Needles::default() };
        assert!(holds(&bench, "orders", "MARKER-ORDER-1").await, "the control is there, on {database}");
        let report = bench.store.scan(&needles).await.unwrap();
        let in_statistics = report.found.iter().filter(|found| found.place.contains("statistics")).count();
        assert_eq!(in_statistics, if is_postgres { 3 } else { 0 }, "{database}");
        assert!(report.method.contains("tables rewritten"), "{} on {database}", report.method);
        assert!(!holds(&bench, "orders", "MARKER-ORDER-1").await, "{database}");

        bench.store.forget(&subjects, Extent::OlderThan(CUTOFF)).await.unwrap();
        let report = bench.store.scan(&needles).await.unwrap();
        assert_eq!(report.found, [], "{database}");
        let rows: (i64,) = sqlx::query_as("SELECT count(*) FROM orders").fetch_one(&bench.sql).await.unwrap();
        assert_eq!(rows.0, 0, "the row of constants is gone, on {database}");
    }
}

/// A pseudonym in a row that lives on is no remnant of the order it names: it is told of.
#[tokio::test]
async fn a_reference_of_a_row_that_lives_on_is_told_and_does_not_block() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfWarehouse>::on(database).await else { continue };
        let source = Source { topic: "sp.state.orders.v1".to_owned(), incarnation: "one".to_owned(), partition: Partition(0) };
        let mut record = order(2, CUTOFF);
        if let StateRecord::Order(row) = &mut record {
            row.associated_order_tokens = vec![token(1)];
        }
        bench.store.apply(&source, None, Offset(1), vec![Change::Upsert { offset: Offset(0), record }]).await.unwrap();
        let needles = Needles { gone: vec![subject(1)], older_than: Some(CUTOFF), ..Needles::default() };
        let report = bench.store.scan(&needles).await.unwrap();
        assert_eq!(report.found, [], "{database}");
        let told = report.residual.iter().filter(|residual| residual.what.contains("1 pseudonyms of what was erased")).count();
        assert_eq!(told, 1, "{database}");
    }
}

/// Order 1, written and deleted past the store: it lies in free space alone.
async fn left_in_free_space(bench: &Bench<OfWarehouse>) -> Needles {
    let source = Source { topic: "sp.state.orders.v1".to_owned(), incarnation: "one".to_owned(), partition: Partition(0) };
    let change = Change::Upsert { offset: Offset(0), record: order(1, Timestamp(CUTOFF.0 - 1)) };
    bench.store.apply(&source, None, Offset(1), vec![change]).await.unwrap();
    if bench.options.url.starts_with("sqlite:") {
        sqlx::raw_sql("PRAGMA secure_delete = OFF").execute(&bench.sql).await.unwrap();
    }
    sqlx::raw_sql("DELETE FROM orders").execute(&bench.sql).await.unwrap();
    assert!(holds(bench, "orders", "MARKER-ORDER-1").await, "the control is there");
    Needles { gone: vec![subject(1)], older_than: Some(CUTOFF), ..Needles::default() }
}

/// Above the size of the options nothing is rewritten: what is left in free space is told, with its number, and the method claims no
/// rewriting.
#[tokio::test]
async fn remnants_in_tables_too_large_to_rewrite_are_told() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfWarehouse>::on(database).await else { continue };
        let needles = left_in_free_space(&bench).await;
        let store = Warehouse::open(&StoreOptions { rewrite_bytes_max: 0, ..bench.options.clone() }).await.unwrap();
        let report = store.scan(&needles).await.unwrap();
        assert_eq!(report.found, [], "{database}");
        let told = |what: &str| report.residual.iter().filter(|residual| residual.what.contains(what)).count();
        assert_eq!(told("remnants of what was deleted in free space, too large to rewrite"), 1, "{database}: {:?}", report.residual);
        assert_eq!(told("remnants of deleted rows in free space, too large to rewrite"), 1, "{database}: {:?}", report.residual);
        assert!(!report.method.contains("rewritten"), "{} on {database}", report.method);
        assert!(holds(&bench, "orders", "MARKER-ORDER-1").await, "what is told is true, on {database}");

        // The same store with room to rewrite tells of neither.
        let report = bench.store.scan(&needles).await.unwrap();
        assert_eq!(report.found, [], "{database}");
        assert!(!report.residual.iter().any(|residual| residual.what.contains("too large")), "{database}: {:?}", report.residual);
        assert!(!holds(&bench, "orders", "MARKER-ORDER-1").await, "{database}");
    }
}

/// A reader in a transaction that stays open keeps its tables from being rewritten: neither forgetting nor the search waits for it longer
/// than the limit, both say so, and both succeed once it has ended.
#[tokio::test]
async fn a_session_that_holds_a_table_fails_the_rewrite_by_name_until_it_ends() {
    let Some(bench) = Bench::<OfWarehouse>::on("postgres").await else { return };
    let needles = left_in_free_space(&bench).await;
    let store = Warehouse::open(&StoreOptions { rewrite_lock: Duration::from_millis(50), ..bench.options.clone() }).await.unwrap();
    let mut reader = bench.sql.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM orders").fetch_one(&mut *reader).await.unwrap();
    let why = "warehouse could not rewrite its tables while another session uses one of them: 55P03 locked";
    let scanned = store.scan(&needles).await.unwrap_err();
    assert_eq!(scanned.to_string(), why);
    let forgot = store.forget(&needles.gone, Extent::OlderThan(CUTOFF)).await.unwrap_err();
    assert_eq!(forgot.to_string(), why);
    reader.rollback().await.unwrap();

    store.forget(&needles.gone, Extent::OlderThan(CUTOFF)).await.unwrap();
    let report = store.scan(&needles).await.unwrap();
    assert_eq!(report.found, []);
    assert!(!holds(&bench, "orders", "MARKER-ORDER-1").await);
}

/// Scans until the report is as wanted, a hundred times at the most.
async fn scanned_until(store: &Warehouse, needles: &Needles, is_wanted: impl Fn(&ScanReport) -> bool) -> ScanReport {
    let mut report = store.scan(needles).await.unwrap();
    for _ in 0..100 {
        if is_wanted(&report) {
            break;
        }
        report = store.scan(needles).await.unwrap();
    }
    report
}

/// A transaction that still reads, of any table, keeps deleted rows through any rewriting: the search finds them and names who holds them,
/// and finds nothing once that has ended.
#[tokio::test]
async fn what_an_open_transaction_holds_is_found_with_its_name_and_gone_after_it() {
    let Some(bench) = Bench::<OfWarehouse>::on("postgres").await else { return };
    let mut reader = PgConnection::connect(&bench.options.url).await.unwrap();
    reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let name: String = sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut reader).await.unwrap();
    let needles = left_in_free_space(&bench).await;
    // Other tests' transactions on the same server hold dead rows too, each for a moment, and the oldest are named.
    let names_it = |held_by: &Option<String>| held_by.as_ref().is_some_and(|who| who.contains(&format!(" in database {name} (process ")));
    let report = scanned_until(&bench.store, &needles, |report| names_it(&report.held_by)).await;
    assert!(!report.found.is_empty(), "it is there as long as it is held");
    assert!(names_it(&report.held_by), "{:?}", report.held_by);

    reader.execute("ROLLBACK").await.unwrap();
    let report = scanned_until(&bench.store, &needles, |report| report.found.is_empty()).await;
    assert_eq!((report.found, report.held_by), (Vec::new(), None));
}

/// The planner samples the elements of lists apart from their values.
#[tokio::test]
async fn a_pseudonym_among_the_planners_samples_of_list_elements_is_found() {
    let Some(bench) = Bench::<OfWarehouse>::on("postgres").await else { return };
    let source = Source { topic: "sp.state.orders.v1".to_owned(), incarnation: "one".to_owned(), partition: Partition(0) };
    let refers = |entity: u8| {
        let mut record = order(entity, CUTOFF);
        if let StateRecord::Order(row) = &mut record {
            // Each list is another one, and the first and the last in order lack it: as an element alone it is common.
            let named = (10..=50).contains(&entity).then(|| token(1));
            row.associated_order_tokens = std::iter::once(token(100 + entity)).chain(named).collect();
        }
        record
    };
    let changes = (2..=60).map(|n| Change::Upsert { offset: Offset(n.into()), record: refers(n) }).collect();
    bench.store.apply(&source, None, Offset(61), changes).await.unwrap();
    let sql = &bench.sql;
    let emptied = "ALTER TABLE orders ALTER COLUMN associated_order_tokens SET STATISTICS 1; ANALYZE orders; DELETE FROM orders";
    sqlx::raw_sql(emptied).execute(sql).await.unwrap();
    let (values, elements): (String, String) = sqlx::query_as(
        "SELECT concat_ws(' ', most_common_vals::text, histogram_bounds::text), coalesce(most_common_elems::text, '') FROM pg_stats \
         WHERE tablename = 'orders' AND attname = 'associated_order_tokens'",
    )
    .fetch_one(sql)
    .await
    .unwrap();
    let hex = token(1).to_hex();
    assert!(elements.contains(&hex) && !values.contains(&hex), "the control is there: {elements} {values}");
    let needles = Needles { gone: vec![subject(1)], older_than: Some(CUTOFF), ..Needles::default() };
    let report = bench.store.scan(&needles).await.unwrap();
    let in_statistics = report.found.iter().filter(|found| found.place.contains("statistics")).count();
    assert_eq!(in_statistics, 1, "{:?}", report.found);
}
