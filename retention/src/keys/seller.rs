//! The three keys of a seller: one wraps data keys, one makes tokens and event ids, one makes fingerprints.
//!
//! Invariants: made together on first use, by one process only; each is bound by its wrapping context to seller, role and
//! generation; the ledger key survives the seller, so that what was erased stays known.

use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::hmac;
use ring::rand::SecureRandom;
use sqlx::Row;
use sunder_schemas::catalogue::TokenKind;
use sunder_schemas::classify::Tokens;
use sunder_schemas::ids::{EntityToken, EventId, Fingerprint, KeyId, OrderId, SellerId};
use sunder_schemas::time::Timestamp;
use zeroize::{Zeroize as _, Zeroizing};

use super::seal::{self, DataKey};
use super::{KeyError, Keyring};
use crate::keydb::on;
use crate::ledger::LockedSeller;
use crate::mirror;
use crate::root::{self, KEY_LEN, RootError};
use crate::rotate::guard;

/// How often a seller's keys are read where the root key is rotated meanwhile. Chosen: a rotation takes seconds, a read milliseconds.
const READS_MAX: u32 = 5;

/// What stands under the HMAC of a token for its kind, so that an order and a package of the same id differ. Never changed: tokens are keys.
const fn label(kind: TokenKind) -> &'static [u8] {
    match kind {
        TokenKind::Order => b"order",
        TokenKind::OrderItem => b"order_item",
        TokenKind::Package => b"package",
        TokenKind::InventoryLevel => b"inventory_level",
    }
}

/// The keys of one seller, in memory.
pub struct SellerKeys {
    seller: SellerId,
    generation: i64,
    wrapping_version: i64,
    wrapping: LessSafeKey,
    /// The version before, while data keys still lie under it.
    previous: Option<LessSafeKey>,
    tokens: hmac::Key,
    ledger: hmac::Key,
    lost: Option<LostLedger>,
}

/// What a restore lost of a seller's erased ledger: fingerprints under a key that is gone. What could be among them is treated as erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LostLedger {
    /// Personal data of orders created by then is dropped.
    pub(crate) erased_until: Timestamp,
    /// Orders created by then are withheld.
    pub(crate) withheld_until: Option<Timestamp>,
}

impl std::fmt::Debug for SellerKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SellerKeys({})", self.seller)
    }
}

impl SellerKeys {
    /// Whose keys.
    #[must_use]
    pub const fn seller(&self) -> &SellerId {
        &self.seller
    }

    /// The pseudonym of an order.
    #[must_use]
    pub fn order_token(&self, order: &OrderId) -> EntityToken {
        self.token(TokenKind::Order, order.reveal())
    }

    /// What the erased ledger keeps of an order.
    #[must_use]
    pub fn fingerprint(&self, order: &OrderId) -> Fingerprint {
        fingerprint(&self.ledger, &self.seller, order)
    }

    /// The id of one version of one entity. `payload_sha256` is of the tokenised clear part; `source_version` the source's own version
    /// or the start of the collection window, in ms.
    #[must_use]
    pub fn event_id(&self, kind: &str, entity: EntityToken, source_version: i64, payload_sha256: &str) -> EventId {
        let tag = mac(&self.tokens, &[b"event", kind.as_bytes(), &entity.0, &source_version.to_be_bytes(), payload_sha256.as_bytes()]);
        EventId(uuid::Builder::from_custom_bytes(front(&tag)).into_uuid())
    }

    /// Version of the wrapping key.
    pub(crate) const fn wrapping_version(&self) -> i64 {
        self.wrapping_version
    }

    /// What a restore lost of its erased ledger.
    pub(crate) const fn lost(&self) -> Option<LostLedger> {
        self.lost
    }

    /// Whether these are the keys of the seller's row as it is locked.
    pub(crate) const fn is_current(&self, locked: &LockedSeller) -> bool {
        locked.generation == self.generation && locked.wrapping_version == self.wrapping_version
    }

    /// Whether the version before still unwraps.
    pub(crate) const fn is_rotating(&self) -> bool {
        self.previous.is_some()
    }

    /// Wraps a data key for the database.
    pub(crate) fn wrap(&self, random: &dyn SecureRandom, id: KeyId, fingerprint: Fingerprint, bytes: &[u8]) -> Option<Vec<u8>> {
        root::wrap(&self.wrapping, random, &self.context(id, fingerprint), bytes)
    }

    /// Opens a data key that lies under `version` of the wrapping key and checks that it is the one that was committed to.
    pub(crate) fn unwrap(
        &self,
        id: KeyId,
        fingerprint: Fingerprint,
        wrapped: &[u8],
        version: Option<i64>,
        commitment: &[u8],
    ) -> Result<DataKey, KeyError> {
        let bytes = self.unwrap_bytes(id, fingerprint, wrapped, version, commitment)?;
        DataKey::from_bytes(id, &bytes).ok_or_else(|| KeyError::Damaged { what: "data key", seller: self.seller.clone() })
    }

    /// The bytes of a wrapped data key, checked against its commitment: for unwrapping, rotation and the recover test alone.
    pub(crate) fn unwrap_bytes(
        &self,
        id: KeyId,
        fingerprint: Fingerprint,
        wrapped: &[u8],
        version: Option<i64>,
        commitment: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let damaged = || KeyError::Damaged { what: "data key", seller: self.seller.clone() };
        let wrapping = match version.unwrap_or(1) {
            version if version == self.wrapping_version => &self.wrapping,
            version if version + 1 == self.wrapping_version => {
                self.previous.as_ref().ok_or_else(|| KeyError::Rewrapped(self.seller.clone()))?
            }
            _ => return Err(KeyError::Rewrapped(self.seller.clone())),
        };
        let bytes = root::unwrap(wrapping, &self.context(id, fingerprint), wrapped).ok_or_else(damaged)?;
        if seal::commits(&bytes, commitment) { Ok(bytes) } else { Err(damaged()) }
    }

    fn context(&self, id: KeyId, fingerprint: Fingerprint) -> Vec<u8> {
        parts(&[b"sunder data key 1", self.seller.as_str().as_bytes(), &self.generation.to_be_bytes(), &id.0, &fingerprint.0])
    }
}

impl Tokens for SellerKeys {
    /// The first 128 bits of an HMAC-SHA256 under the seller's token key.
    fn token(&self, kind: TokenKind, clear: &str) -> EntityToken {
        EntityToken(front(&mac(&self.tokens, &[b"token", label(kind), clear.as_bytes()])))
    }
}

fn fingerprint(ledger: &hmac::Key, seller: &SellerId, order: &OrderId) -> Fingerprint {
    Fingerprint(front(&mac(ledger, &[b"fingerprint", seller.as_str().as_bytes(), order.reveal().as_bytes()])))
}

/// Parts, each behind its length in four bytes, so that no two lists of parts give the same bytes.
fn parts(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 4).sum());
    for part in parts {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Bytes that a digest is given at once. Chosen: what a token or an event id is made of is shorter.
const MAC_BYTES: usize = 192;

/// HMAC of [`parts`]. Short ones are gathered first: each order takes several, and many small updates cost as much as the digest.
fn mac(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes();
    if parts.iter().map(|part| part.len() + 4).sum::<usize>() <= MAC_BYTES {
        let mut gathered = smallvec::SmallVec::<[u8; MAC_BYTES]>::new();
        for part in parts {
            gathered.extend_from_slice(&length(part));
            gathered.extend_from_slice(part);
        }
        let tag = hmac::sign(key, &gathered);
        gathered.zeroize();
        return tag;
    }
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(&length(part));
        context.update(part);
    }
    context.sign()
}

fn front<const N: usize>(tag: &hmac::Tag) -> [u8; N] {
    let mut out = [0u8; N];
    out.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// The wrapping context of one of a seller's keys.
pub(crate) fn role_context(seller: &SellerId, role: &str, generation: i64) -> Vec<u8> {
    parts(&[b"sunder seller key 1", seller.as_str().as_bytes(), role.as_bytes(), &generation.to_be_bytes()])
}

/// The wrapping context of `version` of a seller's wrapping key.
pub(crate) fn wrapping_context(seller: &SellerId, generation: i64, version: i64) -> Vec<u8> {
    match version {
        1 => role_context(seller, WRAPPING, generation),
        version => role_context(seller, &format!("{WRAPPING} {version}"), generation),
    }
}

const WRAPPING: &str = "wrapping";
pub(crate) const TOKENS: &str = "tokens";
pub(crate) const LEDGER: &str = "ledger";

/// Fresh keys of a seller, wrapped by the root: wrapping, token and ledger key.
pub(crate) struct FreshKeys {
    /// Wraps data keys.
    pub(crate) wrapping: Vec<u8>,
    /// Makes tokens.
    pub(crate) tokens: Vec<u8>,
    /// Makes fingerprints.
    pub(crate) ledger: Vec<u8>,
}

/// Makes three keys for `seller` in `generation`.
pub(crate) async fn fresh(keyring: &Keyring, seller: &SellerId, generation: i64) -> Result<FreshKeys, KeyError> {
    let make = async |role: &str| {
        let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
        keyring.random().fill(bytes.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        Ok::<_, KeyError>(keyring.root().wrap(&role_context(seller, role, generation), bytes.as_ref()).await?)
    };
    // The ledger key outlives readmission, so its context names no generation but the first.
    let mut ledger = Zeroizing::new([0u8; KEY_LEN]);
    keyring.random().fill(ledger.as_mut()).map_err(|_| KeyError::NoRandomness)?;
    let ledger = keyring.root().wrap(&role_context(seller, LEDGER, 1), ledger.as_ref()).await?;
    Ok(FreshKeys { wrapping: make(WRAPPING).await?, tokens: make(TOKENS).await?, ledger })
}

/// Reads the seller's keys, making them where the seller is new. Two processes that do so at once get the same keys: one insert wins,
/// both read it back.
pub(crate) async fn load_or_mint(keyring: &Keyring, seller: &SellerId) -> Result<SellerKeys, KeyError> {
    if let Some(keys) = load(keyring, seller).await? {
        return Ok(keys);
    }
    guard::wrapping!(mint(keyring, seller))?;
    load(keyring, seller).await?.ok_or_else(|| KeyError::SellerUnknown(seller.clone()))
}

/// Makes the seller's keys, unless another process was first.
async fn mint(keyring: &Keyring, seller: &SellerId) -> Result<(), KeyError> {
    let fresh = fresh(keyring, seller, 1).await?;
    let Timestamp(now) = keyring.now();
    let mut tx = keyring.db().begin_write().await?;
    let done = sqlx::query(
        "INSERT INTO seller (seller, state, generation, wrapping_key, wrapping_version, token_key, ledger_key, created_at, updated_at) \
         VALUES ($1, 'active', 1, $2, 1, $3, $4, $5, $5) ON CONFLICT (seller) DO NOTHING",
    )
    .bind(seller.as_str())
    .bind(fresh.wrapping.clone())
    .bind(fresh.tokens.clone())
    .bind(fresh.ledger.clone())
    .bind(now)
    .execute(&mut *tx)
    .await
    .map_err(on("add a seller"))?;
    if done.rows_affected() == 1 {
        mirror::seller(&mut tx, seller, 1, false).await?;
    }
    guard::may_commit(keyring.db(), &mut tx, keyring.root(), &[&fresh.wrapping, &fresh.tokens, &fresh.ledger]).await?;
    Ok(tx.commit().await.map_err(on("add a seller"))?)
}

/// The fingerprints of `orders` of `seller`, by the ledger key alone: it survives the seller. `None` where there is no such seller.
pub(crate) async fn ledger_fingerprints(
    keyring: &Keyring,
    seller: &SellerId,
    orders: &[OrderId],
) -> Result<Option<Vec<Fingerprint>>, KeyError> {
    let failed = on("read a seller's ledger key");
    let row = sqlx::query("SELECT ledger_key FROM seller WHERE seller = $1")
        .bind(seller.as_str())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let Some(row) = row else { return Ok(None) };
    let wrapped: Vec<u8> = row.try_get("ledger_key").map_err(&failed)?;
    let ledger = keyring.root().unwrap(&role_context(seller, LEDGER, 1), &wrapped).await?;
    let ledger = hmac::Key::new(hmac::HMAC_SHA256, &ledger);
    Ok(Some(orders.iter().map(|order| fingerprint(&ledger, seller, order)).collect()))
}

async fn load(keyring: &Keyring, seller: &SellerId) -> Result<Option<SellerKeys>, KeyError> {
    for _ in 1..READS_MAX {
        match try_load(keyring, seller).await {
            // Between reading the row and unwrapping what it held, the root key may have been rotated: then the row holds something else.
            Err(KeyError::Root(RootError::NotOurs)) => {}
            other => return other,
        }
    }
    try_load(keyring, seller).await
}

async fn try_load(keyring: &Keyring, seller: &SellerId) -> Result<Option<SellerKeys>, KeyError> {
    let failed = on("read a seller's keys");
    let row = sqlx::query(
        "SELECT state, generation, wrapping_key, wrapping_previous, wrapping_version, token_key, ledger_key FROM seller WHERE seller = $1",
    )
    .bind(seller.as_str())
    .fetch_optional(keyring.db().pool())
    .await
    .map_err(&failed)?;
    let Some(row) = row else { return Ok(None) };
    let state: String = row.try_get("state").map_err(&failed)?;
    let generation: i64 = row.try_get("generation").map_err(&failed)?;
    let wrapping: Option<Vec<u8>> = row.try_get("wrapping_key").map_err(&failed)?;
    let tokens: Option<Vec<u8>> = row.try_get("token_key").map_err(&failed)?;
    let ledger: Vec<u8> = row.try_get("ledger_key").map_err(&failed)?;
    let (Some(wrapping), Some(tokens)) = (wrapping, tokens) else { return Err(KeyError::SellerRemoved(seller.clone())) };
    if state == "removed" {
        return Err(KeyError::SellerRemoved(seller.clone()));
    }
    let damaged = || KeyError::Damaged { what: "seller keys", seller: seller.clone() };
    let open =
        async |role: &str, generation: i64, wrapped: &[u8]| keyring.root().unwrap(&role_context(seller, role, generation), wrapped).await;
    let version: i64 = row.try_get("wrapping_version").map_err(&failed)?;
    let expand = |bytes: &[u8]| UnboundKey::new(&AES_256_GCM, bytes).map(LessSafeKey::new).map_err(|_| damaged());
    let wrapping = keyring.root().unwrap(&wrapping_context(seller, generation, version), &wrapping).await?;
    let previous = match row.try_get::<Option<Vec<u8>>, _>("wrapping_previous").map_err(&failed)? {
        None => None,
        Some(previous) => Some(expand(&keyring.root().unwrap(&wrapping_context(seller, generation, version - 1), &previous).await?)?),
    };
    Ok(Some(SellerKeys {
        seller: seller.clone(),
        generation,
        wrapping_version: version,
        wrapping: expand(&wrapping)?,
        previous,
        tokens: hmac::Key::new(hmac::HMAC_SHA256, &open(TOKENS, generation, &tokens).await?),
        ledger: hmac::Key::new(hmac::HMAC_SHA256, &open(LEDGER, 1, &ledger).await?),
        lost: lost_ledger(keyring, seller).await?,
    }))
}

async fn lost_ledger(keyring: &Keyring, seller: &SellerId) -> Result<Option<LostLedger>, KeyError> {
    let failed = on("read a seller's lost ledger");
    let row = sqlx::query("SELECT erased_until, withheld_until FROM lost_ledger WHERE seller = $1")
        .bind(seller.as_str().to_owned())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(LostLedger {
        erased_until: Timestamp(row.try_get(0).map_err(&failed)?),
        withheld_until: row.try_get::<Option<i64>, _>(1).map_err(&failed)?.map(Timestamp),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_parts_have_the_digest_of_their_joined_form() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; KEY_LEN]);
        for length in [0, 1, MAC_BYTES - 13, MAC_BYTES - 12, MAC_BYTES, 1_000] {
            let long = vec![3; length];
            let of = [b"toke".as_slice(), &long, b""];
            assert_eq!(mac(&key, &of).as_ref(), hmac::sign(&key, &parts(&of)).as_ref(), "{length}");
        }
    }
}
