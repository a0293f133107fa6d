//! The group consumer: partitions by group, positions from wherever they are kept, records borrowed.
//!
//! Invariants: a partition starts exactly at the position its keeper names, else at the group's committed offset, else at the log's
//! start; a position that the log no longer holds surfaces as [`KafkaError::OffsetLost`], never as a silent jump; nothing is
//! committed but by [`GroupConsumer::commit`]. All calls block: the consumer lives on a thread of its own.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset as ClientOffset, TopicPartitionList};
use sunder_schemas::ids::{Offset, Partition};

use crate::kafka::Kafka;
use crate::kafka::bounds::{LEADER_WITHIN, bounds};
use crate::kafka::error::{KafkaError, code_of};
use crate::kafka::health::{Appends, Health, client_log};
use crate::kafka::reader::is_passing;
use crate::kafka::record::Record;

/// A topic-partition.
pub type TopicPartition = (String, Partition);

/// Names the position of each partition of a new assignment; `None`: the group's committed offset. It runs inside the poll that
/// took the assignment and may block, well below `max.poll.interval.ms` (300 s).
pub type Positions = dyn Fn(&[TopicPartition]) -> Vec<Option<Offset>> + Send + Sync;

/// What a rebalance did, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebalanced {
    /// These partitions are ours from now on.
    Assigned(Vec<TopicPartition>),
    /// These are not ours any more: what is buffered of them must be dropped.
    Revoked(Vec<TopicPartition>),
}

/// How long one question to the broker may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
/// After the first record of a batch: how long to wait for the next before the batch is given.
const GATHER_WAIT: Duration = Duration::from_millis(5);

/// On the embedded broker: quiet for this long and not behind, a consumer rests. Chosen: longer than the gaps in a busy stream.
const REST_AFTER: Duration = Duration::from_millis(5);
/// While it rests: how often it looks whether something was appended. Chosen: latency that nobody sees, at no cost.
const REST_LOOK: Duration = Duration::from_millis(10);
/// While it rests: after this long it looks at the log's ends in any case, since a client of another process may have appended.
const REST_MAX: Duration = Duration::from_secs(1);

struct GroupState {
    /// Next offset to read of each partition that is ours.
    next: HashMap<TopicPartition, Offset>,
    changes: Vec<Rebalanced>,
    rebalances: u64,
    failure: Option<KafkaError>,
}

struct GroupContext {
    health: Health,
    positions: Box<Positions>,
    state: Mutex<GroupState>,
}

impl GroupContext {
    fn lock(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_of(&self, consumer: &BaseConsumer<Self>, ours: &[TopicPartition]) -> Result<TopicPartitionList, KafkaError> {
        let mut wanted = (self.positions)(ours);
        wanted.resize(ours.len(), None);
        let mut ask = TopicPartitionList::new();
        for ((topic, partition), position) in ours.iter().zip(&wanted) {
            if position.is_none() {
                ask.add_partition(topic, partition.0);
            }
        }
        let committed = if ask.count() == 0 {
            HashMap::new()
        } else {
            consumer.committed_offsets(ask, ASK_TIMEOUT).map_err(|error| KafkaError::call("read committed offsets", &error))?.to_topic_map()
        };
        let mut list = TopicPartitionList::new();
        for ((topic, partition), position) in ours.iter().zip(wanted) {
            let offset = match position {
                Some(offset) => ClientOffset::Offset(offset.0),
                None => match committed.get(&(topic.clone(), partition.0)) {
                    Some(ClientOffset::Offset(offset)) => ClientOffset::Offset(*offset),
                    _ => {
                        let (low, _) = bounds(consumer.client(), topic, *partition, LEADER_WITHIN)?;
                        ClientOffset::Offset(low.0)
                    }
                },
            };
            list.add_partition_offset(topic, partition.0, offset).map_err(|error| KafkaError::call("assign partitions", &error))?;
        }
        Ok(list)
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, ours: Vec<TopicPartition>) -> Result<(), KafkaError> {
        let list = self.start_of(consumer, &ours)?;
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&list),
            RebalanceProtocol::None | RebalanceProtocol::Eager => consumer.assign(&list),
        };
        assigned.map_err(|error| KafkaError::call("assign partitions", &error))?;
        // A partition given back while it was paused (see `Rest`) is still paused when it comes again.
        consumer.resume(&list).map_err(|error| KafkaError::call("resume partitions", &error))?;
        let mut state = self.lock();
        for element in list.elements() {
            if let ClientOffset::Offset(offset) = element.offset() {
                state.next.insert((element.topic().to_owned(), Partition(element.partition())), Offset(offset));
            }
        }
        tracing::info!(partitions = ours.len(), "partitions assigned");
        state.changes.push(Rebalanced::Assigned(ours));
        state.rebalances += 1;
        Ok(())
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), KafkaError> {
        let gone = partitions_of(list);
        let revoked = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            RebalanceProtocol::None | RebalanceProtocol::Eager => consumer.unassign(),
        };
        revoked.map_err(|error| KafkaError::call("give partitions back", &error))?;
        let mut state = self.lock();
        for partition in &gone {
            state.next.remove(partition);
        }
        tracing::info!(partitions = gone.len(), "partitions revoked");
        state.changes.push(Rebalanced::Revoked(gone));
        state.rebalances += 1;
        Ok(())
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|element| (element.topic().to_owned(), Partition(element.partition()))).collect()
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, _text: &str) {
        client_log(level, facility);
    }

    fn error(&self, error: ClientError, _reason: &str) {
        self.health.note(&error);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let done = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions_of(list))
        } else {
            self.revoke(consumer, list)
        };
        if let Err(error) = done {
            // Surfaces from the poll that runs this callback; the caller makes the consumer anew.
            self.lock().failure.get_or_insert(error);
        }
    }
}

/// One member of a consumer group.
pub struct GroupConsumer {
    consumer: BaseConsumer<GroupContext>,
    group: String,
    rest: Option<Mutex<Rest>>,
}

/// The embedded broker answers a fetch at once also where it has nothing, and librdkafka then asks again at once: idle consumers would
/// keep a core busy. So where nothing comes, the partitions are paused until something was appended.
struct Rest {
    appends: Appends,
    /// When nothing came for the first time since something did.
    quiet_since: Option<Instant>,
    /// While the partitions are paused: when the log's ends were looked at, and how much had been appended by then.
    resting: Option<(Instant, u64)>,
}

impl GroupConsumer {
    /// Joins `group` (see [`Kafka::group`]) for `topics`, which must exist.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where the client cannot be made.
    pub fn subscribe(
        kafka: &Kafka,
        group: &str,
        topics: &[&str],
        positions: impl Fn(&[TopicPartition]) -> Vec<Option<Offset>> + Send + Sync + 'static,
    ) -> Result<Self, KafkaError> {
        let context = GroupContext {
            health: kafka.health().clone(),
            positions: Box::new(positions),
            state: Mutex::new(GroupState { next: HashMap::new(), changes: Vec::new(), rebalances: 0, failure: None }),
        };
        let mut options = kafka.settings().consumer(kafka.address(), group);
        // A process that dies without leaving keeps its partitions for this long.
        options.set("session.timeout.ms", "10000").set("heartbeat.interval.ms", "1000");
        let consumer: BaseConsumer<GroupContext> =
            options.create_with_context(context).map_err(|error| KafkaError::call(format!("join {group}"), &error))?;
        consumer.subscribe(topics).map_err(|error| KafkaError::call(format!("subscribe as {group}"), &error))?;
        let rest = kafka.health().appends().map(|appends| Mutex::new(Rest { appends: appends.clone(), quiet_since: None, resting: None }));
        Ok(Self { consumer, group: group.to_owned(), rest })
    }

    /// Gives up to `records_max` records to `each` and returns how many: waits up to `wait_max` for the first, then takes what
    /// follows at once. Returns early at a rebalance: look at [`GroupConsumer::take_changes`] before working on the batch, and
    /// drop records of revoked partitions.
    ///
    /// # Errors
    /// [`KafkaError::OffsetLost`]; [`KafkaError::Call`] where the broker refuses (authorisation, missing topic) or a rebalance could
    /// not be followed; [`KafkaError::Fatal`]. A broker that is away is no error: the call returns 0 and later ones go on.
    pub fn poll_batch(&self, records_max: usize, wait_max: Duration, mut each: impl FnMut(Record<'_>)) -> Result<usize, KafkaError> {
        let context = self.consumer.context();
        let rebalances_before = {
            let mut state = context.lock();
            if let Some(error) = state.failure.take() {
                return Err(error);
            }
            state.rebalances
        };
        let give_back_at = Instant::now() + wait_max;
        let mut count = 0;
        let mut last: Option<(String, Partition, Offset)> = None;
        while count < records_max {
            let left = give_back_at.saturating_duration_since(Instant::now());
            let wait = if count == 0 { left } else { left.min(GATHER_WAIT) };
            match self.poll(wait) {
                Some(Ok(message)) => {
                    context.health.answered();
                    let record = Record::of(&message);
                    Self::advance(context, &mut last, &record);
                    each(record);
                    count += 1;
                }
                Some(Err(error)) => {
                    if let Some(error) = self.judge(&error) {
                        Self::settle(context, last.take());
                        if count == 0 {
                            return Err(error);
                        }
                        context.lock().failure.get_or_insert(error);
                        break;
                    }
                }
                None if count > 0 || left.is_zero() => break,
                None => {}
            }
            let state = context.lock();
            if state.rebalances != rebalances_before || state.failure.is_some() {
                break;
            }
        }
        Self::settle(context, last);
        if count == 0
            && let Some(error) = context.lock().failure.take()
        {
            return Err(error);
        }
        Ok(count)
    }

    /// The next record or event within `wait`, or sooner nothing: see [`Rest`].
    fn poll(&self, wait: Duration) -> Option<Result<BorrowedMessage<'_>, ClientError>> {
        let Some(rest) = &self.rest else { return self.consumer.poll(wait) };
        let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = rest.appends.count();
        if let Some((looked_at, before)) = rest.resting {
            let polled = self.consumer.poll(wait.min(REST_LOOK));
            let is_due = appended != before || looked_at.elapsed() >= REST_MAX;
            if polled.is_some() || !self.consumer.context().lock().changes.is_empty() || (is_due && self.is_behind()) {
                // Where it cannot be resumed it is tried again at the next look.
                rest.quiet_since = None;
                rest.resting = rest.resting.filter(|_| !self.pause(false));
            } else if is_due {
                rest.resting = Some((Instant::now(), appended));
            }
            return polled;
        }
        let polled = self.consumer.poll(wait.min(REST_AFTER));
        if polled.is_some() {
            rest.quiet_since = None;
        } else if rest.quiet_since.get_or_insert_with(Instant::now).elapsed() >= REST_AFTER && !self.is_behind() {
            self.pause(true);
            rest.resting = Some((Instant::now(), appended));
        }
        polled
    }

    /// Whether the log has more than was given.
    fn is_behind(&self) -> bool {
        self.lag().map_or(true, |lag| lag.iter().any(|(_, records)| *records > 0))
    }

    /// Has the client stop or go on fetching; returns whether it does.
    fn pause(&self, stop: bool) -> bool {
        let done = self.consumer.assignment().and_then(|ours| if stop { self.consumer.pause(&ours) } else { self.consumer.resume(&ours) });
        if let Err(error) = &done {
            tracing::debug!(code = code_of(error), "an idle consumer could not be paused or resumed");
        }
        done.is_ok()
    }

    /// Notes the position after `record`; the shared map is touched only where the partition changes.
    fn advance(context: &GroupContext, last: &mut Option<(String, Partition, Offset)>, record: &Record<'_>) {
        let next = Offset(record.offset.0 + 1);
        match last {
            Some((topic, partition, offset)) if *partition == record.partition && topic == record.topic => *offset = next,
            _ => Self::settle(context, last.replace((record.topic.to_owned(), record.partition, next))),
        }
    }

    fn settle(context: &GroupContext, last: Option<(String, Partition, Offset)>) {
        if let Some((topic, partition, offset)) = last
            && let Some(next) = context.lock().next.get_mut(&(topic, partition))
        {
            *next = offset;
        }
    }

    /// What an error of a poll means; `None` where the client mends it by itself.
    fn judge(&self, error: &ClientError) -> Option<KafkaError> {
        match (error, error.rdkafka_error_code()) {
            (ClientError::MessageConsumptionFatal(_), code) | (_, code @ Some(RDKafkaErrorCode::Fatal)) => {
                Some(KafkaError::Fatal { code: code.map_or_else(|| "Fatal".to_owned(), crate::kafka::error::code_name) })
            }
            (_, Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)) => Some(self.lost_offset()),
            (_, Some(RDKafkaErrorCode::AllBrokersDown)) => {
                self.consumer.context().health.lost("AllBrokersDown");
                None
            }
            (_, Some(code)) if is_passing(code) => None,
            _ => Some(KafkaError::Call { action: format!("read as {}", self.group), code: code_of(error) }),
        }
    }

    /// The client says that a position is lost, not which: the one outside its log's bounds.
    fn lost_offset(&self) -> KafkaError {
        let next: Vec<(TopicPartition, Offset)> =
            self.consumer.context().lock().next.iter().map(|(at, offset)| (at.clone(), *offset)).collect();
        for ((topic, partition), wanted) in next {
            match bounds(self.consumer.client(), &topic, partition, LEADER_WITHIN) {
                Ok((low, high)) if wanted < low || wanted > high => {
                    return KafkaError::OffsetLost { topic, partition, wanted, low, high };
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        KafkaError::own(format!("read as {}", self.group), "AutoOffsetReset")
    }

    /// Rebalances since the last call, in order.
    #[must_use]
    pub fn take_changes(&self) -> Vec<Rebalanced> {
        std::mem::take(&mut self.consumer.context().lock().changes)
    }

    /// The partitions that are ours.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        let mut ours: Vec<TopicPartition> = self.consumer.context().lock().next.keys().cloned().collect();
        ours.sort();
        ours
    }

    /// Commits the next offset to read of each partition, and waits for the broker's word.
    ///
    /// # Errors
    /// [`KafkaError::Call`], `IllegalGeneration` or `RebalanceInProgress` where the partition may have gone to another member: its new
    /// owner reads the batch again.
    pub fn commit(&self, offsets: &[(String, Partition, Offset)]) -> Result<(), KafkaError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (topic, partition, next) in offsets {
            list.add_partition_offset(topic, partition.0, ClientOffset::Offset(next.0))
                .map_err(|error| KafkaError::call(format!("commit as {}", self.group), &error))?;
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(|error| KafkaError::call(format!("commit as {}", self.group), &error))
    }

    /// Reads on from `next`, after the position was repaired.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where the partition is not ours.
    pub fn seek(&self, topic: &str, partition: Partition, next: Offset) -> Result<(), KafkaError> {
        self.consumer
            .seek(topic, partition.0, ClientOffset::Offset(next.0), ASK_TIMEOUT)
            .map_err(|error| KafkaError::call(format!("seek in {topic}[{partition}]"), &error))?;
        self.consumer.context().lock().next.insert((topic.to_owned(), partition), next);
        Ok(())
    }

    /// How many records of each of our partitions were not yet given, read from the broker now.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where the broker does not say.
    pub fn lag(&self) -> Result<Vec<(TopicPartition, u64)>, KafkaError> {
        let next: Vec<(TopicPartition, Offset)> =
            self.consumer.context().lock().next.iter().map(|(at, offset)| (at.clone(), *offset)).collect();
        let mut lag = Vec::with_capacity(next.len());
        for ((topic, partition), next) in next {
            let (_, high) = bounds(self.consumer.client(), &topic, partition, ASK_TIMEOUT)?;
            lag.push(((topic, partition), u64::try_from(high.0 - next.0).unwrap_or(0)));
        }
        Ok(lag)
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }
}
