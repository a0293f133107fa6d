//! The root key: a new version at its service, everything under older ones wrapped anew, the older ones retired.

use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, Row};
use sunder_schemas::ids::{CaseId, KeyId, SellerId};

use super::{ACTION, guard};
use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::case::control_context;
use crate::keydb::{DbError, blob, on};
use crate::keys::{KeyError, Keyring, LEDGER, TOKENS, quarantine_context, role_context, wrapping_context};
use crate::root::Retired;
use crate::sellers::token_context;

/// What a rotation of the root key came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RootRotation {
    /// The newest version before.
    pub from: u64,
    /// The newest version now.
    pub to: u64,
    /// Wrapped keys and tokens that were wrapped anew by this call.
    pub rewrapped: u64,
    /// `destroyed`, or `kept_by_service`.
    pub retired: &'static str,
}

/// A rotation as it stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stands {
    pub(super) id: i64,
    pub(super) from: u64,
    pub(super) to: Option<u64>,
    pub(super) state: String,
}

/// Rotates the root key, or goes on with a rotation that was cut off. What others wrapped
/// under the old version and have not committed yet is refused to them from now on (`guard.rs`). `settle` is how long a process of a
/// release before that may take to commit it: after it everything is looked at once more before the old version is retired. `actor`
/// asked for it.
///
/// # Errors
/// [`KeyError`]: call again, it goes on where it was.
pub async fn rotate_root(keyring: &Keyring, settle: Duration, actor: &str) -> Result<RootRotation, KeyError> {
    let mut stands = begin(keyring).await?;
    let mut rewrapped = 0;
    if stands.state == "begun" {
        stands = make_version(keyring, stands).await?;
    }
    let to = stands.to.ok_or(DbError::fixed("rotate the root key", "no_version"))?;
    if stands.state == "versioned" {
        rewrapped += rewrap_all(keyring, to).await?;
        // What a process that knows no guard wrapped under the old version is committed by the end of this.
        tokio::time::sleep(settle).await;
        while let count @ 1.. = rewrap_all(keyring, to).await? {
            rewrapped += count;
            tokio::time::sleep(settle).await;
        }
        move_on(keyring, &stands, "rewrapped").await?;
    }
    let retired = finish(keyring, &stands, to, rewrapped, actor).await?;
    keyring.drop_all();
    super::rewrite_tables(keyring).await;
    let retired = match retired {
        Retired::Destroyed => "destroyed",
        Retired::KeptByService => "kept_by_service",
    };
    Ok(RootRotation { from: stands.from, to, rewrapped, retired })
}

/// The rotation that is open, if any.
pub(super) async fn open(keyring: &Keyring) -> Result<Option<Stands>, KeyError> {
    let failed = on("read the rotations");
    let row = sqlx::query("SELECT id, from_version, to_version, state FROM root_rotation WHERE state <> 'done' ORDER BY id DESC LIMIT 1")
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let version = |n: i64| u64::try_from(n).map_err(|_| DbError::fixed("read the rotations", "bad_column"));
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Stands {
        id: row.try_get(0).map_err(&failed)?,
        from: version(row.try_get(1).map_err(&failed)?)?,
        to: row.try_get::<Option<i64>, _>(2).map_err(&failed)?.map(version).transpose()?,
        state: row.try_get(3).map_err(&failed)?,
    }))
}

/// The open rotation, or a new one from the version of now.
pub(super) async fn begin(keyring: &Keyring) -> Result<Stands, KeyError> {
    if let Some(open) = open(keyring).await? {
        return Ok(open);
    }
    let failed = on("begin a rotation");
    let from = keyring.root().version().await?;
    let mut tx = keyring.db().begin_write().await?;
    sqlx::query("INSERT INTO root_rotation (from_version, state, begun_at) VALUES ($1, 'begun', $2)")
        .bind(signed(from)?)
        .bind(keyring.now().0)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    Ok(open(keyring).await?.ok_or(DbError::fixed("begin a rotation", "row_missing"))?)
}

/// Has the service make the new version; one that was made before a crash is taken.
pub(super) async fn make_version(keyring: &Keyring, stands: Stands) -> Result<Stands, KeyError> {
    let failed = on("rotate the root key");
    let to = keyring.root().rotate(stands.from).await?;
    let mut tx = keyring.db().begin_write().await?;
    guard::alone(keyring.db(), &mut tx).await?;
    sqlx::query("UPDATE root_rotation SET to_version = $1, state = 'versioned' WHERE id = $2 AND state = 'begun'")
        .bind(signed(to)?)
        .bind(stands.id)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    Ok(Stands { to: Some(to), state: "versioned".to_owned(), ..stands })
}

async fn move_on(keyring: &Keyring, stands: &Stands, state: &'static str) -> Result<(), KeyError> {
    let mut tx = keyring.db().begin_write().await?;
    sqlx::query("UPDATE root_rotation SET state = $1 WHERE id = $2 AND state <> 'done'")
        .bind(state)
        .bind(stands.id)
        .execute(&mut *tx)
        .await
        .map_err(on("rotate the root key"))?;
    tx.commit().await.map_err(on("rotate the root key"))?;
    Ok(())
}

async fn finish(keyring: &Keyring, stands: &Stands, to: u64, rewrapped: u64, actor: &str) -> Result<Retired, KeyError> {
    let failed = on("end a rotation");
    let retired = keyring.root().retire(to).await?;
    let word = match retired {
        Retired::Destroyed => "destroyed",
        Retired::KeptByService => "kept_by_service",
    };
    let mut tx = keyring.db().begin_write().await?;
    let done = sqlx::query("UPDATE root_rotation SET state = 'done', retired = $1, done_at = $2 WHERE id = $3 AND state <> 'done'")
        .bind(word)
        .bind(keyring.now().0)
        .bind(stands.id)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    if done.rows_affected() == 1 {
        let event = AuditEvent {
            actor: actor.to_owned(),
            action: ACTION,
            object: "root key".to_owned(),
            outcome: AuditOutcome::Success,
            detail: json!({ "root": keyring.root().describe(), "from": stands.from, "to": to, "rewrapped": rewrapped, "old": word }),
        };
        audit::append(&mut tx, keyring.now(), &event).await?;
    }
    tx.commit().await.map_err(&failed)?;
    Ok(retired)
}

fn signed(version: u64) -> Result<i64, DbError> {
    i64::try_from(version).map_err(|_| DbError::fixed("rotate the root key", "bad_version"))
}

/// Something that the root wraps: where it lies, and in which context.
struct Wrapped {
    /// Table, column, and the column of its primary key: names of ours.
    place: (&'static str, &'static str, &'static str),
    primary: String,
    context: Vec<u8>,
    bytes: Vec<u8>,
}

/// Wraps everything anew that lies under a version below `to`; returns how much it was.
pub(super) async fn rewrap_all(keyring: &Keyring, to: u64) -> Result<u64, KeyError> {
    let mut count = 0;
    for wrapped in everything(keyring).await? {
        let version = keyring.root().version_of(&wrapped.bytes);
        if version.is_none_or(|version| version < to) && rewrap(keyring, &wrapped).await? {
            count += 1;
        }
    }
    Ok(count)
}

/// Wraps one anew, unless it changed meanwhile; then the next look sees it.
async fn rewrap(keyring: &Keyring, wrapped: &Wrapped) -> Result<bool, KeyError> {
    let failed = on("wrap a key anew");
    let bytes = keyring.root().unwrap(&wrapped.context, &wrapped.bytes).await?;
    let anew = keyring.root().wrap(&wrapped.context, &bytes).await?;
    let (table, column, primary) = wrapped.place;
    let sql = format!("UPDATE {table} SET {column} = $1 WHERE {primary} = $2 AND {column} = $3");
    let mut tx = keyring.db().begin_write().await?;
    // Names of ours and placeholders alone.
    let done = sqlx::query(AssertSqlSafe(sql))
        .bind(anew)
        .bind(wrapped.primary.clone())
        .bind(wrapped.bytes.clone())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    // One that was destroyed or replaced meanwhile counts as well: it may lie under the old version still.
    Ok(done.rows_affected() <= 1)
}

/// Everything that the root wraps.
async fn everything(keyring: &Keyring) -> Result<Vec<Wrapped>, KeyError> {
    let failed = on("read what the root key wraps");
    let mut all = Vec::new();
    let sql =
        "SELECT seller, generation, wrapping_version, refresh_token, wrapping_key, wrapping_previous, token_key, ledger_key FROM seller";
    for row in sqlx::query(sql).fetch_all(keyring.db().pool()).await.map_err(&failed)? {
        let primary: String = row.try_get(0).map_err(&failed)?;
        let seller = SellerId::parse(&primary).map_err(|_| DbError::fixed("read what the root key wraps", "bad_seller"))?;
        let (generation, version): (i64, i64) = (row.try_get(1).map_err(&failed)?, row.try_get(2).map_err(&failed)?);
        let columns = [
            ("refresh_token", token_context(&seller)),
            ("wrapping_key", wrapping_context(&seller, generation, version)),
            ("wrapping_previous", wrapping_context(&seller, generation, version - 1)),
            ("token_key", role_context(&seller, TOKENS, generation)),
            ("ledger_key", role_context(&seller, LEDGER, 1)),
        ];
        for (column, context) in columns {
            let bytes: Option<Vec<u8>> = row.try_get(column).map_err(&failed)?;
            if let Some(bytes) = bytes {
                all.push(Wrapped { place: ("seller", column, "seller"), primary: primary.clone(), context, bytes });
            }
        }
    }
    let sql = "SELECT day, key_id, wrapped FROM quarantine_key WHERE wrapped IS NOT NULL";
    for row in sqlx::query(sql).fetch_all(keyring.db().pool()).await.map_err(&failed)? {
        let primary: String = row.try_get(0).map_err(&failed)?;
        let id = KeyId(blob(&row, "key_id")?.unwrap_or_default());
        let context = quarantine_context(&primary, id);
        all.push(Wrapped { place: ("quarantine_key", "wrapped", "day"), primary, context, bytes: row.try_get(2).map_err(&failed)? });
    }
    let sql = "SELECT case_id, wrapped FROM case_control";
    for row in sqlx::query(sql).fetch_all(keyring.db().pool()).await.map_err(&failed)? {
        let primary: String = row.try_get(0).map_err(&failed)?;
        let case = CaseId::parse(&primary).map_err(|_| DbError::fixed("read what the root key wraps", "bad_case"))?;
        let context = control_context(&case);
        all.push(Wrapped { place: ("case_control", "wrapped", "case_id"), primary, context, bytes: row.try_get(1).map_err(&failed)? });
    }
    Ok(all)
}
