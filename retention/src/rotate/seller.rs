//! A seller's wrapping key: a new version beside the old, every data key wrapped anew in batches, the old version destroyed.

use ring::rand::SecureRandom as _;
use serde_json::json;
use sqlx::Row;
use sunder_schemas::ids::{Fingerprint, KeyId, SellerId};
use zeroize::Zeroizing;

use super::{ACTION, LOOK_AGAIN, guard};
use crate::admit::{self, mask};
use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::{DbError, Write, blob, numbered, on, push_tuples};
use crate::keys::{KeyError, Keyring, SellerKeys, wrapping_context};
use crate::lease;
use crate::ledger::{self, lock_seller};
use crate::root::KEY_LEN;
use crate::sellers::SellerState;

/// Data keys that are wrapped anew in one transaction, while the seller's admissions wait. Chosen: some milliseconds.
const BATCH: i64 = 250;

/// What a rotation of one seller came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SellerRotation {
    /// Whose.
    pub seller: SellerId,
    /// The version that wraps from now on.
    pub version: i64,
    /// Data keys that were wrapped anew by this call.
    pub rewrapped: u64,
}

/// Rotates the wrapping key of `seller`, or ends a rotation that was cut off. Returns once the old version is destroyed in the database
/// and every living process has let go of it. `actor` asked for it.
///
/// # Errors
/// [`KeyError::SellerRemoved`]; any other: call again, it goes on where it was.
pub async fn rotate_seller(keyring: &Keyring, seller: &SellerId, actor: &str) -> Result<SellerRotation, KeyError> {
    guard::wrapping!(begin(keyring, seller))?;
    let mut rewrapped = 0;
    loop {
        match rewrap(keyring, seller).await? {
            0 => break,
            count => rewrapped += count,
        }
    }
    let (version, epoch) = finish(keyring, seller, rewrapped, actor).await?;
    keyring.forget_seller(seller);
    while !lease::acknowledged(keyring.db(), epoch).await? {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(SellerRotation { seller: seller.clone(), version, rewrapped })
}

/// Makes the new version, unless one is on its way.
pub(super) async fn begin(keyring: &Keyring, seller: &SellerId) -> Result<(), KeyError> {
    let failed = on("begin a rotation");
    let row = sqlx::query(
        "SELECT generation, wrapping_version, wrapping_previous IS NOT NULL, wrapping_key IS NOT NULL FROM seller WHERE seller = $1",
    )
    .bind(seller.as_str().to_owned())
    .fetch_optional(keyring.db().pool())
    .await
    .map_err(&failed)?
    .ok_or_else(|| KeyError::SellerUnknown(seller.clone()))?;
    // PostgreSQL says BOOLEAN, SQLite says INTEGER.
    let flag = |column: usize| row.try_get::<bool, _>(column).or_else(|_| row.try_get::<i64, _>(column).map(|n| n != 0)).map_err(&failed);
    if !flag(3)? {
        return Err(KeyError::SellerRemoved(seller.clone()));
    }
    if flag(2)? {
        return Ok(());
    }
    let (generation, version): (i64, i64) = (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?);
    let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
    keyring.random().fill(bytes.as_mut()).map_err(|_| KeyError::NoRandomness)?;
    let wrapped = keyring.root().wrap(&wrapping_context(seller, generation, version + 1), bytes.as_ref()).await?;
    let mut tx = keyring.db().begin_write().await?;
    lock_seller(&mut tx, seller).await?;
    // Another process may have begun meanwhile: then its version stands.
    sqlx::query(
        "UPDATE seller SET wrapping_previous = wrapping_key, wrapping_key = $1, wrapping_version = wrapping_version + 1, \
         wrapping_since = $2 WHERE seller = $3 AND generation = $4 AND wrapping_version = $5 AND wrapping_previous IS NULL \
         AND wrapping_key IS NOT NULL AND state <> 'removed'",
    )
    .bind(wrapped.clone())
    .bind(keyring.now().0)
    .bind(seller.as_str().to_owned())
    .bind(generation)
    .bind(version)
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    // Processes read the seller's keys again when the epoch rises; admission asks under the seller's lock in any case.
    ledger::next_epoch(&mut tx).await?;
    guard::may_commit(keyring.db(), &mut tx, keyring.root(), &[&wrapped]).await?;
    tx.commit().await.map_err(&failed)?;
    keyring.forget_seller(seller);
    Ok(())
}

/// Wraps one batch of data keys anew; returns how many it was.
pub(super) async fn rewrap(keyring: &Keyring, seller: &SellerId) -> Result<u64, KeyError> {
    let failed = on("wrap data keys anew");
    let keys = keyring.seller(seller).await?;
    let mut tx = keyring.db().begin_write().await?;
    let locked = lock_seller(&mut tx, seller).await?;
    if locked.as_ref().is_none_or(|locked| locked.state == SellerState::Removed.as_str()) {
        return Err(KeyError::SellerRemoved(seller.clone()));
    }
    if !locked.is_some_and(|locked| keys.is_current(&locked)) {
        keyring.forget_seller(seller);
        return Err(admit::outdated("wrap data keys anew").into());
    }
    let rows = sqlx::query(
        "SELECT fingerprint, key_id, wrapped, commitment, wrapping_version FROM subject WHERE seller = $1 AND state = 'live' \
         AND wrapping_version < $2 ORDER BY fingerprint LIMIT $3",
    )
    .bind(seller.as_str().to_owned())
    .bind(keys.wrapping_version())
    .bind(BATCH)
    .fetch_all(&mut *tx)
    .await
    .map_err(&failed)?;
    let mut anew = Vec::with_capacity(rows.len());
    for row in &rows {
        let bad = || KeyError::Damaged { what: "subject row", seller: seller.clone() };
        let fingerprint = Fingerprint(blob(row, "fingerprint")?.ok_or_else(bad)?);
        let id = KeyId(blob(row, "key_id")?.ok_or_else(bad)?);
        let (wrapped, commitment): (Vec<u8>, Vec<u8>) = (row.try_get(2).map_err(&failed)?, row.try_get(3).map_err(&failed)?);
        let bytes = keys.unwrap_bytes(id, fingerprint, &wrapped, row.try_get(4).map_err(&failed)?, &commitment)?;
        anew.push((fingerprint, keys.wrap(keyring.random(), id, fingerprint, &bytes).ok_or(KeyError::NoRandomness)?));
    }
    if !anew.is_empty() {
        write(&mut tx, &keys, &anew).await?;
    }
    tx.commit().await.map_err(&failed)?;
    Ok(anew.len() as u64)
}

/// One statement for the batch: rows exist and are locked with their seller, so the insert never inserts.
async fn write(tx: &mut Write, keys: &SellerKeys, anew: &[(Fingerprint, Vec<u8>)]) -> Result<(), DbError> {
    for chunk in anew.chunks(crate::keydb::ROWS_PER_STATEMENT) {
        let mut sql =
            "INSERT INTO subject (fingerprint, seller, state, created_at, wrapped, wrapped_mask, wrapping_version) VALUES ".to_owned();
        push_tuples(&mut sql, chunk.len(), 7, 1);
        sql.push_str(
            " ON CONFLICT (fingerprint) DO UPDATE SET wrapped = excluded.wrapped, wrapped_mask = excluded.wrapped_mask, \
             wrapping_version = excluded.wrapping_version WHERE subject.state = 'live'",
        );
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for (fingerprint, wrapped) in chunk {
            query = query
                .bind(fingerprint.0.to_vec())
                .bind(keys.seller().as_str().to_owned())
                .bind("live")
                .bind(0i64)
                .bind(wrapped.clone())
                .bind(mask(wrapped))
                .bind(keys.wrapping_version());
        }
        query.execute(&mut **tx).await.map_err(on("wrap data keys anew"))?;
    }
    Ok(())
}

/// Destroys the old version, now that nothing lies under it; returns the version in use and the ledger epoch that says so.
pub(super) async fn finish(keyring: &Keyring, seller: &SellerId, rewrapped: u64, actor: &str) -> Result<(i64, i64), KeyError> {
    let failed = on("end a rotation");
    let mut tx = keyring.db().begin_write().await?;
    let locked = lock_seller(&mut tx, seller).await?.ok_or_else(|| KeyError::SellerUnknown(seller.clone()))?;
    let row = sqlx::query("SELECT COUNT(*) FROM subject WHERE seller = $1 AND state = 'live' AND wrapping_version < $2")
        .bind(seller.as_str().to_owned())
        .bind(locked.wrapping_version)
        .fetch_one(&mut *tx)
        .await
        .map_err(&failed)?;
    if row.try_get::<i64, _>(0).map_err(&failed)? != 0 {
        return Err(DbError { action: "end a rotation", code: "keys_left".to_owned(), retry: true }.into());
    }
    sqlx::query("UPDATE seller SET wrapping_previous = NULL WHERE seller = $1")
        .bind(seller.as_str().to_owned())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    let epoch = ledger::next_epoch(&mut tx).await?;
    let event = AuditEvent {
        actor: actor.to_owned(),
        action: ACTION,
        object: format!("wrapping key of {seller}"),
        outcome: AuditOutcome::Success,
        detail: json!({ "version": locked.wrapping_version, "rewrapped": rewrapped, "epoch": epoch }),
    };
    audit::append(&mut tx, keyring.now(), &event).await?;
    tx.commit().await.map_err(&failed)?;
    Ok((locked.wrapping_version, epoch))
}
