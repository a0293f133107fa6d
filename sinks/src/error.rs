//! What can go wrong in a store, as codes and places.
//!
//! A database's own text quotes values, so none of it gets past this module: an error carries the SQLSTATE (or a short word) alone.

use sunder_retention::dbcode;
use sunder_retention::store::StoreError;
use sunder_schemas::ids::{Offset, Partition};

/// What a caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same call again, later and later.
    Backoff,
    /// Not without a change: read the position again, rebuild, or correct the config.
    Never,
}

/// An error of a sink.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The stored position is not the expected one: somebody else writes this source, or the batch was applied before.
    #[error("position of {topic}[{partition}] is {}, not {}", at(*.stored), at(*.expected))]
    Moved {
        /// Full topic name.
        topic: String,
        /// Partition.
        partition: Partition,
        /// What the caller expected.
        expected: Option<Offset>,
        /// What is stored.
        stored: Option<Offset>,
    },
    /// The store holds rows of another incarnation of the topic.
    #[error("{topic} was made anew (held: {held}): its rows must be rebuilt")]
    Rebuild {
        /// Full topic name.
        topic: String,
        /// The incarnation whose rows are held.
        held: String,
    },
    /// A batch that breaks the contract: offsets outside `[expected, next)` or out of order, or a record that is not of this topic.
    #[error("batch of {topic}[{partition}] at offset {offset} was refused: {code}")]
    Batch {
        /// Full topic name.
        topic: String,
        /// Partition.
        partition: Partition,
        /// Offset of the change that was refused.
        offset: Offset,
        /// A short stable code.
        code: &'static str,
    },
    /// The options do not name a store that can be opened.
    #[error("{store} cannot be opened: {code}")]
    Options {
        /// Which store.
        store: &'static str,
        /// What is wrong, in words without the URL.
        code: &'static str,
    },
    /// The database did not do it.
    #[error("{store} could not {action}: {code}")]
    Database {
        /// Which store.
        store: &'static str,
        /// What was tried.
        action: &'static str,
        /// SQLSTATE, SQLite result code or a short word.
        code: String,
        /// Whether the same call may succeed later.
        retry: Retry,
    },
}

fn at(offset: Option<Offset>) -> String {
    offset.map_or_else(|| "unset".to_owned(), |offset| offset.to_string())
}

impl SinkError {
    /// Whether to call again.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Database { retry, .. } => *retry,
            Self::Moved { .. } | Self::Rebuild { .. } | Self::Batch { .. } | Self::Options { .. } => Retry::Never,
        }
    }

    /// A closure that turns a driver's error into this one, without its text.
    pub(crate) fn of(store: &'static str, action: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |error| {
            let (code, retry) = code_of(&error);
            Self::Database { store, action, code, retry }
        }
    }

    /// This error as the cases of retention see it.
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            Self::Database { store, action, code, .. } => StoreError { store: store.to_owned(), action: action.to_owned(), code },
            Self::Options { store, code } => StoreError { store: store.to_owned(), action: "open".to_owned(), code: code.to_owned() },
            Self::Moved { topic, .. } => StoreError { store: topic, action: "move the position".to_owned(), code: "moved".to_owned() },
            Self::Rebuild { topic, .. } => StoreError { store: topic, action: "read the position".to_owned(), code: "rebuild".to_owned() },
            Self::Batch { topic, code, .. } => StoreError { store: topic, action: "apply".to_owned(), code: code.to_owned() },
        }
    }
}

/// The code of a driver's error and whether the same call may succeed later.
fn code_of(error: &sqlx::Error) -> (String, Retry) {
    match error {
        sqlx::Error::Database(inner) => {
            let (code, passes) = dbcode::answered(&**inner);
            (code, if passes { Retry::Backoff } else { Retry::Never })
        }
        sqlx::Error::InvalidSavePointStatement | sqlx::Error::BeginFailed => ("transaction_lost".to_owned(), Retry::Backoff),
        sqlx::Error::Io(_) => ("io".to_owned(), Retry::Backoff),
        sqlx::Error::Tls(_) => ("tls".to_owned(), Retry::Backoff),
        sqlx::Error::Protocol(_) => ("protocol".to_owned(), Retry::Backoff),
        sqlx::Error::PoolTimedOut => ("unreachable".to_owned(), Retry::Backoff),
        sqlx::Error::PoolClosed => ("closed".to_owned(), Retry::Never),
        sqlx::Error::WorkerCrashed => ("worker_crashed".to_owned(), Retry::Backoff),
        sqlx::Error::RowNotFound => ("row_not_found".to_owned(), Retry::Never),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => ("decode".to_owned(), Retry::Never),
        sqlx::Error::Encode(_) => ("encode".to_owned(), Retry::Never),
        _ => ("driver".to_owned(), Retry::Never),
    }
}
