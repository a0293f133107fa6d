//! The sinks' loop on real topics: the embedded broker always, Apache Kafka where `SUNDER_TEST_KAFKA` names one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::Connection as _;
use sunder::kafka::{Kafka, OutRecord};
use sunder::registry::{BuiltIn, Schemas};
use sunder::sink_runner::{FromTopic, Progress, SinkRunError, SinkRunner};
use sunder_retention::store::{Control, Extent, Forget, Mark, Needles, Prove, ScanReport, StoreError, Subject};
use sunder_schemas::class::{Family, FieldGroup, Kind};
use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::{EntityToken, EventId, KeyId, MarketplaceId, Offset, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::outcome::{DeadLetterReason, FilterReason};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{PackageRow, PiiRecord, Record as _, StateRecord};
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;
use sunder_sinks::{Applied, Change, Retry, Sink, SinkError, Source, StoreOptions, Vault, Warehouse};
use tokio_util::sync::CancellationToken;

use crate::kafka::{brokers, off};

struct World {
    kafka: Kafka,
    schemas: Arc<Schemas>,
    folder: tempfile::TempDir,
}

fn seller() -> SellerId {
    SellerId::parse("A1EXAMPLE").unwrap()
}

fn attribution(version: i64) -> Arc<Attribution> {
    Arc::new(Attribution {
        selling_partner_id: seller(),
        marketplace_id: MarketplaceId::parse("A1PA6795UKMFR9").unwrap(),
        source_api: "orders_2026-01-01".to_owned(),
        source_operation: "searchOrders".to_owned(),
        source_request_id: "r".to_owned(),
        collected_at: Timestamp(version),
        event_id: EventId(uuid::Uuid::from_u128(version.unsigned_abs().into())),
        payload_sha256: "ab".repeat(32),
    })
}

fn package(order: u8, version: i64) -> StateRecord {
    StateRecord::Package(PackageRow {
        attribution: attribution(version),
        source_version: version,
        order_token: EntityToken([order; 16]),
        package_token: EntityToken([9; 16]),
        status: None,
        detailed_status: None,
        carrier: Some("DHL".into()),
        shipping_service: None,
        created_at: None,
        shipped_at: None,
        item_tokens: Vec::new(),
        item_quantities: Vec::new(),
    })
}

fn sealed(order: u8) -> PiiRecord {
    let mut block = SealedBlock::header(KeyId([order; 16])).to_vec();
    block.resize(100, 1);
    PiiRecord {
        attribution: attribution(1),
        source_version: 1,
        entity_token: EntityToken([order; 16]),
        field_group: FieldGroup::BuyerName,
        key_id: KeyId([order; 16]),
        classification: "orders_2026-01-01#1".to_owned(),
        deadline: Timestamp(9),
        deadline_rule: "delivery".to_owned(),
        block: SealedBlock::from_bytes(block).unwrap(),
    }
}

impl World {
    async fn on(kafka: Kafka) -> Self {
        kafka.apply_topics().await.unwrap();
        let schemas = Arc::new(Schemas::open(Arc::new(BuiltIn), &kafka.settings().prefix).await.unwrap());
        Self { kafka, schemas, folder: tempfile::tempdir().unwrap() }
    }

    fn options(&self, name: &str) -> StoreOptions {
        StoreOptions::new(&format!("sqlite://{}", self.folder.path().join(name).display()), &self.kafka.settings().prefix)
    }

    async fn warehouse(&self) -> Arc<Warehouse> {
        Arc::new(Warehouse::open(&self.options("warehouse.db")).await.unwrap())
    }

    fn send(&self, topic: Topic, order: u8, key: &str, value: Option<&[u8]>) -> Mark {
        let name = self.kafka.topic(topic);
        let partition = self.kafka.partition_of(&seller(), EntityToken([order; 16]));
        let batch = self.kafka.producer().batch();
        batch.send(OutRecord { topic: &name, partition, key: key.as_bytes(), value, headers: &[] }).unwrap();
        batch.acked_blocking().unwrap().remove(0)
    }

    fn send_row(&self, row: &StateRecord) -> Mark {
        let mut value = Vec::new();
        self.schemas.begin(RecordType::State(row.kind()), &mut value);
        row.encode(&mut value);
        self.send(Topic::State(row.kind()), row.entity().0[0], &row.key(), Some(&value))
    }

    fn runner<R: FromTopic + Sync>(&self, sink: Arc<dyn Sink<R>>) -> SinkRunner<R> {
        SinkRunner::new(self.kafka.clone(), Arc::clone(&self.schemas), sink, None)
    }
}

/// Runs until so many records were applied and nothing is left.
fn drive<R: FromTopic + Sync>(runner: &SinkRunner<R>, records: u64) -> Result<Progress, SinkRunError> {
    let (stop, handle) = (CancellationToken::new(), tokio::runtime::Handle::current());
    std::thread::scope(|scope| {
        let looping = scope.spawn(|| runner.run(&handle, &stop));
        let started = Instant::now();
        loop {
            let progress = runner.progress();
            let is_done = progress.is_caught_up && progress.records >= records;
            if is_done || looping.is_finished() || started.elapsed() > Duration::from_secs(60) {
                break;
            }
            std::thread::yield_now();
        }
        stop.cancel();
        looping.join().unwrap().map(|()| runner.progress())
    })
}

async fn packages(world: &World) -> Vec<(String, i64)> {
    let url = format!("sqlite://{}", world.folder.path().join("warehouse.db").display());
    let mut sql = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query_as("SELECT order_token, source_version FROM packages ORDER BY order_token").fetch_all(&mut sql).await.unwrap()
}

fn hex(order: u8) -> String {
    EntityToken([order; 16]).to_hex()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_follow_the_topic_and_a_restart_goes_on_where_the_database_stands() {
    for kafka in brokers("sink").await {
        let world = Arc::new(World::on(kafka).await);
        let warehouse = world.warehouse().await;
        let (there, sink) = (Arc::clone(&world), Arc::clone(&warehouse));
        let marks = off(move || {
            for row in [package(1, 10), package(2, 10), package(1, 9), package(3, 10)] {
                there.send_row(&row);
            }
            there.send(Topic::State(Kind::Packages), 1, "~hb", None);
            there.send(Topic::State(Kind::Packages), 1, "stranger", Some(b"not ours"));
            let progress = drive(&there.runner::<StateRecord>(sink.clone()), 6).unwrap();
            let own = progress.outcomes.filtered[FilterReason::Own as usize];
            let stale = progress.outcomes.filtered[FilterReason::Stale as usize];
            assert_eq!(progress.outcomes.stored, 3, "{progress:?}");
            assert_eq!(stale, 1);
            // Each topic's own record of its incarnation may have come as well.
            assert!(own >= 1, "{progress:?}");
            assert_eq!(progress.unreadable[DeadLetterReason::NotFramed as usize], 1);
            assert_eq!(progress.records, progress.outcomes.total() + 1);

            let mark = there.send(Topic::State(Kind::Packages), 2, &package(2, 10).key(), None);
            let again = drive(&there.runner::<StateRecord>(sink), 1).unwrap();
            assert_eq!((again.records, again.rows_deleted), (1, 1), "only what is new was read");
            vec![mark]
        })
        .await;
        assert_eq!(packages(&world).await, [(hex(1), 10), (hex(3), 10)]);
        assert!(warehouse.caught_up(&marks).await.unwrap());
        let beyond: Vec<Mark> = marks.into_iter().map(|mark| Mark { offset: Offset(mark.offset.0 + 1), ..mark }).collect();
        assert!(!warehouse.caught_up(&beyond).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vault_takes_blocks_and_refuses_those_of_destroyed_keys() {
    for kafka in brokers("vault").await {
        let world = Arc::new(World::on(kafka).await);
        let destroyed = KeyId([2; 16]);
        let vault = Arc::new(Vault::open(&world.options("vault.db"), Arc::new(move |key| key == destroyed)).await.unwrap());
        let (there, sink) = (Arc::clone(&world), Arc::clone(&vault));
        off(move || {
            for order in [1, 2] {
                let record = sealed(order);
                let mut value = Vec::new();
                there.schemas.begin(RecordType::Pii, &mut value);
                record.encode(&mut value);
                let key = key::pii_key(&seller(), record.entity_token, record.field_group);
                there.send(Topic::Pii(Family::Orders), order, &key, Some(&value));
            }
            // A planted control lies under a key of our own: no row of anybody.
            there.send(Topic::Pii(Family::Orders), 1, "~canary|case-1|live", Some(sealed(1).block.as_bytes()));
            let progress = drive(&there.runner::<PiiRecord>(sink), 3).unwrap();
            assert_eq!(progress.outcomes.stored, 1, "{progress:?}");
            assert_eq!(progress.outcomes.filtered[FilterReason::Erased as usize], 1);
            assert_eq!(progress.unreadable.iter().sum::<u64>(), 0);
        })
        .await;
        assert_eq!(vault.blocks(&seller(), EntityToken([1; 16])).await.unwrap(), [sealed(1)]);
        assert!(vault.blocks(&seller(), EntityToken([2; 16])).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_incarnation_are_built_again() {
    for kafka in brokers("rebuild").await {
        let world = Arc::new(World::on(kafka).await);
        let warehouse = world.warehouse().await;
        let gone =
            Source { topic: world.kafka.topic(Topic::State(Kind::Packages)), incarnation: "gone".to_owned(), partition: Partition(0) };
        let old = vec![
            Change::Upsert { offset: Offset(0), record: package(7, 99) },
            Change::Upsert { offset: Offset(1), record: package(1, 99) },
        ];
        warehouse.apply(&gone, None, Offset(500), old).await.unwrap();
        let there = Arc::clone(&world);
        off(move || {
            there.send_row(&package(1, 10));
            drive(&there.runner::<StateRecord>(warehouse), 1).unwrap();
        })
        .await;
        assert_eq!(packages(&world).await, [(hex(1), 10)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_the_log_does_not_hold_builds_the_rows_again() {
    for kafka in brokers("lost").await {
        let world = Arc::new(World::on(kafka).await);
        let warehouse = world.warehouse().await;
        let topic = world.kafka.topic(Topic::State(Kind::Packages));
        let incarnation = world.kafka.incarnation(&topic).await.unwrap();
        let partition = world.kafka.partition_of(&seller(), EntityToken([1; 16]));
        let beyond = Source { topic, incarnation, partition };
        let stale = vec![Change::Upsert { offset: Offset(900), record: package(7, 99) }];
        warehouse.apply(&beyond, None, Offset(1_000), stale).await.unwrap();
        let there = Arc::clone(&world);
        off(move || {
            there.send_row(&package(1, 10));
            drive(&there.runner::<StateRecord>(warehouse), 1).unwrap();
        })
        .await;
        assert_eq!(packages(&world).await, [(hex(1), 10)]);
    }
}

/// A warehouse whose database is gone for the first questions, and whose first answers to a batch are lost.
struct Flaky {
    store: Arc<Warehouse>,
    questions: AtomicU32,
    answers: AtomicU32,
}

fn fail(left: &AtomicU32) -> Result<(), SinkError> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Err(_) => Ok(()),
        Ok(_) => Err(SinkError::Database { store: "warehouse", action: "connect", code: "08006".to_owned(), retry: Retry::Backoff }),
    }
}

#[async_trait]
impl Sink<StateRecord> for Flaky {
    async fn position(&self, source: &Source) -> Result<Option<Offset>, SinkError> {
        fail(&self.questions)?;
        self.store.position(source).await
    }
    async fn apply(
        &self,
        source: &Source,
        expected: Option<Offset>,
        next: Offset,
        changes: Vec<Change<StateRecord>>,
    ) -> Result<Applied, SinkError> {
        let applied = self.store.apply(source, expected, next, changes).await;
        // After the commit: the worst moment.
        fail(&self.answers)?;
        applied
    }
    async fn rebuild(&self, topic: &str, incarnation: &str) -> Result<u64, SinkError> {
        self.store.rebuild(topic, incarnation).await
    }
}

#[async_trait]
impl Forget for Flaky {
    fn name(&self) -> &str {
        Forget::name(&*self.store)
    }
    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.store.caught_up(marks).await
    }
    async fn forget(&self, subjects: &[Subject], extent: Extent) -> Result<u64, StoreError> {
        self.store.forget(subjects, extent).await
    }
}

#[async_trait]
impl Prove for Flaky {
    fn name(&self) -> &str {
        Forget::name(self)
    }
    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.store.plant(control).await
    }
    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        self.store.scan(needles).await
    }
    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.store.unplant(case).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_and_an_answer_that_is_lost_cost_nothing() {
    for kafka in brokers("flaky").await {
        let world = Arc::new(World::on(kafka).await);
        let flaky = Arc::new(Flaky { store: world.warehouse().await, questions: AtomicU32::new(2), answers: AtomicU32::new(1) });
        let (there, sink) = (Arc::clone(&world), Arc::clone(&flaky));
        off(move || {
            for row in [package(1, 10), package(2, 10), package(2, 11)] {
                there.send_row(&row);
            }
            drive(&there.runner::<StateRecord>(sink), 0).unwrap();
        })
        .await;
        assert_eq!((flaky.questions.load(Ordering::SeqCst), flaky.answers.load(Ordering::SeqCst)), (0, 0));
        assert_eq!(packages(&world).await, [(hex(1), 10), (hex(2), 11)]);
    }
}
