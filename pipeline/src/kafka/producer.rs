//! The producer: idempotent, acknowledged by all in-sync replicas, without a future per record.
//!
//! Invariants: a batch is acknowledged as a whole or fails with the first code; what it acknowledged is given as the highest offset
//! per topic-partition; `send` copies into librdkafka and waits where its queue is full. A failed batch may be repeated: records
//! carry ids, so duplicates are harmless (DESIGN section 2, rule 7).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, NoCustomPartitioner, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use sunder_retention::store::Mark;
use sunder_schemas::ids::{Offset, Partition};

use crate::kafka::error::{KafkaError, code_of};
use crate::kafka::health::{Health, client_log};
use crate::kafka::incarnation::Incarnations;

/// A record on its way out; everything is borrowed and copied once, into librdkafka.
#[derive(Debug, Clone, Copy)]
pub struct OutRecord<'a> {
    /// Full topic name.
    pub topic: &'a str,
    /// Partition, always explicit: [`sunder_schemas::key::partition_of`].
    pub partition: Partition,
    /// Key in plain UTF-8.
    pub key: &'a [u8],
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers; nothing personal.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// Why a batch, or a record of it, was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failed} of {sent} records for {topic} were not acknowledged: {code}")]
pub struct ProduceError {
    /// Topic of the first failure.
    pub topic: String,
    /// Its code, e.g. `MessageTimedOut`, `MessageSizeTooLarge`.
    pub code: String,
    /// How many records of the batch failed.
    pub failed: u64,
    /// How many were sent.
    pub sent: u64,
    /// Whether sending the same again can succeed.
    pub is_retriable: bool,
}

impl From<ProduceError> for KafkaError {
    fn from(error: ProduceError) -> Self {
        Self::Call { action: format!("write {}", error.topic), code: error.code }
    }
}

/// Codes where the record itself, or a right, is at fault: repeating cannot help.
const fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::InvalidTopic
    )
}

/// How long `send` waits between looks at a full queue, and how often `acked_blocking` looks at a client that may be dead.
const ROOM_WAIT: Duration = Duration::from_millis(10);

type Client = ThreadedProducer<Deliveries, NoCustomPartitioner>;

/// The context of a client: hands each delivery to its batch.
struct Deliveries {
    health: Health,
    is_dead: Arc<AtomicBool>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, _text: &str) {
        client_log(level, facility);
    }

    fn error(&self, error: ClientError, _reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.is_dead.store(true, Ordering::Release);
        }
        self.health.note(&error);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<BatchState>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<BatchState>) {
        match result {
            Ok(message) => {
                batch.acknowledge(message);
                self.health.appended();
            }
            Err((error, message)) => batch.fail(error, message.topic()),
        }
    }
}

/// Highest acknowledged offsets of one topic, by partition number; below zero: none.
struct Highest {
    topic: String,
    offsets: Vec<i64>,
}

struct Acks {
    sent: u64,
    in_flight: u64,
    failed: u64,
    highest: Vec<Highest>,
    first_failure: Option<(String, String, bool)>,
    is_waited_for: bool,
}

/// What the polling thread and the batch share.
pub(crate) struct BatchState {
    acks: Mutex<Acks>,
    changed: Condvar,
    settled: tokio::sync::Notify,
}

impl BatchState {
    fn new() -> Self {
        Self {
            acks: Mutex::new(Acks { sent: 0, in_flight: 0, failed: 0, highest: Vec::new(), first_failure: None, is_waited_for: false }),
            changed: Condvar::new(),
            settled: tokio::sync::Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Acks> {
        // A panic while holding the lock leaves counters that are still sound: each change is one assignment.
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledge(&self, message: &BorrowedMessage<'_>) {
        let mut acks = self.lock();
        let index = usize::try_from(message.partition()).unwrap_or(0);
        let topic = message.topic();
        // A batch names a handful of topics: a scan is cheaper than hashing per record.
        let at = acks.highest.iter().position(|h| h.topic == topic).unwrap_or_else(|| {
            acks.highest.push(Highest { topic: topic.to_owned(), offsets: Vec::new() });
            acks.highest.len() - 1
        });
        if let Some(highest) = acks.highest.get_mut(at) {
            if highest.offsets.len() <= index {
                highest.offsets.resize(index + 1, -1);
            }
            if let Some(offset) = highest.offsets.get_mut(index) {
                *offset = (*offset).max(message.offset());
            }
        }
        self.settle_one(acks);
    }

    fn fail(&self, error: &ClientError, topic: &str) {
        let mut acks = self.lock();
        acks.failed += 1;
        if acks.first_failure.is_none() {
            let retriable = !error.rdkafka_error_code().is_some_and(is_final);
            acks.first_failure = Some((topic.to_owned(), code_of(error), retriable));
        }
        self.settle_one(acks);
    }

    fn settle_one(&self, mut acks: MutexGuard<'_, Acks>) {
        acks.in_flight -= 1;
        let is_settled = acks.in_flight == 0;
        let is_waited_for = acks.is_waited_for;
        drop(acks);
        // Waking costs a system call, so only where someone waits.
        if is_settled {
            self.settled.notify_one();
        }
        if is_settled || is_waited_for {
            self.changed.notify_all();
        }
    }
}

struct Shared {
    options: ClientConfig,
    health: Health,
    current: ArcSwap<Client>,
    is_dead: ArcSwap<AtomicBool>,
    incarnations: Incarnations,
    timeout: Duration,
}

/// The producer of a process; clones share one client.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

impl Producer {
    pub(crate) fn new(options: ClientConfig, health: Health, incarnations: Incarnations, timeout: Duration) -> Result<Self, KafkaError> {
        let is_dead = Arc::new(AtomicBool::new(false));
        let client = create(&options, &health, &is_dead)?;
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                health,
                current: ArcSwap::from_pointee(client),
                is_dead: ArcSwap::new(is_dead),
                incarnations,
                timeout,
            }),
        })
    }

    /// Begins a batch. Records of one batch to one partition are written in the order they were sent.
    #[must_use]
    pub fn batch(&self) -> Batch {
        self.renew_if_dead();
        Batch { client: self.shared.current.load_full(), state: Arc::new(BatchState::new()), shared: Arc::clone(&self.shared) }
    }

    /// How long a record may be in flight before it counts as failed (`message.timeout.ms`).
    #[must_use]
    pub fn message_timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// A client with a fatal error never sends again; its successor gets a new producer id.
    fn renew_if_dead(&self) {
        let flag = self.shared.is_dead.load_full();
        if !flag.load(Ordering::Acquire) {
            return;
        }
        let fresh = Arc::new(AtomicBool::new(false));
        match create(&self.shared.options, &self.shared.health, &fresh) {
            Ok(client) => {
                tracing::warn!("the kafka producer had a fatal error and was made anew");
                self.shared.current.store(Arc::new(client));
                self.shared.is_dead.store(fresh);
            }
            // The old one stays; its batches fail with the code and are repeated.
            Err(error) => tracing::error!(code = error.code(), "the kafka producer could not be made anew"),
        }
    }
}

fn create(options: &ClientConfig, health: &Health, is_dead: &Arc<AtomicBool>) -> Result<Client, KafkaError> {
    options
        .create_with_context(Deliveries { health: health.clone(), is_dead: Arc::clone(is_dead) })
        .map_err(|error| KafkaError::call("make a producer", &error))
}

/// Records that are acknowledged together.
pub struct Batch {
    client: Arc<Client>,
    state: Arc<BatchState>,
    shared: Arc<Shared>,
}

impl Batch {
    /// Hands `record` to the client; waits, at most for the message timeout, while its queue is full.
    ///
    /// # Errors
    /// [`ProduceError`] where the record cannot be queued; the batch then fails as a whole in [`Batch::acked`].
    pub fn send(&self, record: OutRecord<'_>) -> Result<(), ProduceError> {
        {
            let mut acks = self.state.lock();
            acks.sent += 1;
            acks.in_flight += 1;
        }
        let mut out = BaseRecord::with_opaque_to(record.topic, Arc::clone(&self.state)).partition(record.partition.0).key(record.key);
        if let Some(value) = record.value {
            out = out.payload(value);
        }
        if !record.headers.is_empty() {
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (key, value) in record.headers {
                headers = headers.insert(Header { key, value: Some(*value) });
            }
            out = out.headers(headers);
        }
        let mut give_up = None;
        loop {
            match self.client.send(out) {
                Ok(()) => return Ok(()),
                Err((error, back)) => {
                    let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    // The clock is only asked where there is something to wait for.
                    if is_full && Instant::now() < *give_up.get_or_insert_with(|| Instant::now() + self.shared.timeout) {
                        out = back;
                        self.wait_for_room();
                        continue;
                    }
                    self.state.fail(&error, record.topic);
                    return Err(self.outcome().err().unwrap_or_else(|| unreachable_failure(record.topic)));
                }
            }
        }
    }

    fn wait_for_room(&self) {
        let mut acks = self.state.lock();
        acks.is_waited_for = true;
        // The queue may be full of other batches' records, which do not wake this one: hence the short limit.
        let (mut acks, _) = self.state.changed.wait_timeout(acks, ROOM_WAIT).unwrap_or_else(PoisonError::into_inner);
        acks.is_waited_for = false;
    }

    fn outcome(&self) -> Result<Vec<(String, Partition, Offset)>, ProduceError> {
        let acks = self.state.lock();
        if let Some((topic, code, is_retriable)) = &acks.first_failure {
            return Err(ProduceError {
                topic: topic.clone(),
                code: code.clone(),
                failed: acks.failed,
                sent: acks.sent,
                is_retriable: *is_retriable,
            });
        }
        let mut ends = Vec::new();
        for highest in &acks.highest {
            for (number, offset) in (0i32..).zip(&highest.offsets) {
                if *offset >= 0 {
                    ends.push((highest.topic.clone(), Partition(number), Offset(*offset)));
                }
            }
        }
        Ok(ends)
    }

    /// Waits until every record is acknowledged: the highest offset of each topic-partition written to.
    ///
    /// # Errors
    /// [`ProduceError`] with the first failure, or where a topic's incarnation cannot be read. Nothing may be taken as written.
    pub async fn acked(self) -> Result<Vec<Mark>, ProduceError> {
        loop {
            let settled = self.state.settled.notified();
            if self.state.lock().in_flight == 0 {
                break;
            }
            settled.await;
        }
        let ends = self.outcome()?;
        let mut marks = Vec::with_capacity(ends.len());
        for (topic, partition, offset) in ends {
            let incarnation = self.shared.incarnations.get(&topic).await.map_err(|error| self.no_incarnation(&topic, &error))?;
            marks.push(Mark { topic, incarnation, partition, offset });
        }
        Ok(marks)
    }

    /// As [`Batch::acked`], on a thread that may block.
    ///
    /// # Errors
    /// As [`Batch::acked`].
    pub fn acked_blocking(self) -> Result<Vec<Mark>, ProduceError> {
        {
            let mut acks = self.state.lock();
            while acks.in_flight > 0 {
                acks = self.state.changed.wait(acks).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let ends = self.outcome()?;
        let mut marks = Vec::with_capacity(ends.len());
        for (topic, partition, offset) in ends {
            let incarnation = self.shared.incarnations.get_blocking(&topic).map_err(|error| self.no_incarnation(&topic, &error))?;
            marks.push(Mark { topic, incarnation, partition, offset });
        }
        Ok(marks)
    }

    fn no_incarnation(&self, topic: &str, error: &KafkaError) -> ProduceError {
        let sent = self.state.lock().sent;
        ProduceError { topic: topic.to_owned(), code: error.code().to_owned(), failed: 0, sent, is_retriable: true }
    }

    /// How many records were sent.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.state.lock().sent
    }

    /// Whether nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn unreachable_failure(topic: &str) -> ProduceError {
    ProduceError { topic: topic.to_owned(), code: "NotQueued".to_owned(), failed: 1, sent: 1, is_retriable: true }
}

impl Producer {
    /// Waits until nothing is in flight, at shutdown.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where records are left after `wait`.
    pub fn flush(&self, wait: Duration) -> Result<(), KafkaError> {
        self.shared.current.load().flush(wait).map_err(|error| KafkaError::call("flush", &error))
    }
}
