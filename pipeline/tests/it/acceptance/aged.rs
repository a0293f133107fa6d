//! Business data leaves after 18 months: orders with all that belongs to them, inventory levels that are no longer listed; nothing of it
//! comes back, neither from Amazon nor from the log.

use serde_json::{Value, json};

use super::extent::{pass, replay, rows, some_order, tokens, values_of};
use super::world::{Services, Stores, World};
use super::{story, warehouse};

#[tokio::test(flavor = "multi_thread")]
async fn business_data_leaves_after_its_period_on_sqlite() {
    let Some(services) = Services::from_env() else { return };
    business_data_leaves(&services, Stores::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn business_data_leaves_after_its_period_on_postgresql() {
    let Some(services) = Services::from_env() else { return };
    business_data_leaves(&services, Stores::Postgres).await;
}

/// Number of rows of a table.
async fn count(world: &World, sql: &'static str) -> String {
    warehouse(world, sql).await.pop().and_then(|row| row.into_iter().next().flatten()).expect("a count")
}

async fn business_data_leaves(services: &Services, stores: Stores) {
    let mut world = World::start(services, stores, 2, 60, 21, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    story::assert_counts(&world).await;
    let (seller, order) = some_order(&world).await;
    let token = tokens(&world).await.into_iter().next().expect("an order");
    assert!(values_of(&world, services, &token, &[".state.", ".events."]) > 0);
    let truth = world.simulator.truth().await;
    let sellers: Vec<&str> = truth["sellers"].as_array().expect("sellers").iter().filter_map(|s| s["seller"].as_str()).collect();
    let paused = sellers.iter().find(|id| **id != seller).expect("another seller").to_owned();
    let levels = "SELECT selling_partner_id FROM inventory_levels";
    let of_paused = rows(&world, levels, paused).await;
    assert!(of_paused > 0);
    world.run(&["sellers", "pause", paused, "--json"]).expect(0);

    // Seventeen months: nothing of business data has come of age.
    pass(&mut world, "517d", "517d").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(rows(&world, levels, paused).await, of_paused);
    assert_ne!(count(&world, "SELECT CAST(count(*) AS TEXT) FROM orders").await, "0");

    // Nineteen.
    pass(&mut world, "61d", "578d").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_gone(&world, services, &token).await;
    assert_eq!(rows(&world, levels, paused).await, 0, "what is no longer listed leaves");
    let truth = world.simulator.truth().await;
    let of_seller = truth["sellers"].as_array().and_then(|all| all.iter().find(|s| s["seller"] == seller.as_str())).cloned();
    let listed = of_seller.and_then(|s| s["inventory_rows"].as_u64()).expect("a count");
    assert!(listed > 0 && rows(&world, levels, &seller).await as u64 >= listed, "what is listed stays");
    let kinds = aged_kinds(&world);
    assert!(kinds.iter().any(|kind| kind == "orders") && kinds.iter().any(|kind| kind == "inventory"), "{kinds:?}");

    // An old order that changes is fetched again, and its old events come again.
    world.simulator.post("/_sim/change", json!({"seller": seller, "order": order})).await;
    pass(&mut world, "1h", "13873h").await;
    assert!(replay(&world, services, &token).await > 0, "its raw events are still there");
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(report["past_period"].as_u64() > Some(0), "{report}");
    assert_gone(&world, services, &token).await;
}

async fn assert_gone(world: &World, services: &Services, token: &str) {
    for sql in [
        "SELECT CAST(count(*) AS TEXT) FROM orders",
        "SELECT CAST(count(*) AS TEXT) FROM order_items",
        "SELECT CAST(count(*) AS TEXT) FROM packages",
    ] {
        assert_eq!(count(world, sql).await, "0", "{sql}");
    }
    assert_eq!(values_of(world, services, token, &[".state.", ".events.", ".pii."]), 0);
    let file = world.folder.path().join("warehouse.db");
    if let Ok(bytes) = std::fs::read(file) {
        assert!(!bytes.windows(token.len()).any(|window| window == token.as_bytes()), "the file still has the pseudonym");
    }
}

/// The kinds of the cases over old business data, each certified and verified again.
fn aged_kinds(world: &World) -> Vec<String> {
    let cases = world.run(&["cases", "--json"]).expect(0);
    let of_age = |case: &&Value| case["kind"].is_string();
    let aged: Vec<&Value> = cases.as_array().expect("a list").iter().filter(of_age).collect();
    for case in &aged {
        assert_eq!((case["state"].as_str(), case["reason"].as_str()), (Some("certified"), Some("expiry")), "{case:#}");
        let id = case["id"].as_str().expect("id");
        let report = world.run(&["verify", id, "--json"]).expect(0);
        assert_eq!(report["holds"], true, "{report:#}");
    }
    aged.iter().filter_map(|case| case["kind"].as_str()).map(str::to_owned).collect()
}
