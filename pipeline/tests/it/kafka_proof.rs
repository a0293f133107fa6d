//! Erasure from the log and its proof, on the embedded broker and, where `SUNDER_TEST_KAFKA` names one, on Apache Kafka.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sunder::kafka::{GroupConsumer, Kafka, KafkaLog, OutRecord};
use sunder_retention::store::{Control, EventLog, Extent, Mark, Needles, OutboxRecord, Prove, ScanReport, Subject};
use sunder_schemas::class::{Family, FieldGroup, Kind};
use sunder_schemas::ids::{EntityToken, KeyId, Offset, SellerId};
use sunder_schemas::key;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::topic::{Profile, Times, Topic};

use crate::kafka::{brokers, off};

fn random_key() -> KeyId {
    KeyId(*uuid::Uuid::new_v4().as_bytes())
}

/// Bytes with the header of a sealed block of `key` and `marker` where the ciphertext would be.
fn block(key: KeyId, marker: &[u8]) -> Vec<u8> {
    let mut block = SealedBlock::header(key).to_vec();
    block.extend([0x11; 12]);
    block.extend_from_slice(marker);
    block.extend([0x22; 16]);
    block
}

fn subject(key: KeyId) -> Subject {
    Subject { seller: SellerId::parse("A1TEST").unwrap(), token: EntityToken(key.0), keys: vec![key] }
}

async fn put(kafka: &Kafka, topic: Topic, subject: &Subject, key: &str, value: &[u8]) -> Mark {
    let batch = kafka.producer().batch();
    let partition = kafka.partition_of(&subject.seller, subject.token);
    batch.send(OutRecord { topic: &kafka.topic(topic), partition, key: key.as_bytes(), value: Some(value), headers: &[] }).unwrap();
    batch.acked().await.unwrap().remove(0)
}

fn log_times() -> Times {
    Times::of(Profile::Test)
}

/// A barrier. The test profile gives a record up after 2 s, which a loaded machine can need: a case repeats the step, and so does this.
async fn barrier(log: &KafkaLog) -> Vec<Mark> {
    let started = Instant::now();
    loop {
        match log.barrier().await {
            Err(error) if error.code == "MessageTimedOut" && started.elapsed() < Duration::from_secs(180) => {}
            answer => return answer.unwrap(),
        }
    }
}

/// Scans, with a new barrier each time, until `done` says so.
async fn scan_until(log: &KafkaLog, needles: &Needles, done: impl Fn(&ScanReport) -> bool) -> ScanReport {
    let started = Instant::now();
    // A barrier is a round of heartbeats; more often than the profile's period they only make segments.
    let mut beat = tokio::time::interval(Duration::from_millis(log_times().heartbeat_ms.unsigned_abs()));
    loop {
        beat.tick().await;
        let barrier = barrier(log).await;
        let needles = Needles { barrier, ..needles.clone() };
        let report = log.scan(&needles).await.unwrap();
        if done(&report) {
            return report;
        }
        assert!(started.elapsed() < Duration::from_secs(240), "still {:?}", report.found.iter().map(|f| &f.place).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_finds_what_is_left_its_controls_and_then_nothing() {
    for kafka in brokers("scan").await {
        kafka.apply_topics().await.unwrap();
        let log = KafkaLog::new(kafka.clone());
        let (erased, control, living) = (random_key(), random_key(), random_key());
        let (subject, other) = (subject(erased), subject(living));
        let name = key::pii_key(&subject.seller, subject.token, FieldGroup::BuyerName);
        put(&kafka, Topic::Pii(Family::Orders), &subject, &name, &block(erased, b"left over")).await;
        let others = key::pii_key(&other.seller, other.token, FieldGroup::BuyerName);
        put(&kafka, Topic::Pii(Family::Orders), &other, &others, &block(living, b"alive")).await;
        put(&kafka, Topic::Raw(Family::Orders), &subject, "k", &block(erased, b"raw")).await;
        log.plant(&Control { case: "case-1".to_owned(), key: control, block: block(control, b"control") }).await.unwrap();
        let needles = Needles { keys: vec![erased], controls: vec![control], ..Needles::default() };

        let barrier = barrier(&log).await;
        let report = log.scan(&Needles { barrier: barrier.clone(), ..needles.clone() }).await.unwrap();
        let found: Vec<_> = report.found.iter().filter(|found| found.key == erased).collect();
        // Once on each replica: three brokers are read one by one.
        let replicas = u64::try_from(kafka.settings().replication).unwrap();
        assert_eq!(u64::try_from(found.len()).unwrap(), replicas, "{found:?}");
        assert!(!found[0].is_buried, "no tombstone was written yet");
        assert!(found[0].place.contains("pii.orders"));
        assert_eq!(found[0].block, block(erased, b"left over"));
        assert_eq!((report.controls_planted, report.controls_found), (6 * replicas, 6 * replicas));
        let raw = report.residual.iter().find(|residual| residual.what.contains("raw.orders")).unwrap();
        assert!(raw.until.is_some());

        log.tombstone("case-1", &[subject], Extent::Personal).await.unwrap();
        let report = scan_until(&log, &needles, |report| report.found.is_empty()).await;
        assert_eq!((report.controls_planted, report.controls_found), (6 * replicas, 6 * replicas), "a live control went with the rest");
        let report = log.scan(&Needles { keys: vec![living], ..Needles::default() }).await.unwrap();
        assert_eq!(u64::try_from(report.found.len()).unwrap(), replicas, "what lives must stay");

        // A case whose control went reads nothing that proves anything.
        log.unplant("case-1").await.unwrap();
        scan_until(&log, &needles, |report| report.controls_found == 0).await;

        let mut beyond = barrier[0].clone();
        beyond.offset = Offset(1_000_000);
        let error = log.scan(&Needles { barrier: vec![beyond], ..needles.clone() }).await.unwrap_err();
        assert_eq!(error.code, "BarrierBeyondEnd");
        let mut other = barrier[0].clone();
        other.incarnation = "another".to_owned();
        let error = log.scan(&Needles { barrier: vec![other], ..needles }).await.unwrap_err();
        assert_eq!(error.code, "AnotherIncarnation");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_roll_empties_a_topic_of_production_periods_in_seconds() {
    // In memory nothing is removed physically.
    for kafka in brokers("roll").await.into_iter().filter(|kafka| !kafka.is_embedded()) {
        let mut settings = kafka.settings().clone();
        settings.broker = sunder::kafka::Broker::Address(kafka.address().to_owned());
        settings.profile = Profile::Production;
        let kafka = Kafka::connect(settings).await.unwrap();
        kafka.apply_topics().await.unwrap();
        let (log, topic, erased) = (KafkaLog::new(kafka.clone()), Topic::Pii(Family::Orders), random_key());
        let subject = subject(erased);
        let name = key::pii_key(&subject.seller, subject.token, FieldGroup::BuyerName);
        put(&kafka, topic, &subject, &name, &block(erased, b"in the way")).await;
        log.tombstone("case-4", &[subject], Extent::Personal).await.unwrap();
        kafka.begin_roll(topic).await.unwrap();
        let drift = log.drift().await.unwrap();
        assert!(
            drift.len() == 3 && drift.iter().all(|drifted| drifted.is_lowered),
            "a topic that is being rolled is not as declared: {drift:?}"
        );
        let needles = Needles { keys: vec![erased], ..Needles::default() };
        scan_until(&log, &needles, |report| report.found.is_empty()).await;
        kafka.end_roll(topic).await.unwrap();
        assert_eq!(log.drift().await.unwrap(), Vec::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn business_data_goes_with_its_children_and_history_and_leaves_others_alone() {
    for kafka in brokers("business").await {
        kafka.apply_topics().await.unwrap();
        let log = KafkaLog::new(kafka.clone());
        let (gone, stays) = (subject(random_key()), subject(random_key()));
        let child = EntityToken([9; 16]);
        for subject in [&gone, &stays] {
            let order = key::state_key(&subject.seller, subject.token, None);
            let item = key::state_key(&subject.seller, subject.token, Some(child));
            put(&kafka, Topic::State(Kind::Orders), subject, &order, b"row").await;
            put(&kafka, Topic::State(Kind::OrderItems), subject, &item, b"row").await;
            put(&kafka, Topic::Events(Kind::Orders), subject, &format!("{order}|event-1"), b"event").await;
        }
        let marks = log.tombstone("case-2", std::slice::from_ref(&gone), Extent::WithBusinessData).await.unwrap();
        let topics: std::collections::BTreeSet<_> = marks.iter().map(|mark| mark.topic.clone()).collect();
        for topic in [Topic::State(Kind::Orders), Topic::State(Kind::OrderItems), Topic::Events(Kind::Orders)] {
            assert!(topics.contains(&kafka.topic(topic)), "{topic}");
        }
        assert!(!topics.contains(&kafka.topic(Topic::State(Kind::Packages))), "nothing was there to bury");
        let living = off(move || {
            let mut living = std::collections::BTreeMap::new();
            for topic in [Topic::State(Kind::Orders), Topic::State(Kind::OrderItems), Topic::Events(Kind::Orders)] {
                let name = kafka.topic(topic);
                for partition in 0..kafka.partitions(topic) {
                    let range = kafka.whole_blocking(&name, sunder_schemas::ids::Partition(partition)).unwrap();
                    kafka
                        .read_blocking(&[range], |record| {
                            if !record.is_own() {
                                living.insert((name.clone(), record.key.unwrap().to_vec()), record.value.is_some());
                            }
                            Ok(())
                        })
                        .unwrap();
                }
            }
            living
        })
        .await;
        for ((topic, key), is_alive) in living {
            let is_gone = key.windows(32).any(|part| part == gone.token.to_string().as_bytes());
            assert_eq!(is_alive, !is_gone, "{topic}");
        }
    }
}

/// An event without a sealed block names no key: where business rows go it is known by its entity, and told until its retention.
#[tokio::test(flavor = "multi_thread")]
async fn a_raw_event_of_what_was_erased_is_told_by_its_pseudonym_and_does_not_block() {
    for kafka in brokers("waits").await {
        kafka.apply_topics().await.unwrap();
        let log = KafkaLog::new(kafka.clone());
        let (gone, other) = (subject(random_key()), subject(random_key()));
        let raw = Topic::Raw(Family::Orders);
        for subject in [&gone, &other] {
            let event = format!("{}|event-1", key::state_key(&subject.seller, subject.token, None));
            put(&kafka, raw, subject, &event, b"clear part").await;
        }
        let barrier = barrier(&log).await;
        let told = async |taken: &[Subject]| {
            // No key is sought: what is told is told by the pseudonym.
            let needles = Needles { gone: taken.to_vec(), barrier: barrier.clone(), ..Needles::default() };
            let report = log.scan(&needles).await.unwrap();
            assert_eq!(report.found, []);
            let of_raw = format!("{}: ", kafka.topic(raw));
            report.residual.into_iter().filter(|residual| residual.what.starts_with(&of_raw)).collect::<Vec<_>>()
        };
        let residual = told(std::slice::from_ref(&gone)).await;
        assert_eq!(residual.len(), 1, "{residual:?}");
        assert!(residual[0].until.is_some(), "its last day is named: {residual:?}");
        assert_eq!(told(&[subject(random_key())]).await, [], "of an order that raw does not hold nothing is told");
        assert_eq!(told(&[]).await, [], "where business rows live on the event is no remnant");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_drained_once_the_splitters_group_is_past_raw() {
    for kafka in brokers("drain").await {
        kafka.apply_topics().await.unwrap();
        let log = KafkaLog::new(kafka.clone());
        let subject = subject(random_key());
        put(&kafka, Topic::Raw(Family::Orders), &subject, "k", b"event").await;
        let ends = log.raw_ends().await.unwrap();
        assert!(!log.split_past(&ends).await.unwrap(), "nothing was committed yet");
        let next: Vec<_> = ends.iter().map(|mark| (mark.topic.clone(), mark.partition, Offset(mark.offset.0 + 1))).collect();
        let (reader, topics) = (kafka.clone(), [kafka.topic(Topic::Raw(Family::Orders)), kafka.topic(Topic::Raw(Family::Inventory))]);
        off(move || {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            let consumer = GroupConsumer::subscribe(&reader, &reader.split_group(), &topics, |ours| vec![None; ours.len()]).unwrap();
            let started = Instant::now();
            while consumer.assignment().is_empty() {
                consumer.poll_batch(10, Duration::from_millis(100), |_| {}).unwrap();
                assert!(started.elapsed() < Duration::from_secs(30));
            }
            consumer.commit(&next).unwrap();
        })
        .await;
        assert!(log.split_past(&ends).await.unwrap());
        put(&kafka, Topic::Raw(Family::Orders), &subject, "k", b"one more").await;
        assert!(!log.split_past(&log.raw_ends().await.unwrap()).await.unwrap());
        assert!(log.drift().await.unwrap().is_empty());
        assert_eq!(log.is_durable(), !kafka.is_embedded());
        assert!(log.describe().await.unwrap()["topics"].as_array().unwrap().len() > 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_reaches_its_topics_in_order() {
    for kafka in brokers("outbox").await {
        kafka.apply_topics().await.unwrap();
        let log = KafkaLog::new(kafka.clone());
        let record = |id: i64, topic: &str| OutboxRecord {
            id,
            topic: topic.to_owned(),
            key: "k".to_owned(),
            value: Some(format!("{{\"id\":{id}}}")),
        };
        log.publish(&[record(1, "audit.log"), record(2, "privacy.erased"), record(3, "audit.log")]).await.unwrap();
        let error = log.publish(&[record(4, "no.such")]).await.unwrap_err();
        assert_eq!(error.code, "UnknownTopic");
        let values = off(move || {
            let topic = kafka.topic(Topic::AuditLog);
            let range = kafka.whole_blocking(&topic, sunder_schemas::ids::Partition(0)).unwrap();
            let mut values = Vec::new();
            kafka
                .read_blocking(&[range], |record| {
                    values.extend(record.value.map(|value| String::from_utf8(value.to_vec()).unwrap()));
                    Ok(())
                })
                .unwrap();
            values
        })
        .await;
        assert_eq!(values, ["{\"id\":1}", "{\"id\":3}"]);
    }
}

/// Segment files below `folder`, in whatever state of renaming, whose bytes contain `needle`. Index files hold offsets alone, and
/// their ten sparse megabytes each would make the search slower than the cleaner.
fn files_with(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if path.to_string_lossy().contains(".log")
            && std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
        {
            found.push(path);
        }
    }
    found
}

/// The bytes themselves, in the broker's files: only where a real broker and its folders are given.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where the broker's folders are")]
async fn a_tombstone_and_heartbeats_take_the_bytes_out_of_the_brokers_files() {
    let Ok(folders) = std::env::var("SUNDER_TEST_KAFKA_LOGS") else { return };
    let folders: Vec<PathBuf> = folders.split(',').map(PathBuf::from).collect();
    for kafka in brokers("bytes").await.into_iter().filter(|kafka| !kafka.is_embedded()) {
        kafka.apply_topics().await.unwrap();
        let log = KafkaLog::new(kafka.clone());
        let erased = random_key();
        let subject = subject(erased);
        // Random, so that compression leaves it as it is.
        let marker = [uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat();
        let name = key::pii_key(&subject.seller, subject.token, FieldGroup::RecipientAddress);
        put(&kafka, Topic::Pii(Family::Orders), &subject, &name, &block(erased, &marker)).await;
        let search = |needle: Vec<u8>| {
            let folders = folders.clone();
            let prefix = kafka.settings().prefix.clone();
            off(move || {
                let mine = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
                mine.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
                    .flat_map(|entry| files_with(&entry.path(), &needle))
                    .collect::<Vec<_>>()
            })
        };
        assert!(!search(marker.clone()).await.is_empty(), "the search does not see what is there");
        log.tombstone("case-3", std::slice::from_ref(&subject), Extent::Personal).await.unwrap();
        let started = Instant::now();
        // Two equal walks: one alone can miss a file that is being renamed.
        let mut clean_walks = 0;
        let mut beat = tokio::time::interval(Duration::from_millis(log_times().heartbeat_ms.unsigned_abs()));
        while clean_walks < 2 {
            beat.tick().await;
            barrier(&log).await;
            clean_walks = if search(marker.clone()).await.is_empty() { clean_walks + 1 } else { 0 };
            assert!(started.elapsed() < Duration::from_secs(240), "the bytes are still there");
        }
        assert!(search(erased.0.to_vec()).await.is_empty(), "the block's header outlived its body");
    }
}
