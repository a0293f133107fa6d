//! Cursors, gaps, and the record of a page that Kafka acknowledged.
//!
//! Invariants: a cursor moves by compare-and-set, in the transaction that records what became of its page; a window that cannot be read
//! is an open gap, never skipped.

use std::collections::BTreeMap;

use sqlx::Row;
use sunder_schemas::class::{Dataset, FieldGroup};
use sunder_schemas::ids::{EntityToken, EventId, Fingerprint, SellerId};
use sunder_schemas::time::Timestamp;

use crate::keydb::{DbError, KeyDb, ROWS_PER_STATEMENT, Write, numbered, on, push_tuples};
use crate::keys::{KeyError, Keyring};
use crate::ledger::{self, Fate};

/// How far a seller's dataset has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Rises by one with each move; what compare-and-set compares.
    pub version: i64,
    /// Everything changed before it is acknowledged by Kafka.
    pub position: Timestamp,
    /// JSON of the poller's own.
    pub detail: String,
}

/// A cursor's move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorMove {
    /// Which.
    pub dataset: Dataset,
    /// The version it was read at; 0 where there was no cursor.
    pub expected_version: i64,
    /// Where it goes.
    pub position: Timestamp,
    /// JSON of the poller's own.
    pub detail: String,
}

/// What became of one group of one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disposition {
    /// The order.
    pub token: EntityToken,
    /// Which fields.
    pub group: FieldGroup,
    /// What became of them.
    pub fate: Fate,
}

/// An event that Kafka acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its subject.
    pub fingerprint: Fingerprint,
    /// Its id.
    pub event_id: EventId,
    /// Its source version, in ms.
    pub source_version: i64,
}

/// What is recorded once a page's events are acknowledged.
#[derive(Debug, Clone, Default)]
pub struct PageCommit {
    /// What became of personal fields.
    pub dispositions: Vec<Disposition>,
    /// The acknowledged events of subjects.
    pub published: Vec<Published>,
    /// The cursor's move; `None` within a window of several pages.
    pub cursor: Option<CursorMove>,
    /// Fetched values without a rule, by catalogue version and path up to the last known property.
    pub unclassified: BTreeMap<(String, String), u64>,
}

/// A window that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Whose.
    pub seller: SellerId,
    /// Of what.
    pub dataset: Dataset,
    /// Start of the window.
    pub from: Timestamp,
    /// End of the window.
    pub until: Timestamp,
    /// What stopped it, as a code.
    pub code: String,
    /// How often it was tried.
    pub tries: i64,
    /// Whether it is still open.
    pub is_open: bool,
}

/// Reads a cursor; `None` where the dataset was never read.
///
/// # Errors
/// [`DbError`].
pub async fn read(db: &KeyDb, seller: &SellerId, dataset: Dataset) -> Result<Option<Cursor>, DbError> {
    let failed = on("read a cursor");
    let row = sqlx::query("SELECT version, position, detail FROM poll_cursor WHERE seller = $1 AND dataset = $2")
        .bind(seller.as_str().to_owned())
        .bind(dataset.as_str())
        .fetch_optional(db.pool())
        .await
        .map_err(&failed)?;
    row.map(|row| Ok(Cursor { version: row.try_get(0)?, position: Timestamp(row.try_get(1)?), detail: row.try_get(2)? }))
        .transpose()
        .map_err(|e: sqlx::Error| failed(e))
}

/// Moves a cursor within `tx`; `false` where another process moved it first.
///
/// # Errors
/// [`DbError`].
pub async fn advance(tx: &mut Write, seller: &SellerId, to: &CursorMove, now: Timestamp) -> Result<bool, DbError> {
    let sql = if to.expected_version == 0 {
        "INSERT INTO poll_cursor (seller, dataset, version, position, detail, updated_at) VALUES ($1, $2, $6 + 1, $3, $4, $5) \
         ON CONFLICT (seller, dataset) DO NOTHING"
    } else {
        "UPDATE poll_cursor SET version = version + 1, position = $3, detail = $4, updated_at = $5 WHERE seller = $1 AND dataset = $2 AND version = $6"
    };
    let done = sqlx::query(sql)
        .bind(seller.as_str().to_owned())
        .bind(to.dataset.as_str())
        .bind(to.position.0)
        .bind(to.detail.clone())
        .bind(now.0)
        .bind(to.expected_version)
        .execute(&mut **tx)
        .await
        .map_err(on("move a cursor"))?;
    Ok(done.rows_affected() == 1)
}

/// Sets the cursors of `dataset` back to `to` where they are past it, for one seller or all: offsets were lost, or a topic was made
/// anew. Pollers at work lose their compare-and-set and read the cursor again. Returns how many were moved.
///
/// # Errors
/// [`DbError`].
pub async fn rewind(tx: &mut Write, seller: Option<&SellerId>, dataset: Dataset, to: Timestamp, now: Timestamp) -> Result<u64, DbError> {
    let done = sqlx::query(
        "UPDATE poll_cursor SET version = version + 1, position = $1, updated_at = $2 \
         WHERE dataset = $3 AND position > $1 AND (seller = $4 OR $4 = '')",
    )
    .bind(to.0)
    .bind(now.0)
    .bind(dataset.as_str())
    .bind(seller.map_or(String::new(), ToString::to_string))
    .execute(&mut **tx)
    .await
    .map_err(on("rewind cursors"))?;
    Ok(done.rows_affected())
}

/// Forgets which events were published last, so that polling again publishes them again: goes with [`rewind`].
///
/// # Errors
/// [`DbError`].
pub async fn forget_published(tx: &mut Write, seller: Option<&SellerId>) -> Result<u64, DbError> {
    let done =
        sqlx::query("UPDATE subject SET event_id = NULL, event_version = NULL WHERE event_id IS NOT NULL AND (seller = $1 OR $1 = '')")
            .bind(seller.map_or(String::new(), ToString::to_string))
            .execute(&mut **tx)
            .await
            .map_err(on("forget published events"))?;
    Ok(done.rows_affected())
}

/// Opens a gap, or counts one more try of it.
///
/// # Errors
/// [`DbError`].
pub async fn open_gap(tx: &mut Write, gap: &Gap, now: Timestamp) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO poll_gap (seller, dataset, from_ms, until_ms, code, tries, state, opened_at) VALUES ($1, $2, $3, $4, $5, $6, 'open', $7) \
         ON CONFLICT (seller, dataset, from_ms) DO UPDATE SET until_ms = excluded.until_ms, code = excluded.code, \
         tries = poll_gap.tries + excluded.tries, state = 'open', closed_at = NULL",
    )
    .bind(gap.seller.as_str().to_owned())
    .bind(gap.dataset.as_str())
    .bind(gap.from.0)
    .bind(gap.until.0)
    .bind(gap.code.clone())
    .bind(gap.tries)
    .bind(now.0)
    .execute(&mut **tx)
    .await
    .map_err(on("open a gap"))
    .map(|_| ())
}

/// Closes the open gaps that lie within the window: it was read.
///
/// # Errors
/// [`DbError`].
pub async fn close_gaps(
    tx: &mut Write,
    seller: &SellerId,
    dataset: Dataset,
    window: (Timestamp, Timestamp),
    now: Timestamp,
) -> Result<u64, DbError> {
    let done = sqlx::query(
        "UPDATE poll_gap SET state = 'closed', closed_at = $1 \
         WHERE seller = $2 AND dataset = $3 AND state = 'open' AND from_ms >= $4 AND until_ms <= $5",
    )
    .bind(now.0)
    .bind(seller.as_str().to_owned())
    .bind(dataset.as_str())
    .bind(window.0.0)
    .bind(window.1.0)
    .execute(&mut **tx)
    .await
    .map_err(on("close gaps"))?;
    Ok(done.rows_affected())
}

/// The open gaps, oldest first; of one seller or of all.
///
/// # Errors
/// [`DbError`].
pub async fn open_gaps(db: &KeyDb, seller: Option<&SellerId>) -> Result<Vec<Gap>, DbError> {
    let failed = on("read gaps");
    let rows = sqlx::query(
        "SELECT seller, dataset, from_ms, until_ms, code, tries FROM poll_gap WHERE state = 'open' AND (seller = $1 OR $1 = '') ORDER BY from_ms",
    )
    .bind(seller.map_or(String::new(), ToString::to_string))
    .fetch_all(db.pool())
    .await
    .map_err(&failed)?;
    let bad = |_| DbError::fixed("read gaps", "bad_column");
    rows.iter()
        .map(|row| {
            Ok(Gap {
                seller: row.try_get::<String, _>(0).map_err(&failed)?.parse().map_err(bad)?,
                dataset: row.try_get::<String, _>(1).map_err(&failed)?.parse().map_err(bad)?,
                from: Timestamp(row.try_get(2).map_err(&failed)?),
                until: Timestamp(row.try_get(3).map_err(&failed)?),
                code: row.try_get(4).map_err(&failed)?,
                tries: row.try_get(5).map_err(&failed)?,
                is_open: true,
            })
        })
        .collect()
}

/// See [`Keyring::commit_page`].
pub(crate) async fn commit_page(keyring: &Keyring, seller: &SellerId, page: PageCommit) -> Result<(), KeyError> {
    let now = keyring.now();
    let mut tx = keyring.db().begin_write().await?;
    ledger::lock_seller(&mut tx, seller).await?;
    if let Some(to) = &page.cursor
        && !advance(&mut tx, seller, to, now).await?
    {
        tx.rollback().await.map_err(on("move a cursor"))?;
        return Err(KeyError::CursorMoved { seller: seller.clone(), dataset: to.dataset.as_str() });
    }
    record_published(&mut tx, seller, page.published, now).await?;
    record_dispositions(&mut tx, seller, page.dispositions, now).await?;
    record_unclassified(&mut tx, page.unclassified, now).await?;
    tx.commit().await.map_err(on("record a page"))?;
    Ok(())
}

async fn record_published(tx: &mut Write, seller: &SellerId, mut published: Vec<Published>, now: Timestamp) -> Result<(), DbError> {
    // In one order everywhere, so that two processes never wait for each other's rows; of one subject the highest version stays.
    published.sort_unstable_by_key(|p| (p.fingerprint, std::cmp::Reverse(p.source_version)));
    published.dedup_by_key(|p| p.fingerprint);
    for chunk in published.chunks(ROWS_PER_STATEMENT) {
        // Every row exists since admission; the columns of an insert are those that may not be null.
        let mut sql = "INSERT INTO subject (fingerprint, seller, state, created_at, event_id, event_version) VALUES ".to_owned();
        push_tuples(&mut sql, chunk.len(), 6, 1);
        sql.push_str(
            " ON CONFLICT (fingerprint) DO UPDATE SET event_id = excluded.event_id, event_version = excluded.event_version \
             WHERE subject.event_version IS NULL OR subject.event_version <= excluded.event_version",
        );
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for event in chunk {
            query = query
                .bind(event.fingerprint.0.to_vec())
                .bind(seller.as_str().to_owned())
                .bind("none")
                .bind(now.0)
                .bind(event.event_id.to_string())
                .bind(event.source_version);
        }
        query.execute(&mut **tx).await.map_err(on("record published events"))?;
    }
    Ok(())
}

async fn record_unclassified(tx: &mut Write, paths: BTreeMap<(String, String), u64>, now: Timestamp) -> Result<(), DbError> {
    for ((classification, path), count) in paths {
        sqlx::query(
            "INSERT INTO unclassified_field (classification, path, seen, last_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (classification, path) DO UPDATE SET seen = unclassified_field.seen + excluded.seen, last_at = excluded.last_at",
        )
        .bind(classification)
        .bind(path)
        .bind(i64::try_from(count).unwrap_or(i64::MAX))
        .bind(now.0)
        .execute(&mut **tx)
        .await
        .map_err(on("record unclassified fields"))?;
    }
    Ok(())
}

/// Fields that were fetched and have no rule: catalogue version and path up to the last known property, with how many values were seen.
///
/// # Errors
/// [`DbError`].
pub async fn unclassified(db: &KeyDb) -> Result<Vec<(String, u64)>, DbError> {
    let failed = on("list unclassified fields");
    let rows = sqlx::query("SELECT classification, path, seen FROM unclassified_field ORDER BY classification, path")
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
    rows.iter()
        .map(|row| {
            let (classification, path): (String, String) = (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?);
            let seen: i64 = row.try_get(2).map_err(&failed)?;
            Ok((format!("{path} ({classification})"), seen.unsigned_abs()))
        })
        .collect()
}

async fn record_dispositions(tx: &mut Write, seller: &SellerId, mut rows: Vec<Disposition>, now: Timestamp) -> Result<(), DbError> {
    // A later disposition of the same group in one page replaces the earlier: reverse before the stable sort keeps the last one first.
    rows.reverse();
    rows.sort_by_key(|d| (d.token, d.group));
    rows.dedup_by_key(|d| (d.token, d.group));
    for chunk in rows.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "INSERT INTO disposition (seller, token, field_group, fate, at) VALUES ".to_owned();
        push_tuples(&mut sql, chunk.len(), 5, 1);
        sql.push_str(" ON CONFLICT (seller, token, field_group) DO UPDATE SET fate = excluded.fate, at = excluded.at");
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for row in chunk {
            query = query
                .bind(seller.as_str().to_owned())
                .bind(row.token.0.to_vec())
                .bind(row.group.as_str())
                .bind(row.fate.as_str())
                .bind(now.0);
        }
        query.execute(&mut **tx).await.map_err(on("record dispositions"))?;
    }
    Ok(())
}

/// The incarnation of `topic` that the cursors belong to; `None` where none was recorded.
///
/// # Errors
/// [`DbError`].
pub async fn known_incarnation(db: &KeyDb, topic: &str) -> Result<Option<String>, DbError> {
    let failed = on("read a topic's incarnation");
    let row = sqlx::query("SELECT incarnation FROM topic_incarnation WHERE topic = $1")
        .bind(topic.to_owned())
        .fetch_optional(db.pool())
        .await
        .map_err(&failed)?;
    row.map(|row| row.try_get(0).map_err(&failed)).transpose()
}

/// Records that the cursors belong to `incarnation` of `topic` from now on. Goes with [`rewind`] where it changed.
///
/// # Errors
/// [`DbError`].
pub async fn record_incarnation(tx: &mut Write, topic: &str, incarnation: &str, now: Timestamp) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO topic_incarnation (topic, incarnation, seen_at) VALUES ($1, $2, $3) \
         ON CONFLICT (topic) DO UPDATE SET incarnation = excluded.incarnation, seen_at = excluded.seen_at",
    )
    .bind(topic.to_owned())
    .bind(incarnation.to_owned())
    .bind(now.0)
    .execute(&mut **tx)
    .await
    .map_err(on("record a topic's incarnation"))
    .map(|_| ())
}
