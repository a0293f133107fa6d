//! What the ledger and the stores call an order, also once its seller has left.
//!
//! Invariants: asking makes nothing: a seller that is not known stays so; a seller that left has no token key any more, but its ledger
//! key survives, so that whether one of its orders was erased can be told for good. A clear order id goes no further than this.

use sunder_schemas::ids::{EntityToken, Fingerprint, OrderId, SellerId};

use crate::keydb::{DbError, blob, on};
use crate::keys::{KeyError, Keyring, ledger_fingerprint};
use crate::sellers::{self, SellerState};

/// The names of one order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// What the erased ledger knows it by; `None` where the seller is not known.
    pub fingerprint: Option<Fingerprint>,
    /// What topics and stores know it by; `None` where the seller is not known, or left without ever having had the order.
    pub token: Option<EntityToken>,
}

/// The names of `order`.
///
/// # Errors
/// [`KeyError`]; that the seller left is no error.
pub async fn name(keyring: &Keyring, seller: &SellerId, order: &OrderId) -> Result<Named, KeyError> {
    keyring.check_lease()?;
    match sellers::state(keyring.db(), seller).await? {
        None => return Ok(Named::default()),
        Some(SellerState::Removed) => {}
        Some(SellerState::Active | SellerState::Paused | SellerState::Blocked) => match keyring.seller(seller).await {
            Ok(keys) => return Ok(Named { fingerprint: Some(keys.fingerprint(order)), token: Some(keys.order_token(order)) }),
            // It left between the two looks.
            Err(KeyError::SellerRemoved(_)) => {}
            Err(error) => return Err(error),
        },
    }
    let fingerprint = ledger_fingerprint(keyring, seller, order).await?;
    let token = match fingerprint {
        Some(fingerprint) => token_of(keyring, fingerprint).await?,
        None => None,
    };
    Ok(Named { fingerprint, token })
}

/// The token that the ledger keeps of a subject.
async fn token_of(keyring: &Keyring, fingerprint: Fingerprint) -> Result<Option<EntityToken>, DbError> {
    let row = sqlx::query("SELECT token FROM subject WHERE fingerprint = $1")
        .bind(fingerprint.0.to_vec())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(on("read a subject"))?;
    row.map_or(Ok(None), |row| Ok(blob(&row, "token")?.map(EntityToken)))
}
