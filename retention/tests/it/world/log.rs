//! The log of the small world: raw, events, state and pii with a splitter and a cleaner, as far as a case can tell them from Kafka.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use sunder_retention::lease::ErasedKeys;
use sunder_retention::store::{
    Aged, Control, Drifted, EventLog, Extent, FoundBlock, Hindrance, Mark, Needles, OutboxRecord, Place, Prove, Residual, ScanReport,
    StoreError, Subject,
};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, KeyId, Offset, Partition, SellerId};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::{Period, Timestamp};

use super::START;
use super::fuse::Fuse;

/// How long its cleaner may take.
pub(crate) const BOUND: Duration = Duration::from_secs(6 * 3_600);
/// Partitions of each topic.
pub(crate) const PARTITIONS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Topic {
    Raw,
    Events,
    State,
    Pii,
}

impl Topic {
    /// Where a subject's data lies for good; raw forgets by itself.
    pub(crate) const KEPT: [Self; 3] = [Self::Events, Self::State, Self::Pii];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "sp.raw.orders.v1",
            Self::Events => "sp.events.orders.v1",
            Self::State => "sp.state.orders.v1",
            Self::Pii => "sp.pii.orders.v1",
        }
    }
}

/// A value: business data by its version, a sealed block where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) version: i64,
    pub(crate) event: String,
    pub(crate) block: Vec<u8>,
}

impl Row {
    pub(crate) fn clear(&self) -> Self {
        Self { block: Vec::new(), ..self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct LogRecord {
    pub(crate) offset: i64,
    pub(crate) key: String,
    pub(crate) value: Option<Row>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Part {
    pub(crate) records: Vec<LogRecord>,
    pub(crate) next: i64,
}

/// What the splitter knows of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Live(i64),
    Gone,
}

/// A record on its way from the splitter to the log.
pub(crate) type Pending = (Topic, String, Option<Row>);

#[derive(Debug, Default)]
pub(crate) struct LogState {
    parts: HashMap<(Topic, usize), Part>,
    /// The next raw record that the splitter reads, and the committed one.
    read: [usize; PARTITIONS],
    pub(crate) committed: [usize; PARTITIONS],
    known: HashMap<String, Known>,
    pub(crate) published: Vec<OutboxRecord>,
    pub(crate) drift: Vec<Drifted>,
    pub(crate) hindrances: Vec<Hindrance>,
    pub(crate) is_splitter_down: bool,
    pub(crate) is_cleaner_down: bool,
    /// Not even a forced removal makes its cleaner pass.
    pub(crate) is_uncleanable: bool,
    pub(crate) is_blind: bool,
    /// How often removal was forced, and how often everything was read.
    pub(crate) rolls: usize,
    pub(crate) scans: usize,
    /// How long raw keeps what it has, in days from the world's start; 0: 38 days.
    pub(crate) residual_days: i64,
    /// Appended behind the tombstones, once, when the barrier is set.
    pub(crate) late: Vec<(Topic, String, Row)>,
    /// Appended behind every tombstone, for ever.
    pub(crate) always_late: Option<(Topic, String, Row)>,
    /// What lies there of business data, with its event time.
    pub(crate) aged: Vec<(Timestamp, Aged)>,
    /// Whether split and clean happen only when they are told to, not whenever a case asks how far they are.
    pub(crate) is_driven: bool,
}

pub(crate) fn key_of(seller: &SellerId, token: EntityToken, group: FieldGroup) -> String {
    format!("{seller}|{token}|{group}")
}

pub(crate) fn state_key(seller: &SellerId, token: EntityToken) -> String {
    format!("{seller}|{token}")
}

/// The entity that a key names.
pub(crate) fn entity_of(key: &str) -> Option<EntityToken> {
    EntityToken::parse(key.split('|').nth(1)?).ok()
}

/// The first two parts of a key.
pub(crate) fn subject_part(key: &str) -> Option<&str> {
    let (seller, rest) = key.split_once('|')?;
    let token = rest.split('|').next()?;
    key.get(..seller.len() + 1 + token.len())
}

fn partition_of(key: &str) -> usize {
    entity_of(key).map_or(0, |token| usize::from(token.0[0]) % PARTITIONS)
}

pub(crate) fn mark(topic: Topic, partition: usize, offset: i64) -> Mark {
    let partition = Partition(i32::try_from(partition).unwrap());
    Mark { topic: topic.name().into(), incarnation: "topic-id-1".into(), partition, offset: Offset(offset) }
}

/// Whether a block of `key` lies in `bytes`.
pub(crate) fn contains(bytes: &[u8], key: KeyId) -> bool {
    let header = SealedBlock::header(key);
    bytes.windows(header.len()).any(|window| window == header)
}

impl LogState {
    pub(crate) fn part(&mut self, topic: Topic, partition: usize) -> &mut Part {
        self.parts.entry((topic, partition)).or_default()
    }

    fn append_to(&mut self, topic: Topic, partition: usize, key: &str, value: Option<Row>) -> i64 {
        let part = self.part(topic, partition);
        let offset = part.next;
        part.next += 1;
        part.records.push(LogRecord { offset, key: key.to_owned(), value });
        offset
    }

    pub(crate) fn append(&mut self, topic: Topic, key: &str, value: Option<Row>) -> (usize, i64) {
        let partition = partition_of(key);
        (partition, self.append_to(topic, partition, key, value))
    }

    /// Every record of `topics`.
    pub(crate) fn records(&self, topics: &[Topic]) -> impl Iterator<Item = (Topic, usize, &LogRecord)> {
        let parts = self.parts.iter().filter(|((topic, _), _)| topics.contains(topic)).collect::<BTreeMap<_, _>>();
        parts.into_iter().flat_map(|((topic, partition), part)| part.records.iter().map(|record| (*topic, *partition, record)))
    }

    /// Keys of `topic` whose last record is a value.
    pub(crate) fn living(&self, topic: Topic) -> impl Iterator<Item = String> {
        let mut living: BTreeMap<(usize, String), bool> = BTreeMap::new();
        for (_, partition, record) in self.records(&[topic]) {
            living.insert((partition, record.key.clone()), record.value.is_some());
        }
        living.into_iter().filter(|(_, is_value)| *is_value).map(|((_, key), _)| key)
    }

    /// The cleaner passes every compacted partition.
    pub(crate) fn clean(&mut self) {
        for ((topic, _), part) in &mut self.parts {
            if *topic == Topic::Raw {
                continue;
            }
            let last: HashMap<String, i64> = part.records.iter().map(|record| (record.key.clone(), record.offset)).collect();
            part.records.retain(|record| last.get(&record.key) == Some(&record.offset));
        }
    }

    /// Tombstones go too: their `delete.retention.ms` is over.
    pub(crate) fn drop_tombstones(&mut self) {
        self.clean();
        for ((topic, _), part) in &mut self.parts {
            if *topic != Topic::Raw {
                part.records.retain(|record| record.value.is_some());
            }
        }
    }

    /// Raw's retention: what the splitter has read goes.
    pub(crate) fn expire_raw(&mut self) {
        for partition in 0..PARTITIONS {
            let committed = i64::try_from(self.committed[partition]).unwrap();
            self.part(Topic::Raw, partition).records.retain(|record| record.offset >= committed);
        }
    }

    pub(crate) fn wake_cleaner(&mut self) {
        self.is_cleaner_down = false;
        self.clean();
    }

    /// The splitter starts again from what it committed, and from what the log says of versions.
    pub(crate) fn restart_splitter(&mut self) {
        self.read = self.committed;
        let known = self.records(&[Topic::State]).filter(|(_, _, record)| !record.key.starts_with('~'));
        let known =
            known.map(|(_, _, record)| (record.key.clone(), record.value.as_ref().map_or(Known::Gone, |row| Known::Live(row.version))));
        self.known = known.collect();
    }

    /// Raw is read again from its start.
    pub(crate) fn replay_splitter(&mut self) {
        self.committed = [0; PARTITIONS];
        self.restart_splitter();
    }

    /// Whether raw holds something that the splitter has not read.
    pub(crate) fn has_unsplit(&mut self) -> bool {
        (0..PARTITIONS).any(|partition| {
            let read = i64::try_from(self.read[partition]).unwrap();
            self.part(Topic::Raw, partition).next > read
        })
    }

    /// Splits at most `most` raw records by the rules of the splitter, and returns what is to be written. `gate`: what the splitter's
    /// process has heard of erasures; without one it lets everything pass, as one in flight would have.
    pub(crate) fn split(&mut self, most: usize, gate: Option<&ErasedKeys>) -> Vec<Pending> {
        let mut pending = Vec::new();
        let mut left = most;
        for partition in 0..PARTITIONS {
            while left > 0 {
                let from = i64::try_from(self.read[partition]).unwrap();
                let part = self.part(Topic::Raw, partition);
                let Some(record) = part.records.iter().find(|record| record.offset >= from).cloned() else {
                    self.read[partition] = usize::try_from(part.next).unwrap();
                    break;
                };
                self.read[partition] = usize::try_from(record.offset + 1).unwrap();
                left -= 1;
                self.split_one(&record, gate, &mut pending);
            }
        }
        pending
    }

    fn split_one(&mut self, record: &LogRecord, gate: Option<&ErasedKeys>, pending: &mut Vec<Pending>) {
        let Some(mut row) = record.value.clone() else { return };
        let (Some(own), Some(token)) = (subject_part(&record.key).map(str::to_owned), entity_of(&record.key)) else { return };
        if gate.is_some_and(|gate| gate.withholds(token)) {
            return;
        }
        if let (Some(gate), Ok(key)) = (gate, SealedBlock::key_of(&row.block))
            && gate.contains(key)
        {
            row.block.clear();
        }
        let known = self.known.get(&own).copied();
        if known == Some(Known::Gone) {
            return;
        }
        pending.push((Topic::Events, format!("{own}|{}", row.event), Some(row.clear())));
        if known.is_some_and(|known| matches!(known, Known::Live(version) if version > row.version)) {
            return;
        }
        self.known.insert(own.clone(), Known::Live(row.version));
        pending.push((Topic::State, own.clone(), Some(row.clear())));
        if !row.block.is_empty() {
            pending.push((Topic::Pii, format!("{own}|{}", FieldGroup::BuyerName), Some(row)));
        }
    }

    /// What the splitter wrote arrives, and its position with it.
    pub(crate) fn flush(&mut self, pending: Vec<Pending>) {
        for (topic, key, value) in pending {
            self.append(topic, &key, value);
        }
    }

    pub(crate) fn commit_split(&mut self) {
        self.committed = self.read;
    }

    /// All of it at once.
    pub(crate) fn split_all(&mut self, gate: Option<&ErasedKeys>) {
        let pending = self.split(usize::MAX, gate);
        self.flush(pending);
        self.commit_split();
    }

    fn bury(&mut self, topic: Topic, key: &str, marks: &mut BTreeMap<(Topic, usize), i64>) {
        let (partition, offset) = self.append(topic, key, None);
        marks.insert((topic, partition), offset);
    }

    fn bury_business(&mut self, subjects: &[Subject], marks: &mut BTreeMap<(Topic, usize), i64>) {
        let wanted: BTreeSet<String> = subjects.iter().map(|subject| state_key(&subject.seller, subject.token)).collect();
        let mut living: BTreeSet<(Topic, String)> = BTreeSet::new();
        for (topic, _, record) in self.records(&[Topic::State, Topic::Events]) {
            if subject_part(&record.key).is_some_and(|part| wanted.contains(part)) {
                let entry = (topic, record.key.clone());
                if record.value.is_some() {
                    living.insert(entry);
                } else {
                    living.remove(&entry);
                }
            }
        }
        for (topic, key) in living {
            self.bury(topic, &key, marks);
        }
    }
}

pub(crate) struct FakeLog {
    pub(crate) state: Mutex<LogState>,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) is_durable: bool,
}

impl FakeLog {
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, LogState> {
        self.state.lock().unwrap()
    }
}

#[async_trait]
impl EventLog for FakeLog {
    async fn publish(&self, records: &[OutboxRecord]) -> Result<(), StoreError> {
        self.fuse.call(|| self.lock().published.extend_from_slice(records))
    }

    async fn tombstone(&self, _case: &str, subjects: &[Subject], extent: Extent) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            let mut marks = BTreeMap::new();
            for subject in subjects {
                for group in FieldGroup::ALL {
                    state.bury(Topic::Pii, &key_of(&subject.seller, subject.token, *group), &mut marks);
                }
            }
            if extent == Extent::WithBusinessData {
                state.bury_business(subjects, &mut marks);
            }
            if let Some((topic, key, value)) = state.always_late.clone() {
                state.append(topic, &key, Some(value));
            }
            marks.into_iter().map(|((topic, partition), offset)| mark(topic, partition, offset)).collect()
        })
    }

    async fn tombstone_found(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<Vec<Mark>, StoreError> {
        self.tombstone(case, subjects, extent).await
    }

    async fn raw_ends(&self) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            let ends = (0..PARTITIONS).map(|partition| (partition, state.part(Topic::Raw, partition).next));
            ends.filter(|(_, next)| *next > 0).map(|(partition, next)| mark(Topic::Raw, partition, next - 1)).collect()
        })
    }

    async fn split_past(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            if !state.is_splitter_down && !state.is_driven {
                state.split_all(None);
            }
            marks.iter().all(|mark| {
                let partition = usize::try_from(mark.partition.0).unwrap();
                i64::try_from(state.committed[partition]).unwrap() > mark.offset.0
            })
        })
    }

    async fn barrier(&self) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            for (topic, key, value) in std::mem::take(&mut state.late) {
                state.append(topic, &key, Some(value));
            }
            let mut marks = Vec::new();
            for topic in Topic::KEPT {
                for partition in 0..PARTITIONS {
                    let offset = state.append_to(topic, partition, "~hb", None);
                    marks.push(mark(topic, partition, offset));
                }
            }
            if !state.is_cleaner_down && !state.is_driven {
                state.clean();
            }
            marks
        })
    }

    async fn entities(&self, seller: &SellerId) -> Result<Vec<EntityToken>, StoreError> {
        self.fuse.call(|| {
            let state = self.lock();
            let own = format!("{seller}|");
            let living = state.records(&Topic::KEPT).filter(|(_, _, record)| record.value.is_some() && record.key.starts_with(&own));
            let tokens: BTreeSet<EntityToken> = living.filter_map(|(_, _, record)| entity_of(&record.key)).collect();
            tokens.into_iter().collect()
        })
    }

    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<Aged>, StoreError> {
        self.fuse.call(|| self.lock().aged.iter().filter(|(at, _)| *at < cutoff).map(|(_, aged)| aged.clone()).collect())
    }

    async fn roll(&self, _case: &str, _subjects: &[Subject], _extent: Extent) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            state.rolls += 1;
            if !state.is_uncleanable {
                state.clean();
            }
            !state.is_uncleanable
        })
    }

    fn message_timeout(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn drift(&self) -> Result<Vec<Drifted>, StoreError> {
        self.fuse.call(|| self.lock().drift.clone())
    }

    async fn removal_bound(&self) -> Result<Duration, StoreError> {
        self.fuse.call(|| BOUND)
    }

    async fn hindrances(&self, _barrier: &[Mark]) -> Result<Vec<Hindrance>, StoreError> {
        self.fuse.call(|| self.lock().hindrances.clone())
    }

    fn is_durable(&self) -> bool {
        self.is_durable
    }

    async fn describe(&self) -> Result<serde_json::Value, StoreError> {
        self.fuse.call(
            || json!({"topics": [{"name": Topic::Pii.name(), "partitions": PARTITIONS, "replicas": 1, "cleanup.policy": "compact,delete"}]}),
        )
    }
}

fn canary(case: &str, what: &str) -> String {
    format!("~canary|{case}|{what}")
}

impl LogState {
    fn scan(&self, needles: &Needles) -> ScanReport {
        let barrier: HashMap<(&str, i32), i64> =
            needles.barrier.iter().map(|mark| ((mark.topic.as_str(), mark.partition.0), mark.offset.0)).collect();
        let is_read = |topic: Topic, partition: usize, offset: i64| {
            let partition = i32::try_from(partition).unwrap();
            barrier.get(&(topic.name(), partition)).is_none_or(|end| offset <= *end)
        };
        let mut report = ScanReport {
            store: "log".into(),
            method: "every record up to the barrier".into(),
            controls_planted: u64::try_from(needles.controls.len() * PARTITIONS).unwrap(),
            residual: vec![Residual {
                what: format!("{}: sealed events until their retention", Topic::Raw.name()),
                until: Some(START.plus(Period::days(if self.residual_days == 0 { 38 } else { self.residual_days }))),
            }],
            ..ScanReport::default()
        };
        let mut live: BTreeSet<(KeyId, usize)> = BTreeSet::new();
        let mut read = 0;
        let mut last_tombstones: HashMap<(Topic, usize, &str), i64> = HashMap::new();
        for (topic, partition, record) in self.records(&Topic::KEPT).filter(|(_, _, record)| record.value.is_none()) {
            last_tombstones.insert((topic, partition, &record.key), record.offset);
        }
        for (topic, partition, record) in self.records(&Topic::KEPT) {
            if self.is_blind || !is_read(topic, partition, record.offset) {
                continue;
            }
            read += 1;
            let Some(row) = &record.value else { continue };
            let place = format!("{}[{partition}]@{}", topic.name(), record.offset);
            let is_canary = record.key.starts_with("~canary|");
            let wanted: &[KeyId] = if is_canary { &needles.controls } else { &needles.keys };
            for key in wanted.iter().filter(|key| contains(&row.block, **key)) {
                if is_canary && record.key.ends_with("|live") {
                    live.insert((*key, partition));
                } else {
                    let is_buried =
                        last_tombstones.get(&(topic, partition, record.key.as_str())).is_some_and(|offset| *offset > record.offset);
                    report.found.push(FoundBlock { place: place.clone(), key: *key, block: row.block.clone(), is_buried });
                }
            }
        }
        report.controls_found = u64::try_from(live.len()).unwrap();
        report.places = vec![Place { name: "sp.*".into(), read: format!("{read} records") }];
        report
    }
}

#[async_trait]
impl Prove for FakeLog {
    fn name(&self) -> &str {
        "log"
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.fuse.call(|| {
            let row = Row { version: 0, event: String::new(), block: control.block.clone() };
            let mut state = self.lock();
            for partition in 0..PARTITIONS {
                for (what, value) in [("live", Some(&row)), ("dead", Some(&row)), ("dead", None)] {
                    state.append_to(Topic::Pii, partition, &canary(&control.case, what), value.cloned());
                }
            }
        })
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        Ok(self.scan_many(std::slice::from_ref(needles)).await?.remove(0))
    }

    async fn scan_many(&self, needles: &[Needles]) -> Result<Vec<ScanReport>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            state.scans += 1;
            needles.iter().map(|needles| state.scan(needles)).collect()
        })
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.fuse.call(|| {
            let mut state = self.lock();
            for partition in 0..PARTITIONS {
                for what in ["live", "dead"] {
                    state.append_to(Topic::Pii, partition, &canary(case, what), None);
                }
            }
        })
    }
}
