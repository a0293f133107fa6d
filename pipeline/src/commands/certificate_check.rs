//! `sunder certificate check`: what a stranger runs, with nothing but the files and the key. It reads no config and opens no connection.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sunder_schemas::certificate::{self, Evidence};
use sunder_schemas::note::NOTE_BYTES_MAX;
use sunder_schemas::tlog::{LEAVES_MAX, LogFiles};

use super::Failure;
use crate::cli::{CheckArgs, DONE, NOT_TRUE};
use crate::output::Output;

/// Longest file that is read, in bytes: one more than the longest note, so that a longer one is read far enough to be refused.
const FILE_BYTES_MAX: u64 = NOTE_BYTES_MAX as u64 + 1;
/// Longest list of keys that is read, in bytes: two million keys of 33. Chosen: twice the largest run that is measured.
const KEY_LIST_BYTES_MAX: u64 = 2_000_000 * 33;
/// Longest tile in bytes: 256 hashes of 32 bytes; one more, as above.
const TILE_BYTES_MAX: u64 = 256 * 32 + 1;
/// Files in a log's folder at the most: the tiles of the longest log that is read.
const TILES_MAX: u64 = LEAVES_MAX / 256 + LEAVES_MAX / 65_536 + 16;

/// The answer (DESIGN section 6): `reason` is a code of `docs/errors.md`, `detail` says it in words.
#[derive(Debug, Serialize)]
struct Checked {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    case: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Checks a certificate, with what lies beside it and what is given.
pub(super) fn check(args: &CheckArgs, output: Output) -> Result<u8, Failure> {
    let file = if args.file.is_dir() { args.file.join("certificate.note") } else { args.file.clone() };
    let note = given(&file)?;
    let key = match beside(&PathBuf::from(&args.key))? {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        None => args.key.clone(),
    };
    let evidence = Evidence {
        statement: beside(&file.with_file_name("certificate.json"))?,
        proof: beside(&file.with_file_name("certificate.proof"))?,
        checkpoint: beside(&file.with_file_name("certificate.checkpoint"))?,
        consistency: beside(&file.with_file_name("certificate.consistency"))?,
        keys: beside_up_to(&file.with_file_name("certificate.keys"), KEY_LIST_BYTES_MAX)?,
        verifier_key: beside(&file.with_file_name("certificate.pub"))?,
        kept: args.checkpoint.as_deref().map(given).transpose()?,
        log: args.log.as_deref().map(log_files).transpose()?,
    };
    let checked = answer(&note, &key, &evidence);
    output.show(&checked, || match (&checked.case, &checked.signer, &checked.detail) {
        (Some(case), Some(signer), _) => format!("valid: {case}, signed by {signer}"),
        (_, _, detail) => format!("NOT VALID: {}", detail.as_deref().unwrap_or("unknown")),
    });
    Ok(if checked.valid { DONE } else { NOT_TRUE })
}

fn answer(note: &[u8], key: &str, evidence: &Evidence) -> Checked {
    match certificate::check_with(note, key, evidence) {
        Ok(ok) => Checked {
            valid: true,
            case: Some(ok.statement.case.to_string()),
            signer: Some(ok.signer),
            leaf: ok.leaf,
            log_size: ok.log_size,
            reason: None,
            detail: None,
        },
        Err(error) => {
            let (reason, detail) = (Some(error.code()), Some(error.to_string()));
            Checked { valid: false, case: None, signer: None, leaf: None, log_size: None, reason, detail }
        }
    }
}

/// A file that the caller named.
pub(super) fn given(path: &Path) -> Result<Vec<u8>, Failure> {
    read(path, FILE_BYTES_MAX).map_err(|kind| Failure::Use(format!("{} cannot be read: {kind}", path.display())))
}

/// A file that may be there. One that is there and cannot be read is not passed over: what it would say is unknown.
fn beside(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    beside_up_to(path, FILE_BYTES_MAX)
}

fn beside_up_to(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Failure> {
    match read(path, bytes_max) {
        Ok(bytes) => Ok(Some(bytes)),
        // A key is not a path: too long for one, or with a part that is no folder.
        Err(ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename | ErrorKind::InvalidInput) => Ok(None),
        Err(kind) => Err(Failure::Use(format!("{} cannot be read: {kind}", path.display()))),
    }
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes)).map_err(|error| error.kind())?;
    Ok(bytes)
}

/// The files of `sunder certificate log --out DIR`: `checkpoint`, and everything under `tile/`.
fn log_files(folder: &Path) -> Result<LogFiles, Failure> {
    let checkpoint = given(&folder.join("checkpoint"))?;
    let mut tiles = BTreeMap::new();
    let mut open = vec![folder.join("tile")];
    while let Some(next) = open.pop() {
        let failed = |error: std::io::Error| Failure::Use(format!("{} cannot be read: {}", next.display(), error.kind()));
        let entries = match std::fs::read_dir(&next) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if entry.file_type().map_err(failed)?.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            let bytes = read(&path, TILE_BYTES_MAX).map_err(|kind| Failure::Use(format!("{} cannot be read: {kind}", path.display())))?;
            tiles.insert(name, bytes);
            if u64::try_from(tiles.len()).unwrap_or(u64::MAX) > TILES_MAX {
                return Err(Failure::Use(format!("{} holds more files than a log has", folder.display())));
            }
        }
    }
    Ok(LogFiles { checkpoint, tiles })
}
