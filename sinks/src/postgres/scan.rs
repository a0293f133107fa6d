//! Reading a PostgreSQL store again: every row, and, where the server lets us, every byte of the tables' files.

use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Row as _};
use sunder_retention::store::Place;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, SellerId};
use sunder_schemas::records::PiiRecord;

use super::Postgres;
use crate::SinkError;
use crate::find::{Finder, block_around};
use crate::lookup::{Lookup, RowText};
use crate::options::Dialect;
use crate::store::{FOUND_BYTES_MAX, Reading};
use crate::vault::{PAGE_SQL_POSTGRES, SEALED_SQL_POSTGRES, Sealed};

/// Bytes of a file that are read at once (chosen).
const PIECE_BYTES: i64 = 4 << 20;
/// Bytes of one segment of a relation (`RELSEG_SIZE` of 131,072 blocks of 8 KiB; PostgreSQL manual 73.1).
const SEGMENT_BYTES: i64 = 1 << 30;

/// The tables' own files, with those of their indexes and out-of-line values.
const FILES_SQL: &str = "WITH t AS (SELECT oid, reltoastrelid FROM pg_class WHERE oid = ANY($1::text[]::regclass[]::oid[])), \
     r AS (SELECT oid FROM t UNION SELECT reltoastrelid FROM t WHERE reltoastrelid <> 0) \
     SELECT c.relname::text, pg_relation_filepath(c.oid)::text, pg_relation_size(c.oid)::bigint FROM pg_class c \
     WHERE c.oid IN (SELECT oid FROM r UNION SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM r)) ORDER BY 1";

impl Postgres {
    pub(super) async fn rows_read(&self, finder: &Finder) -> Result<Reading, SinkError> {
        let mut reading = Reading::default();
        for table in &self.tables {
            let count = self.search_rows(finder, table.row_text_sql(Dialect::Postgres), table.name, &mut reading).await?;
            reading.places.push(Place { name: format!("{}.{}", self.store, table.name), read: format!("{count} rows") });
        }
        if self.has_control {
            let sql = "SELECT case_id, key_id, block FROM scan_control".to_owned();
            self.search_rows(finder, sql, "scan_control", &mut reading).await?;
        }
        reading.rows_end();
        self.search_statistics(finder, &mut reading).await?;
        Ok(reading)
    }

    async fn search_rows(&self, finder: &Finder, sql: String, table: &str, reading: &mut Reading) -> Result<u64, SinkError> {
        let place = format!("{}.{table}", self.store);
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&self.pool);
        let mut count = 0;
        while let Some(row) = rows.try_next().await.map_err(self.fail("read its rows"))? {
            count += 1;
            let text: &str = row.try_get(0).map_err(self.fail("read its rows"))?;
            reading.search(finder, &place, text.as_bytes(), |_| Vec::new());
            for index in 1..row.len() {
                let bytes: &[u8] = row.try_get(index).map_err(self.fail("read its rows"))?;
                reading.search(finder, &place, bytes, |at| block_around(bytes, at, FOUND_BYTES_MAX));
            }
        }
        Ok(count)
    }

    /// The planner's statistics keep samples of values; those of sealed columns are off, and this shows it.
    async fn search_statistics(&self, finder: &Finder, reading: &mut Reading) -> Result<(), SinkError> {
        let names: Vec<&str> = self.tables.iter().map(|table| table.name).collect();
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT concat_ws(' ', most_common_vals::text, histogram_bounds::text, most_common_elems::text) FROM pg_stats \
             WHERE schemaname = ANY(current_schemas(false)) AND tablename = ANY($1)",
        )
        .bind(names)
        .fetch_all(&self.pool)
        .await
        .map_err(self.fail("read the planner's statistics"))?;
        let place = format!("{}: planner statistics", self.store);
        for row in &rows {
            reading.search(finder, &place, row.as_bytes(), |_| Vec::new());
        }
        reading.places.push(Place { name: place, read: format!("{} columns", rows.len()) });
        Ok(())
    }

    /// `None` where the user may not read the server's files (SQLSTATE 42501): a certificate then names them as residual.
    pub(super) async fn files_read(&self, finder: &Arc<Finder>) -> Result<Option<Reading>, SinkError> {
        match self.search_files(finder).await {
            Ok(reading) => Ok(Some(reading)),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => Ok(None),
            Err(error) => Err(self.fail("read its files")(error)),
        }
    }

    async fn search_files(&self, finder: &Arc<Finder>) -> Result<Reading, sqlx::Error> {
        // What is only in shared buffers must be in the files before they are read.
        sqlx::raw_sql("CHECKPOINT").execute(&self.pool).await?;
        let mut names: Vec<&str> = self.tables.iter().map(|table| table.name).collect();
        if self.has_control {
            names.push("scan_control");
        }
        let files: Vec<(String, Option<String>, i64)> = sqlx::query_as(FILES_SQL).bind(names).fetch_all(&self.pool).await?;
        let mut reading = Reading::default();
        for (name, path, size) in files {
            let Some(path) = path else { continue };
            let place = format!("{} file of {name}", self.store);
            let mut piece: Vec<u8> = Vec::new();
            let mut at = 0;
            while at < size {
                let segment = at / SEGMENT_BYTES;
                let file = if segment == 0 { path.clone() } else { format!("{path}.{segment}") };
                let bytes: Option<Vec<u8>> = sqlx::query_scalar("SELECT pg_read_binary_file($1, $2, $3, true)")
                    .bind(file)
                    .bind(at % SEGMENT_BYTES)
                    .bind(PIECE_BYTES)
                    .fetch_one(&self.pool)
                    .await?;
                // A file that is gone or shorter by now was truncated meanwhile: nothing is left to read there.
                let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else { break };
                at += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
                piece.extend_from_slice(&bytes);
                reading.search(finder, &place, &piece, |at| block_around(&piece, at, FOUND_BYTES_MAX));
                let overlap = finder.longest().saturating_sub(1).min(piece.len());
                piece.drain(..piece.len() - overlap);
            }
            reading.places.push(Place { name: place, read: format!("{at} bytes") });
        }
        Ok(reading)
    }

    pub(super) async fn rows_found(&self, lookup: &Lookup) -> Result<Vec<RowText>, SinkError> {
        let mut query = sqlx::query(AssertSqlSafe(lookup.sql.clone())).persistent(false);
        for part in &lookup.parts {
            query = query.bind(part.clone());
        }
        let rows = query.fetch_all(&self.pool).await.map_err(self.fail("look a row up"))?;
        let texts = |row: &sqlx::postgres::PgRow| {
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
        let Some(sql) = PAGE_SQL_POSTGRES.get(table) else { return Ok(Vec::new()) };
        let rows: Vec<Sealed> = sqlx::query_as(*sql)
            .bind(seller.as_str())
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
        let Some(sql) = SEALED_SQL_POSTGRES.get(table) else { return Ok(Vec::new()) };
        let rows: Vec<Sealed> = sqlx::query_as(*sql)
            .bind(seller.as_str())
            .bind(entity.to_hex())
            .fetch_all(&self.pool)
            .await
            .map_err(self.fail("read sealed blocks"))?;
        rows.into_iter().map(Sealed::into_record).collect::<Result<_, _>>().map_err(self.fail("read sealed blocks"))
    }
}
