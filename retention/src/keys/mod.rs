//! Keys: a random key per subject, wrapped by a key per seller, wrapped by the root (DESIGN section 2, rule 4).
//!
//! Invariants: no key is derived from one that survives; a wrapped key lies in the key database alone; a destroyed key is destroyed for
//! good; a cached key is used only while this process's lease runs. [`Keyring`] is the way in: one per process.

mod cache;
mod quarantine;
pub mod seal;
mod seller;
mod surviving;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use ring::rand::SystemRandom;
use secrecy::SecretString;
use sqlx::Row as _;
use sunder_schemas::ids::{EntityToken, KeyId, SellerId};
use sunder_schemas::time::{Clock, Timestamp};

pub(crate) use self::quarantine::context as quarantine_context;
pub(crate) use self::seal::commits;
pub use self::seal::{Context, DataKey, OpenError};
pub use self::seller::SellerKeys;
pub(crate) use self::seller::{LEDGER, LostLedger, TOKENS, fresh, ledger_fingerprints, role_context, wrapping_context};
use crate::admit::{self, Admission, Candidate};
use crate::cursor::{self, PageCommit};
use crate::deadline::Policy;
use crate::keydb::{DbError, KeyDb, on};
use crate::lease::{EpochGate, ErasedKeys, LeaseState};
use crate::ledger::{self, LockedSeller, SubjectState};
use crate::root::{RootError, RootKey};
use crate::sellers::{SellerState, token_context};
use cache::Cache;

/// Unwrapped data keys kept in memory. Chosen: about 30 MB; a key that is not there costs one unwrapping of 1 us.
const CACHED_KEYS_MAX: usize = 50_000;

/// How often an admission is tried where the seller's keys change meanwhile. Chosen: a rotation changes them twice.
const ADMISSIONS_MAX: u32 = 5;

/// Why a key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key database failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The root key failed.
    #[error(transparent)]
    Root(#[from] RootError),
    /// This process has not heard from the key database for longer than its lease: it may not use keys.
    #[error("lease on cached keys ran out")]
    LeaseLost,
    /// The key database is older than this process has seen it, or its server's history is another: it was restored from a backup or a
    /// standby took over, and this process must start anew.
    #[error("the key database was restored from a backup, or its standby took over, under this process: start it again")]
    Restored,
    /// A data key lies under a version of the seller's wrapping key that this process does not know: it reads both again.
    #[error("wrapping key of seller {0} was rotated meanwhile")]
    Rewrapped(SellerId),
    /// The seller left; only `sellers add --readmit` reopens it.
    #[error("seller {0} was removed")]
    SellerRemoved(SellerId),
    /// No such seller.
    #[error("seller {0} is not known")]
    SellerUnknown(SellerId),
    /// Another process moved the cursor: this page must be dropped and the cursor read again.
    #[error("cursor of seller {seller} {dataset} was moved by another process")]
    CursorMoved {
        /// Whose.
        seller: SellerId,
        /// Which.
        dataset: &'static str,
    },
    /// A wrapped key does not open, or is not the key it is said to be.
    #[error("{what} of seller {seller} is damaged")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// Whose.
        seller: SellerId,
    },
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    NoRandomness,
}

impl KeyError {
    /// Whether trying again may help without a person acting.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Database(e) => e.retry,
            Self::Root(RootError::Service { retry, .. }) => *retry,
            Self::LeaseLost | Self::Rewrapped(_) | Self::CursorMoved { .. } => true,
            Self::Root(_)
            | Self::Restored
            | Self::SellerRemoved(_)
            | Self::SellerUnknown(_)
            | Self::Damaged { .. }
            | Self::NoRandomness => false,
        }
    }
}

/// All that a process needs of keys: database, root, caches, clock, policy. Shared behind an `Arc`.
pub struct Keyring {
    db: KeyDb,
    root: Arc<dyn RootKey>,
    clock: Arc<dyn Clock>,
    policy: Policy,
    random: SystemRandom,
    sellers: RwLock<HashMap<SellerId, Arc<SellerKeys>>>,
    quarantine: RwLock<Option<(String, Arc<DataKey>)>>,
    cache: Cache,
    /// Refresh tokens by seller, each with its wrapped form: pollers ask for all of them every few seconds, and a key service is far.
    tokens: RwLock<HashMap<SellerId, (Vec<u8>, SecretString)>>,
    lease: Arc<LeaseState>,
    gate: EpochGate,
    erased: ErasedKeys,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring(root {})", self.root.describe())
    }
}

impl Keyring {
    /// A keyring over an open database. Until a [`crate::lease::Lease`] is registered no key is cached and none is refused.
    #[must_use]
    pub fn new(db: KeyDb, root: Arc<dyn RootKey>, clock: Arc<dyn Clock>, policy: Policy) -> Self {
        Self {
            db,
            root,
            clock,
            policy,
            random: SystemRandom::new(),
            sellers: RwLock::default(),
            quarantine: RwLock::default(),
            cache: Cache::new(CACHED_KEYS_MAX),
            tokens: RwLock::default(),
            lease: Arc::new(LeaseState::default()),
            gate: EpochGate::default(),
            erased: ErasedKeys::default(),
        }
    }

    /// The key database.
    #[must_use]
    pub const fn db(&self) -> &KeyDb {
        &self.db
    }

    /// The root key.
    #[must_use]
    pub fn root(&self) -> &dyn RootKey {
        &*self.root
    }

    /// The policy clock.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// The present instant by the policy clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The retention policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The gate that work with keys passes, from `admit` to Kafka's acknowledgement.
    #[must_use]
    pub const fn gate(&self) -> &EpochGate {
        &self.gate
    }

    /// The destroyed keys this process knows of.
    #[must_use]
    pub const fn erased(&self) -> &ErasedKeys {
        &self.erased
    }

    /// Whether this process may still go by what it has heard: the splitter and the sinks ask before they trust [`Keyring::erased`].
    ///
    /// # Errors
    /// [`KeyError::LeaseLost`] where its lease ran out.
    pub fn check_lease(&self) -> Result<(), KeyError> {
        self.lease.check()
    }

    pub(crate) const fn lease_state(&self) -> &Arc<LeaseState> {
        &self.lease
    }

    pub(crate) const fn random(&self) -> &SystemRandom {
        &self.random
    }

    /// The refresh token of `seller` that `wrapped` holds: unwrapped once, kept while it stays the same and the lease runs.
    pub(crate) async fn refresh_token(&self, seller: &SellerId, wrapped: Vec<u8>) -> Result<SecretString, KeyError> {
        self.lease.check()?;
        let known = self.tokens.read().unwrap_or_else(PoisonError::into_inner).get(seller).filter(|(known, _)| *known == wrapped).cloned();
        if let Some((_, token)) = known {
            return Ok(token);
        }
        let bytes = self.root.unwrap(&token_context(seller), &wrapped).await?;
        let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::Damaged { what: "refresh token", seller: seller.clone() })?;
        let token = SecretString::from(text);
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).insert(seller.clone(), (wrapped, token.clone()));
        Ok(token)
    }

    pub(crate) const fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The seller's keys; made on first use.
    ///
    /// # Errors
    /// [`KeyError::SellerRemoved`] where the seller left; [`KeyError::Damaged`] where its keys do not open under this root.
    pub async fn seller(&self, seller: &SellerId) -> Result<Arc<SellerKeys>, KeyError> {
        self.lease.check()?;
        if let Some(keys) = self.sellers.read().unwrap_or_else(PoisonError::into_inner).get(seller) {
            return Ok(Arc::clone(keys));
        }
        let keys = Arc::new(seller::load_or_mint(self, seller).await?);
        self.sellers.write().unwrap_or_else(PoisonError::into_inner).insert(seller.clone(), Arc::clone(&keys));
        Ok(keys)
    }

    /// Forgets the cached keys of `seller`: after rotation, removal or readmission.
    pub fn forget_seller(&self, seller: &SellerId) {
        self.sellers.write().unwrap_or_else(PoisonError::into_inner).remove(seller);
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).remove(seller);
    }

    /// Forgets the cached keys of sellers that were removed, readmitted or rotated meanwhile.
    pub(crate) async fn forget_changed(&self) -> Result<(), DbError> {
        let failed = on("read the sellers' keys");
        let rows = sqlx::query("SELECT seller, state, generation, wrapping_version, wrapping_previous IS NOT NULL FROM seller")
            .fetch_all(self.db.pool())
            .await
            .map_err(&failed)?;
        let mut current = HashMap::with_capacity(rows.len());
        for row in &rows {
            let is_rotating = row.try_get::<bool, _>(4).or_else(|_| row.try_get::<i64, _>(4).map(|n| n != 0)).map_err(&failed)?;
            let locked = LockedSeller {
                state: row.try_get(1).map_err(&failed)?,
                generation: row.try_get(2).map_err(&failed)?,
                wrapping_version: row.try_get(3).map_err(&failed)?,
            };
            current.insert(row.try_get::<String, _>(0).map_err(&failed)?, (locked, is_rotating));
        }
        let is_here =
            |seller: &SellerId| current.get(seller.as_str()).is_some_and(|(locked, _)| locked.state != SellerState::Removed.as_str());
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).retain(|seller, _| is_here(seller));
        self.sellers.write().unwrap_or_else(PoisonError::into_inner).retain(|seller, keys| {
            current.get(seller.as_str()).is_some_and(|(locked, is_rotating)| {
                locked.state != SellerState::Removed.as_str() && keys.is_current(locked) && keys.is_rotating() == *is_rotating
            })
        });
        Ok(())
    }

    /// Asks for each candidate whether its personal data may be sealed, and under which key: one transaction for the batch. Answers
    /// are in the order of the candidates. Call it inside [`EpochGate::enter`].
    ///
    /// # Errors
    /// [`KeyError`]: nothing may be sealed.
    pub async fn admit(&self, seller: &SellerId, candidates: &[Candidate]) -> Result<Vec<Admission>, KeyError> {
        for _ in 1..ADMISSIONS_MAX {
            self.lease.check()?;
            match admit::admit(self, seller, candidates).await {
                // A rotation came in between; the keys are read again.
                Err(error) if admit::is_outdated(&error) => {}
                other => return other,
            }
        }
        self.lease.check()?;
        admit::admit(self, seller, candidates).await
    }

    /// Records a page once Kafka acknowledged all its events: dispositions, last event ids, and the cursor's move, in one transaction.
    ///
    /// # Errors
    /// [`KeyError::CursorMoved`] where another process moved the cursor; then nothing is recorded.
    pub async fn commit_page(&self, seller: &SellerId, page: PageCommit) -> Result<(), KeyError> {
        cursor::commit_page(self, seller, page).await
    }

    /// What is known of a subject, by its token.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn subject(&self, seller: &SellerId, token: EntityToken) -> Result<SubjectState, KeyError> {
        self.lease.check()?;
        ledger::subject(self, seller, token).await
    }

    /// The quarantine key of the policy clock's day; made on first use, destroyed 7 days later.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn quarantine(&self) -> Result<Arc<DataKey>, KeyError> {
        self.lease.check()?;
        quarantine::of_today(self).await
    }

    /// Destroys the quarantine keys of days that are 7 days past; returns their ids.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn sweep_quarantine(&self) -> Result<Vec<KeyId>, KeyError> {
        quarantine::sweep(self).await
    }

    /// Keeps `key` in memory, unless it was destroyed meanwhile: whoever hears of that lists it first and drops it from memory then, so
    /// one of the two looks sees it.
    pub(crate) fn remember(&self, key: Arc<DataKey>) {
        let id = key.id();
        self.cache.insert(key);
        if self.erased.contains(id) {
            self.cache.remove(id);
        }
    }

    /// Drops revoked keys from memory.
    pub(crate) fn revoke(&self, keys: &[KeyId]) {
        for key in keys {
            self.cache.remove(*key);
        }
        let mut quarantine = self.quarantine.write().unwrap_or_else(PoisonError::into_inner);
        if quarantine.as_ref().is_some_and(|(_, key)| keys.contains(&key.id())) {
            *quarantine = None;
        }
    }

    /// Drops every key from memory: the lease was lost.
    pub(crate) fn drop_all(&self) {
        self.cache.clear();
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.sellers.write().unwrap_or_else(PoisonError::into_inner).clear();
        *self.quarantine.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
