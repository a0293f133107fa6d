//! `sunder certificate ...`: what is written. What is checked is in [`super::certificate_check`].

use std::path::Path;

use sunder_retention::case::{CaseError, certificate_files, signer_from_file};

use super::Failure;
use super::cases::case_id;
use crate::app::{Base, signer};
use crate::cli::DONE;
use crate::config::Config;
use crate::output::Output;

/// Writes the files of a certificate into `out`.
pub(super) async fn write(config: Config, id: &str, out: &Path, output: Output) -> Result<u8, Failure> {
    let id = case_id(id)?;
    let base = Base::open(config, None).await?;
    let files = certificate_files(base.keyring.db(), &id, &signer(&base.config)?).await.map_err(|e| match e {
        CaseError::NotCertified => Failure::NotTrue(format!("{id} is not certified yet; `sunder cases {id}` says why")),
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

/// Writes the whole log: `checkpoint`, `tile/...`.
pub(super) async fn log(config: Config, out: &Path, output: Output) -> Result<u8, Failure> {
    let key = signer(&config)?.verifier_key();
    let base = Base::open(config, None).await?;
    let log = sunder_retention::case::log_files(base.keyring.db(), &key).await.map_err(|e| match e {
        CaseError::NotCertified => Failure::NotTrue("no case is certified yet".to_owned()),
        other => Failure::of("certificate log", &other),
    })?;
    let failed = |path: &Path, error: &std::io::Error| Failure::Failed(format!("{} cannot be written: {}", path.display(), error.kind()));
    // What an older, shorter log left behind would be tiles too many.
    let old = out.join("tile");
    match std::fs::remove_dir_all(&old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&old, &error)),
        _ => {}
    }
    for (name, bytes) in log.tiles.iter().map(|(name, bytes)| (name.as_str(), bytes)).chain([("checkpoint", &log.checkpoint)]) {
        let path = out.join(name);
        let folder = path.parent().unwrap_or(out);
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        std::fs::write(&path, bytes).map_err(|e| failed(&path, &e))?;
    }
    let answer = serde_json::json!({ "checkpoint": out.join("checkpoint").display().to_string(), "tiles": log.tiles.len() });
    output.show(&answer, || format!("{}\n{} tiles", out.join("checkpoint").display(), log.tiles.len()));
    Ok(DONE)
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
