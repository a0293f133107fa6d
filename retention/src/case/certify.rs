//! From a verified case to its certificate: the statement, and the key that signs it. The log of certificates is in `certlog.rs`.
//!
//! Invariant: a statement is only made from a [`Case<Verified>`](super::verify::Case).

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use sunder_schemas::certificate::{
    Actor, FORM, Instant, Iso, Ledgers, LogEvidence, LogMark, Policy, Sanitisation, Statement, Subjects, Times, digest, key_digest,
};
use sunder_schemas::class::Family;
use sunder_schemas::ids::KeyId;
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::Period;
use zeroize::Zeroizing;

use super::CaseError;
use super::machine::{self, BrokenHistory, Event, Step};
use super::scope::Listed;
use super::steps::subjects_digest;
use super::store::Record;
use super::verify::{Case, Verified};
use crate::secretfile;
use crate::store::{Extent, Mark};

/// Longest signer file that is read, in bytes. Chosen: the line is about 150.
const SIGNER_FILE_MAX: u64 = 4096;

/// What certificates say of this installation.
#[derive(Debug, Clone)]
pub struct About {
    /// Program and version, e.g. `sunder 0.1.0`.
    pub tool: String,
    /// Who answers for certificates: company, place, contact.
    pub issuer: Option<String>,
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
        match secretfile::create(path, line.as_bytes()) {
            Ok(()) => {}
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
    ledgers: Ledgers,
    is_durable: bool,
) -> Result<Statement, CaseError> {
    let (record, evidence) = (case.record(), case.evidence());
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let keys = keys_of(subjects);
    let with_keys = subjects.iter().filter(|subject| !subject.keys.is_empty()).count();
    Ok(Statement {
        form: FORM.to_owned(),
        case: record.id.clone(),
        seller: record.seller.clone(),
        reason: record.reason.as_str().to_owned(),
        extent: extent(record),
        summary: summary(record, subjects.len(), with_keys, is_durable),
        subjects: Subjects {
            count: count(subjects.len()),
            with_keys: count(with_keys),
            keys: count(keys.len()),
            key_ids_sha256: key_digest(&keys),
            subjects_sha256: subjects_digest(subjects),
        },
        sanitisation: sanitisation(is_durable),
        tool: about.tool.clone(),
        issuer: about.issuer.clone(),
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
        held: Vec::new(),
        policy: Policy { version: about.policy_version.clone(), sha256: digest(&about.policy) },
        ledgers: Some(ledgers),
        not_claimed: not_claimed(is_durable, evidence.keys_tried),
    })
}

/// The keys of `subjects`, sorted.
pub(super) fn keys_of(subjects: &[Listed]) -> Vec<KeyId> {
    let mut keys: Vec<KeyId> = subjects.iter().flat_map(|subject| subject.keys.iter().copied()).collect();
    keys.sort();
    keys
}

/// How much went, in one word; with its date and kind where that is what the case is about.
fn extent(record: &Record) -> String {
    match (record.extent, record.kind) {
        (extent @ Extent::OlderThan(_), Some(kind)) => format!("{extent} ({kind})"),
        (extent, _) => extent.to_string(),
    }
}

/// What [`extent`] wrote: how much went, and what kind of business data.
pub(super) fn read_extent(text: &str) -> (Extent, Option<Family>) {
    let (extent, kind) = text.strip_suffix(')').and_then(|text| text.split_once(" (")).unwrap_or((text, ""));
    let extent = serde_json::from_value(json!(extent)).unwrap_or(Extent::WithBusinessData);
    (extent, kind.parse().ok())
}

fn summary(record: &Record, subjects: usize, with_keys: usize, is_durable: bool) -> String {
    if let (Extent::OlderThan(cutoff), Some(kind)) = (record.extent, record.kind) {
        return format!(
            "{subjects} entities ({kind}): their business data from before {cutoff} was removed, with the keys of {with_keys}, and reading \
             everything again found nothing of it."
        );
    }
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
