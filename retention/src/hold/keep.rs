//! Moving what is held to the cold store, before the order's key goes.
//!
//! Invariants: the audit event is committed before anything is opened; what is opened lives in memory as long as it takes to seal it again;
//! doing it twice leaves the latest version; a field that was sealed and is not in the store yet is waited for.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, SellerId};
use sunder_schemas::records::PiiRecord;

use super::{Hold, RULE, record};
use crate::keydb::on;
use crate::keys::{Context, KeyError, Keyring, OpenError};
use crate::ledger::{self, Fate, SubjectState};
use crate::store::StoreError;

/// Where held fields lie, apart from everything else: rows under tokens of holds, never of orders.
#[async_trait]
pub trait ColdStore: Send + Sync {
    /// The sealed groups of an order, as the vault has them.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn sealed(&self, seller: &SellerId, order: EntityToken) -> Result<Vec<PiiRecord>, StoreError>;

    /// Writes `rows` into the cold store; a row of the same group replaces the one before. Committed when it returns.
    ///
    /// # Errors
    /// [`StoreError`]: nothing may be taken as kept.
    async fn hold(&self, rows: &[PiiRecord]) -> Result<(), StoreError>;

    /// What the cold store has of a hold.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn held(&self, seller: &SellerId, hold: EntityToken) -> Result<Vec<PiiRecord>, StoreError>;
}

/// What moving came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// These groups lie in the cold store.
    Fields(Vec<FieldGroup>),
    /// The order's key is gone: what was moved before is all there is.
    KeyGone,
    /// These groups were sealed and are not in the vault yet.
    NotThereYet(Vec<FieldGroup>),
}

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Keys or key database.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The vault or the cold store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored block is damaged.
    #[error("{group} is damaged")]
    Block {
        /// Which fields.
        group: FieldGroup,
        /// Why it does not open.
        source: OpenError,
    },
}

/// Copies the fields of `hold` from the vault to the cold store, from the order's key to the hold's own.
///
/// # Errors
/// [`KeepError`]: nothing may be taken as kept.
pub async fn keep(keyring: &Keyring, cold: &dyn ColdStore, hold: &Hold, by: &str) -> Result<Kept, KeepError> {
    let SubjectState::Live(order) = keyring.subject(&hold.seller, hold.order_token).await? else { return Ok(Kept::KeyGone) };
    let SubjectState::Live(own) = keyring.subject(&hold.seller, hold.token).await? else { return Ok(Kept::KeyGone) };
    let stored: Vec<PiiRecord> = cold.sealed(&hold.seller, hold.order_token).await?;
    let wanted: Vec<&PiiRecord> = stored.iter().filter(|row| hold.fields.contains(&row.field_group)).collect();
    let fates = ledger::dispositions(keyring.db(), &hold.seller, hold.order_token).await.map_err(KeyError::from)?;
    let was_sealed = |group: &FieldGroup| fates.iter().any(|(g, fate)| g == group && *fate == Fate::Sealed);
    let is_there = |group: &FieldGroup| wanted.iter().any(|row| row.field_group == *group);
    let missing: Vec<FieldGroup> = hold.fields.iter().copied().filter(|group| was_sealed(group) && !is_there(group)).collect();
    if !missing.is_empty() {
        return Ok(Kept::NotThereYet(missing));
    }
    let now = keyring.now();
    let failed = on("move held fields");
    let mut tx = keyring.db().begin_write().await.map_err(KeyError::from)?;
    record(&mut tx, hold, "hold.moved", by, now).await.map_err(KeyError::from)?;
    tx.commit().await.map_err(|e| KeyError::from(failed(e)))?;
    let mut rows = Vec::with_capacity(wanted.len());
    for row in wanted {
        let group = row.field_group;
        let from = Context { seller: &hold.seller, entity: hold.order_token, group, classification: &row.classification };
        let plain = order.open(&from, row.block.as_bytes()).map_err(|source| KeepError::Block { group, source })?;
        let to = Context { entity: hold.token, ..from };
        rows.push(PiiRecord {
            attribution: Arc::clone(&row.attribution),
            source_version: row.source_version,
            entity_token: hold.token,
            field_group: group,
            key_id: own.id(),
            classification: row.classification.clone(),
            deadline: hold.until,
            deadline_rule: RULE.to_owned(),
            block: own.seal(&to, plain.reveal()),
        });
    }
    cold.hold(&rows).await?;
    let groups: Vec<FieldGroup> = rows.iter().map(|row| row.field_group).collect();
    let mut tx = keyring.db().begin_write().await.map_err(KeyError::from)?;
    sqlx::query("UPDATE hold SET moved_at = $1, moved_fields = $2 WHERE hold_id = $3")
        .bind(now.0)
        .bind(json!(groups).to_string())
        .bind(hold.id.clone())
        .execute(&mut *tx)
        .await
        .map_err(|e| KeyError::from(failed(e)))?;
    tx.commit().await.map_err(|e| KeyError::from(failed(e)))?;
    Ok(Kept::Fields(groups))
}
