//! The transactional outbox: a record is written in the transaction of what it tells, and goes to its topic afterwards.
//!
//! Invariants: nothing is published that was not committed; nothing committed is forgotten; a record may be published twice after a
//! crash, so every value names its case, key or sequence number; one process at a time publishes, in order.

use sqlx::Row;

use crate::keydb::{DbError, KeyDb, ROWS_PER_STATEMENT, Write, numbered, on, push_tuples};
use crate::mirror;
use crate::store::{EventLog, OutboxRecord, StoreError};
use crate::turn::Turn;

/// A record to be published: topic kind and name, key, JSON value (`None`: tombstone).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Topic kind and name without prefix and version, e.g. `privacy.erased`.
    pub topic: &'static str,
    /// Record key.
    pub key: String,
    /// JSON value.
    pub value: Option<String>,
}

/// Adds `records` in order, within the transaction `tx`.
///
/// # Errors
/// [`DbError`].
pub async fn push(tx: &mut Write, records: &[Outgoing]) -> Result<(), DbError> {
    for chunk in records.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "INSERT INTO outbox (topic, record_key, record_value) VALUES ".to_owned();
        push_tuples(&mut sql, chunk.len(), 3, 1);
        // Only placeholders were added to the fixed text.
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for record in chunk {
            query = query.bind(record.topic).bind(record.key.clone()).bind(record.value.clone());
        }
        query.execute(&mut **tx).await.map_err(on("write the outbox"))?;
    }
    Ok(())
}

/// The oldest `limit` records that wait.
///
/// # Errors
/// [`DbError`].
pub async fn waiting(db: &KeyDb, limit: i64) -> Result<Vec<OutboxRecord>, DbError> {
    let failed = on("read the outbox");
    sqlx::query("SELECT id, topic, record_key, record_value FROM outbox ORDER BY id LIMIT $1")
        .bind(limit)
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?
        .iter()
        .map(|row| Ok(OutboxRecord { id: row.try_get(0)?, topic: row.try_get(1)?, key: row.try_get(2)?, value: row.try_get(3)? }))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(&failed)
}

/// Removes published records.
///
/// # Errors
/// [`DbError`]; they will be published again, which is harmless.
pub async fn published(db: &KeyDb, records: &[OutboxRecord]) -> Result<(), DbError> {
    let mut write = db.begin_write().await?;
    let tx = &mut write;
    for chunk in records.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "DELETE FROM outbox WHERE id IN ".to_owned();
        push_tuples(&mut sql, 1, chunk.len(), 1);
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for record in chunk {
            query = query.bind(record.id);
        }
        query.execute(&mut **tx).await.map_err(on("clear the outbox"))?;
    }
    write.commit().await.map_err(on("clear the outbox"))
}

/// Why the outbox could not be emptied.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The key database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The event log failed.
    #[error(transparent)]
    Log(#[from] StoreError),
}

/// Publishes what waits until nothing does; returns how many records went.
///
/// # Errors
/// [`DrainError`]: the rest waits for the next call.
pub async fn drain(db: &KeyDb, log: &dyn EventLog) -> Result<u64, DrainError> {
    const BATCH: i64 = 5000;
    let mut count = 0;
    if waiting(db, 1).await?.is_empty() {
        return Ok(count);
    }
    // Read before it was another's turn, they would be published behind what that one told of the same keys.
    let _turn = Turn::wait(db).await?;
    loop {
        let records = waiting(db, BATCH).await?;
        if records.is_empty() {
            return Ok(count);
        }
        // What was told must not be undone by a backup: an erasure, but a request, a certificate or a row of the audit chain as well. A
        // generation lies before it on the log, by which a restore is noticed.
        let mut covered = vec![mirror::advance(db).await?];
        covered.extend(records.iter().cloned());
        log.publish(&covered).await?;
        published(db, &records).await?;
        count += records.len() as u64;
    }
}
