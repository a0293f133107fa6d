//! The audit log: who did what to which subject, each row carrying the hash of the one before.
//!
//! Invariants: a row's number and previous hash are taken in the SQL transaction of the row, so there is no gap and no fork; a changed
//! byte or a removed row, the last included, is found by [`verify`]; rows only go by age, after a signed head of them stands
//! ([`expire`]); no row holds personal data. Each row also goes to `audit.log` through the outbox, in the shape of OCSF (class 6005,
//! Datastore Activity), and signed heads of the chain to `privacy.certificates`.

mod checkpoint;
mod mirror;
mod verify;

pub use checkpoint::{CHECKPOINT_EVERY, HEAD_KEY, expire, sign_head, sign_head_if_old};
pub use mirror::{MirroredRow, last, take_over};
pub use verify::{Known, Verified, VerifyError, verify};

use ring::digest;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sunder_schemas::time::Timestamp;

use crate::keydb::{DbError, Write, on};
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
    let previous = previous.try_into().map_err(|_| DbError::fixed("write the audit log", "bad_hash"))?;
    let row = MirroredRow::of(seq, &previous, at, event);
    row.insert(tx).await?;
    sqlx::query("UPDATE audit_head SET hash = $1 WHERE id = 1").bind(row.hash()).execute(&mut **tx).await.map_err(&failed)?;
    // Keyed by actor or case (docs/topics.md).
    let record = Outgoing { topic: "audit.log", key: event.actor.clone(), value: Some(row.ocsf()) };
    outbox::push(tx, &[record]).await?;
    Ok(seq)
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
