//! Verification: every store read again, everything found tried with every key that is left, and the judgement.
//!
//! `judge` is pure. [`Case<Verified>`] can be made by it alone (or read back from the event that it made), so that a certificate can
//! come from nothing else.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sqlx::Row;
use sunder_schemas::certificate::{Iso, PlaceRead, Recover, Remains, Scan, StoreEvidence};
use sunder_schemas::ids::{CaseId, KeyId, SellerId};
use sunder_schemas::private::SealedBlock;

use super::keys::Keys;
use super::scope::Listed;
use super::{CaseError, Record};
use crate::keydb::{KeyDb, on};
use crate::keyfiles;
use crate::keys::{DataKey, commits};
use crate::store::{FoundBlock, Hindrance, Mark, ScanReport};

/// Trials of one recover test at the most, keys times witnesses. Chosen: a second of one core (0.4 us each, kafka-design 5.1); the
/// number tried is on the certificate.
const TRIALS_MAX: usize = 2_000_000;
/// Keys that are always tried, however many witnesses there are. Chosen: all sellers' and quarantine keys of a large installation.
const KEYS_MIN: usize = 1_000;
/// Findings that are named one by one in evidence. Chosen: enough to act on.
const FOUND_NAMED_MAX: usize = 20;

/// What one verification saw. Serialised into the event `verified`, and read back from it after a crash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Totals of the scan.
    pub scan: Scan,
    /// Totals of the recover test.
    pub recover: Recover,
    /// Every store.
    pub stores: Vec<StoreEvidence>,
    /// What remains, and until when.
    pub residual: Vec<Remains>,
    /// The barrier that was read up to.
    pub barrier: Vec<Mark>,
    /// What the log says of itself.
    pub log: serde_json::Value,
    /// How many keys that still exist were tried.
    pub keys_tried: u64,
}

/// The answer of `verify`: a contract of the command line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyReport {
    /// The case.
    pub case: CaseId,
    /// Whether nothing was found and nothing opened, with all controls in place.
    pub holds: bool,
    /// What does not hold, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The scan.
    pub scan: ScanAnswer,
    /// The recover test.
    pub recover: Recover,
}

/// The scan as `verify` answers it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScanAnswer {
    /// Blocks and keys of the subjects that were found.
    pub found: u64,
    /// Controls found again.
    pub controls_found: u64,
    /// Controls planted.
    pub controls_planted: u64,
    /// Every store.
    pub stores: Vec<StoreEvidence>,
}

/// What came back from reading everything again.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) reports: Vec<ScanReport>,
    pub(super) recover: Recover,
    pub(super) keys_tried: u64,
    /// Controls that must be gone and are not yet: shows where the log's cleaner has not passed.
    pub(super) dead_controls: Vec<String>,
    pub(super) drift: Vec<String>,
    pub(super) hindrances: Vec<Hindrance>,
    pub(super) log: serde_json::Value,
}

/// The judgement over what was seen.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing found, nothing opened, all controls in place.
    Holds(Box<Evidence>),
    /// Records that no tombstone covers, or rows a store kept: to be deleted again.
    Late {
        /// How many.
        count: u64,
        /// The first of them.
        places: Vec<String>,
        /// What keeps them in a database's files.
        held_by: Option<String>,
    },
    /// Only values under their tombstones: the log's cleaner has not been there yet.
    Cleaning {
        /// How many.
        count: u64,
        /// The first of them.
        places: Vec<String>,
    },
    /// A store did not find its controls, so it saw nothing at all: they are planted anew.
    Void(String),
    /// Something is wrong that deleting again does not mend.
    Blocked(String),
}

/// A case in state `S`.
///
/// A verified case can be read by anyone and made by nobody: its fields are private and it has no constructor outside this crate.
///
/// ```
/// use sunder_retention::case::{Case, Verified};
/// let read = |case: &Case<Verified>| case.evidence().recover.tried;
/// # drop(read);
/// ```
/// ```compile_fail
/// use sunder_retention::case::{Case, Verified};
/// let forge = |case: Case<Verified>| Case { ..case };
/// # drop(forge);
/// ```
#[derive(Debug, Clone)]
pub struct Case<S> {
    record: Record,
    state: S,
}

/// The state from which alone a certificate is made.
#[derive(Debug, Clone)]
pub struct Verified {
    evidence: Evidence,
}

impl Case<Verified> {
    /// A case whose verification is a persisted event of its own history.
    pub(super) const fn verified(record: Record, evidence: Evidence) -> Self {
        Self { record, state: Verified { evidence } }
    }

    /// What was seen.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.state.evidence
    }
}

impl<S> Case<S> {
    /// The case's summary.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }
}

/// What does not hold by `verdict`, in words; `None` where all does.
pub(super) fn reason(record: &Record, verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Holds(_) if record.keys_destroyed_at.is_none() => Some("the keys are not destroyed yet".to_owned()),
        Verdict::Holds(_) => None,
        Verdict::Late { count, places, held_by } => {
            Some(format!("{count} blocks of erased subjects are found, {}", where_found(&places, held_by.as_deref())))
        }
        Verdict::Cleaning { count, .. } => Some(format!("{count} tombstoned blocks wait for the log's cleaner")),
        Verdict::Void(why) | Verdict::Blocked(why) => Some(why),
    }
}

/// What is said of the places of findings.
pub(super) fn where_found(places: &[String], held_by: Option<&str>) -> String {
    let held_by = held_by.map(|who| format!("; the database keeps deleted rows for {who}")).unwrap_or_default();
    format!("first in {}{held_by}", places.join(", "))
}

/// What is said of hindrances.
pub(super) fn said(hindrances: &[Hindrance]) -> String {
    hindrances.iter().map(|hindrance| hindrance.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// What is said of those that stop a case; `None` where none does.
pub(super) fn stopping(hindrances: &[Hindrance]) -> Option<String> {
    let stopping: Vec<Hindrance> = hindrances.iter().filter(|hindrance| hindrance.stops).cloned().collect();
    (!stopping.is_empty()).then(|| said(&stopping))
}

/// What is said of drift.
pub(super) fn drifted(drift: &[String]) -> String {
    format!("topic settings drifted: {}", drift.join("; "))
}

/// Judges what was seen, in the order of what must be mended first.
pub(super) fn judge(seen: &Seen, with_keys: u64, barrier: &[Mark], key_backups: Option<Remains>) -> Verdict {
    if !seen.drift.is_empty() {
        return Verdict::Blocked(drifted(&seen.drift));
    }
    if let Some(why) = stopping(&seen.hindrances) {
        return Verdict::Blocked(why);
    }
    if seen.reports.is_empty() {
        return Verdict::Blocked("no store was read".to_owned());
    }
    // Controls first: a scan that does not find them saw nothing at all.
    for report in seen.reports.iter().filter(|report| !is_residual(report)) {
        if report.controls_planted == 0 || report.controls_found != report.controls_planted {
            return Verdict::Void(format!(
                "store {} found {} of {} planted controls: its scan is void",
                report.store, report.controls_found, report.controls_planted
            ));
        }
    }
    let found: Vec<&FoundBlock> = seen.reports.iter().flat_map(|report| &report.found).collect();
    let late: Vec<&FoundBlock> = found.iter().copied().filter(|block| !block.is_buried).collect();
    if !late.is_empty() {
        let places = late.iter().take(FOUND_NAMED_MAX).map(|block| block.place.clone()).collect();
        let held_by = seen.reports.iter().find_map(|report| report.held_by.clone());
        return Verdict::Late { count: count(late.len()), places, held_by };
    }
    let waiting = count(found.len()).saturating_add(count(seen.dead_controls.len()));
    if waiting > 0 {
        let found = found.iter().map(|block| &block.place);
        let places = found.chain(&seen.dead_controls).take(FOUND_NAMED_MAX).cloned().collect();
        return Verdict::Cleaning { count: waiting, places };
    }
    let recover = seen.recover;
    if recover.opened != 0 {
        return Verdict::Blocked(format!("{} of {} witnesses and blocks could still be opened", recover.opened, recover.tried));
    }
    if recover.controls_planted == 0 || recover.controls_opened != recover.controls_planted {
        return Verdict::Blocked("the control of the recover test did not open: opening does not work here".to_owned());
    }
    if recover.tried == 0 && with_keys > 0 {
        return Verdict::Blocked("subjects had keys, but no witness or block was tried".to_owned());
    }
    let mut residual: Vec<Remains> = seen
        .reports
        .iter()
        .flat_map(|report| &report.residual)
        .map(|residual| Remains { what: residual.what.clone(), until: residual.until.map(Iso) })
        .chain(key_backups)
        .collect();
    residual.sort();
    residual.dedup();
    let stores = evidence_of(&seen.reports);
    Verdict::Holds(Box::new(Evidence {
        scan: totals(&stores),
        recover,
        stores,
        residual,
        barrier: barrier.to_vec(),
        log: seen.log.clone(),
        keys_tried: seen.keys_tried,
    }))
}

/// Whether the store's own report says that it cannot be read from here and is residual as a whole. Only the key database may: its
/// destroyed keys are named until its backups are past. Any other store must prove.
fn is_residual(report: &ScanReport) -> bool {
    report.store == keyfiles::STORE && report.places.is_empty() && report.controls_planted == 0 && !report.residual.is_empty()
}

/// The reports as the certificate carries them.
pub(super) fn evidence_of(reports: &[ScanReport]) -> Vec<StoreEvidence> {
    reports
        .iter()
        .filter(|report| !is_residual(report))
        .map(|report| StoreEvidence {
            store: report.store.clone(),
            method: report.method.clone(),
            places: report.places.iter().map(|place| PlaceRead { name: place.name.clone(), read: place.read.clone() }).collect(),
            found: count(report.found.len()),
            controls_planted: report.controls_planted,
            controls_found: report.controls_found,
        })
        .collect()
}

/// The sums over all stores.
pub(super) fn totals(stores: &[StoreEvidence]) -> Scan {
    stores.iter().fold(Scan::default(), |sum, store| Scan {
        found: sum.found.saturating_add(store.found),
        controls_found: sum.controls_found.saturating_add(store.controls_found),
        controls_planted: sum.controls_planted.saturating_add(store.controls_planted),
    })
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// One witness: what a destroyed key once sealed.
struct Witness {
    key: KeyId,
    listed: usize,
    commitment: Vec<u8>,
    block: Vec<u8>,
    still_wrapped: bool,
}

/// Tries every witness of `subjects` and every block of `found` with the keys that still exist.
///
/// A key row that still holds a wrapped key counts as opened whatever it unwraps to. Blocks are tried by their key's commitment, since
/// a block found in a foreign place does not say which field it was.
pub(super) async fn recover(
    db: &KeyDb,
    keys: &dyn Keys,
    seller: &SellerId,
    subjects: &[Listed],
    found: &[&FoundBlock],
) -> Result<(Recover, u64), CaseError> {
    let witnesses = witnesses(db, seller, subjects).await?;
    let most = (TRIALS_MAX / witnesses.len().max(1)).max(KEYS_MIN);
    let survivors = keys.surviving(seller, most).await?;
    let mut opened: HashSet<KeyId> = HashSet::new();
    let mut recover = Recover::default();
    for witness in &witnesses {
        recover.tried += 1;
        let token = subjects.get(witness.listed).map(|subject| subject.token);
        let opens = witness.still_wrapped
            || survivors.iter().any(|bytes| {
                commits(bytes, &witness.commitment)
                    || token.is_some_and(|token| {
                        DataKey::from_bytes(witness.key, bytes).is_some_and(|key| key.opens_witness(seller, token, &witness.block))
                    })
            });
        if opens {
            recover.opened += 1;
            opened.insert(witness.key);
        }
    }
    for block in found {
        recover.tried += 1;
        // The header's own key decides, not the one the store reported.
        let key = SealedBlock::key_of(&block.block).unwrap_or(block.key);
        recover.opened += u64::from(opened.contains(&key));
    }
    Ok((recover, count(survivors.len())))
}

async fn witnesses(db: &KeyDb, seller: &SellerId, subjects: &[Listed]) -> Result<Vec<Witness>, CaseError> {
    let wanted: std::collections::HashMap<_, _> = subjects.iter().enumerate().map(|(i, s)| (s.fingerprint.0.to_vec(), i)).collect();
    let failed = on("read witnesses");
    let mut witnesses = Vec::new();
    if wanted.is_empty() {
        return Ok(witnesses);
    }
    // One pass over the seller's rows, whatever the size of the case: thousands of subjects are one statement.
    let rows =
        sqlx::query("SELECT fingerprint, key_id, commitment, witness, wrapped FROM subject WHERE seller = $1 AND witness IS NOT NULL")
            .bind(seller.as_str().to_owned())
            .fetch_all(db.pool())
            .await
            .map_err(&failed)?;
    for row in rows {
        let fingerprint: Vec<u8> = row.try_get(0).map_err(&failed)?;
        let Some(listed) = wanted.get(&fingerprint) else { continue };
        let key: Vec<u8> = row.try_get(1).map_err(&failed)?;
        let key = <[u8; 16]>::try_from(key).map_err(|_| crate::keydb::DbError::fixed("read witnesses", "bad_key_id"))?;
        let wrapped: Option<Vec<u8>> = row.try_get(4).map_err(&failed)?;
        witnesses.push(Witness {
            key: KeyId(key),
            listed: *listed,
            commitment: row.try_get(2).map_err(&failed)?,
            block: row.try_get(3).map_err(&failed)?,
            still_wrapped: wrapped.is_some(),
        });
    }
    Ok(witnesses)
}
