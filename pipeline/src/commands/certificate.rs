//! `sunder certificate ...`

use std::path::Path;

use serde::Serialize;
use sunder_retention::case::{certificate_files, signer_from_file};
use sunder_schemas::certificate;

use super::Failure;
use super::cases::case_id;
use crate::app::{Base, signer};
use crate::cli::{DONE, NOT_TRUE};
use crate::config::Config;
use crate::output::Output;

/// The answer of `certificate check` (DESIGN section 6).
#[derive(Debug, Serialize)]
struct Checked {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    case: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Writes the files of a certificate into `out`.
pub(super) async fn write(config: Config, id: &str, out: &Path, output: Output) -> Result<u8, Failure> {
    let id = case_id(id)?;
    let base = Base::open(config, None).await?;
    let files = certificate_files(base.keyring.db(), &id, &signer(&base.config)?).await.map_err(|e| match e {
        sunder_retention::case::CaseError::NotCertified => {
            Failure::NotTrue(format!("{id} is not certified yet; `sunder cases {id}` says why"))
        }
        other => Failure::of("certificate", &other),
    })?;
    write_files(&files, out)?;
    let names: Vec<String> = files.named().iter().map(|(name, _)| out.join(name).display().to_string()).collect();
    output.show(&serde_json::json!({ "case": id, "files": names }), || names.join("\n"));
    Ok(DONE)
}

/// Writes `files` into the folder `out`, made where it is missing.
pub(crate) fn write_files(files: &sunder_retention::case::Files, out: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, error: &std::io::Error| Failure::Failed(format!("{} cannot be written: {}", path.display(), error.kind()));
    std::fs::create_dir_all(out).map_err(|e| failed(out, &e))?;
    for (name, bytes) in files.named() {
        let path = out.join(name);
        std::fs::write(&path, bytes).map_err(|e| failed(&path, &e))?;
    }
    Ok(())
}

/// Prints the verifier key on one line.
pub(super) fn key(config: &Config, output: Output) -> Result<u8, Failure> {
    let key = signer(config)?.verifier_key();
    output.show(&serde_json::json!({ "key": key }), || key.clone());
    Ok(DONE)
}

/// Makes a signing key file.
pub(super) fn new_signer(file: &Path, name: &str, output: Output) -> Result<u8, Failure> {
    if file.exists() {
        return Err(Failure::Use(format!("{} exists; a signing key is never overwritten", file.display())));
    }
    let key = signer_from_file(file, Some(name)).map_err(|e| Failure::of("certificate new-signer", &e))?.verifier_key();
    output.show(&serde_json::json!({ "key": key }), || format!("wrote {}; publish this verifier key:\n{key}", file.display()));
    Ok(DONE)
}

/// Checks a certificate with nothing but the file and the key. The proof and the statement beside it are checked too where they lie there.
pub(super) fn check(file: &Path, key: &str, output: Output) -> Result<u8, Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| Failure::Use(format!("{} cannot be read: {}", path.display(), e.kind())));
    let note = read(file)?;
    let key_text =
        if Path::new(key).is_file() { String::from_utf8_lossy(&read(Path::new(key))?).trim().to_owned() } else { key.to_owned() };
    let beside = |name: &str| std::fs::read(file.with_file_name(name)).ok();
    let checked = match certificate::check(&note, &key_text, beside("certificate.proof").as_deref(), beside("certificate.json").as_deref())
    {
        Ok(ok) => Checked { valid: true, case: Some(ok.statement.case.to_string()), signer: Some(ok.signer), reason: None },
        Err(error) => Checked { valid: false, case: None, signer: None, reason: Some(crate::telemetry::chain(&error)) },
    };
    output.show(&checked, || match (&checked.case, &checked.signer, &checked.reason) {
        (Some(case), Some(signer), _) => format!("valid: {case}, signed by {signer}"),
        (_, _, reason) => format!("NOT VALID: {}", reason.as_deref().unwrap_or("unknown")),
    });
    Ok(if checked.valid { DONE } else { NOT_TRUE })
}
