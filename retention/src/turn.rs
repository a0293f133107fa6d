//! One process at a time tells the log: what two tell side by side would arrive in either order, and an older generation or a weaker
//! erasure would be the newest record of its key.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::Executor;

use crate::keydb::{DbError, Dialect, KeyDb, Write, on};

/// Waits for the turn, and lets go of it where its holder fell silent: its server ends a transaction that does nothing for so long. Both
/// are chosen: a record waits for two minutes at most until Kafka has it (`message.timeout.ms`), and then fails.
const LIMITS: &str = "SET LOCAL lock_timeout = '60s'; SET LOCAL idle_in_transaction_session_timeout = '300s'";
/// What an error says was done.
const ACTION: &str = "wait for the turn to tell the log";
/// Another lock than that of the migrations.
const LOCK: &str = "SELECT pg_advisory_xact_lock(126943972910451)";
/// How long to wait for it on SQLite (as `lock_timeout` of [`LIMITS`]), and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The turn to tell; over when dropped, or when its process dies.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A transaction that writes nothing.
    Postgres(#[expect(dead_code, reason = "held")] Write),
    /// A lock on the folder of the database: on its file it would end SQLite's own locks.
    Sqlite(#[expect(dead_code, reason = "held")] File),
}

impl Turn {
    /// Waits for the turn.
    ///
    /// # Errors
    /// [`DbError`]; of code `locked` where another holds it for too long.
    pub(crate) async fn wait(db: &KeyDb) -> Result<Self, DbError> {
        let failed = on(ACTION);
        match db.dialect() {
            Dialect::Postgres => {
                let mut tx = db.begin_write().await?;
                sqlx::raw_sql(LIMITS).execute(&mut *tx).await.map_err(&failed)?;
                tx.execute(LOCK).await.map_err(&failed)?;
                Ok(Self::Postgres(tx))
            }
            Dialect::Sqlite => Self::of_folder(&db.folder()).await,
        }
    }

    async fn of_folder(folder: &Path) -> Result<Self, DbError> {
        let folder = File::open(folder).map_err(|_| DbError::fixed(ACTION, "folder_gone"))?;
        let began = Instant::now();
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(Self::Sqlite(folder)),
                Err(TryLockError::WouldBlock) if began.elapsed() < WAIT_MAX => tokio::time::sleep(LOOK_EVERY).await,
                Err(TryLockError::WouldBlock) => return Err(DbError { action: ACTION, code: "locked".to_owned(), retry: true }),
                Err(TryLockError::Error(error)) => return Err(DbError::fixed(ACTION, &error.kind().to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_one_waits_until_the_first_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = Turn::of_folder(folder.path()).await.unwrap();
        let second = Turn::of_folder(folder.path());
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("both have it"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        second.await.unwrap();
    }
}
