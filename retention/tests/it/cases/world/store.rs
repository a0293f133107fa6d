//! A store that really holds blocks, and can misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sunder_retention::store::{Control, Extent, Forget, FoundBlock, Mark, Needles, Place, Prove, ScanReport, StoreError, Subject};
use sunder_schemas::ids::KeyId;

use super::fuse::Fuse;
use super::log::{FakeLog, PII, contains};

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

/// A store fed from the log.
pub(crate) struct FakeStore {
    pub(super) name: &'static str,
    pub(super) log: Arc<FakeLog>,
    pub(super) fuse: Arc<Fuse>,
    pub(crate) rows: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(super) next: AtomicI64,
    pub(crate) manner: Mutex<Manner>,
}

impl FakeStore {
    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    pub(super) fn consume(&self) {
        let state = self.log.state.lock().unwrap();
        let mut rows = self.rows.lock().unwrap();
        let from = self.next.load(Ordering::SeqCst);
        for record in state.pii.iter().filter(|record| record.offset >= from && !record.key.starts_with('~')) {
            match &record.value {
                Some(value) => drop(rows.insert(record.key.clone(), value.clone())),
                None if self.manner() == Manner::Lies => {}
                None => drop(rows.remove(&record.key)),
            }
        }
        self.next.store(state.next, Ordering::SeqCst);
    }
}

#[async_trait]
impl Forget for FakeStore {
    fn name(&self) -> &str {
        self.name
    }

    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            if self.manner() != Manner::Behind {
                self.consume();
            }
            marks.iter().filter(|mark| mark.topic == PII).all(|mark| mark.offset.0 < self.next.load(Ordering::SeqCst))
        })
    }

    async fn forget(&self, subjects: &[Subject], _extent: Extent) -> Result<u64, StoreError> {
        self.fuse.call(|| {
            let mut rows = self.rows.lock().unwrap();
            let before = rows.len();
            if self.manner() != Manner::Lies {
                let gone: BTreeSet<String> = subjects.iter().map(|subject| format!("{}|{}", subject.seller, subject.token)).collect();
                rows.retain(|key, _| !key.rsplit_once('|').is_some_and(|(subject, _)| gone.contains(subject)));
            }
            u64::try_from(before - rows.len()).unwrap()
        })
    }
}

#[async_trait]
impl Prove for FakeStore {
    fn name(&self) -> &str {
        self.name
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.fuse.call(|| drop(self.rows.lock().unwrap().insert(format!("~canary|{}", control.case), control.block.clone())))
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        if self.manner() == Manner::Unreadable {
            return Err(StoreError { store: self.name.into(), action: "scan sealed_block".into(), code: "io".into() });
        }
        self.fuse.call(|| {
            let rows = self.rows.lock().unwrap();
            let found = |keys: &[KeyId]| {
                rows.values()
                    .filter_map(|row| keys.iter().find(|key| contains(row, **key)).map(|key| (*key, row.clone())))
                    .collect::<Vec<_>>()
            };
            ScanReport {
                store: self.name.into(),
                method: "every row".into(),
                places: vec![Place { name: format!("{}.rows", self.name), read: format!("{} rows", rows.len()) }],
                found: found(&needles.keys)
                    .into_iter()
                    .map(|(key, block)| FoundBlock { place: format!("{}.rows", self.name), key, block })
                    .collect(),
                controls_planted: 1,
                controls_found: if self.manner() == Manner::Forgetful { 0 } else { u64::try_from(found(&needles.controls).len()).unwrap() },
                residual: Vec::new(),
            }
        })
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.fuse.call(|| drop(self.rows.lock().unwrap().remove(&format!("~canary|{case}"))))
    }
}
