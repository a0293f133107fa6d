//! What the log mirrors of the key database, so that a restore from a backup or a failover is noticed: its generation and its server's
//! history, the erased ledger, and whose keys exist.
//!
//! Invariants: the generation rises in SQL before it is published, so the database is never behind its mirror unless it was restored;
//! it lies on the log before the erasures that it covers, so nobody can see those and miss it. All of it lies on `privacy.erased`, which
//! never expires. It does not know how to undo a restore: see [`crate::restore`].

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sunder_schemas::certificate::Iso;
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, KeyId, SellerId};
use sunder_schemas::time::Timestamp;

pub use crate::generation::Generation;
use crate::keydb::{DbError, KeyDb, Write, numbered, on, push_tuples};
use crate::ledger::Destruction;
use crate::outbox::{self, Outgoing};
use crate::store::{EventLog, Extent, OutboxRecord, StoreError};
use crate::turn::Turn;

/// The topic of the mirror: kind and name.
pub const TOPIC: &str = "privacy.erased";
/// Key of the record that names the generation.
pub const GENERATION_KEY: &str = "~generation";
/// What the key of a record about a seller's keys begins with.
const SELLER_PREFIX: &str = "~seller|";

/// A subject that was erased, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedSubject {
    /// Its fingerprint; the record's key.
    pub fingerprint: Fingerprint,
    /// Whose customer.
    pub seller: SellerId,
    /// The data keys it had.
    pub keys: Vec<KeyId>,
    /// Its pseudonym, where it was known.
    pub token: Option<EntityToken>,
    /// How much of it went.
    pub extent: Extent,
    /// For which case.
    pub case: CaseId,
    /// When, by the policy clock.
    pub at: Iso,
    /// In which ledger epoch.
    pub epoch: i64,
    /// What its key sealed of constant text, and the commitment to the key, both in hex: the recover test needs them for ever, and a
    /// restored database does not have those of younger subjects.
    #[serde(default)]
    pub witness: Option<String>,
    /// See `witness`.
    #[serde(default)]
    pub commitment: Option<String>,
}

/// Which keys a seller has, as the log keeps it; never a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SellerKeysExist {
    /// Whose.
    pub seller: SellerId,
    /// Counts readmissions.
    pub generation: i64,
    /// Whether the keys of this generation were destroyed at its off-boarding.
    pub removed: bool,
}

/// One record of the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mirrored {
    /// How far the database was.
    Generation(Generation),
    /// A subject that was erased.
    Erased(ErasedSubject),
    /// A seller's keys.
    Seller(SellerKeysExist),
}

/// A record of the mirror that is not ours, or damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the erased ledger's topic cannot be read")]
pub struct Unreadable;

impl Mirrored {
    /// Reads a record of the topic; `None` for heartbeats, incarnations and tombstones.
    ///
    /// # Errors
    /// [`Unreadable`]: what was erased is not known in full.
    pub fn read(key: &[u8], value: Option<&[u8]>) -> Result<Option<Self>, Unreadable> {
        fn of<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, Unreadable> {
            serde_json::from_slice(value).map_err(|_| Unreadable)
        }
        let Some(value) = value else { return Ok(None) };
        Ok(Some(if key == GENERATION_KEY.as_bytes() {
            Self::Generation(of(value)?)
        } else if key.starts_with(SELLER_PREFIX.as_bytes()) {
            Self::Seller(of(value)?)
        } else if key.starts_with(b"~") {
            return Ok(None);
        } else {
            Self::Erased(of(value)?)
        }))
    }
}

/// How a key database stands against its mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is behind.
    Current,
    /// It is older than its mirror, or of another history: it was restored from a backup, or a standby took over.
    Behind,
    /// The log belongs to another database.
    Foreign,
}

/// Compares `here` with what the log says; pure.
#[must_use]
pub fn standing(here: &Generation, log: Option<&Generation>) -> Standing {
    match log {
        None => Standing::Current,
        Some(log) if log.database != here.database => Standing::Foreign,
        Some(log) if here.is_behind(log) => Standing::Behind,
        Some(_) => Standing::Current,
    }
}

/// How far `db` is.
///
/// # Errors
/// [`DbError`]; of code `restored` where it is behind what this process has seen of it.
pub async fn here(db: &KeyDb) -> Result<Generation, DbError> {
    let found = db.seen().read(db.pool()).await.map_err(on("read the generation"))?;
    db.seen().note(&found);
    Ok(found)
}

/// Raises the generation and returns the record that mirrors it, to be published at once and before anything it covers. Never by way of
/// the outbox: a restored outbox would publish an old one.
///
/// # Errors
/// [`DbError`]: publish nothing.
pub async fn advance(db: &KeyDb) -> Result<OutboxRecord, DbError> {
    let failed = on("raise the generation");
    let mut tx = db.begin_write().await?;
    // One that is behind must not pass for the newest once it was raised.
    db.seen().read(&mut *tx).await.map_err(&failed)?;
    sqlx::query("UPDATE key_generation SET generation = generation + 1 WHERE id = 1").execute(&mut *tx).await.map_err(&failed)?;
    let now = db.seen().read(&mut *tx).await.map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    db.seen().note(&now);
    let value = serde_json::to_string(&now).map_err(|_| DbError::fixed("raise the generation", "not_json"))?;
    Ok(OutboxRecord { id: 0, topic: TOPIC.to_owned(), key: GENERATION_KEY.to_owned(), value: Some(value) })
}

/// Why the generation was not mirrored.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The key database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The log did not take it.
    #[error(transparent)]
    Log(#[from] StoreError),
}

/// Raises the generation and mirrors it: from here on the restore of any backup made before is noticed.
///
/// # Errors
/// [`MirrorError`]: a backup made since the last time it worked may be restored unnoticed.
pub async fn publish(db: &KeyDb, log: &dyn EventLog) -> Result<(), MirrorError> {
    let _turn = Turn::wait(db).await?;
    let record = advance(db).await?;
    log.publish(std::slice::from_ref(&record)).await?;
    Ok(())
}

/// The record of `privacy.erased` about one subject of `destruction`.
pub(crate) fn erased(destruction: &Destruction<'_>, epoch: i64, subject: &ErasedRow) -> Outgoing {
    let value = json!({
        "fingerprint": subject.fingerprint, "seller": destruction.seller, "keys": subject.key.as_slice(), "token": subject.token,
        "extent": if subject.is_withheld { Extent::WithBusinessData } else { Extent::Personal },
        "case": destruction.case, "at": destruction.at.to_iso(), "epoch": epoch,
        "witness": subject.witness.as_ref().map(hex::encode), "commitment": subject.commitment.as_ref().map(hex::encode),
    });
    Outgoing { topic: TOPIC, key: subject.fingerprint.to_hex(), value: Some(value.to_string()) }
}

/// A subject's row after its destruction.
#[derive(Debug, Clone)]
pub(crate) struct ErasedRow {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) token: Option<EntityToken>,
    pub(crate) key: Option<KeyId>,
    pub(crate) is_withheld: bool,
    pub(crate) witness: Option<Vec<u8>>,
    pub(crate) commitment: Option<Vec<u8>>,
}

/// The key of the record about a seller's keys.
pub(crate) fn seller_key(seller: &SellerId) -> String {
    format!("{SELLER_PREFIX}{seller}")
}

/// Drops within `tx` what waits to be told under `keys`: at most `ROWS_PER_STATEMENT`.
pub(crate) async fn untell(tx: &mut Write, keys: &[String]) -> Result<(), DbError> {
    let mut sql = "DELETE FROM outbox WHERE topic = $1 AND record_key IN ".to_owned();
    push_tuples(&mut sql, 1, keys.len(), 2);
    let mut query = sqlx::query(numbered(tx, sql)).persistent(false).bind(TOPIC);
    for key in keys {
        query = query.bind(key.clone());
    }
    query.execute(&mut **tx).await.map_err(on("clear the outbox")).map(|_| ())
}

/// Tells the log within `tx` which keys a seller has.
pub(crate) async fn seller(tx: &mut Write, seller: &SellerId, generation: i64, removed: bool) -> Result<(), DbError> {
    let value = json!({ "seller": seller, "generation": generation, "removed": removed });
    outbox::push(tx, &[Outgoing { topic: TOPIC, key: seller_key(seller), value: Some(value.to_string()) }]).await
}

/// A restore that was noticed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Noticed {
    /// Position.
    pub id: i64,
    /// `keys`, `vault` or `warehouse`.
    pub store: String,
    /// When, by the policy clock.
    pub at: Iso,
    /// Whether what was lost is counted: until then blocks whose key is unknown may be on their way to be sealed anew.
    pub is_settled: bool,
    /// What was done, and what cannot be had again.
    pub report: serde_json::Value,
}

/// Writes down a restore of `store` within `tx`.
pub(crate) async fn note(tx: &mut Write, store: &str, at: Timestamp, state: &str, report: &serde_json::Value) -> Result<(), DbError> {
    sqlx::query("INSERT INTO restored (store, noticed_at, state, report) VALUES ($1, $2, $3, $4)")
        .bind(store.to_owned())
        .bind(at.0)
        .bind(state.to_owned())
        .bind(report.to_string())
        .execute(&mut **tx)
        .await
        .map_err(on("note a restore"))
        .map(|_| ())
}

/// The restores that were noticed, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn noticed(db: &KeyDb) -> Result<Vec<Noticed>, DbError> {
    let failed = on("read the restores");
    let rows =
        sqlx::query("SELECT id, store, noticed_at, state, report FROM restored ORDER BY id").fetch_all(db.pool()).await.map_err(&failed)?;
    rows.iter()
        .map(|row| {
            let report: String = row.try_get(4).map_err(&failed)?;
            Ok(Noticed {
                id: row.try_get(0).map_err(&failed)?,
                store: row.try_get(1).map_err(&failed)?,
                at: Iso(Timestamp(row.try_get(2).map_err(&failed)?)),
                is_settled: row.try_get::<String, _>(3).map_err(&failed)? == "settled",
                report: serde_json::from_str(&report).map_err(|_| DbError::fixed("read the restores", "not_json"))?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(database: &str, generation: i64, epoch: i64) -> Generation {
        Generation { database: database.to_owned(), generation, epoch, history: None }
    }

    #[test]
    fn a_database_behind_its_mirror_was_restored() {
        let here = generation("a", 5, 7);
        assert_eq!(standing(&here, None), Standing::Current);
        assert_eq!(standing(&here, Some(&generation("a", 5, 7))), Standing::Current);
        assert_eq!(standing(&here, Some(&generation("a", 4, 7))), Standing::Current, "not published yet");
        assert_eq!(standing(&here, Some(&generation("a", 6, 7))), Standing::Behind);
        assert_eq!(standing(&here, Some(&generation("a", 5, 8))), Standing::Behind);
        assert_eq!(standing(&here, Some(&generation("b", 1, 1))), Standing::Foreign);
    }

    #[test]
    fn what_is_not_the_mirrors_is_told_from_what_is_damaged() {
        assert_eq!(Mirrored::read(b"~hb", None), Ok(None));
        assert_eq!(Mirrored::read(b"~incarnation", Some(b"x")), Ok(None));
        assert_eq!(Mirrored::read(b"00ff", Some(b"{}")), Err(Unreadable));
        assert_eq!(Mirrored::read(b"~generation", Some(b"{")), Err(Unreadable));
        let text = br#"{"database":"a","generation":3,"epoch":4}"#;
        assert_eq!(Mirrored::read(b"~generation", Some(text)), Ok(Some(Mirrored::Generation(generation("a", 3, 4)))));
    }
}
