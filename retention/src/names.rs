//! What the ledger and the stores call an order, also once its seller has left.
//!
//! Invariants: asking makes nothing: a seller that is not known stays so; a seller that left has no token key any more, but its ledger
//! key survives, so that whether one of its orders was erased can be told for good. A clear order id goes no further than this.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;
use sunder_schemas::ids::{EntityToken, Fingerprint, OrderId, SellerId};

use crate::keydb::{DbError, ROWS_PER_STATEMENT, blob, on, push_tuples};
use crate::keys::{KeyError, Keyring, ledger_fingerprints};
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
    Ok(name_all(keyring, seller, std::slice::from_ref(order)).await?.pop().unwrap_or_default())
}

/// The names of `orders`, in their order. The seller and its keys are looked up once.
///
/// # Errors
/// [`KeyError`]; that the seller left is no error.
pub async fn name_all(keyring: &Keyring, seller: &SellerId, orders: &[OrderId]) -> Result<Vec<Named>, KeyError> {
    keyring.check_lease()?;
    match sellers::state(keyring.db(), seller).await? {
        None => return Ok(vec![Named::default(); orders.len()]),
        Some(SellerState::Removed) => {}
        Some(SellerState::Active | SellerState::Paused | SellerState::Blocked) => match keyring.seller(seller).await {
            Ok(keys) => {
                let of = |order| Named { fingerprint: Some(keys.fingerprint(order)), token: Some(keys.order_token(order)) };
                return Ok(orders.iter().map(of).collect());
            }
            // It left between the two looks.
            Err(KeyError::SellerRemoved(_)) => {}
            Err(error) => return Err(error),
        },
    }
    let Some(fingerprints) = ledger_fingerprints(keyring, seller, orders).await? else { return Ok(vec![Named::default(); orders.len()]) };
    let tokens = tokens_of(keyring, &fingerprints).await?;
    Ok(fingerprints.into_iter().map(|of| Named { fingerprint: Some(of), token: tokens.get(&of).copied() }).collect())
}

/// The tokens that the ledger keeps of subjects; of those it does not know, none.
async fn tokens_of(keyring: &Keyring, fingerprints: &[Fingerprint]) -> Result<HashMap<Fingerprint, EntityToken>, DbError> {
    let mut tokens = HashMap::new();
    for chunk in fingerprints.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "SELECT fingerprint, token FROM subject WHERE token IS NOT NULL AND fingerprint IN ".to_owned();
        push_tuples(&mut sql, 1, chunk.len(), 1);
        // Only placeholders were added to the fixed text.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for fingerprint in chunk {
            query = query.bind(fingerprint.0.to_vec());
        }
        for row in query.fetch_all(keyring.db().pool()).await.map_err(on("read subjects"))? {
            tokens.extend(blob(&row, "fingerprint")?.map(Fingerprint).zip(blob(&row, "token")?.map(EntityToken)));
        }
    }
    Ok(tokens)
}
