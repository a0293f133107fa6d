//! A replica that was away for longer than tombstones are kept: it keeps what was deleted meanwhile, for good, with nothing to show for it
//! (`delete.retention.ms` in Kafka's topic settings: a reader that lags more may miss a tombstone, and so may a replica).

use std::path::{Path, PathBuf};
use std::time::Duration;

use sunder::kafka::{Kafka, OutRecord};
use sunder_schemas::class::Family;
use sunder_schemas::ids::Partition;
use sunder_schemas::topic::{Profile, Topic};

use super::awaited::until;
use super::brokers::{Cluster, turn};
use super::cluster::{case, keys, open_case, some_orders, world_on};
use super::extent::log_of;
use super::naming::{alter, comes_to_rest, opens};
use super::orders;
use super::world::World;

/// The broker that goes away.
const AWAY: u8 = 3;
const PERSONAL: Topic = Topic::Pii(Family::Orders);
/// How long brokers may need for what is asked of them (chosen: far above what any needs).
const DONE_WITHIN: Duration = Duration::from_secs(180);

/// Lets the brokers that are there forget the tombstones of personal data, as they do after 40 days.
async fn outlive_tombstones(world: &World, cluster: &Cluster) {
    let log = log_of(world, &cluster.services(), Profile::Test).await;
    let topic = log.topic(PERSONAL);
    let declared = log.declared(PERSONAL);
    let short = declared.iter().map(|(name, value)| (*name, if *name == "delete.retention.ms" { "100" } else { value.as_str() }));
    alter(&cluster.services(), &topic, &short.collect::<Vec<_>>()).await;
    let runtime = tokio::runtime::Handle::current();
    let gone = tokio::task::spawn_blocking(move || {
        // The cleaner stamps a tombstone with its last day when it first meets it, so those of before get successors.
        let batch = log.producer().batch();
        for (partition, key) in tombstones(&log, &topic) {
            batch.send(OutRecord { topic: &topic, partition, key: &key, value: None, headers: &[] }).expect("sent");
        }
        batch.acked_blocking().expect("acknowledged");
        runtime.block_on(until(DONE_WITHIN, "no tombstone", async || {
            // Each ends a segment; the cleaner takes a tombstone in a pass after the one that stamped it.
            log.beat(&[PERSONAL]).await.expect("a record on every partition");
            tombstones(&log, &topic).is_empty()
        }));
    });
    gone.await.expect("tombstones go");
    world.run(&["topics", "apply", "--json"]).expect(0);
}

/// Partition and key of each tombstone of data on the leaders of `topic`.
fn tombstones(log: &Kafka, topic: &str) -> Vec<(Partition, Vec<u8>)> {
    let ranges: Vec<_> = (0..4).map(|n| log.whole_blocking(topic, Partition(n)).expect("bounds")).collect();
    let mut found = Vec::new();
    let read = log.read_blocking(&ranges, |record| {
        if let (Some(key), None, false) = (record.key, record.value, record.is_own()) {
            found.push((record.partition, key.to_vec()));
        }
        Ok(())
    });
    read.expect("records");
    found
}

/// The folders of personal data on the broker that goes away.
fn folders(world: &World, cluster: &Cluster) -> Vec<PathBuf> {
    let prefix = format!("{}.pii.orders.v1-", world.prefix);
    let all = std::fs::read_dir(cluster.data(AWAY)).expect("folders").flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))).collect()
}

/// Copies the files of folder `from` into `to`, which has them alone then.
fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("removed");
    }
    std::fs::create_dir_all(to).expect("folder");
    for file in std::fs::read_dir(from).expect("folder").flatten() {
        std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_away_for_longer_than_tombstones_are_kept_is_found_by_its_reading_and_proved() {
    let Some(services) = super::world::Services::from_env() else { return };
    let _turn = turn().await;
    let cluster = Cluster::start(&services);
    let world = world_on(&cluster, orders(40), 36).await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, due) = some_orders(&world, 40).await;
    let order = due.into_iter().find(|order| opens(&world, &seller, order) == "readable").expect("an order that opens");
    // Those that were overdue when they came are no part of this.
    let earlier = keys(&world, "destroyed").await;

    cluster.stop(AWAY);
    let kept = tempfile::tempdir().expect("temporary folder");
    let replicas = folders(&world, &cluster);
    assert_eq!(replicas.len(), 4, "{replicas:?}");
    let copy_of = |replica: &Path| kept.path().join(replica.file_name().expect("a name"));
    replicas.iter().for_each(|replica| copy(replica, &copy_of(replica)));

    let id = open_case(&world, &seller, &order);
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    let why = case(&world, &id)["blocked_by"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("broker 3"), "{why}");
    let erased: Vec<_> = keys(&world, "destroyed").await.into_iter().filter(|key| !earlier.contains(key)).collect();
    assert!(!erased.is_empty());
    let here = format!("/kafka/{AWAY}/data/");
    let left = || cluster.blocks_of(&world.prefix, ".pii.orders.", &erased);
    outlive_tombstones(&world, &cluster).await;
    assert!(!left().is_empty() && left().iter().all(|file| file.contains(&here)), "{:?}", left());

    // Back after the tombstones: the open case finds it there, tombstones it again, and only then has its certificate.
    cluster.start_again(AWAY);
    comes_to_rest(&world).await;
    let shown = case(&world, &id);
    assert_eq!(shown["state"], "certified", "{shown:#}");
    let events = shown["events"].as_array().expect("events");
    let found = events.iter().find(|event| event["step"] == "found_again").unwrap_or_else(|| panic!("it is named: {shown:#}"));
    assert!(found["evidence"]["places"].to_string().contains("on broker 3"), "{found:#}");
    assert_eq!(left(), Vec::<String>::new());

    // Away once more, and back with the disk of then: the case is closed, and the proof of all finds what the disk brings.
    cluster.stop(AWAY);
    outlive_tombstones(&world, &cluster).await;
    replicas.iter().for_each(|replica| copy(&copy_of(replica), replica));
    cluster.start_again(AWAY);
    assert!(!left().is_empty(), "the disk of then has the value");
    until(DONE_WITHIN, "the value is found", async || {
        let proved = world.run(&["verify", "--all", "--json"]).expect(3);
        let of_case = proved.as_array().expect("cases").iter().find(|proof| proof["case"] == id.as_str()).expect("the case").clone();
        assert_eq!(of_case["holds"], false, "{of_case:#}");
        of_case["mended"] == true && of_case["reason"].as_str().is_some_and(|why| why.contains("on broker 3"))
    })
    .await;
    until(DONE_WITHIN, "a proof of all that holds", async || world.run(&["verify", "--all", "--json"]).code == Some(0)).await;
    assert_eq!(left(), Vec::<String>::new());
    assert_eq!(case(&world, &id)["state"], "certified");
}
