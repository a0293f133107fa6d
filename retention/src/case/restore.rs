//! Cases and certificates after the restore of an old key database: what the log mirrors of them wins.
//!
//! Invariants: the certificate log goes on where its last head on the log ended, so that no leaf has two certificates and a stranger's
//! older head stays true; a case that was certified stays certified; one that was asked for and is not done is done. A certificate is
//! taken over only where its signature holds and its head is the one that the leaves make.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::Row;
use sunder_schemas::certificate::{CertificateError, Iso, Statement};
use sunder_schemas::class::Family;
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, SellerId};
use sunder_schemas::note::{self, NoteSigner};
use sunder_schemas::time::Timestamp;
use sunder_schemas::tlog;

use super::engine::request_digest;
use super::machine::{Event, State, Step};
use super::scope::{self, Listed, Reason};
use super::store::{self, Record};
use super::{CaseError, certify, certlog};
use crate::keydb::{DbError, KeyDb, Write, blob, on};
use crate::lease;
use crate::store::Extent;

/// Subjects in one record of `privacy.requests`. Chosen: about 100 KB.
const SUBJECTS_PER_RECORD: usize = 1000;

/// A request to erase, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirroredRequest {
    /// The case; the first part of the record's key.
    pub case: CaseId,
    /// Whose customers.
    pub seller: SellerId,
    /// Why.
    pub reason: Reason,
    /// How much of a subject goes.
    pub extent: Extent,
    /// What kind of business data goes, in a case over what is too old to be kept.
    #[serde(default)]
    pub kind: Option<Family>,
    /// `listed`, `all`, `due` or `aged`.
    #[serde(default)]
    pub scope: String,
    /// Who asked: a user or role of the operator.
    #[serde(default)]
    pub requested_by: String,
    /// Whether removal is forced.
    #[serde(default)]
    pub forced: bool,
    /// When it was opened, by the policy clock.
    pub opened_at: Iso,
    /// When it is due, by the policy clock.
    pub due_at: Iso,
    /// Fingerprint and token of each subject, where they were listed: of a long list the first part.
    #[serde(default)]
    pub subjects: Vec<(Fingerprint, EntityToken)>,
}

/// The rest of a long list of subjects, under the request's key and a number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FurtherSubjects {
    /// The case.
    pub case: CaseId,
    /// Fingerprint and token of each.
    pub subjects: Vec<(Fingerprint, EntityToken)>,
}

/// A certificate, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MirroredCertificate {
    /// Its number in the certificate log.
    pub leaf: u64,
    /// The signed statement.
    pub note: String,
    /// The signed head of the log that ends with it.
    pub head: String,
}

/// What goes to `privacy.requests` when a case is opened: enough to open it again.
pub(super) fn request_records(record: &Record, subjects: &[Listed]) -> Vec<(String, Value)> {
    let pairs: Vec<_> = subjects.iter().map(|subject| (subject.fingerprint, subject.token)).collect();
    let mut parts = pairs.chunks(SUBJECTS_PER_RECORD);
    let request = json!({
        "case": record.id, "seller": record.seller, "reason": record.reason, "extent": record.extent, "kind": record.kind, "scope": record.scope,
        "requested_by": record.requested_by, "forced": record.forced, "opened_at": record.opened_at.to_iso(),
        "due_at": record.due_at.to_iso(), "subjects": parts.next().unwrap_or_default(),
    });
    let further = (1..).zip(parts).map(|(n, part)| (format!("{}|{n}", record.id), json!({ "case": record.id, "subjects": part })));
    std::iter::once((record.id.to_string(), request)).chain(further).collect()
}

/// Brings the certificate log of `db` up to `mirrored`, in the order of their leaves, and certifies their cases. Idempotent.
///
/// # Errors
/// [`CaseError`]: a leaf is missing, or a note or head is not this signer's: the log on Kafka and the one here do not go together.
pub async fn certificates(db: &KeyDb, signer: &NoteSigner, mut mirrored: Vec<MirroredCertificate>) -> Result<u64, CaseError> {
    mirrored.sort_by_key(|certificate| certificate.leaf);
    let mut taken = 0;
    for certificate in mirrored {
        let verifier = signer.verifier_key();
        let text = note::open(certificate.note.as_bytes(), &verifier)?.text;
        let statement = Statement::from_text(&text)?;
        let listed = store::subjects(db, &statement.case).await?;
        let mut tx = db.begin_write().await?;
        let size = certlog::lock_log(&mut tx).await?;
        if certificate.leaf < size {
            continue;
        }
        if certificate.leaf > size {
            return Err(DbError::fixed("take over the certificate log", "leaf_missing").into());
        }
        let head = tlog::open_head(certificate.head.as_bytes(), &verifier).map_err(CertificateError::from)?;
        let signed = certificate.head.clone();
        certlog::append_leaf(&mut tx, &statement.case, &certificate.note, &text, |made| {
            if head == *made { Ok(signed) } else { Err(DbError::fixed("take over the certificate log", "head_differs").into()) }
        })
        .await?;
        certified(&mut tx, &statement, &certificate, listed).await?;
        tx.commit().await.map_err(on("take over a certificate"))?;
        taken += 1;
    }
    Ok(taken)
}

/// Writes down that the case of `statement` is certified, whatever the backup knows of it; `listed` is what it knows of its subjects.
async fn certified(tx: &mut Write, statement: &Statement, certificate: &MirroredCertificate, listed: Vec<Listed>) -> Result<(), CaseError> {
    let failed = on("take over a certificate");
    let times = &statement.times;
    let case = &statement.case;
    let (extent, kind) = certify::read_extent(&statement.extent);
    let record = Record {
        id: case.clone(),
        seller: statement.seller.clone(),
        reason: Reason::parse(&statement.reason).ok_or_else(|| DbError::fixed("take over a certificate", "unknown_reason"))?,
        extent,
        kind,
        scope: "listed".to_owned(),
        requested_by: statement.actors.iter().find(|actor| actor.role == "requested").map_or_else(String::new, |actor| actor.name.clone()),
        forced: false,
        opened_at: times.requested.policy_clock.0,
        due_at: times.certified.policy_clock.0,
        state: State::Certified,
        subjects: statement.subjects.count,
        blocked_by: None,
        is_blocked: false,
        keys_destroyed_at: Some(times.keys_destroyed.policy_clock.0),
        verified_at: Some(times.verified.policy_clock.0),
        certified_at: Some(times.certified.policy_clock.0),
        residual_until: statement.residual.iter().filter_map(|residual| residual.until).map(|until| until.0).max(),
    };
    // A digest of its own: it is closed, so no request is the same as it.
    store::insert(tx, &record, &format!("restored {case}")).await?;
    sqlx::query(
        "UPDATE erasure_case SET subjects = $1, keys_destroyed_at = $2, verified_at = $3, residual_until = $5, blocked_by = NULL \
         WHERE case_id = $4",
    )
    .bind(i64::try_from(record.subjects).unwrap_or(i64::MAX))
    .bind(times.keys_destroyed.policy_clock.0.0)
    .bind(times.verified.policy_clock.0.0)
    .bind(case.as_str().to_owned())
    .bind(record.residual_until.map(|until| until.0))
    .execute(&mut **tx)
    .await
    .map_err(&failed)?;
    let row = sqlx::query("SELECT COALESCE(MAX(seq), 0) FROM case_event WHERE case_id = $1")
        .bind(case.as_str().to_owned())
        .fetch_one(&mut **tx)
        .await
        .map_err(&failed)?;
    let event = Event {
        seq: row.try_get::<i64, _>(0).map_err(&failed)? + 1,
        step: Step::Certified,
        at: times.certified.policy_clock.0,
        at_system: times.certified.system_clock.0,
        evidence: json!({ "leaf": certificate.leaf, "restored_from_log": true }),
    };
    store::append(tx, case, &event).await?;
    let subjects = joined(subjects_of(tx, case).await?, listed);
    store::write_subjects(tx, case, &subjects).await
}

/// `subjects`, and those of `more` that are not among them.
fn joined(mut subjects: Vec<Listed>, more: Vec<Listed>) -> Vec<Listed> {
    let known: HashSet<Fingerprint> = subjects.iter().map(|subject| subject.fingerprint).collect();
    subjects.extend(more.into_iter().filter(|subject| !known.contains(&subject.fingerprint)));
    subjects.sort();
    subjects
}

/// Completes the list of a case that was asked for by name: the ledger names the case that erased a subject first, and so not this one
/// where another had erased it, or some of it, before.
async fn complete(db: &KeyDb, case: &CaseId, asked: Vec<Listed>) -> Result<(), CaseError> {
    let listed = store::subjects(db, case).await?;
    let before = listed.len();
    let all = joined(listed, asked);
    if all.len() == before {
        return Ok(());
    }
    let mut tx = db.begin_write().await?;
    store::write_subjects(&mut tx, case, &all).await?;
    tx.commit().await.map_err(on("complete a case's subjects"))?;
    Ok(())
}

/// The subjects that `case` erased, by the ledger.
async fn subjects_of(tx: &mut Write, case: &CaseId) -> Result<Vec<Listed>, CaseError> {
    let rows = sqlx::query("SELECT fingerprint, token, key_id FROM subject WHERE case_id = $1 AND token IS NOT NULL ORDER BY fingerprint")
        .bind(case.as_str().to_owned())
        .fetch_all(&mut **tx)
        .await
        .map_err(on("read a case's subjects"))?;
    let bad = || DbError::fixed("read a case's subjects", "bad_column");
    rows.iter()
        .map(|row| {
            Ok(Listed {
                fingerprint: Fingerprint(blob(row, "fingerprint")?.ok_or_else(bad)?),
                token: EntityToken(blob(row, "token")?.ok_or_else(bad)?),
                keys: blob(row, "key_id")?.map(sunder_schemas::ids::KeyId).into_iter().collect(),
            })
        })
        .collect::<Result<_, DbError>>()
        .map_err(CaseError::from)
}

/// Opens the cases of `requests` that `db` does not know: they were asked for after the backup and are not certified. `further` are the
/// rest of their lists. Call it once certificates and the ledger are up to the log. `at_system` is now by the system's clock.
///
/// # Errors
/// [`CaseError`].
pub async fn requests(
    db: &KeyDb,
    requests: &[MirroredRequest],
    further: &BTreeMap<CaseId, Vec<(Fingerprint, EntityToken)>>,
    at_system: Timestamp,
) -> Result<u64, CaseError> {
    let failed = on("open a case again");
    let rows = sqlx::query("SELECT case_id FROM erasure_case").fetch_all(db.pool()).await.map_err(&failed)?;
    let known: HashSet<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(&failed)?;
    // The ledger is raised at the end of a restore alone: what these cases erased lies above this epoch.
    let epoch = lease::ledger_epoch(db).await?;
    let mut opened = 0;
    for request in requests {
        let listed = request.subjects.iter().chain(further.get(&request.case).into_iter().flatten());
        let mut subjects: Vec<Listed> =
            listed.map(|(fingerprint, token)| Listed { fingerprint: *fingerprint, token: *token, keys: Vec::new() }).collect();
        if known.contains(request.case.as_str()) {
            complete(db, &request.case, subjects).await?;
            continue;
        }
        let mut tx = db.begin_write().await?;
        if request.scope == scope::AGED {
            // Age is found by looking, not remembered: the next sweep looks again, whenever the last one was.
            sqlx::query("DELETE FROM business_sweep").execute(&mut *tx).await.map_err(&failed)?;
            tx.commit().await.map_err(&failed)?;
            continue;
        }
        let mut scope = if request.scope.is_empty() { "listed" } else { request.scope.as_str() };
        if scope == "due" {
            // What it had destroyed is no longer due; what it had not is opened anew by the next sweep.
            subjects = subjects_of(&mut tx, &request.case).await?;
            if subjects.is_empty() {
                continue;
            }
            scope = "listed";
        }
        let record = Record {
            id: request.case.clone(),
            seller: request.seller.clone(),
            reason: request.reason,
            extent: request.extent,
            kind: request.kind,
            scope: scope.to_owned(),
            requested_by: request.requested_by.clone(),
            forced: request.forced,
            opened_at: request.opened_at.0,
            due_at: request.due_at.0,
            state: State::Requested,
            subjects: 0,
            blocked_by: None,
            is_blocked: false,
            keys_destroyed_at: None,
            verified_at: None,
            certified_at: None,
            residual_until: None,
        };
        // The same request may have been made once more meanwhile: then that case stands for it.
        if !store::insert(&mut tx, &record, &request_digest(&record, &subjects, None)).await? {
            continue;
        }
        store::write_subjects(&mut tx, &record.id, &subjects).await?;
        let evidence = json!({ "reason": record.reason, "scope": record.scope, "listed": subjects.len(), "restored_from_log": true, scope::OPENED_AT_EPOCH: epoch });
        let event = Event { seq: 1, step: Step::Requested, at: record.opened_at, at_system, evidence };
        store::append(&mut tx, &record.id, &event).await?;
        tx.commit().await.map_err(&failed)?;
        opened += 1;
    }
    Ok(opened)
}

/// How many leaves the certificate log of `db` has.
///
/// # Errors
/// [`DbError`].
pub async fn leaves(db: &KeyDb) -> Result<u64, DbError> {
    let failed = on("read the certificate log");
    let row = sqlx::query("SELECT size FROM certificate_head WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?;
    let size: i64 = row.try_get(0).map_err(&failed)?;
    u64::try_from(size).map_err(|_| DbError::fixed("read the certificate log", "bad_size"))
}
