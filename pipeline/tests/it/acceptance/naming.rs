//! What keeps a case from its certificate is named by `cases` and `check`, for as long as it lasts; mended, the case completes.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use super::awaited::until;
use super::brokers::{Cluster, turn};
use super::cluster::{case, checked, open_case, some_orders};
use super::extent::{log_of, values_of};
use super::world::{Services, Stores, World};

/// Within this what can be seen must be said.
const NAMED_WITHIN: Duration = Duration::from_secs(60);
/// How long a broker may need for what is asked of it (chosen: far above what any needs).
const DONE_WITHIN: Duration = Duration::from_secs(180);

/// A world whose orders are read, one of them, and its seller.
async fn world_with_order(services: &Services, seed: u64) -> (World, String, String) {
    let world = World::start(services, Stores::Sqlite, 1, 40, seed, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, orders) = some_orders(&world, 40).await;
    // One whose time has not come: an order that was never sealed has no key and no block.
    let order = orders.into_iter().find(|order| opens(&world, &seller, order) == "readable").expect("an order that opens");
    (world, seller, order)
}

/// What `open` says of `order`.
pub(super) fn opens(world: &World, seller: &str, order: &str) -> String {
    let args = ["open", "--json", "--seller", seller, "--order", order, "--purpose", "fulfilment", "--role", "shipping"];
    world.run(&args).json["state"].as_str().expect("a state").to_owned()
}

/// `run --until-idle` ends with 0. On a machine that has too much to do, brokers that were just started let a case wait for longer than
/// such a run does; then it says what the case waits for, and goes on when it is called again.
pub(super) async fn comes_to_rest(world: &World) {
    until(DONE_WITHIN, "a run that has nothing left to do", async || {
        let ended = world.run(&["run", "--until-idle", "--json"]);
        assert!(matches!(ended.code, Some(0 | 3)), "exit {:?}: {} {}", ended.code, ended.what, ended.log_tail);
        ended.code == Some(0)
    })
    .await;
}

/// The case does not certify, and `cases` and `check` say all of `words`.
fn assert_named(world: &World, id: &str, words: &[&str]) {
    let shown = case(world, id);
    assert_ne!(shown["state"], "certified", "{shown:#}");
    let why = shown["blocked_by"].as_str().unwrap_or_default();
    assert!(words.iter().all(|word| why.contains(word)), "`cases` must say {words:?}: {why}");
    assert!(checked(world, words), "`check` must say {words:?}");
    world.run(&["certificate", id, "--out", "never", "--json"]).expect(3);
}

async fn assert_completes(world: &World, id: &str) -> Value {
    comes_to_rest(world).await;
    let shown = case(world, id);
    assert_eq!(shown["state"], "certified", "{shown:#}");
    assert_eq!(shown["gone_by"], Value::Null, "{shown:#}");
    shown
}

/// Replaces the settings of a topic by `settings` and the broker's own, as an administrator does who knows nothing of ours.
pub(super) async fn alter(services: &Services, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &services.kafka).create().expect("admin client");
    let mut change = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in settings {
        change = change.set(name, value);
    }
    let results = admin.alter_configs([&change], &AdminOptions::new()).await.expect("brokers answer");
    results.into_iter().for_each(|result| drop(result.expect("settings are taken")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_topic_is_named_and_its_heartbeats_complete_the_case() {
    let Some(services) = Services::from_env() else { return };
    let (world, seller, order) = world_with_order(&services, 31).await;
    let id = open_case(&world, &seller, &order);
    until(NAMED_WITHIN, "idle partitions", async || checked(&world, &["heartbeats are missing", ".v1["])).await;
    assert_named(&world, &id, &["no process with the role `retain` runs", "heartbeats"]);
    assert_completes(&world, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_is_named_and_its_end_completes_the_case() {
    let Some(services) = Services::from_env() else { return };
    let (world, seller, order) = world_with_order(&services, 32).await;
    let topic = format!("{}.pii.orders.v1", world.prefix);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &services.kafka)
        .set("transactional.id", &world.prefix)
        .set("transaction.timeout.ms", "600000")
        .create()
        .expect("producer");
    producer.init_transactions(DONE_WITHIN).expect("transactions");
    producer.begin_transaction().expect("begin");
    producer.send(BaseRecord::<[u8], [u8]>::to(&topic).partition(0).key(b"~hb".as_slice())).expect("send");
    producer.flush(DONE_WITHIN).expect("flush");

    let id = open_case(&world, &seller, &order);
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    assert_named(&world, &id, &["an open transaction", &format!("{topic}[0]")]);
    producer.abort_transaction(DONE_WITHIN).expect("abort");
    assert_completes(&world, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_setting_is_named_and_the_declared_one_completes_the_case() {
    let Some(services) = Services::from_env() else { return };
    let (world, seller, order) = world_with_order(&services, 33).await;
    let topic = format!("{}.pii.orders.v1", world.prefix);
    // Taken by the broker, which then neither deletes nor compacts.
    alter(&services, &topic, &[("cleanup.policy", "")]).await;
    // A request is taken all the same, and its key goes at once.
    let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--wait", "--json"];
    world.run(&erase).expect(3);
    assert_eq!(opens(&world, &seller, &order), "erased");
    let cases = world.run(&["cases", "--json"]).expect(0);
    let id = cases[0]["id"].as_str().expect("id");
    assert_named(&world, id, &["topic settings drifted", &topic, "cleanup.policy"]);
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    assert_named(&world, id, &["topic settings drifted", &topic, "cleanup.policy"]);
    world.run(&["topics", "apply", "--json"]).expect(0);
    assert_completes(&world, id).await;
}

/// A foreign producer with another partitioner: a value that our tombstone never meets, and a tombstone that meets no value.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_partitioner_put_elsewhere_is_found_named_and_removed() {
    use sunder::kafka::OutRecord;
    use sunder_schemas::class::Family;
    use sunder_schemas::ids::Partition;
    use sunder_schemas::topic::{Profile, Topic};

    let Some(services) = Services::from_env() else { return };
    let (world, seller, order) = world_with_order(&services, 34).await;
    let kafka = log_of(&world, &services, Profile::Test).await;
    // Every value of the topic once more on the next partition, and its tombstone two further.
    let log = kafka.clone();
    let moved = tokio::task::spawn_blocking(move || {
        let kafka = log;
        let topic = kafka.topic(Topic::Pii(Family::Orders));
        let ranges: Vec<_> = (0..4).map(|n| kafka.whole_blocking(&topic, Partition(n)).expect("bounds")).collect();
        let mut values = Vec::new();
        let read = kafka.read_blocking(&ranges, |record| {
            if let (Some(key), Some(value), false) = (record.key, record.value, record.is_own()) {
                values.push((record.partition.0, key.to_vec(), value.to_vec()));
            }
            Ok(())
        });
        read.expect("values");
        let batch = kafka.producer().batch();
        for (partition, key, value) in &values {
            let elsewhere = |by: i32| Partition((partition + by) % 4);
            let record = OutRecord { topic: &topic, partition: elsewhere(1), key, value: Some(value), headers: &[] };
            batch.send(record).expect("sent");
            batch.send(OutRecord { partition: elsewhere(2), value: None, ..record }).expect("sent");
        }
        batch.acked_blocking().expect("acknowledged");
        values
    });
    let values = moved.await.expect("moved");
    assert!(!values.is_empty());

    let id = open_case(&world, &seller, &order);
    let shown = assert_completes(&world, &id).await;
    let events = shown["events"].as_array().expect("events");
    let found = events.iter().find(|event| event["step"] == "found_again").unwrap_or_else(|| panic!("it is named: {shown:#}"));
    assert!(found["evidence"].to_string().contains(&format!("{}.pii.orders.v1[", world.prefix)), "{found:#}");
    assert!(events.iter().any(|event| event["step"] == "tombstoned_again"), "{shown:#}");
    assert_eq!(opens(&world, &seller, &order), "erased");
    // The other orders' copies lie where they were put, and each of this one's is gone from every partition.
    assert!(values_of(&world, &services, "|", &[".pii.orders."]) > 0);
    assert_eq!(world.run(&["verify", &id, "--json"]).expect(0)["holds"], true);

    // Brought back after the certificate, it is found by the proof of all, deleted again, and proved gone.
    assert_eq!(world.run(&["verify", "--all", "--json"]).expect(0)[0]["holds"], true);
    let written = tokio::task::spawn_blocking(move || {
        let topic = kafka.topic(Topic::Pii(Family::Orders));
        let batch = kafka.producer().batch();
        for (partition, key, value) in &values {
            let partition = Partition((partition + 1) % 4);
            batch.send(OutRecord { topic: &topic, partition, key, value: Some(value), headers: &[] }).expect("sent");
        }
        batch.acked_blocking().expect("acknowledged");
    });
    written.await.expect("written");
    let proved = world.run(&["verify", "--all", "--json"]).expect(3);
    assert!(proved[0]["holds"] == false && proved[0]["mended"] == true, "{proved:#}");
    until(DONE_WITHIN, "a proof of all that holds", async || world.run(&["verify", "--all", "--json"]).code == Some(0)).await;
    assert_eq!(case(&world, &id)["state"], "certified");
}

/// The magic byte of a batch that starts a rolled segment: the cleaner stops at it for good, and so does every reader.
fn damage(folder: &std::path::Path) -> std::path::PathBuf {
    const MAGIC_AT: usize = 16;
    let mut segments: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    segments.sort();
    let closed = segments.iter().rev().skip(1).find(|path| path.metadata().is_ok_and(|meta| meta.len() > 61));
    let path = closed.unwrap_or_else(|| panic!("a closed segment with records in {}", folder.display())).clone();
    let mut bytes = std::fs::read(&path).expect("segment");
    bytes[MAGIC_AT] ^= 0x40;
    std::fs::write(&path, bytes).expect("segment");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_named_with_its_remedy_and_the_remedy_completes_the_case() {
    let Some(services) = Services::from_env() else { return };
    let _turn = turn().await;
    let cluster = Cluster::of(&services, 1);
    let services = cluster.services();
    let (world, seller, order) = world_with_order(&services, 35).await;
    let topic = format!("{}.pii.orders.v1", world.prefix);
    cluster.stop(1);
    let partition = (0..4).find(|n| cluster.data(1).join(format!("{topic}-{n}")).join("00000000000000000000.log").exists());
    let partition = partition.expect("a partition");
    damage(&cluster.data(1).join(format!("{topic}-{partition}")));
    cluster.start_again(1);

    let id = open_case(&world, &seller, &order);
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    let place = format!("{topic}[{partition}] on broker 1");
    assert_named(&world, &id, &[&place, "damaged segment", "docs/operations.md"]);

    // The remedy as it is written down.
    alter(&services, &topic, &[("cleanup.policy", "delete"), ("retention.ms", "1000"), ("segment.ms", "1000")]).await;
    world.run(&["run", "--until-idle", "--json"]).expect(3);
    assert!(checked(&world, &[&topic, "cleanup.policy is delete"]));
    let folder = cluster.data(1).join(format!("{topic}-{partition}"));
    until(DONE_WITHIN, "an emptied partition", async || !folder.join("00000000000000000000.log").exists() && is_empty(&folder)).await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    cluster.stop(1);
    cluster.start_again(1);
    assert_completes(&world, &id).await;
}

/// Whether no segment of `folder` has a record.
fn is_empty(folder: &std::path::Path) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter(|file| file.file_name().to_string_lossy().contains(".log")).all(|file| file.metadata().is_ok_and(|meta| meta.len() == 0))
}
