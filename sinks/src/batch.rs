//! A batch reduced to one row per key: pure.
//!
//! One `ON CONFLICT` statement may not touch a row twice, and one statement per batch is what makes a sink fast. The reduction comes to
//! the same rows as applying the changes one after the other: a lower version never replaces a higher one, and a tombstone wipes the
//! slate, so that what follows it is not compared with what stood before.

use std::collections::HashMap;

use sunder_schemas::ids::Offset;
use sunder_schemas::key::is_own;
use sunder_schemas::outcome::{FilterReason, Outcome, Outcomes};

use crate::rows::{Row, RowKey};
use crate::{Change, SinkError, Source};

/// A reduced batch: first the deletes, then the upserts, which stay where they are: a row is a kilobyte and more.
#[derive(Debug)]
pub struct Reduced<'c, R> {
    /// Keys with at least one tombstone.
    pub deletes: Vec<RowKey>,
    /// The rows that remain, each with the offset it came from; no key twice.
    pub upserts: Vec<(Offset, &'c R)>,
    /// Where each change ended, so far as that is known before the store has spoken.
    pub outcomes: Outcomes,
}

/// Reduces `changes`, whose keys have `parts` parts. Tombstones of other keys (heartbeats, strangers' keys) touch nothing.
#[must_use]
pub fn reduce<R: Row>(changes: &[Change<R>], parts: usize) -> Reduced<'_, R> {
    let mut outcomes = Outcomes::default();
    let mut slots: HashMap<RowKey, usize> = HashMap::with_capacity(changes.len());
    let mut rows: Vec<Slot<'_, R>> = Vec::with_capacity(changes.len());
    for change in changes {
        match change {
            Change::Upsert { offset, record } => {
                let next = rows.len();
                let index = *slots.entry(record.key()).or_insert(next);
                match rows.get_mut(index) {
                    None => rows.push(Slot { deleted: false, row: Some((*offset, record)) }),
                    Some(slot) => {
                        if slot.row.as_ref().is_some_and(|(_, held)| held.version() > record.version()) {
                            outcomes.count(Outcome::Filtered(FilterReason::Stale));
                            continue;
                        }
                        slot.row = Some((*offset, record));
                    }
                }
                outcomes.count(Outcome::Stored);
            }
            Change::Delete { key, .. } => {
                let Some(key) = (!is_own(key)).then(|| RowKey::parse(key, parts)).flatten() else {
                    outcomes.count(Outcome::Filtered(FilterReason::Own));
                    continue;
                };
                let next = rows.len();
                let index = *slots.entry(key).or_insert(next);
                match rows.get_mut(index) {
                    None => rows.push(Slot { deleted: true, row: None }),
                    Some(slot) => *slot = Slot { deleted: true, row: None },
                }
                outcomes.count(Outcome::Tombstoned);
            }
        }
    }
    let mut deletes: Vec<(usize, RowKey)> =
        slots.into_iter().filter(|(_, index)| rows.get(*index).is_some_and(|slot| slot.deleted)).map(|(key, index)| (index, key)).collect();
    deletes.sort_unstable_by_key(|(index, _)| *index);
    Reduced {
        deletes: deletes.into_iter().map(|(_, key)| key).collect(),
        upserts: rows.into_iter().filter_map(|slot| slot.row).collect(),
        outcomes,
    }
}

/// What the batch does to one key.
struct Slot<'c, R> {
    deleted: bool,
    row: Option<(Offset, &'c R)>,
}

/// Checks that the changes of a batch lie in `[expected, next)` in rising order.
///
/// # Errors
/// [`SinkError::Batch`] with the first offset that does not.
pub fn check_offsets<R>(source: &Source, expected: Option<Offset>, next: Offset, changes: &[Change<R>]) -> Result<(), SinkError> {
    let refused = |offset, code| SinkError::Batch { topic: source.topic.clone(), partition: source.partition, offset, code };
    let mut floor = expected.unwrap_or(Offset(0));
    if next < floor {
        return Err(refused(next, "the next offset lies below the position"));
    }
    for change in changes {
        let offset = change.offset();
        if offset < floor || offset >= next {
            return Err(refused(offset, "an offset outside the batch or out of order"));
        }
        floor = Offset(offset.0.saturating_add(1));
    }
    Ok(())
}
