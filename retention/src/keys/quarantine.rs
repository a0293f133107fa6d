//! The quarantine key: one a day, wrapped by the root, for what belongs to no order; destroyed after 7 days (DESIGN section 2, rule 2).

use std::sync::{Arc, PoisonError};

use ring::rand::SecureRandom as _;
use sqlx::Row;
use sunder_schemas::ids::KeyId;
use sunder_schemas::time::Period;

use super::seal::{self, DataKey};
use super::{KeyError, Keyring};
use crate::keydb::{DbError, blob, on};
use crate::ledger;
use crate::outbox::{self, Outgoing};
use crate::rotate::guard;

/// How long a day's key lives after its day (DESIGN section 2, rule 2).
pub(crate) const QUARANTINE_LIFE: Period = Period::days(7);

pub(crate) fn context(day: &str, id: KeyId) -> Vec<u8> {
    [b"sunder quarantine key 1".as_slice(), day.as_bytes(), &id.0].concat()
}

pub(super) async fn of_today(keyring: &Keyring) -> Result<Arc<DataKey>, KeyError> {
    let day = keyring.now().to_utc().format("%Y-%m-%d").to_string();
    if let Some((of, key)) = keyring.quarantine.read().unwrap_or_else(PoisonError::into_inner).as_ref()
        && *of == day
    {
        return Ok(Arc::clone(key));
    }
    let key = match load(keyring, &day).await? {
        Some(key) => key,
        None => {
            guard::wrapping!(mint(keyring, &day))?;
            load(keyring, &day).await?.ok_or(DbError::fixed("read the quarantine key", "row_missing"))?
        }
    };
    let key = Arc::new(key);
    *keyring.quarantine.write().unwrap_or_else(PoisonError::into_inner) = Some((day, Arc::clone(&key)));
    Ok(key)
}

async fn mint(keyring: &Keyring, day: &str) -> Result<(), KeyError> {
    let failed = on("add a quarantine key");
    let mut bytes = zeroize::Zeroizing::new([0u8; 32]);
    let mut id = [0u8; 16];
    keyring.random().fill(bytes.as_mut()).and_then(|()| keyring.random().fill(&mut id)).map_err(|_| KeyError::NoRandomness)?;
    let wrapped = keyring.root().wrap(&context(day, KeyId(id)), bytes.as_ref()).await?;
    let mut tx = keyring.db().begin_write().await?;
    sqlx::query(
        "INSERT INTO quarantine_key (day, key_id, wrapped, commitment, state) VALUES ($1, $2, $3, $4, 'live') ON CONFLICT (day) DO NOTHING",
    )
    .bind(day.to_owned())
    .bind(id.to_vec())
    .bind(wrapped.clone())
    .bind(seal::commitment(bytes.as_ref()).to_vec())
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    guard::may_commit(keyring.db(), &mut tx, keyring.root(), &[&wrapped]).await?;
    tx.commit().await.map_err(&failed)?;
    Ok(())
}

async fn load(keyring: &Keyring, day: &str) -> Result<Option<DataKey>, KeyError> {
    let failed = on("read the quarantine key");
    let row = sqlx::query("SELECT key_id, wrapped, commitment FROM quarantine_key WHERE day = $1")
        .bind(day.to_owned())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let Some(row) = row else { return Ok(None) };
    let damaged = || DbError::fixed("read the quarantine key", "damaged");
    let id = KeyId(blob(&row, "key_id")?.ok_or_else(damaged)?);
    let wrapped: Option<Vec<u8>> = row.try_get("wrapped").map_err(&failed)?;
    let commitment: Vec<u8> = row.try_get("commitment").map_err(&failed)?;
    // The key of a past day may be gone, that of today only if the clock was set back: then nothing may be sealed.
    let wrapped = wrapped.ok_or_else(|| DbError::fixed("read the quarantine key", "destroyed"))?;
    let bytes = keyring.root().unwrap(&context(day, id), &wrapped).await?;
    if !seal::commits(&bytes, &commitment) {
        return Err(damaged().into());
    }
    Ok(Some(DataKey::from_bytes(id, &bytes).ok_or_else(damaged)?))
}

pub(super) async fn sweep(keyring: &Keyring) -> Result<Vec<KeyId>, KeyError> {
    let failed = on("destroy quarantine keys");
    let now = keyring.now();
    // A day's key may be used until the end of its day, so its 7 days count from there.
    let last = now.minus(QUARANTINE_LIFE).minus(Period::days(1)).to_utc().format("%Y-%m-%d").to_string();
    let mut tx = keyring.db().begin_write().await?;
    let rows = sqlx::query(
        "UPDATE quarantine_key SET wrapped = NULL, state = 'destroyed', destroyed_at = $1 WHERE state = 'live' AND day < $2 RETURNING key_id",
    )
    .bind(now.0)
    .bind(last)
    .fetch_all(&mut *tx)
    .await
    .map_err(&failed)?;
    let keys: Vec<KeyId> = rows.iter().map(|row| Ok(KeyId(blob(row, "key_id")?.unwrap_or_default()))).collect::<Result<_, DbError>>()?;
    if keys.is_empty() {
        tx.rollback().await.map_err(&failed)?;
        return Ok(keys);
    }
    let epoch = ledger::next_epoch(&mut tx).await?;
    ledger::revoke(&mut tx, &keys, epoch, now).await?;
    let records: Vec<Outgoing> = keys.iter().map(|key| ledger::revoked_record(*key, epoch, now)).collect();
    outbox::push(&mut tx, &records).await?;
    tx.commit().await.map_err(&failed)?;
    keyring.revoke(&keys);
    Ok(keys)
}
