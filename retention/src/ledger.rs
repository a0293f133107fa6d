//! The erased ledger: subjects, what is due, and destruction. One row per subject holds its key or says that it is destroyed.
//!
//! Invariants: `destroyed` is terminal; a destruction, its ledger epoch, the records for `privacy.erased` and `keys.revoked` and the
//! audit event are one transaction; a subject that was never held is written down too, so that it does not come.

use std::sync::Arc;

use serde_json::json;
use sqlx::Row;
use sunder_schemas::class::{Dataset, FieldGroup};
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, KeyId, SellerId};
use sunder_schemas::outcome::DropReason;
use sunder_schemas::time::Timestamp;

use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::deadline::{self, Facts, Rule};
use crate::keydb::{DbError, KeyDb, ROWS_PER_STATEMENT, Write, blob, numbered, on, push_tuples};
use crate::keys::{DataKey, KeyError, Keyring};
use crate::mirror::{self, ErasedRow};
use crate::names::Named;
use crate::outbox::{self, Outgoing};
use crate::store::Extent;

/// How often a subject is read where its seller's wrapping key rotates meanwhile. Chosen: a rotation takes seconds, a read microseconds.
const READS_MAX: u32 = 5;

/// What is known of a subject.
#[derive(Debug, Clone)]
pub enum SubjectState {
    /// Its personal data opens with this key.
    Live(Arc<DataKey>),
    /// Its key is destroyed.
    Destroyed,
    /// Never seen.
    Unknown,
    /// Seen, but nothing personal was ever sealed: which groups were dropped, and why.
    NotHeld(Vec<(FieldGroup, DropReason)>),
}

/// What became of a group of personal fields at the last fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Sealed and published.
    Sealed,
    /// Dropped in memory.
    Dropped(DropReason),
}

impl Fate {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Dropped(reason) => reason.as_str(),
        }
    }
}

/// A subject whose key is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condemned {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Its token.
    pub token: Option<EntityToken>,
}

/// What is to be destroyed, for which case.
#[derive(Debug, Clone)]
pub struct Destruction<'a> {
    /// The case.
    pub case: &'a CaseId,
    /// The seller all subjects belong to.
    pub seller: &'a SellerId,
    /// The subjects; a fingerprint that was never seen is written down as destroyed.
    pub subjects: &'a [Condemned],
    /// How much of them goes: with their business data they are withheld from then on, and no weaker erasure takes that back.
    pub extent: Extent,
    /// When, by the policy clock.
    pub at: Timestamp,
    /// Who asked, for the audit log: `sweep`, or a user.
    pub actor: &'a str,
}

/// A destruction, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destroyed {
    /// The ledger epoch that every process must acknowledge.
    pub epoch: i64,
    /// Each subject with its key, in order of fingerprint; `None` where it never had one.
    pub keys: Vec<(Fingerprint, Option<KeyId>)>,
}

/// A subject whose deadline has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Whose customer.
    pub seller: SellerId,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Its token.
    pub token: Option<EntityToken>,
    /// Its key.
    pub key: KeyId,
    /// When it was due.
    pub deadline: Timestamp,
    /// By which rule.
    pub rule: String,
}

/// Destroys the keys of `destruction.subjects` within the transaction `tx`. Idempotent: what is destroyed already keeps its epoch.
///
/// # Errors
/// [`DbError`]: roll back; nothing is destroyed.
pub async fn destroy(tx: &mut Write, destruction: &Destruction<'_>) -> Result<Destroyed, DbError> {
    let failed = on("destroy keys");
    lock_seller(tx, destruction.seller).await?;
    // Locked by destroyers alone and before any subject, so that epochs are committed in their order.
    let epoch = next_epoch(tx).await?;
    let withheld = (destruction.extent == Extent::WithBusinessData).then_some(epoch);
    let mut subjects: Vec<&Condemned> = destruction.subjects.iter().collect();
    subjects.sort_unstable_by_key(|s| s.fingerprint);
    subjects.dedup_by_key(|s| s.fingerprint);
    let (mut all, mut now, mut mirrored) = (Vec::with_capacity(subjects.len()), Vec::new(), Vec::new());
    for chunk in subjects.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "INSERT INTO subject (fingerprint, seller, token, state, created_at, destroyed_at, destroyed_epoch, case_id, withheld_epoch) VALUES "
            .to_owned();
        push_tuples(&mut sql, chunk.len(), 9, 1);
        sql.push_str(
            " ON CONFLICT (fingerprint) DO UPDATE SET state = 'destroyed', wrapped = NULL, token = COALESCE(subject.token, excluded.token), \
             destroyed_at = COALESCE(subject.destroyed_at, excluded.destroyed_at), \
             destroyed_epoch = COALESCE(subject.destroyed_epoch, excluded.destroyed_epoch), \
             case_id = COALESCE(subject.case_id, excluded.case_id), \
             withheld_epoch = COALESCE(subject.withheld_epoch, excluded.withheld_epoch) \
             RETURNING fingerprint, token, key_id, destroyed_epoch, withheld_epoch, witness, commitment",
        );
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for subject in chunk {
            query = query
                .bind(subject.fingerprint.0.to_vec())
                .bind(destruction.seller.as_str().to_owned())
                .bind(subject.token.map(|t| t.0.to_vec()))
                .bind("destroyed")
                .bind(destruction.at.0)
                .bind(destruction.at.0)
                .bind(epoch)
                .bind(destruction.case.as_str().to_owned())
                .bind(withheld);
        }
        for row in query.fetch_all(&mut **tx).await.map_err(&failed)? {
            let fingerprint = Fingerprint(blob(&row, "fingerprint")?.unwrap_or([0; 32]));
            let key = blob(&row, "key_id")?.map(KeyId);
            all.push((fingerprint, key));
            let withheld: Option<i64> = row.try_get("withheld_epoch").map_err(&failed)?;
            let is_destroyed_now = row.try_get::<i64, _>("destroyed_epoch").map_err(&failed)? == epoch;
            if is_destroyed_now {
                now.push((fingerprint, key));
            }
            if is_destroyed_now || withheld == Some(epoch) {
                mirrored.push(ErasedRow {
                    fingerprint,
                    token: blob(&row, "token")?.map(EntityToken),
                    key,
                    is_withheld: withheld.is_some(),
                    witness: row.try_get("witness").map_err(&failed)?,
                    commitment: row.try_get("commitment").map_err(&failed)?,
                });
            }
        }
    }
    if destruction.extent.older_than().is_some() {
        forget_facts(tx, destruction.seller, &subjects).await?;
    }
    all.sort_unstable();
    let keys: Vec<KeyId> = now.iter().filter_map(|(_, key)| *key).collect();
    revoke(tx, &keys, epoch, destruction.at).await?;
    let mut records: Vec<Outgoing> = mirrored.iter().map(|row| mirror::erased(destruction, epoch, row)).collect();
    records.extend(keys.iter().map(|key| revoked_record(*key, epoch, destruction.at)));
    outbox::push(tx, &records).await?;
    let event = AuditEvent {
        actor: destruction.actor.to_owned(),
        action: "keys.destroyed",
        object: destruction.case.to_string(),
        outcome: AuditOutcome::Success,
        detail: json!({ "seller": destruction.seller, "subjects": all.len(), "destroyed": now.len(), "keys": keys.len(), "epoch": epoch, "extent": destruction.extent }),
    };
    audit::append(tx, destruction.at, &event).await?;
    Ok(Destroyed { epoch, keys: all })
}

/// Forgets what is known of orders besides that they are erased: their times, and what became of their fields.
async fn forget_facts(tx: &mut Write, seller: &SellerId, subjects: &[&Condemned]) -> Result<(), DbError> {
    let failed = on("forget what is known of orders");
    for chunk in subjects.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "UPDATE subject SET facts = NULL, event_id = NULL WHERE fingerprint IN ".to_owned();
        push_tuples(&mut sql, 1, chunk.len(), 1);
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for subject in chunk {
            query = query.bind(subject.fingerprint.0.to_vec());
        }
        query.execute(&mut **tx).await.map_err(&failed)?;
        let tokens: Vec<EntityToken> = chunk.iter().filter_map(|subject| subject.token).collect();
        if tokens.is_empty() {
            continue;
        }
        let mut sql = "DELETE FROM disposition WHERE seller = $1 AND token IN ".to_owned();
        push_tuples(&mut sql, 1, tokens.len(), 2);
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false).bind(seller.as_str().to_owned());
        for token in tokens {
            query = query.bind(token.0.to_vec());
        }
        query.execute(&mut **tx).await.map_err(&failed)?;
    }
    Ok(())
}

/// A seller's row while it is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LockedSeller {
    /// As it is stored.
    pub(crate) state: String,
    /// Counts readmissions.
    pub(crate) generation: i64,
    /// Version of the wrapping key.
    pub(crate) wrapping_version: i64,
}

/// Locks the seller's row until `tx` ends and returns it; `None` where there is no such seller. Whoever writes
/// subjects takes it first: subjects that are new have no row to lock, so without it two batches could wait for each other crosswise.
pub(crate) async fn lock_seller(tx: &mut Write, seller: &SellerId) -> Result<Option<LockedSeller>, DbError> {
    let failed = on("lock a seller");
    // A writer on SQLite holds the whole database already.
    let sql = if tx.backend_name() == "PostgreSQL" {
        "SELECT state, generation, wrapping_version FROM seller WHERE seller = $1 FOR UPDATE"
    } else {
        "SELECT state, generation, wrapping_version FROM seller WHERE seller = $1"
    };
    let row = sqlx::query(sql).bind(seller.as_str().to_owned()).fetch_optional(&mut **tx).await.map_err(&failed)?;
    row.map(|row| Ok(LockedSeller { state: row.try_get(0)?, generation: row.try_get(1)?, wrapping_version: row.try_get(2)? }))
        .transpose()
        .map_err(|e: sqlx::Error| failed(e))
}

/// Whether the subject has a key at this moment of `tx`; of worth where its seller is locked ([`lock_seller`]).
pub(crate) async fn is_live(tx: &mut Write, fingerprint: Fingerprint) -> Result<bool, DbError> {
    let failed = on("read a subject");
    let row = sqlx::query("SELECT state FROM subject WHERE fingerprint = $1")
        .bind(fingerprint.0.to_vec())
        .fetch_optional(&mut **tx)
        .await
        .map_err(&failed)?;
    let state: Option<String> = row.map(|row| row.try_get(0)).transpose().map_err(&failed)?;
    Ok(state.as_deref() == Some("live"))
}

/// Raises the ledger epoch within `tx` and returns it.
pub(crate) async fn next_epoch(tx: &mut Write) -> Result<i64, DbError> {
    let failed = on("raise the ledger epoch");
    let row = sqlx::query("UPDATE ledger_epoch SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch")
        .fetch_one(&mut **tx)
        .await
        .map_err(&failed)?;
    row.try_get(0).map_err(&failed)
}

/// Lists `keys` as revoked within `tx`.
pub(crate) async fn revoke(tx: &mut Write, keys: &[KeyId], epoch: i64, at: Timestamp) -> Result<(), DbError> {
    for chunk in keys.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "INSERT INTO revoked_key (key_id, epoch, at) VALUES ".to_owned();
        push_tuples(&mut sql, chunk.len(), 3, 1);
        sql.push_str(" ON CONFLICT (key_id) DO NOTHING");
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for key in chunk {
            query = query.bind(key.0.to_vec()).bind(epoch).bind(at.0);
        }
        query.execute(&mut **tx).await.map_err(on("revoke keys"))?;
    }
    Ok(())
}

/// The record of `keys.revoked`.
pub(crate) fn revoked_record(key: KeyId, epoch: i64, at: Timestamp) -> Outgoing {
    Outgoing { topic: "keys.revoked", key: key.to_hex(), value: Some(json!({ "key": key, "epoch": epoch, "at": at.to_iso() }).to_string()) }
}

/// What is known of a subject, by its token.
pub(crate) async fn subject(keyring: &Keyring, seller: &SellerId, token: EntityToken) -> Result<SubjectState, KeyError> {
    // Row and wrapping key are read one after the other: a rotation may come in between, and then both are read again.
    for _ in 1..READS_MAX {
        match read_subject(keyring, seller, token).await {
            Err(KeyError::Rewrapped(_)) => keyring.forget_seller(seller),
            other => return other,
        }
    }
    read_subject(keyring, seller, token).await
}

async fn read_subject(keyring: &Keyring, seller: &SellerId, token: EntityToken) -> Result<SubjectState, KeyError> {
    let failed = on("read a subject");
    let row = sqlx::query(
        "SELECT fingerprint, state, key_id, wrapped, commitment, wrapping_version FROM subject WHERE seller = $1 AND token = $2",
    )
    .bind(seller.as_str().to_owned())
    .bind(token.0.to_vec())
    .fetch_optional(keyring.db().pool())
    .await
    .map_err(&failed)?;
    let Some(row) = row else { return Ok(SubjectState::Unknown) };
    let state: String = row.try_get("state").map_err(&failed)?;
    match state.as_str() {
        "live" => {}
        "destroyed" => return Ok(SubjectState::Destroyed),
        _ => {
            let dropped = dispositions(keyring.db(), seller, token).await?;
            let dropped = dropped.into_iter().filter_map(|(group, fate)| match fate {
                Fate::Dropped(reason) => Some((group, reason)),
                Fate::Sealed => None,
            });
            return Ok(SubjectState::NotHeld(dropped.collect()));
        }
    }
    let damaged = || KeyError::Damaged { what: "subject row", seller: seller.clone() };
    let id = blob(&row, "key_id")?.map(KeyId).ok_or_else(damaged)?;
    if let Some(key) = keyring.cache().get(id) {
        return Ok(SubjectState::Live(key));
    }
    let fingerprint = Fingerprint(blob(&row, "fingerprint")?.ok_or_else(damaged)?);
    let wrapped: Option<Vec<u8>> = row.try_get("wrapped").map_err(&failed)?;
    let commitment: Option<Vec<u8>> = row.try_get("commitment").map_err(&failed)?;
    let (wrapped, commitment) = (wrapped.ok_or_else(damaged)?, commitment.ok_or_else(damaged)?);
    let key = Arc::new(keyring.seller(seller).await?.unwrap(
        id,
        fingerprint,
        &wrapped,
        row.try_get("wrapping_version").map_err(&failed)?,
        &commitment,
    )?);
    keyring.remember(Arc::clone(&key));
    Ok(SubjectState::Live(key))
}

/// What is known of a subject, by its names: the fingerprint decides, since a token dies with its seller.
///
/// # Errors
/// [`KeyError::SellerRemoved`] where the seller left and the subject's key is not destroyed yet.
pub(crate) async fn subject_named(keyring: &Keyring, seller: &SellerId, named: &Named) -> Result<SubjectState, KeyError> {
    let Some(fingerprint) = named.fingerprint else { return Ok(SubjectState::Unknown) };
    let failed = on("read a subject");
    let row = sqlx::query("SELECT state FROM subject WHERE fingerprint = $1")
        .bind(fingerprint.0.to_vec())
        .fetch_optional(keyring.db().pool())
        .await
        .map_err(&failed)?;
    let state: Option<String> = row.map(|row| row.try_get("state")).transpose().map_err(&failed)?;
    match (state.as_deref(), named.token) {
        (Some("destroyed"), _) => Ok(SubjectState::Destroyed),
        (None, _) | (_, None) => Ok(SubjectState::Unknown),
        (Some(_), Some(token)) => subject(keyring, seller, token).await,
    }
}

/// What became of each group of personal fields of an order at its last fetch.
///
/// # Errors
/// [`DbError`].
pub async fn dispositions(db: &KeyDb, seller: &SellerId, token: EntityToken) -> Result<Vec<(FieldGroup, Fate)>, DbError> {
    let failed = on("read dispositions");
    let rows = sqlx::query("SELECT field_group, fate FROM disposition WHERE seller = $1 AND token = $2 ORDER BY field_group")
        .bind(seller.as_str().to_owned())
        .bind(token.0.to_vec())
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
    let bad = || DbError::fixed("read dispositions", "bad_column");
    rows.iter()
        .map(|row| {
            let group: FieldGroup = row.try_get::<String, _>(0).map_err(&failed)?.parse().map_err(|_| bad())?;
            let fate = row.try_get::<String, _>(1).map_err(&failed)?;
            let fate = if fate == "sealed" { Fate::Sealed } else { Fate::Dropped(fate.parse().map_err(|_| bad())?) };
            Ok((group, fate))
        })
        .collect()
}

/// The live subjects whose deadline has come at `now`, the longest overdue first, at most `limit`. One that waits for its delivery is
/// judged by the seller's order watermark of this moment: while the watermark moves and tells of no delivery, its deadline moves too,
/// up to the cap, and is stored anew. An open gap ends what the watermark shows.
///
/// # Errors
/// [`DbError`].
pub async fn due(keyring: &Keyring, now: Timestamp, limit: usize) -> Result<Vec<Due>, DbError> {
    const PAGE: usize = 1000;
    let failed = on("find what is due");
    let mut due = Vec::new();
    let (mut after, mut after_print) = (i64::MIN, Vec::new());
    while due.len() < limit {
        let rows = sqlx::query(
            "SELECT s.fingerprint, s.seller, s.token, s.key_id, s.facts, s.deadline, s.rule, c.position, \
             (SELECT MIN(g.from_ms) FROM poll_gap g WHERE g.seller = s.seller AND g.dataset = $1 AND g.state = 'open') AS hole FROM subject s \
             LEFT JOIN poll_cursor c ON c.seller = s.seller AND c.dataset = $1 \
             WHERE s.state = 'live' AND s.deadline <= $2 AND (s.deadline > $3 OR (s.deadline = $3 AND s.fingerprint > $4)) \
             ORDER BY s.deadline, s.fingerprint LIMIT $5",
        )
        .bind(Dataset::Orders.as_str())
        .bind(now.0)
        .bind(after)
        .bind(after_print.clone())
        .bind(i64::try_from(PAGE).unwrap_or(i64::MAX))
        .fetch_all(keyring.db().pool())
        .await
        .map_err(&failed)?;
        let mut moved = Vec::new();
        for row in &rows {
            let bad = || DbError::fixed("find what is due", "bad_column");
            let fingerprint = Fingerprint(blob(row, "fingerprint")?.ok_or_else(bad)?);
            let stored = Timestamp(row.try_get("deadline").map_err(&failed)?);
            (after, after_print) = (stored.0, fingerprint.0.to_vec());
            let mut rule: String = row.try_get::<Option<String>, _>("rule").map_err(&failed)?.unwrap_or_default();
            let mut deadline = stored;
            if rule == Rule::NotYetDeliveredLook.as_str() {
                let facts = parse_facts(row.try_get("facts").map_err(&failed)?)?;
                let position = row.try_get::<Option<i64>, _>("position").map_err(&failed)?;
                // What was not read may have told of a delivery: the look ends where the oldest open gap begins.
                let hole = row.try_get::<Option<i64>, _>("hole").map_err(&failed)?.unwrap_or(i64::MAX);
                let watermark = position.map(|at| Timestamp(at.min(hole)));
                if let Some(facts) = facts {
                    let decision = deadline::deadline(&facts, watermark, keyring.policy());
                    (deadline, rule) = (decision.at, decision.rule.as_str().to_owned());
                }
            }
            if deadline > now {
                moved.push((fingerprint, stored, deadline, rule));
                continue;
            }
            let seller = SellerId::parse(&row.try_get::<String, _>("seller").map_err(&failed)?).map_err(|_| bad())?;
            let key = blob(row, "key_id")?.map(KeyId).ok_or_else(bad)?;
            due.push(Due { seller, fingerprint, token: blob(row, "token")?.map(EntityToken), key, deadline, rule });
        }
        postpone(keyring.db(), &moved).await?;
        if rows.len() < PAGE {
            break;
        }
    }
    due.truncate(limit);
    Ok(due)
}

/// Stores deadlines that moved, unless the row has changed since it was read.
async fn postpone(db: &KeyDb, moved: &[(Fingerprint, Timestamp, Timestamp, String)]) -> Result<(), DbError> {
    if moved.is_empty() {
        return Ok(());
    }
    let failed = on("postpone a deadline");
    let mut tx = db.begin_write().await?;
    // In order of fingerprint, as admission locks them.
    let mut moved: Vec<_> = moved.iter().collect();
    moved.sort_unstable();
    for (fingerprint, stored, deadline, rule) in moved {
        sqlx::query("UPDATE subject SET deadline = $1, rule = $2 WHERE fingerprint = $3 AND state = 'live' AND deadline = $4")
            .bind(deadline.0)
            .bind(rule.clone())
            .bind(fingerprint.0.to_vec())
            .bind(stored.0)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
    }
    tx.commit().await.map_err(&failed)
}

pub(crate) fn parse_facts(text: Option<String>) -> Result<Option<Facts>, DbError> {
    text.map(|t| serde_json::from_str(&t).map_err(|_| DbError::fixed("read a subject", "bad_facts"))).transpose()
}

/// Every subject of `seller` that is not destroyed, for off-boarding and `erase --all`.
///
/// # Errors
/// [`DbError`].
pub async fn of_seller(db: &KeyDb, seller: &SellerId) -> Result<Vec<Condemned>, DbError> {
    let failed = on("list a seller's subjects");
    let rows = sqlx::query("SELECT fingerprint, token FROM subject WHERE seller = $1 AND state <> 'destroyed' ORDER BY fingerprint")
        .bind(seller.as_str().to_owned())
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
    rows.iter()
        .map(|row| {
            let fingerprint =
                blob(row, "fingerprint")?.map(Fingerprint).ok_or_else(|| DbError::fixed("list a seller's subjects", "bad_column"))?;
            Ok(Condemned { fingerprint, token: blob(row, "token")?.map(EntityToken) })
        })
        .collect()
}
