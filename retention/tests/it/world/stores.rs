//! Stores of the small world, fed from its log by the rules of the sinks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sunder_retention::lease::ErasedKeys;
use sunder_retention::store::{Control, Extent, Forget, FoundBlock, Mark, Needles, Place, Prove, ScanReport, StoreError, Subject};
use sunder_schemas::ids::KeyId;
use sunder_schemas::private::SealedBlock;

use super::fuse::Fuse;
use super::log::{FakeLog, PARTITIONS, Row, Topic, contains, entity_of, state_key, subject_part};

/// How a store misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Honest,
    /// Says that it deleted, and did not.
    Lies,
    /// Cannot be read.
    Unreadable,
    /// Loses the control.
    Forgetful,
    /// Never catches up.
    Behind,
}

/// What a store holds, as a backup of it would.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held {
    pub(crate) rows: BTreeMap<String, Row>,
    next: [i64; PARTITIONS],
}

/// A store fed from one topic of the log.
pub(crate) struct FakeStore {
    name: &'static str,
    topic: Topic,
    log: Arc<FakeLog>,
    fuse: Arc<Fuse>,
    pub(crate) held: Mutex<Held>,
    pub(crate) manner: Mutex<Manner>,
}

impl FakeStore {
    pub(crate) fn new(name: &'static str, topic: Topic, log: Arc<FakeLog>, fuse: Arc<Fuse>) -> Self {
        Self { name, topic, log, fuse, held: Mutex::default(), manner: Mutex::default() }
    }

    pub(crate) const fn topic(&self) -> Topic {
        self.topic
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.held.lock().unwrap().rows.contains_key(key)
    }

    /// Whether a row of it holds a block of `key`.
    pub(crate) fn holds_block(&self, key: KeyId) -> bool {
        self.held.lock().unwrap().rows.values().any(|row| contains(&row.block, key))
    }

    /// Everything is read again from the log's start.
    pub(crate) fn rebuild(&self) {
        let mut held = self.held.lock().unwrap();
        held.next = [0; PARTITIONS];
        held.rows.retain(|key, _| key.starts_with('~'));
    }

    /// Applies what the log has, up to `most` records of each partition; `gate`: what its process has heard of erasures.
    pub(crate) fn consume(&self, most: usize, gate: Option<&ErasedKeys>) {
        let mut state = self.log.lock();
        let mut held = self.held.lock().unwrap();
        for partition in 0..PARTITIONS {
            let from = held.next[partition];
            let part = state.part(self.topic, partition);
            let batch: Vec<_> = part.records.iter().filter(|record| record.offset >= from).take(most).cloned().collect();
            let next = if batch.len() < most { part.next } else { batch.last().map_or(from, |record| record.offset + 1) };
            held.next[partition] = next;
            for record in batch.into_iter().filter(|record| !record.key.starts_with('~')) {
                match record.value {
                    Some(row) if self.is_refused(&record.key, &row, gate) => {}
                    Some(row) if held.rows.get(&record.key).is_some_and(|held| held.version > row.version) => {}
                    Some(row) => drop(held.rows.insert(record.key, row)),
                    None if self.manner() == Manner::Lies => {}
                    None => drop(held.rows.remove(&record.key)),
                }
            }
        }
    }

    fn is_refused(&self, key: &str, row: &Row, gate: Option<&ErasedKeys>) -> bool {
        let Some(gate) = gate else { return false };
        match self.topic {
            Topic::Pii => SealedBlock::key_of(&row.block).is_ok_and(|key| gate.contains(key)),
            Topic::Raw | Topic::Events | Topic::State => entity_of(key).is_some_and(|token| gate.withholds(token)),
        }
    }
}

#[async_trait]
impl Forget for FakeStore {
    fn name(&self) -> &str {
        self.name
    }

    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            if self.manner() != Manner::Behind && !self.log.lock().is_driven {
                self.consume(usize::MAX, None);
            }
            let next = self.held.lock().unwrap().next;
            let own = marks.iter().filter(|mark| mark.topic == self.topic.name());
            own.into_iter().all(|mark| mark.offset.0 < next[usize::try_from(mark.partition.0).unwrap()])
        })
    }

    async fn forget(&self, subjects: &[Subject], extent: Extent) -> Result<u64, StoreError> {
        self.fuse.call(|| {
            if self.topic == Topic::State && extent == Extent::Personal {
                return 0;
            }
            let mut held = self.held.lock().unwrap();
            let before = held.rows.len();
            if self.manner() != Manner::Lies {
                let gone: BTreeSet<String> = subjects.iter().map(|subject| state_key(&subject.seller, subject.token)).collect();
                held.rows.retain(|key, _| !subject_part(key).is_some_and(|part| gone.contains(part)));
            }
            u64::try_from(before - held.rows.len()).unwrap()
        })
    }
}

#[async_trait]
impl Prove for FakeStore {
    fn name(&self) -> &str {
        self.name
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        let row = Row { version: 0, event: String::new(), block: control.block.clone() };
        self.fuse.call(|| drop(self.held.lock().unwrap().rows.insert(format!("~canary|{}", control.case), row)))
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        if self.manner() == Manner::Unreadable {
            return Err(StoreError { store: self.name.into(), action: "scan sealed_block".into(), code: "io".into() });
        }
        self.fuse.call(|| {
            let held = self.held.lock().unwrap();
            let place = format!("{}.rows", self.name);
            let mut report = ScanReport {
                store: self.name.into(),
                method: "every row".into(),
                places: vec![Place { name: place.clone(), read: format!("{} rows", held.rows.len()) }],
                controls_planted: u64::try_from(needles.controls.len()).unwrap(),
                ..ScanReport::default()
            };
            for row in held.rows.values() {
                let found = needles.keys.iter().filter(|key| contains(&row.block, **key));
                report.found.extend(found.map(|key| FoundBlock {
                    place: place.clone(),
                    key: *key,
                    block: row.block.clone(),
                    is_buried: false,
                }));
                report.controls_found += u64::from(needles.controls.iter().any(|key| contains(&row.block, *key)));
            }
            if self.manner() == Manner::Forgetful {
                report.controls_found = 0;
            }
            report
        })
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.fuse.call(|| drop(self.held.lock().unwrap().rows.remove(&format!("~canary|{case}"))))
    }
}
