//! Sealed blocks that come back after their erasure, or that nobody has a key of: the nightly reading finds them wherever they lie, has
//! them deleted, and the case is proved again. What lives stays.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{Connection as _, Row as _};
use sunder::kafka::{Kafka, OutRecord};
use sunder_schemas::class::Family;
use sunder_schemas::ids::Partition;
use sunder_schemas::topic::{Profile, Topic};

use super::cluster::{case, checked, some_orders};
use super::extent::log_of;
use super::naming::opens;
use super::orders;
use super::world::{Services, Stores, World};

/// The values of the sealed topic, each the latest of its key.
type Values = BTreeMap<Vec<u8>, (i32, Vec<u8>)>;

async fn values(kafka: &Kafka) -> Values {
    let kafka = kafka.clone();
    let read = tokio::task::spawn_blocking(move || {
        let topic = kafka.topic(Topic::Pii(Family::Orders));
        let ranges: Vec<_> = (0..4).map(|n| kafka.whole_blocking(&topic, Partition(n)).expect("bounds")).collect();
        let mut values = Values::new();
        let read = kafka.read_blocking(&ranges, |record| {
            let key = record.key.unwrap_or_default().to_vec();
            match record.value.filter(|_| !record.is_own()) {
                Some(value) => drop(values.insert(key, (record.partition.0, value.to_vec()))),
                None => drop(values.remove(&key)),
            }
            Ok(())
        });
        read.expect("values");
        values
    });
    read.await.expect("read")
}

async fn write(kafka: &Kafka, values: Values) {
    let kafka = kafka.clone();
    let written = tokio::task::spawn_blocking(move || {
        let topic = kafka.topic(Topic::Pii(Family::Orders));
        let batch = kafka.producer().batch();
        for (key, (partition, value)) in &values {
            batch.send(OutRecord { topic: &topic, partition: Partition(*partition), key, value: Some(value), headers: &[] }).expect("sent");
        }
        batch.acked_blocking().expect("acknowledged");
    });
    written.await.expect("written");
}

/// `value` under a key that nobody made, of an entity that nobody holds.
fn forged(key: &[u8], value: &[u8]) -> (Vec<u8>, Vec<u8>) {
    const HEADER: [u8; 4] = [0xe5, 1, 1, 0];
    let text = String::from_utf8(key.to_vec()).expect("text");
    let token = text.split('|').nth(1).expect("a token").to_owned();
    let other: String = token.chars().rev().collect();
    let mut value = value.to_vec();
    let at = value.windows(4).position(|bytes| bytes == HEADER).expect("a block") + 4;
    let header = &mut value[at..at + 16];
    let data_key = hex::encode(&header);
    header.iter_mut().for_each(|byte| *byte = !*byte);
    let unknown = hex::encode(header);
    for (from, to) in [(&token, &other), (&data_key, &unknown)] {
        let at = value.windows(32).position(|bytes| bytes == from.as_bytes()).expect("in the record");
        value[at..at + 32].copy_from_slice(to.as_bytes());
    }
    (text.replace(&token, &other).into_bytes(), value)
}

/// Runs `sql` in the vault, which has `copy.db` attached as `copy`.
async fn in_vault(world: &World, sql: &str) -> u64 {
    let mut vault = sqlx::SqliteConnection::connect(&format!("{}?mode=rwc", world.urls.vault)).await.expect("vault");
    let attach = format!("ATTACH DATABASE '{}' AS copy", world.folder.path().join("copy.db").display());
    sqlx::raw_sql(sqlx::AssertSqlSafe(attach)).execute(&mut vault).await.expect("attached");
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut vault).await.expect("done").rows_affected();
    vault.close().await.expect("closed");
    done
}

async fn rows(world: &World) -> i64 {
    let mut vault = sqlx::SqliteConnection::connect(&world.urls.vault).await.expect("vault");
    sqlx::query("SELECT COUNT(*) FROM sealed_block").fetch_one(&mut vault).await.expect("count").get(0)
}

async fn audited(world: &World, action: &str) -> i64 {
    let mut keys = sqlx::SqliteConnection::connect(&world.urls.keys).await.expect("keys");
    sqlx::query("SELECT COUNT(*) FROM audit_event WHERE action = $1").bind(action).fetch_one(&mut keys).await.expect("count").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_comes_back_is_found_by_night_and_its_case_is_proved_again() {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, Stores::Sqlite, 1, orders(40), 51, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let kafka = log_of(&world, &services, Profile::Test).await;
    let (seller, due) = some_orders(&world, 40).await;
    let order = due.into_iter().find(|order| opens(&world, &seller, order) == "readable").expect("an order that opens");
    let before = values(&kafka).await;
    in_vault(&world, "CREATE TABLE copy.sealed_block AS SELECT * FROM main.sealed_block").await;

    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--wait", "--json"];
    let id = world.run(&erase).expect(0)["id"].as_str().expect("id").to_owned();
    let living = values(&kafka).await;
    let erased: Values = before.into_iter().filter(|(key, _)| !living.contains_key(key)).collect();
    assert!(!erased.is_empty() && !living.is_empty());
    let kept = rows(&world).await;

    // It comes back on the log and in the vault, and with it a block that is nobody's.
    let (key, (partition, value)) = living.iter().next().expect("a block");
    let (foreign, value) = forged(key, value);
    let mut back = erased.clone();
    back.insert(foreign.clone(), (*partition, value));
    write(&kafka, back).await;
    let again = "INSERT INTO main.sealed_block SELECT * FROM copy.sealed_block AS c WHERE NOT EXISTS \
                 (SELECT 1 FROM main.sealed_block AS s WHERE s.key_id = c.key_id)";
    assert!(in_vault(&world, again).await > 0);
    std::fs::remove_file(world.folder.path().join("copy.db")).expect("removed");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(audited(&world, "case.reopened").await, 0, "not before the night");

    world.set("SUNDER_CLOCK__OFFSET", "25h");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    for action in ["strays.found", "case.reopened", "case.proved_again"] {
        assert_eq!(audited(&world, action).await, 1, "{action}");
    }
    let now = values(&kafka).await;
    assert!(erased.keys().all(|key| !now.contains_key(key)), "what was erased lies on the log");
    assert!(!now.contains_key(&foreign), "what is nobody's lies on the log");
    assert!(living.keys().all(|key| now.contains_key(key)), "what lives is gone");
    assert_eq!(rows(&world).await, kept);
    let shown = case(&world, &id);
    assert_eq!((shown["state"].as_str(), &shown["blocked"], &shown["blocked_by"]), (Some("certified"), &Value::Bool(false), &Value::Null));
    assert_eq!(opens(&world, &seller, &order), "erased");
    assert_eq!(world.run(&["verify", &id, "--json"]).expect(0)["holds"], true);
    assert!(!checked(&world, &[&id]));
    world.run(&["audit", "verify", "--json"]).expect(0);
}
