//! The audit log: who did what to which subject, each row carrying the hash of the one before.
//!
//! Invariants: a row's number and previous hash are taken in the SQL transaction of the row, so there is no gap and no fork; a changed
//! byte or a removed row, the last included, is found by [`verify`]; no row holds personal data. Each row also goes to `audit.log`
//! through the outbox, in the shape of OCSF (class 6005, Datastore Activity).

use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sunder_schemas::time::Timestamp;

use crate::keydb::{DbError, KeyDb, Write, on};
use crate::outbox::{self, Outgoing};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// Done.
    Success,
    /// Refused by a rule.
    Denied,
    /// Tried and failed.
    Failure,
}

impl AuditOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failure => "failure",
        }
    }
}

/// One event. No field may hold personal data: subjects appear by token.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEvent {
    /// Who: an operating-system user, a role of the program, or a case.
    pub actor: String,
    /// What: a dotted verb, e.g. `open`, `keys.destroyed`.
    pub action: &'static str,
    /// Of what: seller and token, or a case id.
    pub object: String,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// More, as a JSON object.
    pub detail: serde_json::Value,
}

/// A chain that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Rows checked.
    pub rows: u64,
    /// Hash of the last, lower-case hex.
    pub head: String,
}

/// Why the chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A row was changed, removed or put in; `seq` is the first number that does not fit.
    #[error("audit chain is broken at {seq}")]
    Broken {
        /// The number.
        seq: i64,
    },
}

/// Adds `event` at `at`, within the transaction `tx`; returns its number.
///
/// # Errors
/// [`DbError`]: nothing was added, and what the event tells of must not be done.
pub async fn append(tx: &mut Write, at: Timestamp, event: &AuditEvent) -> Result<i64, DbError> {
    let failed = on("write the audit log");
    // The update locks the head row until the transaction ends: the next writer waits and reads our hash.
    let head =
        sqlx::query("UPDATE audit_head SET seq = seq + 1 WHERE id = 1 RETURNING seq, hash").fetch_one(&mut **tx).await.map_err(&failed)?;
    let seq: i64 = head.try_get(0).map_err(&failed)?;
    let previous: Vec<u8> = head.try_get(1).map_err(&failed)?;
    let detail = event.detail.to_string();
    let hash = hash_of(&previous, seq, at.0, &event.actor, event.action, &event.object, event.outcome.as_str(), &detail);
    sqlx::query(
        "INSERT INTO audit_event (seq, prev_hash, hash, at, actor, action, object, outcome, detail) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(seq)
    .bind(previous.clone())
    .bind(hash.to_vec())
    .bind(at.0)
    .bind(event.actor.clone())
    .bind(event.action)
    .bind(event.object.clone())
    .bind(event.outcome.as_str())
    .bind(detail)
    .execute(&mut **tx)
    .await
    .map_err(&failed)?;
    sqlx::query("UPDATE audit_head SET hash = $1 WHERE id = 1").bind(hash.to_vec()).execute(&mut **tx).await.map_err(&failed)?;
    let record = Outgoing {
        topic: "audit.log",
        // DESIGN section 4: keyed by actor or case.
        key: event.actor.clone(),
        value: Some(ocsf(seq, &previous, &hash, at, event).to_string()),
    };
    outbox::push(tx, &[record]).await?;
    Ok(seq)
}

/// Checks the whole chain, reading every row.
///
/// # Errors
/// [`VerifyError::Broken`] at the first row that does not fit.
pub async fn verify(db: &KeyDb) -> Result<Verified, VerifyError> {
    const PAGE: i64 = 1000;
    let failed = on("read the audit log");
    let (mut seq, mut previous) = (0i64, vec![0u8; 32]);
    loop {
        let rows = sqlx::query(
            "SELECT seq, prev_hash, hash, at, actor, action, object, outcome, detail FROM audit_event WHERE seq > $1 ORDER BY seq LIMIT $2",
        )
        .bind(seq)
        .bind(PAGE)
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
        for row in &rows {
            let text = |column: usize| row.try_get::<String, _>(column).map_err(&failed);
            let (number, prev_hash, hash): (i64, Vec<u8>, Vec<u8>) =
                (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?, row.try_get(2).map_err(&failed)?);
            let at: i64 = row.try_get(3).map_err(&failed)?;
            let expected = hash_of(&previous, number, at, &text(4)?, &text(5)?, &text(6)?, &text(7)?, &text(8)?);
            if number != seq + 1 || prev_hash != previous || hash != expected {
                return Err(VerifyError::Broken { seq: seq + 1 });
            }
            seq = number;
            previous = hash;
        }
        if rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX) {
            break;
        }
    }
    let head = sqlx::query("SELECT seq, hash FROM audit_head WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?;
    let (last, hash): (i64, Vec<u8>) = (head.try_get(0).map_err(&failed)?, head.try_get(1).map_err(&failed)?);
    // Rows added while the chain was read are beyond what was checked; a head that is behind or differs is not.
    if last < seq || (last == seq && hash != previous) {
        return Err(VerifyError::Broken { seq });
    }
    if last > seq {
        let next = sqlx::query("SELECT prev_hash FROM audit_event WHERE seq = $1")
            .bind(seq + 1)
            .fetch_optional(db.pool())
            .await
            .map_err(&failed)?;
        let linked = next.is_some_and(|row| row.try_get::<Vec<u8>, _>(0).is_ok_and(|p| p == previous));
        if !linked {
            return Err(VerifyError::Broken { seq: seq + 1 });
        }
    }
    Ok(Verified { rows: seq.unsigned_abs(), head: hex::encode(previous) })
}

/// A row of the audit log, as `audit.log` keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirroredRow {
    /// Its number.
    pub seq: i64,
    previous: Vec<u8>,
    hash: Vec<u8>,
    at: i64,
    actor: String,
    action: String,
    object: String,
    outcome: String,
    detail: String,
}

impl MirroredRow {
    /// Reads a record of `audit.log`; `None` where it is none of ours.
    #[must_use]
    pub fn read(value: &[u8]) -> Option<Self> {
        let json: serde_json::Value = serde_json::from_slice(value).ok()?;
        let text = |pointer: &str| json.pointer(pointer)?.as_str().map(str::to_owned);
        Some(Self {
            seq: json.pointer("/metadata/sequence")?.as_i64()?,
            previous: hex::decode(text("/unmapped/prev_hash")?).ok()?,
            hash: hex::decode(text("/unmapped/hash")?).ok()?,
            at: json.pointer("/time")?.as_i64()?,
            actor: text("/actor/user/name")?,
            action: text("/action")?,
            object: text("/object")?,
            outcome: text("/status")?,
            detail: json.pointer("/unmapped/detail")?.to_string(),
        })
    }
}

/// The number of the chain's last row.
///
/// # Errors
/// [`DbError`].
pub async fn last(db: &KeyDb) -> Result<i64, DbError> {
    let failed = on("read the audit log");
    sqlx::query("SELECT seq FROM audit_head WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?.try_get(0).map_err(&failed)
}

/// Takes over the rows that follow the chain's end, given in the order of their numbers: after a restore the chain goes on where it
/// ended on the log. Stops at the first that does not fit. Returns how many were taken.
///
/// # Errors
/// [`DbError`].
pub async fn take_over(db: &KeyDb, rows: &[MirroredRow]) -> Result<u64, DbError> {
    let failed = on("take over the audit log");
    let mut tx = db.begin_write().await?;
    let head =
        sqlx::query("UPDATE audit_head SET seq = seq WHERE id = 1 RETURNING seq, hash").fetch_one(&mut *tx).await.map_err(&failed)?;
    let (mut seq, mut previous): (i64, Vec<u8>) = (head.try_get(0).map_err(&failed)?, head.try_get(1).map_err(&failed)?);
    let mut taken = 0;
    for row in rows {
        // Known already, or delivered twice.
        if row.seq <= seq {
            continue;
        }
        let hash = hash_of(&previous, row.seq, row.at, &row.actor, &row.action, &row.object, &row.outcome, &row.detail);
        if row.seq != seq + 1 || row.previous != previous || row.hash != hash {
            break;
        }
        sqlx::query(
            "INSERT INTO audit_event (seq, prev_hash, hash, at, actor, action, object, outcome, detail) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(row.seq)
        .bind(previous)
        .bind(row.hash.clone())
        .bind(row.at)
        .bind(row.actor.clone())
        .bind(row.action.clone())
        .bind(row.object.clone())
        .bind(row.outcome.clone())
        .bind(row.detail.clone())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        (seq, previous) = (row.seq, row.hash.clone());
        taken += 1;
    }
    sqlx::query("UPDATE audit_head SET seq = $1, hash = $2 WHERE id = 1")
        .bind(seq)
        .bind(previous)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    Ok(taken)
}

/// SHA-256 over the previous hash and the canonical JSON (keys sorted, no white space) of the row.
#[expect(clippy::too_many_arguments, reason = "the columns of one row, in order")]
fn hash_of(previous: &[u8], seq: i64, at: i64, actor: &str, action: &str, object: &str, outcome: &str, detail: &str) -> [u8; 32] {
    // serde_json keeps the keys of an object sorted: its map is a BTreeMap unless `preserve_order` is asked for, so they stand sorted here.
    let json = json!({ "action": action, "actor": actor, "at": at, "detail": detail, "object": object, "outcome": outcome, "seq": seq });
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(previous);
    context.update(json.to_string().as_bytes());
    let mut out = [0u8; 32];
    out.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// The event as it stands on `audit.log`: OCSF 1.x, category 6 (application activity), class 6005 (Datastore Activity).
fn ocsf(seq: i64, previous: &[u8], hash: &[u8], at: Timestamp, event: &AuditEvent) -> serde_json::Value {
    // Activities of the class: 1 read, 4 delete, 99 other; severity 1 informational, 3 medium.
    let activity = match event.action {
        "open" => 1,
        "keys.destroyed" => 4,
        _ => 99,
    };
    json!({
        "class_uid": 6005, "category_uid": 6, "activity_id": activity, "type_uid": 600_500 + activity,
        "time": at.0,
        "severity_id": if event.outcome == AuditOutcome::Success { 1 } else { 3 },
        "status_id": if event.outcome == AuditOutcome::Success { 1 } else { 2 },
        "status": event.outcome.as_str(),
        "actor": { "user": { "name": event.actor } },
        "metadata": { "product": { "name": "sunder" }, "version": "1.4.0", "sequence": seq },
        "action": event.action, "object": event.object,
        "unmapped": { "detail": event.detail, "prev_hash": hex::encode(previous), "hash": hex::encode(hash) },
    })
}
