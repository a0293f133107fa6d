//! Business rows on `state.*` and `events.*`: which of them a case is about, and which are older than they may be kept.
//!
//! A row's age is read from the row itself, so a record that cannot be read has none: it is passed over and counted, since whoever wrote
//! it answers for it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use sunder_retention::store::{Aged, Extent, Needles, StoreError, Subject};
use sunder_schemas::class::Kind;
use sunder_schemas::ids::{EntityToken, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::records::StateRecord;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;
use tokio::runtime::Handle;

use crate::kafka::error::KafkaError;
use crate::kafka::log::{KafkaLog, subject_part};
use crate::kafka::{Kafka, Record, blocking};
use crate::registry::{Schemas, Unread};

/// Reads rows of the log; blocks, and asks the registry through the runtime.
#[derive(Clone)]
pub(super) struct RowReader {
    schemas: Arc<Schemas>,
    handle: Handle,
}

impl RowReader {
    /// Reads with `schemas`, on the runtime of the caller.
    pub(super) fn new(schemas: &Arc<Schemas>) -> Self {
        Self { schemas: Arc::clone(schemas), handle: Handle::current() }
    }

    /// The row in `value` of a record of `topic`; `None` where it is none of ours.
    fn row(&self, topic: Topic, value: &[u8]) -> Result<Option<StateRecord>, KafkaError> {
        let (kind, record) = match topic {
            Topic::State(kind) => (kind, RecordType::State(kind)),
            Topic::Events(kind) => (kind, RecordType::Event(kind)),
            _ => return Ok(None),
        };
        let mut body = self.schemas.body(record, value);
        if let Err(Unread::Learn(id)) = body {
            let learned = self.handle.block_on(self.schemas.learn(id));
            learned.map_err(|_| KafkaError::own(format!("read {topic}"), "NoSchema"))?;
            body = self.schemas.body(record, value);
        }
        Ok(body.ok().and_then(|body| {
            let row =
                if matches!(topic, Topic::Events(_)) { StateRecord::decode_event(kind, &body) } else { StateRecord::decode(kind, &body) };
            row.ok()
        }))
    }
}

/// The rows that a case takes.
pub(super) struct RowFinder {
    wanted: HashSet<String>,
    older_than: Option<Timestamp>,
    reader: RowReader,
}

impl RowFinder {
    /// The rows of `subjects` as far as `extent` takes them; `None` where it takes none.
    pub(super) fn of(subjects: &[Subject], extent: Extent, reader: RowReader) -> Option<Self> {
        extent.takes_rows().then(|| Self {
            wanted: subjects.iter().map(|subject| key::state_key(&subject.seller, subject.token, None)).collect(),
            older_than: extent.older_than(),
            reader,
        })
    }

    /// The rows that a scan must not find; `None` where there are none.
    pub(super) fn of_needles(needles: &Needles, reader: RowReader) -> Option<Self> {
        let extent = needles.older_than.map_or(Extent::WithBusinessData, Extent::OlderThan);
        if needles.gone.is_empty() { None } else { Self::of(&needles.gone, extent, reader) }
    }

    /// What `record` of `topic` is to the case. A level's rows go one by one, by their own age; all of an order goes with it.
    pub(super) fn look(&self, topic: Topic, record: &Record<'_>) -> Result<Row, KafkaError> {
        let (Some(key), Some(value)) = (record.key, record.value) else { return Ok(Row::Other) };
        let is_wanted = subject_part(key).and_then(|part| std::str::from_utf8(part).ok()).is_some_and(|part| self.wanted.contains(part));
        let kind = match topic {
            Topic::State(kind) | Topic::Events(kind) => kind,
            Topic::Raw(_) if is_wanted => return Ok(Row::Waits),
            _ => return Ok(Row::Other),
        };
        match self.older_than {
            _ if !is_wanted => Ok(Row::Other),
            Some(cutoff) if kind == Kind::InventoryLevels => {
                let row = self.reader.row(topic, value)?;
                let is_old = row.and_then(|row| row.event_time()).is_some_and(|at| at < cutoff);
                Ok(if is_old { Row::Goes } else { Row::Stays })
            }
            _ => Ok(Row::Goes),
        }
    }
}

/// What a record is to a case over business rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    /// Not of its entities, or no value.
    Other,
    /// A row that goes.
    Goes,
    /// A row of its entities that is too young to go; an older value under the same key goes by compaction.
    Stays,
    /// An event of its entities on a raw topic, which goes by the topic's retention.
    Waits,
}

/// Topic, partition and key of a row.
type Place = (String, i32, Vec<u8>);

/// Topics of business rows.
fn topics_of_rows() -> impl Iterator<Item = Topic> {
    Kind::ALL.iter().flat_map(|kind| [Topic::State(*kind), Topic::Events(*kind)])
}

impl Kafka {
    /// Every key with a living value that `finder` takes, on the partitions of `subjects`.
    pub(super) fn keys_of_rows(&self, subjects: &[Subject], finder: &RowFinder) -> Result<BTreeSet<Place>, KafkaError> {
        let partitions: BTreeSet<i32> = subjects.iter().map(|subject| self.partition_of(&subject.seller, subject.token).0).collect();
        let mut living: BTreeSet<Place> = BTreeSet::new();
        for topic in topics_of_rows() {
            let name = self.topic(topic);
            let ranges = partitions.iter().map(|partition| self.whole_blocking(&name, Partition(*partition)));
            let ranges = ranges.collect::<Result<Vec<_>, _>>()?;
            self.read_blocking(&ranges, |record| {
                let Some(key) = record.key else { return Ok(()) };
                let entry = (name.clone(), record.partition.0, key.to_vec());
                match finder.look(topic, record)? {
                    Row::Goes => drop(living.insert(entry)),
                    // A tombstone, or a younger value: burying that would take what is to stay.
                    Row::Stays => drop(living.remove(&entry)),
                    Row::Other | Row::Waits if record.value.is_none() => drop(living.remove(&entry)),
                    Row::Other | Row::Waits => {}
                }
                Ok(())
            })?;
        }
        Ok(living)
    }

    fn aged_blocking(&self, cutoff: Timestamp, reader: &RowReader) -> Result<Vec<Aged>, KafkaError> {
        let mut aged: BTreeMap<(String, Vec<u8>), Aged> = BTreeMap::new();
        let mut unreadable = 0u64;
        for topic in topics_of_rows() {
            let (Topic::State(kind) | Topic::Events(kind)) = topic else { continue };
            if kind.is_child() {
                continue;
            }
            let name = self.topic(topic);
            let partitions = (0..self.partitions(topic)).map(|partition| self.whole_blocking(&name, Partition(partition)));
            let ranges = partitions.collect::<Result<Vec<_>, _>>()?;
            self.read_blocking(&ranges, |record| {
                let Some(key) = record.key.filter(|_| !record.is_own()) else { return Ok(()) };
                let Some(value) = record.value else {
                    aged.remove(&(name.clone(), key.to_vec()));
                    return Ok(());
                };
                let Some(row) = reader.row(topic, value)? else {
                    unreadable += 1;
                    return Ok(());
                };
                let entry = (name.clone(), key.to_vec());
                if row.event_time().is_some_and(|at| at < cutoff) {
                    let (seller, token): (&SellerId, EntityToken) = (row.seller(), row.entity());
                    aged.insert(entry, Aged { seller: seller.clone(), family: kind.family(), token });
                } else {
                    aged.remove(&entry);
                }
                Ok(())
            })?;
        }
        if unreadable > 0 {
            tracing::warn!(records = unreadable, "rows on state and events topics that are not ours have no age and were passed over");
        }
        Ok(aged.into_values().collect::<BTreeSet<_>>().into_iter().collect())
    }
}

impl KafkaLog {
    /// See [`sunder_retention::store::EventLog::aged`].
    pub(super) async fn aged_rows(&self, cutoff: Timestamp) -> Result<Vec<Aged>, StoreError> {
        let (kafka, reader) = (self.kafka.clone(), RowReader::new(&self.schemas));
        Ok(blocking(move || kafka.aged_blocking(cutoff, &reader)).await?)
    }
}
