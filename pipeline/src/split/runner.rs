//! The splitter's loop: a group of splitters shares the raw topics by partition, each on a thread of its own.
//!
//! A batch is polled, split, written and acknowledged as a whole; only then are its raw offsets committed. What fails passingly starts
//! over from the committed offsets with nothing remembered: records carry ids, so writing them twice changes nothing. The passage
//! through the epoch gate is held from asking which keys are destroyed until Kafka has acknowledged, so no block of a destroyed key is
//! written after the epoch was acknowledged.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sunder_retention::keys::{DataKey, KeyError, Keyring};
use sunder_schemas::class::Family;
use sunder_schemas::ids::{EntityToken, KeyId, Offset, Partition};
use sunder_schemas::outcome::{DeadLetterReason, FilterReason};
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{Record as _, StateRecord};
use sunder_schemas::topic::Topic;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::batch::{Counts, Header, RawRecord, Splitter, Surroundings};
use super::buffer::Buffer;
use super::rebuild::rebuild;
use crate::dead_letter::{self, Coordinates};
use crate::kafka::{Batch, GroupConsumer, Kafka, KafkaError, OutRecord, ProduceError, Rebalanced};
use crate::registry::{RegistryError, Schemas};

/// Most records of one batch (chosen: at 2 KB each 8 MB, and fewer acknowledgements to wait for than cost anything).
const BATCH_RECORDS_MAX: usize = 4_000;
/// How long a poll waits for the first record: as long as a stop may take to be noticed.
const POLL_WAIT: Duration = Duration::from_millis(250);
/// First and longest pause after something failed passingly (chosen).
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often an idle splitter looks whether its topics are still the same, and how far behind it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Raw records that are gone before they were split: the pollers must fetch again what they held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The family whose cursors go back.
    pub family: Family,
    /// Full topic name.
    pub topic: String,
    /// The partition; `None` where the whole topic is another one.
    pub partition: Option<Partition>,
    /// Why, for the gap: `offset_lost` or `recreated`.
    pub code: &'static str,
    /// Where reading goes on once the gap is recorded; `None`: at each partition's start.
    pub resume_at: Option<Offset>,
}

/// Why the loop stopped.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A batch was not acknowledged.
    #[error(transparent)]
    Produce(#[from] ProduceError),
    /// The schema registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Raw records are gone: record the gap, rewind the cursors, call [`SplitRunner::resume`], run again.
    #[error("{} lost records that were not split yet ({})", .0.topic, .0.code)]
    Lost(Lost),
    /// A batch did not add up: a defect of this program, nothing of it was committed.
    #[error("{records} raw records came in, {outcomes} outcomes went out")]
    Unbalanced {
        /// Records that came in.
        records: u64,
        /// Outcomes that were counted.
        outcomes: u64,
    },
    /// A dead letter could not be made: a defect of this program.
    #[error("a record could not be sealed into a dead letter")]
    DeadLetter,
}

impl SplitError {
    /// Whether starting over may help without a person acting.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Kafka(error) => !matches!(error, KafkaError::Fatal { .. } | KafkaError::OffsetLost { .. }),
            Self::Produce(error) => error.is_retriable,
            Self::Registry(error) => matches!(error, RegistryError::Unavailable { .. }),
            Self::Key(error) => error.is_transient(),
            Self::Lost(_) | Self::Unbalanced { .. } | Self::DeadLetter => false,
        }
    }
}

/// What the loop did so far, for `run --until-idle`, readiness and tests.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Sums since the start.
    pub counts: Counts,
    /// Whether the last look found every assigned partition read to its end.
    pub is_caught_up: bool,
}

/// The loop of one process.
pub struct SplitRunner {
    kafka: Kafka,
    schemas: Arc<Schemas>,
    keyring: Arc<Keyring>,
    families: Vec<Family>,
    name: String,
    progress: Mutex<Progress>,
    resume: Arc<Mutex<HashMap<(String, Partition), Offset>>>,
    incarnations: Mutex<HashMap<String, String>>,
}

impl SplitRunner {
    /// A splitter of the raw topics of `families`; `name` is program and version, for dead letters.
    #[must_use]
    pub fn new(kafka: Kafka, schemas: Arc<Schemas>, keyring: Arc<Keyring>, families: Vec<Family>, name: &str) -> Self {
        Self {
            kafka,
            schemas,
            keyring,
            families,
            name: name.to_owned(),
            progress: Mutex::default(),
            resume: Arc::default(),
            incarnations: Mutex::default(),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets reading go on after `lost` was recorded as a gap and the cursors were set back.
    ///
    /// # Errors
    /// [`KafkaError`] where the bounds of the log cannot be read. Blocks.
    pub fn resume(&self, lost: &Lost) -> Result<(), KafkaError> {
        self.incarnations.lock().unwrap_or_else(PoisonError::into_inner).remove(&lost.topic);
        let partitions = match lost.partition {
            Some(partition) => vec![partition],
            None => (0..self.kafka.partitions(Topic::Raw(lost.family))).map(Partition).collect(),
        };
        for partition in partitions {
            let at = match lost.resume_at {
                Some(at) => at,
                None => self.kafka.bounds_blocking(&lost.topic, partition)?.0,
            };
            self.resume.lock().unwrap_or_else(PoisonError::into_inner).insert((lost.topic.clone(), partition), at);
        }
        Ok(())
    }

    /// Splits until `stop`. Blocks: runs on a thread of its own; `handle` is the runtime that answers for databases and registry.
    ///
    /// # Errors
    /// [`SplitError`] where starting over cannot help. What is passing is retried for ever, with growing pauses.
    pub fn run(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), SplitError> {
        let mut pause = PAUSE_MIN;
        while !stop.is_cancelled() {
            let before = self.progress().counts.records;
            match self.session(handle, stop) {
                Ok(()) => return Ok(()),
                Err(SplitError::Kafka(KafkaError::OffsetLost { topic, partition, low, .. })) => {
                    let Some((_, family)) = self.topics().into_iter().find(|(name, _)| *name == topic) else {
                        // State read for a rebuild moved under us: reading it again helps.
                        continue;
                    };
                    let lost = Lost { family, topic, partition: Some(partition), code: "offset_lost", resume_at: Some(low) };
                    return Err(SplitError::Lost(lost));
                }
                Err(error) if error.is_passing() => {
                    tracing::warn!(error = %error, "the splitter starts over from its committed offsets");
                    metrics::counter!("sunder_split_restarts_total").increment(1);
                    if self.progress().counts.records > before {
                        pause = PAUSE_MIN;
                    }
                    // A stop ends the pause; which of the two it was shows in the loop's condition.
                    _ = handle.block_on(async { tokio::time::timeout(pause, stop.cancelled()).await });
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn topics(&self) -> Vec<(String, Family)> {
        self.families.iter().map(|family| (self.kafka.topic(Topic::Raw(*family)), *family)).collect()
    }

    /// One membership in the group, with nothing remembered from the one before.
    fn session(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), SplitError> {
        let topics = self.topics();
        for (topic, _) in &topics {
            // What made the last session end may be a new topic of the name: ask, do not believe.
            self.kafka.incarnations().forget(topic);
        }
        self.check_incarnations(&topics)?;
        let resume = Arc::clone(&self.resume);
        let names: Vec<&str> = topics.iter().map(|(name, _)| name.as_str()).collect();
        let consumer = GroupConsumer::subscribe(&self.kafka, &self.kafka.split_group(), &names, move |ours| {
            let resume = resume.lock().unwrap_or_else(PoisonError::into_inner);
            ours.iter().map(|at| resume.get(at).copied()).collect()
        })?;
        let partitions = self.families.first().map_or(1, |family| self.kafka.partitions(Topic::Raw(*family)));
        let mut splitter = Splitter::new(&self.schemas, partitions);
        let mut buffer = Buffer::new(topics.clone());
        let mut looked: Option<Instant> = None;
        while !stop.is_cancelled() {
            buffer.clear();
            consumer.poll_batch(BATCH_RECORDS_MAX, POLL_WAIT, |record| buffer.push(&record))?;
            Self::follow(&consumer, &mut splitter, &mut buffer, &topics);
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                self.check_incarnations(&topics)?;
                looked = Some(Instant::now());
            }
            if buffer.is_empty() {
                self.look(&consumer)?;
                continue;
            }
            self.progress.lock().unwrap_or_else(PoisonError::into_inner).is_caught_up = false;
            self.split(handle, &mut splitter, &buffer)?;
            let ends = buffer.ends();
            consumer.commit(&ends)?;
            let mut resume = self.resume.lock().unwrap_or_else(PoisonError::into_inner);
            if !resume.is_empty() {
                // From here on the committed offset says it.
                resume.retain(|(topic, partition), _| !ends.iter().any(|(t, p, _)| t == topic && p == partition));
            }
        }
        Ok(())
    }

    /// Forgets what a rebalance took away, and what it gave: another splitter may have written there since.
    fn follow(consumer: &GroupConsumer, splitter: &mut Splitter<'_>, buffer: &mut Buffer, topics: &[(String, Family)]) {
        let changes = consumer.take_changes();
        if changes.is_empty() {
            return;
        }
        let ours = consumer.assignment();
        for change in changes {
            let (Rebalanced::Assigned(moved) | Rebalanced::Revoked(moved)) = change;
            splitter.retain(|family, partition| {
                !moved.iter().any(|(topic, number)| *number == partition && topics.iter().any(|(name, f)| *f == family && name == topic))
            });
        }
        buffer.retain(|topic, partition| ours.iter().any(|(name, number)| name == topic && *number == partition));
    }

    /// Notes whether everything was read.
    fn look(&self, consumer: &GroupConsumer) -> Result<(), SplitError> {
        let lag = consumer.lag()?;
        let behind: u64 = lag.iter().map(|(_, records)| records).sum();
        for ((topic, partition), records) in &lag {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; lags beyond 2^52 records do not occur")]
            metrics::gauge!("sunder_split_lag_records", "topic" => topic.clone(), "partition" => partition.to_string())
                .set(*records as f64);
        }
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).is_caught_up = behind == 0;
        Ok(())
    }

    /// Whether each raw topic is still the one it was (DESIGN section 2, rule 8).
    fn check_incarnations(&self, topics: &[(String, Family)]) -> Result<(), SplitError> {
        for (topic, family) in topics {
            let now = self.kafka.incarnation_blocking(topic)?;
            let mut known = self.incarnations.lock().unwrap_or_else(PoisonError::into_inner);
            let was = known.entry(topic.clone()).or_insert_with(|| now.clone());
            if *was != now {
                let lost = Lost { family: *family, topic: topic.clone(), partition: None, code: "recreated", resume_at: None };
                return Err(SplitError::Lost(lost));
            }
        }
        Ok(())
    }

    fn split(&self, handle: &Handle, splitter: &mut Splitter<'_>, buffer: &Buffer) -> Result<(), SplitError> {
        let started = Instant::now();
        let passage = self.keyring.gate().enter_blocking();
        let batch = self.kafka.producer().batch();
        let mut around = Surround { runner: self, handle, batch: &batch, quarantine: None, value: Vec::new(), topics: HashMap::new() };
        for (family, partition) in buffer.partitions() {
            if !splitter.knows(family, partition) {
                let learn = |id| handle.block_on(self.schemas.learn(id));
                let rebuilt = rebuild(&self.kafka, &self.schemas, &learn, family, partition)?;
                tracing::info!(%family, %partition, entities = rebuilt.versions.len(), orphans = rebuilt.orphans.len(), "versions read back");
                for (kind, key) in &rebuilt.orphans {
                    around.write(Topic::State(*kind), partition, key, None, &[])?;
                }
                splitter.assign(family, partition, rebuilt.versions);
            }
        }
        buffer.for_each(|record| {
            // What is destroyed is known only as long as the lease runs.
            self.keyring.check_lease()?;
            splitter.process(record, &mut around).map(|_| ())
        })?;
        batch.acked_blocking()?;
        drop(passage);
        let counts = splitter.take_counts();
        if counts.records != counts.outcomes.total() {
            return Err(SplitError::Unbalanced { records: counts.records, outcomes: counts.outcomes.total() });
        }
        export(&counts);
        metrics::histogram!("sunder_split_batch_seconds").record(started.elapsed());
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).counts.add(&counts);
        Ok(())
    }
}

/// Counts of a batch as metrics; `sunder_split_records_total` is the sum of `sunder_split_outcomes_total`.
fn export(counts: &Counts) {
    let outcome = |name: &'static str, reason: &'static str, count: u64| {
        if count > 0 {
            metrics::counter!("sunder_split_outcomes_total", "outcome" => name, "reason" => reason).increment(count);
        }
    };
    metrics::counter!("sunder_split_records_total").increment(counts.records);
    metrics::counter!("sunder_split_written_total").increment(counts.written);
    metrics::counter!("sunder_split_blocks_erased_total").increment(counts.blocks_erased);
    metrics::counter!("sunder_split_children_tombstoned_total").increment(counts.children_tombstoned);
    outcome("stored", "", counts.outcomes.stored);
    outcome("tombstoned", "", counts.outcomes.tombstoned);
    for (reason, count) in FilterReason::ALL.iter().zip(counts.outcomes.filtered) {
        outcome("filtered", reason.as_str(), count);
    }
    for (reason, count) in DeadLetterReason::ALL.iter().zip(counts.outcomes.dead_lettered) {
        outcome("dead_lettered", reason.as_str(), count);
    }
}

/// What a batch needs of the world, on Kafka.
struct Surround<'r> {
    runner: &'r SplitRunner,
    handle: &'r Handle,
    batch: &'r Batch,
    quarantine: Option<Arc<DataKey>>,
    value: Vec<u8>,
    topics: HashMap<Topic, String>,
}

impl Surroundings for Surround<'_> {
    type Error = SplitError;

    fn is_erased(&self, key: KeyId) -> bool {
        self.runner.keyring.erased().contains(key)
    }

    fn is_withheld(&self, entity: EntityToken) -> bool {
        self.runner.keyring.erased().withholds(entity)
    }

    fn is_past(&self, row: &StateRecord) -> bool {
        let keyring = &self.runner.keyring;
        row.event_time().is_some_and(|at| at < keyring.policy().business_cutoff(keyring.now()))
    }

    fn learn(&mut self, id: u32) -> Result<(), SplitError> {
        Ok(self.handle.block_on(self.runner.schemas.learn(id))?)
    }

    fn write(
        &mut self,
        topic: Topic,
        partition: Partition,
        key: &str,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), SplitError> {
        let topic = self.topics.entry(topic).or_insert_with(|| self.runner.kafka.topic(topic));
        Ok(self.batch.send(OutRecord { topic, partition, key: key.as_bytes(), value, headers })?)
    }

    fn set_aside(&mut self, record: &RawRecord<'_>, reason: DeadLetterReason) -> Result<(), SplitError> {
        let quarantine = match &self.quarantine {
            Some(key) => Arc::clone(key),
            None => {
                let key = self.handle.block_on(self.runner.keyring.quarantine())?;
                Arc::clone(self.quarantine.insert(key))
            }
        };
        let topic_id = self.runner.kafka.incarnation_blocking(record.topic)?;
        let at = Coordinates { topic: record.topic, topic_id: &topic_id, partition: record.partition, offset: record.offset };
        let now = self.runner.keyring.now();
        let letter = dead_letter::seal(at, reason, record, &self.runner.name, now, &quarantine).ok_or(SplitError::DeadLetter)?;
        tracing::warn!(topic = record.topic, partition = %record.partition, offset = %record.offset, reason = %reason, "set a raw record aside");
        let mut value = std::mem::take(&mut self.value);
        value.clear();
        self.runner.schemas.begin(RecordType::DeadLetter, &mut value);
        letter.encode(&mut value);
        // Dead letters have one partition: there is little to read and nothing to order.
        let written =
            self.write(Topic::DlqRaw(record.family), Partition(0), &at.key(), Some(&value), &[("content-type", b"application/avro")]);
        self.value = value;
        written
    }
}
