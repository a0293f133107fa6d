//! What a case does about legal holds: the held fields go to the cold store before the order's key does, and stand on its certificate.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use sunder_schemas::certificate::{Held, Iso};

use super::engine::{Did, Engine};
use super::machine::{LOOK_AGAIN, Progress};
use super::scope::Listed;
use super::{CaseError, Record};
use crate::hold::{self, ColdStore, Hold, KeepError, Kept};
use crate::keydb::Write;
use crate::keys::Keyring;

/// Who moves held fields, in the audit log.
const ACTOR: &str = "retain";

/// Moves the fields of a hold to the cold store.
#[async_trait]
pub trait Holds: Send + Sync {
    /// Moves them; safe to repeat.
    ///
    /// # Errors
    /// [`CaseError`]: nothing may be taken as kept.
    async fn keep(&self, hold: &Hold) -> Result<Kept, CaseError>;
}

/// What keeping came to.
pub(super) enum KeptHolds {
    /// All holds that were there, by their ids.
    All(HashSet<String>),
    /// Not all: what the case waits for.
    Not(Did),
}

/// The holds of a key ring, kept in a cold store.
pub struct RingHolds {
    ring: Arc<Keyring>,
    cold: Arc<dyn ColdStore>,
}

impl RingHolds {
    /// Over `ring` and `cold`.
    #[must_use]
    pub fn new(ring: Arc<Keyring>, cold: Arc<dyn ColdStore>) -> Self {
        Self { ring, cold }
    }
}

#[async_trait]
impl Holds for RingHolds {
    async fn keep(&self, hold: &Hold) -> Result<Kept, CaseError> {
        hold::keep(&self.ring, &*self.cold, hold, ACTOR).await.map_err(|error| match error {
            KeepError::Key(error) => error.into(),
            KeepError::Store(error) => error.into(),
            damaged @ KeepError::Block { .. } => CaseError::Keys(damaged.to_string()),
        })
    }
}

impl Engine {
    /// The holds on `listed` that have not ended.
    async fn holds_on(&self, record: &Record, listed: &[Listed]) -> Result<Vec<Hold>, CaseError> {
        let orders: HashSet<_> = listed.iter().map(|subject| subject.fingerprint).collect();
        let holds = hold::active_of(&self.parts.db, &record.seller).await?;
        Ok(holds.into_iter().filter(|hold| orders.contains(&hold.order_fingerprint)).collect())
    }

    /// Keeps what is held of `listed`, or says what it waits for where that cannot be done yet.
    pub(super) async fn keep_held(&self, record: &Record, listed: &[Listed]) -> Result<KeptHolds, CaseError> {
        let mut kept = HashSet::new();
        for hold in self.holds_on(record, listed).await? {
            let Some(holds) = &self.holds else {
                let why = "fields are under a legal hold, and this process has no cold store to keep them in".to_owned();
                return Ok(KeptHolds::Not(Did::Not(Progress::Blocked { why })));
            };
            if let Kept::NotThereYet(fields) = holds.keep(&hold).await? {
                let fields: Vec<&str> = fields.iter().map(|field| field.as_str()).collect();
                let why = format!("{}: the vault does not have {} yet", hold.id, fields.join(", "));
                return Ok(KeptHolds::Not(Did::Not(Progress::Waiting { why, again: LOOK_AGAIN })));
            }
            kept.insert(hold.id);
        }
        Ok(KeptHolds::All(kept))
    }

    /// Whether a hold on `listed` is not among those `kept`: it was made after they were listed. In `tx` the seller is locked.
    pub(super) async fn is_held_anew(
        tx: &mut Write,
        record: &Record,
        listed: &[Listed],
        kept: &HashSet<String>,
    ) -> Result<bool, CaseError> {
        let mut fresh = hold::active_ids(tx, &record.seller).await?;
        fresh.retain(|id, _| !kept.contains(id));
        let orders: HashSet<_> = fresh.into_values().collect();
        Ok(!orders.is_empty() && listed.iter().any(|subject| orders.contains(&subject.fingerprint)))
    }

    /// What is held of `listed`, as the certificate says it: one line a statute, document, fields and end.
    pub(super) async fn held_of(&self, record: &Record, listed: &[Listed]) -> Result<Vec<Held>, CaseError> {
        let mut held: BTreeMap<(String, String, Vec<String>, Iso), u64> = BTreeMap::new();
        for hold in self.holds_on(record, listed).await? {
            let fields = hold.moved_fields.iter().map(|field| field.as_str().to_owned()).collect();
            *held.entry((hold.statute, hold.document.as_str().to_owned(), fields, Iso(hold.until))).or_default() += 1;
        }
        let line = |((statute, document, fields, until), subjects)| Held { statute, document, fields, until, subjects };
        Ok(held.into_iter().map(line).collect())
    }
}
