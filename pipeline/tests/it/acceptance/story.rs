//! The acceptance story: orders flow and open for their purpose, 70 days pass, everything personal is gone and proved gone, nothing
//! comes back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::world::{Services, Stores, World};
use super::{assert_no_leak, orders, warehouse};

/// The purpose of the simulator's config.
const PURPOSE: &str = "fulfilment";
/// The role that may claim it.
const ROLE: &str = "shipping";
/// How many orders are opened one by one through the program; `SUNDER_ACCEPTANCE_OPENED` asks for more.
const OPENED: usize = 30;

#[expect(clippy::disallowed_methods, reason = "tests take their size from the environment")]
fn opened() -> usize {
    std::env::var("SUNDER_ACCEPTANCE_OPENED").ok().and_then(|n| n.parse().ok()).unwrap_or(OPENED)
}

/// Groups the simulator's config asks for.
const WANTED: [&str; 4] = ["buyer_name", "buyer_contact", "recipient_address", "gift"];

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_sealed_opened_erased_and_certified_on_postgresql() {
    let Some(services) = Services::from_env() else { return };
    story(&services, Stores::Postgres, 5, orders(1_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_sealed_opened_erased_and_certified_on_sqlite() {
    let Some(services) = Services::from_env() else { return };
    story(&services, Stores::Sqlite, 3, orders(300)).await;
}

async fn story(services: &Services, stores: Stores, sellers: usize, orders: usize) {
    let mut world = World::start(services, stores, sellers, orders, 7, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let drift = world.run(&["topics", "diff", "--json"]).expect(0);
    assert!(drift.as_array().is_some_and(|topics| !topics.is_empty()), "{drift}");

    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(report["published"].as_u64().unwrap_or_default() > 0, "{report}");
    assert_eq!(report["dead_lettered"], 0, "{report}");
    assert_counts(&world).await;
    assert_inventory(&world).await;
    assert_attributed(&world).await;

    let personal = world.simulator.personal().await;
    let readable = open_all(&world, &personal, &["readable", "absent"]);
    assert!(readable["readable"] > 0, "{readable:?}");
    assert_no_leak(&world, services, &personal).await;

    // 70 days later by both clocks.
    world.simulator.post("/_sim/clock", serde_json::json!({"advance": "70d"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "70d");
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(report["cases_certified"].as_u64().unwrap_or_default() > 0, "{report}");
    assert_counts(&world).await;
    let states = open_all(&world, &personal, &["erased", "absent"]);
    assert!(states["erased"] > 0, "{states:?}");
    assert_cases(&world);

    // Polling everything again brings nothing back.
    let first = personal.iter().find(|p| p["allowed"] == true).expect("a personal value");
    let change = serde_json::json!({"seller": first["seller"], "order": first["order"]});
    world.simulator.post("/_sim/change", change).await;
    world.simulator.post("/_sim/clock", serde_json::json!({"advance": "1h"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "1681h");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;
    open_all(&world, &personal, &["erased", "absent"]);
    assert_no_leak(&world, services, &personal).await;
    world.run(&["audit", "verify", "--json"]).expect(0);
}

/// Inventory rows equal the simulator's own count. Not asked again later: a SKU that stops appearing keeps its last row.
async fn assert_inventory(world: &World) {
    let truth = world.simulator.truth().await;
    let rows = warehouse(world, "SELECT CAST(count(*) AS TEXT) FROM inventory_levels").await;
    let count = rows.first().and_then(|r| r.first()).cloned().flatten();
    assert_eq!(count, Some(truth["totals"]["inventory_rows"].to_string()), "inventory: the warehouse differs from the simulator");
}

/// Orders, items and packages in the warehouse equal the simulator's own count.
pub(super) async fn assert_counts(world: &World) {
    let truth = world.simulator.truth().await;
    for (sql, name) in [
        ("SELECT CAST(count(*) AS TEXT) FROM orders", "orders"),
        ("SELECT CAST(count(*) AS TEXT) FROM order_items", "order_items"),
        ("SELECT CAST(count(*) AS TEXT) FROM packages", "packages"),
    ] {
        let rows = warehouse(world, sql).await;
        let count = rows.first().and_then(|r| r.first()).cloned().flatten();
        assert_eq!(count, Some(truth["totals"][name].to_string()), "{name}: the warehouse differs from the simulator");
    }
}

async fn assert_attributed(world: &World) {
    let mut tables = 0;
    for sql in [
        "SELECT selling_partner_id, marketplace_id, source_api, source_operation, source_request_id, CAST(collected_at AS TEXT), CAST(event_id AS TEXT), payload_sha256 FROM orders",
        "SELECT selling_partner_id, marketplace_id, source_api, source_operation, source_request_id, CAST(collected_at AS TEXT), CAST(event_id AS TEXT), payload_sha256 FROM order_items",
        "SELECT selling_partner_id, marketplace_id, source_api, source_operation, source_request_id, CAST(collected_at AS TEXT), CAST(event_id AS TEXT), payload_sha256 FROM packages",
        "SELECT selling_partner_id, marketplace_id, source_api, source_operation, source_request_id, CAST(collected_at AS TEXT), CAST(event_id AS TEXT), payload_sha256 FROM inventory_levels",
    ] {
        let rows = warehouse(world, sql).await;
        tables += usize::from(!rows.is_empty());
        for row in rows {
            assert!(row.iter().all(|column| column.as_ref().is_some_and(|c| !c.is_empty())), "a row without its attribution: {row:?}");
        }
    }
    assert_eq!(tables, 4, "every table has rows");
}

/// Opens a spread of orders and checks each readable value against the simulator's; returns how often each state was seen.
fn open_all(world: &World, personal: &[Value], allowed_states: &[&str]) -> BTreeMap<String, usize> {
    let mut of_order: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
    for value in personal.iter().filter(|v| v["allowed"] == true && WANTED.iter().any(|g| v["group"] == *g)) {
        let text = |name: &str| value[name].as_str().expect("text").to_owned();
        of_order.entry((text("seller"), text("order"))).or_default().push(value);
    }
    let step = of_order.len().div_ceil(opened()).max(1);
    let mut states: BTreeMap<String, usize> = allowed_states.iter().map(|s| ((*s).to_owned(), 0)).collect();
    for ((seller, order), values) in of_order.iter().step_by(step) {
        let opened = world.run(&["open", "--json", "--seller", seller, "--order", order, "--purpose", PURPOSE, "--role", ROLE]);
        let state = opened.json["state"].as_str().unwrap_or_default().to_owned();
        assert!(allowed_states.contains(&state.as_str()), "state {state:?} of an order: {:#}\n{}", opened.json, opened.log_tail);
        assert_eq!(opened.code, Some(if state == "readable" { 0 } else { 3 }));
        if state == "readable" {
            for value in values {
                let group = value["group"].as_str().expect("group");
                let pointer = format!("/{}", value["path"].as_str().expect("path").replace('[', "/").replace(']', "").replace('.', "/"));
                let found = opened.json["groups"][group].pointer(&pointer);
                assert_eq!(found, Some(&value["value"]), "{group} {pointer} does not open as it was fetched");
            }
        } else {
            assert!(
                opened.json["groups"].as_object().is_none_or(|groups| groups.values().all(Value::is_null)),
                "an erased order shows groups"
            );
        }
        *states.entry(state).or_default() += 1;
    }
    states
}

/// Every case is certified, verifies again, and its certificate checks offline until one byte is flipped.
fn assert_cases(world: &World) {
    let cases = world.run(&["cases", "--json"]).expect(0);
    let cases = cases.as_array().expect("a list").clone();
    assert!(!cases.is_empty());
    let key = world.run(&["certificate", "key"]);
    assert_eq!(key.code, Some(0));
    let key_file = world.folder.path().join("certificate.pub");
    std::fs::write(&key_file, world.stdout(&["certificate", "key"])).expect("write");
    let key_file = key_file.display().to_string();
    let mut seen = BTreeSet::new();
    for case in &cases {
        let id = case["id"].as_str().expect("id");
        assert_eq!(case["state"], "certified", "{case:#}");
        let shown = world.run(&["cases", id, "--json"]).expect(0);
        assert_eq!(shown["id"], id);
        let report = world.run(&["verify", id, "--json"]).expect(0);
        assert_eq!(report["holds"], true, "{report:#}");
        assert_eq!(report["scan"]["found"], 0);
        assert_eq!(report["recover"]["opened"], 0);
        assert!(
            report["scan"]["controls_planted"].as_u64() > Some(0) && report["scan"]["controls_found"] == report["scan"]["controls_planted"]
        );
        assert!(
            report["recover"]["tried"].as_u64() > Some(0) && report["recover"]["controls_opened"] == report["recover"]["controls_planted"]
        );
        let out = world.folder.path().join("certificates").join(id);
        world.run(&["certificate", id, "--out", &out.display().to_string(), "--json"]).expect(0);
        let note = out.join("certificate.note");
        let checked = world.run(&["certificate", "check", &note.display().to_string(), "--key", &key_file, "--json"]).expect(0);
        assert_eq!(checked["valid"], true);
        let mut bytes = std::fs::read(&note).expect("note");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let forged = out.join("forged.note");
        std::fs::write(&forged, bytes).expect("write");
        let checked = world.run(&["certificate", "check", &forged.display().to_string(), "--key", &key_file, "--json"]).expect(3);
        assert_eq!(checked["valid"], false);
        assert!(seen.insert(id.to_owned()));
    }
}
