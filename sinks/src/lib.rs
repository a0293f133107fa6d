#![doc = include_str!("../README.md")]

pub mod batch;
pub mod beside;
pub mod cells;
mod cold;
#[cfg(test)]
mod contract;
pub mod error;
pub mod find;
mod lookup;
pub mod options;
mod postgres;
pub mod rows;
mod sqlite;
mod store;
pub mod tables;
mod vault;
mod warehouse;

use async_trait::async_trait;
use sunder_retention::store::{Forget, Prove};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::outcome::Outcomes;

pub use error::{Retry, SinkError};
pub use lookup::RowText;
pub use options::StoreOptions;
pub use vault::{Destroyed, Vault};
pub use warehouse::{Warehouse, Withheld};

/// One partition of one incarnation of a topic: offsets mean nothing without all three.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// Full topic name.
    pub topic: String,
    /// The topic's id, or the value of its `~incarnation` record.
    pub incarnation: String,
    /// Partition.
    pub partition: Partition,
}

/// One record of a source, as a sink takes it.
#[derive(Debug, Clone)]
pub enum Change<R> {
    /// The latest version of a row.
    Upsert {
        /// The record's offset.
        offset: Offset,
        /// The row.
        record: R,
    },
    /// A tombstone.
    Delete {
        /// The record's offset.
        offset: Offset,
        /// The record's key, as it lies in the topic.
        key: Vec<u8>,
    },
}

impl<R> Change<R> {
    /// The record's offset.
    pub const fn offset(&self) -> Offset {
        match self {
            Self::Upsert { offset, .. } | Self::Delete { offset, .. } => *offset,
        }
    }
}

/// What one batch came to; `outcomes.total()` is the number of changes that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Where each change ended. Stored also counts a version that a later one of the same batch replaced.
    pub outcomes: Outcomes,
    /// Rows inserted or replaced.
    pub rows_written: u64,
    /// Rows that tombstones removed; fewer than tombstones where the row was not there.
    pub rows_deleted: u64,
}

/// A store that is fed from the log.
///
/// Contract: changes of one `apply` come from one source in the order of their offsets; rows and the next offset are committed in one
/// transaction; calls for different sources may run at once, calls for one source are serialised by the compare-and-set. The store is
/// the authority on its position: the consumer group's committed offset is a hint.
#[async_trait]
pub trait Sink<R>: Forget + Prove {
    /// The next offset to read of `source`; `None` where nothing of it was applied yet: read from the start.
    ///
    /// # Errors
    /// [`SinkError::Rebuild`] where rows of another incarnation of the topic are held: call [`Sink::rebuild`], then read from the start.
    async fn position(&self, source: &Source) -> Result<Option<Offset>, SinkError>;

    /// Applies `changes` and moves the position from `expected` to `next`, in one transaction.
    ///
    /// # Errors
    /// [`SinkError::Moved`] where the stored position is not `expected`: another writer, or a batch applied before; nothing changed.
    async fn apply(&self, source: &Source, expected: Option<Offset>, next: Offset, changes: Vec<Change<R>>) -> Result<Applied, SinkError>;

    /// Removes the rows and positions of other incarnations of `topic`, and returns how many rows went. Idempotent.
    ///
    /// # Errors
    /// [`SinkError::Database`]; nothing was removed.
    async fn rebuild(&self, topic: &str, incarnation: &str) -> Result<u64, SinkError>;
}
