//! Erasures that take the business data too: one order, a whole seller, and removal that is forced.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use sunder::kafka::{Kafka, KafkaSettings, OutRecord};
use sunder_schemas::class::Family;
use sunder_schemas::ids::Partition;
use sunder_schemas::topic::{Profile, Topic};

use super::world::{Services, Stores, World};
use super::{read_log, warehouse};

/// Rows of a table, by seller.
pub(super) async fn rows(world: &World, sql: &'static str, seller: &str) -> usize {
    warehouse(world, sql).await.iter().filter(|row| row.first().cloned().flatten().as_deref() == Some(seller)).count()
}

pub(super) async fn tokens(world: &World) -> BTreeSet<String> {
    let rows = warehouse(world, "SELECT order_token FROM orders").await;
    rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
}

/// An order of the simulator whose personal data is wanted, and its seller.
pub(super) async fn some_order(world: &World) -> (String, String) {
    let personal = world.simulator.personal().await;
    let first = personal.iter().find(|p| p["allowed"] == true).expect("a personal value");
    let text = |name: &str| first[name].as_str().expect("text").to_owned();
    (text("seller"), text("order"))
}

pub(super) async fn pass(world: &mut World, advance: &str, offset: &str) {
    world.simulator.post("/_sim/clock", json!({"advance": advance})).await;
    world.set("SUNDER_CLOCK__OFFSET", offset);
}

/// How many values with `needle` in their key or body lie on topics whose name contains one of `kinds`, after the last tombstone.
pub(super) fn values_of(world: &World, services: &Services, token: &str, kinds: &[&str]) -> usize {
    let mut living: BTreeSet<(String, i32, Vec<u8>)> = BTreeSet::new();
    read_log(world, &services.kafka, |topic, partition, _, bytes| {
        if !kinds.iter().any(|kind| topic.contains(kind)) {
            return;
        }
        let mut parts = bytes.splitn(2, |byte| *byte == 0);
        let (key, rest) = (parts.next().unwrap_or_default().to_vec(), parts.next().unwrap_or_default());
        if !String::from_utf8_lossy(&key).contains(token) {
            return;
        }
        // A tombstone has no body: behind its key come its headers at the most.
        let entry = (topic.to_owned(), partition, key);
        if rest.is_empty() || rest.first() == Some(&0) && rest.starts_with(b"\0sunder_case") {
            living.remove(&entry);
        } else {
            living.insert(entry);
        }
    });
    living.len()
}

/// The log of `world`, as its processes are connected to it.
pub(super) async fn log_of(world: &World, services: &Services, profile: Profile) -> Kafka {
    let settings = KafkaSettings { profile, ..KafkaSettings::plaintext(&services.kafka, &world.prefix, 4, 1) };
    Kafka::connect(settings).await.expect("Kafka answers")
}

/// Appends every raw event of `token` once more, as a replay does; returns how many.
pub(super) async fn replay(world: &World, services: &Services, token: &str) -> usize {
    let (kafka, token) = (log_of(world, services, Profile::Test).await, token.to_owned());
    tokio::task::spawn_blocking(move || {
        let topic = kafka.topic(Topic::Raw(Family::Orders));
        let ranges: Vec<_> = (0..4).map(|n| kafka.whole_blocking(&topic, Partition(n)).expect("bounds")).collect();
        let mut events = Vec::new();
        let read = kafka.read_blocking(&ranges, |record| {
            let key = record.key.unwrap_or_default();
            if String::from_utf8_lossy(key).contains(&token) {
                events.push((record.partition, key.to_vec(), record.value.unwrap_or_default().to_vec()));
            }
            Ok(())
        });
        read.expect("raw events");
        let batch = kafka.producer().batch();
        for (partition, key, value) in &events {
            let record = OutRecord { topic: &topic, partition: *partition, key, value: Some(value), headers: &[] };
            batch.send(record).expect("sent");
        }
        batch.acked_blocking().expect("acknowledged");
        events.len()
    })
    .await
    .expect("replayed")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_erased_with_its_business_data_never_comes_back() {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, Stores::Sqlite, 2, 60, 11, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, order) = some_order(&world).await;
    let before = tokens(&world).await;
    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "amazon-request", "--wait", "--json"];
    let case = world.run(&erase).expect(0);
    assert_eq!(case["state"], "certified", "{case:#}");
    let after = tokens(&world).await;
    let gone: Vec<&String> = before.difference(&after).collect();
    let [token] = gone.as_slice() else { panic!("one order went: {}", gone.len()) };
    for topics in [".state.", ".events.", ".pii."] {
        assert_eq!(values_of(&world, &services, token, &[topics]), 0, "{topics}");
    }

    // Polled again, changed and polled again, and split again from the start: nothing of it comes.
    pass(&mut world, "1h", "1h").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    world.simulator.post("/_sim/change", json!({"seller": seller, "order": order})).await;
    pass(&mut world, "1h", "2h").await;
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(report["withheld"].as_u64() > Some(0), "it was fetched and left out: {report}");
    assert!(!tokens(&world).await.contains(*token));
    for topics in [".state.", ".events.", ".pii."] {
        assert_eq!(values_of(&world, &services, token, &[topics]), 0, "{topics} after polling again");
    }
    assert!(replay(&world, &services, token).await > 0, "raw still has its events");
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(report["split"].as_u64() > Some(0), "{report}");
    assert_eq!(report["dead_lettered"], 0, "{report}");
    assert!(!tokens(&world).await.contains(*token), "a replay brought it back");
    for topics in [".state.", ".events.", ".pii."] {
        assert_eq!(values_of(&world, &services, token, &[topics]), 0, "{topics} after a replay");
    }
    let open = ["open", "--json", "--seller", &seller, "--order", &order, "--purpose", "fulfilment", "--role", "shipping"];
    assert_eq!(world.run(&open).expect(3)["state"], "erased");
}

/// An analyst's session that stays open on a table keeps it from being rewritten: no certificate, a reason, and no wait without end.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_holds_the_warehouse_blocks_the_case_by_name_and_its_end_completes_it() {
    use sqlx::Connection as _;
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Postgres, 1, 20, 19, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, order) = some_order(&world).await;
    let mut analyst = sqlx::PgConnection::connect(&world.urls.warehouse).await.expect("warehouse answers");
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM orders").execute(&mut analyst).await.expect("read");

    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "amazon-request", "--wait", "--json"];
    let case = world.run(&erase).expect(3);
    let why = case["blocked_by"].as_str().unwrap_or_default();
    assert!(why.contains("warehouse could not rewrite its tables while another session uses one of them"), "{case:#}");
    assert_eq!(case["certified_at"], Value::Null, "{case:#}");
    assert!(case["keys_destroyed_at"].is_string(), "the keys do not wait for the warehouse: {case:#}");

    analyst.close().await.expect("closed");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let id = case["id"].as_str().expect("id");
    let case = world.run(&["cases", id, "--json"]).expect(0);
    assert_eq!((case["state"].as_str(), &case["blocked_by"]), (Some("certified"), &Value::Null), "{case:#}");
    assert_eq!(world.run(&["verify", id, "--json"]).expect(0)["holds"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_was_never_seen_is_certified_as_not_held() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 5, 12, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, _) = some_order(&world).await;
    let erase = ["erase", "--seller", &seller, "--order", "999-0000001-0000001", "--reason", "buyer-request", "--wait", "--json"];
    let case = world.run(&erase).expect(0);
    assert_eq!((case["state"].as_str(), case["subjects"].as_u64()), (Some("certified"), Some(1)), "{case:#}");
    assert_eq!(world.run(&["verify", case["id"].as_str().expect("id"), "--json"]).expect(0)["holds"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_is_removed_leaves_nothing_and_the_others_stay() {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, Stores::Sqlite, 2, 60, 13, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (leaver, order) = some_order(&world).await;
    let tables = [
        "SELECT selling_partner_id FROM orders",
        "SELECT selling_partner_id FROM order_items",
        "SELECT selling_partner_id FROM packages",
        "SELECT selling_partner_id FROM inventory_levels",
    ];
    let mut stays = Vec::new();
    for sql in tables {
        assert!(rows(&world, sql, &leaver).await > 0, "{sql}");
        stays.push(warehouse(&world, sql).await.len() - rows(&world, sql, &leaver).await);
    }
    let case = world.run(&["sellers", "remove", &leaver, "--json"]).expect(0);
    let id = case["id"].as_str().expect("id").to_owned();
    // The config still names the seller: removed beats it.
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(world.run(&["cases", &id, "--json"]).expect(0)["state"], "certified");
    pass(&mut world, "1h", "1h").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    for (sql, stays) in tables.into_iter().zip(stays) {
        assert_eq!(rows(&world, sql, &leaver).await, 0, "{sql}");
        assert!(warehouse(&world, sql).await.len() >= stays, "{sql}: other sellers keep their rows");
    }
    assert_eq!(world.run(&["verify", &id, "--json"]).expect(0)["holds"], true);
    let list = world.run(&["sellers", "list", "--json"]).expect(0);
    let of = |id: &str| list.as_array().expect("a list").iter().find(|s| s["id"] == id).cloned().unwrap_or(Value::Null);
    assert_eq!((of(&leaver)["state"].as_str(), of(&leaver)["has_refresh_token"].as_bool()), (Some("removed"), Some(false)));

    // What it had is erased for good, what it never had is absent, and a late request is certified: its ledger key survives.
    assert_erased_for_good(&world, &leaver, &order);

    // Back again, with new keys: what was erased stays out, the rest comes.
    let config: toml::Table = std::fs::read_to_string(world.config()).expect("config").parse().expect("TOML");
    let sellers = config["seller"].as_array().expect("sellers");
    let seller = sellers.iter().find(|s| s["id"].as_str() == Some(&leaver)).expect("the config names it");
    let text = |value: &toml::Value| value.as_str().expect("text").to_owned();
    let marketplaces: Vec<String> = seller["marketplaces"].as_array().expect("a list").iter().map(text).collect();
    let (region, token, places) = (text(&seller["region"]), text(&seller["refresh_token"]["file"]), marketplaces.join(","));
    let add =
        ["sellers", "add", "--id", &leaver, "--region", &region, "--marketplaces", &places, "--token-file", &token, "--readmit", "--json"];
    world.run(&add).expect(0);
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(report["withheld"].as_u64() > Some(0), "{report}");
    assert_eq!(rows(&world, tables[0], &leaver).await, 0, "erased orders stay out");
    assert!(rows(&world, tables[3], &leaver).await > 0, "its inventory is read again");
}

fn assert_erased_for_good(world: &World, seller: &str, order: &str) {
    const NEVER: &str = "999-0000001-0000001";
    let open = |seller: &str, order: &str| {
        let args = ["open", "--json", "--seller", seller, "--order", order, "--purpose", "fulfilment", "--role", "shipping"];
        world.run(&args).expect(3)
    };
    assert_eq!(open(seller, order)["state"], "erased");
    assert_eq!(open(seller, NEVER)["state"], "absent");
    assert_eq!(open("A0NOBODY", order)["state"], "absent");
    let list = world.run(&["sellers", "list", "--json"]).expect(0);
    assert!(list.as_array().expect("a list").iter().all(|s| s["id"] != "A0NOBODY"), "a read made a seller: {list}");
    for order in [order, NEVER] {
        let erase = ["erase", "--seller", seller, "--order", order, "--reason", "buyer-request", "--wait", "--json"];
        assert_eq!(world.run(&erase).expect(0)["state"], "certified");
        assert_eq!(open(seller, order)["state"], "erased");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_erasure_is_certified_in_seconds_under_production_periods() {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, Stores::Sqlite, 1, 20, 14, "none").await;
    world.set("SUNDER_RETENTION__PROFILE", "production");
    world.set("SUNDER_KEYS__LEASE", "3s");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, order) = some_order(&world).await;
    let started = Instant::now();
    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--now", "--wait", "--json"];
    let case = world.run(&erase).expect(0);
    assert_eq!(case["state"], "certified", "{case:#}");
    // The producers' message timeout of this profile is 30 s; without force it would take six hours.
    assert!(started.elapsed() < Duration::from_secs(300), "{:?}", started.elapsed());
    assert_eq!(world.run(&["verify", case["id"].as_str().expect("id"), "--json"]).expect(0)["holds"], true);

    // A removal that was cut off: settings are lowered, and its intent stands in the database.
    log_of(&world, &services, Profile::Production).await.begin_roll(Topic::Pii(Family::Orders)).await.expect("lowered");
    world.run(&["topics", "diff", "--json"]).expect(3);
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    intend_roll(&world).await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let drift = world.run(&["topics", "diff", "--json"]).expect(0);
    assert!(drift.as_array().expect("a list").iter().all(|topic| topic["status"] == "ok"), "{drift}");
}

/// Writes down a forced removal that nobody ended.
async fn intend_roll(world: &World) {
    use sqlx::Connection;
    let mut connection = sqlx::SqliteConnection::connect(&world.urls.keys).await.expect("key database answers");
    let event = "INSERT INTO case_event (case_id, seq, step, at, at_system, evidence) VALUES ('case-x', 1, 'roll_intended', 0, 0, '{}')";
    sqlx::query(event).execute(&mut connection).await.expect("written");
}
