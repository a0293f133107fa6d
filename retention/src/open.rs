//! The authorised read: `sunder open` (DESIGN section 6).
//!
//! Invariants: nothing is opened before the audit event of the read is committed, in a transaction in which the key was not destroyed yet;
//! every wish is an event, denied ones too; what is returned is plaintext in care ([`Plain`]). It does not know where the blocks come from.

use std::collections::BTreeMap;

use serde_json::json;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::SellerId;
use sunder_schemas::outcome::DropReason;
use sunder_schemas::private::{Plain, SealedBlock};

use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::on;
use crate::keys::{Context, KeyError, Keyring, OpenError};
use crate::ledger::{self, Fate, SubjectState};
use crate::names::Named;
use crate::purpose::{Denial, Register, Wish};

/// A sealed group as a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Which fields.
    pub group: FieldGroup,
    /// The catalogue version that classified them: part of what the block is bound to.
    pub classification: String,
    /// The block.
    pub block: SealedBlock,
}

/// What an authorised read gives.
#[derive(Debug)]
pub enum Opened {
    /// At least one group opened: each the fetched JSON pruned to its leaves.
    Readable(BTreeMap<FieldGroup, Plain<Vec<u8>>>),
    /// The key is destroyed.
    Erased,
    /// There is nothing: the reason is a [`DropReason`], `unknown`, `not_stored`, or `seller_removed` while its off-boarding goes on.
    Absent(&'static str),
    /// The wish is not allowed.
    Denied(Denial),
}

impl Opened {
    /// The state as the command prints it.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match self {
            Self::Readable(_) => "readable",
            Self::Erased => "erased",
            Self::Absent(_) => "absent",
            Self::Denied(_) => "denied",
        }
    }

    /// The reason, where there is one.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Readable(_) | Self::Erased => None,
            Self::Absent(reason) => Some(reason),
            Self::Denied(denial) => Some(denial.as_str()),
        }
    }
}

/// Why an allowed read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Keys or key database failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A stored block is damaged.
    #[error("{group} is damaged")]
    Block {
        /// Which fields.
        group: FieldGroup,
        /// Why it does not open.
        source: OpenError,
    },
}

/// Opens `blocks` of an order as far as `wish` allows. `blocks` are all that the vault has of it; what the wish does not cover is not
/// touched.
///
/// # Errors
/// [`ReadError`]; without a committed audit event nothing is opened.
pub async fn open(
    keyring: &Keyring,
    register: &Register,
    wish: &Wish<'_>,
    seller: &SellerId,
    order: &Named,
    blocks: &[StoredBlock],
) -> Result<Opened, ReadError> {
    let groups = match register.decide(wish) {
        Ok(groups) => groups,
        Err(denial) => {
            record(keyring, wish, seller, order, &[], AuditOutcome::Denied, denial.as_str()).await?;
            return Ok(Opened::Denied(denial));
        }
    };
    let (key, token) = match (ledger::subject_named(keyring, seller, order).await, order.token) {
        (Ok(SubjectState::Live(key)), Some(token)) => (key, token),
        (state, _) => {
            let opened = match state {
                Ok(SubjectState::Destroyed) => Opened::Erased,
                Ok(SubjectState::NotHeld(dropped)) => Opened::Absent(why_absent(&groups, &dropped)),
                Ok(SubjectState::Unknown | SubjectState::Live(_)) => Opened::Absent("unknown"),
                Err(KeyError::SellerRemoved(_)) => Opened::Absent("seller_removed"),
                Err(error) => return Err(error.into()),
            };
            record(keyring, wish, seller, order, &[], AuditOutcome::Success, opened.state()).await?;
            return Ok(opened);
        }
    };
    let wanted: Vec<&StoredBlock> = blocks.iter().filter(|b| groups.contains(&b.group)).collect();
    if wanted.is_empty() {
        let dropped = ledger::dispositions(keyring.db(), seller, token).await.map_err(KeyError::from)?;
        let dropped: Vec<_> = dropped
            .into_iter()
            .filter_map(|(group, fate)| match fate {
                Fate::Dropped(reason) => Some((group, reason)),
                Fate::Sealed => None,
            })
            .collect();
        let reason = if dropped.iter().any(|(group, _)| groups.contains(group)) { why_absent(&groups, &dropped) } else { "not_stored" };
        record(keyring, wish, seller, order, &[], AuditOutcome::Success, "absent").await?;
        return Ok(Opened::Absent(reason));
    }
    let named: Vec<FieldGroup> = wanted.iter().map(|b| b.group).collect();
    if !record_if_live(keyring, wish, seller, order, &named).await? {
        return Ok(Opened::Erased);
    }
    let mut readable = BTreeMap::new();
    for stored in wanted {
        let context = Context { seller, entity: token, group: stored.group, classification: &stored.classification };
        let plain = key.open(&context, stored.block.as_bytes()).map_err(|source| ReadError::Block { group: stored.group, source })?;
        readable.insert(stored.group, plain);
    }
    Ok(Opened::Readable(readable))
}

/// The reason of the first wished group that has one; without any the groups were not supplied.
fn why_absent(groups: &[FieldGroup], dropped: &[(FieldGroup, DropReason)]) -> &'static str {
    let reason = |group: &FieldGroup| dropped.iter().find(|(g, _)| g == group).map(|(_, reason)| *reason);
    groups.iter().find_map(reason).unwrap_or(DropReason::NotSupplied).as_str()
}

/// Writes the event of a read, and says whether the order's key still existed then: no destruction commits in between. Otherwise the
/// event says `erased`.
async fn record_if_live(
    keyring: &Keyring,
    wish: &Wish<'_>,
    seller: &SellerId,
    order: &Named,
    groups: &[FieldGroup],
) -> Result<bool, KeyError> {
    let mut tx = keyring.db().begin_write().await?;
    // What every destruction locks first.
    ledger::lock_seller(&mut tx, seller).await?;
    let is_live = match order.fingerprint {
        Some(fingerprint) => ledger::is_live(&mut tx, fingerprint).await?,
        None => false,
    };
    let (groups, result) = if is_live { (groups, "readable") } else { (&[][..], "erased") };
    audit::append(&mut tx, keyring.now(), &event(wish, seller, order, groups, AuditOutcome::Success, result)).await?;
    tx.commit().await.map_err(on("write the audit log"))?;
    Ok(is_live)
}

async fn record(
    keyring: &Keyring,
    wish: &Wish<'_>,
    seller: &SellerId,
    order: &Named,
    groups: &[FieldGroup],
    outcome: AuditOutcome,
    result: &str,
) -> Result<(), KeyError> {
    let mut tx = keyring.db().begin_write().await?;
    audit::append(&mut tx, keyring.now(), &event(wish, seller, order, groups, outcome, result)).await?;
    tx.commit().await.map_err(on("write the audit log"))?;
    Ok(())
}

fn event(wish: &Wish<'_>, seller: &SellerId, order: &Named, groups: &[FieldGroup], outcome: AuditOutcome, result: &str) -> AuditEvent {
    let subject = match order {
        Named { token: Some(token), .. } => token.to_hex(),
        Named { fingerprint: Some(fingerprint), .. } => fingerprint.to_hex(),
        Named { token: None, fingerprint: None } => "unknown".to_owned(),
    };
    // Role and purpose are what the caller typed: only names that are registered, and so of the operator's own, go into the log in full.
    AuditEvent {
        actor: wish.os_user.to_owned(),
        action: "open",
        object: format!("{seller}|{subject}"),
        outcome,
        detail: json!({
            "purpose": name_or_mark(wish.purpose), "role": wish.role.map(name_or_mark), "groups": groups, "result": result,
        }),
    }
}

/// A name as config names look, or a mark: a typed order id or address must not enter the log by way of a wrong argument.
pub(crate) fn name_or_mark(text: &str) -> &str {
    let is_name = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-' || b == b'_');
    if is_name { text } else { "(not a name)" }
}
