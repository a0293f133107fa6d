//! A sink built again from the log: the same rows, nothing of what was erased, never from nothing; whatever else runs or dies meanwhile.

use std::collections::BTreeSet;
use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use sunder_schemas::time::{Clock as _, SystemClock};

use super::awaited::{SHOWN_WITHIN, until};
use super::running::{Running, log_of};
use super::story::assert_counts;
use super::warehouse;
use super::world::{Services, Stores, World, kill};

const ORDERS: &str = "SELECT selling_partner_id, order_token, CAST(source_version AS TEXT), status FROM orders";
const ITEMS: &str = "SELECT selling_partner_id, order_item_token, CAST(source_version AS TEXT), sku FROM order_items";

async fn rows(world: &World) -> BTreeSet<Vec<Option<String>>> {
    let mut rows: BTreeSet<_> = warehouse(world, ORDERS).await.into_iter().collect();
    rows.extend(warehouse(world, ITEMS).await);
    rows
}

async fn damage(world: &World, sql: &'static str) {
    if world.urls.warehouse.starts_with("postgres") {
        let mut connection = PgConnection::connect(&world.urls.warehouse).await.expect("warehouse answers");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("statement");
    } else {
        let mut connection = SqliteConnection::connect(&world.urls.warehouse).await.expect("warehouse answers");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("statement");
    }
}

/// Orders whose personal data opens, each with its seller.
async fn all_readable(world: &World) -> BTreeSet<(String, String)> {
    let personal = world.simulator.personal().await;
    let text = |of: &Value, name: &str| of[name].as_str().expect("text").to_owned();
    let mut orders: BTreeSet<(String, String)> = personal.iter().map(|p| (text(p, "seller"), text(p, "order"))).collect();
    orders.retain(|(seller, order)| open(world, seller, order) == Some(0));
    orders
}

async fn readable(world: &World) -> (String, String) {
    all_readable(world).await.pop_first().expect("a readable order")
}

fn open(world: &World, seller: &str, order: &str) -> Option<i32> {
    let purpose = ["--purpose", "fulfilment", "--role", "shipping", "--json"];
    world.run(&[&["open", "--seller", seller, "--order", order], &purpose[..]].concat()).code
}

async fn a_replay_brings_the_same_rows_and_nothing_that_was_erased(stores: Stores) {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, stores, 2, 20, 23, "none").await;
    assert_eq!(world.run(&["replay", "--sink", "warehouse", "--json"]).code, Some(3), "an empty log replaces nothing");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (before, time) = (rows(&world).await, SystemClock::default().now());
    let (seller, order) = readable(&world).await;
    world.run(&["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--wait", "--json"]).expect(0);

    // Rows that are not the log's go, rows that are lost come back, and what was erased stays erased.
    damage(&world, "DELETE FROM order_items").await;
    damage(&world, "UPDATE orders SET status = 'DAMAGED', source_version = 9000000000000").await;
    let built = world.run(&["replay", "--sink", "warehouse", "--json"]).expect(0);
    assert_eq!(built["sink"], json!("warehouse"));
    assert_eq!(rows(&world).await, before);
    world.run(&["replay", "--sink", "vault", "--json"]).expect(0);
    assert_eq!(open(&world, &seller, &order), Some(3));
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!((open(&world, &seller, &order), rows(&world).await == before), (Some(3), true));
    for case in world.run(&["cases", "--json"]).expect(0).as_array().expect("cases") {
        world.run(&["verify", case["id"].as_str().expect("an id"), "--json"]).expect(0);
    }

    // As it was before a change, and at the present again once the sinks have run.
    world.simulator.post("/_sim/clock", json!({"advance": "1h"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "1h");
    let (changed_seller, changed) = readable(&world).await;
    world.simulator.post("/_sim/change", json!({"seller": changed_seller, "order": changed})).await;
    world.simulator.post("/_sim/clock", json!({"advance": "1h"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "2h");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_ne!(rows(&world).await, before);
    let (seller, order) = all_readable(&world).await.pop_last().expect("a readable order");
    assert_ne!(order, changed);
    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--with-business-data", "--wait", "--json"];
    world.run(&erase).expect(0);
    let after = rows(&world).await;
    let ids: BTreeSet<_> = after.iter().map(|row| row[..2].to_vec()).collect();
    let then: BTreeSet<_> = before.into_iter().filter(|row| ids.contains(&row[..2])).collect();
    assert!(then.len() == after.len() && then != after, "rows of one order are gone, another's have changed");
    let until = time.to_iso();
    world.run(&["replay", "--sink", "warehouse", "--until", &until, "--json"]).expect(0);
    assert_eq!(rows(&world).await, then);
    // What was deleted since, and whose tombstone is gone as well, does not stay either.
    damage(
        &world,
        "UPDATE orders SET order_token = 'ffffffffffffffffffffffffffffffff' WHERE order_token = (SELECT min(order_token) FROM orders)",
    )
    .await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(rows(&world).await, after);
    assert!(!log_of(&world).contains("the store was restored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_brings_the_same_rows_and_nothing_that_was_erased_on_sqlite() {
    a_replay_brings_the_same_rows_and_nothing_that_was_erased(Stores::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_brings_the_same_rows_and_nothing_that_was_erased_on_postgres() {
    a_replay_brings_the_same_rows_and_nothing_that_was_erased(Stores::Postgres).await;
}

fn replay(world: &World, sink: &str) -> Child {
    world.command(&["replay", "--sink", sink, "--json"]).spawn().expect("sunder starts")
}

fn ended(child: Child) -> Option<i32> {
    let output = child.wait_with_output().expect("wait");
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    }
    output.status.code()
}

/// Whether somebody waits for a lock on `table`.
async fn is_awaited(observer: &mut PgConnection, table: &str) -> bool {
    let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = to_regclass($1)";
    sqlx::query_scalar::<_, i64>(sql).bind(table).fetch_one(observer).await.expect("locks") > 0
}

/// Erases while a replay stands right before its switch, with all it read before the key went.
async fn erased_meanwhile(world: &World, sink: &str, flags: &[&str]) {
    let (seller, order) = readable(world).await;
    let url = if sink == "vault" { &world.urls.vault } else { &world.urls.warehouse };
    let mut observer = PgConnection::connect(url).await.expect("PostgreSQL answers");
    let mut brake = PgConnection::connect(url).await.expect("PostgreSQL answers");
    let mut held = brake.begin().await.expect("begin");
    sqlx::raw_sql("LOCK TABLE sink_offset IN ROW EXCLUSIVE MODE").execute(&mut *held).await.expect("lock");
    let building = replay(world, sink);
    until(SHOWN_WITHIN, "the replay reaches its switch", async || is_awaited(&mut observer, "sink_offset").await).await;

    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--wait", "--json"];
    let mut erasing = world.command(&[&erase, flags].concat()).spawn().expect("sunder starts");
    let mut case = Value::Null;
    until(SHOWN_WITHIN, "the case says that it waits for the replay", async || {
        let cases = world.run(&["cases", "--json"]).expect(0);
        let open = cases.as_array().expect("cases").iter().find(|case| case["state"] != "certified").cloned();
        case = open.unwrap_or_default();
        case["blocked_by"].as_str().is_some_and(|why| why.contains("a replay is running"))
    })
    .await;
    assert_eq!(open(world, &seller, &order), Some(3), "the key is gone all the same");
    assert!(erasing.try_wait().expect("wait").is_none());
    let inventory = world.run(&["inventory", "--json"]).expect(0);
    assert!(!inventory.to_string().contains("sunder_replay"), "{inventory:#}");

    held.rollback().await.expect("rollback");
    assert_eq!(ended(building), Some(0));
    assert_eq!(ended(erasing), Some(0));
    assert_eq!(open(world, &seller, &order), Some(3));
    let verified = world.run(&["verify", case["id"].as_str().expect("an id"), "--json"]).expect(0);
    assert_eq!(verified["holds"], json!(true), "{verified:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_case_that_is_opened_during_a_replay_is_certified_after_it() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Postgres, 1, 10, 41, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let before = rows(&world).await;
    erased_meanwhile(&world, "vault", &[]).await;
    assert_eq!(rows(&world).await, before);
    erased_meanwhile(&world, "warehouse", &["--with-business-data"]).await;
    let after = rows(&world).await;
    assert!(after.len() < before.len() && after.is_subset(&before), "one order's rows are gone, and no other's");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(rows(&world).await, after);
    for sink in ["vault", "warehouse"] {
        world.run(&["replay", "--sink", sink, "--json"]).expect(0);
    }
    assert_eq!(rows(&world).await, after);
}

/// Whether a copy lies beside the warehouse.
async fn is_left(world: &World) -> bool {
    if world.urls.warehouse.starts_with("postgres") {
        let mut observer = PgConnection::connect(&world.urls.warehouse).await.expect("PostgreSQL answers");
        let sql = "SELECT to_regnamespace('sunder_replay_warehouse') IS NOT NULL";
        sqlx::query_scalar(sql).fetch_one(&mut observer).await.expect("schemas")
    } else {
        world.folder.path().join("warehouse.db.replay").exists()
    }
}

/// Kills a replay in the middle of its switch, after some tables were replaced and before others.
async fn kill_in_the_middle(world: &World) {
    let url = &world.urls.warehouse;
    if url.starts_with("postgres") {
        let mut observer = PgConnection::connect(url).await.expect("PostgreSQL answers");
        let mut brake = PgConnection::connect(url).await.expect("PostgreSQL answers");
        let mut held = brake.begin().await.expect("begin");
        sqlx::raw_sql("LOCK TABLE order_items IN SHARE MODE").execute(&mut *held).await.expect("lock");
        let mut building = replay(world, "warehouse");
        until(SHOWN_WITHIN, "the replay stands in its switch", async || is_awaited(&mut observer, "order_items").await).await;
        kill(building.id());
        assert_eq!(building.wait().expect("wait").code(), None);
        held.rollback().await.expect("rollback");
    } else {
        // A statement that never ends: the view counts for ever.
        damage(
            world,
            "CREATE VIEW endless AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n; \
             CREATE TRIGGER brake BEFORE DELETE ON order_items BEGIN SELECT count(*) FROM endless; END",
        )
        .await;
        let mut building = replay(world, "warehouse");
        until(SHOWN_WITHIN, "the replay stands in its switch", async || is_left(world).await && is_written(world).await).await;
        kill(building.id());
        assert_eq!(building.wait().expect("wait").code(), None);
        damage(world, "DROP TRIGGER brake; DROP VIEW endless").await;
    }
}

/// Whether another process is in a writing transaction on the warehouse.
async fn is_written(world: &World) -> bool {
    let options: sqlx::sqlite::SqliteConnectOptions = world.urls.warehouse.parse().expect("a URL");
    let mut connection = SqliteConnection::connect_with(&options.busy_timeout(Duration::ZERO)).await.expect("warehouse answers");
    let begun = sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut connection).await;
    begun.is_err()
}

async fn a_replay_killed_in_the_middle_changes_nothing(stores: Stores) {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, stores, 1, 10, 43, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let of_the_log = rows(&world).await;
    damage(&world, "UPDATE orders SET status = 'LIVE'; UPDATE order_items SET sku = 'LIVE'").await;
    let live = rows(&world).await;
    kill_in_the_middle(&world).await;
    assert_eq!(rows(&world).await, live);
    assert!(is_left(&world).await);
    // The next case removes it, though it takes personal data alone.
    let (seller, order) = readable(&world).await;
    world.run(&["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--wait", "--json"]).expect(0);
    assert!(!is_left(&world).await);
    assert_eq!(rows(&world).await, live);
    // So does the next replay, once the killed one's lease is over.
    kill_in_the_middle(&world).await;
    assert!(is_left(&world).await);
    until(SHOWN_WITHIN, "the next replay ends", async || {
        let code = world.run(&["replay", "--sink", "warehouse", "--json"]).code;
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
        code == Some(0)
    })
    .await;
    assert!(!is_left(&world).await);
    assert_eq!(rows(&world).await, of_the_log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_killed_in_the_middle_changes_nothing_on_sqlite() {
    a_replay_killed_in_the_middle_changes_nothing(Stores::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_killed_in_the_middle_changes_nothing_on_postgres() {
    a_replay_killed_in_the_middle_changes_nothing(Stores::Postgres).await;
}

async fn replays_beside_running_sinks_lose_and_double_nothing(stores: Stores) {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, stores, 2, 20, 47, "none").await;
    let running = Running::start(&world).await;
    running.until_metric("sunder_sink_rows_written_total", 0.0).await;
    let personal = world.simulator.personal().await;
    for (sink, of) in ["warehouse", "vault", "warehouse", "vault"].into_iter().zip(personal.iter().step_by(17)) {
        let (seller, order) = (&of["seller"], &of["order"]);
        world.simulator.post("/_sim/change", json!({"seller": seller, "order": order})).await;
        world.run(&["replay", "--sink", sink, "--json"]).expect(0);
    }
    let then = ["replay", "--sink", "warehouse", "--until", "2026-11-01T00:00:00Z", "--json"];
    let refused = world.run(&then).expect(3);
    assert!(refused.to_string().contains("stop it first"), "{refused:#}");
    running.stop();
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;
    let (live, (seller, order)) = (rows(&world).await, readable(&world).await);
    for sink in ["warehouse", "vault"] {
        world.run(&["replay", "--sink", sink, "--json"]).expect(0);
    }
    assert_eq!(rows(&world).await, live);
    assert_eq!(open(&world, &seller, &order), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_beside_running_sinks_lose_and_double_nothing_on_sqlite() {
    replays_beside_running_sinks_lose_and_double_nothing(Stores::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_beside_running_sinks_lose_and_double_nothing_on_postgres() {
    replays_beside_running_sinks_lose_and_double_nothing(Stores::Postgres).await;
}
