//! What a restore lost for good: blocks whose key was made after the backup, and that could not be fetched and sealed again.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use serde_json::json;
use sqlx::{AssertSqlSafe, Row};
use sunder_schemas::class::Dataset;
use sunder_schemas::ids::{EntityToken, KeyId, SellerId};
use sunder_schemas::time::{Period, Timestamp};

use super::{ACTOR, Report};
use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::cursor;
use crate::keydb::{DbError, KeyDb, ROWS_PER_STATEMENT, blob, on, push_tuples};
use crate::keys::Keyring;
use crate::mirror::{self, Noticed};
use crate::sellers::{self, SellerState};

/// How far behind the present a poller reads: the API refuses a bound of less than two minutes (FACTS section 4); two more for clocks.
const READ_BEHIND: Period = Period::Millis(240_000);
/// After so long the count is taken although a seller was not read again: it cannot be polled, and `check` says so (chosen).
const WAIT_MAX: Period = Period::days(1);
/// Orders that are named one by one. Chosen: enough to act on.
const NAMED_MAX: usize = 20;

/// The restore of the key database whose losses are not counted yet: the last one, which covers those before it.
///
/// # Errors
/// [`DbError`].
pub async fn unsettled(db: &KeyDb) -> Result<Option<Noticed>, DbError> {
    Ok(mirror::noticed(db).await?.into_iter().rev().find(|noticed| noticed.store == "keys" && !noticed.is_settled))
}

/// Whether every seller that is polled has been read again since `noticed`, so that what could be sealed anew is.
///
/// # Errors
/// [`DbError`].
pub async fn is_read_again(db: &KeyDb, noticed: &Noticed, now: Timestamp) -> Result<bool, DbError> {
    if now >= noticed.at.0.plus(WAIT_MAX) {
        return Ok(true);
    }
    let report: Report = serde_json::from_value(noticed.report.clone()).map_err(|_| DbError::fixed("read a restore", "not_json"))?;
    let of = |id: &SellerId| report.cursors.iter().find(|(seller, dataset, _)| seller == id && dataset == Dataset::Orders.as_str());
    for seller in sellers::list(db).await?.into_iter().filter(|seller| seller.state == SellerState::Active && seller.has_refresh_token) {
        // One without a cursor is not polled for orders, or has not been read at all: then it has lost nothing or a first read is due.
        let Some(cursor) = cursor::read(db, &seller.id, Dataset::Orders).await? else { continue };
        let has_moved = of(&seller.id).is_none_or(|(_, _, version)| cursor.version > *version);
        if !has_moved || cursor.position < noticed.at.0.minus(READ_BEHIND) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those of `keys` that nothing here has alive: no subject, no quarantine day, no control of a case. They are destroyed, or were lost.
///
/// # Errors
/// [`DbError`].
pub async fn without_key(db: &KeyDb, keys: &HashSet<KeyId>) -> Result<HashSet<KeyId>, DbError> {
    let failed = on("look for keys");
    let mut missing = keys.clone();
    let asked: Vec<KeyId> = keys.iter().copied().collect();
    for chunk in asked.chunks(ROWS_PER_STATEMENT) {
        for table in ["subject", "quarantine_key"] {
            let mut sql = format!("SELECT key_id FROM {table} WHERE state = 'live' AND key_id IN ");
            push_tuples(&mut sql, 1, chunk.len(), 1);
            // Names of ours and placeholders alone.
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for key in chunk {
                query = query.bind(key.0.to_vec());
            }
            for row in query.fetch_all(db.pool()).await.map_err(&failed)? {
                missing.remove(&KeyId(blob(&row, "key_id")?.unwrap_or_default()));
            }
        }
    }
    if !missing.is_empty() {
        let rows = sqlx::query("SELECT key_id FROM case_control").fetch_all(db.pool()).await.map_err(&failed)?;
        for row in rows {
            let text: String = row.try_get(0).map_err(&failed)?;
            if let Some(key) = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok()) {
                missing.remove(&KeyId(key));
            }
        }
    }
    Ok(missing)
}

/// The entities among `entities` whose subject is live: a block of theirs under an unknown key is replaced by one that was sealed anew.
///
/// # Errors
/// [`DbError`].
pub async fn sealed_again(db: &KeyDb, entities: &[(SellerId, EntityToken)]) -> Result<HashSet<(SellerId, EntityToken)>, DbError> {
    in_state(db, entities, "live").await
}

/// The entities among `entities` whose subject was erased: nothing of theirs is lost, it is on its way out.
///
/// # Errors
/// [`DbError`].
pub async fn erased(db: &KeyDb, entities: &[(SellerId, EntityToken)]) -> Result<HashSet<(SellerId, EntityToken)>, DbError> {
    in_state(db, entities, "destroyed").await
}

async fn in_state(
    db: &KeyDb,
    entities: &[(SellerId, EntityToken)],
    state: &'static str,
) -> Result<HashSet<(SellerId, EntityToken)>, DbError> {
    let failed = on("look for subjects");
    let mut by_seller: HashMap<&SellerId, Vec<EntityToken>> = HashMap::new();
    for (seller, token) in entities {
        by_seller.entry(seller).or_default().push(*token);
    }
    let mut found = HashSet::new();
    for (seller, tokens) in by_seller {
        for chunk in tokens.chunks(ROWS_PER_STATEMENT) {
            let mut sql = "SELECT token FROM subject WHERE state = $1 AND seller = $2 AND token IN ".to_owned();
            push_tuples(&mut sql, 1, chunk.len(), 3);
            // Placeholders alone were added.
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(state).bind(seller.as_str().to_owned());
            for token in chunk {
                query = query.bind(token.0.to_vec());
            }
            for row in query.fetch_all(db.pool()).await.map_err(&failed)? {
                found.insert((seller.clone(), EntityToken(blob(&row, "token")?.unwrap_or_default())));
            }
        }
    }
    Ok(found)
}

/// Forgets which event of `entities` was published last, so that their next poll publishes it again: a tombstone may have met the block
/// that was sealed anew.
///
/// # Errors
/// [`DbError`].
pub async fn publish_again(db: &KeyDb, entities: &HashSet<(SellerId, EntityToken)>) -> Result<(), DbError> {
    let failed = on("forget published events");
    let mut tx = db.begin_write().await?;
    for (seller, token) in entities {
        sqlx::query("UPDATE subject SET event_id = NULL, event_version = NULL WHERE seller = $1 AND token = $2")
            .bind(seller.as_str().to_owned())
            .bind(token.0.to_vec())
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
    }
    tx.commit().await.map_err(&failed)
}

/// What cannot be had again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Blocks that were tombstoned, by seller.
    pub blocks: BTreeMap<SellerId, u64>,
    /// Orders they belonged to, by seller and token.
    pub orders: Vec<(SellerId, EntityToken)>,
    /// Legal holds whose key is lost, by seller and token: what they kept is gone from the cold store.
    pub holds: Vec<(SellerId, EntityToken)>,
}

/// The first of `entities`, as `sunder check` names them.
fn first(entities: &[(SellerId, EntityToken)]) -> Vec<String> {
    entities.iter().take(NAMED_MAX).map(|(seller, token)| format!("{seller}|{token}")).collect()
}

/// Writes down what was lost, and so ends the restores that were noticed up to `noticed`.
///
/// # Errors
/// [`DbError`]: it is counted again.
pub async fn settle(keyring: &Keyring, noticed: &Noticed, lost: &Lost) -> Result<(), DbError> {
    let failed = on("settle a restore");
    let mut report = noticed.report.clone();
    let blocks: u64 = lost.blocks.values().sum();
    if let Some(report) = report.as_object_mut() {
        report.insert("lost_blocks".to_owned(), json!(blocks));
        report.insert("lost_orders".to_owned(), json!(lost.orders.len()));
        report.insert("lost_by_seller".to_owned(), json!(lost.blocks));
        report.insert("lost_first".to_owned(), json!(first(&lost.orders)));
        report.insert("lost_holds".to_owned(), json!(lost.holds.len()));
        report.insert("lost_holds_first".to_owned(), json!(first(&lost.holds)));
    }
    let mut tx = keyring.db().begin_write().await?;
    sqlx::query("UPDATE restored SET state = 'settled' WHERE store = 'keys' AND id <= $1")
        .bind(noticed.id)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    sqlx::query("UPDATE restored SET report = $1 WHERE id = $2")
        .bind(report.to_string())
        .bind(noticed.id)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    let event = AuditEvent {
        actor: ACTOR.to_owned(),
        action: "keys.lost",
        object: format!("restore {}", noticed.id),
        outcome: if blocks == 0 && lost.holds.is_empty() { AuditOutcome::Success } else { AuditOutcome::Failure },
        detail: json!({ "blocks": lost.blocks, "orders": lost.orders.len(), "holds": lost.holds.len() }),
    };
    audit::append(&mut tx, keyring.now(), &event).await?;
    tx.commit().await.map_err(&failed)
}
