//! Reads the key database's own files again: a wrapped key that was nulled must not linger in them (DESIGN section 5).
//!
//! Invariants: the needles are the first bytes of wrapped keys, kept as their complement so that the needle itself is no hit; key ids
//! may stand here, since the ledger keeps them; a scan that does not find its control is void. On SQLite all files are read. On
//! PostgreSQL the tables' files are read where this program may, and the write-ahead log is residual until backups have expired.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Executor, Row};
use sunder_schemas::ids::KeyId;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::Period;

use crate::anchors::Anchors;
use crate::keydb::{DbError, Dialect, on};
use crate::keys::Keyring;
use crate::store::{Control, FoundBlock, Needles, Place, Prove, Residual, ScanReport, StoreError};

/// The store's name in reports.
pub(crate) const STORE: &str = "keys";
/// Bytes read at once. Chosen: large enough for the disk, small enough for memory.
const CHUNK_BYTES: usize = 1 << 20;
/// On PostgreSQL the write-ahead log may hold a nulled key for this long even without backups (DESIGN section 5).
const POSTGRES_RESIDUAL_MIN: Period = Period::days(1);

/// The files of the key database, as a store that a case reads again.
#[derive(Debug, Clone)]
pub struct KeyFiles {
    keyring: Arc<Keyring>,
}

impl KeyFiles {
    /// Over the database of `keyring`.
    #[must_use]
    pub const fn new(keyring: Arc<Keyring>) -> Self {
        Self { keyring }
    }

    async fn execute(&self, action: &'static str, sql: &'static str, case: &str, block: Option<&[u8]>) -> Result<(), DbError> {
        let mut tx = self.keyring.db().begin_write().await?;
        let mut query = sqlx::query(sql).bind(case.to_owned());
        if let Some(block) = block {
            query = query.bind(block.to_vec());
        }
        query.execute(&mut *tx).await.map_err(on(action))?;
        tx.commit().await.map_err(on(action))
    }

    /// The files to read, or `None` where they cannot be: a remote server, or one of another user.
    async fn files(&self) -> Result<Option<Vec<PathBuf>>, DbError> {
        let db = self.keyring.db();
        match db.dialect() {
            Dialect::Sqlite => {
                let failed = on("find its files");
                let row = db.pool().fetch_one("SELECT file FROM pragma_database_list WHERE name = 'main'").await.map_err(&failed)?;
                let main: String = row.try_get(0).map_err(&failed)?;
                let all = ["", "-wal", "-journal"].map(|suffix| PathBuf::from(format!("{main}{suffix}")));
                Ok(Some(all.into_iter().filter(|path| path.exists()).collect()))
            }
            Dialect::Postgres => {
                let sql = "SELECT current_setting('data_directory') || '/base/' || CAST(oid AS TEXT) FROM pg_database \
                           WHERE datname = current_database() AND inet_server_addr() <<= inet '127.0.0.0/8'";
                // Without the right to see the setting, or on another machine, there is nothing to read.
                let Ok(Some(row)) = db.pool().fetch_optional(sql).await else { return Ok(None) };
                let folder: String = row.try_get(0).map_err(on("find its files"))?;
                let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
                // The server writes its pages behind; the control must be on disk to be found.
                if db.pool().execute("CHECKPOINT").await.is_err() {
                    return Ok(None);
                }
                Ok(Some(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect()))
            }
        }
    }

    fn residual(&self) -> Vec<Residual> {
        let policy = self.keyring.policy();
        let longest = match self.keyring.db().dialect() {
            Dialect::Postgres if policy.backup.millis_max() < POSTGRES_RESIDUAL_MIN.millis_max() => POSTGRES_RESIDUAL_MIN,
            Dialect::Postgres | Dialect::Sqlite => policy.backup,
        };
        if longest.millis_max() == 0 {
            return Vec::new();
        }
        let what = match self.keyring.db().dialect() {
            Dialect::Postgres => "key database: wrapped keys in its write-ahead log and backups",
            Dialect::Sqlite => "key database: wrapped keys in its backups",
        };
        vec![Residual { what: what.to_owned(), until: Some(self.keyring.now().plus(longest)) }]
    }
}

fn error(action: &str) -> impl Fn(DbError) -> StoreError {
    move |e| StoreError { store: STORE.to_owned(), action: action.to_owned(), code: e.code }
}

#[async_trait]
impl Prove for KeyFiles {
    fn name(&self) -> &str {
        STORE
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO key_scan_control (case_id, block) VALUES ($1, $2) ON CONFLICT (case_id) DO UPDATE SET block = excluded.block";
        self.execute("plant a control", sql, &control.case, Some(&control.block)).await.map_err(error("plant"))
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        let mut report = ScanReport {
            store: STORE.to_owned(),
            method: "read the key database's files byte by byte for the first bytes of destroyed wrapped keys".to_owned(),
            residual: self.residual(),
            ..ScanReport::default()
        };
        let Some(files) = self.files().await.map_err(error("scan"))? else {
            report.method = "the key database's files cannot be read from here; destroyed wrapped keys are residual".to_owned();
            return Ok(report);
        };
        report.controls_planted = needles.controls.len() as u64;
        let search = Arc::new(Search::new(needles));
        let mut found = read(Arc::clone(&search), files).await?;
        if !found.blocks.is_empty() {
            // A rewriting copies a dead row along while an older snapshot may still see it: by now that may have ended.
            let db = self.keyring.db();
            db.rewrite_key_tables().await.map_err(error("rewrite its tables"))?;
            found = read(search, self.files().await.map_err(error("scan"))?.unwrap_or_default()).await?;
            if !found.blocks.is_empty() {
                report.held_by = db.holder().await;
            }
        }
        report.places = found.places;
        report.controls_found = found.controls;
        report.found = found.blocks;
        Ok(report)
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        let sql = "DELETE FROM key_scan_control WHERE case_id = $1";
        self.execute("remove a control", sql, case, None).await.map_err(error("unplant"))
    }
}

async fn read(search: Arc<Search>, files: Vec<PathBuf>) -> Result<Findings, StoreError> {
    let code = |code: &str| StoreError { store: STORE.to_owned(), action: "scan".to_owned(), code: code.to_owned() };
    let read = tokio::task::spawn_blocking(move || search.files(&files)).await;
    read.map_err(|_| code("interrupted"))?.map_err(|e| code(&e.kind().to_string()))
}

/// Several needles looked for at once: the place of the control where one is that.
struct Search {
    needles: Anchors<Option<usize>>,
    controls: usize,
}

struct Findings {
    places: Vec<Place>,
    controls: u64,
    blocks: Vec<FoundBlock>,
}

impl Search {
    fn new(needles: &Needles) -> Self {
        // Headers begin with the same four bytes.
        let controls = needles.controls.iter().enumerate().map(|(index, key)| (SealedBlock::header(*key).to_vec(), 4, Some(index)));
        let wrapped = needles.bytes.iter().map(|bytes| (bytes.clone(), 0, None));
        Self { needles: Anchors::new(controls.chain(wrapped)), controls: needles.controls.len() }
    }

    fn files(&self, files: &[PathBuf]) -> std::io::Result<Findings> {
        let mut seen = vec![false; self.controls];
        let mut findings = Findings { places: Vec::new(), controls: 0, blocks: Vec::new() };
        for path in files {
            match self.file(path, &mut seen, &mut findings.blocks) {
                Ok(length) => findings.places.push(Place { name: path.display().to_string(), read: format!("{length} bytes") }),
                // A file that the database removed meanwhile holds nothing any more.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        findings.controls = seen.iter().filter(|s| **s).count() as u64;
        Ok(findings)
    }

    fn file(&self, path: &Path, seen: &mut [bool], blocks: &mut Vec<FoundBlock>) -> std::io::Result<u64> {
        let mut file = File::open(path)?;
        let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK_BYTES + self.needles.longest());
        let mut length = 0u64;
        loop {
            let taken = Read::by_ref(&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut buffer)?;
            length += taken as u64;
            let start = length - buffer.len() as u64;
            for hit in self.needles.each(&buffer) {
                match hit.what {
                    Some(index) => seen.iter_mut().skip(*index).take(1).for_each(|s| *s = true),
                    None => blocks.push(FoundBlock {
                        place: format!("{}@{}", path.display(), start + hit.at as u64),
                        // A wrapped key does not say whose it is; the place does.
                        key: KeyId([0; 16]),
                        block: hit.needle.to_vec(),
                        is_buried: false,
                    }),
                }
            }
            if taken == 0 {
                return Ok(length);
            }
            // A needle may lie across two chunks; keeping one byte less than the longest finds it once.
            let keep = buffer.len().min(self.needles.longest().saturating_sub(1));
            buffer.drain(..buffer.len() - keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_across_chunks_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pages");
        let needle: Vec<u8> = (1..=16).collect();
        for at in [0, 100, CHUNK_BYTES - 20, CHUNK_BYTES - 16, CHUNK_BYTES - 7, CHUNK_BYTES, 2 * CHUNK_BYTES - 1] {
            let mut bytes = vec![0u8; 3 * CHUNK_BYTES];
            bytes[at..at + 16].copy_from_slice(&needle);
            let control = KeyId([9; 16]);
            bytes[40..60].copy_from_slice(&SealedBlock::header(control));
            std::fs::write(&path, &bytes).unwrap();
            let needles = Needles { controls: vec![control, KeyId([8; 16])], bytes: vec![needle.clone()], ..Needles::default() };
            let found = Search::new(&needles).files(std::slice::from_ref(&path)).unwrap();
            assert!(!found.blocks.is_empty(), "at {at}");
            assert_eq!(found.controls, 1);
            assert_eq!(found.places[0].read, format!("{} bytes", 3 * CHUNK_BYTES));
        }
    }
}
