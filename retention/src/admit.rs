//! Admission: may this order's personal data be sealed, and under which key? One transaction for a batch.
//!
//! Invariants (DESIGN section 2, rule 6): one row per subject; a key is minted by `INSERT ... ON CONFLICT DO NOTHING` and read again in
//! the same transaction, so two pollers get one key, and a subject that was erased meanwhile gets none; `destroyed` is terminal; what is
//! past its deadline gets no key. The seller's row is locked first, so that batches queue and never wait for each other crosswise; that
//! costs nothing where a seller is polled by one process at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sqlx::Row;
use sqlx::any::AnyRow;
use sunder_schemas::ids::{EntityToken, EventId, Fingerprint, KeyId, SellerId};
use sunder_schemas::outcome::DropReason;
use sunder_schemas::time::Timestamp;

use crate::deadline::{self, Decision, Facts, Observed, Policy};
use crate::keydb::{DbError, ROWS_PER_STATEMENT, Write, blob, numbered, on, push_tuples};
use crate::keys::seal::commitment;
use crate::keys::{DataKey, KeyError, Keyring, LostLedger, SellerKeys};
use crate::ledger::{self, parse_facts};
use crate::sellers::SellerState;

/// How often a batch reads again because another process added the same subjects: once is enough, more is a fault.
const ROUNDS_MAX: usize = 5;

/// The seller's keys are others than those this process knows: they are read again.
const SELLER_KEYS_CHANGED: &str = "seller_keys_changed";

/// The error of an `action` that met other keys of the seller than it began with.
pub(crate) fn outdated(action: &'static str) -> DbError {
    DbError { action, code: SELLER_KEYS_CHANGED.to_owned(), retry: true }
}

/// Whether `error` is [`outdated`]: then the same again, with the keys of now, goes well.
pub(crate) fn is_outdated(error: &KeyError) -> bool {
    matches!(error, KeyError::Database(error) if error.code == SELLER_KEYS_CHANGED)
}

/// One fetched version of an order that asks for a key.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Its token.
    pub token: EntityToken,
    /// What this version shows of promise, shipment and delivery.
    pub observed: Observed,
    /// The source's own version, in ms.
    pub source_version: i64,
    /// The event's id.
    pub event_id: EventId,
    /// Whether there is anything to seal: a wanted group that was supplied.
    pub wants_key: bool,
}

/// What may be done with a candidate's personal data.
#[derive(Debug, Clone)]
pub enum Admission {
    /// Seal it under this key.
    Seal {
        /// The subject's key.
        key: Arc<DataKey>,
        /// When the key is due to be destroyed.
        deadline: Timestamp,
        /// By which rule.
        rule: String,
    },
    /// Nothing is to be sealed; publish the clear part.
    Clear {
        /// When a key would be due to be destroyed.
        deadline: Timestamp,
        /// By which rule.
        rule: String,
    },
    /// Drop it in memory and count the reason; publish the clear part.
    Drop(DropReason),
    /// Erased with its business data: publish nothing.
    Withheld,
    /// This version was published and acknowledged before: publish nothing.
    Unchanged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    None,
    Live,
    Destroyed,
}

/// A subject's row while a batch is decided.
#[derive(Debug, Clone)]
struct Subject {
    token: EntityToken,
    state: State,
    key: Option<KeyId>,
    wrapped: Option<Vec<u8>>,
    commitment: Option<Vec<u8>>,
    witness: Option<Vec<u8>>,
    wrapping_version: Option<i64>,
    facts: Option<Facts>,
    decision: Option<(Timestamp, String)>,
    source_version: Option<i64>,
    event_id: Option<String>,
    /// Whether its business data was erased too.
    is_withheld: bool,
    /// Whether the row was read from the database.
    is_stored: bool,
    /// Whether the batch changed it.
    is_changed: bool,
}

impl Subject {
    const fn new(token: EntityToken) -> Self {
        Self {
            token,
            state: State::None,
            key: None,
            wrapped: None,
            commitment: None,
            witness: None,
            wrapping_version: None,
            facts: None,
            decision: None,
            source_version: None,
            event_id: None,
            is_withheld: false,
            is_stored: false,
            is_changed: true,
        }
    }
}

/// What the rules say of one candidate; pure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Seal,
    Clear,
    Drop(DropReason),
    Withheld,
    Unchanged,
}

/// Decides on `candidate` and brings `subject`'s facts up to this version.
fn decide(subject: &mut Subject, candidate: &Candidate, lost: Option<LostLedger>, policy: &Policy, now: Timestamp) -> Verdict {
    let created = candidate.observed.created;
    if subject.is_withheld || lost.and_then(|lost| lost.withheld_until).is_some_and(|until| created <= until) {
        return Verdict::Withheld;
    }
    if subject.event_id.as_deref() == Some(&candidate.event_id.to_string()) {
        return Verdict::Unchanged;
    }
    let may_be_erased = subject.state == State::None && lost.is_some_and(|lost| created <= lost.erased_until);
    if subject.state == State::Destroyed || may_be_erased {
        return Verdict::Drop(DropReason::Erased);
    }
    // An older version than the last tells nothing new of the clock.
    if subject.decision.is_none() || subject.source_version.is_none_or(|v| v <= candidate.source_version) {
        let facts = deadline::observe(subject.facts.as_ref(), &candidate.observed, policy);
        let Decision { at, rule } = deadline::deadline(&facts, candidate.observed.previous_look, policy);
        subject.facts = Some(facts);
        subject.decision = Some((at, rule.as_str().to_owned()));
        subject.source_version = Some(candidate.source_version);
        subject.is_changed = true;
    }
    if !candidate.wants_key {
        return Verdict::Clear;
    }
    if subject.decision.as_ref().is_none_or(|(at, _)| *at <= now) {
        return Verdict::Drop(DropReason::PastDeadline);
    }
    Verdict::Seal
}

/// See [`Keyring::admit`].
pub(crate) async fn admit(keyring: &Keyring, seller: &SellerId, candidates: &[Candidate]) -> Result<Vec<Admission>, KeyError> {
    let keys = keyring.seller(seller).await?;
    let mut tx = keyring.db().begin_write().await?;
    match ledger::lock_seller(&mut tx, seller).await? {
        Some(locked) if locked.state == SellerState::Removed.as_str() => {
            keyring.forget_seller(seller);
            return Err(KeyError::SellerRemoved(seller.clone()));
        }
        Some(locked) if keys.is_current(&locked) => {}
        // Rotated, or removed and readmitted meanwhile: a key wrapped under the old wrapping key would be lost.
        _ => {
            keyring.forget_seller(seller);
            return Err(outdated("admit a batch").into());
        }
    }
    let batch = Batch { keyring, keys: &keys, now: keyring.now() };
    let mut answers: Vec<Option<Admission>> = vec![None; candidates.len()];
    let mut open: BTreeSet<Fingerprint> = candidates.iter().map(|c| c.fingerprint).collect();
    let mut fresh: Vec<Arc<DataKey>> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let mut subjects = batch.read(&mut tx, &open).await?;
        fresh.clear();
        for (candidate, answer) in candidates.iter().zip(&mut answers) {
            if open.contains(&candidate.fingerprint) {
                let subject = subjects.entry(candidate.fingerprint).or_insert_with(|| Subject::new(candidate.token));
                *answer = Some(batch.answer(subject, candidate, &mut fresh)?);
            }
        }
        // Those whose insert met a row of another process are read and decided again: that row counts, not ours.
        open = batch.write(&mut tx, &subjects).await?;
        if open.is_empty() {
            tx.commit().await.map_err(on("commit an admission"))?;
            fresh.into_iter().for_each(|key| keyring.remember(key));
            let missing = || DbError::fixed("admit a batch", "unanswered");
            return Ok(answers.into_iter().collect::<Option<Vec<_>>>().ok_or_else(missing)?);
        }
    }
    Err(DbError { action: "admit a batch", code: "contended".to_owned(), retry: true }.into())
}

struct Batch<'a> {
    keyring: &'a Keyring,
    keys: &'a SellerKeys,
    now: Timestamp,
}

impl Batch<'_> {
    fn answer(&self, subject: &mut Subject, candidate: &Candidate, fresh: &mut Vec<Arc<DataKey>>) -> Result<Admission, KeyError> {
        let verdict = decide(subject, candidate, self.keys.lost(), self.keyring.policy(), self.now);
        let (deadline, rule) = subject.decision.clone().unwrap_or((self.now, String::new()));
        Ok(match verdict {
            Verdict::Unchanged => Admission::Unchanged,
            Verdict::Withheld => Admission::Withheld,
            Verdict::Drop(reason) => Admission::Drop(reason),
            Verdict::Clear => Admission::Clear { deadline, rule },
            Verdict::Seal => Admission::Seal { key: self.key_of(subject, candidate, fresh)?, deadline, rule },
        })
    }

    /// The subject's key: unwrapped, or minted where it has none.
    fn key_of(&self, subject: &mut Subject, candidate: &Candidate, fresh: &mut Vec<Arc<DataKey>>) -> Result<Arc<DataKey>, KeyError> {
        let damaged = || KeyError::Damaged { what: "subject row", seller: self.keys.seller().clone() };
        if subject.state == State::Live {
            let id = subject.key.ok_or_else(damaged)?;
            let cached = self.keyring.cache().get(id).or_else(|| fresh.iter().rev().find(|key| key.id() == id).cloned());
            if let Some(key) = cached {
                return Ok(key);
            }
            let (wrapped, commitment) = subject.wrapped.as_deref().zip(subject.commitment.as_deref()).ok_or_else(damaged)?;
            let key = Arc::new(self.keys.unwrap(id, candidate.fingerprint, wrapped, subject.wrapping_version, commitment)?);
            fresh.push(Arc::clone(&key));
            return Ok(key);
        }
        let random = self.keyring.random();
        let (key, bytes) = DataKey::mint(random).ok_or(KeyError::NoRandomness)?;
        subject.state = State::Live;
        subject.key = Some(key.id());
        subject.wrapped = Some(self.keys.wrap(random, key.id(), candidate.fingerprint, bytes.as_ref()).ok_or(KeyError::NoRandomness)?);
        subject.wrapping_version = Some(self.keys.wrapping_version());
        subject.commitment = Some(commitment(bytes.as_ref()).to_vec());
        subject.witness = Some(key.witness(self.keys.seller(), subject.token).into_bytes());
        subject.is_changed = true;
        let key = Arc::new(key);
        fresh.push(Arc::clone(&key));
        Ok(key)
    }

    /// Reads and locks the rows of `prints`, in their order.
    async fn read(&self, tx: &mut Write, prints: &BTreeSet<Fingerprint>) -> Result<BTreeMap<Fingerprint, Subject>, DbError> {
        let prints: Vec<&Fingerprint> = prints.iter().collect();
        let mut subjects = BTreeMap::new();
        for chunk in prints.chunks(ROWS_PER_STATEMENT) {
            let mut sql =
                "SELECT fingerprint, token, state, key_id, wrapped, commitment, witness, wrapping_version, facts, deadline, rule, \
                           source_version, event_id, withheld_epoch FROM subject WHERE fingerprint IN "
                    .to_owned();
            push_tuples(&mut sql, 1, chunk.len(), 1);
            sql.push_str(" ORDER BY fingerprint");
            sql.push_str(self.keyring.db().dialect().for_update());
            let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
            for print in chunk {
                query = query.bind(print.0.to_vec());
            }
            for row in query.fetch_all(&mut **tx).await.map_err(on("read subjects"))? {
                let (print, subject) = subject_of(&row)?;
                subjects.insert(print, subject);
            }
        }
        Ok(subjects)
    }

    /// Writes what changed; returns the new subjects that another process had added meanwhile.
    async fn write(&self, tx: &mut Write, subjects: &BTreeMap<Fingerprint, Subject>) -> Result<BTreeSet<Fingerprint>, DbError> {
        let (stored, new): (Vec<_>, Vec<_>) = subjects.iter().filter(|(_, s)| s.is_changed).partition(|(_, s)| s.is_stored);
        let mut lost = BTreeSet::new();
        for chunk in new.chunks(ROWS_PER_STATEMENT) {
            let rows = self.upsert(tx, chunk, " ON CONFLICT (fingerprint) DO NOTHING RETURNING fingerprint").await?;
            if rows.len() < chunk.len() {
                lost.extend(chunk.iter().map(|(print, _)| **print));
                for row in rows {
                    lost.remove(&Fingerprint(blob(&row, "fingerprint")?.unwrap_or([0; 32])));
                }
            }
        }
        for chunk in stored.chunks(ROWS_PER_STATEMENT) {
            // The rows are locked since they were read; the condition is the rule itself, said once more where it counts.
            let update = " ON CONFLICT (fingerprint) DO UPDATE SET state = excluded.state, key_id = excluded.key_id, \
                          wrapped = excluded.wrapped, wrapped_mask = excluded.wrapped_mask, wrapping_version = excluded.wrapping_version, \
                          commitment = excluded.commitment, witness = excluded.witness, facts = excluded.facts, \
                          deadline = excluded.deadline, rule = excluded.rule, source_version = excluded.source_version \
                          WHERE subject.state <> 'destroyed' RETURNING fingerprint";
            if self.upsert(tx, chunk, update).await?.len() != chunk.len() {
                return Err(DbError { action: "write subjects", code: "destroyed_meanwhile".to_owned(), retry: true });
            }
        }
        Ok(lost)
    }

    async fn upsert(&self, tx: &mut Write, chunk: &[(&Fingerprint, &Subject)], conflict: &str) -> Result<Vec<AnyRow>, DbError> {
        let mut sql =
            "INSERT INTO subject (fingerprint, seller, token, state, key_id, wrapped, wrapped_mask, wrapping_version, commitment, \
                       witness, facts, deadline, rule, source_version, created_at) VALUES "
                .to_owned();
        push_tuples(&mut sql, chunk.len(), 15, 1);
        sql.push_str(conflict);
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for (print, subject) in chunk {
            let facts = subject.facts.as_ref().map(serde_json::to_string).transpose();
            let state = match subject.state {
                State::None => "none",
                State::Live => "live",
                State::Destroyed => "destroyed",
            };
            query = query
                .bind(print.0.to_vec())
                .bind(self.keys.seller().as_str().to_owned())
                .bind(subject.token.0.to_vec())
                .bind(state)
                .bind(subject.key.map(|k| k.0.to_vec()))
                .bind(subject.wrapped.clone())
                .bind(subject.wrapped.as_deref().map(mask))
                .bind(subject.wrapping_version)
                .bind(subject.commitment.clone())
                .bind(subject.witness.clone())
                .bind(facts.map_err(|_| DbError::fixed("write subjects", "bad_facts"))?)
                .bind(subject.decision.as_ref().map(|(at, _)| at.0))
                .bind(subject.decision.as_ref().map(|(_, rule)| rule.clone()))
                .bind(subject.source_version)
                .bind(self.now.0);
        }
        query.fetch_all(&mut **tx).await.map_err(on("write subjects"))
    }
}

/// The bitwise complement of a wrapped key's first 16 bytes (layout version and nonce, no secret): what a scan needs to look for it.
pub(crate) fn mask(wrapped: &[u8]) -> Vec<u8> {
    wrapped.iter().take(16).map(|b| !b).collect()
}

fn subject_of(row: &AnyRow) -> Result<(Fingerprint, Subject), DbError> {
    let failed = on("read subjects");
    let bad = || DbError::fixed("read subjects", "bad_column");
    let state = match row.try_get::<String, _>("state").map_err(&failed)?.as_str() {
        "none" => State::None,
        "live" => State::Live,
        "destroyed" => State::Destroyed,
        _ => return Err(bad()),
    };
    let deadline: Option<i64> = row.try_get("deadline").map_err(&failed)?;
    let rule: Option<String> = row.try_get("rule").map_err(&failed)?;
    let subject = Subject {
        // A row without a token is of an unknown order that was erased: it is destroyed, and its token is never used.
        token: EntityToken(blob(row, "token")?.unwrap_or([0; 16])),
        state,
        key: blob(row, "key_id")?.map(KeyId),
        wrapped: row.try_get("wrapped").map_err(&failed)?,
        commitment: row.try_get("commitment").map_err(&failed)?,
        witness: row.try_get("witness").map_err(&failed)?,
        wrapping_version: row.try_get("wrapping_version").map_err(&failed)?,
        facts: parse_facts(row.try_get("facts").map_err(&failed)?)?,
        decision: deadline.map(Timestamp).zip(rule),
        source_version: row.try_get("source_version").map_err(&failed)?,
        event_id: row.try_get("event_id").map_err(&failed)?,
        is_withheld: row.try_get::<Option<i64>, _>("withheld_epoch").map_err(&failed)?.is_some(),
        is_stored: true,
        is_changed: false,
    };
    Ok((Fingerprint(blob(row, "fingerprint")?.ok_or_else(bad)?), subject))
}
