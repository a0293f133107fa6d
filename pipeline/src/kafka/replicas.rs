//! Reads every replica of partitions, one broker at a time each, all brokers at once.
//!
//! Invariants: a partition counts as read only when *each* of its replicas was read from that replica's own first record up to the
//! same end, uncommitted records included, every batch's CRC checked. A replica that is away, behind, outside the in-sync set, on a
//! failed disk, or holds a batch that cannot be read is an error with its topic, partition and broker; never a shorter read. Where
//! replicas moved meanwhile, all is read again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sunder_schemas::ids::{Offset, Partition};
use uuid::Uuid;

use crate::kafka::error::KafkaError;
use crate::kafka::reader::Range;
use crate::kafka::record::Record;
use crate::kafka::wire::batch::{self, BatchError};
use crate::kafka::wire::{Bound, Broker, Fetched, Layout, Wanted, Wire};

/// How long a broker may answer without what is left, or not answer: a follower fetches at least every 500 ms
/// (`replica.fetch.wait.max.ms`), and what is asked for was acknowledged by all in-sync replicas. Chosen: enough for a machine that is busy.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// A partition up to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpTo {
    pub(crate) topic: String,
    pub(crate) partition: Partition,
    /// First offset not to read.
    pub(crate) to: Offset,
}

impl From<Range> for UpTo {
    fn from(range: Range) -> Self {
        Self { topic: range.topic, partition: range.partition, to: range.to }
    }
}

/// What was read of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaRead {
    pub(crate) topic: String,
    pub(crate) partition: Partition,
    pub(crate) broker: i32,
    /// Its first record, when reading began.
    pub(crate) from: Offset,
    pub(crate) to: Offset,
    pub(crate) records: u64,
}

/// A replica that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Away {
    pub(crate) topic: String,
    pub(crate) partition: Partition,
    pub(crate) broker: i32,
    pub(crate) code: String,
}

impl Layout {
    /// Replicas that are not fully there: their broker is away, their disk failed, or they are not in sync.
    pub(crate) fn away(&self) -> Vec<Away> {
        let mut away = Vec::new();
        for (topic, layout) in &self.topics {
            for (partition, replicas) in &layout.partitions {
                for broker in &replicas.replicas {
                    let code = if !self.brokers.contains_key(broker) {
                        "BrokerAway"
                    } else if replicas.offline.contains(broker) {
                        "ReplicaOffline"
                    } else if !replicas.in_sync.contains(broker) {
                        "OutOfSync"
                    } else {
                        continue;
                    };
                    away.push(Away { topic: topic.clone(), partition: *partition, broker: *broker, code: code.to_owned() });
                }
            }
        }
        away
    }

    /// The replicas of each partition, without who leads and who is in sync.
    pub(crate) fn replicas(&self) -> BTreeMap<(&str, Partition), Vec<i32>> {
        let partitions = self.topics.iter().flat_map(|(topic, layout)| layout.partitions.iter().map(move |at| (topic.as_str(), at)));
        partitions.map(|(topic, (partition, layout))| ((topic, *partition), layout.replicas.iter().copied().collect())).collect()
    }
}

impl Away {
    pub(crate) fn error(&self) -> KafkaError {
        unread(&self.topic, self.partition, self.broker, &self.code)
    }
}

fn unread(topic: &str, partition: Partition, broker: i32, code: &str) -> KafkaError {
    KafkaError::own(format!("read the replica of {topic}[{partition}] on broker {broker}"), code)
}

/// Reads every replica of `wanted`. Each broker's records go, in order within a partition, to a state of their own that `make` gives;
/// the states come back with what was read into them. Blocks.
///
/// # Errors
/// As the module says.
pub(crate) fn read<S: Send>(
    wire: &Wire,
    wanted: &[UpTo],
    make: impl Fn(i32) -> S + Sync,
    each: impl Fn(&mut S, &Record<'_>) + Sync,
) -> Result<Vec<(S, Vec<ReplicaRead>)>, KafkaError> {
    let mut topics: Vec<String> = wanted.iter().map(|wanted| wanted.topic.clone()).collect();
    topics.sort_unstable();
    topics.dedup();
    let layout = wire.layout(&topics)?;
    if let Some(away) = layout.away().first() {
        return Err(away.error());
    }
    let by_broker = assign(&layout, wanted)?;
    let results: Vec<Result<(S, Vec<ReplicaRead>), KafkaError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = by_broker
            .into_iter()
            .map(|(broker, open)| {
                let (make, each) = (&make, &each);
                let address = layout.brokers.get(&broker).cloned().unwrap_or_default();
                scope.spawn(move || {
                    let mut state = make(broker);
                    let reads = OneBroker::new(wire, broker, &address, open)?.read(|record| each(&mut state, record))?;
                    Ok((state, reads))
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(KafkaError::own("read replicas", "Panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    let read = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    // A replica that was made meanwhile was not read.
    if wire.layout(&topics)?.replicas() != layout.replicas() {
        return Err(KafkaError::own("read replicas", "ReplicasMoved"));
    }
    Ok(read)
}

fn assign(layout: &Layout, wanted: &[UpTo]) -> Result<BTreeMap<i32, Vec<Open>>, KafkaError> {
    let mut by_broker: BTreeMap<i32, Vec<Open>> = BTreeMap::new();
    for wanted in wanted {
        let unknown = || KafkaError::own(format!("read {}[{}]", wanted.topic, wanted.partition), "UnknownTopicOrPartition");
        let topic = layout.topics.get(&wanted.topic).ok_or_else(unknown)?;
        let partition = topic.partitions.get(&wanted.partition).ok_or_else(unknown)?;
        for broker in &partition.replicas {
            by_broker.entry(*broker).or_default().push(Open {
                topic: wanted.topic.clone(),
                id: topic.id,
                partition: wanted.partition,
                from: Offset(0),
                at: Offset(0),
                to: wanted.to,
                records: 0,
            });
        }
    }
    Ok(by_broker)
}

/// A replica that is being read.
struct Open {
    topic: String,
    id: Uuid,
    partition: Partition,
    from: Offset,
    /// Next offset to read.
    at: Offset,
    to: Offset,
    records: u64,
}

impl Open {
    fn is_done(&self) -> bool {
        self.at >= self.to
    }
}

/// Whether reading gets on. The time counts from answer to answer, not by partition: one that is full of others has no room for the next.
struct Watch {
    /// Sum of all positions when they last moved.
    position: i64,
    moved: Instant,
}

impl Watch {
    /// Notes the positions after an answer was read, at `now`; whether they have stood still for too long.
    fn stands_still(&mut self, position: i64, now: Instant) -> bool {
        if position != self.position {
            (self.position, self.moved) = (position, now);
        }
        now.duration_since(self.moved) > BEHIND_MAX
    }
}

struct OneBroker<'a> {
    wire: &'a Wire,
    id: i32,
    address: &'a str,
    broker: Broker,
    open: Vec<Open>,
}

impl<'a> OneBroker<'a> {
    fn new(wire: &'a Wire, id: i32, address: &'a str, open: Vec<Open>) -> Result<Self, KafkaError> {
        let broker = wire.broker(address).map_err(|error| match open.first() {
            Some(first) => unread(&first.topic, first.partition, id, error.code()),
            None => error,
        })?;
        Ok(Self { wire, id, address, broker, open })
    }

    fn failed(&self, open: &Open, code: &str) -> KafkaError {
        unread(&open.topic, open.partition, self.id, code)
    }

    fn read(mut self, mut each: impl FnMut(&Record<'_>)) -> Result<Vec<ReplicaRead>, KafkaError> {
        self.begin()?;
        let mut watch = Watch { position: self.position(), moved: Instant::now() };
        while let Some(behind) = self.open.iter().find(|open| !open.is_done()) {
            let lagging = self.failed(behind, "Lagging");
            for part in self.fetch()? {
                self.take(part, &mut each)?;
            }
            if watch.stands_still(self.position(), Instant::now()) {
                return Err(lagging);
            }
        }
        let id = self.id;
        let read = |open: Open| ReplicaRead {
            topic: open.topic,
            partition: open.partition,
            broker: id,
            from: open.from,
            to: open.to,
            records: open.records,
        };
        Ok(self.open.into_iter().map(read).collect())
    }

    fn position(&self) -> i64 {
        self.open.iter().map(|open| open.at.0).sum()
    }

    /// The next answer. A broker whose cleaner swaps a segment that it is just sending cuts the connection (seen with
    /// `file.delete.delay.ms=0`), so a cut one is made anew, as any client does; an answer that was cut is dropped whole.
    fn fetch(&mut self) -> Result<Vec<Fetched>, KafkaError> {
        let open: Vec<&Open> = self.open.iter().filter(|open| !open.is_done()).collect();
        let wanted: Vec<Wanted> = open.iter().map(|open| Wanted { topic_id: open.id, partition: open.partition, from: open.at }).collect();
        let asked = Instant::now();
        loop {
            let error = match self.broker.fetch(&wanted) {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            let failed = |error: &KafkaError| match open.first() {
                Some(first) => unread(&first.topic, first.partition, self.id, error.code()),
                None => error.clone(),
            };
            if asked.elapsed() > BEHIND_MAX {
                return Err(failed(&error));
            }
            self.broker = self.wire.broker(self.address).map_err(|error| failed(&error))?;
        }
    }

    fn take(&mut self, part: Fetched, each: &mut impl FnMut(&Record<'_>)) -> Result<(), KafkaError> {
        let found = self.open.iter().position(|open| open.id == part.topic_id && open.partition == part.partition);
        let Some(index) = found else { return Err(KafkaError::own(format!("read broker {}", self.id), "WrongAnswer")) };
        let id = self.id;
        let Some(open) = self.open.get_mut(index) else { return Ok(()) };
        match part.error.as_deref() {
            None => feed(open, id, part.batches, each),
            // Retention moved the log's start past the position: what is gone need not be read.
            Some("OffsetOutOfRange") => self.skip(index),
            // A new leader that does not know yet how far it may answer.
            Some("OffsetNotAvailable") => Ok(()),
            Some(code) => Err(unread(&open.topic, open.partition, id, code)),
        }
    }

    /// Sets each position to the replica's own first record.
    fn begin(&mut self) -> Result<(), KafkaError> {
        let partitions: Vec<(&str, Partition)> = self.open.iter().map(|open| (open.topic.as_str(), open.partition)).collect();
        let starts = self.broker.bounds(Bound::Start, &partitions)?;
        for open in &mut self.open {
            let start = match starts.get(&(open.topic.clone(), open.partition)) {
                Some(Ok(start)) => start.offset,
                Some(Err(code)) => return Err(unread(&open.topic, open.partition, self.id, code)),
                None => return Err(unread(&open.topic, open.partition, self.id, "WrongAnswer")),
            };
            (open.from, open.at) = (start, start);
        }
        Ok(())
    }

    fn skip(&mut self, index: usize) -> Result<(), KafkaError> {
        let Some(open) = self.open.get_mut(index) else { return Ok(()) };
        let starts = self.broker.bounds(Bound::Start, &[(open.topic.as_str(), open.partition)])?;
        match starts.into_values().next() {
            Some(Ok(start)) if start.offset > open.at => open.at = start.offset,
            _ => return Err(unread(&open.topic, open.partition, self.id, "OffsetOutOfRange")),
        }
        Ok(())
    }
}

/// Gives the records of `batches` below the end to `each` and moves the position.
fn feed(open: &mut Open, broker: i32, mut batches: bytes::Bytes, each: &mut impl FnMut(&Record<'_>)) -> Result<(), KafkaError> {
    let damaged = |open: &Open, error: BatchError| {
        KafkaError::own(
            format!(
                "read the replica of {}[{}] on broker {broker} at offset {} (a damaged segment: docs/operations.md says how to mend it)",
                open.topic, open.partition, open.at
            ),
            error.code(),
        )
    };
    while let Some(batch) = batch::take(&mut batches).map_err(|error| damaged(open, error))? {
        if batch.next <= open.at.0 {
            continue;
        }
        if batch.base >= open.to.0 {
            open.at = open.to;
            return Ok(());
        }
        let result = batch.each(|record| {
            if record.offset >= open.at.0 && record.offset < open.to.0 {
                open.records += 1;
                each(&Record::of_wire(&open.topic, open.partition, record));
            }
        });
        result.map_err(|error| damaged(open, error))?;
        // Compaction leaves batches without records: the position moves by the batch's last offset.
        open.at = Offset(batch.next);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_lags_where_answers_stand_still_and_not_where_others_fill_them() {
        let begun = Instant::now();
        let mut watch = Watch { position: 0, moved: begun };
        // An hour of answers, each full of some other partition, and each taking its time to be read.
        for second in 1..3_600u64 {
            assert!(!watch.stands_still(i64::try_from(second).unwrap(), begun + Duration::from_secs(second)));
        }
        let last = begun + Duration::from_secs(3_599);
        assert!(!watch.stands_still(3_599, last + BEHIND_MAX));
        assert!(watch.stands_still(3_599, last + BEHIND_MAX + Duration::from_millis(1)));
    }
}
