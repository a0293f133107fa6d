//! The product as an operator runs it: real processes, Apache Kafka, PostgreSQL, the simulated API, and searches that try to break
//! the promises.

mod aged;
mod awaited;
mod away;
mod batch;
mod brokers;
mod cluster;
mod databases;
mod door;
mod driving;
mod extent;
mod failover;
mod faults;
mod kills;
mod leaks;
mod naming;
mod register;
mod registry;
mod replay;
mod requests;
mod restore;
mod rotation;
mod running;
mod secured;
mod story;
mod strangers;
mod stray;
mod trace;
mod world;

use std::collections::BTreeMap;

use leaks::Leaks;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaErrorCode;
use serde_json::Value;
use world::{Services, World};

/// Orders of the acceptance runs: a size that CI affords; `SUNDER_ACCEPTANCE_ORDERS` asks for more.
#[expect(clippy::disallowed_methods, reason = "tests take their size from the environment")]
fn orders(default: usize) -> usize {
    std::env::var("SUNDER_ACCEPTANCE_ORDERS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Every record of every topic of `world`, decompressed: key, value, header values.
fn read_log(world: &World, kafka: &str, mut each: impl FnMut(&str, i32, i64, &[u8])) -> u64 {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", format!("leak-search-{}", uuid::Uuid::new_v4()))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_uncommitted")
        .set("enable.partition.eof", "false")
        .create()
        .expect("consumer");
    let wait = std::time::Duration::from_secs(20);
    let metadata = consumer.fetch_metadata(None, wait).expect("metadata");
    let mut assignment = rdkafka::TopicPartitionList::new();
    let mut left = BTreeMap::new();
    for topic in metadata.topics().iter().filter(|t| t.name().starts_with(&format!("{}.", world.prefix))) {
        for partition in topic.partitions() {
            let (low, high) = consumer.fetch_watermarks(topic.name(), partition.id(), wait).expect("watermarks");
            if high > low {
                assignment.add_partition_offset(topic.name(), partition.id(), rdkafka::Offset::Beginning).expect("offset");
                left.insert((topic.name().to_owned(), partition.id()), high);
            }
        }
    }
    consumer.assign(&assignment).expect("assign");
    let mut records = 0;
    while !left.is_empty() {
        // Compacted logs may end in a gap: a partition whose position passed its end is done even where no record says so.
        let Some(message) = consumer.poll(std::time::Duration::from_secs(5)) else {
            let positions = consumer.position().expect("positions");
            left.retain(|(topic, partition), high| {
                positions.find_partition(topic, *partition).is_none_or(|p| p.offset().to_raw().is_none_or(|raw| raw < *high))
            });
            continue;
        };
        let message = match message {
            // A connection that was cut is made again; this one code is no answer about the log.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => continue,
            message => message.expect("record"),
        };
        records += 1;
        let mut bytes = message.key().unwrap_or_default().to_vec();
        bytes.push(0);
        bytes.extend(message.payload().unwrap_or_default());
        if let Some(headers) = message.headers() {
            use rdkafka::message::Headers as _;
            for header in headers.iter() {
                bytes.push(0);
                bytes.extend(header.key.as_bytes());
                bytes.push(0);
                bytes.extend(header.value.unwrap_or_default());
            }
        }
        each(message.topic(), message.partition(), message.offset(), &bytes);
        let place = (message.topic().to_owned(), message.partition());
        if left.get(&place).is_some_and(|high| message.offset() + 1 >= *high) {
            left.remove(&place);
        }
    }
    records
}

/// Asserts that none of the personal values lies in any byte this world wrote anywhere.
async fn assert_no_leak(world: &World, services: &Services, personal: &[Value]) {
    let leaks = Leaks::of(personal.iter().filter_map(|p| p["needle"].as_str()));
    let mut records = 0;
    let mut found = Vec::new();
    records += read_log(world, &services.kafka, |topic, partition, offset, bytes| {
        if leaks.find_in(bytes).is_some() {
            found.push(format!("{topic}[{partition}]@{offset}"));
        }
    });
    assert!(records > 0, "nothing was read from Kafka");
    assert!(found.is_empty(), "personal values on Kafka at {found:?}");
    let mut folders = vec![world.folder.path().to_owned()];
    folders.extend(services.kafka_logs.iter().cloned());
    if world.urls.keys.starts_with("postgres") {
        folders.push(data_directory(&world.urls.keys).await.into());
    }
    for folder in folders {
        let (found, read) = leaks.find_below(&folder);
        assert!(read > 0, "nothing was read below {}", folder.display());
        assert!(found.is_empty(), "personal values in files: {found:?}");
    }
    eprintln!("leak search: {} values, {records} Kafka records, no hit", leaks.values());
}

async fn data_directory(url: &str) -> String {
    use sqlx::{Connection, Row};
    let mut connection = sqlx::PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.expect("checkpoint");
    sqlx::query("SHOW data_directory").fetch_one(&mut connection).await.expect("data_directory").get(0)
}

/// Rows of a warehouse query, each as text columns.
async fn warehouse(world: &World, sql: &'static str) -> Vec<Vec<Option<String>>> {
    use sqlx::{Connection, Row};
    macro_rules! rows {
        ($connection:ty) => {{
            let mut connection = <$connection>::connect(&world.urls.warehouse).await.expect("warehouse answers");
            let rows = sqlx::query(sql).fetch_all(&mut connection).await.expect("query");
            rows.iter().map(|row| (0..row.len()).map(|i| row.get::<Option<String>, _>(i)).collect()).collect()
        }};
    }
    if world.urls.warehouse.starts_with("postgres") { rows!(sqlx::PgConnection) } else { rows!(sqlx::SqliteConnection) }
}
