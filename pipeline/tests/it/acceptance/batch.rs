//! A tenth of all orders erased at once on three brokers and PostgreSQL, one of which dies while the case is worked.
//! `SUNDER_ACCEPTANCE_ORDERS=20000` makes it the size that an operator would try.

use std::time::Duration;

use super::awaited::until;
use super::brokers::{Cluster, turn};
use super::cluster::{case, keys, some_orders};
use super::naming::opens;
use super::orders;
use super::running::Running;
use super::world::{Services, Stores, World};

/// Within which each step happens, also of 20,000 orders on a busy machine.
const STEP: Duration = Duration::from_secs(1_200);

#[tokio::test(flavor = "multi_thread")]
async fn many_orders_are_erased_at_once_and_a_broker_that_dies_meanwhile_holds_their_certificate() {
    let Some(services) = Services::from_env() else { return };
    let _turn = turn().await;
    let cluster = Cluster::start(&services);
    let all = orders(200);
    let stores = if services.postgres.is_some() { Stores::Postgres } else { Stores::Sqlite };
    let services = Services { postgres: services.postgres.clone(), ..cluster.services() };
    let mut world = World::start(&services, stores, 2, all, 29, "none").await;
    world.set("SUNDER_KAFKA__REPLICATION", "3");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, due) = some_orders(&world, all / 10).await;
    assert_eq!(due.len(), all / 10);
    std::fs::write(world.folder.path().join("due.txt"), due.join("\n")).expect("written");
    let earlier = keys(&world, "destroyed").await;

    let running = Running::start(&world).await;
    let erase = ["erase", "--seller", &seller, "--orders-file", "due.txt", "--reason", "amazon-request", "--json"];
    let id = world.run(&erase).expect(0)["id"].as_str().expect("id").to_owned();
    until(STEP, "keys are destroyed", async || case(&world, &id)["keys_destroyed_at"].is_string()).await;
    cluster.kill(2);
    until(STEP, "the broker is named", async || case(&world, &id)["blocked_by"].as_str().is_some_and(|why| why.contains("broker 2"))).await;
    assert_ne!(case(&world, &id)["state"], "certified");
    world.run(&["certificate", &id, "--out", "never", "--json"]).expect(3);

    cluster.start_again(2);
    let mut told = String::new();
    until(STEP, "certified", async || {
        let shown = case(&world, &id);
        let now = format!("{}: {}", shown["state"], shown["blocked_by"]);
        if now != told {
            eprintln!("{now}");
            told = now;
        }
        shown["state"] == "certified"
    })
    .await;
    running.stop();
    let shown = case(&world, &id);
    assert_eq!(shown["subjects"], due.len(), "{shown:#}");
    let verified = world.run(&["verify", &id, "--json"]).expect(0);
    assert_eq!((&verified["holds"], &verified["scan"]["found"], &verified["recover"]["opened"]), (&true.into(), &0.into(), &0.into()));
    let erased: Vec<_> = keys(&world, "destroyed").await.into_iter().filter(|key| !earlier.contains(key)).collect();
    assert!(erased.len() > due.len() / 4, "{} keys: most of the orders were never sealed", erased.len());
    assert_eq!(cluster.blocks_of(&world.prefix, ".pii.", &erased), Vec::<String>::new(), "bytes of erased blocks are left");
    assert!(!cluster.blocks_of(&world.prefix, ".pii.", &keys(&world, "live").await).is_empty(), "what lives stays");
    for order in [due.first(), due.last()].into_iter().flatten() {
        assert_eq!(opens(&world, &seller, order), "erased");
    }
}
