//! The closed list of ends a record can come to. Each input record ends in exactly one; per batch, in = sum of outcomes.

use crate::class::words;
use crate::ids::IdError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

words!(
    /// Why a record was left out without anything being wrong with it.
    FilterReason, "filter reason", "a reason of docs/outcomes.md", {
        /// The same version was published before and acknowledged.
        Unchanged = "unchanged",
        /// A higher source version of the entity is already known.
        Stale = "stale",
        /// The subject is in the erased ledger.
        Erased = "erased",
        /// The business data is older than it may be kept.
        PastPeriod = "past_period",
        /// The pipeline's own record: heartbeat, canary, incarnation.
        Own = "own",
    }
);

words!(
    /// Why a record went to the dead letters; stable, and the page of its remedy is `docs/errors.md`.
    DeadLetterReason, "dead letter reason", "a reason of docs/errors.md", {
        /// Null or empty value on a raw topic.
        EmptyValue = "empty_value",
        /// No Confluent frame.
        NotFramed = "not_framed",
        /// The schema id is not known to the registry.
        UnknownSchema = "unknown_schema",
        /// The schema is known, but is not that of a raw event.
        ForeignSchema = "foreign_schema",
        /// The Avro body does not decode.
        BadAvro = "bad_avro",
        /// The clear part is not the canonical JSON it should be.
        BadClearPart = "bad_clear_part",
        /// A field that the typed record needs is missing or of another type.
        BadField = "bad_field",
        /// The key does not say what the value says.
        KeyMismatch = "key_mismatch",
        /// A sealed block has no valid header.
        BadBlock = "bad_block",
        /// The record lies on another partition than its key demands.
        WrongPartition = "wrong_partition",
    }
);

words!(
    /// Why personal fields of a fetched order were dropped in memory, never sealed (disposition; `open` answers `absent` with it).
    DropReason, "drop reason", "a reason of docs/outcomes.md", {
        /// The order was past its deadline when it was fetched.
        PastDeadline = "past_deadline",
        /// The subject is in the erased ledger.
        Erased = "erased",
        /// The seller's config does not want the group.
        NotWanted = "not_wanted",
        /// Amazon answered 403 to the wanted data.
        AmazonRoleMissing = "amazon_role_missing",
        /// Amazon's answer did not contain it.
        NotSupplied = "not_supplied",
    }
);

/// Where one record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Written to where it belongs.
    Stored,
    /// A deletion, passed on.
    Tombstoned,
    /// Left out, rightly.
    Filtered(FilterReason),
    /// Sealed into the dead-letter topic.
    DeadLettered(DeadLetterReason),
}

/// Counts of outcomes of one batch or run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Records written.
    pub stored: u64,
    /// Tombstones passed on.
    pub tombstoned: u64,
    /// Records left out, by reason in declaration order.
    pub filtered: [u64; FilterReason::ALL.len()],
    /// Records dead-lettered, by reason in declaration order.
    pub dead_lettered: [u64; DeadLetterReason::ALL.len()],
}

impl Outcomes {
    /// Counts one record's end.
    pub fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Stored => self.stored += 1,
            Outcome::Tombstoned => self.tombstoned += 1,
            Outcome::Filtered(reason) => bump(&mut self.filtered, reason as usize),
            Outcome::DeadLettered(reason) => bump(&mut self.dead_lettered, reason as usize),
        }
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.stored += other.stored;
        self.tombstoned += other.tombstoned;
        self.filtered.iter_mut().zip(other.filtered).for_each(|(a, b)| *a += b);
        self.dead_lettered.iter_mut().zip(other.dead_lettered).for_each(|(a, b)| *a += b);
    }

    /// The sum of all outcomes: must equal the number of records that came in.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.stored + self.tombstoned + self.filtered.iter().sum::<u64>() + self.dead_lettered.iter().sum::<u64>()
    }
}

fn bump(counts: &mut [u64], index: usize) {
    if let Some(count) = counts.get_mut(index) {
        *count += 1;
    }
}
