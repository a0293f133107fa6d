//! How far a key database is, and whether it is still the one that this process began with.
//!
//! Invariant: no connection of a [`crate::keydb::KeyDb`] reaches a database that is older than this process has seen it, or whose server
//! has another history. Where a backup was restored or a standby took over under a running process, it can so neither write down what
//! rests on rows that are lost, nor tell the log that the older database is the newest.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sqlx::{Any, AnyConnection, Executor, Row};
use tokio::sync::watch;

use crate::keydb::Dialect;

/// How far a key database, or its mirror, is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Which database: random, made with it; a restored copy has the same.
    pub database: String,
    /// Rises with every publication.
    pub generation: i64,
    /// The ledger epoch at that time.
    pub epoch: i64,
    /// Which history of its server it belonged to, where that tells: on PostgreSQL the cluster's identifier and its timeline, which a
    /// promoted standby and a restore to a point in time each begin anew (PostgreSQL manual, section 26.3.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<String>,
}

impl Generation {
    /// Whether what was committed after `other` may be missing here: another database, an older one, or one whose server's history
    /// forked since.
    #[must_use]
    pub fn is_behind(&self, other: &Self) -> bool {
        let has_forked = matches!((&self.history, &other.history), (Some(a), Some(b)) if a != b);
        self.database != other.database || self.generation < other.generation || self.epoch < other.epoch || has_forked
    }
}

/// A database that is behind what this process has seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key database is older than this process has seen it, or its server's history is another")]
pub struct Older;

/// What this process has seen of its database.
#[derive(Debug)]
pub(crate) struct Seen {
    newest: Mutex<Newest>,
    is_older: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Newest {
    generation: Option<Generation>,
    history: Option<String>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { newest: Mutex::default(), is_older: watch::Sender::new(false) }
    }
}

impl Seen {
    /// Reads on `connection` how far the database is. What is read may be uncommitted: see [`Seen::note`].
    ///
    /// # Errors
    /// [`sqlx::Error`]; [`sqlx::Error::Io`] of [`Older`] where it is behind what was seen before the call, and from then on
    /// [`Seen::until_older`] is over.
    pub(crate) async fn read(&self, connection: impl Executor<'_, Database = Any>) -> Result<Generation, sqlx::Error> {
        // Others may see a newer one while this is read.
        let (floor, history) = {
            let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            (newest.generation.clone(), newest.history.clone())
        };
        const HERE: &str =
            "SELECT g.database_id, g.generation, e.epoch FROM key_generation g JOIN ledger_epoch e ON e.id = g.id WHERE g.id = 1";
        let row = connection.fetch_one(HERE).await?;
        let found = Generation { database: row.try_get(0)?, generation: row.try_get(1)?, epoch: row.try_get(2)?, history };
        if floor.is_some_and(|floor| found.is_behind(&floor)) {
            return Err(self.older());
        }
        Ok(found)
    }

    /// Keeps what was read, once it is committed.
    pub(crate) fn note(&self, found: &Generation) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.generation.as_ref().is_none_or(|newest| !found.is_behind(newest)) {
            newest.generation = Some(found.clone());
        }
    }

    /// Looks at a new connection before it is used.
    ///
    /// # Errors
    /// As [`Seen::read`].
    pub(crate) async fn admit(&self, connection: &mut AnyConnection, dialect: Dialect) -> Result<(), sqlx::Error> {
        let history = history(connection, dialect).await?;
        let has_begun = {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            match (&newest.history, history) {
                (Some(seen), Some(found)) if *seen != found => {
                    drop(newest);
                    return Err(self.older());
                }
                (None, Some(found)) => newest.history = Some(found),
                _ => {}
            }
            newest.generation.is_some()
        };
        // The first connection finds a database whose tables may have to be made.
        if has_begun {
            self.read(connection).await?;
        }
        Ok(())
    }

    /// Whether a connection found the database behind.
    pub(crate) fn is_older(&self) -> bool {
        *self.is_older.borrow()
    }

    /// Waits until a connection found the database behind.
    pub(crate) async fn until_older(&self) {
        // The sender lives as long as this.
        drop(self.is_older.subscribe().wait_for(|is_older| *is_older).await);
    }

    fn older(&self) -> sqlx::Error {
        self.is_older.send_replace(true);
        sqlx::Error::Io(std::io::Error::other(Older))
    }
}

/// Whether `error` says that the database is behind.
pub(crate) fn is_older(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Older>()))
}

/// SQLSTATEs of a server of another make, or of a role with fewer rights: not supported, no such function, insufficient privilege.
const DOES_NOT_TELL: [&str; 3] = ["0A000", "42883", "42501"];

/// The history of the server behind `connection`; SQLite has none.
async fn history(connection: &mut AnyConnection, dialect: Dialect) -> Result<Option<String>, sqlx::Error> {
    const HISTORY: &str = "SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM pg_control_system()";
    if dialect == Dialect::Sqlite {
        return Ok(None);
    }
    match connection.fetch_one(HISTORY).await {
        Ok(row) => row.try_get(0).map(Some),
        Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| DOES_NOT_TELL.contains(&&*code)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_another_history_may_have_lost_what_came_last() {
        let of =
            |history: Option<&str>| Generation { database: "a".to_owned(), generation: 5, epoch: 7, history: history.map(str::to_owned) };
        assert!(!of(Some("1/1")).is_behind(&of(Some("1/1"))));
        assert!(of(Some("1/2")).is_behind(&of(Some("1/1"))));
        assert!(!of(Some("1/2")).is_behind(&of(None)), "it is not known of which it was");
        assert!(!of(None).is_behind(&of(Some("1/1"))), "the server does not tell");
    }
}
