//! The stores on SQLite: one file each, in WAL mode, with `secure_delete`.
//!
//! One connection: writers of different sources take turns, and no reader of our own keeps the write-ahead log from being truncated.

mod beside;
mod scan;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Row as _, Sqlite as Db, SqlitePool, Transaction};
use sunder_retention::dbcode;
use sunder_retention::inventory::SQLITE_OBJECTS;
use sunder_retention::store::{Control, Subject};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, Offset, Partition, SellerId};
use sunder_schemas::records::PiiRecord;
use sunder_schemas::time::Timestamp;

use crate::SinkError;
use crate::beside::Side;
use crate::cells::{Cells, Values};
use crate::find::Finder;
use crate::lookup::{Lookup, RowText};
use crate::options::{Dialect, StoreOptions};
use crate::rows::RowKey;
use crate::store::{Backend, CANARY, Changed, Move, Position, Reading};
use crate::tables::{SINK_OFFSET_SQL, Table, freshness_sql, scan_control_sql};

/// How long a writer waits for another process's transaction (chosen: longer than a batch of 10,000 rows takes).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows of one statement, largest first: few forms, so that each is prepared once. SQLite binds 32,766 values at most
/// (`SQLITE_MAX_VARIABLE_NUMBER`), and a row has fewer than 100.
const CHUNKS: [usize; 3] = [256, 16, 1];

/// A store on SQLite.
pub(crate) struct Sqlite {
    store: &'static str,
    pool: SqlitePool,
    path: PathBuf,
    tables: Vec<Table>,
    /// Per table, one statement for each of [`CHUNKS`].
    upserts: Vec<[Arc<str>; 3]>,
    deletes: Vec<[Arc<str>; 3]>,
    has_control: bool,
}

impl Sqlite {
    /// Opens the file and makes its tables as declared.
    pub(crate) async fn open(store: &'static str, options: &StoreOptions, tables: &[Table], with_views: bool) -> Result<Self, SinkError> {
        let mut connect = SqliteConnectOptions::from_str(&options.url)
            .map_err(|_| SinkError::Options { store, code: "the url is not of the form sqlite:///path" })?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // Deleted rows are overwritten with zeros (sqlite.org/pragma.html#pragma_secure_delete).
            .pragma("secure_delete", "ON")
            .pragma("temp_store", "MEMORY");
        if options.side == Side::Beside {
            let beside = beside::file_beside(connect.get_filename());
            connect = connect.filename(beside);
        }
        let path = connect.get_filename().to_path_buf();
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_release(|connection, _| Box::pin(dbcode::is_sound::<Db>(connection)))
            .connect_with(connect)
            .await
            .map_err(SinkError::of(store, "open the file"))?;
        let backend = Self {
            store,
            pool,
            path,
            upserts: tables.iter().map(|table| CHUNKS.map(|rows| table.upsert_values_sql(rows).into())).collect(),
            deletes: tables.iter().map(|table| CHUNKS.map(|rows| table.delete_values_sql(table.key.len(), rows).into())).collect(),
            tables: tables.to_vec(),
            has_control: with_views,
        };
        backend.settle().await.map_err(SinkError::of(store, "make its tables"))?;
        Ok(backend)
    }

    async fn settle(&self) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(SINK_OFFSET_SQL).execute(&mut *tx).await?;
        for table in &self.tables {
            sqlx::query(AssertSqlSafe(table.create_sql(Dialect::Sqlite))).execute(&mut *tx).await?;
            let held: Vec<String> =
                sqlx::query_scalar("SELECT name FROM pragma_table_info(?)").bind(table.name).fetch_all(&mut *tx).await?;
            for column in table.columns.iter().filter(|column| !held.iter().any(|name| name == column.name)) {
                sqlx::query(AssertSqlSafe(table.add_column_sql(column, Dialect::Sqlite))).execute(&mut *tx).await?;
            }
        }
        if self.has_control {
            sqlx::query(scan_control_sql(Dialect::Sqlite)).execute(&mut *tx).await?;
            for sql in freshness_sql(&self.tables, Dialect::Sqlite) {
                sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await?;
            }
        }
        tx.commit().await
    }

    fn fail(&self, action: &'static str) -> impl FnOnce(sqlx::Error) -> SinkError + use<> {
        SinkError::of(self.store, action)
    }

    async fn upsert(&self, tx: &mut Transaction<'_, Db>, table: usize, cells: &Cells<'_>) -> Result<u64, sqlx::Error> {
        let Some(statements) = self.upserts.get(table) else { return Ok(0) };
        let mut written = 0;
        let mut from = 0;
        for (sql, rows) in statements.iter().zip(CHUNKS) {
            while cells.rows() - from >= rows {
                let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
                for row in from..from + rows {
                    for values in cells.columns() {
                        query = bind(query, values, row);
                    }
                }
                written += query.execute(&mut **tx).await?.rows_affected();
                from += rows;
            }
        }
        Ok(written)
    }

    async fn delete(&self, tx: &mut Transaction<'_, Db>, table: usize, keys: &[RowKey]) -> Result<u64, sqlx::Error> {
        let Some(statements) = self.deletes.get(table) else { return Ok(0) };
        let mut deleted = 0;
        let mut rest = keys;
        for (sql, rows) in statements.iter().zip(CHUNKS) {
            while let Some((chunk, more)) = rest.split_at_checked(rows) {
                let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
                for key in chunk {
                    query = query.bind(key.seller.as_str().to_owned()).bind(key.entity.to_hex());
                    if let Some(part) = key.part_text() {
                        query = query.bind(part);
                    }
                }
                deleted += query.execute(&mut **tx).await?.rows_affected();
                rest = more;
            }
        }
        Ok(deleted)
    }

    /// Moves the position, or says with the stored one that it is not the expected one.
    async fn advance(&self, tx: &mut Transaction<'_, Db>, sink: &str, step: Move<'_>) -> Result<(), SinkError> {
        let Move { source, expected, next } = step;
        let query = match expected {
            None => sqlx::query(
                "INSERT INTO sink_offset (sink, topic, incarnation, topic_partition, next_offset) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            ),
            Some(_) => sqlx::query(
                "UPDATE sink_offset SET next_offset = ?5 WHERE sink = ?1 AND topic = ?2 AND incarnation = ?3 AND topic_partition = ?4 AND next_offset = ?6",
            ),
        };
        let mut query = query
            .bind(sink.to_owned())
            .bind(source.topic.clone())
            .bind(source.incarnation.clone())
            .bind(i64::from(source.partition.0))
            .bind(next.0);
        if let Some(expected) = expected {
            query = query.bind(expected.0);
        }
        if query.execute(&mut **tx).await.map_err(self.fail("move the position"))?.rows_affected() == 1 {
            return Ok(());
        }
        let stored: Option<i64> = sqlx::query_scalar(
            "SELECT next_offset FROM sink_offset WHERE sink = ? AND topic = ? AND incarnation = ? AND topic_partition = ?",
        )
        .bind(sink.to_owned())
        .bind(source.topic.clone())
        .bind(source.incarnation.clone())
        .bind(i64::from(source.partition.0))
        .fetch_optional(&mut **tx)
        .await
        .map_err(self.fail("read the position"))?;
        Err(SinkError::Moved { topic: source.topic.clone(), partition: source.partition, expected, stored: stored.map(Offset) })
    }

    async fn delete_all_of(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<u64, sqlx::Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut deleted = 0;
        for table in &self.tables {
            for (sql, chunk) in statements(table, "DELETE", subjects, older_than.is_some()) {
                deleted += of_entities(sqlx::query(AssertSqlSafe(sql)), table, chunk, older_than).execute(&mut *tx).await?.rows_affected();
            }
        }
        tx.commit().await?;
        Ok(deleted)
    }

    async fn count_all_of(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<Vec<(&'static str, u64)>, sqlx::Error> {
        let mut counts = Vec::with_capacity(self.tables.len());
        for table in &self.tables {
            let mut count = 0;
            for (sql, chunk) in statements(table, "SELECT count(*)", subjects, older_than.is_some()) {
                let row = of_entities(sqlx::query(AssertSqlSafe(sql)), table, chunk, older_than).fetch_one(&self.pool).await?;
                count += row.try_get::<i64, _>(0)?.unsigned_abs();
            }
            counts.push((table.name, count));
        }
        Ok(counts)
    }

    async fn aged_rows(&self, cutoff: Timestamp) -> Result<Vec<(usize, String, String)>, sqlx::Error> {
        let mut aged = Vec::new();
        for (index, table) in self.tables.iter().enumerate() {
            let Some(sql) = table.aged_sql(Dialect::Sqlite) else { continue };
            let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql)).bind(cutoff.to_iso()).fetch_all(&self.pool).await?;
            aged.extend(rows.into_iter().map(|(seller, token)| (index, seller, token)));
        }
        Ok(aged)
    }

    async fn drop_other_incarnations(&self, sink: &str, table: &Table, topic: &str, incarnation: &str) -> Result<u64, sqlx::Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let rows = format!(
            "DELETE FROM {} WHERE topic_id IN (SELECT incarnation FROM sink_offset WHERE sink = ? AND topic = ? AND incarnation <> ?)",
            table.name
        );
        let positions = "DELETE FROM sink_offset WHERE sink = ? AND topic = ? AND incarnation <> ?".to_owned();
        let mut gone = Vec::with_capacity(2);
        for sql in [rows, positions] {
            let query = sqlx::query(AssertSqlSafe(sql)).bind(sink.to_owned()).bind(topic.to_owned()).bind(incarnation.to_owned());
            gone.push(query.execute(&mut *tx).await?.rows_affected());
        }
        tx.commit().await?;
        Ok(gone.first().copied().unwrap_or_default())
    }
}

type Query<'q> = sqlx::query::Query<'q, Db, SqliteArguments>;

/// Statements over the entities of `subjects`, few at a time, since each is an argument.
fn statements<'s>(table: &Table, verb: &str, subjects: &'s [Subject], by_age: bool) -> Vec<(Arc<str>, &'s [Subject])> {
    let mut all = Vec::new();
    let mut rest = subjects;
    for rows in CHUNKS {
        let sql: Arc<str> = table.entities_sql(verb, Dialect::Sqlite, rows, by_age).into();
        while let Some((chunk, more)) = rest.split_at_checked(rows) {
            all.push((Arc::clone(&sql), chunk));
            rest = more;
        }
    }
    all
}

/// Binds sellers and tokens of `subjects`, and the instant where the statement of `table` has a place for it.
fn of_entities<'q>(query: Query<'q>, table: &Table, subjects: &[Subject], older_than: Option<Timestamp>) -> Query<'q> {
    let query = subjects.iter().fold(query, |query, subject| query.bind(subject.seller.as_str().to_owned()).bind(subject.token.to_hex()));
    match older_than {
        Some(cutoff) if table.binds_age(true) => query.bind(cutoff.to_iso()),
        _ => query,
    }
}

/// Binds one cell. The driver runs statements on a thread of its own, so borrowed values are copied.
fn bind<'q>(query: Query<'q>, values: &Values<'_>, row: usize) -> Query<'q> {
    match values {
        Values::Text(v) => query.bind(v.get(row).copied().flatten().map(str::to_owned)),
        Values::Token(v) => query.bind(v.get(row).copied().flatten().map(|token| token.as_str().to_owned())),
        Values::Integer(v) => query.bind(v.get(row).copied().flatten()),
        Values::Boolean(v) => query.bind(v.get(row).copied().flatten()),
        Values::Decimal(v) => query.bind(v.get(row).copied().flatten().map(|number| number.to_string())),
        Values::Instant(v) => query.bind(v.get(row).copied().flatten().map(|instant| instant.to_iso())),
        Values::Uuid(v) => query.bind(v.get(row).copied().flatten().map(|id| id.hyphenated().to_string())),
        Values::Bytes(v) => query.bind(v.get(row).copied().flatten().map(<[u8]>::to_vec)),
        Values::List(v) => query.bind(v.get(row).map(str::to_owned)),
    }
}

#[async_trait]
impl Backend for Sqlite {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn positions(&self, sink: &str) -> Result<Vec<Position>, SinkError> {
        let rows = sqlx::query("SELECT topic, incarnation, topic_partition, next_offset FROM sink_offset WHERE sink = ?")
            .bind(sink.to_owned())
            .fetch_all(&self.pool)
            .await
            .map_err(self.fail("read the positions"))?;
        let position = |row: &sqlx::sqlite::SqliteRow| {
            Ok(Position {
                topic: row.try_get(0)?,
                incarnation: row.try_get(1)?,
                partition: Partition(row.try_get(2)?),
                next: Offset(row.try_get(3)?),
            })
        };
        rows.iter().map(position).collect::<Result<_, sqlx::Error>>().map_err(self.fail("read the positions"))
    }

    async fn write(&self, sink: &str, step: Move<'_>, table: usize, deletes: &[RowKey], upserts: Cells<'_>) -> Result<Changed, SinkError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.fail("begin a batch"))?;
        self.advance(&mut tx, sink, step).await?;
        let deleted = self.delete(&mut tx, table, deletes).await.map_err(self.fail("delete rows"))?;
        let written = self.upsert(&mut tx, table, &upserts).await.map_err(self.fail("write rows"))?;
        tx.commit().await.map_err(self.fail("commit a batch"))?;
        Ok(Changed { written, deleted })
    }

    async fn rebuild(&self, sink: &str, table: usize, topic: &str, incarnation: &str) -> Result<u64, SinkError> {
        let Some(table) = self.tables.get(table) else { return Ok(0) };
        self.drop_other_incarnations(sink, table, topic, incarnation).await.map_err(self.fail("rebuild a topic's rows"))
    }

    async fn delete_subjects(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<u64, SinkError> {
        self.delete_all_of(subjects, older_than).await.map_err(self.fail("delete subjects"))
    }

    async fn count_subjects(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<Vec<(&'static str, u64)>, SinkError> {
        self.count_all_of(subjects, older_than).await.map_err(self.fail("count the rows of subjects"))
    }

    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<(usize, String, String)>, SinkError> {
        self.aged_rows(cutoff).await.map_err(self.fail("look for old rows"))
    }

    async fn purge(&self) -> Result<(), SinkError> {
        self.checkpoint().await
    }

    async fn rewrite(&self) -> Result<(), SinkError> {
        sqlx::query("VACUUM").execute(&self.pool).await.map_err(self.fail("rewrite the file"))?;
        self.checkpoint().await
    }

    async fn read_rows(&self, finder: &Finder) -> Result<Reading, SinkError> {
        self.rows_read(finder).await
    }

    async fn holder(&self) -> Option<String> {
        None
    }

    async fn read_files(&self, finder: &Arc<Finder>) -> Result<Option<Reading>, SinkError> {
        self.files_read(finder).await.map(Some)
    }

    async fn size(&self) -> Result<u64, SinkError> {
        Ok(tokio::fs::metadata(&self.path).await.map_or(0, |file| file.len()))
    }

    async fn set_control(&self, case: &str, control: Option<&Control>) -> Result<(), SinkError> {
        let query = match control {
            Some(control) => sqlx::query("INSERT OR REPLACE INTO scan_control (case_id, key_id, block) VALUES (?, ?, ?)")
                .bind(case.to_owned())
                .bind(control.key.0.to_vec())
                .bind(control.block.clone()),
            None => sqlx::query("DELETE FROM scan_control WHERE case_id = ?").bind(case.to_owned()),
        };
        query.execute(&self.pool).await.map(drop).map_err(self.fail("set a control"))
    }

    async fn put_row(&self, table: usize, row: Cells<'_>) -> Result<(), SinkError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(self.fail("set a control"))?;
        self.upsert(&mut tx, table, &row).await.map_err(self.fail("set a control"))?;
        tx.commit().await.map_err(self.fail("set a control"))
    }

    async fn drop_canaries(&self, case: &str) -> Result<(), SinkError> {
        sqlx::query("DELETE FROM sealed_block WHERE selling_partner_id = ? AND classification = ?")
            .bind(CANARY)
            .bind(case.to_owned())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(self.fail("remove a control"))
    }

    async fn sampled_columns(&self) -> Result<Vec<String>, SinkError> {
        // SQLite's ANALYZE counts rows and keeps no values unless it was built with STAT4, which the bundled one is not.
        Ok(Vec::new())
    }

    async fn take_over(&self, fed: &BTreeSet<usize>) -> Result<u64, SinkError> {
        self.replace_rows(fed).await
    }

    async fn drop_beside(&self) -> Result<bool, SinkError> {
        self.remove_beside().await
    }

    async fn close(&self) {
        self.pool.close().await;
    }

    async fn look_up(&self, lookup: &Lookup) -> Result<Vec<RowText>, SinkError> {
        self.rows_found(lookup).await
    }

    async fn page(
        &self,
        table: usize,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<PiiRecord>, SinkError> {
        self.sealed_page(table, seller, group, after, limit).await
    }

    async fn objects(&self) -> Result<Vec<(String, String)>, SinkError> {
        sqlx::query_as(SQLITE_OBJECTS).fetch_all(&self.pool).await.map_err(self.fail("list what the database holds"))
    }

    async fn sealed(&self, table: usize, seller: &SellerId, entity: EntityToken) -> Result<Vec<PiiRecord>, SinkError> {
        self.sealed_rows(table, seller, entity).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Retry;

    #[tokio::test]
    async fn a_full_disk_costs_its_transaction_and_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(&format!("sqlite://{}/vault.db", folder.path().display()), "sp");
        let store = Sqlite::open("vault", &options, &[Table::sealed_block()], false).await.unwrap();
        let mut tx = store.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("PRAGMA max_page_count = 1").execute(&mut *tx).await.unwrap();
        let filler = sqlx::query("CREATE TABLE filler AS SELECT randomblob(1000000) AS b");
        let full = filler.execute(&mut *tx).await.map_err(store.fail("fill")).unwrap_err();
        assert_eq!((full.retry(), full.to_string().as_str()), (Retry::Backoff, "vault could not fill: 13 disk_full"));
        // So it ends the transaction by itself where the disk is full while it commits.
        sqlx::query("ROLLBACK").execute(&mut *tx).await.unwrap();
        drop(tx);
        assert_eq!(store.rebuild("vault", 0, "sp.pii.orders.v1", "one").await, Ok(0));
    }
}
