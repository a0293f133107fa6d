//! PostgreSQL's primary dies in the middle of a run and its standby takes over: what the standby never received is done again, nothing
//! that was erased opens, and nothing is lost.

use std::collections::BTreeSet;

use super::databases::Postgres;
use super::door::Door;
use super::restore::{Order, are, check_says, erase, orders_of, readable, until_idle};
use super::running::{Running, log_of};
use super::story::assert_counts;
use super::world::{Services, Stores, World};

/// How many of the orders that came after the standby was behind are opened.
const YOUNGER: usize = 12;

/// What lies on the pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Keys,
    Everything,
}

async fn destroyed(world: &World) -> i64 {
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(&world.urls.keys).await.expect("key database answers");
    sqlx::query_scalar("SELECT count(*) FROM subject WHERE state = 'destroyed'").fetch_one(&mut connection).await.expect("query")
}

async fn taken_over(mode: &str, part: Part, seed: u64) {
    let Some(shared) = Services::from_env() else { return };
    if shared.postgres.is_none() {
        return;
    }
    let pair = Postgres::with_standby(mode);
    let door = Door::to(&pair.primary());
    let behind = Services { postgres: Some(format!("postgres://postgres@{}/postgres", door.address())), ..shared };
    let mut world = World::growing(&behind, Stores::Postgres, (2, 60, 400), seed, "none").await;
    if part == Part::Keys {
        let file = |name: &str| format!("sqlite://{}", world.folder.path().join(name).display());
        (world.urls.vault, world.urls.warehouse) = (file("vault.db"), file("warehouse.db"));
        let (vault, warehouse) = (world.urls.vault.clone(), world.urls.warehouse.clone());
        world.set("SUNDER_VAULT__URL", &vault);
        world.set("SUNDER_WAREHOUSE__URL", &warehouse);
    }
    until_idle(&world);
    let known = orders_of(&world).await;
    let picked = readable(&world, &known, 4);
    let (kept, gone) = picked.split_at(2);

    let is_behind = mode == "async";
    if is_behind {
        pair.script(&["standby", "behind"]);
    }
    let before = erase(&world, &gone[0], "buyer-request");
    let erased = destroyed(&world).await;
    assert!(erased > 0, "its key is destroyed on the primary");
    world.simulator.post("/_sim/clock", serde_json::json!({"advance": "2d"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "2d");
    let running = Running::start(&world).await;
    running.until_metric("sunder_sink_rows_written_total", 50.0).await;
    pair.script(&["standby", "takes-over"]);
    door.lead_to(&pair.standby());
    let received = destroyed(&world).await;
    assert!(if is_behind { received == 0 } else { received >= erased }, "the standby received {received} of {erased}");
    let (code, _) = running.ended();
    assert_eq!(code, Some(1), "{}", world.last_words());
    assert!(log_of(&world).contains("its standby took over, under this process"), "{}", world.last_words());

    let said = check_says(&world, "key database");
    assert_eq!(said[0]["status"], "fail", "{said:?}");
    // A read is the first that happens: nothing may be served before the erasures are done again.
    are(&world, &gone[..1], "erased");
    are(&world, kept, "readable");
    until_idle(&world);
    are(&world, &gone[..1], "erased");
    are(&world, kept, "readable");
    assert_counts(&world).await;
    let younger: BTreeSet<Order> = orders_of(&world).await.difference(&known).cloned().collect();
    // One that was cancelled is due at once.
    let told = world.simulator.addressed().await;
    let younger: Vec<Order> = younger.intersection(&told).take(YOUNGER).cloned().collect();
    assert_eq!(younger.len(), YOUNGER);
    are(&world, &younger, "readable");
    let said = check_says(&world, "restore of keys");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0]["detail"].as_str().is_some_and(|detail| detail.ends_with("nothing was lost")), "{said:?}");

    let after = erase(&world, &gone[1], "amazon-request");
    are(&world, gone, "erased");
    for case in [before, after] {
        assert_eq!(world.run(&["verify", &case, "--json"]).expect(0)["holds"], true, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_was_behind_takes_over_the_keys_and_opens_nothing_that_was_erased() {
    taken_over("async", Part::Keys, 61).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_was_behind_takes_over_everything_and_nothing_is_lost() {
    taken_over("async", Part::Everything, 62).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_was_not_behind_takes_over_everything_and_nothing_is_lost() {
    taken_over("sync", Part::Everything, 63).await;
}
