//! The keys that still exist, as bytes: what the recover test tries against the witnesses of destroyed ones. Nothing else may ask.

use sqlx::Row;
use sunder_schemas::ids::{Fingerprint, KeyId, SellerId};
use zeroize::Zeroizing;

use super::{KeyError, Keyring, quarantine, seller};
use crate::keydb::{DbError, blob, on};

impl Keyring {
    /// The bytes of the seller's own keys, of every quarantine key, and of its live data keys, the newest first, at most `most`.
    pub(crate) async fn surviving(&self, of: &SellerId, most: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, KeyError> {
        let mut bytes = self.own_keys(of).await?;
        bytes.extend(self.quarantine_keys().await?);
        let room = most.saturating_sub(bytes.len());
        bytes.extend(self.live_keys(of, room).await?);
        bytes.truncate(most);
        Ok(bytes)
    }

    async fn own_keys(&self, of: &SellerId) -> Result<Vec<Zeroizing<Vec<u8>>>, KeyError> {
        let failed = on("read a seller's keys");
        let row = sqlx::query(
            "SELECT generation, wrapping_key, wrapping_previous, token_key, ledger_key, wrapping_version FROM seller WHERE seller = $1",
        )
        .bind(of.as_str().to_owned())
        .fetch_optional(self.db().pool())
        .await
        .map_err(&failed)?;
        let Some(row) = row else { return Ok(Vec::new()) };
        let generation: i64 = row.try_get(0).map_err(&failed)?;
        let version: i64 = row.try_get(5).map_err(&failed)?;
        let mut bytes = Vec::new();
        let contexts = [
            seller::wrapping_context(of, generation, version),
            seller::wrapping_context(of, generation, version - 1),
            seller::role_context(of, seller::TOKENS, generation),
            seller::role_context(of, seller::LEDGER, 1),
        ];
        for (column, context) in (1usize..).zip(contexts) {
            let wrapped: Option<Vec<u8>> = row.try_get(column).map_err(&failed)?;
            if let Some(wrapped) = wrapped {
                bytes.push(self.root().unwrap(&context, &wrapped).await?);
            }
        }
        Ok(bytes)
    }

    async fn quarantine_keys(&self) -> Result<Vec<Zeroizing<Vec<u8>>>, KeyError> {
        let failed = on("read the quarantine keys");
        let rows = sqlx::query("SELECT day, key_id, wrapped FROM quarantine_key WHERE wrapped IS NOT NULL ORDER BY day")
            .fetch_all(self.db().pool())
            .await
            .map_err(&failed)?;
        let mut bytes = Vec::with_capacity(rows.len());
        for row in rows {
            let day: String = row.try_get(0).map_err(&failed)?;
            let id = blob(&row, "key_id")?.map(KeyId).ok_or(DbError::fixed("read the quarantine keys", "bad_key_id"))?;
            let wrapped: Vec<u8> = row.try_get(2).map_err(&failed)?;
            bytes.push(self.root().unwrap(&quarantine::context(&day, id), &wrapped).await?);
        }
        Ok(bytes)
    }

    async fn live_keys(&self, of: &SellerId, most: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, KeyError> {
        let failed = on("read live keys");
        let rows = sqlx::query(
            "SELECT fingerprint, key_id, wrapped, commitment, wrapping_version FROM subject WHERE seller = $1 AND state = 'live' ORDER BY created_at DESC, \
             fingerprint LIMIT $2",
        )
        .bind(of.as_str().to_owned())
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(self.db().pool())
        .await
        .map_err(&failed)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let keys = self.seller(of).await?;
        let bad = || DbError::fixed("read live keys", "bad_column");
        let mut bytes = Vec::with_capacity(rows.len());
        for row in rows {
            let fingerprint = Fingerprint(blob(&row, "fingerprint")?.ok_or_else(bad)?);
            let id = blob(&row, "key_id")?.map(KeyId).ok_or_else(bad)?;
            let wrapped: Vec<u8> = row.try_get(2).map_err(&failed)?;
            let commitment: Vec<u8> = row.try_get(3).map_err(&failed)?;
            bytes.push(keys.unwrap_bytes(id, fingerprint, &wrapped, row.try_get(4).map_err(&failed)?, &commitment)?);
        }
        Ok(bytes)
    }
}
