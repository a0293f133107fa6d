//! A broker as in production: TLS, a password, and a user with no more rights than docs/operations.md lists.

use std::path::Path;

use super::brokers::{Cluster, turn};
use super::cluster::{keys, some_orders};
use super::orders;
use super::story::assert_counts;
use super::world::{Services, Stores, World};

/// Has `world` log in as `user` with `mechanism`.
fn log_in(world: &World, plain: &str, user: &str, mechanism: &str, (ca, password): (&Path, &Path)) {
    let security = format!(
        "\n[kafka.security]\nprotocol = \"SASL_SSL\"\nmechanism = \"{mechanism}\"\nusername = \"{user}\"\npassword = {{ file = \"{}\" }}\nca = \"{}\"\n",
        password.display(),
        ca.display()
    );
    std::fs::write(world.config(), format!("{plain}{security}")).expect("config");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_tls_and_a_password_gives_a_certificate_and_refuses_by_name() {
    let Some(services) = Services::from_env() else { return };
    let _turn = turn().await;
    let cluster = Cluster::start_secured(&services);
    let world = World::start(&cluster.services(), Stores::Sqlite, 2, orders(60), 31, "none").await;
    let (ca, password) = cluster.secrets();
    let plain = std::fs::read_to_string(world.config()).expect("config");

    // Whoever may not is told so, and what to mend.
    let other = world.folder.path().join("other-password");
    std::fs::write(&other, "not-the-password\n").expect("write");
    let own_ca = world.folder.path().join("other-ca.pem");
    std::fs::write(&own_ca, std::fs::read(cluster.secrets().0.with_file_name("broker.crt")).expect("certificate")).expect("write");
    for (user, ca, password, words) in [
        ("sunder", &ca, &other, "kafka.security"),
        ("sunder", &own_ca, &password, "kafka.security"),
        ("stranger", &ca, &password, "AuthorizationFailed"),
    ] {
        log_in(&world, &plain, user, "SCRAM-SHA-512", (ca, password));
        let ended = world.run(&["run", "--until-idle", "--json"]);
        assert_eq!(ended.code, Some(1), "{words}: {}", ended.log_tail);
        let last = ended.log_tail.lines().last().unwrap_or_default();
        assert!(last.contains(words), "{user}: {last}");
        assert!(!ended.log_tail.contains("not-the-password"));
    }

    // Each way to log in reads every replica of its own accord: both clients know it.
    for (mechanism, count) in [("SCRAM-SHA-512", 1), ("SCRAM-SHA-256", 2), ("PLAIN", 3)] {
        log_in(&world, &plain, "sunder", mechanism, (&ca, &password));
        world.run(&["run", "--until-idle", "--json"]).expect(0);
        assert_counts(&world).await;
        let (seller, due) = some_orders(&world, count).await;
        let order = due.last().expect("an order");
        let erase = ["erase", "--seller", &seller, "--order", order, "--reason", "buyer-request", "--wait", "--json"];
        let case = world.run(&erase).expect(0);
        assert_eq!(case["state"], "certified", "{mechanism}: {case:#}");
        world.run(&["check", "--json"]).expect(0);
    }
    let id = world.run(&["cases", "--json"]).expect(0)[0]["id"].as_str().expect("id").to_owned();
    world.run(&["certificate", &id, "--out", "out", "--json"]).expect(0);
    let statement = std::fs::read_to_string(world.folder.path().join("out/certificate.json")).expect("statement");
    assert!(statement.contains(&format!("{}.pii.orders.v1[0] on broker 1", world.prefix)));
    let erased = keys(&world, "destroyed").await;
    assert!(!erased.is_empty());
    assert_eq!(cluster.blocks_of(&world.prefix, ".pii.", &erased), Vec::<String>::new(), "bytes of erased blocks are left");
}
