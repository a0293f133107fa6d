//! The Kafka clients on the embedded broker always, and on Apache Kafka where `SUNDER_TEST_KAFKA` names one.

use std::time::{Duration, Instant};

use sunder::kafka::{GroupConsumer, Kafka, KafkaError, KafkaSettings, OutRecord, Rebalanced};
use sunder_schemas::class::{Family, Kind};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::topic::Topic;

/// Partitions of the topics of data in these tests.
pub(crate) const PARTITIONS: i32 = 3;

/// The brokers to test on, each under a prefix of its own; Apache Kafka is left out where none is named.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment which real servers there are")]
pub(crate) async fn brokers(name: &str) -> Vec<Kafka> {
    let prefix = format!("t{}.{name}", uuid::Uuid::new_v4().simple());
    let mut all = vec![Kafka::connect(KafkaSettings::embedded(&prefix, PARTITIONS)).await.unwrap()];
    if let Ok(address) = std::env::var("SUNDER_TEST_KAFKA") {
        // One replica on each broker, so that the search of their folders covers every replica.
        let replication = std::env::var("SUNDER_TEST_KAFKA_BROKERS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
        all.push(Kafka::connect(KafkaSettings::plaintext(&address, &prefix, PARTITIONS, replication)).await.unwrap());
    }
    all
}

/// Runs blocking work off the runtime's threads.
pub(crate) async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn poll_until(consumer: &GroupConsumer, wanted: usize) -> Vec<(String, i32, i64, Vec<u8>)> {
    let mut got = Vec::new();
    let started = Instant::now();
    while got.len() < wanted && started.elapsed() < Duration::from_secs(30) {
        consumer
            .poll_batch(100, Duration::from_millis(500), |record| {
                if !record.is_own() {
                    got.push((record.topic.to_owned(), record.partition.0, record.offset.0, record.value.unwrap_or_default().to_vec()));
                }
            })
            .unwrap();
    }
    got
}

fn write(kafka: &Kafka, topic: &str, partition: i32, values: &[&str]) -> i64 {
    let batch = kafka.producer().batch();
    for value in values {
        batch
            .send(OutRecord {
                topic,
                partition: Partition(partition),
                key: b"k",
                value: Some(value.as_bytes()),
                headers: &[("ce_type", b"test")],
            })
            .unwrap();
    }
    let marks = batch.acked_blocking().unwrap();
    assert_eq!(marks.len(), 1);
    marks[0].offset.0
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_as_declared_and_drift_is_mended_alone() {
    for kafka in brokers("apply").await {
        let states = kafka.apply_topics().await.unwrap();
        assert!(states.iter().all(|state| state.drift.is_empty()), "{states:?}");
        assert_eq!(states.len(), Topic::all().len());
        let pii = kafka.topic(Topic::Pii(Family::Orders));
        // A setting that nobody declares must survive, one that is declared must come back.
        kafka
            .set_settings(
                &pii,
                vec![("max.message.bytes".to_owned(), "2000000".to_owned()), ("max.compaction.lag.ms".to_owned(), "99999999".to_owned())],
            )
            .await
            .unwrap();
        let states = kafka.diff_topics().await.unwrap();
        let drifted: Vec<_> = states.iter().filter(|state| !state.drift.is_empty()).collect();
        assert_eq!(drifted.len(), 1, "{drifted:?}");
        assert_eq!(drifted[0].name, pii);
        assert_eq!(drifted[0].drift[0].setting, "max.compaction.lag.ms");
        assert_eq!(drifted[0].drift[0].found, "99999999");
        let states = kafka.apply_topics().await.unwrap();
        assert!(states.iter().all(|state| state.drift.is_empty()), "{states:?}");
        assert_eq!(kafka.setting(&pii, "max.message.bytes").await.unwrap().as_deref(), Some("2000000"));
        assert_eq!(kafka.incarnation(&pii).await.unwrap(), kafka.incarnation(&pii).await.unwrap());
        assert_ne!(kafka.incarnation(&pii).await.unwrap(), kafka.incarnation(&kafka.topic(Topic::AuditLog)).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_partition_count_is_drift_that_apply_does_not_touch() {
    for kafka in brokers("shape").await {
        kafka.apply_topics().await.unwrap();
        let mut settings = kafka.settings().clone();
        settings.broker = sunder::kafka::Broker::Address(kafka.address().to_owned());
        settings.partitions = PARTITIONS + 1;
        let other = Kafka::connect(settings).await.unwrap();
        let states = other.apply_topics().await.unwrap();
        let raw = other.topic(Topic::Raw(Family::Orders));
        let state = states.iter().find(|state| state.name == raw).unwrap();
        assert_eq!(state.drift[0].setting, "partitions");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_consumer_is_given_what_comes_later_whoever_wrote_it() {
    for kafka in brokers("idle").await {
        kafka.apply_topics().await.unwrap();
        // On the embedded broker nobody tells this process of what another client appends.
        let mut settings = kafka.settings().clone();
        settings.broker = sunder::kafka::Broker::Address(kafka.address().to_owned());
        let foreign = Kafka::connect(settings).await.unwrap();
        off(move || {
            let topic = kafka.topic(Topic::Raw(Family::Orders));
            let consumer = GroupConsumer::subscribe(&kafka, &kafka.group("idle"), &[&topic], |ours| vec![None; ours.len()]).unwrap();
            for round in 0..3 {
                for (writer, name) in [(&kafka, "own"), (&foreign, "foreign")] {
                    assert_eq!(consumer.poll_batch(10, Duration::from_millis(300), |record| assert!(record.is_own())).unwrap(), 0);
                    write(writer, &topic, round, &[name]);
                    let got = poll_until(&consumer, 1);
                    assert_eq!(got.iter().map(|(_, _, _, value)| value.as_slice()).collect::<Vec<_>>(), [name.as_bytes()], "{round}");
                }
            }
            // A second member takes some of the resting partitions over.
            let other = GroupConsumer::subscribe(&kafka, &kafka.group("idle"), &[&topic], |ours| vec![None; ours.len()]).unwrap();
            let started = Instant::now();
            while other.assignment().is_empty() && started.elapsed() < Duration::from_secs(60) {
                for member in [&consumer, &other] {
                    member.poll_batch(10, Duration::from_millis(50), |_| {}).unwrap();
                }
            }
            assert!(!other.assignment().is_empty());
            for partition in 0..PARTITIONS {
                write(&kafka, &topic, partition, &["shared"]);
            }
            let mut got = 0;
            let started = Instant::now();
            while got < PARTITIONS && started.elapsed() < Duration::from_secs(60) {
                for member in [&consumer, &other] {
                    member.poll_batch(10, Duration::from_millis(50), |record| got += i32::from(record.value == Some(b"shared"))).unwrap();
                }
            }
            assert_eq!(got, PARTITIONS);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_reads_what_was_written_and_resumes_where_it_committed() {
    for kafka in brokers("group").await {
        kafka.apply_topics().await.unwrap();
        let topic = kafka.topic(Topic::Raw(Family::Orders));
        off(move || {
            write(&kafka, &topic, 1, &["a", "b"]);
            let last = write(&kafka, &topic, 2, &["c"]);
            let group = kafka.split_group();
            let consumer = GroupConsumer::subscribe(&kafka, &group, &[&topic], |ours| vec![None; ours.len()]).unwrap();
            let got = poll_until(&consumer, 3);
            let mut values: Vec<_> = got.iter().map(|(_, partition, _, value)| (*partition, value.clone())).collect();
            values.sort();
            assert_eq!(values, [(1, b"a".to_vec()), (1, b"b".to_vec()), (2, b"c".to_vec())]);
            assert_eq!(consumer.assignment().len(), 3);
            assert!(matches!(consumer.take_changes().as_slice(), [Rebalanced::Assigned(ours)] if ours.len() == 3));
            assert_eq!(consumer.lag().unwrap().iter().map(|(_, lag)| lag).sum::<u64>(), 0);
            consumer.commit(&[(topic.clone(), Partition(2), Offset(last + 1))]).unwrap();
            drop(consumer);
            write(&kafka, &topic, 2, &["d"]);
            let consumer = GroupConsumer::subscribe(&kafka, &group, &[&topic], |ours| vec![None; ours.len()]).unwrap();
            let got = poll_until(&consumer, 3);
            // Partition 1 was not committed, so it comes again; of partition 2 only what is new.
            let of_two: Vec<_> = got.iter().filter(|(_, partition, ..)| *partition == 2).map(|(.., value)| value.clone()).collect();
            assert_eq!(of_two, [b"d".to_vec()]);
            assert_eq!(got.len(), 3);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_kept_elsewhere_beat_the_groups_and_a_lost_one_is_told() {
    for kafka in brokers("positions").await {
        kafka.apply_topics().await.unwrap();
        let topic = kafka.topic(Topic::State(Kind::Orders));
        off(move || {
            let last = write(&kafka, &topic, 1, &["a", "b", "c"]);
            let from = Offset(last);
            let consumer = GroupConsumer::subscribe(&kafka, &kafka.group("one"), &[&topic], move |ours| {
                ours.iter().map(|(_, partition)| (partition.0 == 1).then_some(from)).collect()
            })
            .unwrap();
            let got = poll_until(&consumer, 1);
            assert_eq!(got, [(topic.clone(), 1, last, b"c".to_vec())]);
            drop(consumer);
            let consumer = GroupConsumer::subscribe(&kafka, &kafka.group("two"), &[&topic], move |ours| {
                ours.iter().map(|(_, partition)| (partition.0 == 1).then_some(Offset(1_000))).collect()
            })
            .unwrap();
            let started = Instant::now();
            let lost = loop {
                match consumer.poll_batch(10, Duration::from_millis(200), |_| {}) {
                    Ok(_) => assert!(started.elapsed() < Duration::from_secs(30), "the lost offset never surfaced"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(&lost, KafkaError::OffsetLost { partition: Partition(1), wanted: Offset(1_000), .. }), "{lost:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_member_takes_its_share_and_the_first_is_told() {
    for kafka in brokers("rebalance").await {
        kafka.apply_topics().await.unwrap();
        let topic = kafka.topic(Topic::Raw(Family::Orders));
        off(move || {
            let join = || GroupConsumer::subscribe(&kafka, &kafka.group("r"), &[&topic], |ours| vec![None; ours.len()]).unwrap();
            let first = join();
            let second = join();
            let started = Instant::now();
            while first.assignment().is_empty()
                || second.assignment().is_empty()
                || first.assignment().len() + second.assignment().len() != 3
            {
                for member in [&first, &second] {
                    member.poll_batch(10, Duration::from_millis(50), |_| {}).unwrap();
                }
                assert!(started.elapsed() < Duration::from_secs(40), "no rebalance");
            }
            let mut all = first.assignment();
            all.extend(second.assignment());
            all.sort();
            all.dedup();
            assert_eq!(all.len(), 3);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_many_is_acknowledged_with_its_highest_offsets() {
    for kafka in brokers("batch").await {
        kafka.apply_topics().await.unwrap();
        let topic = kafka.topic(Topic::Events(Kind::Orders));
        let batch = kafka.producer().batch();
        for number in 0..3_000i32 {
            let value = number.to_string();
            batch
                .send(OutRecord {
                    topic: &topic,
                    partition: Partition(number % PARTITIONS),
                    key: value.as_bytes(),
                    value: Some(value.as_bytes()),
                    headers: &[],
                })
                .unwrap();
        }
        let marks = batch.acked().await.unwrap();
        // Partition 0 also holds the incarnation record.
        assert_eq!(marks.iter().map(|mark| mark.offset.0).collect::<Vec<_>>(), [1_000, 999, 999]);
        let batch = kafka.producer().batch();
        let sent = batch.send(OutRecord { topic: &topic, partition: Partition(99), key: b"k", value: None, headers: &[] });
        let error = match sent {
            Err(error) => error,
            Ok(()) => batch.acked().await.unwrap_err(),
        };
        assert_eq!(error.failed, 1, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let started = Instant::now();
    let error = Kafka::connect(KafkaSettings::plaintext(&address, "sp", 1, 1)).await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
    assert!(started.elapsed() < Duration::from_secs(31));
}
