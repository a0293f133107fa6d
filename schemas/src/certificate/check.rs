//! The check of a certificate that a stranger runs: with the note and a key, and with whatever else is at hand.
//!
//! Invariant: every byte of every file that is given is covered: each has one accepted spelling.

use super::Statement;
use crate::ids::KeyId;
use crate::note::{self, NoteError};
use crate::tlog::{self, Head, LogError, LogFiles};

/// Why a certificate is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Its proofs, or the log.
    #[error(transparent)]
    Log(LogError),
    /// Signed, but the text is not a statement.
    #[error("the signed text is not a certificate")]
    NotAStatement,
    /// Signed, but of a form that this version does not know.
    #[error("the certificate is of a form that this version does not know; check it with a newer one")]
    UnknownForm,
    /// Signed, but not in the one canonical spelling.
    #[error("the signed statement is not in canonical form")]
    NotCanonical,
    /// Signed, but its own counts contradict it.
    #[error("the statement contradicts itself: {0}")]
    DoesNotHold(&'static str),
    /// The statement beside the note is another one.
    #[error("certificate.json is not, byte for byte, the statement that was signed")]
    OtherStatement,
    /// The key beside the note is not the key that was given.
    #[error("certificate.pub is not the key that was given")]
    OtherKey,
    /// The list of keys beside the note is not the one that the statement counts and digests.
    #[error("certificate.keys is not the list of keys that was signed")]
    OtherKeys,
    /// Of the proof, the checkpoint and the consistency file some lie beside the note and some that they need do not.
    #[error("certificate.proof, certificate.checkpoint and certificate.consistency belong together, and one is missing")]
    IncompleteEvidence,
    /// Nothing beside the note links it to the older checkpoint.
    #[error("nothing here leads from that checkpoint to this certificate: ask for the log and give it with --log")]
    NeedsLog,
}

impl From<LogError> for CertificateError {
    fn from(error: LogError) -> Self {
        if let LogError::Note(error) = error { Self::Note(error) } else { Self::Log(error) }
    }
}

impl CertificateError {
    /// Every code of its own, for the page that explains them.
    pub const ALL: [Self; 9] = [
        Self::NotAStatement,
        Self::UnknownForm,
        Self::NotCanonical,
        Self::DoesNotHold(""),
        Self::OtherStatement,
        Self::OtherKey,
        Self::OtherKeys,
        Self::IncompleteEvidence,
        Self::NeedsLog,
    ];

    /// The stable code (`docs/errors.md`).
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Note(error) => error.code(),
            Self::Log(error) => error.code(),
            Self::NotAStatement => "not_a_certificate",
            Self::UnknownForm => "unknown_form",
            Self::NotCanonical => "not_canonical",
            Self::DoesNotHold(_) => "contradiction",
            Self::OtherStatement => "other_statement",
            Self::OtherKey => "other_key",
            Self::OtherKeys => "other_keys",
            Self::IncompleteEvidence => "incomplete_evidence",
            Self::NeedsLog => "needs_log",
        }
    }
}

/// What lies beside a certificate, and what a stranger brings along. Nothing of it is needed; whatever is given must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// `certificate.json`: the same statement.
    pub statement: Option<Vec<u8>>,
    /// `certificate.proof`: that it is a leaf of the certificate log.
    pub proof: Option<Vec<u8>>,
    /// `certificate.checkpoint`: the log's newest head when the files were written.
    pub checkpoint: Option<Vec<u8>>,
    /// `certificate.consistency`: that the head of `certificate.proof` is the beginning of `certificate.checkpoint`.
    pub consistency: Option<Vec<u8>>,
    /// `certificate.keys`: the ids of the destroyed keys.
    pub keys: Option<Vec<u8>>,
    /// `certificate.pub`: the key, as a copy.
    pub verifier_key: Option<Vec<u8>>,
    /// An older or newer signed head that the stranger kept.
    pub kept: Option<Vec<u8>>,
    /// The whole log as files.
    pub log: Option<LogFiles>,
}

/// A certificate that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What it says.
    pub statement: Statement,
    /// Which key signed it.
    pub signer: String,
    /// Its place in the certificate log, where a proof or the log was given.
    pub leaf: Option<u64>,
    /// Leaves of the longest log that was seen, where a proof or the log was given.
    pub log_size: Option<u64>,
}

/// [`check_with`], with the proof and the statement beside the note.
///
/// # Errors
/// [`CertificateError`] saying what does not hold.
pub fn check(note: &[u8], verifier_key: &str, proof: Option<&[u8]>, statement: Option<&[u8]>) -> Result<Checked, CertificateError> {
    let evidence = Evidence { proof: proof.map(<[u8]>::to_vec), statement: statement.map(<[u8]>::to_vec), ..Evidence::default() };
    check_with(note, verifier_key, &evidence)
}

/// Checks a certificate without network, config or database: signature, form, that its counts bear it out, and, where they are given,
/// the statement beside it, its place in the log, and that the log never lost or changed an entry.
///
/// # Errors
/// [`CertificateError`] saying what does not hold.
pub fn check_with(note: &[u8], verifier_key: &str, evidence: &Evidence) -> Result<Checked, CertificateError> {
    let opened = note::open(note, verifier_key)?;
    let statement = Statement::from_text(&opened.text)?;
    statement.holds()?;
    if evidence.statement.as_ref().is_some_and(|beside| *beside != opened.text) {
        return Err(CertificateError::OtherStatement);
    }
    if evidence.verifier_key.as_ref().is_some_and(|beside| !is_key(beside, verifier_key)) {
        return Err(CertificateError::OtherKey);
    }
    if evidence.keys.as_ref().is_some_and(|beside| !is_key_list(beside, &statement)) {
        return Err(CertificateError::OtherKeys);
    }
    let (leaf, heads) = check_proofs(&opened.text, verifier_key, evidence)?;
    let kept = evidence.kept.as_ref().map(|kept| tlog::open_head(kept, verifier_key)).transpose()?;
    let (leaf, log_size) = match &evidence.log {
        Some(log) => {
            let log = log.check(verifier_key)?;
            if heads.iter().chain(&kept).any(|head| !log.begins_with(head)) {
                return Err(LogError::Inconsistent.into());
            }
            let found = log.position(&tlog::leaf_hash(&opened.text)).ok_or(LogError::NotIncluded)?;
            (Some(leaf.unwrap_or(found)), Some(log.head.size))
        }
        None => {
            kept.iter().try_for_each(|kept| is_known(kept, &heads))?;
            (leaf, heads.iter().map(|head| head.size).max())
        }
    };
    Ok(Checked { statement, signer: opened.signer, leaf, log_size })
}

fn is_key(file: &[u8], given: &str) -> bool {
    file.strip_suffix(b"\n").is_some_and(|line| line == note::key_line(given).as_bytes())
}

/// One spelling only: sorted, lower case, one a line.
fn is_key_list(file: &[u8], statement: &Statement) -> bool {
    let Ok(text) = std::str::from_utf8(file) else { return false };
    let ids: Option<Vec<KeyId>> = text.lines().map(|line| Some(KeyId(hex::decode(line).ok()?.try_into().ok()?))).collect();
    ids.is_some_and(|ids| super::key_digest(&ids) == statement.subjects.key_ids_sha256 && super::key_file(&ids) == file)
}

/// The leaf, and the heads that the files beside the note prove to be of one log.
fn check_proofs(text: &[u8], verifier_key: &str, evidence: &Evidence) -> Result<(Option<u64>, Vec<Head>), CertificateError> {
    let proof = evidence.proof.as_ref().map(|proof| tlog::check_proof(proof, text, verifier_key)).transpose()?;
    let Some((leaf, head)) = proof else {
        let is_alone = evidence.checkpoint.is_none() && evidence.consistency.is_none();
        return if is_alone { Ok((None, Vec::new())) } else { Err(CertificateError::IncompleteEvidence) };
    };
    match (&evidence.checkpoint, &evidence.consistency) {
        (None, None) => Ok((Some(leaf), vec![head])),
        (Some(checkpoint), Some(consistency)) => {
            let newest = tlog::open_head(checkpoint, verifier_key)?;
            tlog::check_consistency(consistency, &head, &newest)?;
            Ok((Some(leaf), vec![head, newest]))
        }
        _ => Err(CertificateError::IncompleteEvidence),
    }
}

/// Whether a head that a stranger kept is one of those that the files prove.
fn is_known(kept: &Head, heads: &[Head]) -> Result<(), CertificateError> {
    if heads.contains(kept) {
        return Ok(());
    }
    let is_rewritten = heads.iter().any(|head| head.size == kept.size);
    Err(if is_rewritten { LogError::Inconsistent.into() } else { CertificateError::NeedsLog })
}
