//! The log: one partition of `pii` with a cleaner, one of `raw` with a splitter.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use sunder_retention::store::{
    Control, EventLog, Extent, FoundBlock, Mark, Needles, OutboxRecord, Place, Prove, Residual, ScanReport, StoreError, Subject,
};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, KeyId, Offset, Partition, SellerId};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::Period;

use super::START;
use super::fuse::Fuse;

pub(crate) const PII: &str = "sp.pii.orders.v1";
pub(crate) const RAW: &str = "sp.raw.orders.v1";

#[derive(Debug, Clone)]
pub(super) struct LogRecord {
    pub(super) offset: i64,
    pub(super) key: String,
    pub(super) value: Option<Vec<u8>>,
}

/// One partition of `pii`, one of `raw`.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pub(super) pii: Vec<LogRecord>,
    pub(super) next: i64,
    pub(super) raw: Vec<(String, Vec<u8>)>,
    split: usize,
    pub(crate) published: Vec<OutboxRecord>,
    pub(crate) drift: Vec<String>,
    pub(crate) is_splitter_down: bool,
    pub(crate) is_cleaner_down: bool,
    pub(crate) is_blind: bool,
    /// How often removal was forced.
    pub(crate) rolls: usize,
    /// Appended behind the tombstones, once, when the barrier is set.
    pub(crate) late: Vec<(String, Vec<u8>)>,
    /// Appended behind every tombstone, for ever.
    pub(crate) always_late: Option<(String, Vec<u8>)>,
}

impl LogState {
    fn append(&mut self, key: String, value: Option<Vec<u8>>) -> i64 {
        let offset = self.next;
        self.next += 1;
        self.pii.push(LogRecord { offset, key, value });
        offset
    }

    fn clean(&mut self) {
        let mut last = BTreeMap::new();
        for record in &self.pii {
            last.insert(record.key.clone(), record.offset);
        }
        self.pii.retain(|record| last.get(&record.key) == Some(&record.offset));
    }

    /// Lays `value` under `key`, as the splitter would.
    pub(crate) fn put(&mut self, key: &str, value: &[u8]) {
        self.append(key.to_owned(), Some(value.to_vec()));
    }

    pub(crate) fn wake_cleaner(&mut self) {
        self.is_cleaner_down = false;
        self.clean();
    }

    pub(super) fn split(&mut self) {
        while let Some((key, value)) = self.raw.get(self.split).cloned() {
            self.split += 1;
            self.append(key, Some(value));
        }
    }
}

pub(crate) struct FakeLog {
    pub(crate) state: Mutex<LogState>,
    pub(super) fuse: Arc<Fuse>,
    pub(crate) is_durable: bool,
}

fn mark(topic: &str, offset: i64) -> Mark {
    Mark { topic: topic.into(), incarnation: "topic-id-1".into(), partition: Partition(0), offset: Offset(offset) }
}

pub(super) fn key_of(seller: &SellerId, token: EntityToken, group: FieldGroup) -> String {
    format!("{seller}|{token}|{group}")
}

pub(super) fn contains(bytes: &[u8], key: KeyId) -> bool {
    let header = SealedBlock::header(key);
    bytes.windows(header.len()).any(|window| window == header)
}

#[async_trait]
impl EventLog for FakeLog {
    async fn publish(&self, records: &[OutboxRecord]) -> Result<(), StoreError> {
        self.fuse.call(|| self.state.lock().unwrap().published.extend_from_slice(records))
    }

    async fn tombstone(&self, _case: &str, subjects: &[Subject], _extent: Extent) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            for subject in subjects {
                for group in FieldGroup::ALL {
                    state.append(key_of(&subject.seller, subject.token, *group), None);
                }
            }
            let marks = vec![mark(PII, state.next - 1)];
            if let Some((key, value)) = state.always_late.clone() {
                state.append(key, Some(value));
            }
            marks
        })
    }

    async fn raw_ends(&self) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| vec![mark(RAW, i64::try_from(self.state.lock().unwrap().raw.len()).unwrap() - 1)])
    }

    async fn split_past(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            if !state.is_splitter_down {
                state.split();
            }
            let split = i64::try_from(state.split).unwrap();
            marks.iter().all(|mark| mark.offset.0 < split)
        })
    }

    async fn barrier(&self) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            for (key, value) in std::mem::take(&mut state.late) {
                state.append(key, Some(value));
            }
            let offset = state.append("~hb".into(), None);
            if !state.is_cleaner_down {
                state.clean();
            }
            vec![mark(PII, offset)]
        })
    }

    async fn entities(&self, seller: &SellerId) -> Result<Vec<EntityToken>, StoreError> {
        self.fuse.call(|| {
            let state = self.state.lock().unwrap();
            let of_seller = state.pii.iter().filter(|record| record.value.is_some());
            let parts = of_seller.filter_map(|record| record.key.strip_prefix(&format!("{seller}|"))?.split('|').next());
            parts.filter_map(|token| EntityToken::parse(token).ok()).collect()
        })
    }

    async fn roll(&self, _case: &str, _subjects: &[Subject], _extent: Extent) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            state.rolls += 1;
            state.clean();
            true
        })
    }

    fn message_timeout(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn drift(&self) -> Result<Vec<String>, StoreError> {
        self.fuse.call(|| self.state.lock().unwrap().drift.clone())
    }

    fn is_durable(&self) -> bool {
        self.is_durable
    }

    async fn describe(&self) -> Result<serde_json::Value, StoreError> {
        self.fuse.call(|| json!({"topics": [{"name": PII, "partitions": 1, "replicas": 1, "cleanup.policy": "compact,delete"}]}))
    }
}

#[async_trait]
impl Prove for FakeLog {
    fn name(&self) -> &str {
        "log"
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.fuse.call(|| {
            let key = format!("~canary|{}|live", control.case);
            self.state.lock().unwrap().append(key, Some(control.block.clone()));
        })
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        self.fuse.call(|| {
            let state = self.state.lock().unwrap();
            let barrier = needles.barrier.iter().find(|mark| mark.topic == PII).map_or(i64::MAX, |mark| mark.offset.0);
            let read: Vec<_> = state.pii.iter().filter(|record| record.offset <= barrier && !state.is_blind).collect();
            let value = |record: &&LogRecord| record.value.clone().unwrap_or_default();
            ScanReport {
                store: "log".into(),
                method: "every record up to the barrier".into(),
                places: vec![Place { name: format!("{PII}[0]"), read: format!("{} records", read.len()) }],
                found: read
                    .iter()
                    .flat_map(|record| {
                        let value = value(record);
                        let place = format!("{PII}[0]@{}", record.offset);
                        needles
                            .keys
                            .iter()
                            .filter(|key| contains(&value, **key))
                            .map(|key| FoundBlock { place: place.clone(), key: *key, block: value.clone() })
                            .collect::<Vec<_>>()
                    })
                    .collect(),
                controls_planted: 1,
                controls_found: u64::from(read.iter().any(|record| needles.controls.iter().any(|key| contains(&value(record), *key)))),
                residual: vec![Residual {
                    what: format!("{RAW}: sealed events until their retention"),
                    until: Some(START.plus(Period::days(38))),
                }],
            }
        })
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.fuse.call(|| self.state.lock().unwrap().append(format!("~canary|{case}|live"), None)).map(|_| ())
    }
}
