//! Who may be named: sellers of the config and of the register, and nobody else.

use serde_json::json;

use super::world::{Services, Stores, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_seller_gets_no_case_and_one_of_the_config_does_before_it_was_ever_polled() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 5, 31, "none").await;
    let order = ["--order", "123-1234567-1234567", "--reason", "buyer-request", "--json"];
    let erase = |seller: &str| world.run(&[&["erase", "--seller", seller], &order[..]].concat());
    assert_eq!(erase("ANOBODY").code, Some(2));
    assert_eq!(world.run(&["sellers", "remove", "ANOBODY", "--json"]).code, Some(2));
    assert_eq!(world.run(&["cases", "--json"]).expect(0), json!([]));
    assert_eq!(world.run(&["sellers", "list", "--json"]).expect(0), json!([]));

    let truth = world.simulator.truth().await;
    let seller = truth["sellers"][0]["seller"].as_str().expect("a seller");
    assert_eq!(erase(seller).expect(0)["state"], "requested");
    assert_eq!(world.run(&["sellers", "remove", seller, "--json"]).expect(0)["reason"], "seller-offboarding");
    let ended = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!((&ended["polled"], &ended["cases_certified"]), (&json!(0), &json!(2)));
}
