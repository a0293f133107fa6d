//! A row of the chain as it is published on `audit.log`, and rows that are taken over from there after a restore.

use ring::digest::SHA256_OUTPUT_LEN;
use serde_json::{Value, json};
use sqlx::Row;
use sunder_schemas::time::Timestamp;

use super::{AuditEvent, AuditOutcome, hash_of};
use crate::keydb::{DbError, KeyDb, Write, on};

/// A row of the audit log, as `audit.log` keeps it. Its hash fits its fields.
#[derive(Debug, Clone, PartialEq)]
pub struct MirroredRow {
    /// Its number.
    pub seq: i64,
    pub(super) previous: [u8; SHA256_OUTPUT_LEN],
    pub(super) hash: [u8; SHA256_OUTPUT_LEN],
    at: i64,
    actor: String,
    action: String,
    object: String,
    outcome: String,
    detail: Value,
}

impl MirroredRow {
    /// The row of `event`, after the row with hash `previous`.
    pub(super) fn of(seq: i64, previous: &[u8; SHA256_OUTPUT_LEN], at: Timestamp, event: &AuditEvent) -> Self {
        let mut row = Self {
            seq,
            previous: *previous,
            hash: [0; SHA256_OUTPUT_LEN],
            at: at.0,
            actor: event.actor.clone(),
            action: event.action.to_owned(),
            object: event.object.clone(),
            outcome: event.outcome.as_str().to_owned(),
            detail: event.detail.clone(),
        };
        row.hash = row.computed();
        row
    }

    /// Reads a record of `audit.log`; `None` where it is none of ours, or where any byte of it is not as it was published: its hash is
    /// computed again from its fields, and the record is written again from them.
    #[must_use]
    pub fn read(value: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(value).ok()?;
        let text = |pointer: &str| json.pointer(pointer)?.as_str().map(str::to_owned);
        let hash = |pointer: &str| hex::decode(text(pointer)?).ok()?.try_into().ok();
        let row = Self {
            seq: json.pointer("/metadata/sequence")?.as_i64()?,
            previous: hash("/unmapped/prev_hash")?,
            hash: hash("/unmapped/hash")?,
            at: json.pointer("/time")?.as_i64()?,
            actor: text("/actor/user/name")?,
            action: text("/action")?,
            object: text("/object")?,
            outcome: text("/status")?,
            detail: json.pointer("/unmapped/detail")?.clone(),
        };
        (row.computed() == row.hash && row.ocsf().as_bytes() == value).then_some(row)
    }

    /// Its hash.
    pub(super) fn hash(&self) -> Vec<u8> {
        self.hash.to_vec()
    }

    fn computed(&self) -> [u8; SHA256_OUTPUT_LEN] {
        let detail = self.detail.to_string();
        hash_of(&self.previous, self.seq, self.at, &self.actor, &self.action, &self.object, &self.outcome, &detail)
    }

    /// Writes the row.
    pub(super) async fn insert(&self, tx: &mut Write) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO audit_event (seq, prev_hash, hash, at, actor, action, object, outcome, detail) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(self.seq)
        .bind(self.previous.to_vec())
        .bind(self.hash.to_vec())
        .bind(self.at)
        .bind(self.actor.clone())
        .bind(self.action.clone())
        .bind(self.object.clone())
        .bind(self.outcome.clone())
        .bind(self.detail.to_string())
        .execute(&mut **tx)
        .await
        .map_err(on("write the audit log"))
        .map(|_| ())
    }

    /// The event as it stands on `audit.log`: OCSF 1.x, category 6 (application activity), class 6005 (Datastore Activity).
    pub(super) fn ocsf(&self) -> String {
        // Activities of the class: 1 read, 4 delete, 99 other; severity 1 informational, 3 medium.
        let activity = match self.action.as_str() {
            "open" => 1,
            "keys.destroyed" | "audit.expired" => 4,
            _ => 99,
        };
        let is_success = self.outcome == AuditOutcome::Success.as_str();
        json!({
            "class_uid": 6005, "category_uid": 6, "activity_id": activity, "type_uid": 600_500 + activity,
            "time": self.at,
            "severity_id": if is_success { 1 } else { 3 },
            "status_id": if is_success { 1 } else { 2 },
            "status": self.outcome,
            "actor": { "user": { "name": self.actor } },
            "metadata": { "product": { "name": "sunder" }, "version": "1.4.0", "sequence": self.seq },
            "action": self.action, "object": self.object,
            "unmapped": { "detail": self.detail, "prev_hash": hex::encode(self.previous), "hash": hex::encode(self.hash) },
        })
        .to_string()
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
        // That its hash fits its fields was seen when it was read.
        if row.seq != seq + 1 || row.previous != *previous {
            break;
        }
        row.insert(&mut tx).await?;
        (seq, previous) = (row.seq, row.hash());
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
