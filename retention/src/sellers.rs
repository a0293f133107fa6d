//! Sellers as the key database knows them: who is polled, with the refresh token wrapped by the root key. Each change of who is polled
//! is told on `control.sellers` through the outbox; the database decides.
//!
//! Invariants: a refresh token is stored wrapped and opened by a poller alone; `removed` is terminal and beats the config; only a
//! readmission reopens it, with new keys, except the ledger key, so that what was erased stays erased.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sunder_schemas::ids::{MarketplaceId, SellerId};
use sunder_schemas::key;

use crate::keydb::{DbError, KeyDb, Write, on};
use crate::keys::{KeyError, Keyring};
use crate::ledger::lock_seller;
use crate::mirror;
use crate::outbox::{self, Outgoing};
use crate::rotate::guard;

/// Where a change of who is polled is told.
const TOPIC: &str = "control.sellers";

/// Whether a seller is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SellerState {
    /// Polled.
    Active,
    /// Not polled until resumed; its data stays and expires as ever.
    Paused,
    /// Not polled: a poller could not (token revoked, key missing); the code says why.
    Blocked,
    /// Gone, for good unless readmitted.
    Removed,
}

impl SellerState {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Blocked => "blocked",
            Self::Removed => "removed",
        }
    }
}

impl fmt::Display for SellerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SellerState {
    type Err = DbError;
    fn from_str(text: &str) -> Result<Self, DbError> {
        match text {
            "active" => Ok(Self::Active),
            "paused" => Ok(Self::Paused),
            "blocked" => Ok(Self::Blocked),
            "removed" => Ok(Self::Removed),
            _ => Err(DbError::fixed("read a seller", "bad_column")),
        }
    }
}

/// A seller, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seller {
    /// Amazon's merchant id.
    pub id: SellerId,
    /// `eu`, `na` or `fe`; `None` until it is added with its account.
    pub region: Option<String>,
    /// Its marketplaces.
    pub marketplaces: Vec<MarketplaceId>,
    /// Whether it is polled.
    pub state: SellerState,
    /// Why it is paused or blocked.
    pub code: Option<String>,
    /// Whether a refresh token is stored.
    pub has_refresh_token: bool,
}

/// A seller to add, or to bring up to date.
#[derive(Debug, Clone)]
pub struct Account {
    /// Amazon's merchant id.
    pub id: SellerId,
    /// `eu`, `na` or `fe`.
    pub region: String,
    /// Its marketplaces.
    pub marketplaces: Vec<MarketplaceId>,
    /// Its LWA refresh token; `None` leaves the stored one.
    pub refresh_token: Option<SecretString>,
}

/// Adds `account`, or brings a known one up to date; its state stays. Called for each seller of the config at start, and by `sellers add`.
///
/// # Errors
/// [`KeyError::SellerRemoved`] where the seller left: see [`readmit`].
pub async fn put(keyring: &Keyring, account: &Account) -> Result<(), KeyError> {
    guard::wrapping!(try_put(keyring, account))
}

async fn try_put(keyring: &Keyring, account: &Account) -> Result<(), KeyError> {
    let failed = on("add a seller");
    // Makes the keys of a new seller, and refuses one that was removed.
    keyring.seller(&account.id).await?;
    let token = match &account.refresh_token {
        Some(token) => Some(keyring.root().wrap(&token_context(&account.id), token.expose_secret().as_bytes()).await?),
        None => None,
    };
    let marketplaces = serde_json::to_string(&account.marketplaces).map_err(|_| DbError::fixed("add a seller", "bad_marketplaces"))?;
    let mut tx = keyring.db().begin_write().await?;
    let known = told(&mut tx, &account.id).await?;
    let done = sqlx::query(
        "UPDATE seller SET region = $1, marketplaces = $2, refresh_token = COALESCE($3, refresh_token), updated_at = $4 \
         WHERE seller = $5 AND state <> 'removed'",
    )
    .bind(account.region.clone())
    .bind(marketplaces)
    .bind(token.clone())
    .bind(keyring.now().0)
    .bind(account.id.as_str().to_owned())
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    // Every start puts every seller of the config: only what changed is told.
    if told(&mut tx, &account.id).await? != known {
        tell(&mut tx, &account.id).await?;
    }
    let wrapped: Vec<&[u8]> = token.iter().map(Vec::as_slice).collect();
    guard::may_commit(keyring.db(), &mut tx, keyring.root(), &wrapped).await?;
    tx.commit().await.map_err(&failed)?;
    if done.rows_affected() == 1 {
        Ok(())
    } else {
        keyring.forget_seller(&account.id);
        Err(KeyError::SellerRemoved(account.id.clone()))
    }
}

/// Opens a removed seller again: new wrapping and token keys, the old ledger key. Its old tokens stay dead.
///
/// # Errors
/// [`KeyError::SellerUnknown`] where there is no removed seller of this id.
pub async fn readmit(keyring: &Keyring, seller: &SellerId) -> Result<(), KeyError> {
    guard::wrapping!(try_readmit(keyring, seller))
}

async fn try_readmit(keyring: &Keyring, seller: &SellerId) -> Result<(), KeyError> {
    let failed = on("readmit a seller");
    let row = sqlx::query("SELECT generation FROM seller WHERE seller = $1 AND state = 'removed'")
        .bind(seller.as_str().to_owned())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let unknown = || KeyError::SellerUnknown(seller.clone());
    let generation: i64 = row.ok_or_else(unknown)?.try_get(0).map_err(&failed)?;
    let fresh = crate::keys::fresh(keyring, seller, generation + 1).await?;
    let mut tx = keyring.db().begin_write().await?;
    let done = sqlx::query(
        "UPDATE seller SET state = 'active', state_code = NULL, generation = generation + 1, wrapping_key = $1, wrapping_previous = NULL, wrapping_version = 1, wrapping_since = $3, \
         token_key = $2, updated_at = $3 WHERE seller = $4 AND state = 'removed' AND generation = $5",
    )
    .bind(fresh.wrapping.clone())
    .bind(fresh.tokens.clone())
    .bind(keyring.now().0)
    .bind(seller.as_str().to_owned())
    .bind(generation)
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    if done.rows_affected() == 1 {
        // It is read from its beginning again: what was erased is gated by the ledger, the rest has to come back.
        for table in ["DELETE FROM poll_cursor WHERE seller = $1", "DELETE FROM poll_gap WHERE seller = $1"] {
            sqlx::query(table).bind(seller.as_str().to_owned()).execute(&mut *tx).await.map_err(&failed)?;
        }
        mirror::seller(&mut tx, seller, generation + 1, false).await?;
        tell(&mut tx, seller).await?;
    }
    guard::may_commit(keyring.db(), &mut tx, keyring.root(), &[&fresh.wrapping, &fresh.tokens]).await?;
    tx.commit().await.map_err(&failed)?;
    keyring.forget_seller(seller);
    if done.rows_affected() == 1 { Ok(()) } else { Err(unknown()) }
}

/// Every seller, by id.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &KeyDb) -> Result<Vec<Seller>, DbError> {
    let failed = on("list sellers");
    let rows = sqlx::query(
        "SELECT seller, region, marketplaces, state, state_code, CASE WHEN refresh_token IS NULL THEN 0 ELSE 1 END FROM seller ORDER BY seller",
    )
    .fetch_all(db.pool())
    .await
    .map_err(&failed)?;
    let bad = || DbError::fixed("list sellers", "bad_column");
    rows.iter()
        .map(|row| {
            let marketplaces: Option<String> = row.try_get(2).map_err(&failed)?;
            Ok(Seller {
                id: row.try_get::<String, _>(0).map_err(&failed)?.parse().map_err(|_| bad())?,
                region: row.try_get(1).map_err(&failed)?,
                marketplaces: marketplaces.map_or_else(|| Ok(Vec::new()), |text| serde_json::from_str(&text)).map_err(|_| bad())?,
                state: row.try_get::<String, _>(3).map_err(&failed)?.parse()?,
                code: row.try_get(4).map_err(&failed)?,
                // PostgreSQL says INTEGER, SQLite says BIGINT: both read as this.
                has_refresh_token: row.try_get::<i64, _>(5).or_else(|_| row.try_get::<i32, _>(5).map(i64::from)).map_err(&failed)? == 1,
            })
        })
        .collect()
}

/// The seller's state; `None` where it is not known.
///
/// # Errors
/// [`DbError`].
pub async fn state(db: &KeyDb, seller: &SellerId) -> Result<Option<SellerState>, DbError> {
    let failed = on("read a seller");
    let row = sqlx::query("SELECT state FROM seller WHERE seller = $1")
        .bind(seller.as_str().to_owned())
        .fetch_optional(db.pool())
        .await
        .map_err(&failed)?;
    row.map(|row| row.try_get::<String, _>(0).map_err(&failed)?.parse()).transpose()
}

/// Pauses, blocks or resumes a seller; `code` says why. A removed one stays removed.
///
/// # Errors
/// [`KeyError::SellerRemoved`] or [`KeyError::SellerUnknown`].
pub async fn set_state(keyring: &Keyring, seller: &SellerId, to: SellerState, code: Option<&str>) -> Result<(), KeyError> {
    let failed = on("change a seller's state");
    let mut tx = keyring.db().begin_write().await?;
    let done = sqlx::query("UPDATE seller SET state = $1, state_code = $2, updated_at = $3 WHERE seller = $4 AND state <> 'removed'")
        .bind(to.as_str())
        .bind(code.map(str::to_owned))
        .bind(keyring.now().0)
        .bind(seller.as_str().to_owned())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    if done.rows_affected() == 1 {
        tell(&mut tx, seller).await?;
    }
    tx.commit().await.map_err(&failed)?;
    if to == SellerState::Removed {
        keyring.forget_seller(seller);
    }
    if done.rows_affected() == 1 {
        return Ok(());
    }
    match state(keyring.db(), seller).await? {
        Some(_) => Err(KeyError::SellerRemoved(seller.clone())),
        None => Err(KeyError::SellerUnknown(seller.clone())),
    }
}

/// Blocks a seller whose grant was refused, with `code`; returns whether it was. One that is paused or removed stays so, and so does one
/// that was given another refresh token than `refused` meanwhile: that one was not tried yet.
///
/// # Errors
/// [`KeyError`].
pub async fn block(keyring: &Keyring, seller: &SellerId, refused: &SecretString, code: &str) -> Result<bool, KeyError> {
    if state(keyring.db(), seller).await? != Some(SellerState::Active)
        || refresh_token(keyring, seller).await?.expose_secret() != refused.expose_secret()
    {
        return Ok(false);
    }
    set_state(keyring, seller, SellerState::Blocked, Some(code)).await.map(|()| true)
}

/// Lets a blocked seller be polled again if `token` is another than the one that was refused; returns whether it does.
///
/// # Errors
/// [`KeyError`].
pub async fn unblock_with(keyring: &Keyring, seller: &SellerId, token: &SecretString) -> Result<bool, KeyError> {
    if state(keyring.db(), seller).await? != Some(SellerState::Blocked)
        || refresh_token(keyring, seller).await?.expose_secret() == token.expose_secret()
    {
        return Ok(false);
    }
    set_state(keyring, seller, SellerState::Active, None).await.map(|()| true)
}

/// Destroys what opens a removed seller's data and makes its tokens, within the transaction of its off-boarding case, once the case has
/// recorded its tokens: refresh token, wrapping key, token key. The ledger key stays. A seller that was never known has none.
///
/// # Errors
/// [`DbError`] where the seller is not removed: set its state first, so that no poller mints in between.
pub async fn destroy_keys(tx: &mut Write, seller: &SellerId) -> Result<(), DbError> {
    let failed = on("destroy a seller's keys");
    let row = sqlx::query(
        "UPDATE seller SET refresh_token = NULL, wrapping_key = NULL, wrapping_previous = NULL, token_key = NULL WHERE seller = $1 AND state = 'removed' \
         RETURNING generation",
    )
    .bind(seller.as_str().to_owned())
    .fetch_optional(&mut **tx)
    .await
    .map_err(&failed)?;
    if let Some(row) = row {
        return mirror::seller(tx, seller, row.try_get(0).map_err(&failed)?, true).await;
    }
    if lock_seller(tx, seller).await?.is_none() {
        return Ok(());
    }
    Err(DbError { action: "destroy a seller's keys", code: "not_removed".to_owned(), retry: true })
}

/// What `control.sellers` says of a seller: `{"state", "code", "region", "marketplaces"}`; `None` for one that is removed or unknown.
async fn told(tx: &mut Write, seller: &SellerId) -> Result<Option<String>, DbError> {
    let failed = on("read a seller");
    let row = sqlx::query("SELECT state, state_code, region, marketplaces FROM seller WHERE seller = $1 AND state <> 'removed'")
        .bind(seller.as_str().to_owned())
        .fetch_optional(&mut **tx)
        .await
        .map_err(&failed)?;
    let Some(row) = row else { return Ok(None) };
    let text = |column: usize| row.try_get::<Option<String>, _>(column).map_err(&failed);
    let marketplaces: Vec<MarketplaceId> = text(3)?
        .map_or_else(|| Ok(Vec::new()), |list| serde_json::from_str(&list))
        .map_err(|_| DbError::fixed("read a seller", "bad_column"))?;
    Ok(Some(json!({ "state": text(0)?, "code": text(1)?, "region": text(2)?, "marketplaces": marketplaces }).to_string()))
}

/// Tells on `control.sellers` how `seller` stands within `tx`: who is polled, and with a tombstone, who is not any more.
///
/// # Errors
/// [`DbError`].
pub(crate) async fn tell(tx: &mut Write, seller: &SellerId) -> Result<(), DbError> {
    let value = told(tx, seller).await?;
    outbox::push(tx, &[Outgoing { topic: TOPIC, key: key::join([seller.as_str()]), value }]).await
}

/// The seller's refresh token, for its poller.
///
/// # Errors
/// [`KeyError::SellerUnknown`] where none is stored.
pub async fn refresh_token(keyring: &Keyring, seller: &SellerId) -> Result<SecretString, KeyError> {
    let failed = on("read a refresh token");
    let row = sqlx::query("SELECT refresh_token FROM seller WHERE seller = $1 AND state <> 'removed'")
        .bind(seller.as_str().to_owned())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let wrapped: Option<Vec<u8>> = row.map(|row| row.try_get(0)).transpose().map_err(&failed)?.flatten();
    let wrapped = wrapped.ok_or_else(|| KeyError::SellerUnknown(seller.clone()))?;
    keyring.refresh_token(seller, wrapped).await
}

/// Every seller that is to be polled, with its refresh token. Each token is unwrapped once and then known, so that this may be asked often.
///
/// # Errors
/// [`KeyError`].
pub async fn polled(keyring: &Keyring) -> Result<Vec<(Seller, SecretString)>, KeyError> {
    let failed = on("read refresh tokens");
    let mut tokens: HashMap<String, Vec<u8>> =
        sqlx::query("SELECT seller, refresh_token FROM seller WHERE state = 'active' AND refresh_token IS NOT NULL")
            .fetch_all(keyring.db().pool())
            .await
            .map_err(&failed)?
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(&failed)?;
    let mut polled = Vec::new();
    for seller in list(keyring.db()).await?.into_iter().filter(|seller| seller.state == SellerState::Active) {
        if let Some(wrapped) = tokens.remove(seller.id.as_str()) {
            let token = keyring.refresh_token(&seller.id, wrapped).await?;
            polled.push((seller, token));
        }
    }
    Ok(polled)
}

/// The wrapping context of a seller's refresh token.
pub(crate) fn token_context(seller: &SellerId) -> Vec<u8> {
    [b"sunder refresh token 1 ".as_slice(), seller.as_str().as_bytes()].concat()
}
