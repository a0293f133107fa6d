//! From a row of the warehouse back to the event and the call.

use serde_json::Value;

use super::warehouse;
use super::world::{Services, Stores, World};

async fn rows_lead_back_to_their_call(stores: Stores) {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, stores, 1, 12, 17, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let trace = |table: &str, key: &str| world.run(&["trace", "--table", table, "--key", key, "--json"]);
    let tables = [
        ("SELECT selling_partner_id, order_token, '' AS child, CAST(event_id AS TEXT), source_request_id FROM orders", "orders"),
        (
            "SELECT selling_partner_id, order_token, order_item_token, CAST(event_id AS TEXT), source_request_id FROM order_items",
            "order_items",
        ),
        (
            "SELECT selling_partner_id, level_token, '' AS child, CAST(event_id AS TEXT), source_request_id FROM inventory_levels",
            "inventory_levels",
        ),
    ];
    for (sql, table) in tables {
        let row: Vec<String> = warehouse(&world, sql).await.swap_remove(0).into_iter().flatten().collect();
        let [seller, entity, child, event, request] = row.as_slice() else { panic!("{row:?}") };
        let own = if child.is_empty() { entity } else { child };
        let key = if child.is_empty() { format!("{seller}|{entity}") } else { format!("{seller}|{entity}|{child}") };
        for given in [&key, own] {
            let trace = trace(table, given).expect(0);
            assert_eq!((trace["table"].as_str(), trace["key"].as_str()), (Some(table), Some(key.as_str())));
            assert_eq!(trace["call"]["source_request_id"].as_str(), Some(request.as_str()));
            assert_eq!(trace["event"]["event_id"].as_str(), Some(event.as_str()));
            assert_eq!(trace["event"]["raw"]["poller"].as_str(), Some(concat!("sunder/", env!("CARGO_PKG_VERSION"))));
            for lies in ["state", "history", "raw"] {
                let at = &trace["event"][lies];
                assert!(at["topic"].as_str().is_some_and(|topic| topic.starts_with(&world.prefix)), "{table}: {lies} is {at}");
                assert_eq!(at["partition"], trace["event"]["state"]["partition"]);
            }
            let columns = trace["row"].as_object().expect("columns");
            assert!(columns.len() > 20 && columns["selling_partner_id"].as_str() == Some(seller.as_str()), "{columns:?}");
        }
        if table == "orders" {
            assert_eq!(trace(table, event).expect(0)["key"].as_str(), Some(key.as_str()));
        }
    }
    assert_eq!(trace("orders", "0c0c7d211d87dce7b7a4479ac42d10f6").expect(3), Value::Null);
    let seller = warehouse(&world, "SELECT selling_partner_id FROM orders").await.swap_remove(0).swap_remove(0).expect("a seller");
    assert_eq!(trace("orders", &seller).code, Some(3), "a seller names no row");
    assert_eq!(trace("buyers", "x").code, Some(2));
    let crowded = "SELECT order_token FROM order_items GROUP BY order_token HAVING COUNT(*) > 1";
    let order = warehouse(&world, crowded).await.swap_remove(0).swap_remove(0).expect("an order of several items");
    assert_eq!(trace("order_items", &order).code, Some(2), "an order names several of its items");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_lead_back_to_their_call_on_sqlite() {
    rows_lead_back_to_their_call(Stores::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_lead_back_to_their_call_on_postgres() {
    rows_lead_back_to_their_call(Stores::Postgres).await;
}
