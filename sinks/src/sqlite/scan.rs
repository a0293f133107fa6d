//! Reading a SQLite store again: every row, and every byte of the database, its write-ahead log and its shared memory.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Row as _};
use sunder_retention::store::Place;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, SellerId};
use sunder_schemas::records::PiiRecord;

use super::Sqlite;
use crate::SinkError;
use crate::error::Retry;
use crate::find::{Finder, block_around};
use crate::lookup::{Lookup, RowText};
use crate::options::Dialect;
use crate::store::{FOUND_BYTES_MAX, Reading};
use crate::vault::{PAGE_SQL_SQLITE, SEALED_SQL_SQLITE, Sealed};

/// Bytes of a file that are searched at once (chosen).
const PIECE_BYTES: u64 = 4 << 20;

impl Sqlite {
    /// Moves the write-ahead log into the file and truncates it, so that old pages lie in neither.
    pub(super) async fn checkpoint(&self) -> Result<(), SinkError> {
        let busy: i64 = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&self.pool)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(self.fail("truncate the write-ahead log"))?;
        if busy != 0 {
            // Another process is reading: the log still holds old pages, so nothing may be called gone.
            return Err(self.unread("truncate the write-ahead log", "busy"));
        }
        Ok(())
    }

    pub(super) fn unread(&self, action: &'static str, code: &str) -> SinkError {
        SinkError::Database { store: self.store, action, code: code.to_owned(), retry: Retry::Backoff }
    }

    pub(super) async fn rows_read(&self, finder: &Finder) -> Result<Reading, SinkError> {
        let mut reading = Reading::default();
        for table in &self.tables {
            let count = self.search_rows(finder, table.row_text_sql(Dialect::Sqlite), table.name, &mut reading).await?;
            reading.places.push(Place { name: format!("{}.{}", self.store, table.name), read: format!("{count} rows") });
        }
        if self.has_control {
            let sql = "SELECT case_id, key_id, block FROM scan_control".to_owned();
            self.search_rows(finder, sql, "scan_control", &mut reading).await?;
        }
        reading.rows_end();
        Ok(reading)
    }

    async fn search_rows(&self, finder: &Finder, sql: String, table: &str, reading: &mut Reading) -> Result<u64, SinkError> {
        let place = format!("{}.{table}", self.store);
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&self.pool);
        let mut count = 0;
        while let Some(row) = rows.try_next().await.map_err(self.fail("read its rows"))? {
            count += 1;
            let text: String = row.try_get(0).map_err(self.fail("read its rows"))?;
            reading.search(finder, &place, text.as_bytes(), |_| Vec::new());
            for index in 1..row.len() {
                let bytes: &[u8] = row.try_get(index).map_err(self.fail("read its rows"))?;
                reading.search(finder, &place, bytes, |at| block_around(bytes, at, FOUND_BYTES_MAX));
            }
        }
        Ok(count)
    }

    pub(super) async fn files_read(&self, finder: &Arc<Finder>) -> Result<Reading, SinkError> {
        self.checkpoint().await?;
        let with = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        let files = ["", "-wal", "-shm"].map(with);
        let (finder, store) = (Arc::clone(finder), self.store);
        let search = move || {
            let mut reading = Reading::default();
            for path in files {
                match search_file(&finder, store, &path, &mut reading) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(reading)
        };
        match tokio::task::spawn_blocking(search).await {
            Ok(Ok(reading)) => Ok(reading),
            Ok(Err(_)) => Err(self.unread("read its files", "io")),
            Err(_) => Err(self.unread("read its files", "stopped")),
        }
    }

    pub(super) async fn rows_found(&self, lookup: &Lookup) -> Result<Vec<RowText>, SinkError> {
        let mut query = sqlx::query(AssertSqlSafe(lookup.sql.clone())).persistent(false);
        for part in &lookup.parts {
            query = query.bind(part.clone());
        }
        let rows = query.fetch_all(&self.pool).await.map_err(self.fail("look a row up"))?;
        let texts = |row: &sqlx::sqlite::SqliteRow| {
            lookup
                .columns
                .iter()
                .enumerate()
                .map(|(index, name)| Ok((*name, row.try_get(index)?)))
                .collect::<Result<RowText, sqlx::Error>>()
        };
        rows.iter().map(texts).collect::<Result<_, _>>().map_err(self.fail("look a row up"))
    }

    pub(super) async fn sealed_page(
        &self,
        table: usize,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<PiiRecord>, SinkError> {
        let Some(sql) = PAGE_SQL_SQLITE.get(table) else { return Ok(Vec::new()) };
        let rows: Vec<Sealed> = sqlx::query_as(*sql)
            .bind(seller.as_str().to_owned())
            .bind(group.as_str())
            // Tokens are hex of one length; the empty text comes before all of them.
            .bind(after.map(|token| token.to_hex()).unwrap_or_default())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .map_err(self.fail("read sealed blocks"))?;
        rows.into_iter().map(Sealed::into_record).collect::<Result<_, _>>().map_err(self.fail("read sealed blocks"))
    }

    pub(super) async fn sealed_rows(&self, table: usize, seller: &SellerId, entity: EntityToken) -> Result<Vec<PiiRecord>, SinkError> {
        let Some(sql) = SEALED_SQL_SQLITE.get(table) else { return Ok(Vec::new()) };
        let rows: Vec<Sealed> = sqlx::query_as(*sql)
            .bind(seller.as_str().to_owned())
            .bind(entity.to_hex())
            .fetch_all(&self.pool)
            .await
            .map_err(self.fail("read sealed blocks"))?;
        rows.into_iter().map(Sealed::into_record).collect::<Result<_, _>>().map_err(self.fail("read sealed blocks"))
    }
}

/// Searches a file piece by piece; pieces overlap by what the longest needle could lose at a seam.
fn search_file(finder: &Finder, store: &str, path: &Path, reading: &mut Reading) -> std::io::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let place = format!("{store} file {name}");
    let mut file = File::open(path)?;
    let mut piece = Vec::new();
    let mut total = 0u64;
    loop {
        let read = file.by_ref().take(PIECE_BYTES).read_to_end(&mut piece)?;
        if read == 0 {
            break;
        }
        total += read as u64;
        reading.search(finder, &place, &piece, |at| block_around(&piece, at, FOUND_BYTES_MAX));
        let overlap = finder.longest().saturating_sub(1).min(piece.len());
        piece.drain(..piece.len() - overlap);
    }
    reading.places.push(Place { name: place, read: format!("{total} bytes") });
    Ok(())
}
