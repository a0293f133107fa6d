//! The log of certificates: one leaf per certified case, in a tree whose head is signed each time it grows.
//!
//! Invariants: the log has one writer at a time, locked in the database, and a case has one leaf however often it is tried; nothing in it
//! is ever changed, so what was read of it stays true; [`verify_log`] computes every hash again from the signed notes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{AnyConnection, Row};
use sunder_schemas::certificate::{CertificateError, Ledgers, Statement, digest, key_digest, key_file};
use sunder_schemas::ids::CaseId;
use sunder_schemas::note::{self, NoteSigner};
use sunder_schemas::tlog::{self as log, Growing, Hash, HashReader, Head, LogError, LogFiles, TreeError};
use tlog_tiles::tlog;

use super::CaseError;
use super::certify::keys_of;
use super::machine::BrokenHistory;
use super::scope;
use super::store;
use super::verify::{Case, Verified};
use crate::keydb::{DbError, KeyDb, Write, on};

/// Rows read at a time.
const PAGE: i64 = 500;

/// The files of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `certificate.note`: the signed note.
    pub note: Vec<u8>,
    /// `certificate.json`: the same statement.
    pub statement: Vec<u8>,
    /// `certificate.proof`: proof of inclusion in the certificate log, with the head it was made for.
    pub proof: Vec<u8>,
    /// `certificate.checkpoint`: the log's newest signed head.
    pub checkpoint: Vec<u8>,
    /// `certificate.consistency`: that the log only grew from the proof's head to the newest.
    pub consistency: Vec<u8>,
    /// `certificate.keys`: the ids of the destroyed keys; `None` where the ledger has no longer all of them (a restored database).
    pub keys: Option<Vec<u8>>,
    /// `certificate.pub`: the note verifier key, one line.
    pub verifier_key: String,
}

impl Files {
    /// Names and contents, as they are written to a folder.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut named = vec![
            ("certificate.note", self.note.clone()),
            ("certificate.json", self.statement.clone()),
            ("certificate.proof", self.proof.clone()),
            ("certificate.checkpoint", self.checkpoint.clone()),
            ("certificate.consistency", self.consistency.clone()),
            ("certificate.pub", format!("{}\n", self.verifier_key).into_bytes()),
        ];
        named.extend(self.keys.iter().map(|keys| ("certificate.keys", keys.clone())));
        named
    }
}

/// A leaf of the certificate log.
#[derive(Debug)]
pub(super) struct Issued {
    leaf: u64,
    note: String,
    head: String,
}

impl Issued {
    /// What the event `certified` keeps.
    pub(super) fn evidence(&self) -> Value {
        json!({ "leaf": self.leaf, "note_sha256": digest(&json!(self.note)) })
    }

    /// What goes to `privacy.certificates`: the certificate and the signed head that contains it.
    pub(super) fn mirror(&self) -> Value {
        json!({ "leaf": self.leaf, "note": self.note, "head": self.head })
    }
}

/// Signs `statement` and appends it to the certificate log inside `tx`.
pub(super) async fn issue(tx: &mut Write, case: &Case<Verified>, statement: &Statement, signer: &NoteSigner) -> Result<Issued, CaseError> {
    lock_log(tx).await?;
    let failed = on("append to the certificate log");
    let sql = "SELECT c.certified_at FROM certificate_leaf l LEFT JOIN erasure_case c ON c.case_id = l.case_id WHERE l.case_id = $1";
    let taken = sqlx::query(sql).bind(case.record().id.as_str().to_owned()).fetch_optional(&mut **tx).await.map_err(&failed)?;
    if let Some(row) = taken {
        let certified: Option<i64> = row.try_get(0).map_err(&failed)?;
        // Its event is committed with it: another process certified the case meanwhile, or the two do not belong together.
        return Err(match certified {
            Some(_) => CaseError::Contended,
            None => BrokenHistory("a certificate in the log whose case is not certified").into(),
        });
    }
    let note = text(statement.sign(signer)?)?;
    let sign = |head: &Head| text(log::sign_head(signer, head)?);
    let (leaf, head) = append_leaf(tx, &case.record().id, &note, &statement.to_text()?, sign).await?;
    Ok(Issued { leaf, note, head })
}

/// How far audit chain and erased ledger are, in the transaction that certifies; the chain cannot grow until it ends.
pub(super) async fn ledgers(tx: &mut Write) -> Result<Ledgers, CaseError> {
    let failed = on("read the audit log");
    let row =
        sqlx::query("UPDATE audit_head SET seq = seq WHERE id = 1 RETURNING seq, hash").fetch_one(&mut **tx).await.map_err(&failed)?;
    let (seq, hash): (i64, Vec<u8>) = (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?);
    let row = sqlx::query("SELECT epoch FROM ledger_epoch WHERE id = 1").fetch_one(&mut **tx).await.map_err(&failed)?;
    let epoch: i64 = row.try_get(0).map_err(&failed)?;
    Ok(Ledgers { audit_events: seq.unsigned_abs(), audit_head: hex::encode(hash), erased_epoch: epoch.unsigned_abs() })
}

/// Locks the certificate log until `tx` ends and returns how many leaves it has.
pub(super) async fn lock_log(tx: &mut Write) -> Result<u64, CaseError> {
    let failed = on("append to the certificate log");
    // The head's row is the lock: SQLite's writer has the database, PostgreSQL's waits here for the one before.
    sqlx::query("UPDATE certificate_head SET size = size WHERE id = 1").execute(&mut **tx).await.map_err(&failed)?;
    let row = sqlx::query("SELECT size FROM certificate_head WHERE id = 1").fetch_one(&mut **tx).await.map_err(&failed)?;
    let size: i64 = row.try_get(0).map_err(&failed)?;
    Ok(u64::try_from(size).map_err(|_| DbError::fixed("append to the certificate log", "bad_size"))?)
}

/// Appends the leaf of `note`, whose text is `signed_text`, to the log that [`lock_log`] locked; `sign` gives the signed form of the new
/// head. Returns the leaf's number and the signed head.
pub(super) async fn append_leaf(
    tx: &mut Write,
    case: &CaseId,
    note: &str,
    signed_text: &[u8],
    sign: impl FnOnce(&Head) -> Result<String, CaseError>,
) -> Result<(u64, String), CaseError> {
    let failed = on("append to the certificate log");
    let leaf = lock_log(tx).await?;
    let hashes = Lookup::run(&mut *tx, |reader| tlog::stored_hashes(leaf, signed_text, reader)).await?;
    for (position, hash) in (tlog::stored_hash_index(0, leaf)..).zip(&hashes) {
        sqlx::query("INSERT INTO certificate_hash (position, hash) VALUES ($1, $2)")
            .bind(signed(position)?)
            .bind(hash.to_string())
            .execute(&mut **tx)
            .await
            .map_err(&failed)?;
    }
    let size = leaf + 1;
    let root = Lookup::run(&mut *tx, |reader| tlog::tree_hash(size, reader)).await?;
    let path = Lookup::run(&mut *tx, |reader| tlog::prove_record(size, leaf, reader)).await?;
    let head = sign(&Head { size, root })?;
    let proof = text(log::proof_file(leaf, &path, head.as_bytes()))?;
    sqlx::query("INSERT INTO certificate_leaf (leaf, case_id, note, proof) VALUES ($1, $2, $3, $4)")
        .bind(signed(leaf)?)
        .bind(case.as_str().to_owned())
        .bind(note.to_owned())
        .bind(proof)
        .execute(&mut **tx)
        .await
        .map_err(&failed)?;
    sqlx::query("UPDATE certificate_head SET size = $1, note = $2 WHERE id = 1")
        .bind(signed(size)?)
        .bind(head.clone())
        .execute(&mut **tx)
        .await
        .map_err(&failed)?;
    Ok((leaf, head))
}

fn text(bytes: Vec<u8>) -> Result<String, CaseError> {
    String::from_utf8(bytes).map_err(|_| CertificateError::NotAStatement.into())
}

fn signed(n: u64) -> Result<i64, CaseError> {
    Ok(i64::try_from(n).map_err(|_| DbError::fixed("append to the certificate log", "bad_size"))?)
}

/// Reads the hashes that a calculation over the log asks for: a first run tells which, a second has them.
#[derive(Default)]
struct Lookup {
    known: HashMap<u64, Hash>,
    wanted: RefCell<BTreeSet<u64>>,
}

impl HashReader for Lookup {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, TreeError> {
        self.wanted.borrow_mut().extend(indexes.iter().filter(|index| !self.known.contains_key(index)));
        indexes.iter().map(|index| self.known.get(index).copied().ok_or(TreeError::IndexesNotInTree)).collect()
    }
}

impl Lookup {
    async fn run<T>(connection: &mut AnyConnection, calculate: impl Fn(&Self) -> Result<T, TreeError>) -> Result<T, CaseError> {
        let failed = on("read the certificate log");
        let broken = |_| DbError::fixed("read the certificate log", "bad_hash");
        let mut lookup = Self::default();
        if let Ok(result) = calculate(&lookup) {
            return Ok(result);
        }
        for index in lookup.wanted.take() {
            let row = sqlx::query("SELECT hash FROM certificate_hash WHERE position = $1")
                .bind(signed(index)?)
                .fetch_one(&mut *connection)
                .await
                .map_err(&failed)?;
            let hash: String = row.try_get(0).map_err(&failed)?;
            lookup.known.insert(index, Hash::parse_hash(&hash).map_err(broken)?);
        }
        Ok(calculate(&lookup).map_err(broken)?)
    }
}

/// The signed head as it stands; empty before the first leaf.
async fn newest_head(db: &KeyDb) -> Result<String, CaseError> {
    let failed = on("read the certificate log");
    let row = sqlx::query("SELECT note FROM certificate_head WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?;
    Ok(row.try_get(0).map_err(&failed)?)
}

/// The files of a certified case.
///
/// # Errors
/// [`CaseError::NotFound`], [`CaseError::NotCertified`], [`CaseError::Note`] where another signer signed it.
pub async fn certificate_files(db: &KeyDb, case: &CaseId, signer: &NoteSigner) -> Result<Files, CaseError> {
    store::one(db, case).await?;
    let failed = on("read a certificate");
    let row = sqlx::query("SELECT leaf, note, proof FROM certificate_leaf WHERE case_id = $1")
        .bind(case.as_str().to_owned())
        .fetch_optional(db.pool())
        .await
        .map_err(&failed)?
        .ok_or(CaseError::NotCertified)?;
    let leaf: i64 = row.try_get(0).map_err(&failed)?;
    let note: String = row.try_get(1).map_err(&failed)?;
    let proof: String = row.try_get(2).map_err(&failed)?;
    let verifier_key = signer.verifier_key();
    let statement = note::open(note.as_bytes(), &verifier_key)?.text;
    let keys = keys_of(&scope::with_keys(db, store::subjects(db, case).await?).await?);
    let is_all = key_digest(&keys) == Statement::from_text(&statement)?.subjects.key_ids_sha256;
    let checkpoint = newest_head(db).await?;
    let newest = log::open_head(checkpoint.as_bytes(), &verifier_key).map_err(CertificateError::from)?;
    let size = u64::try_from(leaf).unwrap_or_default() + 1;
    // The log only grows, so what a head of this size needs is there, whoever appends meanwhile.
    let mut connection = db.pool().acquire().await.map_err(&failed)?;
    let path = Lookup::run(&mut connection, |reader| tlog::prove_tree(newest.size, size, reader)).await?;
    Ok(Files {
        note: note.into_bytes(),
        statement,
        proof: proof.into_bytes(),
        checkpoint: checkpoint.into_bytes(),
        consistency: log::consistency_file(size, &path),
        keys: is_all.then(|| key_file(&keys)),
        verifier_key,
    })
}

/// The log's newest signed head; `None` before the first certificate.
///
/// # Errors
/// [`CaseError`].
pub async fn log_head(db: &KeyDb) -> Result<Option<String>, CaseError> {
    Ok(Some(newest_head(db).await?).filter(|head| !head.is_empty()))
}

/// The whole log as files: its signed head and its tiles.
///
/// # Errors
/// [`CaseError::NotCertified`] where the log has no leaf yet, [`CaseError::Certificate`] where the leaves are not those of the head.
pub async fn log_files(db: &KeyDb, verifier_key: &str) -> Result<LogFiles, CaseError> {
    let failed = on("read the certificate log");
    let checkpoint = newest_head(db).await?;
    if checkpoint.is_empty() {
        return Err(CaseError::NotCertified);
    }
    let head = log::open_head(checkpoint.as_bytes(), verifier_key).map_err(CertificateError::from)?;
    let mut leaves: Vec<Hash> = Vec::new();
    let mut rows = Vec::new();
    for leaf in 0..head.size {
        rows.push(signed(tlog::stored_hash_index(0, leaf))?);
    }
    for chunk in rows.chunks(usize::try_from(PAGE).unwrap_or(1)) {
        let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { break };
        let found = sqlx::query("SELECT position, hash FROM certificate_hash WHERE position BETWEEN $1 AND $2")
            .bind(*first)
            .bind(*last)
            .fetch_all(db.pool())
            .await
            .map_err(&failed)?;
        let mut by_position = HashMap::new();
        for row in found {
            let (position, hash): (i64, String) = (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?);
            by_position.insert(position, hash);
        }
        for position in chunk {
            let hash = by_position.get(position).and_then(|hash| Hash::parse_hash(hash).ok());
            leaves.push(hash.ok_or(CertificateError::Log(LogError::BadTiles))?);
        }
    }
    let files = LogFiles::of(&leaves, checkpoint.into_bytes());
    // What leaves must check: a wrong row of the database is found here, not by the stranger.
    files.check(verifier_key).map_err(CertificateError::from)?;
    Ok(files)
}

/// A log of certificates that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedLog {
    /// Leaves, each one certificate.
    pub leaves: u64,
    /// Root hash of the whole, base64.
    pub root: String,
}

/// Why the log of certificates does not hold.
#[derive(Debug, thiserror::Error)]
pub enum LogFault {
    /// It could not be read.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A leaf is missing, changed, or not signed by this signer.
    #[error("the certificate log is broken at leaf {leaf}: {why}")]
    Leaf {
        /// Its index.
        leaf: u64,
        /// A code.
        why: &'static str,
    },
    /// The signed head is not that of the leaves, or is not signed by this signer.
    #[error("the head of the certificate log does not fit: {0}")]
    Head(&'static str),
    /// A head that was signed before is no beginning of the log.
    #[error("the certificate log was rewritten or cut: a head of {size} leaves, signed before, is not its beginning")]
    Rewritten {
        /// Leaves of that head.
        size: u64,
    },
    /// A certificate that was published is another one here, or is not here.
    #[error("a published certificate is not in the log")]
    Published(CaseId),
    /// A case is marked certified and has no certificate, or the reverse.
    #[error("a case and its certificate do not agree")]
    Case(CaseId),
}

impl LogFault {
    /// The stable code (`docs/errors.md`).
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Database(_) => "keys",
            Self::Leaf { .. } => "leaf_broken",
            Self::Head(_) => "head_broken",
            Self::Rewritten { .. } => "log_rewritten",
            Self::Published(_) => "certificate_dropped",
            Self::Case(_) => "case_disagrees",
        }
    }
}

/// What was published of the log before, from wherever it was kept.
#[derive(Debug, Clone, Default)]
pub struct KnownLog {
    /// Heads whose signature was checked.
    pub heads: Vec<Head>,
    /// Note of each certificate, by case.
    pub notes: BTreeMap<CaseId, Vec<u8>>,
}

/// Computes the whole log again from its signed notes and compares: stored hashes, proofs, the head, what is `known` from before, and the
/// cases that are marked as certified.
///
/// # Errors
/// [`LogFault`], the first that is met.
pub async fn verify_log(db: &KeyDb, verifier_key: &str, known: &KnownLog) -> Result<VerifiedLog, LogFault> {
    // Read first: leaves that are appended meanwhile lie beyond it.
    let checkpoint = newest_head(db).await.map_err(|_| LogFault::Head("unreadable"))?;
    let size = match checkpoint.as_str() {
        "" => 0,
        note => log::open_head(note.as_bytes(), verifier_key).map_err(|error| LogFault::Head(error.code()))?.size,
    };
    let heads: BTreeMap<u64, Hash> = known.heads.iter().map(|head| (head.size, head.root)).collect();
    if known.heads.iter().any(|head| heads.get(&head.size) != Some(&head.root)) {
        let size = known.heads.iter().map(|head| head.size).max().unwrap_or_default();
        return Err(LogFault::Rewritten { size });
    }
    let mut reading = Reading { verifier_key, heads, notes: known.notes.clone(), log: Growing::default(), stored: 0 };
    while reading.log.head().size < size {
        let leaves = leaves_from(db, reading.log.head().size).await?;
        if leaves.is_empty() {
            return Err(reading.fault("missing"));
        }
        for leaf in leaves.into_iter().take(usize::try_from(size - reading.log.head().size).unwrap_or(usize::MAX)) {
            reading.take(db, &leaf).await?;
        }
    }
    let head = reading.log.head();
    if size > 0 && log::open_head(checkpoint.as_bytes(), verifier_key).ok() != Some(head) {
        return Err(LogFault::Head("other_root"));
    }
    if let Some((size, _)) = reading.heads.pop_last() {
        return Err(LogFault::Rewritten { size });
    }
    if let Some((case, _)) = reading.notes.pop_first() {
        return Err(LogFault::Published(case));
    }
    if has_beyond(db, size, reading.stored).await? && newest_head(db).await.ok().as_ref() == Some(&checkpoint) {
        return Err(LogFault::Head("leaves_beyond"));
    }
    agree_with_cases(db, size).await?;
    Ok(VerifiedLog { leaves: size, root: head.root.to_string() })
}

struct Leaf {
    index: i64,
    case: String,
    note: String,
    proof: String,
}

async fn leaves_from(db: &KeyDb, from: u64) -> Result<Vec<Leaf>, DbError> {
    let failed = on("read the certificate log");
    let rows = sqlx::query("SELECT leaf, case_id, note, proof FROM certificate_leaf WHERE leaf >= $1 ORDER BY leaf LIMIT $2")
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(PAGE)
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
    rows.iter()
        .map(|row| Ok(Leaf { index: row.try_get(0)?, case: row.try_get(1)?, note: row.try_get(2)?, proof: row.try_get(3)? }))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(&failed)
}

/// The log as far as it was read, and what of the known is still to be met.
struct Reading<'a> {
    verifier_key: &'a str,
    heads: BTreeMap<u64, Hash>,
    notes: BTreeMap<CaseId, Vec<u8>>,
    log: Growing,
    /// Stored hashes that were compared.
    stored: i64,
}

impl Reading<'_> {
    fn fault(&self, why: &'static str) -> LogFault {
        LogFault::Leaf { leaf: self.log.head().size, why }
    }

    async fn take(&mut self, db: &KeyDb, leaf: &Leaf) -> Result<(), LogFault> {
        let index = self.log.head().size;
        if u64::try_from(leaf.index) != Ok(index) {
            return Err(self.fault("missing"));
        }
        let opened = note::open(leaf.note.as_bytes(), self.verifier_key).map_err(|error| self.fault(error.code()))?;
        let statement = Statement::from_text(&opened.text).map_err(|error| self.fault(error.code()))?;
        if statement.case.as_str() != leaf.case {
            return Err(self.fault("other_case"));
        }
        let (at, head) =
            log::check_proof(leaf.proof.as_bytes(), &opened.text, self.verifier_key).map_err(|error| self.fault(error.code()))?;
        let new = self.log.push(log::leaf_hash(&opened.text));
        let now = self.log.head();
        let broken = |why| LogFault::Leaf { leaf: index, why };
        if at != index || head != now {
            return Err(broken("other_proof"));
        }
        if self.heads.remove(&now.size).is_some_and(|root| root != now.root) {
            return Err(LogFault::Rewritten { size: now.size });
        }
        if self.notes.remove(&statement.case).is_some_and(|note| note != leaf.note.as_bytes()) {
            return Err(LogFault::Published(statement.case));
        }
        let failed = on("read the certificate log");
        let count = i64::try_from(new.len()).unwrap_or(i64::MAX);
        let rows = sqlx::query("SELECT hash FROM certificate_hash WHERE position >= $1 AND position < $2 ORDER BY position")
            .bind(self.stored)
            .bind(self.stored + count)
            .fetch_all(db.pool())
            .await
            .map_err(&failed)?;
        let stored: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(&failed)?;
        if stored != new.iter().map(ToString::to_string).collect::<Vec<_>>() {
            return Err(broken("other_hash"));
        }
        self.stored += count;
        Ok(())
    }
}

/// Whether there are leaves or hashes that the head does not cover: those of a leaf that was just appended, or what somebody put in.
async fn has_beyond(db: &KeyDb, size: u64, stored: i64) -> Result<bool, DbError> {
    let failed = on("read the certificate log");
    let row = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM certificate_leaf WHERE leaf >= $1) + (SELECT COUNT(*) FROM certificate_hash WHERE position >= $2)",
    )
    .bind(i64::try_from(size).unwrap_or(i64::MAX))
    .bind(stored)
    .fetch_one(db.pool())
    .await
    .map_err(&failed)?;
    Ok(row.try_get::<i64, _>(0).map_err(&failed)? > 0)
}

/// Each case that is marked as certified has its leaf, and each leaf its case. A case that was opened again keeps its leaf.
async fn agree_with_cases(db: &KeyDb, size: u64) -> Result<(), LogFault> {
    let failed = on("read the certificate log");
    let odd = sqlx::query(
        "SELECT erasure_case.case_id FROM erasure_case LEFT JOIN certificate_leaf ON certificate_leaf.case_id = erasure_case.case_id \
         WHERE erasure_case.certified_at IS NOT NULL AND certificate_leaf.leaf IS NULL \
         UNION ALL SELECT certificate_leaf.case_id FROM certificate_leaf LEFT JOIN erasure_case \
         ON erasure_case.case_id = certificate_leaf.case_id \
         WHERE certificate_leaf.leaf < $1 AND erasure_case.case_id IS NULL LIMIT 1",
    )
    .bind(i64::try_from(size).unwrap_or(i64::MAX))
    .fetch_optional(db.pool())
    .await
    .map_err(&failed)?;
    let Some(row) = odd else { return Ok(()) };
    let case: String = row.try_get(0).map_err(&failed)?;
    Err(CaseId::parse(&case).map_or(LogFault::Head("bad_case_id"), LogFault::Case))
}
