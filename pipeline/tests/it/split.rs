//! The splitter on real topics: the embedded broker always, Apache Kafka where `SUNDER_TEST_KAFKA` names one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sunder::dead_letter;
use sunder::kafka::{Kafka, OutRecord};
use sunder::registry::{BuiltIn, Schemas};
use sunder::split::batch::Counts;
use sunder::split::runner::{SplitError, SplitRunner};
use sunder_retention::deadline::Policy;
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::Keyring;
use sunder_retention::root::FileRoot;
use sunder_schemas::class::{Family, FieldGroup, Kind};
use sunder_schemas::envelope::{Attribution, Entity, RawEvent, SealedGroup};
use sunder_schemas::ids::{EntityToken, EventId, KeyId, MarketplaceId, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::outcome::{DeadLetterReason, FilterReason};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{DeadLetter, Record as _};
use sunder_schemas::time::{Period, SystemClock, Timestamp};
use sunder_schemas::topic::Topic;
use tokio_util::sync::CancellationToken;

use crate::kafka::{PARTITIONS, brokers, off};

struct World {
    kafka: Kafka,
    schemas: Arc<Schemas>,
    keyring: Arc<Keyring>,
    _folder: tempfile::TempDir,
}

async fn world(kafka: Kafka) -> World {
    kafka.apply_topics().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let db = KeyDb::open(&format!("sqlite://{}", folder.path().join("keys.db").display()), None).await.unwrap();
    let root = FileRoot::create(&folder.path().join("root.key")).unwrap();
    let policy =
        Policy { after_delivery: Period::days(30), backup: Period::days(0), margin: Period::days(2), business: Period::Months(18) };
    let keyring = Arc::new(Keyring::new(db, Arc::new(root), Arc::new(SystemClock::default()), policy));
    let schemas = Arc::new(Schemas::open(Arc::new(BuiltIn), &kafka.settings().prefix).await.unwrap());
    World { kafka, schemas, keyring, _folder: folder }
}

fn hex(n: u8) -> String {
    EntityToken([n; 16]).to_string()
}

fn order(order: u8, version: i64, items: &[u8]) -> RawEvent {
    let items: Vec<String> = items.iter().map(|n| format!(r#"{{"orderItemId":"{}","quantityOrdered":{n}}}"#, hex(*n))).collect();
    let clear = format!(
        r#"{{"createdTime":"2026-11-01T10:00:00Z","lastUpdatedTime":"2026-11-05T10:00:00Z","orderId":"{}","orderItems":[{}]}}"#,
        hex(order),
        items.join(",")
    );
    let mut block = SealedBlock::header(KeyId([order; 16])).to_vec();
    block.resize(100, 1);
    RawEvent {
        attribution: Attribution {
            selling_partner_id: SellerId::parse("A1EXAMPLE").unwrap(),
            marketplace_id: MarketplaceId::parse("A1PA6795UKMFR9").unwrap(),
            source_api: "orders_2026-01-01".to_owned(),
            source_operation: "searchOrders".to_owned(),
            source_request_id: "r".to_owned(),
            collected_at: Timestamp(version),
            event_id: EventId(uuid::Uuid::from_u128((u128::from(order) << 64) | u128::from(version.unsigned_abs()))),
            payload_sha256: "ab".repeat(32),
        },
        entity: Entity { family: Family::Orders, token: EntityToken([order; 16]) },
        source_version: version,
        poller: "sunder/0.1.0".to_owned(),
        classification: "orders_2026-01-01#1".to_owned(),
        clear: clear.into_bytes(),
        sealed: vec![SealedGroup { group: FieldGroup::BuyerName, block: SealedBlock::from_bytes(block).unwrap() }],
        deadline: Some((Timestamp(9), "delivery".to_owned())),
    }
}

impl World {
    /// Writes to the raw topic as a poller does.
    fn publish(&self, events: &[RawEvent]) {
        let topic = self.kafka.topic(Topic::Raw(Family::Orders));
        let batch = self.kafka.producer().batch();
        for event in events {
            let seller = &event.attribution.selling_partner_id;
            let key = key::event_key(seller, event.entity.token, None, event.attribution.event_id);
            let mut value = Vec::new();
            self.schemas.begin(RecordType::RawEvent, &mut value);
            event.encode(&mut value);
            let partition = self.kafka.partition_of(seller, event.entity.token);
            batch.send(OutRecord { topic: &topic, partition, key: key.as_bytes(), value: Some(&value), headers: &[] }).unwrap();
        }
        batch.acked_blocking().unwrap();
    }

    fn publish_bytes(&self, key: &[u8], value: Option<&[u8]>) {
        let topic = self.kafka.topic(Topic::Raw(Family::Orders));
        let batch = self.kafka.producer().batch();
        batch.send(OutRecord { topic: &topic, partition: Partition(0), key, value, headers: &[("who", b"Jane")] }).unwrap();
        batch.acked_blocking().unwrap();
    }

    /// Runs a new splitter until it has split so many records and is caught up; what it counted.
    fn split(&self, records: u64) -> Counts {
        let runner = self.runner();
        Self::drive(&runner, records).unwrap();
        runner.progress().counts
    }

    fn runner(&self) -> SplitRunner {
        let (kafka, schemas, keyring) = (self.kafka.clone(), Arc::clone(&self.schemas), Arc::clone(&self.keyring));
        SplitRunner::new(kafka, schemas, keyring, vec![Family::Orders], "sunder/test")
    }

    fn drive(runner: &SplitRunner, records: u64) -> Result<(), SplitError> {
        let stop = CancellationToken::new();
        let handle = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let looping = scope.spawn(|| runner.run(&handle, &stop));
            let started = Instant::now();
            loop {
                let progress = runner.progress();
                let is_done = progress.is_caught_up && progress.counts.records >= records;
                if is_done || looping.is_finished() || started.elapsed() > Duration::from_secs(60) {
                    break;
                }
                std::thread::yield_now();
            }
            stop.cancel();
            looping.join().unwrap()
        })
    }

    /// Every record of `topic`, in order within a partition.
    fn read(&self, topic: Topic) -> Vec<(String, Option<Vec<u8>>)> {
        let name = self.kafka.topic(topic);
        let mut all = Vec::new();
        for partition in 0..self.kafka.partitions(topic) {
            let range = self.kafka.whole_blocking(&name, Partition(partition)).unwrap();
            self.kafka
                .read_blocking(&[range], |record| {
                    if !record.is_own() {
                        all.push((String::from_utf8(record.key.unwrap().to_vec()).unwrap(), record.value.map(<[u8]>::to_vec)));
                    }
                    Ok(())
                })
                .unwrap();
        }
        all
    }

    fn live(&self, topic: Topic) -> BTreeMap<String, Vec<u8>> {
        let mut live = BTreeMap::new();
        for (key, value) in self.read(topic) {
            match value.filter(|v| !v.is_empty()) {
                Some(value) => live.insert(key, value),
                None => live.remove(&key),
            };
        }
        live
    }
}

fn filtered(counts: &Counts, reason: FilterReason) -> u64 {
    counts.outcomes.filtered[reason as usize]
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_split_and_a_restart_changes_nothing() {
    for kafka in brokers("split").await {
        let world = world(kafka).await;
        off(move || {
            let orders: Vec<RawEvent> = (0..20).map(|n| order(n, 10, &[100 + n, 150 + n])).collect();
            world.publish(&orders);
            let counts = world.split(20);
            assert!(counts.outcomes.total() >= 20 && counts.outcomes.stored >= 20, "{counts:?}");
            assert_eq!(world.live(Topic::State(Kind::Orders)).len(), 20);
            assert_eq!(world.live(Topic::State(Kind::OrderItems)).len(), 40);
            assert_eq!(world.live(Topic::Events(Kind::OrderItems)).len(), 40);
            assert_eq!(world.live(Topic::Pii(Family::Orders)).len(), 20);

            // Another process: duplicates, a newer version without one child, and an older one.
            world.publish(&[orders[3].clone(), order(4, 20, &[104]), order(4, 5, &[104, 154, 200])]);
            let counts = world.split(3);
            assert_eq!((counts.records, counts.outcomes.stored, filtered(&counts, FilterReason::Stale)), (3, 2, 1));
            assert_eq!(counts.children_tombstoned, 1);
            assert_eq!(world.live(Topic::State(Kind::Orders)).len(), 20);
            let items = world.live(Topic::State(Kind::OrderItems));
            assert_eq!(items.len(), 39);
            assert!(!items.contains_key(&format!("A1EXAMPLE|{}|{}", hex(4), hex(154))));
            assert_eq!(world.live(Topic::Pii(Family::Orders)).len(), 20);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_left_over_by_a_crash_is_tombstoned_at_the_next_start() {
    for kafka in brokers("orphan").await {
        let world = world(kafka).await;
        off(move || {
            world.publish(&[order(1, 10, &[2])]);
            world.split(1);
            // As if a crash had come between the order's row and the tombstone of a child it no longer names.
            let seller = SellerId::parse("A1EXAMPLE").unwrap();
            let token = EntityToken([1; 16]);
            let batch = world.kafka.producer().batch();
            let orphan = key::state_key(&seller, token, Some(EntityToken([9; 16])));
            let topic = world.kafka.topic(Topic::State(Kind::OrderItems));
            let partition = world.kafka.partition_of(&seller, token);
            batch.send(OutRecord { topic: &topic, partition, key: orphan.as_bytes(), value: Some(b"x"), headers: &[] }).unwrap();
            batch.acked_blocking().unwrap();
            world.publish(&[order(1, 10, &[2])]);
            world.split(1);
            assert_eq!(world.live(Topic::State(Kind::OrderItems)).len(), 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_records_are_set_aside_sealed_and_the_stream_goes_on() {
    for kafka in brokers("dead").await {
        let world = world(kafka).await;
        let keyring = Arc::clone(&world.keyring);
        let key = keyring.quarantine().await.unwrap();
        off(move || {
            world.publish_bytes(b"Jane Doe", Some(b"{\"name\":\"Jane Doe\"}"));
            world.publish_bytes(b"Jane Doe", None);
            world.publish_bytes(b"Jane Doe", Some(b"\0\0\x01\0\0Jane"));
            world.publish(&[order(1, 10, &[2])]);
            let counts = world.split(4);
            // The pipeline's own record that names the topic's incarnation may lie among them.
            assert_eq!(counts.records, 4 + filtered(&counts, FilterReason::Own));
            assert_eq!((counts.outcomes.stored, counts.outcomes.total()), (1, counts.records));
            let dead = world.read(Topic::DlqRaw(Family::Orders));
            assert_eq!(dead.len(), 3);
            let incarnation = world.kafka.incarnation_blocking(&world.kafka.topic(Topic::Raw(Family::Orders))).unwrap();
            let mut reasons = Vec::new();
            for (id, value) in dead {
                let value = value.unwrap();
                assert!(!value.windows(4).any(|w| w == b"Jane"), "a dead letter holds nothing in clear");
                let letter = DeadLetter::decode(&world.schemas.body(RecordType::DeadLetter, &value).unwrap()).unwrap();
                assert_eq!(id, key::join([incarnation.as_str(), "0", &letter.source_offset.to_string()]));
                let original = dead_letter::open(&letter, &key).unwrap();
                assert_eq!(original.key.as_deref(), Some(&b"Jane Doe"[..]));
                assert_eq!(original.headers, [("who".to_owned(), Some(b"Jane".to_vec()))]);
                reasons.push((letter.reason, original.value.is_none()));
            }
            assert_eq!(
                reasons,
                [(DeadLetterReason::NotFramed, false), (DeadLetterReason::EmptyValue, true), (DeadLetterReason::UnknownSchema, false)]
            );
            assert_eq!(world.live(Topic::State(Kind::Orders)).len(), 1);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_splitters_share_the_partitions_and_lose_nothing() {
    for kafka in brokers("share").await {
        let world = Arc::new(world(kafka).await);
        off(move || {
            let orders: Vec<RawEvent> = (0..60).map(|n| order(n, 10, &[100 + n])).collect();
            world.publish(&orders);
            let stop = CancellationToken::new();
            let handle = tokio::runtime::Handle::current();
            let runners = [world.runner(), world.runner()];
            std::thread::scope(|scope| {
                let loops: Vec<_> = runners.iter().map(|runner| scope.spawn(|| runner.run(&handle, &stop))).collect();
                let started = Instant::now();
                let split = || runners.iter().map(|runner| runner.progress().counts.records).sum::<u64>();
                while split() < 60 && started.elapsed() < Duration::from_secs(60) {
                    std::thread::yield_now();
                }
                stop.cancel();
                for done in loops {
                    assert!(matches!(done.join().unwrap(), Ok(()) | Err(SplitError::Kafka(_))));
                }
            });
            assert_eq!(world.live(Topic::State(Kind::Orders)).len(), 60);
            assert_eq!(world.live(Topic::State(Kind::OrderItems)).len(), 60);
            assert_eq!(PARTITIONS, world.kafka.partitions(Topic::State(Kind::Orders)));
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_topic_is_noticed_and_read_again_from_its_start() {
    for kafka in brokers("recreated").await.into_iter().filter(|kafka| !kafka.is_embedded()) {
        let world = world(kafka).await;
        let runner = Arc::new(world.runner());
        let (first, second) = (Arc::clone(&runner), Arc::clone(&runner));
        let world = off(move || {
            world.publish(&[order(1, 10, &[2])]);
            World::drive(&first, 1).unwrap();
            world
        })
        .await;
        let topic = world.kafka.topic(Topic::Raw(Family::Orders));
        let mut options = rdkafka::ClientConfig::new();
        options.set("bootstrap.servers", world.kafka.address());
        let admin: rdkafka::admin::AdminClient<_> = options.create().unwrap();
        admin.delete_topics(&[&topic], &rdkafka::admin::AdminOptions::new()).await.unwrap().remove(0).unwrap();
        // Deletion is asynchronous: the name is free once the topic can be made again.
        let started = Instant::now();
        while world.kafka.apply_topics().await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(30));
        }
        off(move || {
            world.publish(&[order(3, 10, &[4])]);
            let Err(SplitError::Lost(lost)) = World::drive(&second, u64::MAX) else { panic!("the new topic was taken for the old one") };
            assert_eq!((lost.family, lost.code, lost.partition), (Family::Orders, "recreated", None));
            second.resume(&lost).unwrap();
            World::drive(&second, second.progress().counts.records + 1).unwrap();
            assert_eq!(world.live(Topic::State(Kind::Orders)).len(), 2);
        })
        .await;
    }
}
