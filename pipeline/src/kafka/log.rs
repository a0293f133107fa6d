//! What erasure asks of the event log: tombstones, ends, barriers, and how the log stands.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use serde_json::{Value, json};
use sunder_retention::store::{Aged, Drifted, EventLog, Extent, Hindrance, Mark, OutboxRecord, StoreError, Subject};
use sunder_schemas::class::{Family, FieldGroup, Kind};
use sunder_schemas::ids::{EntityToken, Offset, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;

use crate::kafka::admin::Drift;
use crate::kafka::error::KafkaError;
use crate::kafka::health::PlainContext;
use crate::kafka::needles::KeyFinder;
use crate::kafka::roll::{is_lowered, rolled};
use crate::kafka::rows::{Row, RowFinder, RowReader};
use crate::kafka::{Batch, Kafka, OutRecord, ProduceError, Range, Record, blocking};
use crate::registry::Schemas;

/// Header of records written for a case.
pub const CASE_HEADER: &str = "sunder_case";
/// How long a publication is tried: a broker that died is fenced after 9 s (`broker.session.timeout.ms`) and its partitions get leaders then.
const PUBLISH_WITHIN: Duration = Duration::from_secs(20);
/// How long the coordinator may take to tell committed offsets.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(20);

/// The event log on Kafka: implements [`EventLog`] and [`sunder_retention::store::Prove`].
#[derive(Clone)]
pub struct KafkaLog {
    pub(crate) kafka: Kafka,
    pub(super) schemas: Arc<Schemas>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KafkaLog({:?})", self.kafka)
    }
}

impl KafkaLog {
    /// The log that `kafka` is connected to; its rows are of the built-in schemas.
    #[must_use]
    pub fn new(kafka: Kafka) -> Self {
        Self::with_schemas(kafka, Arc::new(Schemas::built_in()))
    }

    /// The log that `kafka` is connected to, whose rows are read with `schemas`.
    #[must_use]
    pub const fn with_schemas(kafka: Kafka, schemas: Arc<Schemas>) -> Self {
        Self { kafka, schemas }
    }
}

/// Topics where a subject's data can lie: their ends are the barrier.
pub(super) fn topics_of_subjects() -> Vec<Topic> {
    let mut topics: Vec<Topic> = Topic::all().into_iter().filter(|topic| topic.holds_sealed()).collect();
    topics.extend(Kind::ALL.iter().flat_map(|kind| [Topic::State(*kind), Topic::Events(*kind)]));
    topics
}

/// The first two parts of a key, `seller|entity`; `None` where it has fewer.
pub(super) fn subject_part(key: &[u8]) -> Option<&[u8]> {
    let first = key.iter().position(|byte| *byte == b'|')?;
    let rest = key.get(first + 1..)?;
    let second = rest.iter().position(|byte| *byte == b'|').unwrap_or(rest.len());
    key.get(..first + 1 + second)
}

/// The entity that a key names, where it is of `seller`.
fn entity_of(key: &[u8], seller: &SellerId) -> Option<EntityToken> {
    let parts = key::split(key)?;
    let (of, entity) = parts.first().zip(parts.get(1))?;
    (of == seller.as_str()).then(|| EntityToken::parse(entity).ok()).flatten()
}

fn bury(batch: &Batch, topic: &str, partition: Partition, key: &[u8], case: &str) -> Result<(), KafkaError> {
    batch.send(OutRecord { topic, partition, key, value: None, headers: &[(CASE_HEADER, case.as_bytes())] })?;
    Ok(())
}

/// Those of `subjects` that can have personal data: what is found by its age and never had a key is an inventory level.
fn with_personal(subjects: &[Subject], extent: Extent) -> impl Iterator<Item = &Subject> + Clone {
    subjects.iter().filter(move |subject| extent.older_than().is_none() || !subject.keys.is_empty())
}

impl Kafka {
    fn bury_personal<'s>(&self, batch: &Batch, case: &str, subjects: impl Iterator<Item = &'s Subject> + Clone) -> Result<(), KafkaError> {
        // All families: a subject does not tell its own, and a tombstone of a key that never was costs a hundred bytes.
        for topic in Family::ALL.iter().map(|family| self.topic(Topic::Pii(*family))) {
            for subject in subjects.clone() {
                let partition = self.partition_of(&subject.seller, subject.token);
                for group in FieldGroup::ALL {
                    bury(batch, &topic, partition, key::pii_key(&subject.seller, subject.token, *group).as_bytes(), case)?;
                }
            }
        }
        Ok(())
    }

    /// Finds every key of `subjects` with a living value that `finder` takes on `state.*` and `events.*` and buries it: children and events
    /// have keys of their own that only the log knows.
    fn bury_business(&self, batch: &Batch, case: &str, subjects: &[Subject], finder: &RowFinder) -> Result<(), KafkaError> {
        for (topic, partition, key) in self.keys_of_rows(subjects, finder)? {
            bury(batch, &topic, Partition(partition), &key, case)?;
        }
        Ok(())
    }

    /// Buries whatever holds a block of `subjects` or names one of them and still has a value, on the partition and under the key where
    /// it lies on any replica. Of business rows those go that `rows` takes.
    fn bury_found(&self, batch: &Batch, case: &str, subjects: &[Subject], rows: Option<&RowFinder>) -> Result<(), KafkaError> {
        let finder = KeyFinder::new(subjects.iter().flat_map(|subject| subject.keys.iter().copied()));
        let names: HashSet<String> = subjects.iter().map(|subject| key::state_key(&subject.seller, subject.token, None)).collect();
        let topics: BTreeMap<String, Topic> =
            topics_of_subjects().into_iter().filter(|topic| topic.is_compacted()).map(|topic| (self.topic(topic), topic)).collect();
        let is_named =
            |key: &[u8]| subject_part(key).and_then(|part| std::str::from_utf8(part).ok()).is_some_and(|part| names.contains(part));
        let is_wanted = |record: &Record<'_>, key: &[u8]| {
            let topic = topics.get(record.topic).copied();
            // A row that cannot be read stays, and the next reading says so.
            let goes = |rows: &RowFinder, topic| rows.look(topic, record).is_ok_and(|row| row == Row::Goes);
            let is_row = rows.zip(topic).is_some_and(|(rows, topic)| goes(rows, topic));
            let is_sealed = topic.is_some_and(Topic::holds_sealed) && is_named(key);
            is_row || is_sealed || record.pieces().any(|bytes| finder.find(bytes).any(|hit| hit.is_block))
        };
        let mut living: BTreeSet<(String, i32, Vec<u8>)> = BTreeSet::new();
        for (name, topic) in &topics {
            let ranges: Vec<Range> =
                (0..self.partitions(*topic)).map(|partition| self.whole_blocking(name, Partition(partition))).collect::<Result<_, _>>()?;
            let of_brokers = self.read_replicas_blocking(ranges, |living: &mut BTreeSet<(i32, Vec<u8>)>, record| {
                let Some(key) = record.key else { return };
                let entry = (record.partition.0, key.to_vec());
                if record.value.is_some() && is_wanted(record, key) {
                    living.insert(entry);
                } else {
                    // A tombstone, or a value that is to stay.
                    living.remove(&entry);
                }
            })?;
            living.extend(of_brokers.into_iter().flatten().map(|(partition, key)| (name.clone(), partition, key)));
        }
        living.into_iter().try_for_each(|(topic, partition, key)| bury(batch, &topic, Partition(partition), &key, case))
    }

    /// The entities of `seller` that still have a value on a topic of subjects.
    fn entities_blocking(&self, seller: &SellerId) -> Result<Vec<EntityToken>, KafkaError> {
        let mut ranges = Vec::new();
        for topic in topics_of_subjects().into_iter().filter(|topic| topic.is_compacted()) {
            for partition in (0..self.partitions(topic)).map(Partition) {
                ranges.push(self.whole_blocking(&self.topic(topic), partition)?);
            }
        }
        let mut living: BTreeSet<(String, Vec<u8>)> = BTreeSet::new();
        self.read_blocking(&ranges, |record| {
            let Some(key) = record.key.filter(|key| entity_of(key, seller).is_some()) else { return Ok(()) };
            let entry = (record.topic.to_owned(), key.to_vec());
            if record.value.is_some() {
                living.insert(entry);
            } else {
                living.remove(&entry);
            }
            Ok(())
        })?;
        let entities: BTreeSet<EntityToken> = living.iter().filter_map(|(_, key)| entity_of(key, seller)).collect();
        Ok(entities.into_iter().collect())
    }

    /// The committed next offsets of `group` for `partitions`, without joining it.
    pub(crate) fn committed_blocking(&self, group: &str, partitions: &[Mark]) -> Result<BTreeMap<(String, i32), Offset>, KafkaError> {
        let action = || format!("read the offsets of {group}");
        let consumer: BaseConsumer<PlainContext> = self
            .settings()
            .consumer(self.address(), group)
            .create_with_context(PlainContext(self.health().clone()))
            .map_err(|error| KafkaError::call(action(), &error))?;
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for mark in partitions {
            list.add_partition(&mark.topic, mark.partition.0);
        }
        let committed = consumer.committed_offsets(list, COMMITTED_TIMEOUT).map_err(|error| KafkaError::call(action(), &error))?;
        let mut offsets = BTreeMap::new();
        for element in committed.elements() {
            element.error().map_err(|error| KafkaError::call(action(), &error))?;
            if let rdkafka::Offset::Offset(next) = element.offset() {
                offsets.insert((element.topic().to_owned(), element.partition()), Offset(next));
            }
        }
        Ok(offsets)
    }

    /// Sets the committed next offsets of `group`, which must have no members, to `marks`.
    pub(crate) fn set_group_blocking(&self, group: &str, marks: &[Mark]) -> Result<(), KafkaError> {
        let action = || format!("set the offsets of {group}");
        let consumer: BaseConsumer<PlainContext> = self
            .settings()
            .consumer(self.address(), group)
            .create_with_context(PlainContext(self.health().clone()))
            .map_err(|error| KafkaError::call(action(), &error))?;
        let mut list = TopicPartitionList::with_capacity(marks.len());
        for mark in marks {
            let offset = rdkafka::Offset::Offset(mark.offset.0);
            list.add_partition_offset(&mark.topic, mark.partition.0, offset).map_err(|error| KafkaError::call(action(), &error))?;
        }
        consumer.commit(&list, CommitMode::Sync).map_err(|error| KafkaError::call(action(), &error))
    }

    fn raw_ends_blocking(&self) -> Result<Vec<Mark>, KafkaError> {
        let mut marks = Vec::new();
        for topic in Family::ALL.iter().map(|family| Topic::Raw(*family)) {
            let name = self.topic(topic);
            let incarnation = self.incarnation_blocking(&name)?;
            for partition in (0..self.partitions(topic)).map(Partition) {
                let (_, end) = self.bounds_blocking(&name, partition)?;
                // A partition that never had a record has nothing to wait for.
                if end.0 > 0 {
                    marks.push(Mark { topic: name.clone(), incarnation: incarnation.clone(), partition, offset: Offset(end.0 - 1) });
                }
            }
        }
        Ok(marks)
    }
}

impl Kafka {
    async fn send_all(&self, records: &[OutboxRecord]) -> Result<(), ProduceError> {
        let batch = self.producer().batch();
        for record in records {
            let topic = Topic::all().into_iter().find(|topic| topic.to_string() == record.topic).ok_or_else(|| ProduceError {
                topic: record.topic.clone(),
                code: "UnknownTopic".to_owned(),
                failed: 1,
                sent: 0,
                is_retriable: false,
            })?;
            batch.send(OutRecord {
                topic: &self.topic(topic),
                partition: key::partition_of_key(record.key.as_bytes(), self.partitions(topic)),
                key: record.key.as_bytes(),
                value: record.value.as_deref().map(str::as_bytes),
                headers: &[],
            })?;
        }
        batch.acked().await.map(|_| ())
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn publish(&self, records: &[OutboxRecord]) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            match self.kafka.send_all(records).await {
                // A broker has just gone and its partitions get other leaders. What was acknowledged is written twice then, as after a
                // crash; every reader of these topics goes by the key.
                Err(error) if error.is_retriable && started.elapsed() < PUBLISH_WITHIN => {}
                Err(error) => return Err(KafkaError::from(error).into()),
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn tombstone(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<Vec<Mark>, StoreError> {
        let (kafka, case, subjects) = (self.kafka.clone(), case.to_owned(), subjects.to_vec());
        let reader = RowReader::new(&self.schemas);
        Ok(blocking(move || {
            let batch = kafka.producer().batch();
            kafka.bury_personal(&batch, &case, with_personal(&subjects, extent))?;
            if let Some(finder) = RowFinder::of(&subjects, extent, reader) {
                kafka.bury_business(&batch, &case, &subjects, &finder)?;
            }
            Ok(batch.acked_blocking()?)
        })
        .await?)
    }

    async fn tombstone_found(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<Vec<Mark>, StoreError> {
        let (kafka, case, subjects) = (self.kafka.clone(), case.to_owned(), subjects.to_vec());
        let reader = RowReader::new(&self.schemas);
        Ok(blocking(move || {
            let batch = kafka.producer().batch();
            kafka.bury_personal(&batch, &case, with_personal(&subjects, extent))?;
            kafka.bury_found(&batch, &case, &subjects, RowFinder::of(&subjects, extent, reader).as_ref())?;
            Ok(batch.acked_blocking()?)
        })
        .await?)
    }

    async fn raw_ends(&self) -> Result<Vec<Mark>, StoreError> {
        let kafka = self.kafka.clone();
        Ok(blocking(move || kafka.raw_ends_blocking()).await?)
    }

    async fn split_past(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        if marks.is_empty() {
            return Ok(true);
        }
        let (kafka, marks) = (self.kafka.clone(), marks.to_vec());
        Ok(blocking(move || {
            for mark in &marks {
                if kafka.incarnation_blocking(&mark.topic)? != mark.incarnation {
                    return Err(KafkaError::own(format!("read the offsets of {}", mark.topic), "AnotherIncarnation"));
                }
            }
            let committed = kafka.committed_blocking(&kafka.split_group(), &marks)?;
            Ok(marks.iter().all(|mark| committed.get(&(mark.topic.clone(), mark.partition.0)).is_some_and(|next| *next > mark.offset)))
        })
        .await?)
    }

    async fn barrier(&self) -> Result<Vec<Mark>, StoreError> {
        Ok(self.kafka.beat(&topics_of_subjects()).await?)
    }

    async fn entities(&self, seller: &SellerId) -> Result<Vec<EntityToken>, StoreError> {
        let (kafka, seller) = (self.kafka.clone(), seller.clone());
        Ok(blocking(move || kafka.entities_blocking(&seller)).await?)
    }

    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<Aged>, StoreError> {
        self.aged_rows(cutoff).await
    }

    async fn roll(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<bool, StoreError> {
        // In memory nothing is removed physically, and no proof of it is claimed.
        if self.kafka.is_embedded() {
            return Ok(true);
        }
        let mut is_gone = true;
        for topic in rolled(extent) {
            is_gone &= self.kafka.roll(topic, case, subjects).await?;
        }
        Ok(is_gone)
    }

    fn message_timeout(&self) -> Duration {
        self.kafka.producer().message_timeout()
    }

    async fn drift(&self) -> Result<Vec<Drifted>, StoreError> {
        let states = self.kafka.diff_topics().await?;
        let drifted = |name: &str, drift: &Drift| Drifted { what: format!("{name}: {drift}"), is_lowered: is_lowered(drift) };
        Ok(states.iter().flat_map(|state| state.drift.iter().map(move |drift| drifted(&state.name, drift))).collect())
    }

    async fn removal_bound(&self) -> Result<Duration, StoreError> {
        let ms = self.kafka.removal_bound_ms().await?;
        Ok(Duration::from_millis(u64::try_from(ms).unwrap_or_default()))
    }

    async fn hindrances(&self, barrier: &[Mark]) -> Result<Vec<Hindrance>, StoreError> {
        Ok(self.kafka.hindrances(barrier).await?)
    }

    fn is_durable(&self) -> bool {
        !self.kafka.is_embedded()
    }

    async fn describe(&self) -> Result<Value, StoreError> {
        let mut topics = Vec::new();
        let kafka = self.kafka.clone();
        let view = if kafka.is_embedded() { None } else { Some(blocking(move || kafka.view_blocking()).await?) };
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        for topic in topics_of_subjects() {
            let name = self.kafka.topic(topic);
            for (setting, value) in self.kafka.declared(topic) {
                digest.update(format!("{name} {setting}={value}\n").as_bytes());
            }
            topics.push(json!({
                "topic": name,
                "incarnation": self.kafka.incarnation(&name).await?,
                "partitions": self.kafka.partitions(topic),
                "replicas": self.kafka.settings().replication,
                "brokers": view.as_ref().map(|view| view.replicas_of(&name)),
            }));
        }
        Ok(json!({
            "broker": if self.kafka.is_embedded() { "embedded, in memory: no physical proof" } else { "kafka" },
            "profile": self.kafka.settings().profile,
            "topics": topics,
            "settings_sha256": hex::encode(digest.finish()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_its_first_two_parts() {
        assert_eq!(subject_part(b"A1|token"), Some(&b"A1|token"[..]));
        assert_eq!(subject_part(b"A1|token|child|event"), Some(&b"A1|token"[..]));
        assert_eq!(subject_part(b"~hb"), None);
    }
}
