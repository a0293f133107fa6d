//! A schema registry as others run it: every value is written with the id that the registry gave, and nothing goes on without it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::cluster::some_orders;
use super::story::assert_counts;
use super::world::{Services, Stores, World, client};
use super::{orders, read_log};

/// From `scripts/services env`. In CI its absence is a failure; elsewhere it is said loudly.
#[expect(clippy::disallowed_methods, reason = "tests find their services by environment variables")]
fn address() -> Option<String> {
    let address = std::env::var("SUNDER_TEST_REGISTRY").ok();
    if address.is_none() {
        assert!(std::env::var("CI").is_err(), "SUNDER_TEST_REGISTRY is not set: CI needs scripts/services");
        eprintln!("NOT RUN: no schema registry. Start it with `scripts/services start`, then `eval \"$(scripts/services env)\"`.");
    }
    address
}

async fn ask(url: String) -> Value {
    let response = client().get(url).send().await.expect("the registry answers");
    assert!(response.status().is_success(), "{}", response.status());
    response.json().await.expect("JSON")
}

/// The schema id of a record as `read_log` gives it; `None` of a tombstone.
fn framed_id(bytes: &[u8]) -> Option<u32> {
    // Keys are text; a zero byte ends them, and the frame begins with one.
    let value = &bytes[bytes.iter().position(|b| *b == 0).expect("a key's end") + 1..];
    let id = value.strip_prefix(&[0])?.get(..4)?;
    // After a tombstone's key come the names of its headers: letters, which no id of a registry begins with.
    Some(u32::from_be_bytes(id.try_into().expect("four bytes"))).filter(|id| *id < 1 << 24)
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_written_with_the_ids_that_a_registry_gave_and_certified_through_it() {
    let (Some(services), Some(registry)) = (Services::from_env(), address()) else { return };
    let mut world = World::start(&services, Stores::Sqlite, 2, orders(60), 41, "none").await;
    world.set("SUNDER_REGISTRY__URL", &registry);
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;

    let mut ids = BTreeSet::new();
    for topic in ["state.orders.v1", "pii.orders.v1"] {
        let subject = format!("{}.{topic}-value", world.prefix);
        let latest = ask(format!("{registry}/subjects/{subject}/versions/latest")).await;
        ids.insert(u32::try_from(latest["id"].as_u64().expect("an id")).expect("four bytes"));
    }
    let mut framed = BTreeSet::new();
    read_log(&world, &services.kafka, |topic, _, _, bytes| {
        if topic.ends_with(".state.orders.v1") || topic.ends_with(".pii.orders.v1") {
            framed.extend(framed_id(bytes));
        }
    });
    assert!(ids.len() == 2 && framed == ids, "registered {ids:?}, written {framed:?}");

    let (seller, due) = some_orders(&world, 1).await;
    let erase = ["erase", "--seller", &seller, "--order", &due[0], "--reason", "buyer-request", "--wait", "--json"];
    assert_eq!(world.run(&erase).expect(0)["state"], "certified");

    // A registry that is away ends the start with the key that names it.
    world.set("SUNDER_REGISTRY__URL", "http://127.0.0.1:1");
    let ended = world.run(&["run", "--until-idle", "--json"]);
    assert_eq!(ended.code, Some(1), "{}", ended.log_tail);
    assert!(ended.log_tail.lines().last().is_some_and(|line| line.contains("registry.url")), "{}", ended.log_tail);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_holds_another_schema_of_the_name_refuses_and_nothing_is_written() {
    let (Some(services), Some(registry)) = (Services::from_env(), address()) else { return };
    let mut world = World::start(&services, Stores::Sqlite, 1, 5, 42, "none").await;
    world.set("SUNDER_REGISTRY__URL", &registry);
    let subject = format!("{}.state.orders.v1-value", world.prefix);
    let other = json!({"type": "record", "name": "Other", "namespace": "example", "fields": [{"name": "only", "type": "string"}]});
    let url = format!("{registry}/subjects/{subject}/versions");
    let answer = client().post(url).json(&json!({"schema": other.to_string()})).send().await.expect("the registry answers");
    assert!(answer.status().is_success(), "{}", answer.status());

    let ended = world.run(&["run", "--until-idle", "--json"]);
    assert_eq!(ended.code, Some(1), "{}", ended.log_tail);
    let last = ended.log_tail.lines().last().unwrap_or_default();
    assert!(last.contains("registry.url") && last.contains(&subject) && last.contains("not compatible"), "{last}");
    let mut records = 0;
    read_log(&world, &services.kafka, |_, _, _, bytes| records += u64::from(framed_id(bytes).is_some()));
    assert_eq!(records, 0);
}
