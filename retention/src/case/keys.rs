//! What a case needs of the keys: the seam between the machine of a case and the key ring.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use ring::digest::{Context, SHA256};
use sqlx::Row;
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, OrderId, SellerId};
use sunder_schemas::time::{Period, Timestamp};
use zeroize::Zeroizing;

use super::{CaseError, Listed, Record};
use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::{Write, on};
use crate::keys::{KeyError, Keyring};
use crate::lease;
use crate::ledger::{self, Condemned, Destruction};
use crate::names::{self, Named};
use crate::outbox::{self, DrainError};
use crate::rotate::guard;
use crate::sellers::{self, SellerState};
use crate::store::EventLog;

/// What a case needs of the keys.
#[async_trait]
pub trait Keys: Send + Sync {
    /// What the ledger and the stores call `orders`, in their order; neither reveals them.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn identify(&self, seller: &SellerId, orders: &[OrderId]) -> Result<Vec<(Fingerprint, EntityToken)>, CaseError>;

    /// The sellers with subjects whose deadline has come at `now`.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn due(&self, now: Timestamp) -> Result<Vec<SellerId>, CaseError>;

    /// Destroys the keys of `subjects` and writes their ledger rows, known or not, inside `tx`; returns the new ledger epoch.
    /// Idempotent: what is destroyed stays so.
    ///
    /// # Errors
    /// [`CaseError`]: the transaction must not be committed.
    async fn destroy(&self, tx: &mut Write, record: &Record, subjects: &[Listed], at: Timestamp) -> Result<i64, CaseError>;

    /// Takes the seller off the list of those who are polled, for good. Idempotent.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn remove_seller(&self, seller: &SellerId) -> Result<(), CaseError>;

    /// Destroys a removed seller's own keys and its refresh token inside `tx`, all but the ledger key. Idempotent.
    ///
    /// # Errors
    /// [`CaseError`]: the transaction must not be committed.
    async fn destroy_seller_keys(&self, tx: &mut Write, seller: &SellerId) -> Result<(), CaseError>;

    /// Appends an audit event about a case inside `tx`.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn audit(
        &self,
        tx: &mut Write,
        case: &CaseId,
        step: &'static str,
        at: Timestamp,
        detail: &serde_json::Value,
    ) -> Result<(), CaseError>;

    /// Whether every live process acknowledged `epoch` or lost its lease.
    ///
    /// # Errors
    /// [`CaseError`]: unknown, so not acknowledged.
    async fn acknowledged(&self, epoch: i64) -> Result<bool, CaseError>;

    /// Publishes what waits in the outbox, revocations and erasures among it, and returns once the log acknowledged it.
    ///
    /// # Errors
    /// [`CaseError`]: nothing may be taken as published.
    async fn publish(&self, log: &dyn EventLog) -> Result<(), CaseError>;

    /// Byte strings by which the destroyed wrapped keys of `subjects` are looked for in files.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn wrapped_needles(&self, seller: &SellerId, subjects: &[Listed]) -> Result<Vec<Vec<u8>>, CaseError>;

    /// Makes the bytes of nulled keys leave the database's files, as far as the database allows.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn rewrite(&self) -> Result<(), CaseError>;

    /// The bytes of keys that still exist and could conceivably open something of `seller`: its own three, the quarantine keys, and
    /// its live data keys, at most `most` in all.
    ///
    /// # Errors
    /// [`CaseError`]: a key that cannot be read was not tried.
    async fn surviving(&self, seller: &SellerId, most: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, CaseError>;

    /// Wraps a key of the case's own (its control) under the root key.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, CaseError>;

    /// Lets `tx` commit what [`Keys::wrap`] made: its last statement before the commit.
    ///
    /// # Errors
    /// [`CaseError::Db`] with the code `root_key_rotated` where it lies under an old version: wrap it anew, in a transaction of its own.
    async fn may_commit(&self, tx: &mut Write, wrapped: &[u8]) -> Result<(), CaseError>;

    /// Opens what [`Keys::wrap`] made.
    ///
    /// # Errors
    /// [`CaseError`].
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, CaseError>;

    /// How long a backup of the key database may live; zero where there is none.
    fn backups(&self) -> Period;

    /// What happened before this instant may be kept no longer at `now`.
    fn business_cutoff(&self, now: Timestamp) -> Timestamp;
}

/// Who does what a case does, in the audit log; who asked for it stands in the case.
const ACTOR: &str = "retain";

/// The keys of the key ring.
pub struct RingKeys {
    ring: Arc<Keyring>,
}

impl std::fmt::Debug for RingKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RingKeys({:?})", self.ring)
    }
}

impl RingKeys {
    /// Over `ring`.
    #[must_use]
    pub const fn new(ring: Arc<Keyring>) -> Self {
        Self { ring }
    }
}

/// Database errors stay what they are, so that the engine knows them; the rest becomes its text, which names no value.
impl From<KeyError> for CaseError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Database(error) => Self::Db(error),
            other @ (KeyError::Root(_)
            | KeyError::LeaseLost
            | KeyError::Restored
            | KeyError::Rewrapped(_)
            | KeyError::SellerRemoved(_)
            | KeyError::SellerUnknown(_)
            | KeyError::CursorMoved { .. }
            | KeyError::Damaged { .. }
            | KeyError::NoRandomness) => Self::Keys(other.to_string()),
        }
    }
}

/// Stands for the token of an order that its seller never had, once the seller left and no token can be made any more.
fn stand_in(fingerprint: Fingerprint) -> EntityToken {
    let mut context = Context::new(&SHA256);
    context.update(b"sunder stand-in 1");
    context.update(&fingerprint.0);
    let mut token = EntityToken([0; 16]);
    token.0.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    token
}

#[async_trait]
impl Keys for RingKeys {
    async fn identify(&self, seller: &SellerId, orders: &[OrderId]) -> Result<Vec<(Fingerprint, EntityToken)>, CaseError> {
        let named = names::name_all(&self.ring, seller, orders).await?;
        let known = |Named { fingerprint, token }| fingerprint.map(|known| (known, token.unwrap_or_else(|| stand_in(known))));
        if let Some(known) = named.into_iter().map(known).collect() {
            return Ok(known);
        }
        // What is asked for of a seller that is not known yet is to stay away once it comes, so its keys are made now.
        let keys = self.ring.seller(seller).await?;
        Ok(orders.iter().map(|order| (keys.fingerprint(order), keys.order_token(order))).collect())
    }

    async fn due(&self, now: Timestamp) -> Result<Vec<SellerId>, CaseError> {
        // It also moves the deadlines that the seller's watermark postpones, so that the scope afterwards reads what is really due.
        let due = ledger::due(&self.ring, now, usize::MAX).await?;
        let sellers: BTreeSet<SellerId> = due.into_iter().map(|due| due.seller).collect();
        Ok(sellers.into_iter().collect())
    }

    async fn destroy(&self, tx: &mut Write, record: &Record, subjects: &[Listed], at: Timestamp) -> Result<i64, CaseError> {
        let subjects: Vec<Condemned> =
            subjects.iter().map(|subject| Condemned { fingerprint: subject.fingerprint, token: Some(subject.token) }).collect();
        let destruction =
            Destruction { case: &record.id, seller: &record.seller, subjects: &subjects, extent: record.extent, at, actor: ACTOR };
        Ok(ledger::destroy(tx, &destruction).await?.epoch)
    }

    async fn remove_seller(&self, seller: &SellerId) -> Result<(), CaseError> {
        let mut removed = sellers::set_state(&self.ring, seller, SellerState::Removed, None).await;
        if let Err(KeyError::SellerUnknown(_)) = removed {
            // One that was never polled is written down as removed all the same, or the config would bring it after its case.
            self.ring.seller(seller).await?;
            removed = sellers::set_state(&self.ring, seller, SellerState::Removed, None).await;
        }
        match removed {
            Ok(()) | Err(KeyError::SellerRemoved(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn destroy_seller_keys(&self, tx: &mut Write, seller: &SellerId) -> Result<(), CaseError> {
        Ok(sellers::destroy_keys(tx, seller).await?)
    }

    async fn audit(
        &self,
        tx: &mut Write,
        case: &CaseId,
        step: &'static str,
        at: Timestamp,
        detail: &serde_json::Value,
    ) -> Result<(), CaseError> {
        let mut detail = detail.clone();
        if let Some(map) = detail.as_object_mut() {
            map.insert("step".to_owned(), serde_json::Value::String(step.to_owned()));
        }
        let event =
            AuditEvent { actor: ACTOR.to_owned(), action: "case.moved", object: case.to_string(), outcome: AuditOutcome::Success, detail };
        audit::append(tx, at, &event).await?;
        Ok(())
    }

    async fn acknowledged(&self, epoch: i64) -> Result<bool, CaseError> {
        Ok(lease::acknowledged(self.ring.db(), epoch).await?)
    }

    async fn publish(&self, log: &dyn EventLog) -> Result<(), CaseError> {
        match outbox::drain(self.ring.db(), log).await {
            Ok(_) => Ok(()),
            Err(DrainError::Database(error)) => Err(error.into()),
            Err(DrainError::Log(error)) => Err(error.into()),
        }
    }

    async fn wrapped_needles(&self, seller: &SellerId, subjects: &[Listed]) -> Result<Vec<Vec<u8>>, CaseError> {
        let wanted: HashSet<[u8; 32]> = subjects.iter().map(|subject| subject.fingerprint.0).collect();
        let failed = on("read what is left of destroyed keys");
        let rows =
            sqlx::query("SELECT fingerprint, wrapped_mask FROM subject WHERE seller = $1 AND wrapped_mask IS NOT NULL AND wrapped IS NULL")
                .bind(seller.as_str().to_owned())
                .fetch_all(self.ring.db().pool())
                .await
                .map_err(&failed)?;
        let mut needles = Vec::new();
        for row in rows {
            let fingerprint: Vec<u8> = row.try_get(0).map_err(&failed)?;
            if <[u8; 32]>::try_from(fingerprint).is_ok_and(|known| wanted.contains(&known)) {
                let mask: Vec<u8> = row.try_get(1).map_err(&failed)?;
                needles.push(mask.into_iter().map(|byte| !byte).collect());
            }
        }
        Ok(needles)
    }

    async fn rewrite(&self) -> Result<(), CaseError> {
        Ok(self.ring.db().rewrite_key_tables().await?)
    }

    async fn surviving(&self, seller: &SellerId, most: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, CaseError> {
        Ok(self.ring.surviving(seller, most).await?)
    }

    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, CaseError> {
        Ok(self.ring.root().wrap(context, key).await.map_err(KeyError::from)?)
    }

    async fn may_commit(&self, tx: &mut Write, wrapped: &[u8]) -> Result<(), CaseError> {
        Ok(guard::may_commit(self.ring.db(), tx, self.ring.root(), &[wrapped]).await?)
    }

    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, CaseError> {
        Ok(self.ring.root().unwrap(context, wrapped).await.map_err(KeyError::from)?)
    }

    fn backups(&self) -> Period {
        self.ring.policy().backup
    }

    fn business_cutoff(&self, now: Timestamp) -> Timestamp {
        self.ring.policy().business_cutoff(now)
    }
}
