//! Reads the key database's own files again: a wrapped key that was nulled must not linger in them (DESIGN section 5).
//!
//! Invariants: the needles are the first bytes of wrapped keys, kept as their complement so that the needle itself is no hit; key ids
//! may stand here, since the ledger keeps them; a scan that does not find its control is void. On SQLite all files are read. On
//! PostgreSQL the tables' files are read where this program may, and the write-ahead log is residual until backups have expired.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Executor, Row};
use sunder_schemas::ids::KeyId;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::Period;

use crate::keydb::{DbError, Dialect, on};
use crate::keys::Keyring;
use crate::store::{Control, FoundBlock, Needles, Place, Prove, Residual, ScanReport, StoreError};

/// The store's name in reports.
pub(crate) const STORE: &str = "keys";
/// Bytes read at once. Chosen: large enough for the disk, small enough for memory.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes by which a needle is recognised before it is compared whole.
const PREFIX: usize = 8;
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
        let search = Search::new(needles);
        let read = tokio::task::spawn_blocking(move || search.files(&files)).await;
        let code = |code: &str| StoreError { store: STORE.to_owned(), action: "scan".to_owned(), code: code.to_owned() };
        let found = read.map_err(|_| code("interrupted"))?.map_err(|e| code(&e.kind().to_string()))?;
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

/// A needle, and the control's index where it is one.
type Needle = (Vec<u8>, Option<usize>);

/// Several needles looked for at once.
struct Search {
    /// By their first bytes.
    needles: HashMap<[u8; PREFIX], Vec<Needle>>,
    /// Which values of a needle's first two bytes occur: rules out nearly every position at once.
    starts: Vec<bool>,
    controls: usize,
    longest: usize,
}

struct Findings {
    places: Vec<Place>,
    controls: u64,
    blocks: Vec<FoundBlock>,
}

impl Search {
    fn new(needles: &Needles) -> Self {
        let mut search = Self { needles: HashMap::new(), starts: vec![false; 1 << 16], controls: needles.controls.len(), longest: PREFIX };
        for (index, key) in needles.controls.iter().enumerate() {
            search.add(SealedBlock::header(*key).to_vec(), Some(index));
        }
        for bytes in &needles.bytes {
            search.add(bytes.clone(), None);
        }
        search
    }

    fn add(&mut self, needle: Vec<u8>, control: Option<usize>) {
        // A shorter needle than this says nothing; wrapped keys give 16 bytes, block headers 20.
        let Some(prefix) = needle.first_chunk::<PREFIX>().copied() else { return };
        self.longest = self.longest.max(needle.len());
        let [a, b, ..] = prefix;
        if let Some(start) = self.starts.get_mut(usize::from(u16::from_be_bytes([a, b]))) {
            *start = true;
        }
        self.needles.entry(prefix).or_default().push((needle, control));
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
        let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK_BYTES + self.longest);
        let mut length = 0u64;
        loop {
            let taken = Read::by_ref(&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut buffer)?;
            length += taken as u64;
            let start = length - buffer.len() as u64;
            self.chunk(&buffer, |at, needle, control| match control {
                Some(index) => seen.iter_mut().skip(index).take(1).for_each(|s| *s = true),
                None => blocks.push(FoundBlock {
                    place: format!("{}@{}", path.display(), start + at as u64),
                    // A wrapped key does not say whose it is; the place does.
                    key: KeyId([0; 16]),
                    block: needle.to_vec(),
                    is_buried: false,
                }),
            });
            if taken == 0 {
                return Ok(length);
            }
            // A needle may lie across two chunks; keeping one byte less than the longest finds it once.
            let keep = buffer.len().min(self.longest - 1);
            buffer.drain(..buffer.len() - keep);
        }
    }

    fn chunk(&self, bytes: &[u8], mut found: impl FnMut(usize, &[u8], Option<usize>)) {
        for (at, window) in bytes.windows(PREFIX).enumerate() {
            let Some([a, b, ..]) = window.first_chunk::<PREFIX>() else { continue };
            if !self.starts.get(usize::from(u16::from_be_bytes([*a, *b]))).copied().unwrap_or(false) {
                continue;
            }
            for (needle, control) in self.needles.get(window).into_iter().flatten() {
                if bytes.get(at..at + needle.len()).is_some_and(|b| b == needle.as_slice()) {
                    found(at, needle, *control);
                }
            }
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
