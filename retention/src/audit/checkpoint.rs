//! Signed heads of the audit chain, and the removal of rows by age that each such removal begins with.

use ring::digest::SHA256_OUTPUT_LEN;
use serde_json::json;
use sqlx::Row;
use sunder_schemas::chain::{ChainHead, HeadKind};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{Period, Timestamp};

use super::{AuditEvent, AuditOutcome, append};
use crate::keydb::{DbError, KeyDb, Write, on};
use crate::outbox::{self, Outgoing};

/// How long the newest signed head may be behind the chain. Chosen: what is cut off before it is signed is at most an hour, and in 400
/// days there are about 10,000 heads.
pub const CHECKPOINT_EVERY: Period = Period::Millis(3_600_000);
/// Key of the newest signed head on `privacy.certificates`: keys that begin with `~` are the pipeline's own.
pub const HEAD_KEY: &str = "~audit";
/// Rows that are looked at for one expiry, so that a transaction is short. Chosen.
const EXPIRE_MAX: i64 = 10_000;

struct End {
    seq: i64,
    hash: [u8; SHA256_OUTPUT_LEN],
}

fn hash_of(bytes: Vec<u8>) -> Result<[u8; SHA256_OUTPUT_LEN], DbError> {
    bytes.try_into().map_err(|_| DbError::fixed("read the audit log", "bad_hash"))
}

/// The chain's end, locked until the transaction ends.
async fn lock_end(tx: &mut Write) -> Result<End, DbError> {
    let failed = on("sign the audit log");
    let row =
        sqlx::query("UPDATE audit_head SET seq = seq WHERE id = 1 RETURNING seq, hash").fetch_one(&mut **tx).await.map_err(&failed)?;
    Ok(End { seq: row.try_get(0).map_err(&failed)?, hash: hash_of(row.try_get(1).map_err(&failed)?)? })
}

async fn keep(tx: &mut Write, signer: &NoteSigner, head: &ChainHead) -> Result<String, DbError> {
    let note = head.sign(signer).ok().and_then(|note| String::from_utf8(note).ok());
    let note = note.ok_or_else(|| DbError::fixed("sign the audit log", "not_signed"))?;
    sqlx::query("INSERT INTO audit_checkpoint (seq, kind, at, note) VALUES ($1, $2, $3, $4)")
        .bind(head.seq)
        .bind(head.kind.as_str())
        .bind(head.at.0)
        .bind(note.clone())
        .execute(&mut **tx)
        .await
        .map_err(on("sign the audit log"))?;
    let value = json!({ "audit_head": note });
    outbox::push(tx, &[Outgoing { topic: "privacy.certificates", key: HEAD_KEY.to_owned(), value: Some(value.to_string()) }]).await?;
    Ok(note)
}

/// Signs the chain's present end; gives the signed head, or `None` before the first row. Signing the same end again gives the same head.
///
/// # Errors
/// [`DbError`].
pub async fn sign_head(db: &KeyDb, signer: &NoteSigner, now: Timestamp) -> Result<Option<String>, DbError> {
    let mut tx = db.begin_write().await?;
    let end = lock_end(&mut tx).await?;
    if end.seq == 0 {
        return Ok(None);
    }
    let failed = on("sign the audit log");
    let known = sqlx::query("SELECT note FROM audit_checkpoint WHERE seq = $1 AND kind = 'head'")
        .bind(end.seq)
        .fetch_optional(&mut *tx)
        .await
        .map_err(&failed)?;
    let note = match known {
        Some(row) => row.try_get(0).map_err(&failed)?,
        None => keep(&mut tx, signer, &ChainHead { kind: HeadKind::Head, seq: end.seq, hash: end.hash, at: now }).await?,
    };
    tx.commit().await.map_err(failed)?;
    Ok(Some(note))
}

/// Signs the chain's end where it moved since the newest head and that is older than [`CHECKPOINT_EVERY`]; says whether it did.
///
/// # Errors
/// [`DbError`].
pub async fn sign_head_if_old(db: &KeyDb, signer: &NoteSigner, now: Timestamp) -> Result<bool, DbError> {
    let failed = on("read the audit log");
    let row = sqlx::query(
        "SELECT audit_head.seq, (SELECT MAX(seq) FROM audit_checkpoint), (SELECT MAX(at) FROM audit_checkpoint WHERE kind = 'head') \
         FROM audit_head WHERE id = 1",
    )
    .fetch_one(db.pool())
    .await
    .map_err(&failed)?;
    let (end, signed, at): (i64, Option<i64>, Option<i64>) =
        (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?, row.try_get(2).map_err(&failed)?);
    let is_new = signed.is_none_or(|signed| signed < end);
    let is_old = at.is_none_or(|at| Timestamp(at).plus(CHECKPOINT_EVERY) <= now);
    if end == 0 || !is_new || !is_old {
        return Ok(false);
    }
    Ok(sign_head(db, signer, now).await?.is_some())
}

/// Removes rows older than `keep_for`, at most some thousands in one call; gives how many. In one transaction: the head of what goes is
/// signed, that it goes is a new row of the chain, and the rows are deleted. Rows go from the oldest on without a gap, so one that is
/// younger by its clock holds those after it.
///
/// # Errors
/// [`DbError`]: nothing was removed.
pub async fn expire(db: &KeyDb, signer: &NoteSigner, now: Timestamp, keep_for: Period) -> Result<u64, DbError> {
    let failed = on("expire the audit log");
    let cutoff = now.minus(keep_for);
    // The common answer is that nothing is old enough: asked without a lock.
    let oldest = sqlx::query("SELECT at FROM audit_event ORDER BY seq LIMIT 1").fetch_optional(db.pool()).await.map_err(&failed)?;
    match oldest.map(|row| row.try_get::<i64, _>(0)).transpose().map_err(&failed)? {
        Some(at) if at < cutoff.0 => {}
        _ => return Ok(0),
    }
    let mut tx = db.begin_write().await?;
    lock_end(&mut tx).await?;
    let rows = sqlx::query("SELECT seq, at, hash FROM audit_event ORDER BY seq LIMIT $1")
        .bind(EXPIRE_MAX)
        .fetch_all(&mut *tx)
        .await
        .map_err(&failed)?;
    let (mut last, mut count) = (None, 0u64);
    for row in &rows {
        if row.try_get::<i64, _>(1).map_err(&failed)? >= cutoff.0 {
            break;
        }
        last = Some(row);
        count += 1;
    }
    let Some(last) = last else { return Ok(0) };
    let (seq, hash): (i64, Vec<u8>) = (last.try_get(0).map_err(&failed)?, last.try_get(2).map_err(&failed)?);
    keep(&mut tx, signer, &ChainHead { kind: HeadKind::Expiry, seq, hash: hash_of(hash)?, at: now }).await?;
    let event = AuditEvent {
        actor: "retain".to_owned(),
        action: "audit.expired",
        object: "audit".to_owned(),
        outcome: AuditOutcome::Success,
        detail: json!({ "through": seq, "rows": count, "older_than": cutoff.to_iso() }),
    };
    append(&mut tx, now, &event).await?;
    for sql in ["DELETE FROM audit_event WHERE seq <= $1", "DELETE FROM audit_checkpoint WHERE seq < $1"] {
        sqlx::query(sql).bind(seq).execute(&mut *tx).await.map_err(&failed)?;
    }
    tx.commit().await.map_err(failed)?;
    Ok(count)
}
