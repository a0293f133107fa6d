//! Erasure on three brokers with three replicas of everything, while brokers go away, come back, and keep what they should not.

use serde_json::Value;
use sunder_schemas::ids::KeyId;

use super::brokers::{Cluster, turn};
use super::naming::comes_to_rest;
use super::orders;
use super::world::{Services, Stores, World};

/// A world on `cluster` with every topic on all three brokers.
pub(super) async fn world_on(cluster: &Cluster, orders: usize, seed: u64) -> World {
    let mut world = World::start(&cluster.services(), Stores::Sqlite, 2, orders, seed, "none").await;
    world.set("SUNDER_KAFKA__REPLICATION", "3");
    world
}

/// Key ids of the orders of `world` whose key is destroyed, or of those whose key lives.
pub(super) async fn keys(world: &World, state: &str) -> Vec<KeyId> {
    use sqlx::{Connection, Row};
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(&world.urls.keys).await.expect("key database answers");
    let rows = sqlx::query("SELECT key_id FROM subject WHERE state = $1 AND key_id IS NOT NULL")
        .bind(state)
        .fetch_all(&mut connection)
        .await
        .expect("query");
    rows.iter().map(|row| KeyId(row.get::<Vec<u8>, _>(0).try_into().expect("16 bytes"))).collect()
}

/// `count` different orders of one seller that have a personal value.
pub(super) async fn some_orders(world: &World, count: usize) -> (String, Vec<String>) {
    let personal = world.simulator.personal().await;
    let text = |value: &Value, name: &str| value[name].as_str().expect("text").to_owned();
    let allowed: Vec<&Value> = personal.iter().filter(|p| p["allowed"] == true && p["group"] == "recipient_address").collect();
    let seller = text(allowed.first().expect("a personal value"), "seller");
    let orders: std::collections::BTreeSet<String> =
        allowed.iter().filter(|p| p["seller"] == seller.as_str()).map(|p| text(p, "order")).collect();
    (seller, orders.into_iter().take(count).collect())
}

pub(super) fn open_case(world: &World, seller: &str, order: &str) -> String {
    let erase = ["erase", "--seller", seller, "--order", order, "--reason", "buyer-request", "--json"];
    world.run(&erase).expect(0)["id"].as_str().expect("id").to_owned()
}

pub(super) fn case(world: &World, id: &str) -> Value {
    world.run(&["cases", id, "--json"]).expect(0)
}

/// Whether an entry of `check` that is not ok says all of `words`.
pub(super) fn checked(world: &World, words: &[&str]) -> bool {
    let ended = world.run(&["check", "--json"]);
    let entries = ended.json.as_array().cloned().unwrap_or_default();
    entries.iter().any(|entry| {
        let text = format!("{} {}", entry["name"], entry["detail"]);
        entry["status"] != "ok" && words.iter().all(|word| text.contains(word))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_blocks_a_case_by_name_and_its_return_completes_it() {
    let Some(services) = Services::from_env() else { return };
    let _turn = turn().await;
    let cluster = Cluster::start(&services);
    let world = world_on(&cluster, orders(120), 21).await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, due) = some_orders(&world, 3).await;
    let living = keys(&world, "live").await;
    assert!(!cluster.blocks_of(&world.prefix, ".pii.", &living).is_empty(), "the search finds nothing at all");

    cluster.kill(3);
    let cases: Vec<String> = due.iter().map(|order| open_case(&world, &seller, order)).collect();
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    for id in &cases {
        let case = case(&world, id);
        assert_ne!(case["state"], "certified", "{case:#}");
        let why = case["blocked_by"].as_str().unwrap_or_default();
        assert!(why.contains("broker 3") && why.contains(".v1["), "broker, topic and partition are named: {why}");
        world.run(&["certificate", id, "--out", "never", "--json"]).expect(3);
    }
    assert!(checked(&world, &["broker 3"]), "check names the broker");

    cluster.start_again(3);
    comes_to_rest(&world).await;
    for id in &cases {
        let case = case(&world, id);
        assert_eq!(case["state"], "certified", "{case:#}");
        assert_eq!(world.run(&["verify", id, "--json"]).expect(0)["holds"], true);
    }
    let erased = keys(&world, "destroyed").await;
    assert!(!erased.is_empty(), "an order without any sealed group has no key; not all three are such");
    assert_eq!(cluster.blocks_of(&world.prefix, ".pii.", &erased), Vec::<String>::new(), "bytes of erased blocks are left");
    assert!(!cluster.blocks_of(&world.prefix, ".pii.", &keys(&world, "live").await).is_empty(), "what lives stays");

    // The certificate names each replica that was read.
    world.run(&["certificate", &cases[0], "--out", "out", "--json"]).expect(0);
    let statement = std::fs::read_to_string(world.folder.path().join("out/certificate.json")).expect("statement");
    for broker in 1..=3 {
        assert!(statement.contains(&format!("{}.pii.orders.v1[0] on broker {broker}", world.prefix)), "broker {broker}");
    }
}
