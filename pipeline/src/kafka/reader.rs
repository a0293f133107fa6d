//! Reads ranges of partitions from end to end, outside any group: for scans, for rebuilding what a splitter must know, and for
//! finding a subject's keys.
//!
//! Invariants: `read_uncommitted`, since aborted records are readable too; CRCs are checked; nothing is committed; a range that the
//! log no longer holds is an error, never a shorter read; at most one record is held at a time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset as ClientOffset, TopicPartitionList};
use sunder_schemas::ids::{Offset, Partition};

use crate::kafka::error::KafkaError;
use crate::kafka::health::{Health, PlainContext};
use crate::kafka::record::Record;

/// Offsets `from..to` of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Full topic name.
    pub topic: String,
    /// Partition.
    pub partition: Partition,
    /// First offset to read.
    pub from: Offset,
    /// First offset not to read.
    pub to: Offset,
}

/// What readers are made from.
#[derive(Clone)]
pub(crate) struct ReaderOptions {
    options: ClientConfig,
    health: Health,
}

impl ReaderOptions {
    /// `options` are those of a consumer; its group is never joined and nothing is committed under it.
    pub(crate) fn new(mut options: ClientConfig, health: Health) -> Self {
        options.set("isolation.level", "read_uncommitted").set("enable.partition.eof", "true");
        Self { options, health }
    }
}

/// How long a reader waits for any record before it gives up: brokers answer within a second, a leader change takes some.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long the broker may take to tell a topic's leaders.
const METADATA_WAIT: Duration = Duration::from_secs(10);
/// How long one poll waits.
const POLL_WAIT: Duration = Duration::from_millis(250);

/// Reads `ranges` and gives each record to `each`, in order within a partition. Returns how many records that were. Blocks.
///
/// # Errors
/// [`KafkaError`] of the client, `Silent` where the broker stops answering, or what `each` returned.
pub(crate) fn read(
    options: &ReaderOptions,
    ranges: &[Range],
    mut each: impl FnMut(&Record<'_>) -> Result<(), KafkaError>,
) -> Result<u64, KafkaError> {
    let mut count = 0u64;
    let mut topics: Vec<&str> = ranges.iter().map(|range| range.topic.as_str()).collect();
    topics.sort_unstable();
    topics.dedup();
    if ranges.iter().all(|range| range.from >= range.to) {
        return Ok(0);
    }
    let consumer: BaseConsumer<PlainContext> = options
        .options
        .create_with_context(PlainContext(options.health.clone()))
        .map_err(|error| KafkaError::call("make a reader", &error))?;
    // One topic at a time: the client's end-of-partition event names the partition alone.
    for topic in topics {
        count += read_topic(&consumer, topic, ranges, &mut each)?;
    }
    Ok(count)
}

fn read_topic(
    consumer: &BaseConsumer<PlainContext>,
    topic: &str,
    ranges: &[Range],
    each: &mut impl FnMut(&Record<'_>) -> Result<(), KafkaError>,
) -> Result<u64, KafkaError> {
    let action = || format!("read {topic}");
    let mut open: HashMap<i32, Offset> = HashMap::new();
    let mut list = TopicPartitionList::new();
    for range in ranges.iter().filter(|range| range.topic == topic && range.from < range.to) {
        open.insert(range.partition.0, range.to);
        list.add_partition_offset(topic, range.partition.0, ClientOffset::Offset(range.from.0))
            .map_err(|error| KafkaError::call(action(), &error))?;
    }
    if open.is_empty() {
        return Ok(0);
    }
    // Without this the client finds the topic's leaders only at its next scan of unknown topics, once a second.
    consumer.fetch_metadata(Some(topic), METADATA_WAIT).map_err(|error| KafkaError::call(action(), &error))?;
    consumer.assign(&list).map_err(|error| KafkaError::call(action(), &error))?;
    let mut count = 0u64;
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(POLL_WAIT) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let record = Record::of(&message);
                let Some(to) = open.get(&record.partition.0).copied().filter(|_| record.topic == topic) else { continue };
                if record.offset < to {
                    each(&record)?;
                    count += 1;
                }
                if record.offset.0 + 1 >= to.0 {
                    open.remove(&record.partition.0);
                }
            }
            // The end of the log lies at or beyond `to`, so all that is left of the range was given.
            Some(Err(ClientError::PartitionEOF(partition))) => {
                heard = Instant::now();
                open.remove(&partition);
            }
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    return Err(KafkaError::own(action(), "OffsetOutOfRange"));
                }
                Some(code) if is_passing(code) => {}
                _ => return Err(KafkaError::call(action(), &error)),
            },
            None => {}
        }
        if heard.elapsed() > SILENCE_MAX {
            return Err(KafkaError::own(action(), "Silent"));
        }
    }
    consumer.unassign().map_err(|error| KafkaError::call(action(), &error))?;
    Ok(count)
}

/// Events that librdkafka mends by itself.
pub(crate) const fn is_passing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::RequestTimedOut
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::ReplicaNotAvailable
            | RDKafkaErrorCode::NetworkException
            | RDKafkaErrorCode::CoordinatorLoadInProgress
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::RebalanceInProgress
            | RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::WaitingForCoordinator
            | RDKafkaErrorCode::PollExceeded
            // The broker asked is no longer in the cluster's metadata: it is away, and the next question goes to another.
            | RDKafkaErrorCode::DestroyBroker
            // A broker's own trouble (`UNKNOWN_SERVER_ERROR`), such as an append of the group's coordinator that timed out.
            | RDKafkaErrorCode::Unknown
    )
}
