//! The loop of a sink: a group of sinks of one name shares the topics by partition and applies them to its database.
//!
//! The database is the authority on positions: reading starts where it says (from the log's start where it says nothing), and the
//! group's committed offset is a hint for lag displays. A topic that was made anew, or whose log no longer holds the position, is built
//! again from the start. What fails passingly (Kafka, registry or database gone, another writer) starts over from the stored positions,
//! for ever, with growing pauses; meanwhile [`Progress::is_up`] is false.
//!
//! The passage through the epoch gate is held from asking which keys are destroyed until the rows are committed, so no block of a
//! destroyed key is stored after the epoch was acknowledged. A record that cannot be read (a stranger's, or damaged) is left out,
//! counted and logged by its coordinates: these topics keep it, and there are no dead letters of what the splitter wrote.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use sunder_retention::keys::{KeyError, Keyring};
use sunder_retention::restore;
use sunder_retention::store::{Extent, Mark, StoreError};
use sunder_schemas::class::{Family, Kind};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::outcome::{DeadLetterReason, FilterReason, Outcomes};
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{DecodeError, PiiRecord, StateRecord};
use sunder_schemas::topic::Topic;
use sunder_sinks::{Applied, Change, Retry, Sink, SinkError, Source};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::kafka::{GroupConsumer, Kafka, KafkaError, Record, TopicPartition};
use crate::patience::Patience;
use crate::registry::{RegistryError, Schemas, Unread};

/// Most records of one batch (chosen: one statement of a few thousand rows per source, and some 10 MB of rows in memory).
const BATCH_RECORDS_MAX: usize = 10_000;
/// How long a poll waits for the first record: as long as a stop may take to be noticed.
const POLL_WAIT: Duration = Duration::from_millis(250);
/// Sources that are applied at once (chosen: the database's commits overlap, and its connections suffice).
const APPLY_AT_ONCE: usize = 4;
/// First and longest pause after something failed passingly (chosen).
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often the loop looks whether its topics are still the same.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the store may be silent at first: see [`Patience`] (chosen: a batch takes it well below a second).
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// Why the loop stopped, or starts over.
#[derive(Debug, thiserror::Error)]
pub enum SinkRunError {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The schema registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The keys: which are destroyed is not known.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store could not forget.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store did not answer in time, and gave no error either.
    #[error("{store} is silent")]
    Silent {
        /// The sink's name.
        store: String,
    },
    /// A topic is another one than before.
    #[error("{topic} was made anew")]
    Recreated {
        /// Full topic name.
        topic: String,
    },
    /// A batch did not add up: a defect of this program.
    #[error("{records} records came in, {outcomes} outcomes went out")]
    Unbalanced {
        /// Records that came in.
        records: u64,
        /// Outcomes that were counted.
        outcomes: u64,
    },
}

impl SinkRunError {
    /// Whether starting over may help without a person acting.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Kafka(error) => !matches!(error, KafkaError::Fatal { .. }),
            Self::Registry(error) => matches!(error, RegistryError::Unavailable { .. }),
            // Another writer, or a topic to rebuild: the next session reads the positions again.
            Self::Sink(SinkError::Moved { .. } | SinkError::Rebuild { .. }) | Self::Recreated { .. } => true,
            Self::Sink(error) => error.retry() == Retry::Backoff,
            Self::Key(error) => matches!(error, KeyError::LeaseLost) || error.is_transient(),
            // Its code does not tell; what was erased must go before anything is applied, so it is tried for ever.
            Self::Store(_) | Self::Silent { .. } => true,
            Self::Unbalanced { .. } => false,
        }
    }
}

/// A record of the topics that a sink reads.
pub trait FromTopic: Sized + Send + 'static {
    /// The topics such records lie on.
    fn topics() -> Vec<Topic>;
    /// Reads the Avro body of a record of `record_type`.
    ///
    /// # Errors
    /// [`DecodeError`].
    fn decode(record_type: RecordType, body: &[u8]) -> Result<Self, DecodeError>;
    /// The key it must lie under, so that its tombstone finds it.
    fn topic_key(&self) -> String;
}

impl FromTopic for StateRecord {
    fn topics() -> Vec<Topic> {
        Kind::ALL.iter().map(|kind| Topic::State(*kind)).collect()
    }

    fn decode(record_type: RecordType, body: &[u8]) -> Result<Self, DecodeError> {
        let RecordType::State(kind) = record_type else { return Err(foreign()) };
        Self::decode(kind, body)
    }

    fn topic_key(&self) -> String {
        self.key()
    }
}

impl FromTopic for PiiRecord {
    fn topics() -> Vec<Topic> {
        Family::ALL.iter().map(|family| Topic::Pii(*family)).collect()
    }

    fn decode(record_type: RecordType, body: &[u8]) -> Result<Self, DecodeError> {
        if record_type != RecordType::Pii {
            return Err(foreign());
        }
        <Self as sunder_schemas::records::Record>::decode(body)
    }

    fn topic_key(&self) -> String {
        self.key()
    }
}

const fn foreign() -> DecodeError {
    DecodeError { field: "(record)", at: 0, rule: "a record of another topic" }
}

/// What the loop did so far, for `run --until-idle`, readiness and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records that came in since the start.
    pub records: u64,
    /// Where they ended.
    pub outcomes: Outcomes,
    /// Rows inserted or replaced.
    pub rows_written: u64,
    /// Rows that tombstones removed.
    pub rows_deleted: u64,
    /// Records left out because they cannot be read, by reason in declaration order.
    pub unreadable: [u64; DeadLetterReason::ALL.len()],
    /// Whether the last look found every assigned partition read to its end.
    pub is_caught_up: bool,
    /// Whether the last session still runs: false while the loop waits for something to come back.
    pub is_up: bool,
}

type Stored = Arc<Mutex<HashMap<TopicPartition, Option<Offset>>>>;

/// The loop of one process for one sink.
pub struct SinkRunner<R> {
    kafka: Kafka,
    schemas: Arc<Schemas>,
    sink: Arc<dyn Sink<R>>,
    keyring: Option<Arc<Keyring>>,
    ledger: Option<(Arc<Keyring>, Extent)>,
    progress: Mutex<Progress>,
    patience: Patience,
}

impl<R: FromTopic + Sync> SinkRunner<R> {
    /// A runner that feeds `sink`; a sink that refuses what was erased needs the `keyring` that knows it, under whose lease it applies.
    #[must_use]
    pub fn new(kafka: Kafka, schemas: Arc<Schemas>, sink: Arc<dyn Sink<R>>, keyring: Option<Arc<Keyring>>) -> Self {
        Self { kafka, schemas, sink, keyring, ledger: None, progress: Mutex::default(), patience: Patience::new(ANSWERED_WITHIN) }
    }

    /// Has the runner notice a store that was restored from a backup, and forget again what was erased at least to `extent` since.
    #[must_use]
    pub fn with_ledger(mut self, ledger: Arc<Keyring>, extent: Extent) -> Self {
        self.ledger = Some((ledger, extent));
        self
    }

    /// What was done so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sink's name, which also names its consumer group.
    #[must_use]
    pub fn name(&self) -> &str {
        sunder_retention::store::Forget::name(&*self.sink)
    }

    /// Applies until `stop`. Blocks: runs on a thread of its own; `handle` is the runtime that answers for databases and registry.
    ///
    /// # Errors
    /// [`SinkRunError`] where starting over cannot help. What is passing is retried for ever, with growing pauses.
    pub fn run(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), SinkRunError> {
        self.patience.ends_with(stop);
        let mut pause = PAUSE_MIN;
        let mut is_noticed = self.ledger.is_none();
        while !stop.is_cancelled() {
            let before = self.progress().records;
            let ended = if is_noticed { Ok(()) } else { self.notice_restore(handle) };
            is_noticed |= ended.is_ok();
            let ended = ended.and_then(|()| self.session(handle, stop));
            self.set_up(false);
            match ended {
                Ok(()) => return Ok(()),
                Err(SinkRunError::Kafka(KafkaError::OffsetLost { topic, partition, wanted, .. })) => {
                    // Tombstones may be among what is gone, so rows of the topic can be stale: only a rebuild makes them right.
                    tracing::warn!(sink = self.name(), topic, %partition, offset = %wanted, "position is no longer in the log: building again");
                    if let Err(error) = handle.block_on(self.sink.rebuild(&topic, "")) {
                        tracing::warn!(sink = self.name(), error = %error, "the rows could not be cleared yet");
                    }
                }
                Err(error) if error.is_passing() => {
                    tracing::warn!(sink = self.name(), error = %error, "the sink starts over from its stored positions");
                }
                Err(error) => return Err(error),
            }
            metrics::counter!("sunder_sink_restarts_total", "sink" => self.name().to_owned()).increment(1);
            if self.progress().records > before {
                pause = PAUSE_MIN;
            }
            // A stop ends the pause; which of the two it was shows in the loop's condition.
            _ = handle.block_on(async { tokio::time::timeout(pause, stop.cancelled()).await });
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(())
    }

    /// What the store answers, if it does in time.
    fn answer<T>(&self, handle: &Handle, work: impl Future<Output = T>) -> Result<T, SinkRunError> {
        handle.block_on(self.patience.wait(work)).ok_or_else(|| SinkRunError::Silent { store: self.name().to_owned() })
    }

    /// A store whose positions are behind what the group has committed was restored from a backup: positions are committed behind their
    /// rows, never before. The log is read again from there; but a tombstone only stays for 40 days, so what was erased is forgotten by
    /// the ledger, before anything is applied.
    fn notice_restore(&self, handle: &Handle) -> Result<(), SinkRunError> {
        let Some((ledger, extent)) = &self.ledger else { return Ok(()) };
        let partitions = 0..self.kafka.settings().partitions;
        let marks: Vec<Mark> = self
            .settle_topics(handle)?
            .into_iter()
            .flat_map(|(topic, (_, incarnation))| {
                let mark =
                    move |n| Mark { topic: topic.clone(), incarnation: incarnation.clone(), partition: Partition(n), offset: Offset(0) };
                partitions.clone().map(mark)
            })
            .collect();
        let committed = self.kafka.committed_blocking(&self.kafka.group(self.name()), &marks)?;
        let mut behind = 0;
        for Mark { topic, incarnation, partition, .. } in marks {
            let Some(committed) = committed.get(&(topic.clone(), partition.0)) else { continue };
            let source = Source { topic, incarnation, partition };
            let stored = self.answer(handle, self.sink.position(&source))??.unwrap_or(Offset(0));
            behind += u64::try_from(committed.0 - stored.0).unwrap_or(0);
        }
        if behind == 0 {
            return Ok(());
        }
        tracing::warn!(
            sink = self.name(),
            records = behind,
            "the store was restored: it forgets again what was erased and reads the log again"
        );
        let mut forgotten = 0;
        let mut pages = restore::Ledger::of(*extent);
        loop {
            let subjects = handle.block_on(pages.page(ledger.db())).map_err(KeyError::from)?;
            if subjects.is_empty() {
                break;
            }
            forgotten += handle.block_on(self.sink.forget(&subjects, *extent))?;
        }
        let noted = restore::note_store(ledger.db(), self.name(), ledger.now(), behind, forgotten);
        handle.block_on(noted).map_err(KeyError::from)?;
        Ok(())
    }

    /// One membership in the group, with nothing remembered from the one before.
    fn session(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), SinkRunError> {
        let topics = self.settle_topics(handle)?;
        let stored: Stored = Arc::default();
        let failed: Arc<Mutex<Option<SinkRunError>>> = Arc::default();
        let names: Vec<&str> = topics.keys().map(String::as_str).collect();
        let consumer = {
            let (kafka, sink, handle) = (self.kafka.clone(), Arc::clone(&self.sink), handle.clone());
            let (stored, failed, topics) = (Arc::clone(&stored), Arc::clone(&failed), topics.clone());
            let positions = move |ours: &[TopicPartition]| {
                let start = |at: &TopicPartition| start_of(&kafka, &*sink, &handle, &topics, at);
                match ours.iter().map(start).collect::<Result<Vec<_>, _>>() {
                    Ok(starts) => {
                        let held = ours.iter().cloned().zip(starts.iter().map(|(held, _)| *held));
                        stored.lock().unwrap_or_else(PoisonError::into_inner).extend(held);
                        starts.into_iter().map(|(_, from)| Some(from)).collect()
                    }
                    Err(error) => {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        Vec::new()
                    }
                }
            };
            GroupConsumer::subscribe(&self.kafka, &self.kafka.group(self.name()), &names, positions)?
        };
        self.set_up(true);
        let mut looked = Instant::now();
        while !stop.is_cancelled() {
            let mut batch =
                Gathered { runner: self, handle, topics: &topics, sources: HashMap::new(), counts: Progress::default(), error: None };
            consumer.poll_batch(BATCH_RECORDS_MAX, POLL_WAIT, |record| batch.take(&record))?;
            if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take().or_else(|| batch.error.take()) {
                return Err(error);
            }
            follow(&consumer, &stored, &mut batch.sources, &mut batch.counts);
            if looked.elapsed() >= LOOK_EVERY {
                self.check_topics(&topics)?;
                looked = Instant::now();
            }
            if batch.counts.records == 0 {
                self.look(&consumer)?;
                continue;
            }
            let Gathered { sources, counts, .. } = batch;
            self.apply(handle, &stored, &topics, sources, counts, &consumer)?;
        }
        Ok(())
    }

    /// The topics with their incarnations; rows of other incarnations are removed first.
    fn settle_topics(&self, handle: &Handle) -> Result<HashMap<String, (RecordType, String)>, SinkRunError> {
        let mut topics = HashMap::new();
        for topic in R::topics() {
            let name = self.kafka.topic(topic);
            // What ended the last session may be a new topic of the name: ask, do not believe.
            self.kafka.incarnations().forget(&name);
            let incarnation = self.kafka.incarnation_blocking(&name)?;
            let removed = self.answer(handle, self.sink.rebuild(&name, &incarnation))??;
            if removed > 0 {
                tracing::warn!(sink = self.name(), topic = name, rows = removed, "the topic was made anew: its rows are built again");
            }
            if let Some(record_type) = RecordType::of(topic) {
                topics.insert(name, (record_type, incarnation));
            }
        }
        Ok(topics)
    }

    fn check_topics(&self, topics: &HashMap<String, (RecordType, String)>) -> Result<(), SinkRunError> {
        for (topic, (_, incarnation)) in topics {
            if self.kafka.incarnation_blocking(topic)? != *incarnation {
                return Err(SinkRunError::Recreated { topic: topic.clone() });
            }
        }
        Ok(())
    }

    /// Applies what was gathered, each source in a transaction of its own, and commits the group's offsets as a hint.
    fn apply(
        &self,
        handle: &Handle,
        stored: &Stored,
        topics: &HashMap<String, (RecordType, String)>,
        sources: Sources<R>,
        mut counts: Progress,
        consumer: &GroupConsumer,
    ) -> Result<(), SinkRunError> {
        let started = Instant::now();
        let passage = match &self.keyring {
            None => None,
            Some(keyring) => {
                let passage = keyring.gate().enter_blocking();
                // What is destroyed is known only as long as the lease runs.
                keyring.check_lease()?;
                Some(passage)
            }
        };
        let steps: Vec<_> = {
            let stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
            sources
                .into_iter()
                .filter_map(|((topic, partition), (next, changes))| {
                    let (_, incarnation) = topics.get(&topic)?;
                    let expected = stored.get(&(topic.clone(), partition)).copied().flatten();
                    Some((Source { topic, incarnation: incarnation.clone(), partition }, expected, next, changes))
                })
                .collect()
        };
        let applying = futures::stream::iter(steps.into_iter().map(|(source, expected, next, changes)| async move {
            let applied = self.sink.apply(&source, expected, next, changes).await;
            (source, next, applied)
        }));
        let done: Vec<(Source, Offset, Result<Applied, SinkError>)> =
            self.answer(handle, applying.buffer_unordered(APPLY_AT_ONCE).collect())?;
        drop(passage);
        let mut ends = Vec::with_capacity(done.len());
        for (source, next, applied) in done {
            let applied = applied?;
            counts.outcomes.add(&applied.outcomes);
            counts.rows_written += applied.rows_written;
            counts.rows_deleted += applied.rows_deleted;
            let at = (source.topic, source.partition);
            stored.lock().unwrap_or_else(PoisonError::into_inner).insert(at.clone(), Some(next));
            ends.push((at.0, at.1, next));
        }
        let outcomes = counts.outcomes.total() + counts.unreadable.iter().sum::<u64>();
        if counts.records != outcomes {
            return Err(SinkRunError::Unbalanced { records: counts.records, outcomes });
        }
        if let Err(error) = consumer.commit(&ends) {
            // A hint alone: the positions are in the database.
            tracing::debug!(sink = self.name(), code = error.code(), "the group's offsets were not committed");
        }
        self.export(&counts);
        metrics::histogram!("sunder_sink_batch_seconds", "sink" => self.name().to_owned()).record(started.elapsed());
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.is_caught_up = false;
        progress.records += counts.records;
        progress.outcomes.add(&counts.outcomes);
        progress.rows_written += counts.rows_written;
        progress.rows_deleted += counts.rows_deleted;
        progress.unreadable.iter_mut().zip(counts.unreadable).for_each(|(sum, count)| *sum += count);
        Ok(())
    }

    /// Notes whether everything was read.
    fn look(&self, consumer: &GroupConsumer) -> Result<(), SinkRunError> {
        let lag = consumer.lag()?;
        for ((topic, partition), records) in &lag {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float; lags beyond 2^52 records do not occur")]
            metrics::gauge!("sunder_sink_lag_records", "sink" => self.name().to_owned(), "topic" => topic.clone(), "partition" => partition.to_string())
                .set(*records as f64);
        }
        let is_caught_up = !lag.is_empty() && lag.iter().all(|(_, records)| *records == 0);
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).is_caught_up = is_caught_up;
        Ok(())
    }

    fn set_up(&self, is_up: bool) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.is_up = is_up;
        progress.is_caught_up &= is_up;
    }

    /// Counts of a batch as metrics; `sunder_sink_records_total` is the sum of `sunder_sink_outcomes_total`.
    fn export(&self, counts: &Progress) {
        let sink = self.name();
        let outcome = |name: &'static str, reason: &'static str, count: u64| {
            if count > 0 {
                metrics::counter!("sunder_sink_outcomes_total", "sink" => sink.to_owned(), "outcome" => name, "reason" => reason)
                    .increment(count);
            }
        };
        metrics::counter!("sunder_sink_records_total", "sink" => sink.to_owned()).increment(counts.records);
        metrics::counter!("sunder_sink_rows_written_total", "sink" => sink.to_owned()).increment(counts.rows_written);
        metrics::counter!("sunder_sink_rows_deleted_total", "sink" => sink.to_owned()).increment(counts.rows_deleted);
        outcome("stored", "", counts.outcomes.stored);
        outcome("tombstoned", "", counts.outcomes.tombstoned);
        for (reason, count) in FilterReason::ALL.iter().zip(counts.outcomes.filtered) {
            outcome("filtered", reason.as_str(), count);
        }
        for (reason, count) in DeadLetterReason::ALL.iter().zip(counts.unreadable) {
            outcome("unreadable", reason.as_str(), count);
        }
    }
}

/// Where the store stands, and where reading starts: the log's start where the store has nothing.
fn start_of<R>(
    kafka: &Kafka,
    sink: &dyn Sink<R>,
    handle: &Handle,
    topics: &HashMap<String, (RecordType, String)>,
    at: &TopicPartition,
) -> Result<(Option<Offset>, Offset), SinkRunError> {
    let (topic, partition) = at;
    let incarnation = topics.get(topic).map(|(_, incarnation)| incarnation.clone()).unwrap_or_default();
    let source = Source { topic: topic.clone(), incarnation, partition: *partition };
    let silent = || SinkRunError::Silent { store: "the store".to_owned() };
    match handle.block_on(async { tokio::time::timeout(ANSWERED_WITHIN, sink.position(&source)).await }).map_err(|_| silent())?? {
        Some(next) => Ok((Some(next), next)),
        None => Ok((None, kafka.bounds_blocking(topic, *partition)?.0)),
    }
}

/// Drops what a rebalance took away before it is applied: its new owner reads it.
fn follow<R>(consumer: &GroupConsumer, stored: &Stored, sources: &mut Sources<R>, counts: &mut Progress) {
    if consumer.take_changes().is_empty() {
        return;
    }
    let ours = consumer.assignment();
    stored.lock().unwrap_or_else(PoisonError::into_inner).retain(|at, _| ours.contains(at));
    sources.retain(|at, (_, changes)| {
        let is_ours = ours.contains(at);
        if !is_ours {
            counts.records -= changes.len() as u64;
        }
        is_ours
    });
}

/// Changes by source, each with the next offset to read.
type Sources<R> = HashMap<TopicPartition, (Offset, Vec<Change<R>>)>;

/// A batch on its way from Kafka's buffers.
struct Gathered<'r, R> {
    runner: &'r SinkRunner<R>,
    handle: &'r Handle,
    topics: &'r HashMap<String, (RecordType, String)>,
    sources: Sources<R>,
    counts: Progress,
    /// What failed passingly on the way: the batch is given up.
    error: Option<SinkRunError>,
}

impl<R: FromTopic + Sync> Gathered<'_, R> {
    fn take(&mut self, record: &Record<'_>) {
        if self.error.is_some() {
            return;
        }
        let key = record.key.unwrap_or_default();
        let change = match record.value {
            None => Ok(Change::Delete { offset: record.offset, key: key.to_vec() }),
            // A value under one of our own keys (a canary) is no row.
            Some(_) if record.is_own() => Ok(Change::Delete { offset: record.offset, key: key.to_vec() }),
            Some(value) => match self.read(record.topic, key, value) {
                Ok(row) => Ok(Change::Upsert { offset: record.offset, record: row }),
                Err(Unread::Never(reason)) => Err(reason),
                Err(Unread::Learn(id)) => match self.handle.block_on(self.runner.schemas.learn(id)) {
                    Ok(()) => match self.read(record.topic, key, value) {
                        Ok(row) => Ok(Change::Upsert { offset: record.offset, record: row }),
                        Err(Unread::Never(reason)) => Err(reason),
                        Err(Unread::Learn(_)) => Err(DeadLetterReason::UnknownSchema),
                    },
                    Err(error) => {
                        self.error = Some(error.into());
                        return;
                    }
                },
            },
        };
        self.counts.records += 1;
        let at = (record.topic.to_owned(), record.partition);
        let source = self.sources.entry(at).or_insert_with(|| (record.offset, Vec::new()));
        source.0 = Offset(record.offset.0 + 1);
        match change {
            Ok(change) => source.1.push(change),
            Err(reason) => {
                if let Some(count) = self.counts.unreadable.get_mut(reason as usize) {
                    *count += 1;
                }
                let (topic, partition, offset) = (record.topic, record.partition, record.offset);
                tracing::warn!(sink = self.runner.name(), topic, %partition, %offset, reason = reason.as_str(), "a record was left out");
            }
        }
    }

    fn read(&self, topic: &str, key: &[u8], value: &[u8]) -> Result<R, Unread> {
        let Some((record_type, _)) = self.topics.get(topic) else { return Err(Unread::Never(DeadLetterReason::ForeignSchema)) };
        let body = self.runner.schemas.body(*record_type, value)?;
        let row = R::decode(*record_type, &body).map_err(|_| Unread::Never(DeadLetterReason::BadAvro))?;
        if row.topic_key().as_bytes() != key {
            return Err(Unread::Never(DeadLetterReason::KeyMismatch));
        }
        Ok(row)
    }
}
