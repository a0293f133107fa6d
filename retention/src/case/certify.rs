//! From a verified case to its certificate: the statement, its signature, its leaf in the certificate log, its files.
//!
//! Invariants: a statement is only made from a [`Case<Verified>`](super::verify::Case); the log has one writer at a time, locked in the
//! database, and a case has one leaf however often it is tried.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ring::digest::{Context, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use sqlx::Row;
use sunder_schemas::certificate::{
    Actor, CertificateError, FORM, Instant, Iso, LogEvidence, LogMark, Policy, Sanitisation, Statement, Subjects, Times, digest,
};
use sunder_schemas::ids::{CaseId, KeyId};
use sunder_schemas::note::{self, Hash, HashReader, NoteSigner};
use sunder_schemas::time::Period;
use tlog_tiles::tlog;
use zeroize::Zeroizing;

use super::CaseError;
use super::machine::{self, BrokenHistory, Event, Step};
use super::scope::Listed;
use super::steps::subjects_digest;
use super::store::{self, extent_name};
use super::verify::{Case, Verified};
use crate::keydb::{DbError, KeyDb, Write, on};
use crate::store::Mark;

/// Longest signer file that is read, in bytes. Chosen: the line is about 150.
const SIGNER_FILE_MAX: u64 = 4096;

/// What certificates say of this installation.
#[derive(Debug, Clone)]
pub struct About {
    /// Program and version, e.g. `sunder 0.1.0`.
    pub tool: String,
    /// Who runs the erasure.
    pub operator: String,
    /// Who judges it; another actor than the operator (NIST SP 800-88 Rev. 2 keeps verification and validation apart).
    pub validator: String,
    /// Name and version of the retention policy.
    pub policy_version: String,
    /// The policy itself, hashed into certificates.
    pub policy: Value,
    /// How long after a request a case is due.
    pub request_due: Period,
    /// How long after its opening an expiry case is due.
    pub expiry_due: Period,
}

/// The files of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `certificate.note`: the signed note.
    pub note: Vec<u8>,
    /// `certificate.json`: the same statement.
    pub statement: Vec<u8>,
    /// `certificate.proof`: proof of inclusion in the certificate log.
    pub proof: Vec<u8>,
    /// `certificate.pub`: the note verifier key, one line.
    pub verifier_key: String,
}

impl Files {
    /// Names and contents, as they are written to a folder.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Vec<u8>); 4] {
        [
            ("certificate.note", self.note.clone()),
            ("certificate.json", self.statement.clone()),
            ("certificate.proof", self.proof.clone()),
            ("certificate.pub", format!("{}\n", self.verifier_key).into_bytes()),
        ]
    }
}

/// Reads the signer in `path`; where there is none and `name` is given, makes one (mode 0600).
///
/// # Errors
/// [`CaseError::Keys`] with a code: unreadable, open to others, or not a signer.
pub fn signer_from_file(path: &Path, name: Option<&str>) -> Result<NoteSigner, CaseError> {
    let failed = |what: &str| CaseError::Keys(format!("certificate signer file {what}"));
    if let (Some(name), Err(ErrorKind::NotFound)) = (name, std::fs::metadata(path).map_err(|error| error.kind())) {
        let mut seed = Zeroizing::new([0u8; 32]);
        SystemRandom::new().fill(seed.as_mut()).map_err(|_| failed("cannot be made: no randomness"))?;
        let line = NoteSigner::secret_line(name, &seed)?;
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(|_| failed("cannot be written"))?;
            }
            // Another process was first; its signer is read below.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(_) => return Err(failed("cannot be made")),
        }
    }
    let meta = std::fs::metadata(path).map_err(|_| failed("cannot be read"))?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(failed("is open to others: set it to 0600"));
    }
    if meta.len() > SIGNER_FILE_MAX {
        return Err(failed("is not a signer"));
    }
    let line = Zeroizing::new(std::fs::read_to_string(path).map_err(|_| failed("cannot be read"))?);
    Ok(NoteSigner::from_secret_line(&line)?)
}

fn instant(event: &Event) -> Instant {
    Instant { policy_clock: Iso(event.at), system_clock: Iso(event.at_system) }
}

fn at(events: &[Event], steps: &[Step]) -> Result<Instant, BrokenHistory> {
    machine::find(events, steps).map(instant).ok_or(BrokenHistory("a step without its time"))
}

fn log_marks(marks: &[Mark]) -> Vec<LogMark> {
    let mut marks: Vec<_> = marks
        .iter()
        .map(|mark| LogMark {
            topic: mark.topic.clone(),
            incarnation: mark.incarnation.clone(),
            partition: mark.partition.0,
            offset: mark.offset.0,
        })
        .collect();
    marks.sort();
    marks
}

fn marks_of(events: &[Event], steps: &[Step]) -> Result<Vec<LogMark>, BrokenHistory> {
    let event = machine::find(events, steps).ok_or(BrokenHistory("a step without its marks"))?;
    Ok(log_marks(&machine::marks(event)?))
}

/// Writes down what the case came to. Pure: the same case gives the same statement.
pub(super) fn statement(
    case: &Case<Verified>,
    events: &[Event],
    certified: &Event,
    subjects: &[Listed],
    about: &About,
    is_durable: bool,
) -> Result<Statement, CaseError> {
    let (record, evidence) = (case.record(), case.evidence());
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let mut keys: Vec<KeyId> = subjects.iter().flat_map(|subject| subject.keys.iter().copied()).collect();
    keys.sort();
    let with_keys = subjects.iter().filter(|subject| !subject.keys.is_empty()).count();
    Ok(Statement {
        form: FORM.to_owned(),
        case: record.id.clone(),
        seller: record.seller.clone(),
        reason: record.reason.as_str().to_owned(),
        extent: extent_name(record.extent).to_owned(),
        summary: summary(subjects.len(), with_keys, is_durable),
        subjects: Subjects {
            count: count(subjects.len()),
            with_keys: count(with_keys),
            keys: count(keys.len()),
            key_ids_sha256: key_digest(&keys),
            subjects_sha256: subjects_digest(subjects),
        },
        sanitisation: sanitisation(is_durable),
        tool: about.tool.clone(),
        actors: vec![
            Actor { name: record.requested_by.clone(), role: "requested".to_owned() },
            Actor { name: about.operator.clone(), role: "operator".to_owned() },
            Actor { name: about.validator.clone(), role: "validator".to_owned() },
        ],
        times: Times {
            requested: at(events, &[Step::Requested])?,
            keys_destroyed: at(events, &[Step::KeysDestroyed])?,
            caches_revoked: at(events, &[Step::CachesRevoked])?,
            tombstoned: at(events, &[Step::Tombstoned])?,
            drained: at(events, &[Step::Drained])?,
            sinks_clean: at(events, &[Step::SinksClean, Step::SinksCleanAgain])?,
            verified: at(events, &[Step::Verified])?,
            certified: instant(certified),
        },
        log: LogEvidence {
            description_sha256: digest(&evidence.log),
            description: evidence.log.clone(),
            tombstones: marks_of(events, &[Step::Tombstoned])?,
            drained_past: marks_of(events, &[Step::RawEnds])?,
            second_tombstones: marks_of(events, &[Step::SecondTombstones, Step::TombstonedAgain])?,
            barrier: log_marks(&evidence.barrier),
            repeated: machine::rounds(events),
        },
        stores: evidence.stores.clone(),
        scan: evidence.scan,
        recover: evidence.recover,
        residual: evidence.residual.clone(),
        policy: Policy { version: about.policy_version.clone(), sha256: digest(&about.policy) },
        not_claimed: not_claimed(is_durable, evidence.keys_tried),
    })
}

fn summary(subjects: usize, with_keys: usize, is_durable: bool) -> String {
    if with_keys == 0 {
        return format!("{subjects} subjects: nothing was held under a key of theirs; the ledger keeps it so.");
    }
    let removed =
        if is_durable { "their sealed data was removed from every place listed" } else { "their sealed data is no longer returned" };
    format!("{subjects} subjects: the keys of {with_keys} were destroyed, {removed}, and reading everything again found nothing.")
}

fn sanitisation(is_durable: bool) -> Sanitisation {
    let technique = if is_durable {
        "cryptographic erase (destruction of the data key of each subject), then removal by log compaction and deletion of rows"
    } else {
        "cryptographic erase (destruction of the data key of each subject); an in-memory log without files"
    };
    Sanitisation {
        standard: "NIST SP 800-88 (cryptographic erase)".to_owned(),
        method: "Purge".to_owned(),
        technique: technique.to_owned(),
        keys: "AES-256-GCM, one random 256-bit key per subject from the operating system's generator, derived from nothing; sealed before \
               the data first reached any medium; wrapped per seller and by a root key"
            .to_owned(),
        class_before: "personal data, sealed".to_owned(),
        class_after: "no personal data of these subjects in the places listed; pseudonymous business data where the extent says so"
            .to_owned(),
        verification:
            "scan: every place read again for the headers of blocks under the destroyed keys, with planted controls found again; \
                       recover: every witness of a destroyed key tried with the keys that still exist, with a control that opens"
                .to_owned(),
        physical: is_durable,
    }
}

fn not_claimed(is_durable: bool, keys_tried: u64) -> Vec<String> {
    let mut claims = vec![
        "Copies outside the places listed are not covered; without the destroyed keys they cannot be opened.".to_owned(),
        "The erased ledger keeps a keyed fingerprint of each subject, so that it does not come back: whoever holds the ledger key and knows an \
         order id can test whether it was erased."
            .to_owned(),
        format!("The recover test tried {keys_tried} keys that still existed; backups of the key database are named as residual."),
    ];
    if !is_durable {
        claims.push("The log was the embedded broker, in memory: no physical removal of bytes from a log is claimed.".to_owned());
    }
    claims
}

fn key_digest(keys: &[KeyId]) -> String {
    let mut context = Context::new(&SHA256);
    for key in keys {
        context.update(&key.0);
    }
    hex::encode(context.finish())
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
pub(super) async fn issue(
    db: &KeyDb,
    tx: &mut Write,
    case: &Case<Verified>,
    statement: &Statement,
    signer: &NoteSigner,
) -> Result<Issued, CaseError> {
    lock_log(tx).await?;
    let taken = sqlx::query("SELECT leaf FROM certificate_leaf WHERE case_id = $1")
        .bind(case.record().id.as_str().to_owned())
        .fetch_optional(&mut **tx)
        .await
        .map_err(on("append to the certificate log"))?;
    if taken.is_some() {
        // Its event was committed with it: another process certified the case meanwhile.
        return Err(CaseError::Contended);
    }
    let note = text(statement.sign(signer)?)?;
    let sign = |size, root| text(signer.sign_head(size, root)?);
    let (leaf, head) = append_leaf(db, tx, &case.record().id, &note, &statement.to_text()?, sign).await?;
    Ok(Issued { leaf, note, head })
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

/// Appends the leaf of `note`, whose text is `signed_text`, to the log that [`lock_log`] locked; `head` gives the signed head of so many
/// leaves with that root. Returns the leaf's number and the head.
pub(super) async fn append_leaf(
    db: &KeyDb,
    tx: &mut Write,
    case: &CaseId,
    note: &str,
    signed_text: &[u8],
    head: impl FnOnce(u64, Hash) -> Result<String, CaseError>,
) -> Result<(u64, String), CaseError> {
    let failed = on("append to the certificate log");
    let leaf = lock_log(tx).await?;
    let hashes = Lookup::run(db, tx, |reader| tlog::stored_hashes(leaf, signed_text, reader)).await?;
    for (position, hash) in (tlog::stored_hash_index(0, leaf)..).zip(&hashes) {
        sqlx::query("INSERT INTO certificate_hash (position, hash) VALUES ($1, $2)")
            .bind(signed(position)?)
            .bind(hash.to_string())
            .execute(&mut **tx)
            .await
            .map_err(&failed)?;
    }
    let size = leaf + 1;
    let root = Lookup::run(db, tx, |reader| tlog::tree_hash(size, reader)).await?;
    let path = Lookup::run(db, tx, |reader| tlog::prove_record(size, leaf, reader)).await?;
    let head = head(size, root)?;
    let proof = text(note::proof_file(leaf, &path, head.as_bytes()))?;
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
    wanted: RefCell<HashSet<u64>>,
}

impl HashReader for Lookup {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog::Error> {
        self.wanted.borrow_mut().extend(indexes.iter().filter(|index| !self.known.contains_key(index)));
        indexes.iter().map(|index| self.known.get(index).copied().ok_or(tlog::Error::IndexesNotInTree)).collect()
    }
}

impl Lookup {
    async fn run<T>(db: &KeyDb, tx: &mut Write, calculate: impl Fn(&Self) -> Result<T, tlog::Error>) -> Result<T, CaseError> {
        let failed = on("read the certificate log");
        let broken = |_| DbError::fixed("read the certificate log", "bad_hash");
        let mut lookup = Self::default();
        if let Ok(result) = calculate(&lookup) {
            return Ok(result);
        }
        for index in lookup.wanted.take() {
            let row = sqlx::query("SELECT hash FROM certificate_hash WHERE position = $1")
                .bind(signed(index)?)
                .fetch_one(&mut **tx)
                .await
                .map_err(&failed)?;
            let hash: String = row.try_get(0).map_err(&failed)?;
            lookup.known.insert(index, Hash::parse_hash(&hash).map_err(broken)?);
        }
        tracing::trace!(dialect = ?db.dialect(), hashes = lookup.known.len(), "certificate log read");
        Ok(calculate(&lookup).map_err(broken)?)
    }
}

/// The files of a certified case.
///
/// # Errors
/// [`CaseError::NotFound`], [`CaseError::NotCertified`], [`CaseError::Note`] where another signer signed it.
pub async fn certificate_files(db: &KeyDb, case: &CaseId, signer: &NoteSigner) -> Result<Files, CaseError> {
    store::one(db, case).await?;
    let failed = on("read a certificate");
    let row = sqlx::query("SELECT note, proof FROM certificate_leaf WHERE case_id = $1")
        .bind(case.as_str().to_owned())
        .fetch_optional(db.pool())
        .await
        .map_err(&failed)?
        .ok_or(CaseError::NotCertified)?;
    let note: String = row.try_get(0).map_err(&failed)?;
    let proof: String = row.try_get(1).map_err(&failed)?;
    let verifier_key = signer.verifier_key();
    let statement = note::open(note.as_bytes(), &verifier_key)?.text;
    Ok(Files { note: note.into_bytes(), statement, proof: proof.into_bytes(), verifier_key })
}
